//! A kernel that refuses: mappings, memory, calls, files.

use crate::common::Run;
use crate::common::filter::{self, Filter};
use crate::work::{Nulls, Work, beside, on_threads};
use std::alloc::{Layout, alloc_zeroed, dealloc, realloc};
use std::hint::black_box;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;
use std::time::Instant;

/// Pages whose rights differ from their neighbours', each a mapping of its own, until the kernel has no more.
struct Mappings(*mut libc::c_void, usize);

const PAGE: usize = 4096;

impl Mappings {
    fn take_all() -> Self {
        let len = 200_000 * PAGE;
        // SAFETY: a new mapping without rights, of which nothing is touched.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let at = libc::mmap(ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0);
            assert_ne!(at, libc::MAP_FAILED);
            let mut taken = 0;
            while libc::mprotect(at.add(taken * 2 * PAGE), PAGE, libc::PROT_READ) == 0 {
                taken += 1;
                assert!(taken < 100_000, "the kernel allows more mappings than that");
            }
            eprintln!("{} mappings taken", taken * 2);
            Self(at, len)
        }
    }
}

impl Drop for Mappings {
    fn drop(&mut self) {
        // SAFETY: mapped above, used by nobody.
        assert_eq!(unsafe { libc::munmap(self.0, self.1) }, 0);
    }
}

/// Blocks that each need a mapping of their own, with ends that are cut off.
#[derive(Default)]
struct Large(Vec<(*mut u8, Layout)>);

impl Large {
    fn step(&mut self) {
        let size = (2 + 3 * (self.0.len() % 7)) << 20;
        let layout = Layout::from_size_align(size, 2 << 20).unwrap();
        // SAFETY: the layout has a size; the block is written inside, and freed with its layout.
        unsafe {
            let block = alloc_zeroed(layout);
            if block.is_null() || self.0.len() > 20 {
                self.0.drain(..).for_each(|(block, layout)| dealloc(block, layout));
            }
            if !block.is_null() {
                assert!(*block == 0 && *block.add(size - 1) == 0);
                block.write(1);
                self.0.push((block, layout));
            }
        }
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        // SAFETY: as above.
        self.0.drain(..).for_each(|(block, layout)| unsafe { dealloc(block, layout) });
    }
}

pub(crate) fn no_mappings_left() {
    let began = Instant::now();
    let mut rounds = 0;
    beside(4, || {
        while rounds == 0 || began.elapsed() < crate::span() {
            let all = Mappings::take_all();
            let full = Instant::now();
            let mut large = Large::default();
            while full.elapsed() < crate::span() / 10 {
                large.step();
            }
            drop(all);
            std::thread::sleep(crate::span() / 20);
            rounds += 1;
        }
    });
    let system = nearheap::stats().system;
    eprintln!("{} maps and {} other calls refused", system.refused_maps, system.refused_others);
    assert!(system.refused_maps + system.refused_others > 0, "the limit was never felt");
    // And with mappings to be had, everything is as before.
    let mut work = Work::new(1, 300);
    (0..10_000).for_each(|_| work.step());
    work.end();
    assert_eq!(work.nulls, 0);
}

/// Three MiB more than the process has, for four threads that want some ten each.
pub(crate) fn little_memory() {
    let which = std::env::var("LIMIT").unwrap();
    let (resource, key) =
        if which == "AS" { (libc::RLIMIT_AS, "VmSize:") } else { (libc::RLIMIT_DATA, "VmData:") };
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    let now = line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10;
    // The stacks of the threads, a first segment and its metadata, and little more.
    let stacks = 4 * (2 << 20) + (1 << 20);
    let new = libc::rlimit { rlim_cur: now + stacks + (10 << 20), rlim_max: libc::RLIM_INFINITY };
    // SAFETY: a limit to read.
    assert_eq!(unsafe { libc::setrlimit(resource, &new) }, 0);
    let began = Instant::now();
    let (_, nulls) = beside(4, || {
        while began.elapsed() < crate::span() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    });
    assert!(nulls > 0, "the limit was never felt");
}

/// Under a kernel that promises no more than it has (`vm.overcommit_memory=2`), with little of that left. For the emulated
/// machine of `tests/adversity/run overcommit`.
pub(crate) fn overcommit() {
    assert_eq!(std::fs::read_to_string("/proc/sys/vm/overcommit_memory").unwrap().trim(), "2");
    let began = Instant::now();
    let (_, nulls) = beside(4, || {
        let mut pieces = Vec::with_capacity(10_000);
        // SAFETY: new mappings, of which nothing is touched, and which nobody uses.
        unsafe {
            loop {
                let rw = libc::PROT_READ | libc::PROT_WRITE;
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                let at = libc::mmap(ptr::null_mut(), 1 << 20, rw, flags, -1, 0);
                if at == libc::MAP_FAILED {
                    break;
                }
                pieces.push(at);
            }
            eprintln!("{} MiB of ballast", pieces.len());
            pieces.drain(..4).for_each(|at| _ = libc::munmap(at, 1 << 20));
            while began.elapsed() < crate::span() {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            pieces.drain(..).for_each(|at| _ = libc::munmap(at, 1 << 20));
        }
    });
    assert!(nulls > 0, "nothing was refused");
}

/// Has the kernel answer these calls with EPERM, from before the heap is started.
pub(crate) fn filtered(mut run: Run, calls: &str) -> Run {
    let all =
        [("mbind", libc::SYS_mbind), ("madvise", libc::SYS_madvise), ("mremap", libc::SYS_mremap)];
    let these = all.into_iter().filter(|(name, _)| calls == *name || calls == "all");
    let filter = Filter::of(these.map(|(_, call)| call), filter::EPERM);
    // SAFETY: system calls alone.
    unsafe { run.command.pre_exec(move || filter.enforce()) };
    run.env("FILTERED", calls)
}

pub(crate) fn under_a_filter() {
    on_threads(4, Nulls::Never);
    // So that something is purged and something huge is resized.
    let mut huge = black_box(vec![1_u8; 3 << 20]);
    huge.resize(9 << 20, 2);
    assert!(huge[..3 << 20].iter().all(|&b| b == 1) && huge[3 << 20..].iter().all(|&b| b == 2));
    drop(huge);
    nearheap::purge();
    let refused = nearheap::stats().system.refused_others;
    eprintln!("{refused} calls were refused");
    let calls = std::env::var("FILTERED").unwrap();
    // With one node, nothing is asked of `mbind`.
    assert!(calls == "mbind" || refused > 0);
}

/// Runs this executable again, in a mount namespace of its own that `mount` changes first. `None`: that isn't allowed
/// here.
fn in_own_mounts(scenario: &str, mount: fn() -> i32) -> Option<std::process::Output> {
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["scenario", "--exact", "--nocapture", "--test-threads=1"]);
    again.env("TEST_SCENARIO", scenario).env("INSIDE", "1");
    // SAFETY: system calls alone.
    unsafe {
        again.pre_exec(move || {
            let private = libc::MS_REC | libc::MS_PRIVATE;
            let (none, root) = (ptr::null(), c"/".as_ptr());
            if libc::unshare(libc::CLONE_NEWNS) != 0
                || libc::mount(none, root, none, private, ptr::null()) != 0
                || mount() != 0
            {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    match again.output() {
        Ok(output) => Some(output),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            eprintln!("SKIPPED: to hide files takes rights that this user hasn't");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn mount_over(place: &std::ffi::CStr, options: &std::ffi::CStr) -> i32 {
    let kind = c"tmpfs".as_ptr();
    // SAFETY: terminated strings.
    unsafe { libc::mount(kind, place.as_ptr(), kind, 0, options.as_ptr().cast()) }
}

pub(crate) fn hidden_files() {
    if std::env::var_os("INSIDE").is_none() {
        let hide = || {
            let mode = c"size=4k,mode=000";
            mount_over(c"/proc", mode) | mount_over(c"/sys", mode)
        };
        let Some(end) = in_own_mounts("hidden_files", hide) else { return };
        let text = String::from_utf8_lossy(&end.stderr);
        assert_eq!(end.status.code(), Some(0), "{text}");
        eprintln!("inside: {text}");
        return;
    }
    assert!(
        std::fs::read("/proc/self/status").is_err() && std::fs::read("/sys/kernel/mm").is_err()
    );
    on_threads(4, Nulls::Never);
}

/// A dump of some kilobytes onto a disk of one page: what fits is there, and the status is the program's.
pub(crate) fn small_disk() {
    if std::env::var_os("INSIDE").is_some() {
        on_threads(2, Nulls::Never);
        std::process::exit(7);
    }
    // SAFETY: this process has started no other thread that could read the environment now.
    unsafe {
        std::env::set_var("NEARHEAP_STATS", "json");
        std::env::set_var("NEARHEAP_STATS_FILE", "/mnt/dump");
    }
    let fill = || mount_over(c"/mnt", c"size=4k");
    let Some(end) = in_own_mounts("small_disk", fill) else { return };
    assert_eq!(end.status.code(), Some(7), "{}", String::from_utf8_lossy(&end.stderr));
}

/// Calls of each kind that the kernel refuses anyway: afterwards this thread has made more of them than any other.
unsafe fn count_up() {
    for _ in 0..200 {
        // SAFETY: of no bytes, or at an address that is no page's.
        unsafe {
            let odd = ptr::without_provenance_mut(1);
            libc::mmap(ptr::null_mut(), 0, 0, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
            libc::munmap(odd, 0);
            libc::madvise(odd, 0, libc::MADV_DONTNEED);
            libc::mremap(odd, 0, 0, 0);
        }
    }
}

/// A huge block that grows as far as it can, and keeps its contents.
fn grow() {
    let mut layout = Layout::from_size_align(2 << 20, 8).unwrap();
    // SAFETY: the layout has a size; the block is written and read inside, resized and freed with its layout.
    unsafe {
        let mut block = alloc_zeroed(layout);
        if block.is_null() {
            return;
        }
        block.add(layout.size() - 1).write(5);
        for mib in [3, 9, 5, 30] {
            let new = black_box(realloc(block, layout, mib << 20));
            if !new.is_null() {
                layout = Layout::from_size_align(mib << 20, 8).unwrap();
                block = new;
            }
            assert_eq!(*block.add((2 << 20) - 1), 5);
        }
        dealloc(block, layout);
    }
}

/// Some thousand operations, every result checked, of which `tests/adversity/run kernel-calls` has one call refused after the
/// other. It finds its place by a call that nobody else makes.
pub(crate) fn one_refusal() {
    crate::common::contents::prepare();
    let mut work = Work::new(7, 300);
    // SAFETY: refused calls; and no such group.
    unsafe {
        count_up();
        libc::syscall(libc::SYS_getpgid, -77);
    }
    for i in 0..3000 {
        work.step();
        if i % 300 == 299 {
            grow();
            nearheap::purge();
        }
    }
    work.end();
    nearheap::purge();
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_getpgid, -78) };
    assert!(work.nulls <= 1, "{} nulls for one refusal", work.nulls);
}
