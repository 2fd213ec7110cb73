//! In place of `hardened` where the feature is off: nothing of it is in the program.
//! Owns: `Wall` and `Dice`, which are nothing. Called by: those who call `hardened`.

use crate::chunk::Run;
use crate::class::Slot;
use core::alloc::Layout;
use core::ptr::NonNull;
use nearheap_numa::{Os, PageSource};

#[cfg(all(feature = "c-interface", not(loom)))]
pub(crate) const FREES: bool = false;

/// Nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wall;

impl Wall {
    pub(crate) const NONE: Self = Self;

    #[inline(always)]
    pub(crate) fn room<O: Os>(_: &PageSource<O>) -> usize {
        0
    }

    /// # Safety
    /// None is needed.
    #[inline(always)]
    pub(crate) unsafe fn put_in_room<O: Os>(_: usize, _: &PageSource<O>) -> Self {
        Self
    }

    #[inline(always)]
    pub(crate) fn put<O: Os>(_: usize, _: &PageSource<O>) -> Self {
        Self
    }

    /// # Safety
    /// As for [`PageSource::remap`].
    #[inline(always)]
    pub(crate) unsafe fn remap<O: Os>(
        at: NonNull<u8>,
        sizes: (usize, usize),
        align: usize,
        source: &PageSource<O>,
    ) -> Option<(NonNull<u8>, Self)> {
        // SAFETY: the caller's promise.
        unsafe { source.remap(at, sizes, align) }.map(|to| (to, Self))
    }

    /// # Safety
    /// None is needed.
    #[allow(clippy::unused_self, reason = "as in `hardened`")]
    #[inline(always)]
    pub(crate) unsafe fn lift<O: Os>(&mut self, _: usize, _: &PageSource<O>) {}
}

/// Nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Dice;

#[allow(clippy::unused_self, reason = "as in `hardened`")]
impl Dice {
    pub(crate) const fn new() -> Self {
        Self
    }

    #[inline(always)]
    pub(crate) fn seeded<O: Os>(self, _: &O) -> Self {
        self
    }

    #[inline(always)]
    pub(crate) fn place(&mut self, run: Run, _: usize, _: usize) -> Run {
        run
    }

    #[inline(always)]
    pub(crate) fn shuffle(&mut self, _: &mut [*mut u8]) {}
}

#[inline(always)]
pub(crate) fn out(block: *mut u8) -> *mut u8 {
    block
}

#[inline(always)]
pub(crate) fn back(_: *mut u8, _: Slot) {}

#[inline(always)]
pub(crate) fn back_as(_: *mut u8, _: Layout) {}

#[inline(always)]
pub(crate) fn stands(_: *mut u8, _: Layout) {}
