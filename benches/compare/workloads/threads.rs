//! Threads: blocks that are freed by another thread than the one which allocated them, and threads that come and go.
//! Parameters: beside each function.

use crate::block::{Block, Random, free_all};
use crate::probe::Probe;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

/// Sessions of the server, each with its last answer.
struct Sessions(Vec<Mutex<Option<Block>>>);

/// Four threads at a time, each of which serves 500 requests and ends. A request is a text and a few small parts, and
/// replaces a session of 64 to 2048 bytes out of 20,000, which another thread may have left.
pub(crate) fn server(probe: &mut Probe) -> u64 {
    const AT_ONCE: usize = 4;
    let (threads, requests) = (probe.pick(1_500, 200, 6), probe.pick(500, 500, 50));
    let places = probe.pick(20_000, 20_000, 100);
    let sessions = Arc::new(Sessions((0..places).map(|_| Mutex::new(None)).collect()));
    let mut running: VecDeque<JoinHandle<u64>> = VecDeque::new();
    let mut sum = 0_u64;
    for number in 0..threads as u64 {
        if running.len() == AT_ONCE {
            sum = sum.wrapping_add(join(running.pop_front()));
        }
        let sessions = Arc::clone(&sessions);
        running.push_back(thread::spawn(move || serve(&sessions, number, requests)));
    }
    for handle in running {
        sum = sum.wrapping_add(join(Some(handle)));
    }
    probe.peak();
    for place in &sessions.0 {
        let last = place.lock().expect("no panic").take();
        sum = sum.wrapping_add(last.map_or(0, Block::free));
    }
    sum
}

fn serve(sessions: &Sessions, number: u64, requests: usize) -> u64 {
    let mut random = Random::new(number);
    let mut sum = 0_u64;
    for request in 0..requests as u64 {
        let place = random.below(sessions.0.len());
        let text = format!("GET /session/{place}?request={request} HTTP/1.1\r\nHost: nearheap\r\n");
        let parts: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        let body = Block::new(random.between(256, 4096), request);
        let answer = Block::new(random.between(64, 2048), number ^ request);
        let old = sessions.0[place].lock().expect("no panic").replace(answer);
        sum = sum.wrapping_add(old.map_or(0, Block::free));
        sum = sum.wrapping_add(body.free() + parts.len() as u64);
    }
    sum
}

/// One thread allocates messages of 32 to 512 bytes, 64 to a batch; another frees them, and allocates a note for each
/// batch. Up to 256 batches wait.
pub(crate) fn produce_one(probe: &mut Probe) -> u64 {
    let batches = probe.pick(100_000, 12_000, 100);
    produce(probe, 1, batches)
}

/// The same with four of each; every producer serves the consumers in turn.
pub(crate) fn produce_many(probe: &mut Probe) -> u64 {
    let batches = probe.pick(25_000, 3_000, 25);
    produce(probe, 4, batches)
}

fn produce(probe: &mut Probe, pairs: usize, batches: usize) -> u64 {
    const WAITING: usize = 256;
    type Batch = Vec<Block>;
    let (senders, receivers): (Vec<SyncSender<Batch>>, Vec<Receiver<Batch>>) =
        (0..pairs).map(|_| sync_channel(WAITING / pairs)).unzip();
    thread::scope(|scope| {
        for number in 0..pairs {
            let senders = senders.clone();
            scope.spawn(move || {
                let mut random = Random::new(number as u64);
                for index in 0..batches {
                    let stamp = (number * batches + index) as u64;
                    let batch = (0..64).map(|_| Block::new(random.between(32, 512), stamp));
                    senders[index % senders.len()].send(batch.collect()).expect("a consumer");
                }
            });
        }
        drop(senders);
        let consume = |receiver: Receiver<Batch>| {
            let mut notes = VecDeque::with_capacity(1001);
            let mut sum = 0_u64;
            for batch in receiver {
                notes.push_back(Block::new(100, batch[0].stamp()));
                sum = sum.wrapping_add(free_all(batch));
                if notes.len() > 1000 {
                    sum = sum.wrapping_add(notes.pop_front().map_or(0, Block::free));
                }
            }
            sum.wrapping_add(free_all(notes))
        };
        let consumers: Vec<_> =
            receivers.into_iter().map(|receiver| scope.spawn(move || consume(receiver))).collect();
        // The producers and the queues fill up meanwhile; there is no better moment that is the same on all allocators.
        probe.peak();
        consumers
            .into_iter()
            .fold(0, |sum: u64, consumer| sum.wrapping_add(consumer.join().expect("no panic")))
    })
}

/// One thread allocates batches of 20,000 blocks of 16 to 512 bytes, and another frees them: two wait at most.
pub(crate) fn free_remote(probe: &mut Probe) -> u64 {
    let (batches, size) = (probe.pick(200, 25, 4), probe.pick(20_000, 20_000, 200));
    let (sender, receiver) = sync_channel::<Vec<Block>>(2);
    thread::scope(|scope| {
        let consumer = scope.spawn(move || {
            let sum = |sum: u64, batch: Vec<Block>| sum.wrapping_add(free_all(batch));
            receiver.into_iter().fold(0, sum)
        });
        let mut random = Random::new(5);
        for batch in 0..batches as u64 {
            let blocks = (0..size).map(|_| Block::new(random.between(16, 512), batch)).collect();
            sender.send(blocks).expect("a consumer");
            if batch == batches as u64 / 2 {
                probe.peak();
            }
        }
        drop(sender);
        consumer.join().expect("no panic")
    })
}

/// Thousands of threads, two at a time: each allocates 100 blocks of 16 bytes to 4 KiB, frees half, and leaves half.
pub(crate) fn churn(probe: &mut Probe) -> u64 {
    let threads = probe.pick(8_000, 1_000, 10) as u64;
    let mut running: VecDeque<JoinHandle<(u64, Vec<Block>)>> = VecDeque::new();
    let mut left: VecDeque<Vec<Block>> = VecDeque::new();
    let mut sum = 0_u64;
    for number in 0..threads {
        running.push_back(thread::spawn(move || {
            let mut random = Random::new(number);
            let mut blocks: Vec<Block> =
                (0..100).map(|_| Block::new(random.doubling(4, 12), number)).collect();
            random.shuffle(&mut blocks);
            (free_all(blocks.drain(50..)), blocks)
        }));
        if running.len() == 2 {
            let (freed, blocks) = running.pop_front().expect("two").join().expect("no panic");
            sum = sum.wrapping_add(freed);
            left.push_back(blocks);
        }
        // What a thread left lives on for the time of a hundred others.
        if left.len() > 100 {
            sum = sum.wrapping_add(left.pop_front().map_or(0, free_all));
        }
        if number == threads / 2 {
            probe.peak();
        }
    }
    for handle in running {
        let (freed, blocks) = handle.join().expect("no panic");
        sum = sum.wrapping_add(freed).wrapping_add(free_all(blocks));
    }
    sum.wrapping_add(free_all(left.into_iter().flatten()))
}

fn join(handle: Option<JoinHandle<u64>>) -> u64 {
    handle.map_or(0, |handle| handle.join().expect("no panic"))
}
