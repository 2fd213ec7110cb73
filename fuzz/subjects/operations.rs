//! Sequences of operations on the heap: after any of them every block is aligned, apart from every other and as it was
//! written, and in the end the heap has counted what was done.
//! Called by: the fuzz target, and `tests/fuzz`, which replays what was found.
//!
//! The input is a list of operations of four bytes: what is done, to which block, and two bytes of a size. They come from
//! this thread or, every now and then, from another one, so that blocks go from one cache to the other.

use nearheap::NearHeap;
use std::alloc::{GlobalAlloc, Layout};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

static HEAP: NearHeap = NearHeap::new();

/// Bytes that the blocks of one input may have together.
const BYTES_MOST: usize = 24 << 20;
/// Blocks of one `Burst`.
const BURST: usize = 100;

struct Block {
    at: *mut u8,
    layout: Layout,
    stamp: u8,
}

// SAFETY: a block is memory that whoever holds it may use, on any thread.
unsafe impl Send for Block {}

/// A size whose order of magnitude is in the upper bits: up to 4 MiB.
fn size_of(low: u8, high: u8) -> usize {
    let magnitude = u32::from(high >> 3) % 23;
    let fine = usize::from(high & 7) << 8 | usize::from(low);
    (1 << magnitude) + (fine << magnitude >> 11)
}

fn layout_of(op: u8, low: u8, high: u8) -> Layout {
    let align = match op >> 4 {
        0..=9 => 8,
        n @ 10..=14 => 16 << (2 * (n - 9)),
        _ => 1,
    };
    Layout::from_size_align(size_of(low, high), align).unwrap()
}

impl Block {
    fn new(layout: Layout, zeroed: bool, stamp: u8) -> Self {
        // SAFETY: no size is 0.
        let at = unsafe { if zeroed { HEAP.alloc_zeroed(layout) } else { HEAP.alloc(layout) } };
        let block = Self { at, layout, stamp };
        block.look();
        // SAFETY: inside the block.
        let is_zero = |i| unsafe { *at.add(i) } == 0;
        assert!(!zeroed || block.places(0).all(is_zero), "{layout:?} is not zero");
        block.mark(0);
        block
    }

    fn look(&self) {
        assert!(!self.at.is_null(), "no memory for {:?}", self.layout);
        assert_eq!(self.at.addr() % self.layout.align(), 0, "{:?}", self.layout);
    }

    /// Both ends, and places between them.
    fn places(&self, from: usize) -> impl Iterator<Item = usize> {
        let len = self.layout.size();
        let ends = (0..len.min(16)).chain(len.saturating_sub(16)..len);
        ends.chain((0..len).step_by(4096)).filter(move |&i| i >= from)
    }

    fn mark_at(&self, i: usize) -> u8 {
        self.stamp ^ (i >> 8) as u8 ^ i as u8
    }

    fn mark(&self, from: usize) {
        for i in self.places(from) {
            // SAFETY: inside the block.
            unsafe { self.at.add(i).write(self.mark_at(i)) };
        }
    }

    fn check(&self) {
        for i in self.places(0) {
            // SAFETY: inside the block, and written before.
            let found = unsafe { self.at.add(i).read() };
            assert_eq!(found, self.mark_at(i), "byte {i} of {:?}", self.layout);
        }
    }

    fn free(self) {
        self.check();
        // SAFETY: a block of this layout, which is freed once, as it is consumed.
        unsafe { HEAP.dealloc(self.at, self.layout) };
    }

    /// The start of the block moves with it; what is behind the smaller of both sizes is marked anew.
    fn resize(&mut self, size: usize) {
        self.check();
        let kept = self.layout.size().min(size);
        // SAFETY: a block of this layout, and no size is 0.
        self.at = unsafe { HEAP.realloc(self.at, self.layout, size) };
        let marked = |i: &usize| *i < 16.min(kept) || i.is_multiple_of(4096) && *i < kept;
        self.layout = Layout::from_size_align(size, self.layout.align()).unwrap();
        self.look();
        for i in self.places(0).filter(marked) {
            // SAFETY: inside of what the block was before.
            let found = unsafe { self.at.add(i).read() };
            assert_eq!(
                found,
                self.mark_at(i),
                "byte {i} of {:?} after it was resized",
                self.layout
            );
        }
        self.mark(0);
    }
}

/// Another thread, which frees what it is sent.
struct Other {
    work: SyncSender<Vec<Block>>,
    done: Receiver<()>,
}

impl Other {
    fn start() -> Self {
        let (work, todo) = sync_channel::<Vec<Block>>(0);
        let (say, done) = sync_channel(0);
        thread::spawn(move || {
            for blocks in todo {
                blocks.into_iter().for_each(Block::free);
                say.send(()).unwrap();
            }
            nearheap::flush_thread();
        });
        Self { work, done }
    }

    fn free(&self, blocks: Vec<Block>) {
        self.work.send(blocks).unwrap();
        self.done.recv().unwrap();
    }
}

/// No two blocks share a byte.
fn check_apart(blocks: &[Block]) {
    let mut ends: Vec<_> =
        blocks.iter().map(|b| (b.at.addr(), b.at.addr() + b.layout.size())).collect();
    ends.sort_unstable();
    for pair in ends.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "{pair:x?} overlap");
    }
}

/// Runs one input.
pub(crate) fn try_input(input: &[u8]) {
    let before = nearheap::stats().totals;
    let (mut blocks, mut bytes) = (Vec::<Block>::new(), 0);
    let (mut other, mut stamp) = (None, 0_u8);
    for op in input.chunks_exact(4) {
        let &[op, which, low, high] = op else { continue };
        stamp = stamp.wrapping_add(1);
        let layout = layout_of(op, low, high);
        let size = layout.size();
        let some = usize::from(which) % blocks.len().max(1);
        match op & 15 {
            0..=3 | 13 if bytes + size > BYTES_MOST => {}
            0..=2 => {
                blocks.push(Block::new(layout, false, stamp));
                bytes += size;
            }
            3 => {
                blocks.push(Block::new(layout, true, stamp));
                bytes += size;
            }
            4..=7 if !blocks.is_empty() => {
                let block = blocks.swap_remove(some);
                bytes -= block.layout.size();
                block.free();
            }
            8 | 9 if !blocks.is_empty() && bytes + size <= BYTES_MOST => {
                bytes -= blocks[some].layout.size();
                blocks[some].resize(size);
                bytes += size;
            }
            10 if !blocks.is_empty() => {
                let rest = blocks.split_off(some);
                bytes -= rest.iter().map(|b| b.layout.size()).sum::<usize>();
                other.get_or_insert_with(Other::start).free(rest);
            }
            11 if high == 0 => nearheap::flush_thread(),
            12 if high == 0 => _ = nearheap::purge(),
            // Many of one size, so that caches and magazines fill and empty.
            13 if size <= 2048 => {
                blocks.extend((0..BURST).map(|_| Block::new(layout, false, stamp)));
                bytes += BURST * size;
            }
            14 => {
                let from = blocks.len().saturating_sub(BURST);
                for block in blocks.drain(from..) {
                    bytes -= block.layout.size();
                    block.free();
                }
            }
            _ => {}
        }
    }
    check_apart(&blocks);
    let (count, allocs) = (blocks.len() as u64, nearheap::stats().totals);
    assert_eq!(allocs.in_use_blocks, before.in_use_blocks + count);
    blocks.into_iter().for_each(Block::free);
    drop(other);
    nearheap::flush_thread();
    let after = nearheap::stats().totals;
    assert_eq!(
        (after.in_use_blocks, after.in_use_bytes),
        (before.in_use_blocks, before.in_use_bytes)
    );
}
