//! Blocks that several threads allocate, resize, pass on and free. Each is filled with bytes that depend on its owner and
//! its number, and looked at by whoever frees it.

use crate::Held;
use crate::common::contents::{check, fill, prepare};
use crate::common::{Rng, child, rss_bytes, seed};
use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread;
use std::time::Duration;

const THREADS: usize = 6;

struct Block {
    at: *mut u8,
    layout: Layout,
    id: u64,
}

// SAFETY: whoever has the value is alone with the block.
unsafe impl Send for Block {}

impl Block {
    fn new(rng: &mut Rng, id: u64) -> Self {
        let size = match rng.below(1000) {
            0..=799 => rng.by_magnitude(1, 1 << 10),
            800..=979 => rng.by_magnitude(1 << 10, 32 << 10),
            980..=998 => rng.by_magnitude(32 << 10, 400 << 10),
            _ => rng.by_magnitude(1 << 20, 3 << 20),
        };
        let log = if rng.below(8) == 0 { 5 + rng.below(9) } else { rng.below(5) };
        let layout = Layout::from_size_align(size, 1 << log).unwrap();
        // SAFETY: the size isn't 0.
        let at = unsafe { if rng.below(8) == 0 { alloc_zeroed(layout) } else { alloc(layout) } };
        let at = black_box(at);
        assert!(
            !at.is_null() && (at as usize).is_multiple_of(layout.align()),
            "{at:p} for {layout:?}"
        );
        // SAFETY: as large as the layout says.
        unsafe { fill(at, id, 0, size) };
        Self { at, layout, id }
    }

    fn resize(&mut self, rng: &mut Rng) {
        let old = self.layout.size();
        let new = (rng.by_magnitude(1, 4 * old)).min(4 << 20);
        // SAFETY: the block is its own, filled to its size before and after.
        unsafe {
            self.at = black_box(realloc(self.at, self.layout, new));
            assert!(!self.at.is_null());
            check(self.at, self.id, old.min(new));
            fill(self.at, self.id, old.min(new), new);
        }
        self.layout = Layout::from_size_align(new, self.layout.align()).unwrap();
    }

    fn free(self) {
        // SAFETY: the block is its own, filled to its size; freed once.
        unsafe {
            check(self.at, self.id, self.layout.size());
            dealloc(self.at, self.layout);
        }
    }
}

fn work(mut rng: Rng, own: u64, steps: usize, inbox: &Receiver<Block>, peers: Vec<Sender<Block>>) {
    let mut kept: Vec<Block> = Vec::new();
    for step in 0..steps as u64 {
        match rng.below(8) {
            0..=2 => kept.push(Block::new(&mut rng, own << 32 | step)),
            3 => {
                peers[rng.below(peers.len())].send(Block::new(&mut rng, own << 32 | step)).unwrap()
            }
            4 if !kept.is_empty() => {
                let place = rng.below(kept.len());
                kept[place].resize(&mut rng);
            }
            5 if !kept.is_empty() => {
                let block = kept.swap_remove(rng.below(kept.len()));
                peers[rng.below(peers.len())].send(block).unwrap();
            }
            6 if !kept.is_empty() => kept.swap_remove(rng.below(kept.len())).free(),
            _ => inbox.try_iter().take(3).for_each(Block::free),
        }
        if kept.len() > 300 {
            kept.drain(..150).for_each(Block::free);
        }
    }
    drop(peers);
    kept.drain(..).for_each(Block::free);
    inbox.iter().for_each(Block::free);
}

fn round(seed: u64, steps: usize) {
    let (senders, inboxes): (Vec<_>, Vec<_>) = (0..THREADS).map(|_| channel()).unzip();
    let workers = inboxes.into_iter().enumerate().map(|(own, inbox)| {
        let (rng, peers) = (Rng::new(seed ^ own as u64), senders.clone());
        thread::spawn(move || work(rng, own as u64 + 1, steps, &inbox, peers))
    });
    let workers: Vec<_> = workers.collect();
    drop(senders);
    watch(&workers);
    workers.into_iter().for_each(|w| w.join().unwrap());
}

/// No counter ever runs backwards, whoever comes and goes.
fn watch(workers: &[thread::JoinHandle<()>]) {
    let mut last = nearheap::stats();
    while !workers.iter().all(thread::JoinHandle::is_finished) {
        let now = nearheap::stats();
        for (before, after) in last.classes().iter().zip(now.classes()) {
            assert!(
                after.allocs >= before.allocs && after.frees >= before.frees,
                "{after:?} {before:?}"
            );
        }
        last = now;
        thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn pass_around() {
    let seed = seed();
    prepare();
    // Once before, for what the standard library makes at the first use.
    round(seed ^ 1 << 60, 100);
    let (before, frees) = (Held::now(), nearheap::stats().totals.frees);
    round(seed, if cfg!(debug_assertions) { 12_000 } else { 40_000 });
    Held::is_as(&before);
    assert!(nearheap::stats().totals.frees - frees > 10_000);
}

/// One thread allocates all, the other frees all.
pub(crate) fn one_way() {
    const BATCHES: usize = 4000;
    static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
    prepare();
    let (sender, receiver) = sync_channel::<Vec<Block>>(8);
    let producer = thread::spawn(move || {
        let mut rng = Rng::new(5);
        for batch in 0..BATCHES as u64 {
            let blocks = (0..100).map(|i| {
                let layout = Layout::from_size_align(rng.by_magnitude(8, 1000), 8).unwrap();
                // SAFETY: the size isn't 0, and all of it is filled.
                unsafe {
                    let (at, id) = (alloc(layout), batch << 8 | i);
                    fill(at, id, 0, layout.size());
                    Block { at, layout, id }
                }
            });
            sender.send(blocks.collect()).unwrap();
            ALLOCATED.fetch_add(100, Ordering::Relaxed);
        }
    });
    let consumer = thread::spawn(move || {
        let mut early = 0;
        for (n, batch) in receiver.iter().enumerate() {
            batch.into_iter().for_each(Block::free);
            if n == BATCHES / 20 {
                early = rss_bytes();
            }
        }
        (early, rss_bytes())
    });
    producer.join().unwrap();
    let (early, late) = consumer.join().unwrap();
    assert_eq!(ALLOCATED.load(Ordering::Relaxed), 100 * BATCHES);
    let more = late.saturating_sub(early);
    assert!(more < 2 << 20, "{early} bytes resident after a twentieth, {late} at the end");
}

#[test]
fn blocks_survive_being_passed_around() {
    let seed = seed();
    let run = child("pass_around").env("TEST_SEED", &seed.to_string());
    run.within(Duration::from_secs(120)).run().succeeds_with(&format!("TEST_SEED={seed}\n"));
}

#[test]
fn frees_on_another_thread_let_nothing_grow() {
    child("one_way").run().succeeds_with("");
}
