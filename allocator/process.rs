//! What a program asks of its heap, beside blocks.
//! Called by: the program.

use crate::cache::Cache;
use crate::config::Config;
use crate::quarantine;
use crate::start::{self, HEAP};
use crate::tls::Inside;
use core::fmt;
use core::sync::atomic::Ordering;
use nearheap_numa::source::Pressure;
use nearheap_stats::{EachThread, Snapshot};

/// The calling thread's cache, made if it has none; the heap is started if it wasn't.
pub(crate) fn cache(inside: &Inside) -> Option<&'static Cache> {
    start::arrive(inside, &Config::new())
}

/// Every number that the heap counts, now. The counts of one thread and class belong together, however busy the thread
/// is; those of different threads are read one after the other, so the sums are exact where the threads are at rest.
///
/// Allocates nothing; the snapshot is some 12 KiB, so small stacks should hold it elsewhere. Costs microseconds, and more
/// with many threads: the counters of each are read where they are.
///
/// ```
/// # #[global_allocator] static GLOBAL: nearheap::NearHeap = nearheap::NearHeap::new();
/// # fn main() {
/// let before = nearheap::stats().totals.in_use_bytes;
/// let buffer = vec![0_u8; 5000];
/// assert!(nearheap::stats().totals.in_use_bytes >= before + 5000);
/// # drop(buffer);
/// # }
/// ```
pub fn stats() -> Snapshot {
    let mut snapshot = Snapshot::new();
    let inside = Inside::enter();
    if inside.is_nested() {
        return snapshot;
    }
    let _ = cache(&inside);
    HEAP.snapshot(&mut snapshot);
    snapshot
}

/// Walks the threads: calls `each` with the row of every thread that has a cache, and with one row (of thread 0) for all
/// that have ended. The walk that [`Snapshot::write_text`] and [`Snapshot::write_json`] take.
///
/// Threads can't make their first allocation, end, or fork meanwhile, so `each` must not wait for another thread.
///
/// # Errors
/// The first that `each` returns; the walk ends there.
pub fn threads(each: &mut EachThread<'_>) -> fmt::Result {
    let inside = Inside::enter();
    if inside.is_nested() {
        return Ok(());
    }
    let _ = cache(&inside);
    HEAP.each_thread(each)
}

/// How close the heap is to its limit (the hard one, or the soft one where there is no other): normal, warning from
/// 80 %, critical from 90 %. Two loads.
pub fn pressure() -> Pressure {
    let _ = cache(&Inside::enter());
    HEAP.granules.source.pressure()
}

/// Gives everything that is free back to the system now: the calling thread's cache, the shared free lists, every free
/// page, in headers mode the quarantine. The bytes that were given back. Other threads keep what their caches hold, see [`flush_thread`].
///
/// For the moment before a long sleep; a running program purges by itself. Costs about 70 ns a page, and a page fault
/// for each that is needed again.
pub fn purge() -> usize {
    let inside = Inside::enter();
    if inside.is_nested() {
        return 0;
    }
    let cache = cache(&inside);
    quarantine::drain(cache);
    // SAFETY: the cache is the calling thread's.
    unsafe { HEAP.purge_all(cache) }
}

/// Sends the free blocks in the calling thread's cache to where all threads find them: for a thread that will be idle,
/// such as a runtime's worker before it parks. Costs some microseconds.
pub fn flush_thread() {
    let inside = Inside::enter();
    if let Some(cache) = cache(&inside) {
        // SAFETY: the cache is the calling thread's.
        crate::fault::survive(unsafe { HEAP.empty_cache(cache, false) });
    }
}

/// Sets what is called when the memory that may be resident crosses the soft limit upwards, after everything free was
/// given back: once a crossing, on the thread that crossed it, with no lock held, inside its allocation. It may allocate
/// and free; it must not unwind.
pub fn on_soft_limit(callback: fn()) {
    HEAP.on_soft_limit.store(callback as *mut (), Ordering::Release);
}
