//! `NearHeap`: the type that a program makes its global allocator.
//! Owns: the four operations of `GlobalAlloc`. Called by: the program, through `alloc::alloc` and its like.
//!
//! The fast path is what is written out here: the slot by arithmetic on the layout, one word and one pointer of the
//! thread's cache. Everything else is one cold call away.

use crate::cache::Cache;
use crate::class::{GRANULE, SMALL_MAX, Slot};
use crate::config::Config;
use crate::fault::survive;
use crate::hardened;
use crate::headed;
use crate::heap::cleared;
use crate::nested;
use crate::start::{self, HEAP};
use crate::tls::{self, Inside};
use core::alloc::{GlobalAlloc, Layout};
use core::ptr;

/// The allocator, as a value for `#[global_allocator]`.
///
/// ```
/// #[global_allocator]
/// static GLOBAL: nearheap::NearHeap = nearheap::NearHeap::new();
/// # fn main() { assert_eq!(vec![1; 3].len(), 3); }
/// ```
///
/// A process has one heap, whatever number of these values it has; the options are those of the value that serves the
/// first allocation. No operation unwinds. Exhaustion is a null pointer; misuse that would corrupt the heap ends the
/// process with one line on standard error and SIGABRT.
#[derive(Clone, Copy, Debug)]
pub struct NearHeap {
    config: Config,
}

impl NearHeap {
    /// The allocator with the defaults of this build.
    pub const fn new() -> Self {
        Self::with(Config::new())
    }

    /// The allocator with these options; the environment overrides them unless they are [locked](Config::lock).
    pub const fn with(config: Config) -> Self {
        Self { config }
    }

    /// A block that is not small: fast all the same, where a cache has one.
    #[inline(never)]
    fn alloc_large(&self, layout: Layout) -> *mut u8 {
        if let Some(slot) = cached_slot(layout) {
            // SAFETY: the pointer is this thread's cache or a sentinel of zeros, which live for ever.
            if let Some(block) = tls::within(|cache| unsafe { (*cache).pop(slot) }) {
                return hardened::out(block.as_ptr());
            }
        }
        self.alloc_cold(layout)
    }

    #[inline(never)]
    unsafe fn dealloc_large(&self, block: *mut u8, layout: Layout) {
        if let Some(slot) = cached_slot(layout) {
            // SAFETY: as in `dealloc`.
            if tls::within(|cache| unsafe { keep(cache, slot, block) }) {
                return;
            }
        }
        // SAFETY: the caller's contract.
        unsafe { self.dealloc_cold(block, layout) }
    }

    #[cold]
    #[inline(never)]
    fn alloc_cold(&self, layout: Layout) -> *mut u8 {
        let inside = Inside::enter();
        nested::drain(&inside);
        match inside.working() {
            // SAFETY: the cache is this thread's.
            cache @ Some(_) => hardened::out(unsafe { HEAP.alloc(cache, layout) }.0),
            None => {
                inside.leave();
                self.alloc_aside(layout, false)
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn alloc_zeroed_cold(&self, layout: Layout) -> *mut u8 {
        let inside = Inside::enter();
        nested::drain(&inside);
        match inside.working() {
            // SAFETY: the cache is this thread's; a block of at least the layout's size, which is nobody else's.
            cache @ Some(_) => unsafe {
                hardened::out(cleared(HEAP.alloc(cache, layout), layout.size()))
            },
            None => {
                inside.leave();
                self.alloc_aside(layout, true)
            }
        }
    }

    /// A block for a thread that points at a sentinel: in its first operation or after its last, watched, or in headers
    /// mode, in which all threads do; or in a signal handler.
    #[cold]
    #[inline(never)]
    fn alloc_aside(&self, layout: Layout, zeroed: bool) -> *mut u8 {
        if let Some(server) = tls::server() {
            return (server.alloc)(self, layout, zeroed);
        }
        // A thread's first operation finds its slot empty, so this isn't asked again for the new cache.
        let inside = Inside::enter();
        let cache = start::arrive(&inside, &self.config);
        // SAFETY: the cache is this thread's; a block of at least the layout's size, which is nobody else's.
        unsafe {
            let found = if headed::is_on() {
                headed::alloc(None, cache, layout)
            } else {
                let found = HEAP.alloc(cache, layout);
                (hardened::out(found.0), found.1)
            };
            if zeroed { cleared(found, layout.size()) } else { found.0 }
        }
    }

    #[cold]
    #[inline(never)]
    unsafe fn dealloc_cold(&self, block: *mut u8, layout: Layout) {
        let inside = Inside::enter();
        nested::drain(&inside);
        match inside.working() {
            cache @ Some(_) => {
                hardened::back_as(block, layout);
                // SAFETY: the cache is this thread's; the block is nobody's any more, by the caller's contract.
                survive(unsafe { HEAP.free(cache, block, layout) });
            }
            None => {
                inside.leave();
                // SAFETY: the caller's contract.
                unsafe { self.dealloc_aside(block, layout) }
            }
        }
    }

    /// As `alloc_aside`.
    #[cold]
    #[inline(never)]
    unsafe fn dealloc_aside(&self, block: *mut u8, layout: Layout) {
        if let Some(server) = tls::server() {
            // SAFETY: the caller's contract.
            return unsafe { (server.dealloc)(self, block, layout) };
        }
        let inside = Inside::enter();
        let cache = start::arrive(&inside, &self.config);
        // SAFETY: the cache is this thread's; the block is nobody's any more, by the caller's contract.
        unsafe {
            if headed::is_on() {
                headed::free(cache, block, Some(layout));
            } else {
                hardened::back_as(block, layout);
                survive(HEAP.free(cache, block, layout));
            }
        }
    }

    /// A block whose slot has to be looked at.
    #[inline(never)]
    unsafe fn realloc_other(&self, block: *mut u8, layout: Layout, new: usize) -> *mut u8 {
        if headed::is_on() {
            // SAFETY: the caller's contract.
            return unsafe { self.realloc_cold(block, layout, new) };
        }
        match (
            small_slot(layout),
            Slot::of(layout.size(), layout.align()),
            Slot::of(new, layout.align()),
        ) {
            (_, Some(from), Some(to)) if from == to => block,
            // A small block is copied in less time than its neighbours' bits take to look up.
            // SAFETY: the caller's contract.
            (Some(_), _, Some(to)) if to.is_cached() => unsafe {
                relocate(self, block, layout, new)
            },
            // SAFETY: the caller's contract.
            _ => unsafe { self.realloc_cold(block, layout, new) },
        }
    }

    #[cold]
    #[inline(never)]
    unsafe fn realloc_cold(&self, block: *mut u8, layout: Layout, new: usize) -> *mut u8 {
        // SAFETY: the cache is this thread's; the block is the caller's.
        unsafe { resize_or_move(self, &self.config, block, layout, new) }
    }

    /// Bytes that a block of this layout really has: at least the layout's size. All of them may be used, as long as
    /// the block is given back with the layout that it was asked for with. Costs a table look-up. In headers mode, the
    /// layout's size.
    pub fn usable_size(layout: Layout) -> usize {
        if headed::is_on() { layout.size() } else { HEAP.usable(layout) }
    }
}

impl Default for NearHeap {
    fn default() -> Self {
        Self::new()
    }
}

/// Makes a block one of `new` bytes where it stands, or moves it to another of `heap`.
///
/// # Safety
/// The block is the caller's, of this layout, and one that `heap` may free.
#[inline(never)]
pub(crate) unsafe fn resize_or_move(
    heap: &impl GlobalAlloc,
    config: &Config,
    block: *mut u8,
    layout: Layout,
    new: usize,
) -> *mut u8 {
    let inside = Inside::enter();
    let cache = start::arrive(&inside, config);
    // SAFETY: the cache is this thread's; the rest is the caller's promise.
    let stays = unsafe {
        if inside.is_nested() {
            ptr::null_mut()
        } else if headed::is_on() {
            headed::resize(cache, block, Some(layout), new)
        } else {
            hardened::stands(block, layout);
            survive(HEAP.resize(cache, block, layout, new))
        }
    };
    inside.leave();
    if !stays.is_null() {
        if let Some(watcher) = tls::watched() {
            (watcher.resized)(layout, new);
        }
        return stays;
    }
    // SAFETY: the caller's promise.
    unsafe { relocate(heap, block, layout, new) }
}

/// Copies a block to a new one of `new` bytes, and frees it. Null: there is none, and the block is as it was.
///
/// # Safety
/// The block is the caller's, of this layout, and one that `heap` may free.
unsafe fn relocate(heap: &impl GlobalAlloc, block: *mut u8, layout: Layout, new: usize) -> *mut u8 {
    let Ok(wanted) = Layout::from_size_align(new, layout.align()) else {
        return ptr::null_mut();
    };
    // SAFETY: the new block is as large as `new` at least, the old one is the caller's until it is freed here.
    unsafe {
        let fresh = heap.alloc(wanted);
        if !fresh.is_null() {
            ptr::copy_nonoverlapping(block, fresh, layout.size().min(new));
            heap.dealloc(block, layout);
        }
        fresh
    }
}

/// What does the work: with the feature `valgrind`, behind what tells of it.
#[cfg(not(feature = "valgrind"))]
type Served = NearHeap;
#[cfg(feature = "valgrind")]
type Served = crate::valgrind::Untold;

/// The slot of a small layout: the arithmetic that belongs into the program itself.
#[inline(always)]
fn small_slot(layout: Layout) -> Option<Slot> {
    // One test of both, since either bound is a power of two. Nobody asks for no bytes at all; who does, does elsewhere.
    let past = layout.size().wrapping_sub(1);
    if (past / SMALL_MAX) | (layout.align() / (2 * GRANULE)) == 0 {
        // SAFETY: a power of two that divides a number into nothing is greater.
        unsafe { core::hint::assert_unchecked(past < SMALL_MAX) };
        Some(Slot::small(past + 1))
    } else {
        None
    }
}

/// Keeps a free block in a cache, if there is room.
///
/// # Safety
/// As for [`Cache::push`].
#[inline(always)]
pub(crate) unsafe fn keep(cache: *const Cache, slot: Slot, block: *mut u8) -> bool {
    // SAFETY: the caller's promise.
    let kept = unsafe { (*cache).push(slot, block) };
    if kept {
        hardened::back(block, slot);
    }
    kept
}

/// The slot of a layout, if its blocks pass through caches.
fn cached_slot(layout: Layout) -> Option<Slot> {
    Slot::of(layout.size(), layout.align()).filter(|slot| slot.is_cached())
}

// SAFETY: blocks come from mappings of the heap's own, are aligned and large enough by K1, nobody else's until they are
// freed (T2, C1), and stay where they are until then; nothing unwinds.
unsafe impl GlobalAlloc for Served {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(slot) = small_slot(layout) else { return self.alloc_large(layout) };
        // SAFETY: the pointer is this thread's cache or a sentinel of zeros, which live for ever.
        match tls::within(|cache| unsafe { (*cache).pop(slot) }) {
            Some(block) => hardened::out(block.as_ptr()),
            None => self.alloc_cold(layout),
        }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some(slot) = small_slot(layout) else {
            // SAFETY: the caller's contract.
            return unsafe { self.dealloc_large(block, layout) };
        };
        // SAFETY: the pointer is this thread's cache or a sentinel; the block is one of the slot, since the layout is
        // that of its allocation (K2), and nobody's any more.
        unsafe {
            if !tls::within(|cache| keep(cache, slot, block)) {
                self.dealloc_cold(block, layout);
            }
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if let Some(slot) = cached_slot(layout) {
            // SAFETY: as in `alloc`.
            if let Some(block) = tls::within(|cache| unsafe { (*cache).pop(slot) }) {
                // SAFETY: a block of at least the layout's size, which is nobody else's.
                unsafe { ptr::write_bytes(block.as_ptr(), 0, layout.size()) };
                return hardened::out(block.as_ptr());
            }
        }
        self.alloc_zeroed_cold(layout)
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new: usize) -> *mut u8 {
        let small = layout.size().max(new) <= SMALL_MAX && layout.align() <= GRANULE;
        if small && Slot::small(layout.size()) == Slot::small(new) && !headed::is_on() {
            return block;
        }
        // SAFETY: the caller's contract.
        unsafe { self.realloc_other(block, layout, new) }
    }
}
