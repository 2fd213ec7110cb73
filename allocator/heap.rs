//! The heap: caches, magazines, the granule heap and the huge blocks put together; the cold paths of every operation.
//! Owns: `Heap`. Called by: `global` (for the process's heap) and tests (for heaps of their own, on any kernel).
//!
//! A block is always in exactly one place: with the program, in one cache, in one magazine, or in the granule heap.
//!
//! E1: nothing here holds a lock when it calls another layer.
//! E2: exhaustion tries again once, after everything free was given back to the system; then it is null.

use crate::cache::{Cache, SMALL_CAP, State, cap_limit};
use crate::class::{CACHED_MAX, GRANULE, Slot};
use crate::fault::{self, Fault};
use crate::granule::{GIVE_MAX, Granules, Home, Refusal};
use crate::huge::{HUGE_PAGE, Huge};
use crate::magazine::{Depot, Pushed};
use crate::nested;
use crate::options::Values;
use crate::part::PerPart;
use crate::purge::Budget;
use crate::registry::{Ledger, Registry};
use apart::FAR_CAP;
use core::alloc::Layout;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use core::{ptr, slice};
use nearheap_numa::lock::Lock;
use nearheap_numa::sync::{AtomicUsize, Late};
use nearheap_numa::{Os, const_unless_loom};

/// A cache may hold this much, and a share of what is live, before its slots stop growing.
const CACHE_FLOOR: usize = 32 << 10;
const CACHE_SHARE: usize = 8;
/// Where each may hold a page of its own, a smaller share of what is out.
const SPARSE_SHARE: usize = 1024;

/// Beyond the share of each, the magazines may keep as much as free pages are kept at least, and a part of what is
/// committed.
const KEPT_SHARE: usize = 32;
/// When the heap has grown by so much, they are given back first, if they are as many.
const KEPT_STEP: usize = 256 << 10;

/// Addresses that a program can have: what is larger is refused without asking the kernel or purging for it.
const ADDRESSES: usize = 1 << 47;

/// A heap over a kernel.
#[derive(Debug)]
pub(crate) struct Heap<O> {
    pub(crate) granules: Granules<O>,
    /// The magazines of each part.
    pub(crate) depots: PerPart<Depot>,
    /// The least that was committed since the magazines were emptied for growth.
    kept_at: AtomicUsize,
    /// Few blocks are in use on many pages.
    pub(crate) sparse: AtomicBool,
    /// A thread found another one purging.
    pub(crate) purge_wanted: AtomicBool,
    pub(crate) huge: Huge,
    pub(crate) registry: Lock<Registry>,
    pub(crate) ledger: Ledger,
    pub(crate) budget: Lock<Budget>,
    pub(crate) knobs: Knobs,
    /// Called when the soft limit is crossed: a `fn()`, or null.
    pub(crate) on_soft_limit: AtomicPtr<()>,
}

/// What the options say, as far as the heap asks for it later.
#[derive(Debug, Default)]
pub(crate) struct Knobs {
    cache_bytes: Late,
    slot_blocks: Late,
    retain: Late,
    quiet_ms: Late,
}

impl Knobs {
    const_unless_loom! {
        /// The defaults.
        fn new() -> Self {
            Self {
                cache_bytes: Late::new(),
                slot_blocks: Late::new(),
                retain: Late::new(),
                quiet_ms: Late::new(),
            }
        }
    }

    /// Sets them all.
    pub(crate) fn set(&self, values: &Values) {
        self.cache_bytes.set(values.cache_bytes);
        self.slot_blocks.set(values.slot_blocks);
        self.retain.set(values.retain);
        self.quiet_ms.set(values.purge_delay.0 as usize);
    }

    fn cache_bytes(&self) -> usize {
        self.cache_bytes.get_or(Values::DEFAULT.cache_bytes)
    }

    fn slot_blocks(&self) -> usize {
        self.slot_blocks.get_or(Values::DEFAULT.slot_blocks)
    }

    /// Bytes of free pages that are kept at least.
    pub(crate) fn retain(&self) -> usize {
        self.retain.get_or(Values::DEFAULT.retain)
    }

    /// How long a chunk must have been left alone for its single pages to be purged.
    pub(crate) fn quiet_ms(&self) -> u64 {
        self.quiet_ms.get_or(Values::DEFAULT.purge_delay.0 as usize) as u64
    }
}

/// A block, and how many bytes from its beginning on may be other than zero; or null.
pub(crate) type Found = (*mut u8, usize);
const NOTHING: Found = (ptr::null_mut(), 0);

/// The block with its first `size` bytes zero; or null.
///
/// # Safety
/// What was found is the caller's, and has `size` bytes at least.
pub(crate) unsafe fn cleared((block, dirty): Found, size: usize) -> *mut u8 {
    if !block.is_null() {
        // SAFETY: the caller's promise.
        unsafe { ptr::write_bytes(block, 0, dirty.min(size)) };
    }
    block
}

impl<O: Os> Heap<O> {
    const_unless_loom! {
        pub(crate) fn new(os: O) -> Self {
            Self {
                granules: Granules::new(os),
                depots: PerPart::new(Depot::new()),
                kept_at: AtomicUsize::new(0),
                sparse: AtomicBool::new(false),
                purge_wanted: AtomicBool::new(false),
                huge: Huge::new(),
                registry: Lock::new(Registry::new()),
                ledger: Ledger::new(),
                budget: Lock::new(Budget::new()),
                knobs: Knobs::new(),
                on_soft_limit: AtomicPtr::new(ptr::null_mut()),
            }
        }
    }

    /// Bytes of blocks that are out: with the program, in caches, in magazines.
    pub(crate) fn live(&self) -> usize {
        self.granules.taken() + self.huge.bytes()
    }

    /// Whole OS pages for a huge block; `None` where that overflows.
    #[inline(never)]
    fn huge_len(&self, size: usize) -> Option<usize> {
        self.granules.source.in_pages(size.max(1)).filter(|&len| len < ADDRESSES)
    }

    /// A block for `layout`, after the fast path found none.
    ///
    /// # Safety
    /// `cache` is the calling thread's.
    pub(crate) unsafe fn alloc(&self, cache: Option<&Cache>, layout: Layout) -> Found {
        let found = match (Slot::of(layout.size(), layout.align()), cache) {
            // SAFETY: the caller's promise.
            (Some(slot), Some(cache)) if slot.is_cached() => unsafe {
                (self.refill(cache, slot), usize::MAX)
            },
            _ => self.alloc_in(self.part(cache), cache, layout),
        };
        if self.granules.source.take_crossing() {
            // SAFETY: the caller's promise.
            unsafe { self.soft_limit_crossed(cache) };
        }
        found
    }

    /// A block for `layout` of a part, for whoever wants it there.
    ///
    /// # Safety
    /// `cache` is the calling thread's.
    pub(crate) unsafe fn alloc_of(
        &self,
        part: usize,
        cache: Option<&Cache>,
        layout: Layout,
    ) -> Found {
        if self.granules.homes.is_several() {
            self.ensure(part);
        }
        let found = self.alloc_in(part, cache, layout);
        if self.granules.source.take_crossing() {
            // SAFETY: the caller's promise.
            unsafe { self.soft_limit_crossed(cache) };
        }
        found
    }

    /// Takes a block back past the cache: where that would keep it, the thread would take it for its own.
    ///
    /// # Safety
    /// `cache` is the calling thread's; the block is nobody's any more.
    pub(crate) unsafe fn free_past(
        &self,
        cache: Option<&Cache>,
        block: *mut u8,
        layout: Layout,
    ) -> Result<(), Fault> {
        self.count_free(cache, layout);
        // SAFETY: the caller's promise.
        unsafe { self.give_back(cache, block, layout) }
    }

    /// Counts a free.
    pub(crate) fn count_free(&self, cache: Option<&Cache>, layout: Layout) {
        match (Slot::of_layout(layout), cache) {
            (Some(slot), Some(cache)) => cache.count_past(slot, false),
            (Some(slot), None) => self.ledger.count(slot, false),
            (None, _) => self.count_huge(cache, false, self.huge_len(layout.size()).unwrap_or(0)),
        }
    }

    /// Takes a block back whose free was counted, past the cache.
    ///
    /// # Safety
    /// `cache` is the calling thread's; the block is nobody's any more.
    #[inline(never)]
    pub(crate) unsafe fn give_back(
        &self,
        cache: Option<&Cache>,
        block: *mut u8,
        layout: Layout,
    ) -> Result<(), Fault> {
        match Slot::of_layout(layout) {
            Some(slot) if slot.is_cached() => self.store(self.part(cache), slot, &[block])?,
            Some(slot) => self.give_home(self.part(cache), slot, &[block])?,
            None => self.free_huge(cache, block, layout)?,
        }
        // SAFETY: the caller's promise.
        unsafe { self.after_give(cache) }
    }

    /// A block for `layout` of a part, past the cache, which only counts it.
    fn alloc_in(&self, part: usize, cache: Option<&Cache>, layout: Layout) -> Found {
        match Slot::of_layout(layout) {
            Some(slot) if slot.is_cached() => (self.alloc_loose(part, slot), usize::MAX),
            Some(slot) => self.alloc_span(cache, part, slot),
            None => self.alloc_huge(cache, part, layout),
        }
    }

    /// Takes a block of `layout` back, for which the fast path had no room.
    ///
    /// # Safety
    /// `cache` is the calling thread's; the block is nobody's any more.
    pub(crate) unsafe fn free(
        &self,
        cache: Option<&Cache>,
        block: *mut u8,
        layout: Layout,
    ) -> Result<(), Fault> {
        match (Slot::of(layout.size(), layout.align()), cache) {
            (Some(slot), Some(cache)) if slot.is_cached() => {
                // SAFETY: the caller's promise.
                unsafe {
                    self.flush(cache, slot, block)?;
                    self.after_give(Some(cache))
                }
            }
            // SAFETY: the caller's promise.
            _ => unsafe { self.free_past(cache, block, layout) },
        }
    }

    /// Tries, and where there is no memory, gives everything free back to the system and tries once more (E2).
    fn insist<T>(
        &self,
        cache: Option<&Cache>,
        mut try_once: impl FnMut() -> Result<T, Refusal>,
    ) -> Option<T> {
        if let Ok(found) = try_once() {
            return Some(found);
        }
        // SAFETY: the callers pass the calling thread's cache on. A fault in what is flushed shows at its next give.
        unsafe { self.purge_all(cache) };
        if self.granules.homes.is_several() {
            self.granules.look_again();
        }
        try_once().ok()
    }

    /// Half a slot of blocks from the magazine or the granule heap, of which the latest goes to the program.
    ///
    /// # Safety
    /// `cache` is the calling thread's.
    unsafe fn refill(&self, cache: &Cache, slot: Slot) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { self.tend(cache) };
        let part = self.part(Some(cache));
        let (cap, size) = (self.cap(cache, slot), self.granules.classes.bytes(slot));
        let want = cap.div_ceil(2);
        // The slot is empty, so its places are written before its word tells of them (T4).
        // SAFETY: the caller's promise; nothing else uses the places while a part of them is borrowed.
        let places = || unsafe { cache.slice(slot) }.get_mut(..want).unwrap_or_default();
        let mut got = self.depots.get(part).pop(slot, size, places());
        if got == 0 {
            self.reuse_kept();
            let home = Home { part, shard: cache.home.get() };
            let take = || self.granules.take(slot, home, places());
            got = self.insist(Some(cache), take).unwrap_or(0);
            // The lowest address on top, so that the program walks upwards.
            places().get_mut(..got).unwrap_or_default().reverse();
        }
        let Some(n) = got.checked_sub(1) else { return ptr::null_mut() };
        let block = places().get(n).copied().unwrap_or(ptr::null_mut());
        if cfg!(feature = "valgrind") {
            places().get_mut(n..).unwrap_or_default().fill(ptr::null_mut());
        }
        self.count_out(part, block, got);
        let State { allocs, .. } = cache.state(slot);
        cache.hold(slot, size, cap);
        cache.settle(
            slot,
            State { n, room: cap.max(n) - n, allocs: allocs + 1 },
            got.cast_signed(),
        );
        block
    }

    #[inline(never)]
    fn cap(&self, cache: &Cache, slot: Slot) -> usize {
        let size = self.granules.classes.bytes(slot);
        let limit = cap_limit(slot, size, self.knobs.slot_blocks());
        let budget = if self.sparse.load(Ordering::Relaxed) {
            CACHE_FLOOR / 4 + self.granules.taken() / SPARSE_SHARE
        } else {
            CACHE_FLOOR + self.granules.source.committed() / CACHE_SHARE
        };
        cache.grown_cap(slot, size, limit, budget.min(self.knobs.cache_bytes()))
    }

    /// Makes room for a block in its slot, or sends the older half of the slot to the magazine.
    ///
    /// # Safety
    /// `cache` is the calling thread's; the block is nobody's any more.
    unsafe fn flush(&self, cache: &Cache, slot: Slot, block: *mut u8) -> Result<(), Fault> {
        // SAFETY: the caller's promise.
        unsafe { self.tend(cache) };
        let part = self.part(Some(cache));
        let cap = self.cap(cache, slot);
        let State { n, allocs, .. } = cache.state(slot);
        if n >= FAR_CAP.min(cap) && self.granules.homes.is_several() {
            // SAFETY: the caller's promise.
            return unsafe { self.flush_apart(cache, (slot, cap), part, block) };
        }
        // SAFETY: the caller's promise.
        let items = unsafe { cache.slice(slot) };
        cache.hold(slot, self.granules.classes.bytes(slot), cap);
        if n < cap {
            if let Some(place) = items.get_mut(n) {
                *place = block;
            }
            cache.settle(slot, State { n: n + 1, room: cap - n - 1, allocs }, 0);
            return Ok(());
        }
        let go = n.div_ceil(2);
        // Not filled with anything first: that would take as long as all the rest.
        let mut batch = [const { MaybeUninit::uninit() }; GIVE_MAX / 2];
        let batch = batch.get_mut(..go).unwrap_or_default();
        batch.iter_mut().zip(&*items).for_each(|(to, &from)| _ = to.write(from));
        // SAFETY: every place was written, as the slot has more than `go` items.
        let batch = unsafe { slice::from_raw_parts(batch.as_ptr().cast(), batch.len()) };
        cache.unsettle(slot);
        items.copy_within(go..n, 0);
        let n = n - go;
        if let Some(place) = items.get_mut(n) {
            *place = block;
        }
        cache.settle(slot, State { n: n + 1, room: cap - n - 1, allocs }, -go.cast_signed());
        self.store(part, slot, batch)
    }

    /// Puts free blocks (at most 32) into the magazine, and what that has no room for into the granule heap; where there
    /// are several parts, each into that of its own, from a thread of part `near`.
    pub(crate) fn store(&self, near: usize, slot: Slot, blocks: &[*mut u8]) -> Result<(), Fault> {
        if self.granules.homes.is_several() {
            self.store_apart(near, slot, blocks)
        } else {
            self.store_in(0, slot, blocks)
        }
    }

    #[inline(never)]
    fn store_in(&self, part: usize, slot: Slot, blocks: &[*mut u8]) -> Result<(), Fault> {
        let Granules { meta, source, classes, .. } = &self.granules;
        let depot = self.depots.get(part);
        if self.sparse.load(Ordering::Relaxed) {
            // Each would hold a page of its own.
            return self.granules.give(slot, blocks);
        }
        let budget = self.knobs.retain() + source.committed() / KEPT_SHARE;
        loop {
            match depot.push(slot, classes.bytes(slot), blocks, budget) {
                Pushed::Kept => return Ok(()),
                Pushed::Full if depot.extend(slot, meta, source) => {}
                Pushed::Full | Pushed::Over => return self.spill(depot, slot, blocks),
            }
        }
    }

    #[inline(never)]
    fn spill(&self, depot: &Depot, slot: Slot, blocks: &[*mut u8]) -> Result<(), Fault> {
        let mut overflow = [ptr::null_mut(); GIVE_MAX];
        let size = self.granules.classes.bytes(slot);
        let n = depot.push_and_pop(slot, size, blocks, &mut overflow);
        self.granules.give(slot, overflow.get_mut(..n).unwrap_or_default())
    }

    /// Bytes of the blocks in all magazines.
    pub(crate) fn kept(&self) -> usize {
        self.depots.iter().fold(0, |sum, (_, depot)| sum + depot.kept())
    }

    /// Before the heap grows any further: what the magazines keep of other sizes may do as well.
    fn reuse_kept(&self) {
        let committed = self.granules.source.committed();
        let low = self.kept_at.load(Ordering::Relaxed);
        let grown = committed.saturating_sub(low) >= KEPT_STEP;
        if committed < low || grown {
            self.kept_at.store(committed, Ordering::Relaxed);
        }
        if grown && self.kept() >= KEPT_STEP {
            fault::survive(self.empty_magazines());
        }
        if grown && self.granules.homes.is_several() {
            // What is free on other nodes does not serve this growth, however much it may be needed there again.
            self.purge_over_budget(0);
        }
    }

    /// Looks after a slot that the thread doesn't use any more, now and then.
    ///
    /// # Safety
    /// `cache` is the calling thread's.
    unsafe fn tend(&self, cache: &Cache) {
        if let Some(slot) = cache.idle_slot() {
            // SAFETY: the caller's promise.
            fault::survive(unsafe { self.empty_slot(cache, slot, false) });
        }
    }

    /// Sends all blocks of one slot back: to the magazine, or `home` to the granule heap.
    ///
    /// # Safety
    /// `cache` is the calling thread's.
    pub(crate) unsafe fn empty_slot(
        &self,
        cache: &Cache,
        slot: Slot,
        home: bool,
    ) -> Result<(), Fault> {
        let mut batch = [ptr::null_mut(); 64];
        // SAFETY: the caller's promise.
        let n = unsafe { cache.empty(slot, self.granules.classes.bytes(slot), &mut batch) };
        for part in batch.get_mut(..n).unwrap_or_default().chunks(GIVE_MAX / 2) {
            let near = cache.part.get();
            if home { self.give_home(near, slot, part)? } else { self.store(near, slot, part)? }
        }
        Ok(())
    }

    /// One block past the cache, of a part.
    #[inline(never)]
    fn alloc_loose(&self, part: usize, slot: Slot) -> *mut u8 {
        let mut one = [ptr::null_mut()];
        let home = Home { part, shard: 0 };
        let depot = self.depots.get(part);
        let found = depot.pop(slot, self.granules.classes.bytes(slot), &mut one) > 0
            || self.insist(None, || self.granules.take(slot, home, &mut one)).is_some();
        let [block] = one;
        if found {
            self.count_out(part, block, 1);
            self.ledger.count(slot, true);
        }
        block
    }

    #[inline(never)]
    fn alloc_span(&self, cache: Option<&Cache>, part: usize, slot: Slot) -> Found {
        let home = Home { part, shard: cache.map_or(0, |c| c.home.get()) };
        self.reuse_kept();
        let Some(span) = self.insist(cache, || self.granules.take_span(slot, home)) else {
            return NOTHING;
        };
        self.count_out(part, span.0, 1);
        match cache {
            Some(cache) => cache.count_past(slot, true),
            None => self.ledger.count(slot, true),
        }
        span
    }

    fn count_huge(&self, cache: Option<&Cache>, alloc: bool, len: usize) {
        match cache {
            Some(cache) => cache.huge.count(alloc, len),
            None => self.ledger.count_huge(alloc, len),
        }
    }

    /// Whether a huge block is backed by huge pages: each that can hold one is. What is wasted is less than a huge page,
    /// behind what has been touched.
    fn wants_huge_pages(&self, len: usize) -> bool {
        len >= HUGE_PAGE && self.granules.huge_pages_from.get() != usize::MAX
    }

    #[inline(never)]
    fn alloc_huge(&self, cache: Option<&Cache>, part: usize, layout: Layout) -> Found {
        let possible = |_: &usize| layout.align() < ADDRESSES;
        let Some(len) = self.huge_len(layout.size()).filter(possible) else { return NOTHING };
        let (shape, huge_pages) = ((len, layout.align()), self.wants_huge_pages(len));
        let found = self.insist(cache, || {
            self.huge.alloc(shape, huge_pages, part, &self.granules).ok_or(Refusal::Kernel)
        });
        let Some((block, dirty)) = found else { return NOTHING };
        self.count_out(part, block.as_ptr(), 1);
        if dirty < len {
            self.granules.mapped(part, len - dirty);
        }
        self.count_huge(cache, true, len);
        (block.as_ptr(), dirty)
    }

    fn free_huge(
        &self,
        cache: Option<&Cache>,
        block: *mut u8,
        layout: Layout,
    ) -> Result<(), Fault> {
        let len = self.huge_len(layout.size()).unwrap_or(0);
        let Granules { source, refaults, .. } = &self.granules;
        let keep = self.retain_base(self.live()) + refaults.regret.load(Ordering::Relaxed);
        let part = if self.granules.homes.is_several() { self.huge.part_of(block) } else { None };
        let unmapped = match self.huge.free(block, len, keep, source) {
            Err(_) if nested::give_back(block, None).is_some() => return Ok(()),
            unmapped => unmapped?,
        };
        if let Some(part) = part {
            self.granules.traffic(part).came_back(part == self.part(cache), 1, len);
        }
        if unmapped > 0 {
            self.granules.unmapped(part.unwrap_or(0), unmapped, source.os().now_ms());
        }
        Ok(())
    }

    /// Makes a block of `old` one of `new` bytes where it stands or, for a huge one, where the kernel moves it. Null: it
    /// can't be, and the block is as it was.
    ///
    /// # Safety
    /// `cache` is the calling thread's; the block is the caller's, of layout `old`.
    pub(crate) unsafe fn resize(
        &self,
        cache: Option<&Cache>,
        block: *mut u8,
        old: Layout,
        new: usize,
    ) -> Result<*mut u8, Fault> {
        let Ok(to) = Layout::from_size_align(new, old.align()) else { return Ok(ptr::null_mut()) };
        if nested::has(block) {
            return Ok(ptr::null_mut());
        }
        match (Slot::of_layout(old), Slot::of_layout(to)) {
            (Some(from), Some(to)) if from == to => Ok(block),
            (Some(from), Some(to)) => {
                // A small block is copied in less time than its neighbours' bits take to look up.
                let worth = old.size().min(new) >= 2048 || to.size() > CACHED_MAX;
                if !worth || !self.granules.resize(block, from, to)? {
                    return Ok(ptr::null_mut());
                }
                match cache {
                    Some(cache) => cache.count_move(from, to),
                    None => {
                        self.ledger.count(from, false);
                        self.ledger.count(to, true);
                    }
                }
                Ok(block)
            }
            (None, None) => self.resize_huge(cache, block, old, new),
            _ => Ok(ptr::null_mut()),
        }
    }

    #[inline(never)]
    fn resize_huge(
        &self,
        cache: Option<&Cache>,
        block: *mut u8,
        old: Layout,
        new: usize,
    ) -> Result<*mut u8, Fault> {
        let (Some(from), Some(to)) = (self.huge_len(old.size()), self.huge_len(new)) else {
            return Ok(ptr::null_mut());
        };
        if from == to {
            return Ok(block);
        }
        if to > from && self.granules.part_for(self.part(cache), to - from).is_none() {
            return Ok(ptr::null_mut());
        }
        let source = &self.granules.source;
        let how = (old.align(), self.wants_huge_pages(to));
        let mut moved = self.huge.resize(block, (from, to), how, source)?;
        if moved.is_none() {
            // SAFETY: the cache is the calling thread's, from `resize`.
            unsafe { self.purge_all(cache) };
            moved = self.huge.resize(block, (from, to), how, source)?;
        }
        let Some(moved) = moved else { return Ok(ptr::null_mut()) };
        self.count_huge(cache, false, from);
        self.count_huge(cache, true, to);
        if source.take_crossing() {
            // SAFETY: the cache is the calling thread's, from `resize`.
            unsafe { self.soft_limit_crossed(cache) };
        }
        Ok(moved.as_ptr())
    }

    /// Purges what can be purged, then tells the program.
    ///
    /// # Safety
    /// `cache` is the calling thread's.
    #[cold]
    unsafe fn soft_limit_crossed(&self, cache: Option<&Cache>) {
        // SAFETY: the caller's promise.
        unsafe { self.purge_all(cache) };
        let callback = self.on_soft_limit.load(Ordering::Acquire);
        if !callback.is_null() {
            // SAFETY: only `fn()`s are stored there.
            let callback: fn() = unsafe { core::mem::transmute(callback) };
            #[cfg(all(feature = "signals", not(loom)))]
            crate::headed::outside(cache, callback);
            #[cfg(not(all(feature = "signals", not(loom))))]
            callback();
        }
    }

    /// Enters every lock, in the order of the layers, and stays inside: for `fork`.
    pub(crate) fn hold(&self) {
        // Before the purger's: whoever walks over the threads may allocate, and so purge.
        self.registry.hold();
        self.budget.hold();
        self.depots.hold();
        self.depots.iter().for_each(|(_, depot)| depot.hold());
        self.granules.hold();
        self.huge.hold();
    }

    /// Leaves them again.
    ///
    /// # Safety
    /// After [`hold`](Self::hold), on the same thread or its copy.
    pub(crate) unsafe fn let_go(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            self.huge.let_go();
            self.granules.let_go();
            self.depots.iter().for_each(|(_, depot)| depot.let_go());
            self.depots.let_go();
            self.budget.let_go();
            self.registry.let_go();
        }
    }

    /// Usable bytes of a block of this layout.
    pub(crate) fn usable(&self, layout: Layout) -> usize {
        match Slot::of_layout(layout) {
            Some(slot) => self.granules.classes.bytes(slot),
            None => self.huge_len(layout.size()).unwrap_or(layout.size()),
        }
    }
}

const _: () = assert!(SMALL_CAP.div_ceil(2) * 2 <= GIVE_MAX && GRANULE == 16);

mod apart;

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
