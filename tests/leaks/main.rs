//! Is what is live at exit listed, by class and, with the feature `leak-stacks`, by who allocated it; and nothing else?
//! Method: programs that leak so many blocks of these sizes, and whose stderr is compared whole. They have a `main` of
//! their own, without that of std: a block that std keeps for the main thread would be in every list.
//!
//! `tests/leaks/run` builds this file with the feature, with frame pointers and without, and runs it again.

#![no_main]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;
#[cfg(feature = "leak-stacks")]
mod stacks;

use common::{Run, child};
use nearheap::{Config, NearHeap};
use std::alloc::{Layout, alloc};
use std::ffi::{c_char, c_int};
use std::hint::black_box;
use std::mem::forget;
use std::os::unix::process::CommandExt;
use std::thread;
use std::time::Duration;

#[global_allocator]
static GLOBAL: NearHeap = NearHeap::with(Config::new().leaks());

const HUGE: usize = 3 << 20;

const SCENARIOS: &[(&str, fn())] = &[
    ("nothing", nothing),
    ("two_sites", two_sites),
    ("one_of_each", one_of_each),
    ("a_child_too", a_child_too),
    ("others_at_work", others_at_work),
];

#[unsafe(no_mangle)]
extern "C" fn main(_: c_int, _: *const *const c_char) -> c_int {
    if let Ok(name) = std::env::var("TEST_SCENARIO") {
        let all = SCENARIOS.iter();
        #[cfg(feature = "leak-stacks")]
        let all = all.chain(stacks::SCENARIOS);
        let run = all.clone().find(|(n, _)| *n == name).map(|&(_, run)| run);
        drop(name);
        run.unwrap()();
        if std::env::var_os("TEST_SCENARIO_RETURNS").is_none() {
            std::process::exit(0);
        }
        return 0;
    }
    who_leaks_nothing_is_told_so();
    classes_are_listed_with_the_most_bytes_first();
    headers_decide();
    the_statistics_come_first();
    a_child_lists_what_it_has();
    threads_may_be_at_work();
    a_closed_stderr_changes_nothing();
    #[cfg(feature = "leak-stacks")]
    stacks::all();
    println!("leaks: all passed");
    0
}

#[inline(never)]
fn leak(size: usize) {
    forget(black_box(Vec::<u8>::with_capacity(size)));
}

#[inline(never)]
fn first_site(blocks: usize) {
    for _ in 0..blocks {
        leak(black_box(100));
    }
}

#[inline(never)]
fn second_site(blocks: usize) {
    for _ in 0..blocks {
        leak(black_box(1000));
    }
}

/// What is freed is not live, in the quarantine or behind it.
fn nothing() {
    for size in [0, 1, 100, 1000, 20 << 10, 128 << 10, HUGE] {
        for _ in 0..100 {
            drop(black_box(vec![1_u8; size]));
        }
    }
    thread::spawn(|| drop(black_box(vec![1_u8; 100]))).join().unwrap();
}

fn two_sites() {
    nothing();
    first_site(7);
    second_site(3);
}

fn one_of_each() {
    for size in [0, 100, 100, 1000, 20 << 10, 128 << 10, HUGE] {
        leak(size);
    }
    // SAFETY: not of size 0.
    assert!(!black_box(unsafe { alloc(Layout::from_size_align(100, 64).unwrap()) }).is_null());
    let mut grows = vec![1_u8; 100];
    grows.reserve_exact(100);
    forget(black_box(grows));
}

fn a_child_too() {
    first_site(2);
    // SAFETY: the only thread.
    let child = unsafe { libc::fork() };
    if child == 0 {
        second_site(1);
        std::process::exit(0);
    }
    let mut status = -1;
    // SAFETY: the child is this process's; `status` is valid to write.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0);
}

fn others_at_work() {
    for seed in 0..4 {
        thread::spawn(move || {
            let mut kept = Vec::new();
            for round in seed.. {
                kept.push(black_box(vec![1_u8; round % 500]));
                if kept.len() > 100 {
                    kept.clear();
                }
            }
        });
    }
    for _ in 0..5 {
        leak(20 << 10);
    }
    thread::sleep(Duration::from_millis(10));
}

fn listing(scenario: &str) -> Run {
    child(scenario)
}

/// The list of these sums and rows.
fn list(bytes: usize, blocks: usize, rows: &[(&str, usize, usize)]) -> String {
    let mut text = format!("nearheap: live at exit: {bytes} bytes in {blocks} blocks\n");
    for (class, blocks, bytes) in rows {
        text += &format!("nearheap: live: class={class} blocks={blocks} bytes={bytes}\n");
    }
    text
}

/// What is not about call stacks.
fn without_stacks(stderr: &str) -> String {
    let by_stack = |line: &&str| line.contains(" allocated by") || line.contains("nearheap:  ");
    stderr.split_inclusive('\n').filter(|line| !by_stack(line)).collect()
}

#[track_caller]
fn lists(run: Run, expected: &str) {
    let stderr = run.run().succeeds();
    assert_eq!(without_stacks(&stderr), expected, "{stderr}");
}

fn of_two_sites() -> String {
    let rows = [("1152 align=16", 3, 3456), ("144 align=16", 7, 1008)];
    list(3456 + 1008, 10, &rows)
}

fn who_leaks_nothing_is_told_so() {
    lists(listing("nothing"), &list(0, 0, &[]));
    lists(listing("nothing").returning(), &list(0, 0, &[]));
    lists(listing("nothing").env("NEARHEAP_HEADERS_QUARANTINE", "0"), &list(0, 0, &[]));
}

fn classes_are_listed_with_the_most_bytes_first() {
    lists(listing("two_sites"), &of_two_sites());
    lists(listing("two_sites").returning(), &of_two_sites());
    // SAFETY: no preconditions.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    let huge = HUGE + page;
    let rows = [
        ("huge", 1, huge),
        ("147456 align=16", 1, 147_456),
        ("22528 align=16", 1, 22528),
        ("1152 align=16", 1, 1152),
        ("144 align=16", 2, 288),
        ("240 align=16", 1, 240),
        ("192 align=64", 1, 192),
    ];
    let bytes = rows.iter().map(|row| row.2).sum();
    lists(listing("one_of_each"), &list(bytes, 8, &rows));
}

/// The program asks for the list; the environment may ask for something else, or for the same.
fn headers_decide() {
    for (value, expected) in [
        ("leaks", of_two_sites()),
        ("LEAKS", of_two_sites()),
        ("on", String::new()),
        ("off", String::new()),
    ] {
        lists(listing("two_sites").env("NEARHEAP_HEADERS", value), &expected);
    }
}

fn the_statistics_come_first() {
    let stderr = listing("two_sites").env("NEARHEAP_STATS", "json").run().succeeds();
    let (json, rest) = stderr.split_once('\n').unwrap();
    assert!(json.contains("\"in_use_bytes\":4464,\"in_use_blocks\":10}"), "{json}");
    assert_eq!(without_stacks(rest), of_two_sites());
    let run = listing("two_sites").env("NEARHEAP_STATS", "text");
    lists(run.env("NEARHEAP_STATS_FILE", "/dev/null"), &of_two_sites());
}

/// What it inherited is live in it too.
fn a_child_lists_what_it_has() {
    let parents = ("144 align=16", 2, 288);
    let childs = list(1440, 3, &[("1152 align=16", 1, 1152), parents]);
    lists(listing("a_child_too"), &(childs + &list(288, 2, &[parents])));
}

fn threads_may_be_at_work() {
    for _ in 0..20 {
        let stderr = listing("others_at_work").run().succeeds();
        let row = "nearheap: live: class=22528 align=16 blocks=5 bytes=112640\n";
        assert!(stderr.contains(row), "{stderr}");
    }
}

fn a_closed_stderr_changes_nothing() {
    let mut run = listing("two_sites");
    let close = || {
        // SAFETY: closing a descriptor of the child's own.
        unsafe { libc::close(2) };
        Ok(())
    };
    // SAFETY: `close` is safe between fork and exec.
    unsafe { run.command.pre_exec(close) };
    run.run().succeeds_with("");
}
