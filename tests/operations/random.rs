//! Random operations beside an oracle that knows, for each block, its layout and its contents, and for each class, how
//! many blocks were allocated and freed.
//!
//! The oracle's tables are made before the heap is looked at and never grow, so every change of a counter is that of an
//! operation under test. After each operation: no two blocks overlap, the block is aligned, it holds what it should.

use crate::common::contents::{check, fill, is_zero, prepare};
use crate::common::{Rng, child, overhead, seed};
use rstest::rstest;
use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::hint::black_box;
use std::time::Duration;

const LIVE_MAX: usize = 3000;
const BYTES_MAX: usize = 192 << 20;
const ROWS_MAX: usize = 512;

/// The row of a layout in the statistics, worked out from the table in `allocator/class.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    /// Size and alignment of the class.
    Class(usize, usize),
    /// Whole pages.
    Huge(usize),
}

fn rounded(size: usize, steps: usize) -> usize {
    size.next_multiple_of(((1 << (size - 1).ilog2()) / steps).max(1))
}

/// Bytes of an OS page, of which huge blocks are whole ones.
fn page() -> usize {
    // SAFETY: reads a constant of the process.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

fn row_of(layout: Layout) -> Row {
    let (size, align) = (layout.size().max(1), layout.align());
    let padded = size.next_multiple_of(align);
    match (size, align) {
        (..=1024, ..=16) => Row::Class(size.next_multiple_of(16), 16),
        (..=0x10_0000, ..=16) => Row::Class(rounded(size, 8), 16),
        _ if align > 16 && padded <= 32 << 10 => {
            let class = rounded(padded, 4);
            Row::Class(class, 1 << class.trailing_zeros())
        }
        _ if align > 16 && align <= 4096 && padded <= 1 << 20 => Row::Class(rounded(padded, 8), 16),
        _ => Row::Huge(size.next_multiple_of(page())),
    }
}

/// The block underneath, in headers mode: with a header before it, or as many bytes as its alignment, and a seal behind.
fn whole(layout: Layout, headed: bool) -> Layout {
    if !headed {
        return layout;
    }
    let align = layout.align().max(16);
    Layout::from_size_align(align + layout.size() + 16, align).unwrap()
}

#[derive(Clone, Copy, Debug)]
struct Block {
    at: *mut u8,
    layout: Layout,
    id: u64,
}

/// What should be counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    allocs: u64,
    frees: u64,
}

struct Oracle {
    rng: Rng,
    headed: bool,
    /// By address.
    live: Vec<Block>,
    bytes: usize,
    next_id: u64,
    rows: Vec<((usize, usize), Count)>,
    huge: Count,
    huge_bytes: (u64, u64),
}

impl Oracle {
    fn new(seed: u64) -> Self {
        Self {
            rng: Rng::new(seed),
            headed: overhead() > 0,
            live: Vec::with_capacity(LIVE_MAX),
            bytes: 0,
            next_id: 0,
            rows: Vec::with_capacity(ROWS_MAX),
            huge: Count::default(),
            huge_bytes: (0, 0),
        }
    }

    /// As programs have them: mostly small, a few large, hardly any huge.
    fn size(&mut self) -> usize {
        match self.rng.below(200) {
            0..=3 => 0,
            4..=119 => self.rng.by_magnitude(1, 1 << 10),
            120..=179 => self.rng.by_magnitude(1 << 10, 40 << 10),
            180..=195 => self.rng.by_magnitude(30 << 10, 1100 << 10),
            _ => self.rng.by_magnitude(1 << 20, 8 << 20),
        }
    }

    fn layout(&mut self) -> Layout {
        let log = match self.rng.below(100) {
            0..=74 => self.rng.below(5),
            75..=96 => 5 + self.rng.below(8),
            _ => 13 + self.rng.below(9),
        };
        Layout::from_size_align(self.size(), 1 << log).unwrap()
    }

    fn count(&mut self, layout: Layout, alloc: bool) {
        let count = match row_of(whole(layout, self.headed)) {
            Row::Huge(len) => {
                let (allocated, freed) = &mut self.huge_bytes;
                *(if alloc { allocated } else { freed }) += len as u64;
                &mut self.huge
            }
            Row::Class(size, align) => {
                let key = (size, align);
                let place = self.rows.iter().position(|(k, _)| *k == key);
                let place = place.unwrap_or_else(|| {
                    assert!(self.rows.len() < ROWS_MAX, "the table of the oracle is too small");
                    self.rows.push((key, Count::default()));
                    self.rows.len() - 1
                });
                &mut self.rows[place].1
            }
        };
        *(if alloc { &mut count.allocs } else { &mut count.frees }) += 1;
    }

    /// Notes a block, which must not overlap any other, with `kept` bytes of contents to look at, and fills the rest.
    fn admit(&mut self, block: Block, kept: usize) {
        let Block { at, layout, id } = block;
        assert!(!at.is_null(), "no memory for {layout:?}");
        assert!((at as usize).is_multiple_of(layout.align()), "{at:p} for {layout:?}");
        let place = self.live.partition_point(|b| b.at < at);
        let end = |b: &Block| b.at as usize + b.layout.size().max(1);
        if let Some(before) = place.checked_sub(1).map(|i| &self.live[i]) {
            assert!(end(before) <= at as usize, "{block:?} overlaps {before:?}");
        }
        if let Some(after) = self.live.get(place) {
            assert!(end(&block) <= after.at as usize, "{block:?} overlaps {after:?}");
        }
        self.live.insert(place, block);
        self.bytes += layout.size();
        // SAFETY: the block has the layout's bytes, and `kept` of them were written before.
        unsafe {
            check(at, id, kept);
            fill(at, id, kept, layout.size());
        }
    }

    fn expel(&mut self, place: usize) -> Block {
        let block = self.live.remove(place);
        self.bytes -= block.layout.size();
        block
    }

    fn allocate(&mut self) {
        let layout = self.layout();
        let zeroed = self.rng.below(3) == 0;
        // SAFETY: nearheap serves size 0 too, as `GlobalAlloc` leaves open.
        let at = black_box(unsafe { if zeroed { alloc_zeroed(layout) } else { alloc(layout) } });
        // SAFETY: as large as the layout says, and zeroed.
        assert!(!zeroed || unsafe { is_zero(at, layout.size()) }, "not zero: {layout:?}");
        let id = self.next_id;
        self.next_id += 1;
        self.count(layout, true);
        self.admit(Block { at, layout, id }, 0);
    }

    fn free(&mut self) {
        let place = self.rng.below(self.live.len());
        let Block { at, layout, id } = self.expel(place);
        // SAFETY: a block of this layout, filled when it was admitted, freed once.
        unsafe {
            check(at, id, layout.size());
            dealloc(at, layout);
        }
        self.count(layout, false);
    }

    fn resize(&mut self) {
        let place = self.rng.below(self.live.len());
        let Block { at, layout, id } = self.expel(place);
        let size = match self.rng.below(3) {
            // As vectors grow, as they shrink to fit, and anything.
            0 => (layout.size() * 2).clamp(1, 8 << 20),
            1 => 1 + layout.size() / 10 * 9,
            _ => self.size().max(1),
        };
        // SAFETY: a block of this layout, and a size that isn't 0.
        let at = black_box(unsafe { realloc(at, layout, size) });
        let new = Layout::from_size_align(size, layout.align()).unwrap();
        // A block that stays one of its class is neither freed nor allocated; blocks of size 0 are a class of their own
        // that shares its row with the next.
        let leaves_zero = !self.headed && layout.size() == 0 && layout.align() <= 16;
        let row = |layout| row_of(whole(layout, self.headed));
        if row(layout) != row(new) || leaves_zero {
            self.count(layout, false);
            self.count(new, true);
        }
        self.admit(Block { at, layout: new, id }, layout.size().min(size));
    }

    fn step(&mut self, growing: bool) {
        let full = self.live.len() >= LIVE_MAX || self.bytes >= BYTES_MAX;
        match self.rng.below(10) {
            _ if self.live.is_empty() => self.allocate(),
            0..=2 => self.resize(),
            3..=7 if growing && !full => self.allocate(),
            3..=4 if !full => self.allocate(),
            _ => self.free(),
        }
    }

    /// The heap counted what the oracle counted, class by class, since `start`.
    fn compare(&self, start: &nearheap::Snapshot) {
        let now = nearheap::stats();
        for class in now.classes() {
            let key = (class.size as usize, class.align as usize);
            let before =
                start.classes().iter().find(|c| (c.size, c.align) == (class.size, class.align));
            let before =
                before.map_or(Count::default(), |c| Count { allocs: c.allocs, frees: c.frees });
            let found =
                Count { allocs: class.allocs - before.allocs, frees: class.frees - before.frees };
            let expected =
                self.rows.iter().find(|(k, _)| *k == key).map_or(Count::default(), |r| r.1);
            assert_eq!(found, expected, "blocks of {} aligned to {}", class.size, class.align);
        }
        let (h, s) = (now.huge, start.huge);
        let found = Count { allocs: h.allocs - s.allocs, frees: h.frees - s.frees };
        assert_eq!(found, self.huge, "huge blocks");
        let bytes = (h.allocated_bytes - s.allocated_bytes, h.freed_bytes - s.freed_bytes);
        assert_eq!(bytes, self.huge_bytes, "bytes of huge blocks");
    }
}

pub(crate) fn play() {
    let mut oracle = Oracle::new(seed());
    prepare();
    nearheap::purge();
    let start = nearheap::stats();
    let steps = if cfg!(debug_assertions) { 12_000 } else { 40_000 };
    for step in 0..steps {
        oracle.step(step / 4000 % 2 == 0);
        if step % 1000 == 0 {
            oracle.compare(&start);
        }
        if step % 5000 == 4999 {
            nearheap::purge();
        }
    }
    while !oracle.live.is_empty() {
        oracle.free();
    }
    oracle.compare(&start);
    nearheap::purge();
    let end = nearheap::stats();
    assert_eq!(end.totals.in_use_blocks, start.totals.in_use_blocks);
    assert_eq!(end.totals.in_use_bytes, start.totals.in_use_bytes);
    assert_eq!(end.nodes()[0].cached_bytes, start.nodes()[0].cached_bytes, "caches are emptied");
    assert_eq!(end.system.retained_bytes, 0, "free pages went back");
    let (was, is) = (start.system.active_bytes(), end.system.active_bytes());
    assert!(is <= was + (64 << 10), "pages in use: {was} before, {is} after");
}

#[rstest]
#[case(Some(1))]
#[case(Some(2))]
#[case(Some(3))]
#[case(None)]
fn random_operations_agree_with_the_oracle(
    #[case] fixed: Option<u64>,
    #[values("0", "1")] headers: &str,
) {
    let seed = fixed.unwrap_or_else(seed);
    child("random")
        .env("TEST_SEED", &seed.to_string())
        .env("NEARHEAP_HEADERS", headers)
        .within(Duration::from_secs(120))
        .run()
        .succeeds_with(&format!("TEST_SEED={seed}\n"));
}
