//! Do collections of allocator-api2 work with `NodeHeap`, and does the heap count what they do?
//! Method: the same operations on a collection with it and on one of the standard library; on any machine, since a node
//! that there is not is served by the nearest.

#![cfg(feature = "allocator-api2")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;

use allocator_api2::alloc::{Allocator, Layout};
use allocator_api2::boxed::Box;
use allocator_api2::vec::Vec;
use nearheap::{NearHeap, NodeHeap};
use rstest::rstest;

#[global_allocator]
static GLOBAL: NearHeap = NearHeap::new();

#[rstest]
fn a_list_is_the_list_of_the_standard_library(
    #[values(NodeHeap::on(0), NodeHeap::on(1), NodeHeap::on(63), NodeHeap::interleaved())]
    heap: NodeHeap,
) {
    let (mut ours, mut theirs) = (Vec::new_in(heap), std::vec::Vec::new());
    for i in 0..400_000_u32 {
        ours.push(i);
        theirs.push(i);
        if i % 7 == 0 {
            ours.swap_remove((i / 2) as usize % ours.len());
            theirs.swap_remove((i / 2) as usize % theirs.len());
        }
    }
    assert_eq!(&ours[..], &theirs[..]);
    ours.truncate(1000);
    ours.shrink_to_fit();
    assert_eq!(&ours[..], &theirs[..1000]);
    let boxed = Box::new_in([7_u64; 40_000], heap);
    assert_eq!(boxed[39_999], 7);
}

#[rstest]
fn what_grows_keeps_its_contents_and_what_is_asked_for_as_zero_is(
    #[values(1, 48, 1000, 40_000, 200_000, 3 << 20)] size: usize,
    #[values(1, 64, 4096)] align: usize,
) {
    let heap = NodeHeap::on(0);
    let layout = |size| Layout::from_size_align(size, align).unwrap();
    for _ in 0..3 {
        // SAFETY: every block is used with the layout that it has.
        unsafe {
            let block = heap.allocate_zeroed(layout(size)).unwrap();
            assert!(block.as_ref().iter().all(|&byte| byte == 0));
            block.cast::<u8>().write_bytes(5, size);
            let block = heap.grow_zeroed(block.cast(), layout(size), layout(3 * size)).unwrap();
            assert_eq!(block.cast::<u8>().as_ptr() as usize % align, 0);
            assert!(block.as_ref()[..size].iter().all(|&byte| byte == 5));
            assert!(block.as_ref()[size..].iter().all(|&byte| byte == 0));
            let wider = Layout::from_size_align(size, align * 2).unwrap();
            let block = heap.shrink(block.cast(), layout(3 * size), wider).unwrap();
            assert!(block.as_ref().iter().all(|&byte| byte == 5));
            block.cast::<u8>().write_bytes(9, size);
            heap.deallocate(block.cast(), wider);
        }
    }
}

#[test]
fn scenario() {
    common::play(&[("counts", counts)]);
}

/// In a process of its own: the totals are those of all threads, and other tests free what they have.
#[test]
fn the_heap_counts_them() {
    common::child("counts").run().succeeds_with("");
}

fn counts() {
    let before = nearheap::stats().totals;
    let list: Vec<[u64; 6], _> = Vec::with_capacity_in(50_000, NodeHeap::on(0));
    let during = nearheap::stats().totals;
    assert!(during.in_use_bytes >= before.in_use_bytes + 50_000 * 48);
    drop(list);
    assert!(nearheap::stats().totals.in_use_bytes < before.in_use_bytes + 50_000 * 48);
}
