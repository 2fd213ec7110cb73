//! The registry: every thread's cache, and the counts of threads that have ended.
//! Owns: `Registry`, `Ledger`. Called by: a thread's first and last operation, `snapshot`, `fork`.
//!
//! Y1: a cache is in the list of the living from its thread's first operation to its last, else in the list of the free.
//! Y2: counts of a cache are added to the ledger when it leaves the living, under the registry's lock, so a snapshot
//!     under that lock counts everything once.

use crate::cache::{Cache, HugeCounts};
use crate::class::{SLOTS, Slot};
use crate::fault::Fault;
use crate::heap::Heap;
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};
use nearheap_numa::{Os, os};

/// The lists of caches.
#[derive(Debug)]
pub(crate) struct Registry {
    living: *const Cache,
    free: *const Cache,
    /// Threads that are living.
    pub(crate) threads: usize,
    /// Threads that ever were: the next one's home.
    started: usize,
}

// SAFETY: caches are metadata that lives for ever; the lists are used under the registry's lock only.
unsafe impl Send for Registry {}

/// Counts of threads that have ended, and of operations of threads without a cache.
#[derive(Debug)]
pub(crate) struct Ledger {
    allocs: [AtomicU64; SLOTS],
    frees: [AtomicU64; SLOTS],
    pub(crate) huge: HugeCounts,
}

impl Ledger {
    pub(crate) const fn new() -> Self {
        Self {
            allocs: [const { AtomicU64::new(0) }; SLOTS],
            frees: [const { AtomicU64::new(0) }; SLOTS],
            huge: HugeCounts {
                allocs: AtomicU64::new(0),
                frees: AtomicU64::new(0),
                allocated: AtomicU64::new(0),
                freed: AtomicU64::new(0),
            },
        }
    }

    fn add(&self, slot: Slot, allocs: u64, frees: u64) {
        let i = slot.index();
        if let (Some(a), Some(f)) = (self.allocs.get(i), self.frees.get(i)) {
            a.fetch_add(allocs, Ordering::Relaxed);
            f.fetch_add(frees, Ordering::Relaxed);
        }
    }

    /// Counts one operation of a thread without a cache.
    pub(crate) fn count(&self, slot: Slot, alloc: bool) {
        self.add(slot, u64::from(alloc), u64::from(!alloc));
    }

    /// Counts a block that changed its slot where it stands, for a thread without a cache.
    #[cfg(all(feature = "c-interface", not(loom)))]
    pub(crate) fn count_move(&self, from: Slot, to: Slot) {
        self.count(from, false);
        self.count(to, true);
    }

    /// Counts one operation on a huge block of a thread without a cache.
    pub(crate) fn count_huge(&self, alloc: bool, bytes: usize) {
        let h = &self.huge;
        let (count, sum) = if alloc { (&h.allocs, &h.allocated) } else { (&h.frees, &h.freed) };
        count.fetch_add(1, Ordering::Relaxed);
        sum.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn take_over(&self, cache: &Cache) {
        for slot in Slot::all() {
            let counts = cache.counts(slot);
            self.add(slot, counts.allocs, counts.frees);
        }
        let (to, from) = (&self.huge, &cache.huge);
        for (to, from) in [
            (&to.allocs, &from.allocs),
            (&to.frees, &from.frees),
            (&to.allocated, &from.allocated),
            (&to.freed, &from.freed),
        ] {
            to.fetch_add(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Allocations and frees of a slot.
    pub(crate) fn counts(&self, slot: Slot) -> (u64, u64) {
        let of =
            |a: &[AtomicU64; SLOTS]| a.get(slot.index()).map_or(0, |n| n.load(Ordering::Relaxed));
        (of(&self.allocs), of(&self.frees))
    }
}

impl Registry {
    pub(crate) const fn new() -> Self {
        Self { living: ptr::null(), free: ptr::null(), threads: 0, started: 0 }
    }

    /// The caches of the living.
    pub(crate) fn living(&self) -> impl Iterator<Item = &Cache> {
        let mut next = self.living;
        core::iter::from_fn(move || {
            // SAFETY: null, or a cache in the list, which changes under the registry's lock only.
            let cache = unsafe { next.as_ref()? };
            next = cache.next.get();
            Some(cache)
        })
    }

    fn enlist(&mut self, cache: &Cache) {
        cache.next.set(self.living);
        cache.prev.set(ptr::null());
        // SAFETY: as in `living`.
        if let Some(first) = unsafe { self.living.as_ref() } {
            first.prev.set(cache);
        }
        self.living = cache;
        self.threads += 1;
    }

    /// Takes a cache of a thread of the same part off the list of the free: its memory is near.
    fn reuse(&mut self, part: usize) -> Option<*const Cache> {
        let (mut before, mut at) = (None, self.free);
        // SAFETY: as in `living`.
        while let Some(cache) = unsafe { at.as_ref() } {
            let next = cache.next.get();
            if cache.part.get() == part {
                match before {
                    None => self.free = next,
                    Some::<&Cache>(before) => before.next.set(next),
                }
                return Some(at);
            }
            (before, at) = (Some(cache), next);
        }
        None
    }

    fn delist(&mut self, cache: &Cache) {
        // SAFETY: as in `living`.
        let (prev, next) = unsafe { (cache.prev.get().as_ref(), cache.next.get().as_ref()) };
        if let Some(next) = next {
            next.prev.set(cache.prev.get());
        }
        match prev {
            Some(prev) => prev.next.set(cache.next.get()),
            None => self.living = cache.next.get(),
        }
        self.threads -= 1;
        cache.next.set(self.free);
        self.free = cache;
    }
}

impl<O: Os> Heap<O> {
    /// A cache for the calling thread; `None` where there is no memory for one.
    pub(crate) fn enroll(&self) -> Option<&Cache> {
        let part = self.part(None);
        let mut registry = self.registry.lock();
        // SAFETY: a cache from the free list, which was reset.
        let cache = if let Some(cache) = registry.reuse(part).and_then(|c| unsafe { c.as_ref() }) {
            cache
        } else {
            drop(registry);
            let fresh = self.granules.meta.alloc_pages::<Cache, O>(&self.granules.source)?;
            registry = self.registry.lock();
            // SAFETY: zeroed metadata of this thread's alone, which lives for ever (M1).
            unsafe { Cache::in_zeros(fresh) }
        };
        cache.tid.store(os::tid(), Ordering::Relaxed);
        cache.part.set(part);
        cache.home.set(registry.started);
        registry.started += 1;
        registry.enlist(cache);
        Some(cache)
    }

    /// Takes everything back from the cache of a thread that ends.
    ///
    /// # Safety
    /// `cache` is the calling thread's, or that of a thread that doesn't exist any more; nobody uses it after.
    pub(crate) unsafe fn dismiss(&self, cache: &Cache) -> Result<(), Fault> {
        // SAFETY: the caller's promise.
        unsafe { self.empty_cache(cache, false)? };
        let mut registry = self.registry.lock();
        self.ledger.take_over(cache);
        cache.reset();
        registry.delist(cache);
        Ok(())
    }
}
