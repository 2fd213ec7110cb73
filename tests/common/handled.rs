//! What signal handlers do with the heap here: they allocate, resize and free, keep blocks, free some of the program's, and
//! leave some for the program; all contents are checked. Any thread's handler, within any other, does the next step.
//! Called by: `adversity`, `signals`.

use super::Rng;
use super::contents::{check, fill, is_zero};
use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::cell::UnsafeCell;
use std::hint::black_box;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering::*};

/// Runs the body of a handler as a program has to: inside of what nearheap has for that, or, where every operation does
/// that itself or the test wants to see what happens otherwise, as it is.
pub(crate) fn handle<T>(body: impl FnOnce() -> T) -> T {
    if cfg!(feature = "signals") || UNWRAPPED.load(Relaxed) {
        body()
    } else {
        nearheap::in_signal_handler(body)
    }
}

pub(crate) static UNWRAPPED: AtomicBool = AtomicBool::new(false);

/// A block with contents.
#[derive(Clone, Copy)]
pub(crate) struct Held {
    at: *mut u8,
    layout: Layout,
    id: u64,
}

impl Held {
    /// A new one; `None`: there is no memory.
    pub(crate) fn new(rng: &mut Rng, most: usize) -> Option<Self> {
        let align = [8, 8, 8, 16, 64, 512][rng.below(6)];
        let layout = Layout::from_size_align(rng.by_magnitude(1, most), align).unwrap();
        let zeroed = rng.below(3) == 0;
        // SAFETY: no size is 0.
        let at = black_box(unsafe { if zeroed { alloc_zeroed(layout) } else { alloc(layout) } });
        if at.is_null() {
            return None;
        }
        assert_eq!(at.addr() % align, 0);
        let id = rng.next() >> 20;
        // SAFETY: the block has the layout's bytes.
        unsafe {
            assert!(!zeroed || is_zero(at, layout.size()), "{layout:?} is not zero");
            fill(at, id, 0, layout.size());
        }
        Some(Self { at, layout, id })
    }

    pub(crate) fn resize(&mut self, size: usize) {
        // SAFETY: a block of this layout, filled when it was made, and a size that isn't 0.
        unsafe {
            let at = black_box(realloc(self.at, self.layout, size));
            if at.is_null() {
                return;
            }
            let kept = size.min(self.layout.size());
            check(at, self.id, kept);
            fill(at, self.id, kept, size);
            self.at = at;
        }
        self.layout = Layout::from_size_align(size, self.layout.align()).unwrap();
    }

    pub(crate) fn free(self) {
        // SAFETY: a block of this layout, filled when it was made.
        unsafe {
            check(self.at, self.id, self.layout.size());
            dealloc(self.at, self.layout);
        }
    }
}

/// A place for a block, which whoever has claimed it uses alone.
struct Place(AtomicBool, UnsafeCell<Option<Held>>);
// SAFETY: the cell is used by whoever set the flag.
unsafe impl Sync for Place {}

static KEPT: [Place; 64] = [const { Place(AtomicBool::new(false), UnsafeCell::new(None)) }; 64];
/// From the program to handlers, and back.
static INBOX: [AtomicPtr<Held>; 16] = [const { AtomicPtr::new(ptr::null_mut()) }; 16];
static OUTBOX: [AtomicPtr<Held>; 16] = [const { AtomicPtr::new(ptr::null_mut()) }; 16];

/// Steps so far.
pub(crate) static STEPS: AtomicU64 = AtomicU64::new(0);

fn taken(place: &AtomicPtr<Held>) -> Option<Held> {
    let held = place.swap(ptr::null_mut(), AcqRel);
    // SAFETY: only boxes are put there, and the exchange made it this caller's.
    (!held.is_null()).then(|| *unsafe { Box::from_raw(held) })
}

fn put(place: &AtomicPtr<Held>, held: Held) {
    let before = place.swap(Box::into_raw(Box::new(held)), AcqRel);
    if !before.is_null() {
        // SAFETY: as in `taken`.
        unsafe { Box::from_raw(before) }.free();
    }
}

/// One step of a handler, with blocks of up to `most` bytes.
pub(crate) fn step(most: usize) {
    let n = STEPS.fetch_add(1, Relaxed);
    let mut rng = Rng::new(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let i = rng.below(KEPT.len());
    match rng.below(8) {
        0 => {
            if let Some(held) = taken(&INBOX[i % INBOX.len()]) {
                held.free();
            }
        }
        1 => {
            if let Some(held) = Held::new(&mut rng, most) {
                put(&OUTBOX[i % OUTBOX.len()], held);
            }
        }
        _ => {
            let place = &KEPT[i];
            if place.0.swap(true, Acquire) {
                return;
            }
            // SAFETY: claimed.
            let held = unsafe { &mut *place.1.get() };
            match held {
                None => *held = Held::new(&mut rng, most),
                Some(block) if rng.below(2) == 0 => block.resize(rng.by_magnitude(1, most)),
                Some(_) => held.take().into_iter().for_each(Held::free),
            }
            place.0.store(false, Release);
        }
    }
}

/// What the program does with the boxes: fills the one, empties the other.
pub(crate) fn exchange(rng: &mut Rng, most: usize) {
    for (inbox, outbox) in INBOX.iter().zip(&OUTBOX) {
        if inbox.load(Relaxed).is_null()
            && let Some(held) = Held::new(rng, most)
        {
            put(inbox, held);
        }
        if let Some(mut held) = taken(outbox) {
            if rng.below(2) == 0 {
                held.resize(rng.by_magnitude(1, most));
            }
            held.free();
        }
    }
}

/// Frees all that is left, when no handler runs any more.
pub(crate) fn end() {
    INBOX.iter().chain(&OUTBOX).filter_map(taken).for_each(Held::free);
    for place in &KEPT {
        assert!(!place.0.swap(true, Acquire), "a handler is still running");
        // SAFETY: claimed.
        unsafe { &mut *place.1.get() }.take().into_iter().for_each(Held::free);
        place.0.store(false, Release);
    }
}
