//! In place of `extents` where there is no C interface: nobody asks where blocks end.
//! Owns: `Extents`, which is nothing. Called by: `granule`.

use crate::meta::Meta;
use nearheap_numa::{Os, PageSource};

/// Nothing.
#[derive(Debug)]
pub(crate) struct Extents;

#[allow(clippy::unused_self, reason = "as in `extents`")]
impl Extents {
    pub(crate) const fn new() -> Self {
        Self
    }

    #[inline(always)]
    pub(crate) fn open<O: Os>(&self, _: usize, _: &Meta, _: &PageSource<O>) -> bool {
        true
    }

    #[inline(always)]
    pub(crate) fn close<O: Os>(&self, _: usize, _: &PageSource<O>) {}

    #[inline(always)]
    pub(crate) fn mark(&self, _: &[*mut u8], _: usize) {}

    #[inline(always)]
    pub(crate) fn unmark(&self, _: &[*mut u8], _: usize) {}

    #[inline(always)]
    pub(crate) fn resize(&self, _: *mut u8, _: usize, _: usize) {}

    #[cfg(test)]
    pub(crate) fn activate(&self) {}

    #[cfg(test)]
    pub(crate) fn are_exact(&self, _: impl Iterator<Item = (usize, usize)>) -> bool {
        true
    }

    #[cfg(test)]
    pub(crate) fn purged_bytes<O: Os>(&self, _: &PageSource<O>) -> usize {
        0
    }
}
