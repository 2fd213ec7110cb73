//! Metadata memory: what the heap needs for itself, apart from the blocks.
//! Owns: `Meta`. Called by: whoever makes a segment, a thread cache or a table larger; never under another lock but
//! the registry's.
//!
//! M1: metadata memory is never unmapped and keeps its type, so a stale pointer to it is harmless to read.
//! M2: fresh metadata is zero.

use core::ptr::{self, NonNull};
use nearheap_numa::lock::Lock;
use nearheap_numa::sync::{AtomicUsize, Ordering};
use nearheap_numa::{Os, PageSource, const_unless_loom};

/// Metadata is mapped this much at a time.
const STRIDE: usize = 256 << 10;

/// The free part of the last mapping.
#[derive(Debug)]
struct Bump {
    at: *mut u8,
    left: usize,
}

// SAFETY: the memory behind the pointer is nobody's until `alloc` hands it out.
unsafe impl Send for Bump {}

/// Metadata memory.
#[derive(Debug)]
pub(crate) struct Meta {
    bump: Lock<Bump>,
    bytes: AtomicUsize,
}

impl Meta {
    const_unless_loom! {
        pub(crate) fn new() -> Self {
            Self {
                bump: Lock::new(Bump { at: ptr::null_mut(), left: 0 }),
                bytes: AtomicUsize::new(0),
            }
        }
    }

    /// The lock, for `fork`.
    pub(crate) fn hold(&self) {
        self.bump.hold();
    }

    /// # Safety
    /// After [`hold`](Self::hold), on the same thread or its copy.
    pub(crate) unsafe fn let_go(&self) {
        // SAFETY: the caller's promise.
        unsafe { self.bump.let_go() };
    }

    #[cfg(test)]
    #[cfg(not(loom))]
    pub(crate) fn is_held(&self) -> bool {
        crate::testing::is_held(&self.bump)
    }

    /// Bytes handed out.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Zeroed memory for a `T`.
    pub(crate) fn alloc<T, O: Os>(&self, source: &PageSource<O>) -> Option<NonNull<T>> {
        Some(self.bytes_of(source, size_of::<T>(), align_of::<T>().max(64))?.cast())
    }

    /// Zeroed memory for a `T` in OS pages of its own, so that it can be purged: [`pages_of`] bytes.
    pub(crate) fn alloc_pages<T, O: Os>(&self, source: &PageSource<O>) -> Option<NonNull<T>> {
        Some(self.bytes_of(source, pages_of::<T, O>(source), source.page_size())?.cast())
    }

    /// Zeroed memory of `size` bytes at a multiple of `align`, at most an OS page.
    #[inline(never)]
    pub(crate) fn bytes_of<O: Os>(
        &self,
        source: &PageSource<O>,
        size: usize,
        align: usize,
    ) -> Option<NonNull<u8>> {
        if !source.commit(size) {
            return None;
        }
        let found = if size > STRIDE / 2 {
            source.in_pages(size).and_then(|size| source.map(size, align))
        } else {
            self.carve(source, size, align)
        };
        if found.is_some() {
            self.bytes.fetch_add(size, Ordering::Relaxed);
        } else {
            source.uncommit(size);
        }
        found
    }

    fn carve<O: Os>(
        &self,
        source: &PageSource<O>,
        size: usize,
        align: usize,
    ) -> Option<NonNull<u8>> {
        let mut bump = self.bump.lock();
        let mut skip = (bump.at as usize).wrapping_neg() & (align - 1);
        if bump.left < skip + size {
            let stride = STRIDE.max(source.page_size());
            *bump = Bump { at: source.map(stride, align)?.as_ptr(), left: stride };
            skip = 0;
        }
        // SAFETY: `skip + size` bytes are left of the mapping.
        let at = unsafe { bump.at.add(skip) };
        // SAFETY: as above; the end of the mapping at most.
        bump.at = unsafe { at.add(size) };
        bump.left -= skip + size;
        NonNull::new(at)
    }
}

/// Bytes of a `T` in whole OS pages.
pub(crate) fn pages_of<T, O: Os>(source: &PageSource<O>) -> usize {
    source.in_pages(size_of::<T>()).unwrap_or(0)
}
