//! `NodeHeap` as an allocator of collections, by the traits of allocator-api2.
//! Called by: collections that take an allocator, when the feature `allocator-api2` is on.

use super::NodeHeap;
use allocator_api2::alloc::{AllocError, Allocator};
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;

/// The block as the trait has it: of the size that was asked for.
fn block(at: *mut u8, size: usize) -> Result<NonNull<[u8]>, AllocError> {
    let at = NonNull::new(at).ok_or(AllocError)?;
    Ok(NonNull::slice_from_raw_parts(at, size))
}

impl NodeHeap {
    unsafe fn change(
        &self,
        at: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        if old.align() == new.align() {
            // SAFETY: the caller's block, of layout `old`.
            return block(unsafe { self.realloc(at.as_ptr(), old, new.size()) }, new.size());
        }
        let fresh = self.allocate(new)?;
        // SAFETY: both blocks are as large as what is copied, and two; the old one is the caller's no more.
        unsafe {
            let size = old.size().min(new.size());
            fresh.cast::<u8>().copy_from_nonoverlapping(at, size);
            self.deallocate(at, old);
        }
        Ok(fresh)
    }
}

// SAFETY: blocks are the heap's: they stay where they are until they are freed, and every copy of a `NodeHeap` frees what
// any other allocated.
unsafe impl Allocator for NodeHeap {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the heap serves a size of 0 too.
        block(unsafe { self.alloc(layout) }, layout.size())
    }

    fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: as above.
        block(unsafe { self.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn deallocate(&self, at: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { self.dealloc(at.as_ptr(), layout) }
    }

    unsafe fn grow(
        &self,
        at: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's contract.
        unsafe { self.change(at, old, new) }
    }

    unsafe fn grow_zeroed(
        &self,
        at: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's contract; the new block has the bytes behind the old size.
        unsafe {
            let grown = self.change(at, old, new)?;
            let rest = grown.cast::<u8>().add(old.size());
            rest.write_bytes(0, new.size() - old.size());
            Ok(grown)
        }
    }

    unsafe fn shrink(
        &self,
        at: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's contract.
        unsafe { self.change(at, old, new) }
    }
}
