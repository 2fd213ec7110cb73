//! The allocator's hot paths, timed by criterion: pairs, zeroed blocks, batches freed here and by another thread, growth.
//!
//! `cargo bench --bench hot`; `README.md` beside this file says how to compare two runs. Built with `--cfg system_alloc`,
//! the same loops time the system's allocator. The blocks are asked for the way that programs do it, through `Box` and
//! `Vec`, and each one passes through `black_box`: the optimiser removes allocations that it can see through.

// The macros of criterion make public items without documentation.
#![allow(missing_docs)]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::mem::MaybeUninit;

#[cfg(not(system_alloc))]
#[global_allocator]
static GLOBAL: nearheap::NearHeap = nearheap::NearHeap::new();

/// Blocks in a batch: more than a thread cache holds, so that the layers behind it are timed as well.
const BATCH_BLOCKS: usize = 1_000;
/// Pairs in one iteration of the random-size loop: enough to bury the cost of the loop.
const RANDOM_PAIRS: usize = 1_000;

type Block = Box<MaybeUninit<[u8; 64]>>;

/// One block of a size that the compiler knows, allocated and freed.
fn pair<const SIZE: usize>(c: &mut Criterion) {
    c.bench_function(&format!("pair/{SIZE}"), |b| {
        b.iter(|| drop(black_box(Box::<[u8; SIZE]>::new_uninit())));
    });
}

fn constant_pairs(c: &mut Criterion) {
    pair::<16>(c);
    pair::<48>(c);
    pair::<256>(c);
    pair::<1_024>(c);
    pair::<4_096>(c);
    pair::<32_768>(c);
    pair::<262_144>(c);
    pair::<4_194_304>(c);
}

/// Blocks of 1 to 1,024 bytes, small ones more often, each freed before the next is allocated.
fn random_pairs(c: &mut Criterion) {
    let mut random = Random(1);
    let sizes: Vec<usize> =
        (0..RANDOM_PAIRS).map(|_| 1 + (random.next() >> (random.next() % 11)) % 1_024).collect();
    let mut group = c.benchmark_group("pair");
    group.throughput(Throughput::Elements(RANDOM_PAIRS as u64));
    group.bench_function("random", |b| {
        b.iter(|| {
            for &size in &sizes {
                drop(black_box(Vec::<u8>::with_capacity(size)));
            }
        });
    });
    group.finish();
}

/// A thousand blocks, then all of them freed in the order that `order` gives.
fn batch(c: &mut Criterion, name: &str, order: &[usize]) {
    let mut group = c.benchmark_group("batch");
    group.throughput(Throughput::Elements(BATCH_BLOCKS as u64));
    group.bench_function(name, |b| {
        let mut slots: Vec<Option<Block>> = Vec::with_capacity(BATCH_BLOCKS);
        b.iter(|| {
            slots.clear();
            slots.extend((0..BATCH_BLOCKS).map(|_| Some(black_box(Box::new_uninit()))));
            for &index in order {
                if let Some(slot) = slots.get_mut(index) {
                    *slot = None;
                }
            }
        });
    });
    group.finish();
}

fn batches(c: &mut Criterion) {
    let mut order: Vec<usize> = (0..BATCH_BLOCKS).collect();
    batch(c, "in order", &order);
    order.reverse();
    batch(c, "in reverse", &order);
    let mut random = Random(1);
    for end in (1..BATCH_BLOCKS).rev() {
        order.swap(end, random.next() % (end + 1));
    }
    batch(c, "shuffled", &order);
}

/// A vector that grows by doubling: every step is a `realloc`, and the last ones are of huge blocks.
fn growth(c: &mut Criterion) {
    for (name, bytes) in [("4 KiB", 4 << 10), ("1 MiB", 1 << 20), ("64 MiB", 64 << 20)] {
        c.bench_function(&format!("growth/{name}"), |b| {
            b.iter_batched_ref(Vec::<u8>::new, |grown| grow(grown, bytes), BatchSize::PerIteration);
        });
    }
}

/// Touches the first byte of each new part, so that a moved block has contents to move.
fn grow(grown: &mut Vec<u8>, bytes: usize) {
    while grown.capacity() < bytes {
        let doubled = (2 * grown.capacity()).max(16);
        grown.reserve_exact(doubled - grown.len());
        let filled = grown.capacity().min(grown.len() + 4_096);
        grown.resize(filled, 1);
        black_box(&mut *grown);
    }
}

/// Zeroed blocks, from what a cache holds to one of its own mapping, of which nothing is read.
fn zeroed(c: &mut Criterion) {
    for (name, bytes) in [("64 B", 64), ("4 KiB", 4 << 10), ("1 MiB", 1 << 20), ("4 MiB", 4 << 20)]
    {
        c.bench_function(&format!("zeroed/{name}"), |b| {
            b.iter(|| drop(black_box(vec![0_u8; black_box(bytes)])));
        });
    }
}

/// Batches that are made here and freed by another thread, at most four of them under way.
fn remote(c: &mut Criterion) {
    let mut group = c.benchmark_group("batch");
    group.throughput(Throughput::Elements(BATCH_BLOCKS as u64));
    group.bench_function("freed by another thread", |b| {
        let (full, batches) = std::sync::mpsc::sync_channel::<Vec<Block>>(4);
        let consumer = std::thread::spawn(move || batches.into_iter().for_each(drop));
        b.iter(|| {
            let blocks = (0..BATCH_BLOCKS).map(|_| black_box(Box::new_uninit())).collect();
            assert!(full.send(blocks).is_ok(), "the consumer runs");
        });
        drop(full);
        assert!(consumer.join().is_ok(), "the consumer ends");
    });
    group.finish();
}

/// Marsaglia's xorshift: the same sizes and the same order in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize
    }
}

criterion_group!(hot, constant_pairs, random_pairs, zeroed, batches, remote, growth);
criterion_main!(hot);
