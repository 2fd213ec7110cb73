//! Nested: what serves a signal handler, whose thread may be anywhere inside the heap already.
//! Owns: `in_signal_handler`, the frees that wait. Called by: the program's handlers; the cold paths, once they find a block
//! that they don't know, or a free that waits.
//!
//! While a handler runs, its thread's pointer is that of the sentinel `NESTED`, so each of its operations comes here, and to
//! nothing that the thread may have been in the middle of.
//!
//! J1: nothing here takes a lock, uses a thread's cache, or waits. What it shares with others are single words.
//! J2: a block of the region is as large and as aligned as those of its slot, so caches and magazines take it like any
//!     other. Where it reaches the granule heap, or the huge blocks, it is asked for here before it counts as foreign.
//! J3: an allocation here counts at once, past all threads. A free of a block of the heap waits for the next cold operation
//!     of any thread outside of handlers, and counts then; whoever asks for the counts has them freed first.
//! J4: before the start has settled what the mode is and how large blocks are, each block has a mapping of its own, without
//!     a header whatever the mode.
//!
//! Programs without such handlers don't have this code: what the heap asks of it is behind a pointer that a handler sets.

mod mapped;
mod region;

use crate::cache::Cache;
use crate::class::Slot;
use crate::fault::{self, Fault, Misuse, survive};
use crate::global::NearHeap;
use crate::granule::lookup::Around;
use crate::hardened;
use crate::headed;
use crate::header::{Says, Shape, State};
use crate::start::{self, HEAP};
use crate::tls::{self, Inside, Server};
use core::alloc::Layout;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, Ordering};
use mapped::Mapped;
use region::{At, Region};

static REGION: Region = Region::new();
static MAPPED: Mapped = Mapped::new();

/// A block that was freed in a handler and isn't one of a handler: kept in a block of the region, since what was freed is not
/// to be followed here.
struct Waiting {
    next: *mut Waiting,
    block: *mut u8,
    /// None: a free in C.
    layout: Option<Layout>,
}

/// The frees that wait, the latest first.
static WAITING: AtomicPtr<Waiting> = AtomicPtr::new(ptr::null_mut());

/// What comes of giving a block back: `None`, it is no handler's.
pub(crate) type Given = Option<Result<(), Misuse>>;

/// What the heap asks of this file.
struct Hooks {
    drain: fn(&Inside),
    give_back: fn(*mut u8, Option<Slot>) -> Given,
    around: fn(usize, &mut dyn FnMut(usize)) -> Around,
    is_early: fn(*mut u8) -> bool,
    server: Server,
}

static HOOKS: Hooks = Hooks {
    drain: drain_now,
    give_back: give_back_here,
    around: around_here,
    is_early: is_early_here,
    server: Server { alloc, dealloc, resized: |_, _| {}, behind: tls::nothing },
};

/// What serves a handler in the heap's place.
pub(crate) const SERVER: *const Server = &raw const HOOKS.server;

/// Null until a handler comes; whoever has one of its blocks got it from there.
static IN_USE: AtomicPtr<Hooks> = AtomicPtr::new(if cfg!(feature = "signals") {
    (&raw const HOOKS).cast_mut()
} else {
    ptr::null_mut()
});

#[inline(never)]
fn hooks() -> Option<&'static Hooks> {
    // SAFETY: null, or a static.
    unsafe { IN_USE.load(Ordering::Relaxed).as_ref() }
}

/// Frees what waits, if anything does.
#[inline]
pub(crate) fn drain(inside: &Inside) {
    if !WAITING.load(Ordering::Relaxed).is_null() {
        drain_cold(inside);
    }
}

#[cold]
#[inline(never)]
fn drain_cold(inside: &Inside) {
    if let Some(hooks) = hooks() {
        (hooks.drain)(inside);
    }
}

/// Takes a block back, of this slot where the caller knows it. `None`: it is no handler's.
#[cold]
pub(crate) fn give_back(block: *mut u8, slot: Option<Slot>) -> Given {
    (hooks()?.give_back)(block, slot)
}

/// Finds the handler's block that an address is in.
pub(crate) fn around(address: usize, look: &mut dyn FnMut(usize)) -> Around {
    hooks().map_or(Around::Nothing, |hooks| (hooks.around)(address, look))
}

/// Whether an address is in a handler's block.
pub(crate) fn has(block: *mut u8) -> bool {
    around(block as usize, &mut |_| {}) == Around::Block
}

/// Whether a block is a handler's that has no header, whatever the mode.
pub(crate) fn is_early(block: *mut u8) -> bool {
    hooks().is_some_and(|hooks| (hooks.is_early)(block))
}

/// Runs the body of a signal handler, in which it may allocate and free, whatever its thread was doing.
///
/// A handler can interrupt its thread in the middle of an operation on the heap. Outside of this function, what it allocates
/// there may be what the operation was about to return, or it waits for a lock that its own thread has. Inside,
/// allocations come from memory that is kept for handlers and is managed without locks; so does what is allocated in there by
/// any code that the handler calls. Blocks are blocks like any other: the program may keep them, resize them, and free them
/// anywhere. Blocks of the program that a handler frees are freed a little later, by the next thread that has to do with
/// more than its own cache.
///
/// With the feature `signals`, every operation does this by itself for as long as it lasts, and handlers needn't: for handlers
/// of others. It makes each allocation longer, see `docs/DESIGN.md`.
///
/// Handlers may interrupt each other, on any thread, at any time. Programs that don't call this pay nothing for it. A
/// handler must not leave by `longjmp`. In there, [`stats`](crate::stats) and [`threads`](crate::threads) show nothing,
/// [`purge`](crate::purge) and [`flush_thread`](crate::flush_thread) do nothing, [`walk`](crate::walk) finds nothing, and
/// what is allocated is not counted by a [measurement](crate::testing) around it. At most a GiB of blocks up to 32 KiB
/// and 256 larger ones are out at a time: then it gets null.
///
/// ```
/// # #[global_allocator] static GLOBAL: nearheap::NearHeap = nearheap::NearHeap::new();
/// # use std::ptr::null_mut;
/// use std::sync::atomic::{AtomicPtr, Ordering};
///
/// static LATEST: AtomicPtr<String> = AtomicPtr::new(null_mut());
///
/// extern "C" fn on_signal(number: libc::c_int) {
///     nearheap::in_signal_handler(|| {
///         let report = Box::new(format!("signal {number}"));
///         let before = LATEST.swap(Box::into_raw(report), Ordering::AcqRel);
///         if !before.is_null() {
///             // SAFETY: it was a box, and whoever takes it out of the static has it alone.
///             drop(unsafe { Box::from_raw(before) });
///         }
///     });
/// }
///
/// # fn main() {
/// // SAFETY: the handler uses nothing but the heap and an atomic.
/// unsafe { libc::signal(libc::SIGUSR1, on_signal as *const () as libc::sighandler_t) };
/// # for _ in 0..3 { assert_eq!(unsafe { libc::raise(libc::SIGUSR1) }, 0); }
/// # let latest = LATEST.swap(null_mut(), Ordering::AcqRel);
/// # assert_eq!(*unsafe { Box::from_raw(latest) }, format!("signal {}", libc::SIGUSR1));
/// # }
/// ```
pub fn in_signal_handler<T>(body: impl FnOnce() -> T) -> T {
    let _handling = Handling::begin();
    body()
}

/// The thread's pointer as it was, until dropped.
struct Handling(*const Cache);

impl Handling {
    #[inline(never)]
    fn begin() -> Self {
        IN_USE.store((&raw const HOOKS).cast_mut(), Ordering::Relaxed);
        Self(tls::nest(SERVER))
    }
}

impl Drop for Handling {
    fn drop(&mut self) {
        tls::restore(self.0);
    }
}

/// Memory for a layout, and whether it is zero.
fn take(layout: Layout, early: bool) -> Option<(NonNull<u8>, bool)> {
    let source = &HEAP.granules.source;
    let slot = Slot::of_layout(layout);
    match slot {
        Some(slot) if slot.is_cached() && !early => {
            Some((REGION.take(slot, &HEAP.granules.classes, source)?, false))
        }
        _ => {
            let usable = HEAP.usable(layout);
            // As large as any block of its slot may turn out to be.
            let least = if early && slot.is_some() { 2 * usable } else { usable };
            let len = source.in_pages(least.max(layout.size()))?;
            Some((MAPPED.take((len, layout.align()), early, source)?, true))
        }
    }
}

/// An allocation of a handler.
fn alloc(_: &NearHeap, layout: Layout, zeroed: bool) -> *mut u8 {
    obtain(layout, zeroed, false)
}

/// The same, `loose` for C.
pub(crate) fn obtain(layout: Layout, zeroed: bool, loose: bool) -> *mut u8 {
    let early = !start::is_ready();
    let (size, align) = (layout.size(), layout.align());
    let shape = if headed::is_on() && !early { Shape::of(size, align) } else { None };
    let whole = shape.map_or(layout, |shape| shape.whole);
    let Some((base, is_zero)) = take(whole, early) else { return ptr::null_mut() };
    count(whole, true);
    let mut block = base.as_ptr();
    // SAFETY: a block of the whole layout, which is nobody else's.
    unsafe {
        if let Some(shape) = shape {
            let says = Says { size, align, loose, state: State::Live, next: 0 };
            block = block.add(shape.before);
            headed::dress(base.as_ptr().expose_provenance(), shape, says);
        }
        if zeroed && !is_zero {
            ptr::write_bytes(block, 0, size);
        }
    }
    block
}

/// Counts an operation of no thread.
fn count(layout: Layout, alloc: bool) {
    match (Slot::of_layout(layout), alloc) {
        (_, false) => HEAP.count_free(None, layout),
        (Some(slot), true) => HEAP.ledger.count(slot, true),
        (None, true) => HEAP.ledger.count_huge(true, HEAP.usable(layout)),
    }
}

/// A free of a handler.
///
/// # Safety
/// As for `GlobalAlloc::dealloc`.
unsafe fn dealloc(_: &NearHeap, block: *mut u8, layout: Layout) {
    // SAFETY: the caller's promise.
    unsafe { free(block, Some(layout)) }
}

/// The same, for C without a layout.
///
/// # Safety
/// As for `GlobalAlloc::dealloc`.
pub(crate) unsafe fn free(block: *mut u8, layout: Option<Layout>) {
    if headed::is_on() && has(block) {
        // SAFETY: what the block is, is checked. It is one of those here, for which there are no locks.
        return unsafe { headed::free(None, block, layout) };
    }
    #[cfg(feature = "c-interface")]
    let known = layout.or_else(|| crate::foreign::layout_of_nested(block as usize));
    #[cfg(not(feature = "c-interface"))]
    let known = layout;
    match give_back_here(block, layout.and_then(Slot::of_layout)) {
        Some(Ok(())) => known.into_iter().for_each(|layout| count(layout, false)),
        Some(Err(misuse)) => {
            let size = known.map_or(0, |layout| HEAP.usable(layout));
            fault::die(Fault { misuse, address: block as usize, size })
        }
        None => wait(block, layout),
    }
}

/// A block as C's operations find it.
#[cfg(feature = "c-interface")]
#[derive(Clone, Copy, Debug)]
pub(crate) enum Block {
    Granules(usize),
    /// With a mapping of its own: its bytes.
    Mapped(usize),
}

/// The handler's block that begins at an address.
#[cfg(feature = "c-interface")]
pub(crate) fn block_at(address: usize) -> Option<Block> {
    let classes = &HEAP.granules.classes;
    match REGION.at(address, classes) {
        At::Block(base, slot) if base == address => Some(Block::Granules(classes.granules(slot))),
        At::Elsewhere => {
            let found = MAPPED.find(address).filter(|found| found.at == address)?;
            Some(Block::Mapped(found.len))
        }
        _ => None,
    }
}

/// Keeps a free for later. Without memory for that, the block is lost.
fn wait(block: *mut u8, layout: Option<Layout>) {
    let slot = Slot::small(size_of::<Waiting>());
    let Some(place) = REGION.take(slot, &HEAP.granules.classes, &HEAP.granules.source) else {
        return;
    };
    let place = place.cast::<Waiting>().as_ptr();
    let mut next = WAITING.load(Ordering::Relaxed);
    loop {
        // SAFETY: a block that is large enough, and nobody else's until the exchange.
        unsafe { place.write(Waiting { next, block, layout }) };
        // Pairs with the exchange in `drain_now`.
        match WAITING.compare_exchange(next, place, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => next = now,
        }
    }
}

/// Frees what waits, as the thread would that has come here.
fn drain_now(inside: &Inside) {
    if inside.is_served() {
        return;
    }
    let cache = start::own_cache(inside);
    let mut next = WAITING.swap(ptr::null_mut(), Ordering::Acquire);
    // SAFETY: null, or what `wait` wrote, which is this thread's since the exchange.
    while let Some(&Waiting { next: after, block, layout }) = unsafe { next.as_ref() } {
        let _ = REGION.give(next as usize, None);
        // SAFETY: the cache is this thread's; the block is nobody's any more, by the promise of the handler that freed it.
        unsafe {
            match layout {
                _ if headed::is_on() => headed::free(cache, block, layout),
                // Past the cache, which may be about to be refilled.
                Some(layout) => {
                    hardened::back_as(block, layout);
                    survive(HEAP.free_past(cache, block, layout));
                }
                #[cfg(feature = "c-interface")]
                None => crate::foreign::free_waiting(inside, block, cache),
                #[cfg(not(feature = "c-interface"))]
                None => {}
            }
        }
        next = after;
    }
}

fn give_back_here(block: *mut u8, slot: Option<Slot>) -> Given {
    if let Some(given) = REGION.give(block as usize, slot) {
        return Some(given.map(drop));
    }
    MAPPED.give(block as usize, &HEAP.granules.source).then_some(Ok(()))
}

fn around_here(address: usize, look: &mut dyn FnMut(usize)) -> Around {
    match REGION.at(address, &HEAP.granules.classes) {
        At::Block(base, _) => look(base),
        At::Free => return Around::Free,
        At::Nothing => return Around::Nothing,
        At::Elsewhere => match MAPPED.find(address) {
            Some(found) => look(found.at),
            None => return Around::Nothing,
        },
    }
    Around::Block
}

fn is_early_here(block: *mut u8) -> bool {
    MAPPED.find(block as usize).is_some_and(|found| found.early)
}

/// Takes a block back that is early. `false`: it isn't.
pub(crate) fn take_early(block: *mut u8, layout: Option<Layout>) -> bool {
    let taken = is_early(block) && give_back(block, None).is_some();
    if taken && let Some(layout) = layout {
        HEAP.count_free(None, layout);
    }
    taken
}
