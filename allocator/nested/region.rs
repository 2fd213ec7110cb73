//! The region: memory that signal handlers allocate from, without a lock.
//! Owns: `Region`. Called by: `nested`.
//!
//! ```text
//! piece, 1 MiB  | states: a word for each granule | blocks, one behind the other, of any slots |
//! ```
//!
//! A block is carved once, from where the last one ended, and is of its slot for ever; free ones wait in a stack for each
//! slot. So the region is as large as the most blocks of each slot that were out at once, however long a handler goes on.
//!
//! | state | meaning | to |
//! |---|---|---|
//! | 0 | no block begins here | `LIVE`, when one is carved |
//! | `LIVE`, its slot | with the program, or in a cache or magazine of the heap | `FREE`, by whoever gives it back |
//! | `FREE`, another block | in the stack of its slot, above that one; 0: the lowest | `LIVE`, by the pop that took it |
//!
//! I1: a block is popped by the one exchange of its stack's head that took it, and given back by the one of its state.
//!     The head has a count of its changes, so a pop that slept sees that there were some.
//! I2: pieces are never unmapped, and states are apart from blocks: whoever reads the state of a block that somebody else
//!     has taken meanwhile reads a number that its exchange then refuses.
//! I3: every step is one exchange of one word: whoever is interrupted between two, or copied by a fork, loses a block at
//!     most, and has none twice.

#![allow(
    clippy::indexing_slicing,
    reason = "indices are checked where they come in: under `PIECES` and `GRANULES`"
)]

use crate::class::{Classes, GRANULE, SLOTS, Slot};
use crate::fault::Misuse;
use core::ptr::{self, NonNull};
use core::sync::atomic::AtomicPtr;
use nearheap_numa::sync::{AtomicU32, AtomicU64, Ordering};
use nearheap_numa::{Os, PageSource, const_unless_loom};

const PIECE: usize = 1 << 20;
const GRANULES: usize = if cfg!(loom) { 8 } else { PIECE / GRANULE };
/// The granules that the states are in.
const FIRST: usize = if cfg!(loom) { 2 } else { GRANULES * size_of::<AtomicU32>() / GRANULE };
/// A GiB of handlers' blocks.
const PIECES: usize = if cfg!(loom) { 1 } else { 1024 };

const LIVE: u32 = 1 << 31;
const FREE: u32 = 1 << 30;
const INDEX: u32 = FREE - 1;

const _: () = assert!(PIECES * GRANULES <= INDEX as usize);

type States = [AtomicU32; GRANULES];

/// What there is at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// Nothing of the region's.
    Elsewhere,
    /// Nothing that ever was a block.
    Nothing,
    /// Within a block that is free.
    Free,
    /// Within the live block that begins here.
    Block(usize, Slot),
}

/// Blocks for handlers.
#[derive(Debug)]
pub(super) struct Region {
    pieces: [AtomicPtr<States>; PIECES],
    /// The number of the first granule that was never a block's.
    unused: AtomicU32,
    /// For each slot the number of its topmost free block, and above it the changes there have been.
    free: [AtomicU64; SLOTS],
}

impl Region {
    const_unless_loom! {
        pub(super) fn new() -> Self {
            Self {
                pieces: [const { AtomicPtr::new(ptr::null_mut()) }; PIECES],
                unused: AtomicU32::new(0),
                free: crate::repeat!(AtomicU64::new(0)),
            }
        }
    }

    /// A block of a slot.
    pub(super) fn take<O: Os>(
        &self,
        slot: Slot,
        classes: &Classes,
        source: &PageSource<O>,
    ) -> Option<NonNull<u8>> {
        let index = self
            .pop(slot)
            .or_else(|| self.carve(classes.granules(slot), slot.align() / GRANULE, source))?;
        // Pairs with the exchange in `give`: who frees the block has it from here.
        self.state(index)?.store(LIVE | slot.index() as u32, Ordering::Release);
        let piece = self.pieces[index / GRANULES].load(Ordering::Acquire);
        NonNull::new(piece.cast::<u8>().wrapping_add(index % GRANULES * GRANULE))
    }

    /// Takes a block back; of this slot, where the caller knows it. `None`: it is no block of the region's. Its slot, else.
    pub(super) fn give(&self, address: usize, slot: Option<Slot>) -> Option<Result<Slot, Misuse>> {
        let (piece, granule) = self.place(address)?;
        Some(self.give_at(piece * GRANULES + granule, address, slot))
    }

    fn give_at(&self, index: usize, address: usize, slot: Option<Slot>) -> Result<Slot, Misuse> {
        let state = self.state(index).ok_or(Misuse::Foreign)?;
        let found = state.load(Ordering::Acquire);
        if found & FREE != 0 {
            return Err(Misuse::DoubleFree);
        }
        let own = slot_of(found).filter(|_| address.is_multiple_of(GRANULE));
        let own = own.ok_or(Misuse::NotABlock)?;
        if slot.is_some_and(|slot| slot != own) {
            return Err(Misuse::WrongLayout);
        }
        // Of two frees, one is the second (I1).
        if state.compare_exchange(found, FREE, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return Err(Misuse::DoubleFree);
        }
        self.push(own, index);
        Ok(own)
    }

    /// What there is at an address.
    pub(super) fn at(&self, address: usize, classes: &Classes) -> At {
        let Some((piece, granule)) = self.place(address) else { return At::Elsewhere };
        for back in 0..=granule - FIRST {
            let state = self.state(piece * GRANULES + granule - back);
            let found = state.map_or(0, |state| state.load(Ordering::Acquire));
            match slot_of(found) {
                Some(slot) if back < classes.granules(slot) => {
                    return At::Block((address & !(GRANULE - 1)) - back * GRANULE, slot);
                }
                None if found == 0 => {}
                None => return At::Free,
                Some(_) => break,
            }
        }
        At::Nothing
    }

    /// The piece and the granule that an address is in.
    fn place(&self, address: usize) -> Option<(usize, usize)> {
        for (i, piece) in self.pieces.iter().enumerate() {
            // They are mapped in order, but for two that are being mapped at once.
            let base = piece.load(Ordering::Acquire).addr();
            if base == 0 && i > self.unused.load(Ordering::Relaxed) as usize / GRANULES {
                break;
            }
            let granule = address.wrapping_sub(base) / GRANULE;
            if base != 0 && (FIRST..GRANULES).contains(&granule) {
                return Some((i, granule));
            }
        }
        None
    }

    fn state(&self, index: usize) -> Option<&AtomicU32> {
        let piece = self.pieces[index / GRANULES].load(Ordering::Acquire);
        // SAFETY: null, or a piece, which begins with its states and is never unmapped (I2).
        unsafe { piece.as_ref() }.map(|states| &states[index % GRANULES])
    }

    fn pop(&self, slot: Slot) -> Option<usize> {
        let top = &self.free[slot.index()];
        let mut old = top.load(Ordering::Acquire);
        loop {
            let index = (old as u32 & INDEX) as usize;
            if index == 0 {
                return None;
            }
            let below = self.state(index)?.load(Ordering::Relaxed) & INDEX;
            match top.compare_exchange(old, above(old, below), Ordering::Acquire, Ordering::Acquire)
            {
                Ok(_) => return Some(index),
                Err(now) => old = now,
            }
        }
    }

    fn push(&self, slot: Slot, index: usize) {
        let top = &self.free[slot.index()];
        let mut old = top.load(Ordering::Relaxed);
        loop {
            if let Some(state) = self.state(index) {
                state.store(FREE | old as u32 & INDEX, Ordering::Relaxed);
            }
            // Pairs with the load of the next `pop`, which reads that state.
            let new = above(old, index as u32);
            match top.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => old = now,
            }
        }
    }

    /// A block of `k` granules where none was before.
    fn carve<O: Os>(&self, k: usize, align: usize, source: &PageSource<O>) -> Option<usize> {
        let mut old = self.unused.load(Ordering::Relaxed);
        loop {
            let mut piece = old as usize / GRANULES;
            let mut granule = (old as usize % GRANULES).max(FIRST).next_multiple_of(align);
            if granule + k > GRANULES {
                (piece, granule) = (piece + 1, FIRST.next_multiple_of(align));
            }
            self.map(piece, source)?;
            let index = piece * GRANULES + granule;
            let new = (index + k) as u32;
            match self.unused.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(index),
                Err(now) => old = now,
            }
        }
    }

    /// Maps a piece, if it isn't.
    fn map<O: Os>(&self, piece: usize, source: &PageSource<O>) -> Option<()> {
        let place = self.pieces.get(piece)?;
        if !place.load(Ordering::Acquire).is_null() {
            return Some(());
        }
        if !source.commit(PIECE) {
            return None;
        }
        let Some(at) = source.map(PIECE, PIECE) else {
            source.uncommit(PIECE);
            return None;
        };
        at.as_ptr().expose_provenance();
        let (none, at_states) = (ptr::null_mut(), at.as_ptr().cast());
        if place.compare_exchange(none, at_states, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            // Another thread, or a handler within this one, was faster.
            // SAFETY: mapped above, and nobody else knows it.
            unsafe { source.unmap(at, PIECE, PIECE) };
        }
        Some(())
    }
}

/// The slot of a live block.
fn slot_of(state: u32) -> Option<Slot> {
    if state & LIVE == 0 { None } else { Slot::numbered((state & INDEX) as usize) }
}

/// A head after a change.
fn above(old: u64, index: u32) -> u64 {
    ((old >> 32).wrapping_add(1) << 32) | u64::from(index)
}
