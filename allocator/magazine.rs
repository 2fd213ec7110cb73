//! Magazines: between the thread caches and the granule heap, a list of free blocks for every slot.
//! Owns: `Depot`, `Magazine`. Called by: the cold paths of `heap`, `purge`, `fork`.
//!
//! A magazine's lock is held for the copy of at most half a cache slot's blocks, or of one batch for the granule heap.
//! Threads that trade blocks of one class meet here and not in the granule heap; and what a program frees and soon needs
//! again in the same size is not joined with its neighbours only to be carved anew.
//!
//! A1: a block in a magazine is taken in the granule heap and in nobody's hands.
//! A2: a magazine holds at most as many blocks as its extents have places. All together hold more than `room_of` each
//!     only as far as they are told that they may.

#![allow(
    clippy::indexing_slicing,
    reason = "slots and counts are bounded by the lengths of their tables"
)]

use crate::class::{SLOTS, Slot};
use crate::granule::GIVE_MAX;
use crate::meta::Meta;
use crossbeam_utils::CachePadded;
use nearheap_numa::lock::Lock;
use nearheap_numa::sync::{AtomicU32, AtomicUsize, Ordering};
use nearheap_numa::{Os, PageSource, const_unless_loom};

/// Blocks in an extent.
const EXTENT: usize = if cfg!(loom) { 4 } else { 128 };
/// Extents that a magazine has at most.
const EXTENTS: usize = if cfg!(loom) { 1 } else { 64 };
/// Bytes of blocks that a magazine may hold whatever the others hold, as long as that is four blocks.
const ROOM_BYTES: usize = 64 << 10;

/// Slots that have a magazine, the first so many: all, but for models, which make a heap for every interleaving.
const MAGAZINES: usize = if cfg!(loom) { 4 } else { SLOTS };

type Extent = [*mut u8; EXTENT];

#[derive(Debug)]
struct Stack {
    n: usize,
    first: Extent,
    more: [*mut Extent; EXTENTS - 1],
    /// Extents that there are in `more`.
    extents: usize,
}

// SAFETY: the pointers are free blocks, which belong to the magazine (A1), and extents of its own.
unsafe impl Send for Stack {}

/// Free blocks of one slot.
#[derive(Debug)]
pub(crate) struct Magazine {
    stack: Lock<Stack>,
    /// The count, for a look without the lock: an empty magazine is passed by.
    count: AtomicU32,
}

/// All magazines of a node.
#[derive(Debug)]
pub(crate) struct Depot {
    magazines: [CachePadded<Magazine>; MAGAZINES],
    /// Bytes of the blocks in all of them.
    kept: CachePadded<AtomicUsize>,
}

/// What a magazine did with blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// It keeps them.
    Kept,
    /// It needs another extent.
    Full,
    /// It may not keep more than it has: [`push_and_pop`](Depot::push_and_pop).
    Over,
}

fn room_of(slot: Slot) -> usize {
    ROOM_BYTES.checked_div(slot.size()).unwrap_or(4).clamp(4, EXTENT)
}

/// Copies blocks to the beginning of places that are as many at least.
#[inline]
fn copy(to: Option<&mut [*mut u8]>, from: &[*mut u8]) {
    if let Some(to) = to.and_then(|to| to.get_mut(..from.len())) {
        to.copy_from_slice(from);
    }
}

impl Stack {
    /// Calls `f` with the places of `[from, from + len)`, part by part.
    fn places(&mut self, from: usize, len: usize, mut f: impl FnMut(&mut [*mut u8])) {
        let (mut at, end) = (from, from + len);
        while at < end {
            let here = (EXTENT - at % EXTENT).min(end - at);
            let extent = match (at / EXTENT).checked_sub(1) {
                None => &mut self.first,
                // SAFETY: `at` is below the end of the last extent (A2), and extents are metadata of this magazine.
                Some(i) => unsafe { &mut **self.more.get_unchecked(i) },
            };
            f(extent.get_mut(at % EXTENT..at % EXTENT + here).unwrap_or_default());
            at += here;
        }
    }

    fn places_in_all(&self) -> usize {
        (self.extents + 1) * EXTENT
    }

    fn pop(&mut self, out: &mut [*mut u8]) {
        self.n -= out.len();
        let mut done = 0;
        self.places(self.n, out.len(), |places| {
            copy(out.get_mut(done..), places);
            if cfg!(feature = "valgrind") {
                places.fill(core::ptr::null_mut());
            }
            done += places.len();
        });
    }

    fn push(&mut self, blocks: &[*mut u8]) {
        let mut done = 0;
        self.places(self.n, blocks.len(), |places| {
            let n = places.len();
            copy(Some(places), blocks.get(done..done + n).unwrap_or_default());
            done += n;
        });
        self.n += blocks.len();
    }
}

impl Magazine {
    const_unless_loom! {
        fn new() -> Self {
            let none = core::ptr::null_mut();
            let stack = Stack { n: 0, first: [none; EXTENT], more: [core::ptr::null_mut(); EXTENTS - 1], extents: 0 };
            Self { stack: Lock::new(stack), count: AtomicU32::new(0) }
        }
    }
}

impl Depot {
    const_unless_loom! {
        pub(crate) fn new() -> Self {
            Self {
                magazines: crate::repeat!(CachePadded::new(Magazine::new())),
                kept: CachePadded::new(AtomicUsize::new(0)),
            }
        }
    }

    fn of(&self, slot: Slot) -> Option<&Magazine> {
        self.magazines.get(slot.index()).map(|magazine| &**magazine)
    }

    /// Bytes of the blocks in all magazines.
    pub(crate) fn kept(&self) -> usize {
        self.kept.load(Ordering::Relaxed)
    }

    /// Moves the latest blocks to `out`, of `size` bytes each, as many as there are or fit. How many.
    pub(crate) fn pop(&self, slot: Slot, size: usize, out: &mut [*mut u8]) -> usize {
        let Some(magazine) = self.of(slot) else { return 0 };
        if magazine.count.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let mut stack = magazine.stack.lock();
        let n = stack.n.min(out.len());
        stack.pop(out.get_mut(..n).unwrap_or_default());
        magazine.count.store(stack.n as u32, Ordering::Relaxed);
        // Under the lock, so that nothing is taken off before it was added.
        self.kept.fetch_sub(n * size, Ordering::Relaxed);
        n
    }

    /// Takes `blocks` of `size` bytes in, if it has places for them, and has not its share already while all together hold
    /// `budget` bytes.
    pub(crate) fn push(
        &self,
        slot: Slot,
        size: usize,
        blocks: &[*mut u8],
        budget: usize,
    ) -> Pushed {
        let Some(magazine) = self.of(slot) else { return Pushed::Over };
        let over = self.kept() + blocks.len() * size > budget;
        let mut stack = magazine.stack.lock();
        let n = stack.n + blocks.len();
        let places = stack.places_in_all();
        if over && n > room_of(slot) || n > places && places == EXTENT * EXTENTS {
            return Pushed::Over;
        }
        if n > places {
            return Pushed::Full;
        }
        stack.push(blocks);
        magazine.count.store(stack.n as u32, Ordering::Relaxed);
        self.kept.fetch_add(blocks.len() * size, Ordering::Relaxed);
        Pushed::Kept
    }

    /// Takes `blocks` of `size` bytes (at most half of [`GIVE_MAX`]) in, after a whole batch of others was put into `overflow`,
    /// so that the next blocks find room. How many those are.
    pub(crate) fn push_and_pop(
        &self,
        slot: Slot,
        size: usize,
        blocks: &[*mut u8],
        overflow: &mut [*mut u8; GIVE_MAX],
    ) -> usize {
        let Some(magazine) = self.of(slot) else {
            copy(Some(overflow), blocks);
            return blocks.len();
        };
        let mut stack = magazine.stack.lock();
        let out = stack.n.min(GIVE_MAX - blocks.len());
        stack.pop(overflow.get_mut(..out).unwrap_or_default());
        let room = blocks.len().min(stack.places_in_all() - stack.n);
        let (keep, rest) = blocks.split_at_checked(room).unwrap_or((blocks, &[]));
        copy(overflow.get_mut(out..), rest);
        stack.push(keep);
        magazine.count.store(stack.n as u32, Ordering::Relaxed);
        self.kept.fetch_add(keep.len() * size, Ordering::Relaxed);
        self.kept.fetch_sub(out * size, Ordering::Relaxed);
        out + rest.len()
    }

    /// Adds places to a magazine that was full. `false`: there is no memory for them.
    #[cold]
    pub(crate) fn extend<O: Os>(&self, slot: Slot, meta: &Meta, source: &PageSource<O>) -> bool {
        let Some(magazine) = self.of(slot) else { return false };
        let Some(extent) = meta.alloc::<Extent, O>(source) else { return false };
        let mut stack = magazine.stack.lock();
        let i = stack.extents;
        // Another thread may have been faster; then there is one more than was needed, or this one is forgotten.
        if let Some(place) = stack.more.get_mut(i) {
            *place = extent.as_ptr();
            stack.extents += 1;
        }
        true
    }

    /// Blocks that wait in the magazine of a slot.
    pub(crate) fn count(&self, slot: Slot) -> usize {
        self.of(slot).map_or(0, |magazine| magazine.count.load(Ordering::Relaxed)) as usize
    }

    /// Enters every lock and stays inside: for `fork`.
    pub(crate) fn hold(&self) {
        self.magazines.iter().for_each(|m| m.stack.hold());
    }

    /// # Safety
    /// After [`hold`](Self::hold), on the same thread or its copy.
    pub(crate) unsafe fn let_go(&self) {
        // SAFETY: the caller's promise.
        self.magazines.iter().for_each(|m| unsafe { m.stack.let_go() });
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
