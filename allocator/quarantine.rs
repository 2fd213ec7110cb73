//! The quarantine: blocks that were freed in headers mode wait here, so that whoever still writes to one is found.
//! Owns: the one queue of the process. Called by: `headed`, and by whoever wants all that is free: `purge`, the exit.
//!
//! One queue for all threads, so a thread that ends has nothing to hand over, and the limit is one of the process.
//!
//! A1: what is in the queue is in the state `Waiting`, filled, and sealed; its header's `next` is the payload behind it.
//! A2: the queue's lock is not held while blocks are looked at or given back: they are taken out first.

use crate::cache::Cache;
use crate::fault::survive;
use crate::headed::{Block, Trouble};
use crate::header::{self, State};
use crate::start::HEAP;
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};
use nearheap_numa::lock::Lock;

/// Blocks that leave at a time.
const BATCH: usize = 16;

#[derive(Debug)]
struct Queue {
    /// The payloads at both ends; 0: it is empty.
    first: usize,
    last: usize,
    /// Bytes of the blocks of the heap.
    bytes: usize,
}

static QUEUE: Lock<Queue> = Lock::new(Queue { first: 0, last: 0, bytes: 0 });
static LIMIT: AtomicUsize = AtomicUsize::new(0);

/// Sets how many bytes may wait.
pub(crate) fn limit(bytes: usize) {
    LIMIT.store(bytes, Ordering::Relaxed);
}

/// Keeps a block that nobody has any more, in the state `Waiting`; those that waited longest leave for it.
pub(crate) fn keep(mut block: Block, cache: Option<&Cache>) {
    let (limit, bytes) = (LIMIT.load(Ordering::Relaxed), block.shape.whole.size());
    if bytes > limit {
        give_back(&mut block, cache);
        return;
    }
    // SAFETY: the block is nobody's.
    unsafe { header::fill(block.payload, block.says.size) };
    let mut queue = QUEUE.lock();
    queue.bytes += bytes;
    if queue.first == 0 {
        queue.first = block.payload;
    } else if let Ok(mut last) = {
        // SAFETY: what is in the queue is a block (A1).
        unsafe { Block::at(queue.last) }
    } {
        // SAFETY: the queue's, under its lock. Where its header is damaged, the queue ends with it, at its turn.
        unsafe { last.become_state(State::Waiting, block.payload) };
    }
    queue.last = block.payload;
    drop(queue);
    shrink(limit, cache);
}

/// Lets all go; whether there was any.
pub(crate) fn drain(cache: Option<&Cache>) -> bool {
    shrink(0, cache)
}

fn shrink(limit: usize, cache: Option<&Cache>) -> bool {
    let mut any = false;
    loop {
        let mut batch = [0; BATCH];
        let n = QUEUE.lock().take(limit, &mut batch);
        for &payload in batch.iter().take(n) {
            release(payload, cache);
        }
        any |= n > 0;
        if n < BATCH {
            return any;
        }
    }
}

impl Queue {
    /// Takes those that waited longest out, until no more than `limit` bytes are left.
    fn take(&mut self, limit: usize, batch: &mut [usize; BATCH]) -> usize {
        let mut n = 0;
        for place in batch {
            if self.first == 0 || self.bytes <= limit {
                break;
            }
            *place = self.first;
            n += 1;
            // SAFETY: what is in the queue is a block (A1). Whoever gets it names the damage.
            let Ok(block) = (unsafe { Block::at(self.first) }) else { break };
            self.first = if self.first == self.last { 0 } else { block.says.next };
            self.bytes -= block.shape.whole.size();
        }
        n
    }
}

/// Looks whether somebody wrote to a block, and gives it back to the heap.
fn release(payload: usize, cache: Option<&Cache>) {
    // SAFETY: the block was in the queue, and is this thread's now.
    unsafe {
        let mut block = match Block::at(payload) {
            Ok(block) if block.says.state == State::Waiting => block,
            Ok(block) => block.die(Trouble::WrittenAt(0)),
            Err(damaged) => crate::headed::die(Trouble::Damaged(damaged), payload, None),
        };
        if let Some(at) = header::first_written(payload, block.says.size) {
            block.die(Trouble::WrittenAt(at));
        }
        if !header::is_sealed(payload, block.says.size) {
            block.die(Trouble::WrittenAt(block.says.size));
        }
        give_back(&mut block, cache);
    }
}

/// Gives a block back to the heap that is in nobody's hands and was counted as freed.
fn give_back(block: &mut Block, cache: Option<&Cache>) {
    let base = ptr::with_exposed_provenance_mut(block.base);
    // SAFETY: the cache is the calling thread's; the block is this thread's, until it is the heap's.
    unsafe {
        block.become_state(State::Freed, 0);
        if block.shape.is_apart() {
            header::at_base(block.base).say(block.says);
        }
        survive(HEAP.give_back(cache, base, block.shape.whole));
    }
}

/// The lock, for `fork`.
pub(crate) fn hold() {
    QUEUE.hold();
}

/// # Safety
/// After [`hold`], on the same thread or its copy.
pub(crate) unsafe fn let_go() {
    // SAFETY: the caller's promise.
    unsafe { QUEUE.let_go() };
}
