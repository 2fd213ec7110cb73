//! Does `nearheap::testing` count what a piece of code allocates, no more and no less?
//! Method: random operations beside the heap's own counters of the thread; and cases whose numbers are known.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;

use common::Rng;
use nearheap::testing::{Usage, assert_allocs, assert_no_leaks, measure, measure_with_threads};
use nearheap::{NearHeap, NodeHeap, ThreadStats};
use std::alloc::{GlobalAlloc, Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::hint::black_box;
use std::panic::catch_unwind;
use std::sync::Barrier;
use std::thread;

#[global_allocator]
static GLOBAL: NearHeap = NearHeap::new();

/// What the heap itself has counted of the calling thread.
fn counted() -> ThreadStats {
    // SAFETY: no preconditions.
    let tid = unsafe { libc::syscall(libc::SYS_gettid) } as u64;
    let mut own = ThreadStats::default();
    nearheap::threads(&mut |row: &ThreadStats| {
        if row.id == tid {
            own = *row;
        }
        Ok(())
    })
    .unwrap();
    own
}

fn is(used: Usage, allocations: u64, frees: u64, bytes: u64, freed_bytes: u64, peak_bytes: u64) {
    let found = (used.allocations, used.frees, used.bytes, used.freed_bytes, used.peak_bytes);
    assert_eq!(found, (allocations, frees, bytes, freed_bytes, peak_bytes), "{used}");
}

/// Operations of every kind; the bytes in use at their most.
fn operate(rng: &mut Rng, blocks: &mut Vec<(*mut u8, Layout)>) -> u64 {
    let (mut in_use, mut peak) = (0_i64, 0);
    let bytes = |layout| NearHeap::usable_size(layout) as i64;
    for _ in 0..3000 {
        let most = if rng.below(50) == 0 { 3 << 20 } else { 100 << 10 };
        let align = [1, 8, 16, 64, 4096][rng.below(5)];
        let layout = Layout::from_size_align(rng.by_magnitude(1, most), align).unwrap();
        // SAFETY: no size is 0, and every block is resized and freed with the layout that it has.
        unsafe {
            match rng.below(6) {
                0 | 1 if blocks.len() < 200 => {
                    blocks.push((black_box(alloc(layout)), layout));
                    in_use += bytes(layout);
                }
                2 if blocks.len() < 200 => {
                    blocks.push((black_box(alloc_zeroed(layout)), layout));
                    in_use += bytes(layout);
                }
                3 if !blocks.is_empty() => {
                    let i = rng.below(blocks.len());
                    let (at, old) = blocks[i];
                    let new = Layout::from_size_align(layout.size(), old.align()).unwrap();
                    blocks[i] = (black_box(realloc(at, old, new.size())), new);
                    // A block that moves is there twice for a moment, unless the kernel moves it.
                    let moves = blocks[i].0 != at && old.size().min(new.size()) <= 1 << 20;
                    peak = peak.max(in_use + if moves { bytes(new) } else { 0 });
                    in_use += bytes(new) - bytes(old);
                }
                _ if !blocks.is_empty() => {
                    let (at, layout) = blocks.swap_remove(rng.below(blocks.len()));
                    dealloc(at, layout);
                    in_use -= bytes(layout);
                }
                _ => {}
            }
        }
        peak = peak.max(in_use);
    }
    peak as u64
}

#[test]
fn it_agrees_with_the_heaps_own_counters() {
    if common::overhead() > 0 {
        // Headers count there.
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        again.args(["it_agrees_with_the_heaps_own_counters", "--exact"]);
        assert!(again.env("NEARHEAP_HEADERS", "0").status().unwrap().success());
        return;
    }
    let mut rng = Rng::new(common::seed());
    let mut blocks = Vec::with_capacity(1000);
    for _ in 0..5 {
        let before = counted();
        let (used, peak) = measure(|| operate(&mut rng, &mut blocks));
        let after = counted();
        // Beside it, the heap has counted what asks whether it is the global allocator: one block of 16 bytes.
        is(
            used,
            after.allocs - before.allocs - 1,
            after.frees - before.frees - 1,
            after.allocated_bytes - before.allocated_bytes - 16,
            after.freed_bytes - before.freed_bytes - 16,
            peak,
        );
    }
    // SAFETY: each block is freed once, with its layout.
    blocks.into_iter().for_each(|(at, layout)| unsafe { dealloc(at, layout) });
}

#[test]
fn the_first_operation_of_a_thread_counts_too() {
    let (used, ()) =
        thread::spawn(|| measure(|| drop(black_box(Box::new([0_u8; 100]))))).join().unwrap();
    is(used, 1, 1, 112, 112, 112);
}

#[test]
fn other_threads_do_not_count_unless_they_are_asked_for() {
    let (both, stop) = (Barrier::new(2), Barrier::new(2));
    thread::scope(|s| {
        s.spawn(|| {
            both.wait();
            (0..1000).for_each(|i| drop(black_box(vec![i; 100])));
            stop.wait();
        });
        let (used, ()) = measure(|| {
            both.wait();
            drop(black_box(Box::new(1_u8)));
            stop.wait();
        });
        is(used, 1, 1, 16, 16, 16);
    });
    let (used, sum) = measure_with_threads(|team| {
        let parts: Vec<_> = (0..4_u64)
            .map(|i| team.spawn(move || black_box(vec![i; 100]).iter().sum::<u64>()))
            .collect();
        parts.into_iter().map(|part| part.join().unwrap()).sum::<u64>()
    });
    assert_eq!(sum, 600);
    assert_eq!((used.allocations, used.frees), (5, 5), "four vectors, and the one of the members");
    assert!(used.bytes == used.freed_bytes && used.peak_bytes <= used.bytes, "{used}");
}

#[test]
fn threads_of_a_team_have_one_peak() {
    let all_there = Barrier::new(4);
    let (used, ()) = measure_with_threads(|team| {
        for _ in 0..4 {
            team.spawn(|| {
                let buffer = black_box(vec![0_u8; 1000]);
                all_there.wait();
                drop(buffer);
            });
        }
    });
    is(used, 4, 4, 4 * 1008, 4 * 1008, 4 * 1008);
}

#[test]
fn one_inside_of_another_counts_for_both() {
    let (outer, inner) = measure(|| {
        let keep = black_box(vec![0_u8; 1000]);
        let (inner, ()) = measure(|| drop(black_box(vec![0_u8; 500])));
        drop(keep);
        drop(black_box(Box::new(1_u8)));
        inner
    });
    is(inner, 1, 1, 512, 512, 512);
    is(outer, 3, 3, 1008 + 512 + 16, 1008 + 512 + 16, 1008 + 512);
}

#[test]
fn what_is_freed_may_be_of_others() {
    let before = black_box(vec![0_u8; 1000]);
    let (used, ()) = measure(|| drop(before));
    is(used, 0, 1, 0, 1008, 0);
}

#[test]
fn a_panic_ends_the_measurement() {
    let _ = catch_unwind(|| measure(|| std::panic::resume_unwind(Box::new(1)))).unwrap_err();
    let before = counted();
    drop(black_box(Box::new(1_u8)));
    assert_eq!(counted().allocs, before.allocs + 1);
    let (used, ()) = measure(|| drop(black_box(Box::new(1_u8))));
    is(used, 1, 1, 16, 16, 16);
}

#[test]
fn blocks_of_a_node_count_too() {
    let layout = Layout::new::<[u8; 100]>();
    let (used, ()) = measure(|| {
        let heap = NodeHeap::on(0);
        // SAFETY: the layout has a size; the block is freed once.
        unsafe { heap.dealloc(heap.alloc(layout), layout) };
    });
    is(used, 1, 1, 112, 112, 112);
}

#[test]
fn the_heap_is_whole_while_it_is_watched() {
    assert_no_leaks!({
        let blocks: Vec<_> = (0..1000).map(|i| vec![i as u8; i]).collect();
        nearheap::flush_thread();
        drop(blocks);
        nearheap::purge();
        let _ = nearheap::stats();
        // SAFETY: the child allocates and leaves.
        match unsafe { libc::fork() } {
            0 => {
                drop(black_box(vec![1; 1000]));
                // SAFETY: no preconditions.
                unsafe { libc::_exit(7) };
            }
            child => {
                let mut status = 0;
                // SAFETY: a child of this process's own, and a place for its status.
                assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
                assert_eq!(libc::WEXITSTATUS(status), 7);
            }
        }
    });
}

fn message(test: impl FnOnce() + std::panic::UnwindSafe) -> String {
    *catch_unwind(test).unwrap_err().downcast::<String>().unwrap()
}

#[test]
fn the_macros_fail_with_the_numbers() {
    assert_allocs!(<= 2, black_box(Box::new(black_box(Box::new(1)))));
    assert_eq!(*assert_allocs!(== 1, black_box(Box::new(5))), 5);
    assert_eq!(
        message(|| drop(assert_allocs!(< 1, black_box(vec![0_u8; 20])))),
        "expected allocations < 1, found 1 allocations of 32 bytes, 0 frees of 0 bytes, peak 32 bytes"
    );
    assert_eq!(
        message(|| assert_no_leaks!(std::mem::forget(black_box(Box::new([0_u8; 40]))))),
        "expected no leaks, found 1 allocations of 48 bytes, 0 frees of 0 bytes, peak 48 bytes"
    );
}
