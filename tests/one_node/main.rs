//! On a machine with one NUMA node, does the heap leave the kernel alone about nodes once it has started?
//! Method: child processes in which a filter of system calls kills whoever makes such a call.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;

use common::child;
use common::filter::{self, Filter};
use nearheap::numa::topology;
use nearheap::{NearHeap, NodeHeap, purge, stats};
use rstest::rstest;
use std::alloc::{GlobalAlloc, Layout, alloc, dealloc, realloc};
use std::hint::black_box;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::thread;

#[global_allocator]
static GLOBAL: NearHeap = NearHeap::new();

#[test]
fn scenario() {
    common::play(&[("works", works), ("asks", asks)]);
}

/// What no heap does on one node, not even at its start.
const NEVER: [libc::c_long; 4] =
    [libc::SYS_mbind, libc::SYS_set_mempolicy, libc::SYS_move_pages, libc::SYS_migrate_pages];
/// What it asks once.
const ONCE: libc::c_long = libc::SYS_get_mempolicy;

/// From now on, whoever makes one of these calls ends by SIGSYS, on any thread.
fn forbid(calls: &[libc::c_long]) {
    Filter::of(calls.iter().copied(), filter::KILL).enforce().unwrap();
}

/// Everything that the heap does, at its start and after.
fn works() {
    // The harness has allocated, so the heap has started.
    assert!(stats().totals.allocs > 0);
    forbid(&[&NEVER[..], &[ONCE]].concat());
    let work = || {
        for size in [48, 1000, 20_000, 200_000, 3 << 20] {
            let blocks: Vec<_> = (0..(8 << 20) / size).map(|_| vec![1_u8; size]).collect();
            drop(black_box(blocks));
        }
        let (small, large) = (Layout::new::<[u8; 5 << 20]>(), 9 << 20);
        // SAFETY: the layouts have sizes; each block is freed once, with the layout that it has.
        unsafe {
            let block = realloc(alloc(small), small, large);
            dealloc(block, Layout::from_size_align_unchecked(large, 1));
            for heap in [NodeHeap::on(0), NodeHeap::on(1), NodeHeap::interleaved()] {
                heap.dealloc(heap.alloc(small), small);
            }
        }
    };
    thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(work))));
    purge();
    work();
    // SAFETY: the child works on the heap, and ends.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            work();
            libc::_exit(7);
        }
        let mut status = 0;
        libc::waitpid(child, &mut status, 0);
        assert_eq!(libc::WEXITSTATUS(status), 7);
    }
}

/// The filter's own test: a call that it knows.
fn asks() {
    forbid(&[&NEVER[..], &[ONCE]].concat());
    let call: libc::c_long = std::env::var("TEST_CALL").unwrap().parse().unwrap();
    // SAFETY: made with no arguments, each of them changes nothing.
    unsafe { libc::syscall(call, 0, 0, 0, 0, 0, 0) };
}

#[rstest]
fn nothing_is_asked_after_the_start(
    #[values("local", "off", "preferred:0", "interleave", "weighted", "pinned:0", "pinned:9")]
    numa: &str,
) {
    // With several nodes, `tests/numa_vm` asks for more than this.
    if topology().online().len() > 1 {
        return;
    }
    let mut run = child("works").env("NEARHEAP_NUMA", numa).env("NEARHEAP_STATS", "json");
    let at_the_start = if numa == "off" { [&NEVER[..], &[ONCE]].concat() } else { NEVER.to_vec() };
    let filter = move || {
        forbid(&at_the_start);
        Ok(())
    };
    // SAFETY: system calls alone.
    unsafe { run.command.pre_exec(filter) };
    let end = run.run();
    assert_eq!(end.status.code(), Some(0), "{end}");
    assert!(end.stderr.starts_with("{\"version\":1,"), "the dump alone: {end}");
}

#[rstest]
fn the_filter_knows_every_call(#[values(0, 1, 2, 3, 4)] which: usize) {
    let call = NEVER.get(which).copied().unwrap_or(ONCE);
    let end = child("asks").env("TEST_CALL", &call.to_string()).run();
    assert_eq!(end.status.signal(), Some(libc::SIGSYS), "{end}");
}
