//! Magazines: between the thread caches and the granule heap, a short list of free blocks for every slot.
//! Owns: `Depot`, `Magazine`. Called by: the cold paths of `cache`, `heap::sweep`, `fork`.
//!
//! A magazine's lock is held for the copy of at most half a cache slot's blocks. Threads that trade blocks of one class
//! meet here and not in the granule heap.
//!
//! A1: a block in a magazine is taken in the granule heap and in nobody's hands.
//! A2: a magazine holds at most `room_of(slot)` blocks; what doesn't fit is handed back to the caller, oldest first.

#![allow(
    clippy::indexing_slicing,
    reason = "slots and counts are bounded by the lengths of their tables"
)]

use crate::class::{SLOTS, Slot};
use crate::granule::GIVE_MAX;
use crossbeam_utils::CachePadded;
use nearheap_numa::const_unless_loom;
use nearheap_numa::lock::Lock;
use nearheap_numa::sync::{AtomicU32, Ordering};

/// Blocks that a magazine holds at most.
const ROOM: usize = if cfg!(loom) { 4 } else { 128 };
/// Bytes of blocks that a magazine holds at most, as long as that is four blocks.
const ROOM_BYTES: usize = 64 << 10;

/// Slots that have a magazine, the first so many: all, but for models, which make a heap for every interleaving.
const MAGAZINES: usize = if cfg!(loom) { 4 } else { SLOTS };

#[derive(Debug)]
struct Stack {
    n: usize,
    items: [*mut u8; ROOM],
}

// SAFETY: the pointers are free blocks, which belong to the magazine (A1).
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
}

fn room_of(slot: Slot) -> usize {
    (ROOM_BYTES / slot.size()).clamp(4, ROOM)
}

impl Magazine {
    const_unless_loom! {
        fn new() -> Self {
            Self {
                stack: Lock::new(Stack { n: 0, items: [core::ptr::null_mut(); ROOM] }),
                count: AtomicU32::new(0),
            }
        }
    }
}

impl Depot {
    const_unless_loom! {
        pub(crate) fn new() -> Self {
            Self { magazines: crate::repeat!(CachePadded::new(Magazine::new())) }
        }
    }

    fn of(&self, slot: Slot) -> Option<&Magazine> {
        self.magazines.get(slot.index()).map(|magazine| &**magazine)
    }

    /// Moves blocks to `out`, the latest first, as many as there are or fit. How many.
    pub(crate) fn pop(&self, slot: Slot, out: &mut [*mut u8]) -> usize {
        let Some(magazine) = self.of(slot) else { return 0 };
        if magazine.count.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let mut stack = magazine.stack.lock();
        let n = stack.n.min(out.len());
        let left = stack.n - n;
        out[..n].copy_from_slice(&stack.items[left..left + n]);
        stack.n = left;
        magazine.count.store(left as u32, Ordering::Relaxed);
        n
    }

    /// Takes `blocks` in (at most half of [`GIVE_MAX`]). What it has to let go for that is put into `overflow`: how many.
    pub(crate) fn push(
        &self,
        slot: Slot,
        blocks: &[*mut u8],
        overflow: &mut [*mut u8; GIVE_MAX],
    ) -> usize {
        let Some(magazine) = self.of(slot) else {
            overflow[..blocks.len()].copy_from_slice(blocks);
            return blocks.len();
        };
        let room = room_of(slot);
        let mut stack = magazine.stack.lock();
        let mut out = 0;
        if stack.n + blocks.len() > room {
            // Half of it goes, so that the next ones find room; the oldest, which are the least likely to be in a CPU's
            // cache.
            out = (stack.n / 2).min(GIVE_MAX - blocks.len());
            overflow[..out].copy_from_slice(&stack.items[..out]);
            let n = stack.n;
            stack.items.copy_within(out..n, 0);
            stack.n -= out;
        }
        let fit = blocks.len().min(room - stack.n);
        let (keep, rest) = blocks.split_at(fit);
        overflow[out..out + rest.len()].copy_from_slice(rest);
        let n = stack.n;
        stack.items[n..n + fit].copy_from_slice(keep);
        stack.n += fit;
        magazine.count.store(stack.n as u32, Ordering::Relaxed);
        out + rest.len()
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
