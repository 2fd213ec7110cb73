//! The stress tests, for ThreadSanitizer: every access that two threads make without an order between them is told.
//! Called by: `tests/tsan/run`. With the word `race` it makes such an access itself, which must be found.

#![allow(dead_code, unused_imports, reason = "of the files that it shares, it uses a part")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../threads/stress.rs"]
mod stress;
#[path = "../adversity/work.rs"]
mod work;

use std::alloc::{Layout, alloc, dealloc};
use std::hint::black_box;
use std::thread;
use std::time::Duration;

#[global_allocator]
static GLOBAL: nearheap::NearHeap = nearheap::NearHeap::new();

/// What the stress tests compare, without what depends on pages: the sanitizer has its own.
struct Held(u64);

impl Held {
    fn now() -> Self {
        nearheap::purge();
        Self(nearheap::stats().totals.in_use_blocks)
    }

    fn is_as(before: &Self) {
        assert_eq!(Self::now().0, before.0);
    }
}

fn span() -> Duration {
    Duration::from_secs(20)
}

/// A block that one thread writes to while another frees it.
fn race() {
    struct Block(*mut u8);
    // SAFETY: it isn't; that is what shall be found.
    unsafe impl Send for Block {}
    let layout = Layout::new::<[u64; 8]>();
    // SAFETY: the layout has a size; both threads end before the block is freed, but nothing orders their writes.
    unsafe {
        let at = alloc(layout);
        let other = Block(at);
        let writer = thread::spawn(move || {
            let other = other;
            for i in 0..1000 {
                black_box(other.0).write_volatile(i as u8);
            }
        });
        for i in 0..1000 {
            black_box(at).write_volatile(i as u8);
        }
        writer.join().unwrap();
        dealloc(at, layout);
    }
}

fn main() {
    if std::env::args().any(|word| word == "race") {
        return race();
    }
    stress::pass_around();
    // Beside threads that come and go, purges, statistics, and blocks of every layer.
    let began = std::time::Instant::now();
    let (operations, nulls) = work::beside(4, || {
        while began.elapsed() < span() {
            thread::scope(|s| {
                for i in 0..4 {
                    s.spawn(move || {
                        let mut work = work::Work::new(i, 50);
                        (0..200).for_each(|_| work.step());
                        work.end();
                    });
                }
            });
            nearheap::flush_thread();
            nearheap::purge();
            let _ = nearheap::threads(&mut |_| Ok(()));
        }
    });
    println!("{operations} operations, {nulls} nulls, no race");
}
