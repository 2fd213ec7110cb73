//! What the feature `hardened` adds: walls behind segments and huge blocks, random places, and the verification of every
//! block at its free. Without the feature, `not_hardened` stands here, which does nothing.
//! Owns: `Wall`, `Dice`, and what stands between blocks and the program. Called by: `granule` and `huge` (walls), `shard`
//! and `segment` (places); `global`, `on_node` and `foreign` (verification).
//!
//! Y1: a wall is an OS page right behind a mapping, where every access is a fault. It is there while the mapping is a
//!     segment or a live huge block; and only if nothing else was there before.
//! Y2: a place is chosen within a run that was found free, so every bound is as true as if its beginning had been taken.
//! Y3: a block's first bit among the extents stands while the block is with the program. One free clears it; each other
//!     finds that it doesn't stand, and is a fault, until the same block is handed out again.
//!
//! Blocks of headers mode are no business of Y3, as they have more to be verified; nor are those of signal handlers, which lie
//! in no segment.

use crate::chunk::Run;
use core::ptr::NonNull;
use nearheap_numa::{Os, PageSource};

/// What is there of it. To see what one of them costs, the others are set to `false` here.
const WALLS: bool = true;
const PLACES: bool = true;
pub(crate) const FREES: bool = cfg!(not(loom));

/// What is right behind a mapping: a wall, or nothing of the heap's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wall(bool);

impl Wall {
    pub(crate) const NONE: Self = Self(false);

    /// Bytes that are mapped beyond what is needed, for a wall to be put there.
    pub(crate) fn room<O: Os>(source: &PageSource<O>) -> usize {
        if WALLS { source.page_size() } else { 0 }
    }

    /// Puts a wall at the end of a mapping, if nothing is there.
    pub(crate) fn put<O: Os>(end: usize, source: &PageSource<O>) -> Self {
        // SAFETY: it is nobody's, so it isn't ours.
        Self(WALLS && unsafe { source.wall(end, false) })
    }

    /// Puts a wall into the room behind a mapping.
    ///
    /// # Safety
    /// As many bytes as [`room`](Self::room) says were mapped at `end` too, and nobody uses them.
    pub(crate) unsafe fn put_in_room<O: Os>(end: usize, source: &PageSource<O>) -> Self {
        let mut wall = Self(WALLS);
        // SAFETY: the caller's promise; where it stays a page as any other, that goes.
        unsafe {
            if WALLS && !source.wall(end, true) {
                wall.lift(end, source);
            }
        }
        wall
    }

    /// As [`PageSource::remap`], with a wall at the new end: in room of its own if it moves there.
    ///
    /// # Safety
    /// As for that; and there is no wall at the old end.
    pub(crate) unsafe fn remap<O: Os>(
        at: NonNull<u8>,
        (old, new): (usize, usize),
        align: usize,
        source: &PageSource<O>,
    ) -> Option<(NonNull<u8>, Self)> {
        let room = if new > old { Self::room(source) } else { 0 };
        // SAFETY: the caller's promise; the room is behind what was asked for.
        unsafe {
            let to = source.remap(at, (old, new + room), align)?;
            source.uncommit(room);
            let end = to.as_ptr() as usize + new;
            let wall =
                if room > 0 { Self::put_in_room(end, source) } else { Self::put(end, source) };
            Some((to, wall))
        }
    }

    /// Takes it away. What the kernel doesn't take back stays, and is counted.
    ///
    /// # Safety
    /// It was put at `end`, and is the caller's.
    pub(crate) unsafe fn lift<O: Os>(&mut self, end: usize, source: &PageSource<O>) {
        let at = core::ptr::with_exposed_provenance_mut(end);
        let Some(at) = NonNull::new(at).filter(|_| self.0) else { return };
        // SAFETY: mapped by `put`, one page, and nobody can have used it.
        unsafe { source.unmap(at, source.page_size(), 0) };
        *self = Self::NONE;
    }
}

/// Random numbers (splitmix64) of one shard, under its lock.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) const fn new() -> Self {
        Self(0)
    }

    /// With a beginning of its own, from the first time on that it is asked for.
    pub(crate) fn seeded<O: Os>(self, os: &O) -> Self {
        if self.0 == 0 { Self(os.random()) } else { self }
    }

    /// A number under `bound`, which is not 0 and under 2^32.
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ (z >> 31)) >> 32) as usize * bound) >> 32
    }

    /// Where in a free run `n` blocks of `k` granules, for which it is long enough, are taken: at a multiple of `k` from its
    /// beginning, so that what is left on both sides serves the same class.
    pub(crate) fn place(&mut self, run: Run, k: usize, n: usize) -> Run {
        let others = if PLACES { run.len.checked_div(k).unwrap_or(0).saturating_sub(n) } else { 0 };
        let skip = if others > 0 { self.below(others + 1) * k } else { 0 };
        Run { at: run.at + skip, len: run.len - skip }
    }

    /// Brings blocks into a random order.
    pub(crate) fn shuffle(&mut self, blocks: &mut [*mut u8]) {
        for i in (1..blocks.len()).rev() {
            if PLACES {
                blocks.swap(i, self.below(i + 1));
            }
        }
    }
}

#[cfg(not(loom))]
pub(crate) use frees::{back, back_as, out, stands};

#[cfg(not(loom))]
mod frees {
    use super::FREES;
    use crate::class::Slot;
    use crate::fault::{self, Fault, Misuse};
    use crate::nested;
    use crate::start::HEAP;
    use core::alloc::Layout;
    use core::ptr;

    /// Says that a block goes to the program, and returns it. Huge ones, which their table knows, and null are passed on.
    #[inline(always)]
    pub(crate) fn out(block: *mut u8) -> *mut u8 {
        if FREES { hand_out(block) } else { block }
    }

    #[inline(never)]
    fn hand_out(block: *mut u8) -> *mut u8 {
        HEAP.granules.extents.hand_out(block as usize);
        block
    }

    /// A block of a slot comes back from the program; the end, where it isn't one (Y3).
    #[inline(always)]
    pub(crate) fn back(block: *mut u8, slot: Slot) {
        if FREES {
            take_back(block as usize, slot);
        }
    }

    #[inline(never)]
    fn take_back(address: usize, slot: Slot) {
        if !HEAP.granules.extents.take_back(address, HEAP.granules.classes.granules(slot)) {
            refuse(address, slot);
        }
    }

    /// The same for a layout.
    pub(crate) fn back_as(block: *mut u8, layout: Layout) {
        if let Some(slot) = Slot::of_layout(layout) {
            back(block, slot);
        }
    }

    /// A block of a layout is about to be resized; the end, where it isn't with the program.
    pub(crate) fn stands(block: *mut u8, layout: Layout) {
        let Some(slot) = Slot::of_layout(layout) else { return };
        let k = HEAP.granules.classes.granules(slot);
        if FREES && !HEAP.granules.extents.is_out(block as usize, k) {
            refuse(block as usize, slot);
        }
    }

    /// The end, unless it is a signal handler's block, of which `nested` knows more.
    #[cold]
    #[inline(never)]
    fn refuse(address: usize, slot: Slot) {
        if nested::has(ptr::without_provenance_mut(address)) {
            return;
        }
        let misuse = match HEAP.granules.extents.extent(address) {
            Some(_) => Misuse::WrongLayout,
            None => HEAP.granules.misuse_at(address).unwrap_or(Misuse::Foreign),
        };
        fault::die(Fault { misuse, address, size: HEAP.granules.classes.bytes(slot) })
    }
}
