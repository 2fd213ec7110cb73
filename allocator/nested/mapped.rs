//! Blocks of handlers that are too large for the region: a mapping each.
//! Owns: `Mapped`. Called by: `nested`.
//!
//! | `at` | meaning | to |
//! |---|---|---|
//! | 0 | the place is free | `CHANGING`, by one thread |
//! | `CHANGING` | that thread maps or unmaps | the block's address; 0 |
//! | an address | a block begins there | `CHANGING`, by whoever gives it back |

use crate::class::GRANULE;
use core::ptr::{self, NonNull};
use nearheap_numa::sync::{AtomicUsize, Ordering};
use nearheap_numa::{Os, PageSource};

/// Blocks that are live at a time.
const PLACES: usize = 256;
const CHANGING: usize = 1;
/// Of a length: the block was there before the mode was settled.
const EARLY: usize = 1;

#[derive(Debug)]
struct Place {
    at: AtomicUsize,
    /// Whole OS pages, and `EARLY`.
    len: AtomicUsize,
}

/// A block that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) at: usize,
    pub(super) len: usize,
    /// It has no header, whatever the mode is.
    pub(super) early: bool,
}

/// Large blocks for handlers.
#[derive(Debug)]
pub(super) struct Mapped {
    places: [Place; PLACES],
    /// Places that were ever used.
    used: AtomicUsize,
}

impl Mapped {
    pub(super) const fn new() -> Self {
        Self {
            places: [const { Place { at: AtomicUsize::new(0), len: AtomicUsize::new(0) } }; PLACES],
            used: AtomicUsize::new(0),
        }
    }

    /// A block of `len` bytes (whole pages), all zero, at a multiple of `align`.
    pub(super) fn take<O: Os>(
        &self,
        (len, align): (usize, usize),
        early: bool,
        source: &PageSource<O>,
    ) -> Option<NonNull<u8>> {
        let claims = |(_, place): &(usize, &Place)| {
            place.at.compare_exchange(0, CHANGING, Ordering::Acquire, Ordering::Relaxed).is_ok()
        };
        let (i, place) = self.places.iter().enumerate().find(claims)?;
        self.used.fetch_max(i + 1, Ordering::Relaxed);
        let may = source.commit(len);
        let at = if may { source.map(len, align) } else { None };
        if may && at.is_none() {
            source.uncommit(len);
        }
        place.len.store(len | if early { EARLY } else { 0 }, Ordering::Relaxed);
        // Pairs with the acquire of `find`.
        place.at.store(at.map_or(0, |at| at.as_ptr().expose_provenance()), Ordering::Release);
        at
    }

    fn place(&self, address: usize) -> Option<(&Place, Found)> {
        self.places.iter().take(self.used.load(Ordering::Relaxed)).find_map(|place| {
            let at = place.at.load(Ordering::Acquire);
            let len = place.len.load(Ordering::Relaxed);
            let found = Found { at, len: len & !EARLY, early: len & EARLY != 0 };
            (at > CHANGING && address.wrapping_sub(at) < found.len).then_some((place, found))
        })
    }

    /// The block that an address is in.
    pub(super) fn find(&self, address: usize) -> Option<Found> {
        self.place(address).map(|(_, found)| found)
    }

    /// Gives the block at an address back. `false`: there is none.
    pub(super) fn give<O: Os>(&self, address: usize, source: &PageSource<O>) -> bool {
        let Some((place, Found { at, len, .. })) = self.place(address) else { return false };
        if at != address
            || place.at.compare_exchange(at, CHANGING, Ordering::AcqRel, Ordering::Relaxed).is_err()
        {
            return false;
        }
        if let Some(at) = NonNull::new(ptr::with_exposed_provenance_mut(at)) {
            // SAFETY: mapped by `take`; whoever changed the place's state is alone with it. Where the kernel refuses, the
            // pages go back, and the addresses are lost.
            unsafe {
                if !source.unmap(at, len, len) {
                    source.purge(at, len);
                }
            }
        }
        place.at.store(0, Ordering::Release);
        true
    }
}

const _: () = assert!(EARLY < GRANULE && CHANGING < GRANULE);
