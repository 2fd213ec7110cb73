//! Sizes that no address space holds: null, and whatever is to be resized stays as it was.

use crate::common::child;
use crate::common::contents::{check, fill, prepare};
use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::hint::black_box;

const MOST: usize = isize::MAX as usize;

/// The largest sizes that a `Layout` of this alignment takes, and some that are merely more than there is.
fn sizes(align: usize) -> [usize; 8] {
    let most = MOST - (align - 1);
    [most, most - 1, most - 15, most - 4095, most - 4096, most - (1 << 21), most / 2 + 1, 1 << 48]
}

pub(crate) fn play() {
    prepare();
    let before = nearheap::stats();
    for align in (0..=30).map(|log| 1 << log) {
        for size in sizes(align) {
            let layout = Layout::from_size_align(size, align).unwrap();
            // The optimiser may take an allocation that nobody uses for one that succeeds, but not behind `black_box`.
            // SAFETY: layouts of a size that isn't 0.
            unsafe {
                assert!(black_box(alloc(layout)).is_null(), "{layout:?}");
                assert!(black_box(alloc_zeroed(layout)).is_null(), "{layout:?}");
            }
        }
    }
    for align in [1, 16, 64, 4096, 2 << 20] {
        for size in [1, 100, 20 << 10, 100 << 10, 3 << 20] {
            let layout = Layout::from_size_align(size, align).unwrap();
            // SAFETY: the block is filled, and stays itself whenever it was not resized.
            unsafe {
                let block = black_box(alloc(layout));
                fill(block, 1, 0, size);
                for more in sizes(align) {
                    assert!(
                        black_box(realloc(block, layout, more)).is_null(),
                        "{layout:?} to {more}"
                    );
                }
                check(block, 1, size);
                dealloc(block, layout);
            }
        }
    }
    let after = nearheap::stats();
    let (before, after) = (before.totals, after.totals);
    let served = (after.allocs - before.allocs, after.frees - before.frees);
    assert_eq!(served, (25, 25), "what was refused doesn't count");
}

#[test]
fn sizes_that_overflow_are_refused() {
    child("overflow").run().succeeds_with("");
}
