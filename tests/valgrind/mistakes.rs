//! One mistake, by its name, for memcheck to find; `none` does a lot and makes none.
//! Called by: `tests/valgrind/run`.

#![allow(dead_code, unused_imports, reason = "of the files that it shares, it uses a part")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../adversity/work.rs"]
mod work;

use std::alloc::{Layout, alloc, dealloc, realloc};
use std::hint::black_box;
use std::time::Duration;

#[global_allocator]
static GLOBAL: nearheap::NearHeap = nearheap::NearHeap::new();

fn span() -> Duration {
    Duration::from_secs(1)
}

#[inline(never)]
unsafe fn used_after_free(layout: Layout) {
    // SAFETY: it isn't.
    unsafe {
        let block = black_box(alloc(layout));
        block.write(1);
        dealloc(block, layout);
        black_box(block.read());
    }
}

#[inline(never)]
unsafe fn read_before_written(layout: Layout) {
    // SAFETY: it isn't.
    unsafe {
        let block = black_box(alloc(layout));
        if block.add(3).read() == 7 {
            println!("seven");
        }
        dealloc(block, layout);
    }
}

#[inline(never)]
unsafe fn lost(layout: Layout) {
    // SAFETY: a block that nobody frees.
    unsafe { black_box(alloc(layout)).write(1) };
}

/// Every kind of operation, with every byte looked at.
fn none() {
    let (mut first, mut second) = (work::Work::new(3, 100), work::Work::new(4, 100));
    for _ in 0..3000 {
        first.step();
        second.step();
    }
    std::thread::spawn(move || second.end()).join().unwrap();
    first.end();
    let layout = Layout::from_size_align(2 << 20, 8).unwrap();
    // SAFETY: the layout has a size, the block is read where it was written, and freed with the layout that it has.
    unsafe {
        let block = black_box(alloc(layout));
        block.write(9);
        let block = black_box(realloc(block, layout, 40 << 20));
        assert_eq!(block.read(), 9);
        dealloc(block, Layout::from_size_align(40 << 20, 8).unwrap());
    }
    let (used, ()) = nearheap::testing::measure(|| drop(black_box(vec![1; 100])));
    assert_eq!(used.allocations, 1);
    nearheap::purge();
}

fn main() {
    let mistake = std::env::args().nth(1).unwrap_or_default();
    let size = std::env::args().nth(2).and_then(|text| text.parse().ok()).unwrap_or(48);
    let layout = Layout::from_size_align(size, 8).unwrap();
    // SAFETY: mistakes, on purpose.
    unsafe {
        match mistake.as_str() {
            "used_after_free" => used_after_free(layout),
            "read_before_written" => read_before_written(layout),
            "lost" => (0..3).for_each(|_| lost(layout)),
            _ => none(),
        }
    }
}
