//! A handler after every instruction.

use crate::common::handled::{STEPS, UNWRAPPED, end, exchange, handle, step};
use crate::common::{Rng, contents};
use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::hint::black_box;
use std::mem::zeroed;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The CPU traps after the next instruction.
const TRAP: i64 = 1 << 8;

/// Instructions between handlers, and with them.
const SILENCE: usize = 500;
/// One in so many operations is looked at.
const SHARE: usize = 7;
/// Instructions of an operation that are looked at.
const MOST: usize = if cfg!(debug_assertions) { 10_000 } else { 20_000 };
static NTH: AtomicUsize = AtomicUsize::new(0);
static OPERATION: AtomicUsize = AtomicUsize::new(0);

static STEPPING: AtomicBool = AtomicBool::new(false);
/// What the handler does, and how often.
static BODY: AtomicUsize = AtomicUsize::new(0);

extern "C" fn on_trap(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands a handler the context that it interrupted.
    let flags = unsafe {
        &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_EFL as usize]
    };
    let n = NTH.fetch_add(1, Relaxed);
    if !STEPPING.load(Relaxed) || n > MOST {
        *flags &= !TRAP;
        return;
    }
    *flags |= TRAP;
    // Where a handler comes after each instruction of an exchange that is tried again if another came between, it is tried for
    // ever. So handlers are silent for a while, at other instructions in the next operation.
    if n / SILENCE % 2 == 1 {
        return;
    }
    // SAFETY: only functions are stored there.
    let body: fn() = unsafe { std::mem::transmute(BODY.load(Relaxed)) };
    handle(body);
}

/// Does something with a handler after every instruction of it.
fn stepped<T>(body: fn(), what: impl FnOnce() -> T) -> T {
    let operation = OPERATION.fetch_add(1, Relaxed);
    BODY.store(body as usize, Relaxed);
    NTH.store(operation / SHARE % 2 * SILENCE, Relaxed);
    STEPPING.store(true, Relaxed);
    // SAFETY: the first trap is the signal itself.
    unsafe { libc::raise(libc::SIGTRAP) };
    let done = what();
    STEPPING.store(false, Relaxed);
    // One instruction more at least, whose trap is the last.
    black_box(done)
}

fn install() {
    contents::prepare();
    // SAFETY: the handler uses the heap, as is to be tested.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = on_trap as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGTRAP, &action, ptr::null_mut()), 0);
    }
}

/// A block of the program's, each operation on which is stepped through.
struct Block {
    at: *mut u8,
    layout: Layout,
    id: u64,
}

/// [`stepped`], or not: so that the time does for many operations of which some are looked at.
fn sometimes<T>(what: impl FnOnce() -> T) -> T {
    if OPERATION.load(Relaxed).is_multiple_of(SHARE) {
        stepped(small, what)
    } else {
        OPERATION.fetch_add(1, Relaxed);
        what()
    }
}

fn small() {
    step(2000);
}

impl Block {
    fn new(rng: &mut Rng, most: usize) -> Self {
        let align = [8, 8, 8, 16, 64, 512][rng.below(6)];
        let layout = Layout::from_size_align(rng.by_magnitude(1, most), align).unwrap();
        let id = rng.next() >> 20;
        // SAFETY: no size is 0; the block has the layout's bytes.
        unsafe {
            let at = if layout.size() < 1000 && rng.below(3) == 0 {
                let at = sometimes(|| alloc_zeroed(layout));
                assert!(contents::is_zero(at, layout.size()));
                at
            } else {
                sometimes(|| alloc(layout))
            };
            assert!(!at.is_null() && at.addr().is_multiple_of(align));
            contents::fill(at, id, 0, layout.size());
            Self { at, layout, id }
        }
    }

    fn resize(&mut self, size: usize) {
        let (kept, layout) = (size.min(self.layout.size()), self.layout);
        // SAFETY: a block of this layout, filled when it was made, and a size that isn't 0.
        unsafe {
            self.at = sometimes(|| realloc(self.at, layout, size));
            contents::check(self.at, self.id, kept);
            contents::fill(self.at, self.id, kept, size);
        }
        self.layout = Layout::from_size_align(size, layout.align()).unwrap();
    }

    fn free_unstepped(self) {
        // SAFETY: as below.
        unsafe {
            contents::check(self.at, self.id, self.layout.size());
            dealloc(self.at, self.layout);
        }
    }

    fn free(self) {
        // SAFETY: a block of this layout, filled when it was made.
        unsafe {
            contents::check(self.at, self.id, self.layout.size());
            sometimes(|| dealloc(self.at, self.layout));
        }
    }
}

/// How long the program goes on.
const SPAN: Duration = Duration::from_secs(3);

/// Every kind of operation, warm and cold, on blocks whose contents are checked. What copies, copies little: each byte may be
/// an instruction.
pub(crate) fn every_instruction() {
    install();
    let before = nearheap::stats().totals;
    let mut rng = Rng::new(1);
    let mut blocks: Vec<Block> = Vec::with_capacity(300);
    let began = Instant::now();
    let goes_on = |&_: &usize| began.elapsed() < SPAN;
    let mut rounds = 0;
    while goes_on(&0) {
        rounds += 1;
        let most = [300, 300, 2000, 2000, 40 << 10, 3 << 20][rounds % 6];
        let n = rng.below(blocks.len() + 1);
        match rounds % 8 {
            0 if n < blocks.len() && blocks[n].layout.size() < 3000 => {
                blocks[n].resize(rng.by_magnitude(1, 3000));
            }
            1 | 5 => (0..40.min(n)).filter(goes_on).for_each(|_| blocks.swap_remove(0).free()),
            3 => exchange(&mut rng, 2000),
            7 if rounds % 16 == 7 => sometimes(nearheap::flush_thread),
            7 if rounds == 31 => _ = sometimes(nearheap::purge),
            _ => {
                (0..20).filter(goes_on).for_each(|_| blocks.push(Block::new(&mut rng, most)));
            }
        }
        if let Some(huge) = blocks.iter_mut().find(|block| block.layout.size() > 1 << 20) {
            huge.resize(rng.by_magnitude(1 << 21, 1 << 23));
        }
    }
    blocks.drain(..).for_each(Block::free_unstepped);
    let steps = STEPS.load(Relaxed);
    // The first operations of a thread. (While it ends, the C library lets no signal in.)
    for i in 0..4 {
        // Half of them begin with a silence.
        OPERATION.store(i * SHARE, Relaxed);
        let thread = std::thread::spawn(|| {
            stepped(small, || drop(black_box(vec![1_u8; 100])));
        });
        thread.join().unwrap();
    }
    end();
    drop(blocks);
    let after = nearheap::stats().totals;
    let ends = STEPS.load(Relaxed) - steps;
    eprintln!("{rounds} rounds, {steps} handlers, and {ends} in threads that began");
    assert!(steps > 20_000 && ends > 100);
    // The standard library keeps a little of what a thread was. With the feature, two blocks of 512 bytes stay of each thread
    // in whose first operation a handler came after every instruction: known, and open (docs/RELIABILITY.md).
    let most = if cfg!(feature = "signals") { 6000 } else { 2000 };
    let left = after.in_use_bytes.abs_diff(before.in_use_bytes);
    assert!(left < most, "{left} bytes in use more or less");
}

const LAYOUT: Layout = Layout::new::<[u64; 6]>();
static SEEN: AtomicUsize = AtomicUsize::new(0);

/// A handler that takes a block of the size that its thread is about to get.
pub(crate) fn unwrapped() {
    UNWRAPPED.store(true, Relaxed);
    install();
    fn body() {
        // SAFETY: the layout has a size. It is never freed.
        SEEN.store(unsafe { alloc(LAYOUT) }.expose_provenance(), Relaxed);
    }
    // SAFETY: the layout has a size; the blocks are freed once.
    unsafe {
        let blocks = [(); 40].map(|()| black_box(alloc(LAYOUT)));
        blocks.into_iter().for_each(|block| dealloc(block, LAYOUT));
        // One handler, after the n-th instruction, for every n: where the thread has looked and not yet taken.
        for n in 0..6000 {
            static LEFT: AtomicUsize = AtomicUsize::new(0);
            LEFT.store(n, Relaxed);
            fn once() {
                if LEFT.fetch_sub(1, Relaxed) == 0 {
                    body();
                }
            }
            SEEN.store(0, Relaxed);
            // An operation that doesn't begin with a silence.
            OPERATION.store(0, Relaxed);
            let block = stepped(once, || black_box(alloc(LAYOUT)));
            let other = ptr::with_exposed_provenance_mut::<u8>(SEEN.load(Relaxed));
            if block == other {
                eprintln!("the same block twice, after instruction {n}");
                return;
            }
            dealloc(block, LAYOUT);
            if !other.is_null() {
                dealloc(other, LAYOUT);
            }
        }
    }
}
