//! Parts: what the heap has once for every NUMA node that it uses; one, on a machine with one node.
//! Owns: `PerPart`, `Part`, `Traffic`. Called by: `granule` (a part's shards), `heap` (its magazines), `snapshot`.
//!
//! I1: the first part is inside the static; the others are zeroed metadata, made when somebody first asks for them, and
//!     live for ever (M1). All zeros is a part in which nothing is.
//! I2: a part that was not made has no segment, so no shard is asked for in it; [`PerPart::ensure`] says what serves.

use crate::meta::Meta;
use crate::shard::Shard;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use crossbeam_utils::CachePadded;
use nearheap_numa::lock::Lock;
use nearheap_numa::nodes::NODES_MOST;
use nearheap_numa::{Os, PageSource, const_unless_loom, sync};

/// The part of memory that the process's policy spreads over nodes; those before have the numbers of their nodes.
pub(crate) const SPREAD: usize = NODES_MOST;
/// The part of memory that `NodeHeap` spreads over all nodes.
pub(crate) const TURNS: usize = NODES_MOST + 1;
/// Parts that there can be. Models have one: to loom, zeros are no lock.
pub(crate) const PARTS: usize = if cfg!(loom) { 1 } else { NODES_MOST + 2 };
/// Shards that a part can have; two are enough for every interleaving that a model can have.
pub(crate) const SHARDS: usize = if cfg!(loom) { 2 } else { 16 };

const _: () = assert!(PARTS * SHARDS <= u16::MAX as usize, "a segment knows its shard in 16 bits");

/// One of each part.
#[derive(Debug)]
pub(crate) struct PerPart<T> {
    first: T,
    more: [AtomicPtr<T>; PARTS - 1],
    /// Held while a part is added, so that a fork finds as many as it leaves.
    adding: Lock<()>,
}

impl<T> PerPart<T> {
    const_unless_loom! {
        /// With the first part alone.
        pub(crate) fn new(first: T) -> Self {
            let none = [const { AtomicPtr::new(ptr::null_mut()) }; PARTS - 1];
            Self { first, more: none, adding: Lock::new(()) }
        }
    }

    /// That of a part, if it was made.
    #[inline]
    pub(crate) fn find(&self, part: usize) -> Option<&T> {
        let Some(i) = part.checked_sub(1) else { return Some(&self.first) };
        let at = self.more.get(i)?.load(Ordering::Acquire);
        // SAFETY: null, or metadata that lives for ever (I1); the acquire pairs with the store of `make`.
        unsafe { at.as_ref() }
    }

    /// Whether a part was made.
    #[inline]
    pub(crate) fn has(&self, part: usize) -> bool {
        self.find(part).is_some()
    }

    /// That of a part, or of the first where it was not made.
    #[inline]
    pub(crate) fn get(&self, part: usize) -> &T {
        self.find(part).unwrap_or(&self.first)
    }

    /// Those that were made, each with its number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        let mut from = 0;
        core::iter::from_fn(move || {
            let part = self.next(from)?;
            from = part + 1;
            Some((part, self.get(part)))
        })
    }

    #[inline(never)] // Once in the program instead of once in every loop.
    fn next(&self, from: usize) -> Option<usize> {
        (from..PARTS).find(|&part| self.has(part))
    }

    /// Makes a part if it isn't there. The number of it, or of the first where there is no memory for it.
    #[inline]
    pub(crate) fn ensure<O: Os>(&self, part: usize, meta: &Meta, source: &PageSource<O>) -> usize {
        if self.has(part) { part } else { self.make(part, meta, source) }
    }

    #[cold]
    #[inline(never)]
    fn make<O: Os>(&self, part: usize, meta: &Meta, source: &PageSource<O>) -> usize {
        let place = part.checked_sub(1).and_then(|i| self.more.get(i));
        let (Some(place), Some(fresh)) = (place, meta.alloc::<T, O>(source)) else { return 0 };
        let _adding = self.adding.lock();
        // Whoever comes second leaves untouched metadata behind, once a part.
        if place.load(Ordering::Relaxed).is_null() {
            place.store(fresh.as_ptr(), Ordering::Release);
        }
        part
    }

    /// Lets nobody add a part: for `fork`, before the locks of the parts are entered.
    pub(crate) fn hold(&self) {
        self.adding.hold();
    }

    /// # Safety
    /// After [`hold`](Self::hold), on the same thread or its copy.
    pub(crate) unsafe fn let_go(&self) {
        // SAFETY: the caller's promise.
        unsafe { self.adding.let_go() };
    }
}

/// One shard, and what others may read of it without its lock.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) shard: Lock<Shard>,
    /// Bytes of blocks that are out: with the program, in caches, in magazines. Written under the lock.
    pub(crate) taken: sync::AtomicUsize,
}

/// What the granule heap has of each part.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) shards: [CachePadded<Place>; SHARDS],
    pub(crate) traffic: Traffic,
}

impl Part {
    const_unless_loom! {
        pub(crate) fn new() -> Self {
            Self {
                shards: crate::repeat!(CachePadded::new(Place {
                    shard: Lock::new(Shard::new()),
                    taken: sync::AtomicUsize::new(0),
                })),
                traffic: Traffic::new(),
            }
        }
    }
}

/// What went through a part, counted where there are several, and what is known of its node's free memory.
#[derive(Debug)]
pub(crate) struct Traffic {
    /// Blocks that left for a thread or its cache.
    pub(crate) out: AtomicU64,
    /// Blocks that came back from threads of this part, and from those of others: how many, and their bytes.
    pub(crate) back: AtomicU64,
    pub(crate) far: AtomicU64,
    pub(crate) far_bytes: AtomicU64,
    /// Times that the node was full, and another part served.
    pub(crate) spills: AtomicU64,
    /// Times that the kernel refused to put memory on the node.
    pub(crate) refused_binds: AtomicU64,
    /// Mappings that were put on the node.
    pub(crate) turns: AtomicUsize,
    /// Bytes that were unmapped, and not missed so far.
    pub(crate) gone: AtomicUsize,
    /// Until when the node's free memory is known, and how many bytes of it may be mapped without looking again.
    pub(crate) known_until_ms: AtomicU64,
    pub(crate) room: AtomicUsize,
}

impl Traffic {
    const fn new() -> Self {
        Self {
            out: AtomicU64::new(0),
            back: AtomicU64::new(0),
            far: AtomicU64::new(0),
            far_bytes: AtomicU64::new(0),
            spills: AtomicU64::new(0),
            refused_binds: AtomicU64::new(0),
            turns: AtomicUsize::new(0),
            gone: AtomicUsize::new(0),
            known_until_ms: AtomicU64::new(0),
            room: AtomicUsize::new(0),
        }
    }

    /// Counts blocks that came back from a thread of this part, or from one of another.
    pub(crate) fn came_back(&self, near: bool, blocks: usize, bytes: usize) {
        if near {
            self.back.fetch_add(blocks as u64, Ordering::Relaxed);
        } else {
            self.far.fetch_add(blocks as u64, Ordering::Relaxed);
            self.far_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }
}
