//! Limits: over the hard one null, and served again after frees; the soft one is told once a crossing.

use super::*;
use core::cell::Cell;
use nearheap_numa::source::NO_LIMIT;
use rstest::rstest;
use std::thread_local;

const MIB: usize = 1 << 20;

fn bytes(size: usize) -> Layout {
    Layout::from_size_align(size, 1).expect("a layout")
}

#[rstest]
fn over_the_hard_limit_is_null_and_half_of_it_is_served_again(
    #[values(300 << 10, 512 << 10, MIB, 3 * MIB, 8 * MIB, 20 * MIB)] limit: usize,
    #[values(4096, 65536)] page: usize,
    #[values(1, 2)] seed: u64,
) {
    let (mut program, mut numbers) = (Program::new(FakeOs::with_pages(page)), Numbers::new(seed));
    program.heap.granules.source.set_limits(NO_LIMIT, limit);
    program.enroll();
    while program.nulls < 20 {
        let who = numbers.under(2);
        program.alloc(who, any_layout(&mut numbers));
        if numbers.once_in(5) && !program.blocks.is_empty() {
            let i = numbers.under(program.blocks.len());
            let size = any_layout(&mut numbers).size();
            program.realloc(who, i, size);
        }
    }
    program.check();
    let half: Vec<_> = (0..program.blocks.len() / 2)
        .map(|_| {
            let i = numbers.under(program.blocks.len());
            let layout = program.blocks[i].layout;
            program.free(0, i);
            layout
        })
        .collect();
    let freed: usize = half.iter().map(|&layout| program.heap.usable(layout)).sum();
    let before = program.bytes();
    for layout in half {
        program.alloc(0, layout);
    }
    // Not all of it: what comes first may take the place of something larger, more so where places are random.
    let served = program.bytes() - before;
    let share = if cfg!(feature = "hardened") { 5 } else { 2 };
    assert!(served >= freed / share, "{served} of {freed}");
    program.check();
    let accounts = program.heap.granules.source.accounts();
    assert!(accounts.peak <= limit && accounts.hard_refusals > 0, "{accounts:?}");
    assert_eq!(accounts.mapped, program.os().mapped());
    program.finish();
}

#[test]
fn a_hard_limit_under_what_is_in_use_refuses_until_enough_is_freed() {
    let mut program = Program::new(FakeOs::new());
    program.enroll();
    (0..8).for_each(|_| assert!(program.alloc(0, bytes(2 * MIB))));
    program.heap.granules.source.set_limits(NO_LIMIT, 9 * MIB);
    for left in (4..8).rev() {
        assert!(!program.alloc(0, bytes(2 * MIB)), "{left} of them are left");
        program.free(0, left);
        program.purge(0);
    }
    assert!(!program.alloc(0, bytes(2 * MIB)), "8 MiB and metadata");
    program.free(0, 3);
    program.purge(0);
    assert!(program.alloc(0, bytes(2 * MIB)));
    program.check();
    program.finish();
}

thread_local! {
    static TOLD: Cell<usize> = const { Cell::new(0) };
    static HEAP: Cell<*const Heap<FakeOs>> = const { Cell::new(ptr::null()) };
}

/// What a program may do when it is told: anything, since no lock is held.
fn told() {
    TOLD.set(TOLD.get() + 1);
    // SAFETY: the heap of the test that this thread runs.
    let heap = unsafe { &*HEAP.get() };
    heap.snapshot(&mut Box::new(Snapshot::new()));
    // SAFETY: without a cache.
    unsafe {
        heap.purge_all(None);
        let (block, _) = heap.alloc(None, bytes(40 << 10));
        assert_eq!(heap.free(None, block, bytes(40 << 10)), Ok(()));
    }
}

#[test]
fn the_soft_limit_is_told_once_a_crossing() {
    let mut program = Program::new(FakeOs::new());
    program.enroll();
    HEAP.set(&raw const *program.heap);
    program.heap.on_soft_limit.store(told as fn() as *mut (), Ordering::Release);
    program.heap.granules.source.set_limits(10 * MIB, NO_LIMIT);
    (0..4).for_each(|_| assert!(program.alloc(0, bytes(2 * MIB))));
    for round in 1..=3 {
        assert!(program.alloc(0, bytes(3 * MIB / 2)));
        assert_eq!(TOLD.get(), round - 1, "9.5 MiB and metadata");
        assert!(program.alloc(0, bytes(3 * MIB / 2)));
        assert_eq!(TOLD.get(), round, "crossed");
        program.free(0, 5);
        program.purge(0);
        assert!(program.alloc(0, bytes(3 * MIB / 2)));
        assert_eq!(TOLD.get(), round, "it had not fallen far enough for another crossing");
        (0..2).for_each(|_| program.free(0, 4));
        program.purge(0);
    }
    (0..4).for_each(|_| program.free(0, 0));
    assert_eq!(program.heap.granules.source.accounts().crossings, 3);
    // The callback's own allocations are the heap's, not this list's.
    assert_eq!(program.heap.live(), 0);
}

#[test]
fn crossing_while_a_block_grows_is_told() {
    let mut program = Program::new(FakeOs::new());
    program.enroll();
    HEAP.set(&raw const *program.heap);
    program.heap.on_soft_limit.store(told as fn() as *mut (), Ordering::Release);
    program.heap.granules.source.set_limits(10 * MIB, NO_LIMIT);
    assert!(program.alloc(0, bytes(5 * MIB)));
    assert!(program.realloc(0, 0, 12 * MIB));
    assert_eq!(TOLD.get(), 1);
    program.free(0, 0);
    program.purge(0);
    assert_eq!(program.heap.live(), 0);
}
