//! A whole heap beside a list of the blocks that the program has: whoever holds what, the numbers agree.

mod conservation;
mod exhaustion;
mod forks;
mod impossible;
mod limits;
mod nodes;
mod purging;

use super::*;
use crate::class::SPAN_ALIGN;
use crate::segment::SEGMENT;
use crate::testing::{Numbers, check_marks, is_zero, mark};
use nearheap_numa::fake::FakeOs;
use nearheap_stats::{Snapshot, Totals};
use std::boxed::Box;
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

#[derive(Clone, Copy, Debug)]
struct Block {
    at: *mut u8,
    layout: Layout,
    stamp: usize,
}

/// What was done, in blocks and bytes of their class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sums {
    allocs: u64,
    frees: u64,
    allocated: u64,
    freed: u64,
}

/// A program of several threads, one after the other: what `global` does over a heap of its own.
struct Program {
    heap: Box<Heap<FakeOs>>,
    threads: Vec<*const Cache>,
    blocks: Vec<Block>,
    /// By size and alignment of the class; alignment 0 for huge blocks.
    sums: BTreeMap<(u64, u64), Sums>,
    stamp: usize,
    /// Operations that got no memory.
    nulls: usize,
}

impl Program {
    fn new(os: FakeOs) -> Self {
        Self {
            heap: Box::new(Heap::new(os)),
            threads: Vec::new(),
            blocks: Vec::new(),
            sums: BTreeMap::new(),
            stamp: 0,
            nulls: 0,
        }
    }

    fn os(&self) -> &FakeOs {
        self.heap.granules.source.os()
    }

    /// A thread's cache; `None` for the thread that has none.
    fn cache(&self, who: usize) -> Option<&Cache> {
        // SAFETY: caches live as long as their heap.
        self.threads.get(who).map(|&cache| unsafe { &*cache })
    }

    fn enroll(&mut self) {
        let cache = self.heap.enroll().map(ptr::from_ref);
        self.nulls += usize::from(cache.is_none());
        self.threads.extend(cache);
    }

    fn dismiss(&mut self, who: usize) {
        let cache = self.threads.swap_remove(who);
        // SAFETY: the cache is the thread's that ends here.
        assert_eq!(unsafe { self.heap.dismiss(&*cache) }, Ok(()));
    }

    /// The class of a layout, as the snapshot names it.
    fn class(&self, layout: Layout) -> (u64, u64) {
        let size = self.heap.usable(layout) as u64;
        match Slot::of(layout.size(), layout.align()) {
            None => (0, 0),
            Some(slot) if slot.size() > CACHED_MAX => (size, GRANULE as u64),
            Some(slot) => (size, slot.align() as u64),
        }
    }

    fn count(&mut self, layout: Layout, alloc: bool) {
        let bytes = self.heap.usable(layout) as u64;
        let sums = self.sums.entry(self.class(layout)).or_default();
        let (count, sum) = match alloc {
            true => (&mut sums.allocs, &mut sums.allocated),
            false => (&mut sums.frees, &mut sums.freed),
        };
        *count += 1;
        *sum += bytes;
    }

    fn cached_slot(layout: Layout) -> Option<Slot> {
        Slot::of(layout.size(), layout.align()).filter(|slot| slot.is_cached())
    }

    fn raw_alloc(&self, who: usize, layout: Layout) -> *mut u8 {
        let popped = Self::cached_slot(layout)
            // SAFETY: one thread plays all of them.
            .and_then(|slot| self.cache(who).and_then(|cache| unsafe { cache.pop(slot) }));
        let (block, dirty) = match popped {
            Some(block) => (block.as_ptr(), usize::MAX),
            // SAFETY: as above; the fast path found nothing.
            None => unsafe { self.heap.alloc(self.cache(who), layout) },
        };
        if !block.is_null() {
            assert_eq!(block as usize % layout.align(), 0, "{layout:?} at {block:?}");
            let clean = layout.size().saturating_sub(dirty);
            assert!(is_zero(block.wrapping_add(dirty.min(layout.size())), clean), "{layout:?}");
        }
        block
    }

    fn raw_free(&self, who: usize, block: *mut u8, layout: Layout) {
        let pushed = Self::cached_slot(layout)
            // SAFETY: one thread plays all of them; the block is the program's no more.
            .and_then(|slot| self.cache(who).map(|cache| unsafe { cache.push(slot, block) }));
        if pushed != Some(true) {
            // SAFETY: as above; the fast path had no room.
            assert_eq!(unsafe { self.heap.free(self.cache(who), block, layout) }, Ok(()));
        }
    }

    fn keep(&mut self, at: *mut u8, layout: Layout) {
        self.stamp += 1;
        mark(at, layout.size(), self.stamp);
        self.blocks.push(Block { at, layout, stamp: self.stamp });
    }

    /// Whether there was memory.
    fn alloc(&mut self, who: usize, layout: Layout) -> bool {
        let at = self.raw_alloc(who, layout);
        if at.is_null() {
            self.nulls += 1;
            return false;
        }
        self.count(layout, true);
        self.keep(at, layout);
        true
    }

    fn free(&mut self, who: usize, i: usize) {
        let Block { at, layout, stamp } = self.blocks.swap_remove(i);
        check_marks(at, layout.size(), stamp, layout.size());
        self.count(layout, false);
        self.raw_free(who, at, layout);
    }

    /// Whether there was memory; if not, the block is as it was.
    fn realloc(&mut self, who: usize, i: usize, size: usize) -> bool {
        let Block { at, layout, stamp } = self.blocks[i];
        let (old, align) = (layout.size(), layout.align());
        let new = Layout::from_size_align(size, align).expect("a layout");
        // SAFETY: one thread plays all of them; the block is the program's.
        let resized = unsafe { self.heap.resize(self.cache(who), at, layout, size) };
        let mut to = resized.expect("a block");
        if to.is_null() {
            to = self.raw_alloc(who, new);
            if to.is_null() {
                self.nulls += 1;
                check_marks(at, old, stamp, old);
                return false;
            }
            // SAFETY: two blocks of the program's.
            unsafe { ptr::copy_nonoverlapping(at, to, old.min(size)) };
            self.raw_free(who, at, layout);
        }
        assert_eq!(to as usize % align, 0, "{new:?} at {to:?}");
        let same = Slot::of(old, align) == Slot::of(size, align);
        if !same || self.heap.usable(layout) != self.heap.usable(new) {
            self.count(layout, false);
            self.count(new, true);
        }
        check_marks(to, old, stamp, old.min(size));
        self.blocks.swap_remove(i);
        self.keep(to, new);
        true
    }

    fn purge(&self, who: usize) {
        // SAFETY: one thread plays all of them.
        unsafe { self.heap.purge_all(self.cache(who)) };
    }

    /// Bytes that the blocks of the program take in segments, and beside them.
    fn in_use(&self) -> (usize, usize) {
        let (mut inside, mut huge) = (0, 0);
        for block in &self.blocks {
            let to = Slot::of(block.layout.size(), block.layout.align());
            *(if to.is_some() { &mut inside } else { &mut huge }) += self.heap.usable(block.layout);
        }
        (inside, huge)
    }

    fn bytes(&self) -> usize {
        let (inside, huge) = self.in_use();
        inside + huge
    }

    /// Every block is in one place, and every number is what the list says.
    fn check(&self) {
        let (inside, huge) = self.in_use();
        let mut snapshot = Box::new(Snapshot::new());
        self.heap.snapshot(&mut snapshot);
        self.check_counts(&snapshot);
        let cached = self.check_places();
        let by_node: u64 = snapshot.nodes().iter().map(|row| row.cached_bytes).sum();
        assert_eq!(by_node, cached as u64, "bytes in caches");
        assert_eq!(self.heap.granules.taken(), inside + cached, "what is out is somewhere");
        assert_eq!(self.heap.huge.bytes(), huge);
        assert_eq!(self.heap.live(), inside + huge + cached);
        self.check_accounts();
    }

    fn check_counts(&self, snapshot: &Snapshot) {
        let mut all = Sums::default();
        for (&class, sums) in &self.sums {
            let seen = if class == (0, 0) {
                let h = &snapshot.huge;
                (h.allocs, h.frees, h.allocated_bytes, h.freed_bytes)
            } else {
                let row = snapshot.classes().iter().find(|row| (row.size, row.align) == class);
                let row = row.expect("a row for every class");
                (row.allocs, row.frees, row.allocs * row.size, row.frees * row.size)
            };
            assert_eq!(seen, (sums.allocs, sums.frees, sums.allocated, sums.freed), "{class:?}");
            all.allocs += sums.allocs;
            all.frees += sums.frees;
            all.allocated += sums.allocated;
            all.freed += sums.freed;
        }
        let (inside, huge) = self.in_use();
        let totals = Totals {
            allocs: all.allocs,
            frees: all.frees,
            allocated_bytes: all.allocated,
            freed_bytes: all.freed,
            in_use_blocks: self.blocks.len() as u64,
            in_use_bytes: (inside + huge) as u64,
        };
        assert_eq!(snapshot.totals, totals);
        assert_eq!(snapshot.live_threads, self.threads.len() as u64);
        let mut by_thread = Sums::default();
        let seen = self.heap.each_thread(|row| {
            by_thread.allocs += row.allocs;
            by_thread.frees += row.frees;
            by_thread.allocated += row.allocated_bytes;
            by_thread.freed += row.freed_bytes;
            Ok::<_, ()>(())
        });
        assert_eq!((seen, by_thread), (Ok(()), all));
    }

    /// Looks for blocks that are in two places, or in one where they can't be. Bytes in caches and magazines.
    fn check_places(&self) -> usize {
        let mut seen: BTreeSet<_> = self.blocks.iter().map(|b| b.at).collect();
        assert_eq!(seen.len(), self.blocks.len(), "no block is handed out twice");
        let mut bytes = 0;
        for slot in Slot::all() {
            let mut free = Vec::new();
            for (_, depot) in self.heap.depots.iter() {
                free.extend(depot.blocks(slot));
            }
            for &cache in &self.threads {
                // SAFETY: one thread plays all of them.
                let (cache, items) = unsafe { (&*cache, (*cache).slice(slot)) };
                free.extend_from_slice(&items[..cache.state(slot).n]);
            }
            for block in free {
                assert!(seen.insert(block), "{block:?} is in two places");
                assert!(self.heap.granules.is_block(slot, block), "{block:?} is {slot:?}");
                bytes += self.heap.granules.classes.bytes(slot);
            }
        }
        for block in &self.blocks {
            if let Some(slot) = Slot::of(block.layout.size(), block.layout.align()) {
                assert!(self.heap.granules.is_block(slot, block.at), "{block:?}");
            }
        }
        bytes
    }

    fn check_accounts(&self) {
        let source = &self.heap.granules.source;
        let held = self.heap.granules.audit();
        let (live, kept) = self.heap.huge.mapped();
        assert_eq!(source.retained(), held.retained + kept, "P2");
        assert_eq!(source.committed(), held.dirty + held.metadata + live + kept, "P1");
        assert!(source.accounts().mapped >= held.segments * SEGMENT + live + kept);
        for &cache in &self.threads {
            // SAFETY: caches live as long as their heap.
            unsafe { &*cache }.audit(&self.heap.granules.classes);
        }
    }

    /// Frees everything and ends every thread: nothing but metadata is left.
    fn finish(&mut self) {
        while let Some(last) = self.blocks.len().checked_sub(1) {
            self.free(self.stamp % 3, last);
        }
        while !self.threads.is_empty() {
            self.dismiss(0);
        }
        self.check();
        self.purge(0);
        self.check();
        let source = &self.heap.granules.source;
        let held = self.heap.granules.audit();
        assert_eq!((held.segments, self.heap.live(), source.retained()), (0, 0, 0));
        assert_eq!(source.committed(), held.metadata);
    }
}

/// A layout of any kind: small, cached, span, huge, over-aligned.
fn any_layout(numbers: &mut Numbers) -> Layout {
    let size = match numbers.under(32) {
        0..=15 => numbers.sized(10),
        16..=25 => numbers.sized(15),
        26..=30 => numbers.sized(20),
        _ => numbers.sized(22),
    };
    let align = match numbers.under(16) {
        0..=11 => 1,
        12 | 13 => 1 << numbers.under(9),
        14 => 1 << numbers.under(14),
        _ => 1 << numbers.under(24),
    };
    Layout::from_size_align(size, align).expect("a layout")
}
