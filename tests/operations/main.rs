//! Does every operation do what `GlobalAlloc` says, for every size and alignment, and does the heap count it?
//! Method: random sequences beside an oracle (`random`), the whole table of sizes by alignments (`matrix`), sizes that
//! overflow (`overflow`), huge blocks whose page faults are counted while they grow (`huge`), and a walk over what is live
//! (`walk`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;
mod huge;
mod matrix;
mod overflow;
mod random;
mod walk;

#[global_allocator]
static GLOBAL: nearheap::NearHeap = nearheap::NearHeap::new();

#[test]
fn scenario() {
    common::play(&[
        ("random", random::play),
        ("grow", huge::grow),
        ("grow_aligned", huge::grow_aligned),
        ("vector", huge::vector),
        ("overflow", overflow::play),
        ("walks", walk::play),
        ("walks_without_headers", walk::without_headers),
    ]);
}
