//! Blocks of several parts: how each goes home, where the heap has more than one part.
//! Owns: the grouping. Called by: the cold paths of `heap`; on a machine with one node, none of it runs.
//!
//! A thread's cache takes any block of its class. When blocks leave it, each goes to its own part: where it came from, its
//! memory is near. So what a thread finds when its cache is empty is of the thread's own part, but for the few blocks that
//! were freed last.

use super::Heap;
use crate::cache::{Cache, State};
use crate::class::Slot;
use crate::fault::{self, Fault};
use crate::granule::GIVE_MAX;
use core::ptr;
use core::sync::atomic::Ordering;
use nearheap_numa::Os;

/// The capacity of a slot in which most blocks are of other parts: so many at most are handed out far from home.
pub(super) const FAR_CAP: usize = 16;

/// What becomes of the blocks of one part.
type EachGroup<'a> = dyn FnMut(usize, &[*mut u8]) -> Result<(), Fault> + 'a;

impl<O: Os> Heap<O> {
    /// The part that serves the calling thread.
    #[inline]
    pub(crate) fn part(&self, cache: Option<&Cache>) -> usize {
        if self.granules.homes.is_several() { self.part_here(cache) } else { 0 }
    }

    /// A thread that has moved to another part leaves what it kept of the one before.
    #[cold]
    #[inline(never)]
    fn part_here(&self, cache: Option<&Cache>) -> usize {
        let part = self.granules.homes.here(self.granules.source.os());
        self.ensure(part);
        if let Some(cache) = cache
            && cache.part.get() != part
        {
            // SAFETY: the cache is the calling thread's.
            fault::survive(unsafe { self.empty_cache(cache, false) });
            cache.part.set(part);
        }
        part
    }

    /// Makes a part if it isn't there and there is memory for it.
    pub(super) fn ensure(&self, part: usize) {
        let (meta, source) = (&self.granules.meta, &self.granules.source);
        self.granules.parts.ensure(part, meta, source);
        self.depots.ensure(part, meta, source);
    }

    /// Counts blocks that leave a part, the first of which is `block`: where the part was full, they are of another.
    #[inline]
    pub(super) fn count_out(&self, part: usize, block: *mut u8, blocks: usize) {
        if self.granules.homes.is_several() {
            self.count_out_of(part, block, blocks);
        }
    }

    #[cold]
    #[inline(never)]
    fn count_out_of(&self, part: usize, block: *mut u8, blocks: usize) {
        let of = self.granules.part_of(block as usize).or_else(|| self.huge.part_of(block));
        let out = &self.granules.traffic(of.unwrap_or(part)).out;
        out.fetch_add(blocks as u64, Ordering::Relaxed);
    }

    /// Counts a group of blocks of one part that come back from a thread of part `near`.
    fn count_back(&self, near: usize, part: usize, slot: Slot, blocks: usize) {
        let bytes = blocks * self.granules.classes.bytes(slot);
        self.granules.traffic(part).came_back(near == part, blocks, bytes);
    }

    /// [`flush`](Self::flush) where blocks may be of several parts: those of others leave, and of its own the older half if
    /// they are many.
    ///
    /// # Safety
    /// `cache` is the calling thread's; the block is nobody's any more.
    #[cold]
    #[inline(never)]
    pub(super) unsafe fn flush_apart(
        &self,
        cache: &Cache,
        (slot, cap): (Slot, usize),
        part: usize,
        block: *mut u8,
    ) -> Result<(), Fault> {
        let State { n, allocs, .. } = cache.state(slot);
        // SAFETY: the caller's promise.
        let items = unsafe { cache.slice(slot) };
        let mut far = 0_u64;
        for (i, &item) in items.iter().enumerate().take(n) {
            let of = self.granules.part_of(item as usize);
            far |= u64::from(of.is_some_and(|of| of != part)) << i;
        }
        let mut away = far.count_ones() as usize;
        let cap = if away > n / 2 { cap.min(FAR_CAP) } else { cap };
        if n < cap {
            // The slot grows, and nothing has to leave.
            (far, away) = (0, 0);
        }
        let go = if n < cap { 0 } else { (n - away).saturating_sub(cap / 2) };
        let mut batch = [ptr::null_mut(); GIVE_MAX];
        let mut leaving = batch.iter_mut();
        let (mut skipped, mut kept) = (0, 0);
        cache.hold(slot, self.granules.classes.bytes(slot), cap);
        cache.unsettle(slot);
        for i in 0..n {
            let item = items.get(i).copied().unwrap_or_default();
            let near = far >> i & 1 == 0;
            let to = if near && skipped >= go { items.get_mut(kept) } else { leaving.next() };
            if let Some(to) = to {
                *to = item;
            }
            kept += usize::from(near && skipped >= go);
            skipped += usize::from(near && skipped < go);
        }
        if let Some(place) = items.get_mut(kept) {
            *place = block;
        }
        let left = away + go;
        let state = State { n: kept + 1, room: cap - kept - 1, allocs };
        cache.settle(slot, state, -left.cast_signed());
        for group in batch.get(..left).unwrap_or_default().chunks(GIVE_MAX / 2) {
            self.store_apart(part, slot, group)?;
        }
        Ok(())
    }

    /// Puts free blocks (at most 32) into the magazines of their parts.
    #[cold]
    #[inline(never)]
    pub(super) fn store_apart(
        &self,
        near: usize,
        slot: Slot,
        blocks: &[*mut u8],
    ) -> Result<(), Fault> {
        self.each_part(near, slot, blocks, &mut |part, group| self.store_in(part, slot, group))
    }

    /// Gives blocks straight to the granule heap.
    #[inline(never)]
    pub(crate) fn give_home(
        &self,
        near: usize,
        slot: Slot,
        blocks: &[*mut u8],
    ) -> Result<(), Fault> {
        if self.granules.homes.is_several() {
            self.each_part(near, slot, blocks, &mut |_, _| Ok(()))?;
        }
        self.granules.give(slot, blocks)
    }

    /// Calls `f` with the blocks of each part, and counts them as come back from a thread of part `near`. What is in no
    /// segment goes with the nearest, which finds out what it is.
    #[inline(never)]
    fn each_part(
        &self,
        near: usize,
        slot: Slot,
        blocks: &[*mut u8],
        f: &mut EachGroup<'_>,
    ) -> Result<(), Fault> {
        let part_of = |block: *mut u8| self.granules.part_of(block as usize).unwrap_or(near);
        let mut left = u64::MAX >> (64 - blocks.len().clamp(1, GIVE_MAX));
        while let Some(&first) = blocks.get(left.trailing_zeros() as usize) {
            let part = part_of(first);
            let mut group = [ptr::null_mut(); GIVE_MAX];
            let mut n = 0;
            for (i, &block) in blocks.iter().enumerate() {
                if left >> i & 1 == 1 && part_of(block) == part {
                    left &= !(1 << i);
                    if let Some(place) = group.get_mut(n) {
                        *place = block;
                        n += 1;
                    }
                }
            }
            self.count_back(near, part, slot, n);
            f(part, group.get(..n).unwrap_or_default())?;
        }
        Ok(())
    }
}
