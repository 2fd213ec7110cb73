//! In headers mode a walk visits every live block once, with what it was asked for, and no other.

use crate::common::child;
use std::alloc::{Layout, alloc, dealloc, realloc};
use std::hint::black_box;
use std::thread;

const SIZES: [usize; 9] = [0, 1, 96, 1024, 5000, 40 << 10, 600 << 10, 2 << 20, 20 << 20];
const ALIGNS: [usize; 5] = [1, 16, 64, 4096, 1 << 16];
/// So many of each.
const EACH: usize = 3;

/// The blocks, and how often the walk came to each of them.
fn visits(blocks: &[(*mut u8, Layout)]) -> Vec<usize> {
    let mut visits = vec![0; blocks.len()];
    let walked = nearheap::walk(&mut |block| {
        if let Some(i) = blocks.iter().position(|(at, _)| *at as usize == block.address) {
            visits[i] += 1;
            let layout = blocks[i].1;
            assert_eq!((block.size, block.align), (layout.size(), layout.align()));
            assert!(block.class >= block.size + 32, "{block:?}");
        }
    });
    assert!(walked);
    visits
}

fn layouts() -> impl Iterator<Item = Layout> {
    let of = |(size, align)| Layout::from_size_align(size, align).unwrap();
    let pairs = SIZES.into_iter().flat_map(|size| ALIGNS.map(|align| (size, align)));
    pairs.flat_map(|pair| [pair; EACH]).map(of)
}

pub(crate) fn play() {
    // Half of them by another thread, which has ended.
    let half = SIZES.len() * ALIGNS.len() * EACH / 2;
    // SAFETY: nearheap serves size 0 too.
    let make = |layout| (black_box(unsafe { alloc(layout) }) as usize, layout);
    let first = thread::spawn(move || layouts().take(half).map(make).collect::<Vec<_>>());
    let mut blocks: Vec<_> = first.join().unwrap();
    blocks.extend(layouts().skip(half).map(make));
    let mut blocks: Vec<_> = blocks
        .into_iter()
        .map(|(at, layout)| (std::ptr::with_exposed_provenance_mut::<u8>(at), layout))
        .collect();
    assert!(visits(&blocks).iter().all(|&n| n == 1), "each once");
    for (at, layout) in &mut blocks {
        let larger = layout.size() * 2 + 1;
        // SAFETY: a block of this layout, and a size that isn't 0.
        *at = unsafe { realloc(*at, *layout, larger) };
        *layout = Layout::from_size_align(larger, layout.align()).unwrap();
    }
    assert!(visits(&blocks).iter().all(|&n| n == 1), "each where it is now");
    let (freed, kept): (Vec<_>, Vec<_>) = blocks.iter().enumerate().partition(|(i, _)| i % 2 == 0);
    for (_, (at, layout)) in &freed {
        // SAFETY: a block of this layout, freed once.
        unsafe { dealloc(*at, *layout) };
    }
    let seen = visits(&blocks);
    assert!(kept.iter().all(|(i, _)| seen[*i] == 1), "what is kept");
    assert!(freed.iter().all(|(i, _)| seen[*i] == 0), "not what was freed");
}

/// Nobody knows which blocks are live.
pub(crate) fn without_headers() {
    assert!(!nearheap::walk(&mut |block| panic!("{block:?}")));
}

#[test]
fn every_live_block_is_visited_once() {
    child("walks").env("NEARHEAP_HEADERS", "1").run().succeeds_with("");
    child("walks_without_headers").env("NEARHEAP_HEADERS", "0").run().succeeds_with("");
}
