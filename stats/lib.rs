//! What nearheap counts, as plain data, and how it is written.
//!
//! Nothing here allocates, prints or knows the heap: the heap fills a [`Snapshot`], the writers turn it into text.
#![no_std]

#[cfg(test)]
extern crate std;

mod format;
mod rows;
mod snapshot;

pub use format::{DEFAULT_PREFIX, EachThread, JSON_VERSION, TEXT_THREADS, is_prefix, no_threads};
pub use rows::{ClassStats, HugeStats, NodeStats, SystemStats, ThreadStats, Totals};
pub use snapshot::{MAX_CLASSES, MAX_NODES, Snapshot};
