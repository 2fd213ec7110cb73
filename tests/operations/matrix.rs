//! Sizes by alignments: every pair is honoured, or refused with null.

use crate::common::contents::{check, fill, is_zero};
use rstest::rstest;
use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::hint::black_box;

const K: usize = 1 << 10;
const M: usize = 1 << 20;

/// On both sides of every border between kinds of blocks.
#[rustfmt::skip]
const SIZES: [usize; 38] = [
    0, 1, 2, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 100, 127, 128, 129, K - 1, K, K + 1,
    4 * K - 1, 4 * K, 4 * K + 1, 32 * K - 1, 32 * K, 32 * K + 1, 64 * K, 100_000, M - 1, M, M + 1, 3 * M, 8 * M, 64 * M,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Plain,
    Zeroed,
}

/// Large blocks are looked at and filled at their ends only: the middle would cost time and nothing else.
fn parts(size: usize) -> [(usize, usize); 2] {
    let end = size.min(M);
    [(0, end), (size.saturating_sub(M).max(end), size)]
}

#[rstest]
fn every_size_is_aligned_and_writable(
    #[values(Way::Plain, Way::Zeroed)] way: Way,
    #[values(
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24,
        25, 26, 27, 28, 29, 30
    )]
    align_log: u32,
) {
    for size in SIZES {
        let layout = Layout::from_size_align(size, 1 << align_log).unwrap();
        // SAFETY: nearheap serves size 0 too.
        let make =
            || unsafe { if way == Way::Zeroed { alloc_zeroed(layout) } else { alloc(layout) } };
        // The second and the third are of recycled memory where there is any: what was there was not zero.
        let blocks = [(); 3].map(|()| black_box(make()));
        for (id, &block) in blocks.iter().enumerate() {
            assert!(!block.is_null(), "{layout:?}");
            assert!((block as usize).is_multiple_of(layout.align()), "{block:p} for {layout:?}");
            // SAFETY: as large as the layout says.
            unsafe {
                for (from, to) in parts(size) {
                    let zero = way == Way::Plain || is_zero(block.add(from), to - from);
                    assert!(zero, "not zero: {layout:?}");
                    fill(block, id as u64, from, to);
                }
            }
        }
        for (id, &block) in blocks.iter().enumerate() {
            // SAFETY: written above; freed once.
            unsafe {
                check(block, id as u64, size.min(M));
                dealloc(block, layout);
            }
        }
    }
}

/// Up and down across all borders, one realloc each.
#[rustfmt::skip]
const LADDER: [usize; 24] = [
    1, 16, 17, 100, K, K + 1, 5 * K, 32 * K, 32 * K + 1, 90_000, 300_000, M, M + 1, 3 * M, 10 * M, M, 700_000, 33 * K, 32 * K,
    2 * M, 20 * K, K, 48, 1,
];

#[rstest]
fn realloc_keeps_contents_and_alignment(
    #[values(0, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 21, 22, 23, 25, 30)]
    align_log: u32,
) {
    let align = 1 << align_log;
    let id = u64::from(align_log);
    let mut layout = Layout::from_size_align(LADDER[0], align).unwrap();
    // SAFETY: every block is checked and resized with its own layout, and filled to its size.
    unsafe {
        let mut block = black_box(alloc(layout));
        assert!(!block.is_null());
        fill(block, id, 0, layout.size());
        for size in LADDER {
            block = black_box(realloc(block, layout, size));
            let new = Layout::from_size_align(size, align).unwrap();
            assert!(!block.is_null(), "{new:?}");
            assert!((block as usize).is_multiple_of(align), "{block:p} for {new:?}");
            check(block, id, size.min(layout.size()));
            fill(block, id, layout.size().min(size), size);
            layout = new;
        }
        dealloc(block, layout);
    }
}
