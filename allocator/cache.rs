//! The thread cache: for every slot a small array of free blocks, and the count of allocations, in one word.
//! Owns: `Cache`. Called by: `global` (the fast path), `heap` (the cold paths), `registry` and `snapshot` (the counts).
//!
//! ```text
//! word    63 ........................ 16 | 15 .... 8 | 7 ..... 0
//!         allocations of this slot, ever | room left | n: blocks here
//! items   [ oldest, ..., latest ]  n of them; `n + room` is the slot's capacity
//! ```
//!
//! T1: only the cache's own thread writes it (after the thread's end, and in a forked child, whoever inherited it).
//! T2: `items[..n]` are free blocks of the slot that nobody else has. No free block is read or written.
//! T3: `net` is blocks refilled minus blocks flushed, so `frees = allocs + n - net`, exactly, at any moment; a reader
//!     on another thread sees a word and a `net` that belong together (V2).
//! T4: while a slot's items are rearranged, its word says `n = room = 0`: a fork at any instruction copies a cache that
//!     loses at most the blocks of that slot, never has one twice, and counts those that it lost as in use.
//!
//! A cache of zeros is a valid cache in which every operation takes the cold path; so threads that have none yet, or
//! have lost theirs, point at such a one that is never written (see `tls`).

#![allow(
    clippy::indexing_slicing,
    reason = "slots and counts are bounded by the lengths of their tables"
)]

use crate::class::{SLOTS, SMALL_SLOTS, Slot};
use crate::version::Version;
use core::cell::{Cell, UnsafeCell};
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use nearheap_numa::const_unless_loom;

/// Blocks of a small slot at most: the item array's length less one.
pub(crate) const SMALL_CAP: usize = 63;
const LARGE_CAP: usize = 16;
/// Bytes of a slot's blocks at most, as long as that is one block.
const SLOT_BYTES: usize = 16 << 10;
/// The capacity that a slot begins with.
const FIRST_CAP: usize = 8;

/// What a slot may hold of a thread's budget when that is used up.
const SHARES: usize = 16;

const N: u64 = 0xff;
const ROOM_SHIFT: u32 = 8;
const ALLOCS_SHIFT: u32 = 16;
/// One block out, and one allocation more.
const POP: u64 = (1 << ALLOCS_SHIFT) + (1 << ROOM_SHIFT) - 1;
/// One block in.
const PUSH: u64 = 1_u64.wrapping_sub(1 << ROOM_SHIFT);

/// One byte of a word, from the least on: shorter than to load the word and to mask it.
///
/// # Safety
/// `i` is less than 8; only the calling thread writes the word.
#[inline(always)]
unsafe fn byte(word: &AtomicU64, i: usize) -> usize {
    let at = if cfg!(target_endian = "little") { i } else { 7 - i };
    // SAFETY: inside the word; other threads only read it, so nothing races with this, which needn't be atomic.
    usize::from(unsafe { word.as_ptr().cast::<u8>().add(at).read() })
}

/// Adds to a word that only the calling thread writes: one instruction, without a lock.
#[inline(always)]
fn add(word: &AtomicU64, n: u64) {
    word.store(word.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

/// Counts of blocks that pass by the slots.
#[derive(Debug)]
pub(crate) struct HugeCounts {
    pub(crate) allocs: AtomicU64,
    pub(crate) frees: AtomicU64,
    pub(crate) allocated: AtomicU64,
    pub(crate) freed: AtomicU64,
}

/// A thread's free blocks and counts.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Cache {
    words: [AtomicU64; SLOTS],
    net: [AtomicU64; SLOTS],
    version: Version,
    pub(crate) huge: HugeCounts,
    /// The kernel's number of the thread.
    pub(crate) tid: AtomicU32,
    /// Its home shard, modulo the shards in use.
    pub(crate) home: Cell<usize>,
    /// The part of the heap that it takes blocks from: that of the node on which the thread was seen last.
    pub(crate) part: Part,
    /// The registry's links, under its lock.
    pub(crate) next: Cell<*const Cache>,
    pub(crate) prev: Cell<*const Cache>,
    /// Bytes that the capacities of all slots add up to.
    held: Cell<usize>,
    /// Cold operations, and the slot that is looked at next for being idle.
    cold: Cell<u32>,
    eye: Cell<usize>,
    /// The stack that the thread was on when somebody asked who called.
    #[cfg(all(feature = "leak-stacks", not(loom)))]
    pub(crate) stack: Cell<crate::stacks::Bounds>,
    /// The allocation count of each slot when it was last looked at.
    seen: [Cell<u32>; SLOTS],
    small: UnsafeCell<[[*mut u8; SMALL_CAP + 1]; SMALL_SLOTS]>,
    large: UnsafeCell<[[*mut u8; LARGE_CAP]; SLOTS - SMALL_SLOTS]>,
}

// SAFETY: other threads read the atomics only (T1), or what the registry's lock protects.
unsafe impl Sync for Cache {}

/// The number of a part, which the cache's thread alone writes and the statistics read.
#[derive(Debug)]
pub(crate) struct Part(AtomicU32);

impl Part {
    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed) as usize
    }

    pub(crate) fn set(&self, part: usize) {
        self.0.store(part as u32, Ordering::Relaxed);
    }
}

/// What a slot's word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) n: usize,
    pub(crate) room: usize,
    pub(crate) allocs: u64,
}

impl State {
    fn of(word: u64) -> Self {
        Self {
            n: (word & N) as usize,
            room: (word >> ROOM_SHIFT & N) as usize,
            allocs: word >> ALLOCS_SHIFT,
        }
    }

    fn word(self) -> u64 {
        self.n as u64 | (self.room as u64) << ROOM_SHIFT | self.allocs << ALLOCS_SHIFT
    }
}

/// Counts of one slot that belong together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) allocs: u64,
    pub(crate) frees: u64,
    pub(crate) cached: u64,
}

/// The capacity that a slot may grow to.
pub(crate) fn cap_limit(slot: Slot, size: usize, blocks: usize) -> usize {
    let array = if slot.index() < SMALL_SLOTS { SMALL_CAP } else { LARGE_CAP };
    SLOT_BYTES.checked_div(size).unwrap_or(1).clamp(1, array.min(blocks.max(1)))
}

impl Cache {
    const_unless_loom! {
        /// A cache in which every operation is cold.
        pub(crate) fn new() -> Self {
            Self {
                words: [const { AtomicU64::new(0) }; SLOTS],
                net: [const { AtomicU64::new(0) }; SLOTS],
                version: Version::new(),
                huge: HugeCounts {
                    allocs: AtomicU64::new(0),
                    frees: AtomicU64::new(0),
                    allocated: AtomicU64::new(0),
                    freed: AtomicU64::new(0),
                },
                tid: AtomicU32::new(0),
                home: Cell::new(0),
                part: Part(AtomicU32::new(0)),
                next: Cell::new(ptr::null()),
                prev: Cell::new(ptr::null()),
                held: Cell::new(0),
                cold: Cell::new(0),
                eye: Cell::new(0),
                #[cfg(all(feature = "leak-stacks", not(loom)))]
                stack: Cell::new(crate::stacks::Bounds::NONE),
                seen: [const { Cell::new(0) }; SLOTS],
                small: UnsafeCell::new([[ptr::null_mut(); SMALL_CAP + 1]; SMALL_SLOTS]),
                large: UnsafeCell::new([[ptr::null_mut(); LARGE_CAP]; SLOTS - SMALL_SLOTS]),
            }
        }
    }

    /// Makes zeroed memory a cache; zeros are one, except to loom.
    ///
    /// # Safety
    /// `at` is memory of a cache that nobody else uses, and lives for `'a`.
    pub(crate) unsafe fn in_zeros<'a>(at: NonNull<Self>) -> &'a Self {
        #[cfg(loom)]
        // SAFETY: the caller's promise.
        unsafe {
            (&raw mut (*at.as_ptr()).version).write(Version::new());
        }
        // SAFETY: the caller's promise; zeros are valid for every field.
        unsafe { at.as_ref() }
    }

    /// Where a slot's blocks are.
    #[inline(always)]
    fn items(&self, slot: Slot) -> *mut *mut u8 {
        let i = slot.index();
        if i < SMALL_SLOTS {
            // SAFETY: `i` is inside the array of arrays.
            unsafe { self.small.get().cast::<[*mut u8; SMALL_CAP + 1]>().add(i).cast() }
        } else {
            // SAFETY: `i - SMALL_SLOTS` is inside the array of arrays.
            unsafe { self.large.get().cast::<[*mut u8; LARGE_CAP]>().add(i - SMALL_SLOTS).cast() }
        }
    }

    /// The latest free block of a slot, or none: then it is the cold path's turn.
    ///
    /// # Safety
    /// On the cache's own thread (T1).
    #[inline(always)]
    pub(crate) unsafe fn pop(&self, slot: Slot) -> Option<NonNull<u8>> {
        // SAFETY: `Slot` is less than `SLOTS`.
        let word = unsafe { self.words.get_unchecked(slot.index()) };
        // SAFETY: `N` is inside the word, which this thread alone writes.
        let n = unsafe { byte(word, 0) };
        if n == 0 {
            return None;
        }
        // SAFETY: `items[..n]` are blocks (T2), and those are not null.
        let block = unsafe { NonNull::new_unchecked(*self.items(slot).add(n - 1)) };
        #[cfg(feature = "valgrind")]
        // SAFETY: the same place. To memcheck, what is left there would hold the block if the program lost it.
        unsafe {
            *self.items(slot).add(n - 1) = ptr::null_mut();
        }
        add(word, POP);
        Some(block)
    }

    /// Keeps a free block. `false`: there is no room, and it is the cold path's turn.
    ///
    /// # Safety
    /// On the cache's own thread (T1), with a block of the slot that nobody has any more (T2).
    #[inline(always)]
    pub(crate) unsafe fn push(&self, slot: Slot, block: *mut u8) -> bool {
        // SAFETY: `Slot` is less than `SLOTS`.
        let word = unsafe { self.words.get_unchecked(slot.index()) };
        // SAFETY: both bytes are inside the word, which this thread alone writes.
        if unsafe { byte(word, 1) } == 0 {
            return false;
        }
        // SAFETY: there is room, so `n` is inside the array.
        unsafe { *self.items(slot).add(byte(word, 0)) = block };
        // A fork copies the item before the word (T4); on one thread the order costs nothing.
        core::sync::atomic::compiler_fence(Ordering::Release);
        add(word, PUSH);
        true
    }

    /// The block that the next `pop` of a slot returns.
    ///
    /// # Safety
    /// As for [`slice`](Self::slice).
    #[cfg(all(feature = "c-interface", not(loom)))]
    pub(crate) unsafe fn latest(&self, slot: Slot) -> Option<*mut u8> {
        let n = self.state(slot).n.checked_sub(1)?;
        // SAFETY: the caller's promise.
        unsafe { self.slice(slot) }.get(n).copied()
    }

    /// What a slot's word says.
    pub(crate) fn state(&self, slot: Slot) -> State {
        State::of(self.words[slot.index()].load(Ordering::Relaxed))
    }

    /// The blocks of a slot and the places for more.
    ///
    /// # Safety
    /// On the cache's own thread, which makes no other use of the slot's items meanwhile.
    #[allow(
        clippy::mut_from_ref,
        reason = "the array is behind a cell; the caller is the only one to use it"
    )]
    pub(crate) unsafe fn slice(&self, slot: Slot) -> &mut [*mut u8] {
        let len = if slot.index() < SMALL_SLOTS { SMALL_CAP } else { LARGE_CAP };
        // SAFETY: the array has `len` places at least, and the caller is alone with it.
        unsafe { core::slice::from_raw_parts_mut(self.items(slot), len) }
    }

    /// Says that a slot's items are being rearranged (T4).
    pub(crate) fn unsettle(&self, slot: Slot) {
        let State { allocs, .. } = self.state(slot);
        let word = State { n: 0, room: 0, allocs }.word();
        // Until `settle`, the word and its net don't belong together (T3).
        self.version.begin();
        self.words[slot.index()].store(word, Ordering::Relaxed);
        core::sync::atomic::compiler_fence(Ordering::Release);
    }

    /// Sets a slot's word, with `moved` blocks more refilled than flushed, so that readers see both or neither (T3). A fork
    /// may copy one of the two: the smaller count of frees then, which says of blocks in flight that they are in use (T4).
    #[inline]
    pub(crate) fn settle(&self, slot: Slot, state: State, moved: isize) {
        let i = slot.index();
        let net = self.net[i].load(Ordering::Relaxed).wrapping_add_signed(moved as i64);
        self.version.change(|| {
            if moved > 0 {
                self.net[i].store(net, Ordering::Relaxed);
            }
            // The second store is a release so that no copy has it without the first.
            self.words[i].store(state.word(), Ordering::Release);
            if moved < 0 {
                self.net[i].store(net, Ordering::Release);
            }
        });
    }

    /// Counts one operation on a block that doesn't pass through the slot's items: a span.
    pub(crate) fn count_past(&self, slot: Slot, alloc: bool) {
        let mut state = self.state(slot);
        state.allocs += u64::from(alloc);
        self.settle(slot, state, if alloc { 1 } else { -1 });
    }

    /// Counts a block that changed its slot where it stands: a free of the one, an allocation of the other.
    pub(crate) fn count_move(&self, from: Slot, to: Slot) {
        self.count_past(from, false);
        self.count_past(to, true);
    }

    /// The counts of a slot, from any thread.
    pub(crate) fn counts(&self, slot: Slot) -> Counts {
        self.look(slot).0
    }

    /// The counts of a slot, and whether they are whole (V2).
    #[inline(never)]
    fn look(&self, slot: Slot) -> (Counts, bool) {
        let i = slot.index();
        let ((word, net), whole) = self
            .version
            .look(|| (self.words[i].load(Ordering::Relaxed), self.net[i].load(Ordering::Relaxed)));
        let State { n, allocs, .. } = State::of(word);
        let frees = allocs.wrapping_add(n as u64).wrapping_sub(net);
        (Counts { allocs, frees, cached: n as u64 }, whole)
    }

    /// The capacity for a slot after it ran dry or full: twice as much, within its limit and the thread's budget. Once the
    /// budget is used up, a slot has its share all the same, and one with more loses half of it: so those that are used become
    /// alike, whichever came first. The older half of a full slot and a block more always fit.
    pub(crate) fn grown_cap(&self, slot: Slot, size: usize, limit: usize, budget: usize) -> usize {
        let State { n, room, .. } = self.state(slot);
        let cap = n + room;
        let want = (cap * 2).max(FIRST_CAP).min(limit).max(cap);
        if self.held.get() + (want - cap) * size <= budget {
            return want;
        }
        (budget / SHARES / size).clamp(1, want).max(cap / 2 + 1)
    }

    /// Bytes that the capacities of all slots add up to.
    pub(crate) fn held(&self) -> usize {
        self.held.get()
    }

    /// Counts the capacity that a slot is about to be settled with, in place of the one it has.
    pub(crate) fn hold(&self, slot: Slot, size: usize, cap: usize) {
        let State { n, room, .. } = self.state(slot);
        self.held.set(self.held.get() + cap * size - (n + room) * size);
    }

    /// Takes every block out of a slot and forgets its capacity; the blocks, of which the first `n` count.
    ///
    /// # Safety
    /// On the cache's own thread.
    pub(crate) unsafe fn empty(&self, slot: Slot, size: usize, out: &mut [*mut u8; 64]) -> usize {
        let State { n, room, allocs } = self.state(slot);
        // SAFETY: the caller's promise.
        let items = unsafe { self.slice(slot) };
        out.iter_mut().zip(items).take(n).for_each(|(to, from)| *to = *from);
        self.settle(slot, State { n: 0, room: 0, allocs }, -n.cast_signed());
        self.held.set(self.held.get().saturating_sub((n + room) * size));
        n
    }

    /// Once in a while, the next slot if it has blocks and hasn't been used since it was looked at last.
    pub(crate) fn idle_slot(&self) -> Option<Slot> {
        let cold = self.cold.get().wrapping_add(1);
        self.cold.set(cold);
        if !cold.is_multiple_of(16) {
            return None;
        }
        let i = (self.eye.get() + 1) % SLOTS;
        self.eye.set(i);
        let slot = Slot::all().nth(i)?;
        let State { n, allocs, .. } = self.state(slot);
        let unused = self.seen[i].replace(allocs as u32) == allocs as u32;
        (n > 0 && unused).then_some(slot)
    }

    /// Makes it as new for another thread. Its counts have been taken over before.
    pub(crate) fn reset(&self) {
        for slot in Slot::all() {
            self.words[slot.index()].store(0, Ordering::Relaxed);
            self.net[slot.index()].store(0, Ordering::Relaxed);
            self.seen[slot.index()].set(0);
        }
        for count in [&self.huge.allocs, &self.huge.frees, &self.huge.allocated, &self.huge.freed] {
            count.store(0, Ordering::Relaxed);
        }
        self.version.abandon();
        self.held.set(0);
        #[cfg(all(feature = "leak-stacks", not(loom)))]
        self.stack.set(crate::stacks::Bounds::NONE);
    }
}

impl HugeCounts {
    /// Counts one operation by the thread that owns these counts.
    pub(crate) fn count(&self, alloc: bool, bytes: usize) {
        let (count, sum) =
            if alloc { (&self.allocs, &self.allocated) } else { (&self.frees, &self.freed) };
        add(count, 1);
        add(sum, bytes as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(not(loom))]
    impl Cache {
        /// The capacities add up to what the budget is told.
        pub(crate) fn audit(&self, classes: &crate::class::Classes) {
            let held: usize = Slot::all()
                .map(|slot| (self.state(slot), classes.bytes(slot)))
                .map(|(State { n, room, .. }, size)| (n + room) * size)
                .sum();
            assert_eq!(self.held.get(), held, "bytes of capacities");
        }
    }

    #[test]
    fn one_addition_keeps_the_stack_and_the_count() {
        let cache = Cache::new();
        let slot = Slot::small(48);
        let (mut a, mut b) = (0_u8, 0_u8);
        // SAFETY: this thread made the cache; the blocks are two locals that nothing else uses.
        unsafe {
            assert!(cache.pop(slot).is_none(), "zeros have no blocks");
            assert!(!cache.push(slot, &mut a), "and no room");
            cache.settle(slot, State { n: 0, room: 2, allocs: 7 }, 0);
            assert!(cache.push(slot, &mut a) && cache.push(slot, &mut b));
            assert!(!cache.push(slot, &mut a), "full");
            assert_eq!(cache.pop(slot), NonNull::new(&raw mut b));
            assert_eq!(cache.pop(slot), NonNull::new(&raw mut a));
        }
        assert_eq!(cache.state(slot), State { n: 0, room: 2, allocs: 9 });
        assert_eq!(cache.counts(slot), Counts { allocs: 9, frees: 9, cached: 0 });
    }

    #[test]
    fn slots_share_a_budget_that_is_used_up() {
        const BUDGET: usize = 52 << 10;
        let cache = Cache::new();
        let grow = |size: usize, n: usize| {
            let slot = Slot::small(size);
            let cap = cache.grown_cap(slot, size, SMALL_CAP, BUDGET);
            cache.hold(slot, size, cap);
            cache.settle(slot, State { n: n.min(cap), room: cap - n.min(cap), allocs: 0 }, 0);
            cap
        };
        // Three that come first take nearly everything.
        for size in [256, 272, 288] {
            assert_eq!([0; 4].map(|_| grow(size, 0)), [8, 16, 32, 63], "{size}");
        }
        // The next gets a sixteenth, though that is more than there is.
        assert_eq!([0; 2].map(|_| grow(512, 0)), [BUDGET / 16 / 512; 2]);
        // One that has more gives half of it up, whether it ran dry or full, as long as there is too little.
        assert_eq!([grow(256, 0), grow(256, 32)], [32, 17]);
        // Then there is room for others.
        assert_eq!(grow(512, 0), 12);
    }

    #[test]
    fn a_slot_that_is_being_rearranged_is_not_whole() {
        let cache = Cache::new();
        let slot = Slot::small(16);
        cache.settle(slot, State { n: 6, room: 2, allocs: 10 }, 9);
        let before = Counts { allocs: 10, frees: 7, cached: 6 };
        assert_eq!(cache.look(slot), (before, true));
        cache.unsettle(slot);
        // The word says that nothing is here, the net that nothing has left: three frees too few.
        assert_eq!(cache.look(slot), (Counts { allocs: 10, frees: 1, cached: 0 }, false));
        cache.settle(slot, State { n: 2, room: 6, allocs: 10 }, -4);
        assert_eq!(cache.look(slot), (Counts { cached: 2, ..before }, true));
    }

    #[test]
    fn counts_see_a_word_and_its_net_together() {
        let cache = Cache::new();
        let slot = Slot::small(16);
        let state = |n, allocs| State { n, room: 0, allocs };
        let whole = std::thread::scope(|s| {
            let cache = &cache;
            s.spawn(move || {
                for i in 1..=200_000_u64 {
                    // Of four refilled, one is handed out; two are flushed. One is taken back, and the rest is flushed.
                    // So one block is in use at most.
                    cache.settle(slot, state(3, i), 4);
                    cache.unsettle(slot);
                    cache.settle(slot, state(1, i), -2);
                    cache.settle(slot, state(2, i), 0);
                    cache.unsettle(slot);
                    cache.settle(slot, state(0, i), -2);
                }
            });
            let mut whole = 0;
            for _ in 0..50_000 {
                // Where the writer lost its CPU in the middle, the looks end before the change does.
                if let (Counts { allocs, frees, cached }, true) = cache.look(slot) {
                    assert!(allocs - frees <= 1 && cached <= 3, "{allocs} {frees} {cached}");
                    whole += 1;
                }
            }
            whole
        });
        assert!(whole > 10_000, "only {whole} looks were whole");
    }

    /// A fork copies the thread's memory between any two of its stores, also amid a change.
    #[cfg(not(loom))]
    #[test]
    fn a_fork_copies_no_free_that_is_none() {
        static STOP: core::sync::atomic::AtomicBool = core::sync::atomic::AtomicBool::new(false);
        let cache = Cache::new();
        let slot = Slot::small(16);
        std::thread::scope(|s| {
            let cache = &cache;
            s.spawn(move || {
                for allocs in 1.. {
                    // Of five refilled, one is handed out and the others leave; it comes back and leaves too.
                    cache.settle(slot, State { n: 4, room: 0, allocs }, 5);
                    cache.settle(slot, State { n: 0, room: 0, allocs }, -4);
                    cache.settle(slot, State { n: 1, room: 0, allocs }, 0);
                    cache.settle(slot, State { n: 0, room: 0, allocs }, -1);
                    if STOP.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
            let mut wrong = 0;
            for _ in 0..300 {
                // SAFETY: the child looks at two words and leaves.
                match unsafe { libc::fork() } {
                    0 => {
                        let n = cache.state(slot).n as u64;
                        let in_use =
                            cache.net[slot.index()].load(Ordering::Relaxed).wrapping_sub(n);
                        // SAFETY: no preconditions.
                        unsafe { libc::_exit(if in_use <= 5 { 0 } else { 1 }) };
                    }
                    child => {
                        let mut status = 0;
                        // SAFETY: a child of this process's own, and a place for its status.
                        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
                        wrong += usize::from(status != 0);
                    }
                }
            }
            STOP.store(true, Ordering::Relaxed);
            assert_eq!(wrong, 0, "of 300 copies, so many count a free too many");
        });
    }
}
