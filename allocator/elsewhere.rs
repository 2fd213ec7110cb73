//! Systems that are no Unix: `NearHeap` is the system's allocator under another name, so that programs build everywhere.
//! Called by: the program.

use crate::config::Config;
use core::alloc::{GlobalAlloc, Layout};
use nearheap_stats::Snapshot;
use std::alloc::System;

/// The allocator, as a value for `#[global_allocator]`: on this system that of the system.
#[derive(Clone, Copy, Debug)]
pub struct NearHeap;

impl NearHeap {
    /// The system's allocator.
    pub const fn new() -> Self {
        Self
    }

    /// The system's allocator; the options have no effect.
    pub const fn with(_: Config) -> Self {
        Self
    }

    /// Bytes that a block of this layout has for certain.
    pub fn usable_size(layout: Layout) -> usize {
        layout.size()
    }
}

impl Default for NearHeap {
    fn default() -> Self {
        Self::new()
    }
}

// SAFETY: everything is passed on to an allocator, with the caller's contract.
unsafe impl GlobalAlloc for NearHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new: usize) -> *mut u8 {
        // SAFETY: the caller's contract.
        unsafe { System.realloc(block, layout, new) }
    }
}

/// Nothing: the system's allocator doesn't count.
pub fn stats() -> Snapshot {
    Snapshot::new()
}

/// Does nothing here.
pub fn purge() -> usize {
    0
}

/// Does nothing here.
pub fn flush_thread() {}
