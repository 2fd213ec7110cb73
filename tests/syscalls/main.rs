//! Does the heap make the system calls of `docs/SYSCALLS.md`, with the arguments given there, and no others?
//! Method: before `main`, and before its first operation, a process forbids itself everything that isn't in the table, uses
//! the heap in every way, and exits. The kernel kills it at the first call that isn't there.

#![cfg(target_arch = "x86_64")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[allow(dead_code, reason = "written for all tests")]
#[path = "../common/filter.rs"]
mod filter;

use filter::Filter;
use rstest::rstest;
use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::ffi::{CStr, c_void};
use std::hint::black_box;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

#[global_allocator]
static GLOBAL: nearheap::NearHeap = nearheap::NearHeap::new();

const TABLE: &str = include_str!("../../docs/SYSCALLS.md");

/// Numbers of the calls on this machine.
const NUMBERS: [(&str, libc::c_long); 20] = [
    ("mmap", libc::SYS_mmap),
    ("munmap", libc::SYS_munmap),
    ("madvise", libc::SYS_madvise),
    ("mremap", libc::SYS_mremap),
    ("mbind", libc::SYS_mbind),
    ("get_mempolicy", libc::SYS_get_mempolicy),
    ("futex", libc::SYS_futex),
    ("clock_nanosleep", libc::SYS_clock_nanosleep),
    ("getpid", libc::SYS_getpid),
    ("gettid", libc::SYS_gettid),
    ("sched_getaffinity", libc::SYS_sched_getaffinity),
    ("clock_gettime", libc::SYS_clock_gettime),
    ("openat", libc::SYS_openat),
    ("read", libc::SYS_read),
    ("close", libc::SYS_close),
    ("write", libc::SYS_write),
    ("rt_sigprocmask", libc::SYS_rt_sigprocmask),
    ("tgkill", libc::SYS_tgkill),
    ("brk", libc::SYS_brk),
    ("getrandom", libc::SYS_getrandom),
];

/// What this program itself does meanwhile: it ends, and a thread of it ends.
const OWN: [libc::c_long; 3] = [libc::SYS_exit_group, libc::SYS_exit, libc::SYS_rseq];

/// The rows of a part of the document: the name of a call, and its arguments.
fn rows(text: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    text.lines().filter_map(|line| line.strip_prefix("| `")).map(|line| {
        let (name, rest) = line.split_once('`').unwrap();
        (name, rest.trim_end_matches('|').rsplit('|').next().unwrap())
    })
}

/// The filter of the table; a feature has a table of its own, whose rows replace those of the same calls.
fn filter_of_table() -> Filter {
    let mut filter = Filter::new();
    let (table, hardened) = TABLE.split_once("## With the feature `hardened`").unwrap();
    let hardened = if cfg!(feature = "hardened") { hardened } else { "" };
    let replaced = |name| rows(hardened).any(|(other, _)| other == name);
    for (name, arguments) in rows(table).filter(|row| !replaced(row.0)).chain(rows(hardened)) {
        let number = NUMBERS.iter().find(|(n, _)| *n == name).unwrap().1;
        filter.allow(number, arguments.trim(), filter::KILL);
    }
    OWN.into_iter().for_each(|call| filter.allow(call, "", filter::KILL));
    filter.end(filter::KILL);
    filter
}

/// Puts it in force, for every thread.
fn enforce(filter: &Filter) {
    if filter.enforce().is_err() {
        // SAFETY: ends the process.
        unsafe { libc::_exit(3) };
    }
}

fn played() -> &'static [u8] {
    // SAFETY: terminated names; nobody changes the environment. Unlike `std::env` it allocates nothing.
    unsafe {
        let name = libc::getenv(c"UNDER_FILTER".as_ptr());
        if name.is_null() { b"" } else { CStr::from_ptr(name).to_bytes() }
    }
}

/// Blocks of every kind, many and few; all are freed.
fn use_the_heap() {
    for size in [1, 48, 500, 3000, 20 << 10, 200 << 10, 3 << 20] {
        for align in [8, 64, 4096, 2 << 20] {
            let layout = Layout::from_size_align(size, align).unwrap();
            let mut blocks = [ptr::null_mut(); 100];
            // SAFETY: no size is 0; each block is resized and freed with its own layout.
            unsafe {
                for (i, block) in
                    blocks.iter_mut().enumerate().take(if size > 9999 { 9 } else { 100 })
                {
                    *block =
                        black_box(if i % 2 == 0 { alloc(layout) } else { alloc_zeroed(layout) });
                    block.write(1);
                }
                for block in blocks.into_iter().filter(|block| !block.is_null()) {
                    let larger = Layout::from_size_align(size * 3, align).unwrap();
                    let block = black_box(realloc(block, layout, larger.size()));
                    let block = black_box(realloc(block, larger, size * 2));
                    dealloc(block, Layout::from_size_align(size * 2, align).unwrap());
                }
            }
        }
    }
    nearheap::flush_thread();
    nearheap::purge();
    let _ = (nearheap::stats(), nearheap::pressure());
}

/// 0: the thread starts, which takes calls of its own; 1: it waits; 2: it may work; 3: it has ended its work.
static TURN: AtomicU32 = AtomicU32::new(0);

extern "C" fn thread(_: *mut c_void) -> *mut c_void {
    TURN.store(1, SeqCst);
    while TURN.load(SeqCst) == 1 {
        std::hint::spin_loop();
    }
    use_the_heap();
    TURN.store(3, SeqCst);
    ptr::null_mut()
}

/// The loader calls what stands in this section before `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static FIRST: extern "C" fn() = {
    extern "C" fn first() {
        let what = played();
        if what.is_empty() {
            return;
        }
        let mut other = 0;
        // SAFETY: nothing here has used the heap yet, and the thread waits.
        unsafe {
            if libc::pthread_create(&mut other, ptr::null(), thread, ptr::null_mut()) != 0 {
                libc::_exit(4);
            }
        }
        while TURN.load(SeqCst) == 0 {
            std::hint::spin_loop();
        }
        enforce(&filter_of_table());
        use_the_heap();
        TURN.store(2, SeqCst);
        while TURN.load(SeqCst) != 3 {
            use_the_heap();
        }
        match what {
            b"misuse" => {
                let layout = Layout::from_size_align(100 << 10, 8).unwrap();
                // SAFETY: it isn't: the block is freed twice, which ends the process.
                unsafe {
                    let block = black_box(alloc(layout));
                    dealloc(block, layout);
                    dealloc(block, layout);
                }
            }
            // SAFETY: a call that isn't in the table.
            b"another call" => _ = unsafe { libc::getppid() },
            // SAFETY: a call that is, with an argument that isn't.
            b"another argument" => unsafe {
                libc::madvise(ptr::null_mut(), 0, libc::MADV_FREE);
            },
            _ => {}
        }
        // SAFETY: ends the process, with the exit dump.
        unsafe { libc::exit(7) };
    }
    first
};

fn under_filter(what: &str, options: &[(&str, &str)]) -> Output {
    let mut run = Command::new(std::env::current_exe().unwrap());
    run.env("UNDER_FILTER", what).envs(options.iter().copied());
    run.output().unwrap()
}

#[rstest]
#[case(&[])]
#[case(&[("NEARHEAP_STATS", "1"), ("NEARHEAP_STATS_FILE", "/dev/null")])]
#[case(&[("NEARHEAP_STATS", "json"), ("NEARHEAP_VERBOSE", "1"), ("NEARHEAP_RETAIN", "nonsense")])]
#[case(&[("NEARHEAP_LIMIT_HARD", "90%"), ("NEARHEAP_RETAIN", "0"), ("NEARHEAP_HUGE_PAGES", "on")])]
#[case(&[("NEARHEAP_NUMA", "interleave"), ("NEARHEAP_CACHE_BYTES", "0")])]
fn the_table_is_enough(#[case] options: &[(&str, &str)]) {
    let end = under_filter("work", options);
    assert_eq!(
        end.status.code(),
        Some(7),
        "{}: {}",
        end.status,
        String::from_utf8_lossy(&end.stderr)
    );
}

#[test]
fn it_is_enough_for_a_fault() {
    let end = under_filter("misuse", &[]);
    let line = String::from_utf8_lossy(&end.stderr);
    assert_eq!(end.status.signal(), Some(libc::SIGABRT), "{line}");
    assert!(line.starts_with("nearheap: fatal: double free"), "{line}");
}

/// The filter does what it is for.
#[rstest]
#[case("another call")]
#[case("another argument")]
fn what_is_not_in_it_is_fatal(#[case] what: &str) {
    assert_eq!(under_filter(what, &[]).status.signal(), Some(libc::SIGSYS));
}
