//! The heap for those who free without saying how large a block is: what `nearheap-preload` makes the malloc family of.
//! Owns: the operations, which take and return addresses as C means them. Called by: `nearheap-preload`, and nobody else:
//! the module is public only because that is another crate.
//!
//! A block's slot is that of its extent. Where two slots have blocks of one extent (over-aligned ones, and those that a
//! table of classes makes larger), here all of them are the plain slot's: an allocation that takes one from elsewhere
//! counts it as moved.
//!
//! Q1: an address is followed only after its first granule was found among the extents, or it was found to be a huge
//!     block. Anything else ends the process with one line.
//! Q2: `errno` is written only where an operation fails for want of memory.
//! Q3: null is no block, and every operation says what it makes of it.
//! Q4: the extent of a block made here is the size of a plain slot: that of its granules.

#![allow(missing_docs, reason = "C's own operations, under C's own names")]
#![allow(clippy::missing_safety_doc, reason = "the contract is that of C: blocks are the caller's")]

use crate::cache::Cache;
use crate::class::{CACHED_MAX, GRANULE, SMALL_MAX, SPAN_MAX, Slot};
use crate::config::Config;
use crate::extents::{ENTRIES, LEAF_SHIFT, Leaf};
use crate::fault::{self, Fault, Misuse, survive};
use crate::global::keep;
use crate::hardened;
use crate::headed;
use crate::heap::{Found, cleared};
use crate::nested;
use crate::segment::SEGMENT_SHIFT;
use crate::start::{self, HEAP};
use crate::tls::{self, Inside, Standing};
use core::alloc::Layout;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// What a huge block's layout needs for all of these to be none of a slot.
const HUGE_ALIGN: usize = 2 << 20;
/// Smaller blocks that shrink stay as they are down to half of their size: copying costs more than it gives back.
const SHRINKS_FROM: usize = 2048;

/// The 32 GiB of addresses that the first block was in, where all the others of most programs are: for them one look is
/// enough. Written once, the leaf before the base; the release store of the base pairs with the acquire load in `near`.
///
/// There is one, a static of the crate that has the symbols: in another crate's code, each look would take two instructions
/// more, to find it.
#[derive(Debug)]
pub struct Near {
    /// The first address, a granule each; none until it is known, and then a multiple of 32 GiB.
    base: AtomicUsize,
    leaf: AtomicPtr<Leaf>,
    known: AtomicBool,
}

const NOWHERE: usize = 1 << 63;

impl Near {
    /// Nothing is near.
    pub const fn new() -> Self {
        Self {
            base: AtomicUsize::new(NOWHERE),
            leaf: AtomicPtr::new(ptr::null_mut()),
            known: AtomicBool::new(false),
        }
    }
}

impl Default for Near {
    fn default() -> Self {
        Self::new()
    }
}

/// A block that was found.
#[derive(Clone, Copy)]
enum Kind {
    /// In a segment: its granules.
    Granules(usize),
    /// With a mapping of its own: its bytes.
    Huge(usize),
    /// Of a signal handler.
    Nested(Layout),
}

/// The slot of a short block near the first one: what most frees free.
#[inline(always)]
fn slot_near(near: &Near, address: usize) -> Option<Slot> {
    // What isn't a multiple of a granule turns into something far away.
    let granule = address.rotate_right(GRANULE.trailing_zeros());
    let from_base = granule.wrapping_sub(near.base.load(Ordering::Acquire));
    let place = from_base >> (SEGMENT_SHIFT - GRANULE.trailing_zeros());
    if place >= ENTRIES {
        return None;
    }
    // SAFETY: the base isn't `NOWHERE`, so the leaf is one, which stays readable (W4); the place was just compared.
    let table = unsafe { (*near.leaf.load(Ordering::Relaxed)).table(place)? };
    // At most a word of granules, which is at most `SMALL_MAX`; and the slot is the one of that extent (Q4).
    Some(Slot::small(table.short(address)? * GRANULE))
}

/// Makes the addresses around a block the near ones, if there are such blocks and none are near yet.
#[cold]
fn settle(near: &Near, address: usize) {
    let Some(leaf) = HEAP.granules.extents.leaf(address) else { return };
    if !near.known.swap(true, Ordering::Relaxed) {
        near.leaf.store(ptr::from_ref(leaf).cast_mut(), Ordering::Relaxed);
        let base = address >> LEAF_SHIFT << (LEAF_SHIFT - GRANULE.trailing_zeros());
        near.base.store(base, Ordering::Release);
    }
}

/// The block at an address; the process ends where there is none. `None`: in a signal handler it can't be told, since its
/// thread may be inside the table of huge blocks.
fn find(inside: &Inside, address: usize) -> Option<Kind> {
    if let Some(k) = HEAP.granules.extents.extent(address) {
        return Some(Kind::Granules(k));
    }
    if let Some(layout) = layout_of_nested(address) {
        return Some(Kind::Nested(layout));
    }
    match HEAP.huge.len_of(address, !inside.is_nested())? {
        Ok(len) => Some(Kind::Huge(len)),
        Err(_) if inside.is_nested() => None,
        Err(misuse) => die(HEAP.granules.misuse_at(address).unwrap_or(misuse), address),
    }
}

impl Kind {
    /// The layout that gives it back, and its bytes.
    fn layout(self, address: usize) -> (Layout, usize) {
        match self {
            Self::Granules(k) => (layout_of(k, address), k * GRANULE),
            Self::Huge(len) => (layout_of_huge(len, address), len),
            Self::Nested(layout) => (layout, layout.size()),
        }
    }
}

/// The layout that gives a handler's block back.
pub(crate) fn layout_of_nested(address: usize) -> Option<Layout> {
    Some(match nested::block_at(address)? {
        nested::Block::Granules(k) => layout_of(k, address),
        nested::Block::Mapped(len) => layout_of_huge(len, address),
    })
}

/// A block of a signal handler: in the region, or with a mapping of its own, which its free will find as huge.
#[cold]
fn obtain_nested(size: usize, align: usize) -> *mut u8 {
    let plain = align <= GRANULE && size <= CACHED_MAX && start::is_ready();
    let layout = if headed::is_on() {
        Layout::from_size_align(size, align.max(GRANULE)).ok()
    } else if plain {
        layout_for(size)
    } else {
        let len = HEAP.granules.source.in_pages(size.max(1));
        len.and_then(|len| Layout::from_size_align(len, align.max(HUGE_ALIGN)).ok())
    };
    layout.map_or(ptr::null_mut(), |layout| nested::obtain(layout, false, true))
}

#[cold]
fn die(misuse: Misuse, address: usize) -> ! {
    fault::die(Fault { misuse, address, size: 0 })
}

/// The layout of a block of so many granules (Q4).
fn layout_of(k: usize, address: usize) -> Layout {
    Layout::from_size_align(k * GRANULE, GRANULE)
        .unwrap_or_else(|_| die(Misuse::NotABlock, address))
}

/// The plain slot of the blocks of a slot, if it has one (Q4).
fn plain(slot: Slot) -> Option<Slot> {
    let k = HEAP.granules.classes.granules(slot);
    Slot::of(k * GRANULE, GRANULE).filter(|&s| HEAP.granules.classes.granules(s) == k)
}

/// The layout of the block that a request gets: the same slot's that its free will find.
fn layout_for(size: usize) -> Option<Layout> {
    let size = match Slot::of(size.max(1), GRANULE) {
        Some(slot) => HEAP.granules.classes.bytes(slot),
        None => size,
    };
    Layout::from_size_align(size, GRANULE).ok()
}

fn cached(slot: Option<Slot>) -> Option<Slot> {
    slot.filter(|slot| slot.is_cached())
}

/// The calling thread's cache, and the heap started.
fn cache(inside: &Inside) -> Option<&'static Cache> {
    nested::drain(inside);
    match inside.standing() {
        // Who is watched has blocks in its cache, which the cold paths here don't look for.
        _ if inside.is_served() => None,
        Standing::Fresh => arrive(inside),
        _ => start::own_cache(inside),
    }
}

#[cold]
#[inline(never)]
fn arrive(inside: &Inside) -> Option<&'static Cache> {
    HEAP.granules.extents.activate();
    start::arrive(inside, &Config::new())
}

/// Starts the heap, if it hasn't been, and keeps extents from now on. The first thing that the program does with the heap,
/// from whatever language, must come after it, or be one of the operations here.
pub fn start() {
    let _ = arrive(&Inside::enter());
}

/// Keeps `errno` over what may be refused on the way to a success.
fn keeping_errno<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: the thread's own `errno`.
    unsafe {
        let place = libc::__errno_location();
        let errno = *place;
        let result = work();
        *place = errno;
        result
    }
}

/// Null, and why.
#[cold]
#[inline(never)]
fn no_memory() -> *mut u8 {
    // SAFETY: the thread's own `errno`.
    unsafe { *libc::__errno_location() = libc::ENOMEM };
    ptr::null_mut()
}

/// A block from the cache of a thread that is inside.
fn pop_of(cache: Option<&Cache>, slot: Slot) -> Option<NonNull<u8>> {
    // SAFETY: the cache is this thread's.
    let block = cache.and_then(|cache| unsafe { cache.pop(slot) });
    block.inspect(|block| _ = hardened::out(block.as_ptr()))
}

/// A block from the thread's cache.
#[inline(always)]
fn pop(slot: Slot) -> Option<NonNull<u8>> {
    // SAFETY: the pointer is this thread's cache or a sentinel of zeros, which live for ever.
    let block = tls::within(|cache| unsafe { (*cache).pop(slot) });
    block.inspect(|block| _ = hardened::out(block.as_ptr()))
}

// The slow halves are `extern "C"`, which says that they don't unwind, so that the fast ones end in a jump.
#[inline(always)]
pub fn malloc(size: usize) -> *mut u8 {
    if size <= SMALL_MAX
        && let Some(block) = pop(Slot::small(size))
    {
        return block.as_ptr();
    }
    malloc_other(size)
}

#[inline(never)]
extern "C" fn malloc_other(size: usize) -> *mut u8 {
    // A request without a slot of its own, or whose blocks are another slot's; or the slot is empty.
    let quick = Slot::of(size, GRANULE).filter(|s| s.is_cached() && size > SMALL_MAX);
    if let Some(block) = quick.and_then(pop) {
        return block.as_ptr();
    }
    obtain(size).0
}

/// A block, and how many of its bytes may be other than zero; or null.
#[cold]
#[inline(never)]
fn obtain(size: usize) -> Found {
    let found = keeping_errno(|| {
        let inside = Inside::enter();
        if inside.is_nested() {
            let block = obtain_nested(size, GRANULE);
            return (!block.is_null()).then_some((block, usize::MAX));
        }
        let cache = cache(&inside);
        if headed::is_on() {
            let layout = Layout::from_size_align(size, GRANULE).ok()?;
            // SAFETY: the cache is this thread's.
            let found = unsafe { headed::alloc_for(None, cache, layout, true) };
            return (!found.0.is_null()).then_some(found);
        }
        let layout = layout_for(size)?;
        if let Some(block) = cached(Slot::of(layout.size(), GRANULE)).and_then(|s| pop_of(cache, s))
        {
            return Some((block.as_ptr(), usize::MAX));
        }
        // SAFETY: the cache is this thread's.
        let found = unsafe { HEAP.alloc(cache, layout) };
        (!hardened::out(found.0).is_null()).then_some(found)
    });
    found.unwrap_or_else(|| (no_memory(), 0))
}

#[inline(always)]
pub fn calloc(count: usize, size: usize) -> *mut u8 {
    let Some(size) = count.checked_mul(size) else { return no_memory() };
    if size <= SMALL_MAX
        && let Some(block) = pop(Slot::small(size))
    {
        // SAFETY: a block of at least this size, which is nobody else's.
        unsafe { ptr::write_bytes(block.as_ptr(), 0, size) };
        return block.as_ptr();
    }
    calloc_other(size)
}

#[inline(never)]
extern "C" fn calloc_other(size: usize) -> *mut u8 {
    // SAFETY: a block of at least this size, which is nobody else's.
    unsafe { cleared(obtain(size), size) }
}

/// The layout for an over-aligned request; and where its blocks are cached, its slot and the plain one of the same extent.
/// A table of classes may leave no such extent, but for larger blocks: those of spans at last, which it doesn't change.
fn aligned_layout(align: usize, size: usize) -> Option<(Layout, Option<(Slot, Slot)>)> {
    let mut size = size.max(1);
    loop {
        let layout = Layout::from_size_align(size, align).ok()?;
        let Some(slot) = cached(Slot::of(size, align)) else { return Some((layout, None)) };
        if let Some(plain) = plain(slot) {
            return Some((layout, Some((slot, plain))));
        }
        size = slot.size() + 1;
    }
}

/// A block at a multiple of `align`, which is a power of two; null without an `errno` where there is no memory.
#[inline(never)]
pub fn aligned(align: usize, size: usize) -> *mut u8 {
    keeping_errno(|| {
        if align <= GRANULE {
            return malloc(size);
        }
        let inside = Inside::enter();
        if inside.is_nested() {
            return obtain_nested(size, align);
        }
        let cache = cache(&inside);
        if headed::is_on() {
            let layout = Layout::from_size_align(size, align);
            // SAFETY: the cache is this thread's.
            let block =
                layout.map(|layout| unsafe { headed::alloc_for(None, cache, layout, true) }.0);
            return block.unwrap_or(ptr::null_mut());
        }
        let Some((layout, slots)) = aligned_layout(align, size) else { return ptr::null_mut() };
        let Some((slot, plain)) = slots else {
            // SAFETY: the cache is this thread's.
            return hardened::out(unsafe { HEAP.alloc(cache, layout) }.0);
        };
        // SAFETY: the cache is this thread's, which does nothing else with it meanwhile.
        let latest = cache.and_then(|cache| unsafe { cache.latest(plain) });
        if latest.is_some_and(|b| (b as usize).is_multiple_of(align))
            && let Some(block) = pop_of(cache, plain)
        {
            return block.as_ptr();
        }
        let block = match pop_of(cache, slot) {
            Some(block) => block.as_ptr(),
            // SAFETY: the cache is this thread's.
            None => hardened::out(unsafe { HEAP.alloc(cache, layout) }.0),
        };
        if !block.is_null() && plain != slot {
            match cache {
                Some(cache) => cache.count_move(slot, plain),
                None => HEAP.ledger.count_move(slot, plain),
            }
        }
        block
    })
}

#[inline(always)]
pub unsafe fn free(block: *mut u8, near: &'static Near) {
    if let Some(slot) = slot_near(near, block as usize) {
        // SAFETY: the pointer is this thread's cache or a sentinel; the block has the extent of the slot's, and is nobody's
        // any more by the caller's contract.
        if tls::within(|cache| unsafe { keep(cache, slot, block) }) {
            return;
        }
    }
    // SAFETY: the caller's contract.
    unsafe { free_other(block, near) }
}

#[inline(never)]
unsafe extern "C" fn free_other(block: *mut u8, near: &'static Near) {
    // A block of more than 64 granules, or that isn't near, or doesn't find room.
    if !near.known.load(Ordering::Relaxed) {
        settle(near, block as usize);
    }
    let extent = HEAP.granules.extents.extent(block as usize);
    if let Some(slot) = extent.and_then(|k| cached(Slot::of(k * GRANULE, GRANULE))) {
        // SAFETY: as in `free`.
        if tls::within(|cache| unsafe { keep(cache, slot, block) }) {
            return;
        }
    }
    if !block.is_null() {
        // SAFETY: the caller's contract.
        unsafe { free_cold(block) }
    }
}

#[cold]
#[inline(never)]
unsafe fn free_cold(block: *mut u8) {
    let inside = &Inside::enter();
    // SAFETY: the cache is this thread's; the block is nobody's any more, by the caller's contract.
    keeping_errno(|| unsafe {
        if inside.is_nested() {
            return nested::free(block, None);
        }
        let cache = cache(inside);
        if headed::is_on() {
            return headed::free(cache, block, None);
        }
        let Some(kind) = find(inside, block as usize) else { return };
        let (layout, _) = kind.layout(block as usize);
        if !matches!(kind, Kind::Nested(_)) {
            hardened::back_as(block, layout);
            return survive(HEAP.free(cache, block, layout));
        }
        HEAP.count_free(cache, layout);
        if !matches!(nested::give_back(block, None), Some(Ok(()))) {
            die(Misuse::DoubleFree, block as usize);
        }
    });
}

/// Frees a block of the heap that a signal handler freed, past the cache.
pub(crate) unsafe fn free_waiting(inside: &Inside, block: *mut u8, cache: Option<&Cache>) {
    if let Some(kind) = find(inside, block as usize) {
        let (layout, _) = kind.layout(block as usize);
        hardened::back_as(block, layout);
        // SAFETY: the cache is this thread's; the block is nobody's any more, by the contract of C's `free`.
        survive(unsafe { HEAP.free_past(cache, block, layout) });
    }
}

/// A layout of a huge block that no slot has: these know their bytes, not their alignment.
fn layout_of_huge(len: usize, address: usize) -> Layout {
    let align = if len > SPAN_MAX { GRANULE } else { HUGE_ALIGN };
    Layout::from_size_align(len, align).unwrap_or_else(|_| die(Misuse::NotABlock, address))
}

/// Bytes that a block has; 0 for null.
pub unsafe fn usable_size(block: *mut u8) -> usize {
    if block.is_null() {
        return 0;
    }
    let inside = Inside::enter();
    if headed::is_on() {
        return headed::size_of(&inside, block);
    }
    find(&inside, block as usize).map_or(0, |kind| kind.layout(block as usize).1)
}

/// As C's, for a size that isn't 0 or a null block.
#[inline(never)]
pub unsafe fn realloc(block: *mut u8, size: usize, near: &'static Near) -> *mut u8 {
    if block.is_null() {
        return malloc(size);
    }
    if headed::is_on() {
        // SAFETY: the caller's contract.
        return unsafe { realloc_headed(block, size) };
    }
    let inside = Inside::enter();
    let Some(kind) = find(&inside, block as usize) else { return no_memory() };
    let (layout, old) = kind.layout(block as usize);
    if size <= old && (size > old / 2 || size == old) && old < SHRINKS_FROM {
        return block;
    }
    let Some(wanted) = layout_for(size) else { return no_memory() };
    if wanted.size() == layout.size() {
        return block;
    }
    // A huge block that is so only for its alignment moves to where it isn't.
    if layout.align() == GRANULE && !inside.is_nested() {
        // SAFETY: the cache is this thread's; the block is the caller's, of this layout.
        let stays = keeping_errno(|| unsafe {
            survive(HEAP.resize(cache(&inside), block, layout, wanted.size()))
        });
        if !stays.is_null() {
            return stays;
        }
    }
    inside.leave();
    let fresh = malloc(size);
    if !fresh.is_null() {
        // SAFETY: the new block is as large as `size` at least; the old one is the caller's until it is freed here.
        unsafe {
            ptr::copy_nonoverlapping(block, fresh, old.min(size));
            free(block, near);
        }
    }
    fresh
}

/// The same where blocks have headers. The alignment of what moves is the plain one, as for C.
#[cold]
unsafe fn realloc_headed(block: *mut u8, size: usize) -> *mut u8 {
    // SAFETY: the cache is this thread's; what the block is, is checked.
    let inside = Inside::enter();
    // SAFETY: as above.
    let resized = || unsafe { headed::resize(cache(&inside), block, None, size) };
    let stays = if inside.is_nested() { ptr::null_mut() } else { keeping_errno(resized) };
    let old = if stays.is_null() { headed::size_of(&inside, block) } else { 0 };
    inside.leave();
    if !stays.is_null() {
        return stays;
    }
    let fresh = malloc(size);
    if !fresh.is_null() {
        // SAFETY: both blocks have as many bytes; the old one is the caller's until it is freed here.
        unsafe {
            ptr::copy_nonoverlapping(block, fresh, old.min(size));
            free_cold(block);
        }
    }
    fresh
}

const _: () = assert!(CACHED_MAX > SHRINKS_FROM && SMALL_MAX / GRANULE == 64);
