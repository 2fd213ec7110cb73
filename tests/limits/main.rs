//! Do the soft and the hard limit do what they promise, no more and no less?
//! Method: child processes under a limit, which compare what they see with the bytes that the heap says it has committed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;
mod group;

use common::{Run, child, rss_bytes};
use nearheap::{NearHeap, Pressure, flush_thread, on_soft_limit, pressure, purge, stats};
use rstest::rstest;
use std::alloc::{Layout, alloc, alloc_zeroed, dealloc};
use std::hint::black_box;
use std::ptr::null_mut;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

#[global_allocator]
static GLOBAL: NearHeap = NearHeap::new();

const MIB: usize = 1 << 20;
/// The limit of most scenarios; less where debug assertions check every step.
const LIMIT: usize = if cfg!(debug_assertions) { 32 * MIB } else { 64 * MIB };

#[test]
fn scenario() {
    common::play(&[
        ("crosses", crosses),
        ("crosses_with_free_pages", crosses_with_free_pages),
        ("crosses_by_growing", crosses_by_growing),
        ("crosses_on_four_threads", crosses_on_four_threads),
        ("crosses_without_a_callback", crosses_without_a_callback),
        ("exhausts", exhausts),
        ("reserves_too_much", reserves_too_much),
        ("feels_pressure", feels_pressure),
        ("fills_its_group", group::fills_its_group),
    ]);
}

fn given(name: &str) -> usize {
    std::env::var(name).unwrap().parse().unwrap()
}

fn committed() -> usize {
    stats().system.committed_bytes as usize
}

/// Touched blocks of one size, each of which begins with the address of the one before: the list needs no memory.
struct Blocks {
    last: *mut u8,
    count: usize,
    layout: Layout,
}

impl Blocks {
    fn new(size: usize) -> Self {
        Self { last: null_mut(), count: 0, layout: Layout::from_size_align(size, 8).unwrap() }
    }

    /// One block more; whether there was memory for it.
    fn add(&mut self) -> bool {
        // SAFETY: the block has the layout's size, which is more than a pointer's, and its alignment.
        unsafe {
            let block = black_box(alloc(self.layout));
            if block.is_null() {
                return false;
            }
            block.write_bytes(1, self.layout.size());
            block.cast::<*mut u8>().write(self.last);
            self.last = block;
        }
        self.count += 1;
        true
    }

    fn free(&mut self, count: usize) {
        for _ in 0..count {
            // SAFETY: the last block, which `add` made and linked; freed once.
            unsafe {
                let before = self.last.cast::<*mut u8>().read();
                dealloc(self.last, self.layout);
                self.last = before;
            }
        }
        self.count -= count;
    }

    fn move_last_to(&mut self, other: &mut Self) {
        let block = self.last.cast::<*mut u8>();
        // SAFETY: the last block, which `add` linked.
        self.last = unsafe { block.replace(other.last) };
        other.last = block.cast();
        self.count -= 1;
        other.count += 1;
    }

    fn bytes(&self) -> usize {
        self.count * self.layout.size()
    }

    fn fill(&mut self, bytes: usize) {
        while self.bytes() < bytes {
            assert!(self.add());
        }
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        self.free(self.count);
    }
}

static CALLS: AtomicUsize = AtomicUsize::new(0);

fn calls() -> usize {
    CALLS.load(Ordering::Relaxed)
}

/// A callback that uses everything of the heap that takes a lock, on two threads.
fn uses_the_heap() {
    let everything = || {
        let mut blocks = Vec::new();
        for size in [24, 3000, 70_000, 2 * MIB] {
            // Hidden from the optimiser, which would remove blocks that are only freed.
            // SAFETY: the size isn't zero.
            let block =
                black_box(unsafe { alloc_zeroed(Layout::from_size_align(size, 8).unwrap()) });
            assert!(!block.is_null());
            blocks.push((block, size));
        }
        for (block, size) in blocks {
            // SAFETY: allocated above with this layout.
            unsafe { dealloc(block, Layout::from_size_align(size, 8).unwrap()) };
        }
        assert!(stats().totals.allocs > 0);
        let _ = pressure();
        let _ = purge();
        flush_thread();
    };
    everything();
    thread::spawn(everything).join().unwrap();
    CALLS.fetch_add(1, Ordering::Relaxed);
}

/// Goes over the limit and back three times with blocks of one size.
fn crosses() {
    on_soft_limit(uses_the_heap);
    let mut blocks = Blocks::new(given("TEST_SIZE"));
    for round in 1..=3 {
        while calls() < round {
            assert!(committed() <= LIMIT, "not told of {} bytes", committed());
            let more = blocks.bytes() + MIB;
            while calls() < round && blocks.bytes() < more {
                assert!(blocks.add());
            }
        }
        assert!(stats().system.peak_committed_bytes > LIMIT as u64, "told too early");
        blocks.fill(LIMIT + LIMIT / 4);
        assert_eq!(calls(), round, "still the same crossing");
        // Just below the limit is not far enough to cross it anew.
        blocks.free(LIMIT / 4 / blocks.layout.size());
        purge();
        blocks.fill(LIMIT + LIMIT / 4);
        assert_eq!(calls(), round, "never a sixteenth below the limit");
        blocks.free(blocks.count);
        purge();
    }
    assert_eq!(stats().system.soft_limit_crossings, 3);
}

static RETAINED: AtomicUsize = AtomicUsize::new(usize::MAX);

fn looks_at_what_is_retained() {
    RETAINED.store(stats().system.retained_bytes as usize, Ordering::Relaxed);
}

/// Crosses with blocks of one size while free pages wait that are of no use for them.
fn crosses_with_free_pages() {
    on_soft_limit(looks_at_what_is_retained);
    let mut huge = Blocks::new(LIMIT / 4);
    huge.fill(1);
    let mut small = Blocks::new(10_000);
    small.fill(LIMIT / 2);
    // Every third stays, so that no run of free pages is long enough for what comes.
    let mut kept = Blocks::new(10_000);
    while small.count > 0 {
        small.free(2.min(small.count));
        if small.count > 0 {
            small.move_last_to(&mut kept);
        }
    }
    let waiting = stats().system.retained_bytes;
    assert!(waiting > 1 << 20, "only {waiting} bytes wait to be purged");
    let mut spans = Blocks::new(200_000);
    while RETAINED.load(Ordering::Relaxed) == usize::MAX {
        assert!(spans.add());
    }
    assert_eq!(RETAINED.load(Ordering::Relaxed), 0);
}

/// Crosses in a `realloc`, which the kernel serves.
fn crosses_by_growing() {
    on_soft_limit(uses_the_heap);
    let mut bytes: Vec<u8> = Vec::new();
    while calls() == 0 {
        assert!(committed() <= LIMIT);
        bytes.reserve_exact(bytes.capacity() + MIB);
        bytes.resize(bytes.capacity(), 1);
    }
    bytes.reserve_exact(LIMIT);
    assert_eq!((calls(), stats().system.soft_limit_crossings), (1, 1));
}

fn crosses_on_four_threads() {
    on_soft_limit(uses_the_heap);
    let barrier = Barrier::new(4);
    for round in 1..=10 {
        thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    let mut blocks = Blocks::new(given("TEST_SIZE"));
                    barrier.wait();
                    blocks.fill(LIMIT / 2);
                    barrier.wait();
                });
            }
        });
        assert_eq!(calls(), round);
        purge();
    }
    assert_eq!(stats().system.soft_limit_crossings, 10);
}

fn crosses_without_a_callback() {
    Blocks::new(100_000).fill(2 * LIMIT);
    assert_eq!(stats().system.soft_limit_crossings, 1);
}

/// Without huge pages, which the heap purges by halves of a segment: that can be enough to cross the limit anew.
fn under_soft_limit(scenario: &str) -> Run {
    child(scenario).env("NEARHEAP_LIMIT_SOFT", &LIMIT.to_string()).env("NEARHEAP_HUGE_PAGES", "off")
}

#[rstest]
fn the_soft_limit_is_told_once_a_crossing(#[values(100, 5000, 200_000, 3 * MIB)] size: usize) {
    under_soft_limit("crosses").env("TEST_SIZE", &size.to_string()).run().succeeds_with("");
}

#[test]
fn what_is_free_is_given_back_before_the_soft_limit_is_told() {
    under_soft_limit("crosses_with_free_pages").run().succeeds_with("");
}

#[test]
fn the_soft_limit_is_told_when_a_block_grows_over_it() {
    under_soft_limit("crosses_by_growing").run().succeeds_with("");
}

#[rstest]
fn the_soft_limit_is_told_once_when_threads_cross_it_together(#[values(100, 200_000)] size: usize) {
    under_soft_limit("crosses_on_four_threads")
        .env("TEST_SIZE", &size.to_string())
        .run()
        .succeeds_with("");
}

#[test]
fn the_soft_limit_needs_no_callback() {
    under_soft_limit("crosses_without_a_callback").run().succeeds_with("");
}

/// Allocates until it gets null, frees half, and allocates as much again.
fn exhausts() {
    let mut blocks = Blocks::new(given("TEST_SIZE"));
    let (rss, other) = (rss_bytes(), committed());
    let mut nulls = 0;
    // The first null need not be the last: another hole may need one page less.
    while nulls < 100 {
        nulls = if blocks.add() { 0 } else { nulls + 1 };
    }
    let (full, resident, all) = (blocks.count, rss_bytes() - rss, stats());
    let seen = all.system;
    blocks.free(full / 2);
    assert!(seen.hard_limit_refusals > 0 && seen.refused_maps == 0, "{seen:?}");
    assert!(seen.peak_committed_bytes <= LIMIT as u64, "{} bytes", seen.peak_committed_bytes);
    assert!(resident <= LIMIT, "{resident} bytes are resident");
    // A twentieth for metadata, and for the rest that holds no block.
    let bytes = all.totals.in_use_bytes as usize;
    assert!(bytes > (LIMIT - other) / 20 * 19 - 4 * MIB, "null after {bytes} bytes");
    // Blocks of a page and a quarter do not always meet in the same pages again.
    while blocks.count < full - full / 100 {
        assert!(blocks.add(), "served again up to {} of {full}", blocks.count);
    }
}

fn reserves_too_much() {
    let mut bytes: Vec<u8> = Vec::new();
    assert!(bytes.try_reserve_exact(2 * LIMIT).is_err());
    bytes.try_reserve_exact(LIMIT / 2).unwrap();
    bytes.resize(bytes.capacity(), 7);
    assert!(bytes.try_reserve_exact(LIMIT).is_err());
    assert!(bytes.iter().all(|&b| b == 7), "the block is as it was");
}

#[rstest]
fn the_hard_limit_is_null_and_after_a_free_it_is_served_again(
    #[values(16, 100, 5000, 200_000, 3 * MIB)] size: usize,
    #[values("off", "on")] huge_pages: &str,
) {
    child("exhausts")
        .env("NEARHEAP_LIMIT_HARD", &LIMIT.to_string())
        .env("NEARHEAP_HUGE_PAGES", huge_pages)
        .env("TEST_SIZE", &size.to_string())
        .run()
        .succeeds_with("");
}

#[test]
fn the_hard_limit_fails_a_reservation_and_leaves_the_block() {
    child("reserves_too_much")
        .env("NEARHEAP_LIMIT_HARD", &LIMIT.to_string())
        .run()
        .succeeds_with("");
}

/// Fills the heap up to a limit in small steps, compares the pressure in each with the share that is used, and prints
/// the pressures that it has met.
fn feels_pressure() {
    let limit = given("TEST_LIMIT") as u64;
    let mut blocks = Blocks::new(MIB + 1);
    let mut met = vec![pressure()];
    while stats().system.committed_bytes < limit - (2 << 20) {
        assert!(blocks.add());
        let used = stats().system.committed_bytes;
        let expected = match used * 100 / limit {
            ..80 => Pressure::Normal,
            80..90 => Pressure::Warning,
            90.. => Pressure::Critical,
        };
        let unlimited = given("TEST_UNLIMITED") == 1;
        assert_eq!(pressure(), if unlimited { Pressure::Normal } else { expected }, "{used}");
        if met.last() != Some(&pressure()) {
            met.push(pressure());
        }
    }
    drop(blocks);
    purge();
    met.push(pressure());
    eprint!("{met:?}");
}

#[rstest]
#[case::hard(&[("HARD", "100M")], 100, "[Normal, Warning, Critical, Normal]")]
#[case::soft(&[("SOFT", "80M")], 80, "[Normal, Warning, Critical, Normal]")]
#[case::hard_goes_before_soft(&[("SOFT", "20M"), ("HARD", "60M")], 60, "[Normal, Warning, Critical, Normal]")]
#[case::none(&[], 60, "[Normal, Normal]")]
fn pressure_is_the_share_of_the_limit(
    #[case] limits: &[(&str, &str)],
    #[case] mib: usize,
    #[case] met: &str,
) {
    let mut run = child("feels_pressure")
        .env("TEST_LIMIT", &(mib * MIB).to_string())
        .env("TEST_UNLIMITED", &u8::from(limits.is_empty()).to_string());
    for (which, limit) in limits {
        run = run.env(&format!("NEARHEAP_LIMIT_{which}"), limit);
    }
    run.run().succeeds_with(met);
}
