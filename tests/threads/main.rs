//! Is every thread served, from before `main` to after its last destructor, and does it leave nothing behind?
//! Method: blocks that tell their owner go from thread to thread (`stress`), operations come at the odd moments of a
//! thread's and of the process's life (`moments`), thousands of threads come and go (`many`), small stacks are painted
//! and looked at (`stacks`). What the heap counts is compared exactly, in processes of their own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;
mod many;
mod moments;
mod stacks;
mod stress;

#[global_allocator]
static GLOBAL: nearheap::NearHeap = nearheap::NearHeap::new();

#[test]
fn scenario() {
    common::play(&[
        ("pass_around", stress::pass_around),
        ("one_way", stress::one_way),
        ("before_main", moments::before_main),
        ("thread_locals", moments::thread_locals),
        ("after_the_cache", moments::after_the_cache),
        ("first_of_all", moments::first_of_all),
        ("nested", moments::nested),
        ("at_exit", moments::at_exit),
        ("ended", moments::ended),
        ("one_after_another", many::one_after_another),
        ("idle_at_once", many::idle_at_once),
        ("typical_at_once", many::typical_at_once),
        ("busy_at_once", many::busy_at_once),
        ("smallest_stacks", stacks::smallest_stacks),
        ("depth", stacks::depth),
    ]);
}

/// What a heap holds that has given back all that it can: the blocks of the program, and the pages that they are on.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    blocks: u64,
    bytes: u64,
    cached: u64,
    threads: u64,
}

impl Held {
    /// Also how many bytes of pages hold blocks, which depends on how they lie.
    fn now() -> (Self, u64) {
        nearheap::purge();
        let stats = nearheap::stats();
        assert_eq!(stats.system.retained_bytes, 0, "free pages went back");
        let held = Self {
            blocks: stats.totals.in_use_blocks,
            bytes: stats.totals.in_use_bytes,
            cached: stats.nodes()[0].cached_bytes,
            threads: stats.live_threads,
        };
        (held, stats.system.active_bytes())
    }

    /// What is held now is what was held before.
    #[track_caller]
    fn is_as(before: &(Self, u64)) {
        let after = Self::now();
        assert_eq!(after.0, before.0);
        let (was, is) = (before.1, after.1);
        assert!(is <= was + (64 << 10), "{was} bytes of pages in use before, {is} after");
    }
}
