//! The three ways a snapshot is written, and how the threads come to the writers.
//! Owns: the `write_*` methods of `Snapshot`. Called by: the heap's exit dump, and programs that ask at any time.
//!
//! F1: a writer allocates nothing and keeps nothing; all it uses is a few hundred bytes of stack.
//! F2: the writer's first error ends the writing, and is what the caller gets.
//! F3: the same snapshot and threads are always written the same; numbers are whole and exact.

mod json;
mod openmetrics;
mod text;

use crate::rows::{NodeStats, ThreadStats};
use crate::snapshot::Snapshot;
use core::fmt::{self, Write};

pub use json::JSON_VERSION;
pub use openmetrics::{DEFAULT_PREFIX, is_prefix};
pub use text::TEXT_THREADS;

/// What a walk over the threads calls for each of them; its error must end the walk and be passed on.
pub type EachThread<'a> = dyn FnMut(&ThreadStats) -> fmt::Result + 'a;

/// The walk over no thread, for a caller that has none to show.
///
/// # Errors
/// None.
pub fn no_threads(_each: &mut EachThread<'_>) -> fmt::Result {
    Ok(())
}

/// A process may have thousands of threads, so they aren't in the snapshot: `threads` is called once and walks them,
/// `|each| { for t in all { each(&t)?; } Ok(()) }`. A walk that holds a lock holds it while the rows are written, so
/// the writer must then neither wait for a thread nor need that lock.
impl Snapshot {
    /// Writes lines for people, in the words known from Valgrind. Every line begins with `nearheap: `; the first
    /// words after it say what the line is about, so `grep '^nearheap: class '` finds the rows of the classes. At
    /// most [`TEXT_THREADS`] threads are shown; number 0 is the sum of those that have ended.
    ///
    /// # Errors
    /// The writer's own.
    pub fn write_text(
        &self,
        w: &mut impl Write,
        mut threads: impl FnMut(&mut EachThread<'_>) -> fmt::Result,
    ) -> fmt::Result {
        text::write(self, w, &mut threads)
    }

    /// Writes what is in use at exit, in lines that begin with `nearheap: live`: the sum, then the classes that have any, by
    /// bytes, the most first. Where none has, the sum is all there is.
    ///
    /// # Errors
    /// The writer's own.
    pub fn write_live(&self, w: &mut impl Write) -> fmt::Result {
        text::write_live(self, w)
    }

    /// Writes one JSON object on one line, so that the dumps of several processes may share a file. All numbers are
    /// whole; `version` ([`JSON_VERSION`]) grows when a key changes its meaning or goes away, not when one is added.
    ///
    /// # Errors
    /// The writer's own.
    pub fn write_json(
        &self,
        w: &mut impl Write,
        mut threads: impl FnMut(&mut EachThread<'_>) -> fmt::Result,
    ) -> fmt::Result {
        json::write(self, w, &mut threads)
    }

    /// Writes the text format of OpenMetrics 1.0, up to and with `# EOF`. All names begin with `prefix` and `_`.
    ///
    /// | gauge | the field it shows |
    /// |---|---|
    /// | `allocated_bytes` | `totals.in_use_bytes`: what the program holds, in sizes of classes |
    /// | `active_bytes` | `system.active_bytes()`: OS pages with blocks, in use or cached |
    /// | `metadata_bytes` | `system.metadata_bytes` |
    /// | `resident_bytes` | `system.committed_bytes`: a bound, since a page handed out may never have been touched |
    /// | `peak_resident_bytes` | `system.peak_committed_bytes` |
    /// | `mapped_bytes` | `system.mapped_bytes` |
    /// | `retained_bytes` | `system.retained_bytes` |
    /// | `threads` | `live_threads` |
    ///
    /// Families that begin with `class_` have the labels `class` (the size in bytes, `huge`, or `unlisted` for the
    /// classes without a row) and `align` (empty for the last two); those that begin with `node_` have `node`. The
    /// samples of `class_allocations` and `class_frees` add up to `allocations` and `frees`. Threads have no samples:
    /// their number has no bound.
    ///
    /// # Errors
    /// The writer's own, and before anything is written when [`is_prefix`] rejects `prefix`.
    pub fn write_openmetrics(&self, w: &mut impl Write, prefix: &str) -> fmt::Result {
        openmetrics::write(self, w, prefix)
    }
}

/// What is before the first such byte, and what is after it.
#[inline(never)]
fn cut(text: &'static str, byte: u8) -> (&'static str, &'static str) {
    let at = text.bytes().position(|b| b == byte).unwrap_or(text.len());
    (text.get(..at).unwrap_or_default(), text.get(at + 1..).unwrap_or_default())
}

/// The number of a node, or `several`.
struct NodeName(u64);

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            NodeStats::SEVERAL => f.pad("several"),
            node => node.fmt(f),
        }
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_text(f, no_threads)
    }
}
