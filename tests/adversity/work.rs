//! What programs do with a heap, for as long as it is asked for, and checked.

use crate::common::contents::{check, fill, is_zero, prepare};
use crate::common::{Rng, seed};
use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Instant;

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Nulls {
    /// There is memory enough.
    Never,
    /// There may be none.
    Maybe,
}

struct Block {
    at: *mut u8,
    layout: Layout,
    id: u64,
}

// SAFETY: whoever has the value is alone with the block.
unsafe impl Send for Block {}

/// Blocks of one thread.
pub(crate) struct Work {
    rng: Rng,
    blocks: Vec<Block>,
    most: usize,
    pub(crate) operations: u64,
    pub(crate) nulls: u64,
}

impl Work {
    /// Up to `most` blocks at a time.
    pub(crate) fn new(seed: u64, most: usize) -> Self {
        let blocks = Vec::with_capacity(most);
        Self { rng: Rng::new(seed), blocks, most, operations: 0, nulls: 0 }
    }

    fn layout(&mut self) -> Layout {
        let most = match self.rng.below(100) {
            0 => 4 << 20,
            1..=9 => 200 << 10,
            _ => 2000,
        };
        let align = [8, 8, 8, 16, 64, 512][self.rng.below(6)];
        Layout::from_size_align(self.rng.by_magnitude(1, most), align).unwrap()
    }

    fn add(&mut self) {
        let layout = self.layout();
        let zeroed = self.rng.below(3) == 0;
        // SAFETY: no size is 0.
        let at = black_box(unsafe { if zeroed { alloc_zeroed(layout) } else { alloc(layout) } });
        if at.is_null() {
            self.nulls += 1;
            return;
        }
        assert_eq!(at.addr() % layout.align(), 0);
        // SAFETY: the block has the layout's bytes.
        unsafe {
            assert!(!zeroed || is_zero(at, layout.size()), "{layout:?} is not zero");
            fill(at, self.operations, 0, layout.size());
        }
        self.blocks.push(Block { at, layout, id: self.operations });
    }

    fn free(&mut self, i: usize) {
        let Block { at, layout, id } = self.blocks.swap_remove(i);
        // SAFETY: a block of this layout, filled when it was made.
        unsafe {
            check(at, id, layout.size());
            dealloc(at, layout);
        }
    }

    fn resize(&mut self, i: usize) {
        let size = self.layout().size();
        let block = &mut self.blocks[i];
        // SAFETY: a block of this layout, filled when it was made, and a size that isn't 0.
        unsafe {
            let at = realloc(block.at, block.layout, size);
            if at.is_null() {
                self.nulls += 1;
                check(block.at, block.id, block.layout.size());
                return;
            }
            let kept = size.min(block.layout.size());
            check(at, block.id, kept);
            fill(at, block.id, kept, size);
            block.at = at;
        }
        block.layout = Layout::from_size_align(size, block.layout.align()).unwrap();
    }

    /// One operation.
    pub(crate) fn step(&mut self) {
        self.operations += 1;
        let live = self.blocks.len();
        let i = self.rng.below(live.max(1));
        match self.rng.below(8) {
            0 if live > 0 => self.resize(i),
            1..=3 if live > 0 => self.free(i),
            _ if live < self.most => self.add(),
            _ => self.free(i),
        }
    }

    pub(crate) fn end(&mut self) {
        while !self.blocks.is_empty() {
            self.free(0);
        }
    }
}

static STOP: AtomicBool = AtomicBool::new(false);

/// Runs `adversity` while `threads` threads work; in the end the heap has what it had. The operations and the nulls.
pub(crate) fn beside(threads: u64, adversity: impl FnOnce()) -> (u64, u64) {
    prepare();
    let seed = seed();
    let in_use = nearheap::stats().totals.in_use_bytes;
    let (operations, nulls) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|s| {
        for i in 0..threads {
            let (operations, nulls) = (&operations, &nulls);
            s.spawn(move || {
                let mut work = Work::new(seed ^ i, 300);
                while !STOP.load(Relaxed) {
                    work.step();
                }
                work.end();
                operations.fetch_add(work.operations, Relaxed);
                nulls.fetch_add(work.nulls, Relaxed);
            });
        }
        adversity();
        STOP.store(true, Relaxed);
    });
    STOP.store(false, Relaxed);
    let (operations, nulls) = (operations.into_inner(), nulls.into_inner());
    eprintln!("{threads} threads: {operations} operations, {nulls} nulls");
    // The standard library frees what the threads had a moment after they have ended, or keeps some of it.
    let left = nearheap::stats().totals.in_use_bytes.saturating_sub(in_use);
    assert!(left < 16 << 10, "{left} bytes are still in use");
    assert!(operations > threads * 100, "hardly anything was done");
    (operations, nulls)
}

/// Works for as long as a campaign lasts.
pub(crate) fn on_threads(threads: u64, expected: Nulls) {
    let began = Instant::now();
    let (_, nulls) = beside(threads, || {
        while began.elapsed() < crate::span() {
            thread::sleep(std::time::Duration::from_millis(5));
        }
    });
    assert!(expected == Nulls::Maybe || nulls == 0, "{nulls} nulls");
}
