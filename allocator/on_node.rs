//! `NodeHeap`: memory on a chosen node, for one table of a program whose other memory lies near its threads.
//! Owns: `NodeHeap`. Called by: the program, as an allocator of a collection or by the methods of `GlobalAlloc`.
//!
//! Its blocks are blocks of the one heap, of the part that the node has: they come from the part's magazines and segments,
//! past the thread's cache, and go back there, whoever frees them.

use crate::config::Config;
use crate::fault::survive;
use crate::global::{NearHeap, resize_or_move};
use crate::hardened;
use crate::headed;
use crate::heap::cleared;
use crate::process::cache;
use crate::start::HEAP;
use crate::testing;
use crate::tls::{self, Inside};
use core::alloc::{GlobalAlloc, Layout};

/// An allocator whose memory lies on one NUMA node, or page by page on all of them in turn, whatever the policy of the
/// process is.
///
/// It is a value of two bytes: use it for the collections that should lie elsewhere than where their thread runs, with the
/// methods of [`GlobalAlloc`] or, with the feature `allocator-api2`, as the allocator of collections that take one:
///
#[cfg_attr(feature = "allocator-api2", doc = "```")]
#[cfg_attr(not(feature = "allocator-api2"), doc = "```ignore")]
/// use nearheap::{NearHeap, NodeHeap};
///
/// #[global_allocator]
/// static GLOBAL: NearHeap = NearHeap::new();
///
/// let mut far = allocator_api2::vec::Vec::new_in(NodeHeap::on(1));
/// far.extend(0..100_000);
/// let mut shared = allocator_api2::vec::Vec::with_capacity_in(1 << 20, NodeHeap::interleaved());
/// shared.push(1_u8);
/// # assert_eq!((far.len(), shared.len()), (100_000, 1));
/// ```
///
/// Where the node is full, does not exist or may not be used, the nearest that may be used serves, as for the rest of the
/// heap; with `pinned`, only listed nodes do. On a machine with one node, and with the policy `off`, it is the same heap as
/// the global one. Each operation takes a short lock, where the global heap mostly takes none: it is meant for large
/// tables, not for many small blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeHeap {
    /// None: on all in turn.
    node: Option<u8>,
}

impl NodeHeap {
    /// On the node of this number.
    pub const fn on(node: u8) -> Self {
        Self { node: Some(node) }
    }

    /// On all nodes that the process may use, page by page in turn.
    pub const fn interleaved() -> Self {
        Self { node: None }
    }

    fn part(self) -> usize {
        let homes = &HEAP.granules.homes;
        self.node.map_or_else(|| homes.turns(), |node| homes.of_node(node))
    }

    /// A block, and the bytes from its beginning on that may be other than zero.
    fn take(self, layout: Layout) -> (*mut u8, usize) {
        if let Some(nested) = tls::nested() {
            return ((nested.alloc)(&NearHeap::new(), layout, false), usize::MAX);
        }
        let inside = Inside::enter();
        let cache = cache(&inside);
        // SAFETY: the cache is the calling thread's.
        let found = unsafe {
            if headed::is_on() {
                headed::alloc(Some(self.part()), cache, layout)
            } else {
                let found = HEAP.alloc_of(self.part(), cache, layout);
                (hardened::out(found.0), found.1)
            }
        };
        if !found.0.is_null() {
            testing::passed(layout, true);
        }
        found
    }
}

// SAFETY: as for `NearHeap`: the blocks are those of the same heap.
unsafe impl GlobalAlloc for NodeHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.take(layout).0
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(nested) = tls::nested() {
            // SAFETY: the caller's contract.
            return unsafe { (nested.dealloc)(&NearHeap::new(), block, layout) };
        }
        let inside = Inside::enter();
        let cache = cache(&inside);
        // SAFETY: the cache is the calling thread's; the block is nobody's any more, by the caller's contract.
        unsafe {
            if headed::is_on() {
                headed::free(cache, block, Some(layout));
            } else {
                hardened::back_as(block, layout);
                survive(HEAP.free_past(cache, block, layout));
            }
        }
        testing::passed(layout, false);
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: a block of at least the layout's size, which is nobody else's.
        unsafe { cleared(self.take(layout), layout.size()) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new: usize) -> *mut u8 {
        // SAFETY: the cache is the calling thread's; the block is the caller's. What moves takes its place along.
        unsafe { resize_or_move(self, &Config::new(), block, layout, new) }
    }
}

#[cfg(feature = "allocator-api2")]
mod api2;
