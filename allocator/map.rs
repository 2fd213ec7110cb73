//! The segment map: from an address to the segment it is in.
//! Owns: `SegmentMap`. Called by: whoever is handed a block. Readers take no lock.
//!
//! ```text
//! address   47 ......... 35 | 34 ......... 22 | 21 .......... 0
//!           root (13 bits)  | leaf (13 bits)  | in the segment
//! ```
//!
//! N1: an entry leads to a segment exactly while that is published. It is written under the segment's shard's lock or
//!     before anyone else knows the segment; the release store pairs with the acquire load of `find`.
//! N2: what an entry led to stays readable for ever (M1), so a reader that lost a race sees a stale segment, takes its
//!     shard's lock, and asks the map again.

use crate::meta::Meta;
use crate::segment::{SEGMENT_SHIFT, Segment};
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};
use nearheap_numa::{Os, PageSource};

const LEAF_LOG: u32 = 13;
const ENTRIES: usize = 1 << LEAF_LOG;
/// Addresses have 48 bits where this runs; larger ones are never handed out unless asked for.
const ADDRESS_LOG: u32 = SEGMENT_SHIFT + 2 * LEAF_LOG;

const _: () = assert!(ADDRESS_LOG == 48);

type Leaf = [AtomicPtr<Segment>; ENTRIES];

/// From addresses to segments.
#[derive(Debug)]
pub(crate) struct SegmentMap {
    root: [AtomicPtr<Leaf>; ENTRIES],
}

impl SegmentMap {
    pub(crate) const fn new() -> Self {
        Self { root: [const { AtomicPtr::new(ptr::null_mut()) }; ENTRIES] }
    }

    /// The segment that an address is in; null where it is none of ours.
    #[inline]
    pub(crate) fn find(&self, address: usize) -> *mut Segment {
        self.entry(address).map_or(ptr::null_mut(), |e| e.load(Ordering::Acquire))
    }

    #[inline]
    fn entry(&self, address: usize) -> Option<&AtomicPtr<Segment>> {
        let leaf = self.root.get(address >> (SEGMENT_SHIFT + LEAF_LOG))?.load(Ordering::Acquire);
        // SAFETY: a leaf is metadata, which lives for ever (M1), and was zero, i.e. valid, when it was published.
        let leaf = unsafe { leaf.as_ref()? };
        leaf.get((address >> SEGMENT_SHIFT) % ENTRIES)
    }

    /// Publishes a segment. `false`: there is no memory for the map.
    pub(crate) fn publish<O: Os>(
        &self,
        address: usize,
        segment: *mut Segment,
        meta: &Meta,
        source: &PageSource<O>,
    ) -> bool {
        let Some(root) = self.root.get(address >> (SEGMENT_SHIFT + LEAF_LOG)) else { return false };
        if root.load(Ordering::Acquire).is_null() {
            let Some(leaf) = meta.alloc_pages::<Leaf, O>(source) else { return false };
            // Whoever loses this race leaves 64 KiB of untouched metadata behind, once in 32 GiB of addresses at most.
            let _ = root.compare_exchange(
                ptr::null_mut(),
                leaf.as_ptr(),
                Ordering::AcqRel,
                Ordering::Acquire,
            );
        }
        let Some(entry) = self.entry(address) else { return false };
        entry.store(segment, Ordering::Release);
        true
    }

    /// Takes a segment out of the map.
    pub(crate) fn withdraw(&self, address: usize) {
        if let Some(entry) = self.entry(address) {
            entry.store(ptr::null_mut(), Ordering::Release);
        }
    }
}
