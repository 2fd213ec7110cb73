//! Handlers in every state of a thread, and what becomes of their blocks.

use crate::common::handled::{Held, end, exchange, handle, step};
use crate::common::{Rng, contents, overhead};
use nearheap::{NearHeap, NodeHeap};
use std::alloc::{GlobalAlloc, Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::cell::RefCell;
use std::hint::black_box;
use std::mem::zeroed;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering::*};
use std::thread;

static BODY: AtomicUsize = AtomicUsize::new(0);
static DONE: AtomicU64 = AtomicU64::new(0);

/// Runs a function in a signal handler of the calling thread.
fn signalled(body: fn()) {
    extern "C" fn handler(_: libc::c_int) {
        // SAFETY: only functions are stored there.
        let body: fn() = unsafe { std::mem::transmute(BODY.load(Relaxed)) };
        handle(body);
        DONE.fetch_add(1, Relaxed);
    }
    let before = DONE.load(Relaxed);
    BODY.store(body as usize, Relaxed);
    // SAFETY: the handler uses the heap, as is to be tested; one handler may interrupt another.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_NODEFER;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &action, ptr::null_mut()), 0);
        assert_eq!(libc::raise(libc::SIGUSR1), 0);
    }
    assert!(DONE.load(Relaxed) > before);
}

fn some_steps() {
    (0..300).for_each(|_| step(40 << 10));
}

struct AtEnd;

thread_local! {
    static AT_END: RefCell<Vec<AtEnd>> = const { RefCell::new(Vec::new()) };
}

impl Drop for AtEnd {
    fn drop(&mut self) {
        signalled(some_steps);
    }
}

/// On a thread that is fresh, at work, at its end, measured; and in a handler in a handler.
pub(crate) fn any_thread() {
    contents::prepare();
    let before = nearheap::stats().totals.in_use_bytes;
    signalled(some_steps);
    extern "C" fn first(_: *mut libc::c_void) -> *mut libc::c_void {
        signalled(some_steps);
        AT_END.with(|list| list.borrow_mut().push(AtEnd));
        ptr::null_mut()
    }
    // SAFETY: a thread that is waited for. The standard library would have allocated on it.
    unsafe {
        let mut thread = 0;
        assert_eq!(libc::pthread_create(&mut thread, ptr::null(), first, ptr::null_mut()), 0);
        assert_eq!(libc::pthread_join(thread, ptr::null_mut()), 0);
    }
    let (used, ()) = nearheap::testing::measure(|| {
        drop(black_box(vec![1_u8; 64]));
        signalled(some_steps);
        drop(black_box(vec![1_u8; 64]));
    });
    // With the feature, what runs in a handler between two operations is like the rest of its thread.
    assert!(cfg!(feature = "signals") || (used.allocations, used.frees) == (2, 2), "{used}");
    signalled(|| {
        some_steps();
        signalled(some_steps);
        some_steps();
    });
    exchange(&mut Rng::new(2), 1000);
    end();
    // The handler of a handler is told from what it interrupts, and so is what follows.
    let block = black_box(Box::new(1));
    drop(block);
    let left = nearheap::stats().totals.in_use_bytes.abs_diff(before);
    assert!(left < 1000, "{left} bytes");
}

static KEPT: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
static SIZE: AtomicUsize = AtomicUsize::new(0);
static ALIGN: AtomicUsize = AtomicUsize::new(0);

fn layout() -> Layout {
    Layout::from_size_align(SIZE.load(Relaxed), ALIGN.load(Relaxed)).unwrap()
}

/// Blocks of all kinds are allocated in a handler and used outside, and the other way round.
pub(crate) fn kept() {
    contents::prepare();
    let totals = || {
        let t = nearheap::stats().totals;
        (t.allocs - t.frees, t.in_use_bytes)
    };
    let before = totals();
    for size in [1, 48, 100, 1000, 5000, 32 << 10, 100 << 10, 1 << 20, 3 << 20] {
        for align in [8, 16, 64, 4096, 1 << 16, 2 << 20] {
            for zeroed in [false, true] {
                SIZE.store(size, Relaxed);
                ALIGN.store(align, Relaxed);
                let fresh: fn() = if zeroed {
                    // SAFETY: the layout has a size.
                    || KEPT.store(unsafe { alloc_zeroed(layout()) }, Relaxed)
                } else {
                    // SAFETY: the layout has a size.
                    || KEPT.store(unsafe { alloc(layout()) }, Relaxed)
                };
                signalled(fresh);
                let block = KEPT.load(Relaxed);
                assert!(!block.is_null() && block.addr().is_multiple_of(align), "{size} {align}");
                let usable = NearHeap::usable_size(layout());
                let (allocs, bytes) = totals();
                assert_eq!(allocs, before.0 + 1, "{size} {align}");
                assert!(bytes >= before.1 + size as u64 && usable >= size);
                // SAFETY: the block has the bytes; it is resized and freed with the layouts that it has.
                unsafe {
                    assert!(!zeroed || contents::is_zero(block, size), "{size} {align}");
                    contents::fill(block, 7, 0, usable);
                    contents::check(block, 7, usable);
                    // Outside: larger, and freed by another thread.
                    let larger = black_box(realloc(block, layout(), size * 2 + 1));
                    contents::check(larger, 7, size);
                    let now = Layout::from_size_align(size * 2 + 1, align).unwrap();
                    let send = larger.expose_provenance();
                    let free = move || dealloc(ptr::with_exposed_provenance_mut(send), now);
                    thread::spawn(free).join().unwrap();
                    // The program's, resized and freed in a handler.
                    let block = black_box(alloc(layout()));
                    contents::fill(block, 9, 0, size);
                    KEPT.store(block, Relaxed);
                    signalled(|| {
                        let new = layout().size() * 3;
                        let block = realloc(KEPT.load(Relaxed), layout(), new);
                        contents::check(block, 9, layout().size());
                        KEPT.store(block, Relaxed);
                    });
                    let tripled = Layout::from_size_align(size * 3, align).unwrap();
                    dealloc(black_box(KEPT.load(Relaxed)), tripled);
                    let block = black_box(alloc(layout()));
                    KEPT.store(block, Relaxed);
                    signalled(|| dealloc(KEPT.load(Relaxed), layout()));
                }
                let (allocs, bytes) = totals();
                let (more, rest) = (allocs.abs_diff(before.0), bytes.abs_diff(before.1));
                // A thread that has ended may not have freed all of its own yet.
                assert!(more < 9 && rest < 9000, "{size} {align}: {more} blocks, {rest} bytes");
            }
        }
    }
    // Many small ones, freed outside: they go through caches and magazines.
    for _ in 0..50 {
        signalled(|| {
            let mut list = Vec::new();
            for i in 0..2000_u64 {
                list.push(Box::new([i; 6]));
            }
            let list = Box::new(list);
            KEPT.store(Box::into_raw(list).cast(), Relaxed);
        });
        // SAFETY: the box that the handler has left.
        let list = unsafe { Box::from_raw(KEPT.load(Relaxed).cast::<Vec<Box<[u64; 6]>>>()) };
        assert!(list.iter().enumerate().all(|(i, b)| **b == [i as u64; 6]));
    }
    nearheap::purge();
    let (allocs, bytes) = totals();
    assert!(allocs.abs_diff(before.0) < 9 && bytes.abs_diff(before.1) < 9000);
}

/// Frees that waited for the operation that finds its slot empty: each is counted, and its block is used again.
pub(crate) fn exact() {
    let mut blocks = [ptr::null_mut(); 400];
    let in_use = || {
        let t = nearheap::stats().totals;
        t.allocs - t.frees
    };
    let before = in_use();
    for _ in 0..20 {
        for block in &mut blocks {
            // SAFETY: the layout has a size.
            let other = unsafe {
                *block = black_box(alloc(HUNDRED));
                black_box(alloc(HUNDRED))
            };
            KEPT.store(other, Relaxed);
            // SAFETY: the block of above, which nobody uses.
            signalled(|| unsafe { dealloc(KEPT.load(Relaxed), HUNDRED) });
        }
        // SAFETY: blocks of above, each once.
        blocks.iter().for_each(|&block| unsafe { dealloc(block, HUNDRED) });
    }
    assert_eq!(in_use(), before);
}

/// A handler that goes on for as long as an hour at a kHz, and blocks that go from it to the program: nothing grows.
pub(crate) fn steady() {
    contents::prepare();
    let mut mapped = [0; 4];
    let rounds = if cfg!(debug_assertions) { 3_000 } else { 60_000 };
    let mut rng = Rng::new(3);
    for place in &mut mapped {
        for _ in 0..rounds / 4 {
            signalled(|| (0..15).for_each(|_| step(1000)));
            exchange(&mut rng, 1000);
        }
        *place = nearheap::stats().system.mapped_bytes;
    }
    end();
    eprintln!("mapped: {mapped:?}");
    assert!(mapped[3] <= mapped[0] + (4 << 20), "{mapped:?}");
}

/// What else a handler may call.
pub(crate) fn questions() {
    contents::prepare();
    signalled(|| {
        let stats = nearheap::stats();
        let mut rows = 0;
        nearheap::threads(&mut |_| {
            rows += 1;
            Ok(())
        })
        .unwrap();
        nearheap::flush_thread();
        let purged = nearheap::purge();
        let _ = nearheap::pressure();
        let mut walked = 0;
        nearheap::walk(&mut |_| walked += 1);
        let inside = !cfg!(feature = "signals");
        assert!(!inside || (stats.totals.allocs, rows, purged, walked) == (0, 0, 0, 0));
        let layout = Layout::from_size_align(300, 8).unwrap();
        // SAFETY: the layout has a size, and the block is resized and freed with those that it has.
        unsafe {
            let block = NodeHeap::on(0).alloc(layout);
            block.write_bytes(5, 300);
            let block = NodeHeap::on(0).realloc(block, layout, 3000);
            assert_eq!(*block.add(299), 5);
            NodeHeap::on(0).dealloc(block, Layout::from_size_align(3000, 8).unwrap());
        }
    });
    // Outside, everything is as before.
    assert!(nearheap::stats().totals.allocs > 0);
    let _ = overhead();
}

/// A handler forks: parent and child go on with what they have.
pub(crate) fn forked() {
    contents::prepare();
    let mut rng = Rng::new(5);
    let mut blocks: Vec<Held> = (0..500).filter_map(|_| Held::new(&mut rng, 3000)).collect();
    signalled(some_steps);
    // Between two handlers.
    for _ in 0..2 {
        // SAFETY: the child uses the heap and leaves.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            blocks.drain(..).for_each(Held::free);
            signalled(some_steps);
            exchange(&mut rng, 3000);
            end();
            // SAFETY: no preconditions.
            unsafe { libc::_exit(0) };
        }
        ended_well(child);
    }
    // In a handler; the child is one still.
    if !cfg!(feature = "signals") {
        signalled(|| {
            // SAFETY: as above.
            let child = unsafe { libc::fork() };
            some_steps();
            if child == 0 {
                // SAFETY: no preconditions.
                unsafe { libc::_exit(0) };
            }
            ended_well(child);
        });
    }
    blocks.drain(..).for_each(Held::free);
    end();
}

fn ended_well(child: libc::pid_t) {
    let mut status = 0;
    // SAFETY: a child of this process's own, and a place for its status.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "the child ended so");
}

const HUNDRED: Layout = Layout::new::<[u8; 100]>();

fn of_a_handler() -> *mut u8 {
    // SAFETY: the layout has a size. Inside, whatever the build: it is about blocks of handlers.
    nearheap::in_signal_handler(|| black_box(unsafe { alloc(HUNDRED) }))
}

/// Frees a handler's block twice, outside.
pub(crate) fn frees_twice() {
    let block = of_a_handler();
    // SAFETY: no: that is what is tested.
    unsafe {
        dealloc(block, HUNDRED);
        dealloc(black_box(block), HUNDRED);
    }
}

/// The same in a handler.
pub(crate) fn frees_twice_at_once() {
    let block = of_a_handler();
    // SAFETY: no: that is what is tested.
    nearheap::in_signal_handler(|| unsafe {
        dealloc(block, HUNDRED);
        dealloc(black_box(block), HUNDRED);
    });
}

/// Writes behind a handler's block.
pub(crate) fn writes_behind() {
    let block = of_a_handler();
    // SAFETY: no: that is what is tested.
    unsafe {
        block.add(100).write(1);
        dealloc(black_box(block), HUNDRED);
    }
}
