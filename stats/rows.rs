//! The rows of a snapshot: plain numbers, and what follows from them.
//! Owns: the row types. Called by: the heap (which fills them), `Snapshot` (which adds them up) and the writers.
//!
//! R1: `frees <= allocs` in every row of classes and in the totals while the program rests. A snapshot amid running
//!     threads may see a free before the allocation it undoes, so every difference stops at 0.
//! R2: sums that would pass `u64::MAX` stay there.

/// One size class: blocks of `size` bytes, aligned to at least `align`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassStats {
    /// Bytes of a block of this class, a multiple of 16.
    pub size: u64,
    /// The alignment in bytes that every block of this row has: 16, or the class is for over-aligned blocks.
    pub align: u64,
    /// Blocks handed to the program since it started.
    pub allocs: u64,
    /// Blocks the program has given back since it started.
    pub frees: u64,
    /// Free blocks that wait in thread caches and magazines.
    pub cached_blocks: u64,
}

/// Blocks over 1 MiB, each in a mapping of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HugeStats {
    /// Blocks handed to the program since it started.
    pub allocs: u64,
    /// Blocks the program has given back since it started.
    pub frees: u64,
    /// Bytes of the blocks handed out, in whole OS pages.
    pub allocated_bytes: u64,
    /// Bytes of the blocks given back, in whole OS pages.
    pub freed_bytes: u64,
}

/// One NUMA node's share of the heap.
///
/// With one node, `allocs` and `frees` are those of the totals. With several, a row counts the blocks that left for a
/// thread or its cache and those that came back from there: what a thread frees and takes again by itself is not seen, and
/// free blocks in a cache count on the node of the thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeStats {
    /// The kernel's number of the node; [`NodeStats::SEVERAL`] for memory that is spread over several.
    pub node: u64,
    /// Blocks handed out by this node's part of the heap.
    pub allocs: u64,
    /// Blocks given back to it.
    pub frees: u64,
    /// Those among them that came from threads on other nodes.
    pub remote_frees: u64,
    /// Their bytes: memory that was sent home.
    pub sent_home_bytes: u64,
    /// Bytes in the hands of the program.
    pub in_use_bytes: u64,
    /// Bytes of free blocks in thread caches and magazines.
    pub cached_bytes: u64,
    /// Bytes of wholly free OS pages that are kept for reuse.
    pub retained_bytes: u64,
    /// Segments (4 MiB each) that are mapped.
    pub segments: u64,
    /// Shards in use.
    pub shards: u64,
    /// Times that the node was full, and the memory of another one served.
    pub spills: u64,
    /// Times that the system refused to put memory on the node; it is where it was first touched then.
    pub refused_binds: u64,
}

/// One thread that has a cache, or the sum of those that have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadStats {
    /// The kernel's number of the thread (`gettid`); 0 for the sum of ended threads and of operations without a cache.
    pub id: u64,
    /// Blocks handed to this thread.
    pub allocs: u64,
    /// Blocks this thread has given back, its own or another's.
    pub frees: u64,
    /// Bytes of the blocks handed to this thread.
    pub allocated_bytes: u64,
    /// Bytes of the blocks this thread has given back.
    pub freed_bytes: u64,
    /// Bytes of the free blocks in its cache.
    pub cached_bytes: u64,
}

/// The sums over all classes and the huge blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Blocks handed to the program since it started.
    pub allocs: u64,
    /// Blocks the program has given back since it started.
    pub frees: u64,
    /// Bytes handed out since the program started, in sizes of classes.
    pub allocated_bytes: u64,
    /// Bytes given back since the program started.
    pub freed_bytes: u64,
    /// Blocks in the hands of the program now.
    pub in_use_blocks: u64,
    /// Bytes in the hands of the program now, in sizes of classes.
    pub in_use_bytes: u64,
}

/// What the heap holds of the system, and what the system refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SystemStats {
    /// Bytes of address space that are mapped: segments, huge blocks, metadata.
    pub mapped_bytes: u64,
    /// Bytes that may be resident: pages handed out and not purged since, huge blocks, metadata.
    pub committed_bytes: u64,
    /// The highest `committed_bytes` so far.
    pub peak_committed_bytes: u64,
    /// Bytes of the heap's own metadata among them.
    pub metadata_bytes: u64,
    /// Bytes of wholly free pages that are kept for reuse.
    pub retained_bytes: u64,
    /// Bytes given back to the system since the program started.
    pub purged_bytes: u64,
    /// Times that the system was asked for a mapping.
    pub maps: u64,
    /// Times that the system refused a mapping.
    pub refused_maps: u64,
    /// Times that it refused to unmap, to purge, or to move a mapping.
    pub refused_others: u64,
    /// Times that the hard limit refused memory.
    pub hard_limit_refusals: u64,
    /// Times that the soft limit was crossed upwards.
    pub soft_limit_crossings: u64,
    /// Times that the system did not say what NUMA nodes there are: 0 or 1. The heap then takes the machine for one node.
    pub refused_topologies: u64,
}

impl Totals {
    pub(crate) const ZERO: Self = Self::of(0, 0, 0, 0);

    /// Sums whose blocks and bytes in use are the differences.
    pub(crate) const fn of(
        allocs: u64,
        frees: u64,
        allocated_bytes: u64,
        freed_bytes: u64,
    ) -> Self {
        let in_use_blocks = allocs.saturating_sub(frees);
        let in_use_bytes = allocated_bytes.saturating_sub(freed_bytes);
        Self { allocs, frees, allocated_bytes, freed_bytes, in_use_blocks, in_use_bytes }
    }

    pub(crate) fn add(&mut self, more: Self) {
        *self = Self::of(
            self.allocs.saturating_add(more.allocs),
            self.frees.saturating_add(more.frees),
            self.allocated_bytes.saturating_add(more.allocated_bytes),
            self.freed_bytes.saturating_add(more.freed_bytes),
        );
    }
}

impl ClassStats {
    pub(crate) const ZERO: Self = Self { size: 0, align: 0, allocs: 0, frees: 0, cached_blocks: 0 };

    /// Blocks in the hands of the program.
    pub const fn in_use_blocks(&self) -> u64 {
        self.allocs.saturating_sub(self.frees)
    }

    /// Bytes in the hands of the program.
    pub const fn in_use_bytes(&self) -> u64 {
        self.in_use_blocks().saturating_mul(self.size)
    }

    /// Bytes handed to the program since it started.
    pub const fn allocated_bytes(&self) -> u64 {
        self.allocs.saturating_mul(self.size)
    }

    /// Bytes the program has given back since it started.
    pub const fn freed_bytes(&self) -> u64 {
        self.frees.saturating_mul(self.size)
    }

    /// Whether there is something to say of the class: the writers leave out the others.
    pub const fn is_used(&self) -> bool {
        self.allocs != 0 || self.frees != 0 || self.cached_blocks != 0
    }

    /// The row in the shape of the totals.
    pub const fn sums(&self) -> Totals {
        Totals::of(self.allocs, self.frees, self.allocated_bytes(), self.freed_bytes())
    }

    pub(crate) fn add(&mut self, more: &Self) {
        self.allocs = self.allocs.saturating_add(more.allocs);
        self.frees = self.frees.saturating_add(more.frees);
        self.cached_blocks = self.cached_blocks.saturating_add(more.cached_blocks);
    }
}

impl HugeStats {
    pub(crate) const ZERO: Self = Self { allocs: 0, frees: 0, allocated_bytes: 0, freed_bytes: 0 };

    /// The row in the shape of the totals.
    pub const fn sums(&self) -> Totals {
        Totals::of(self.allocs, self.frees, self.allocated_bytes, self.freed_bytes)
    }
}

impl NodeStats {
    pub(crate) const ZERO: Self = Self {
        node: 0,
        allocs: 0,
        frees: 0,
        remote_frees: 0,
        sent_home_bytes: 0,
        in_use_bytes: 0,
        cached_bytes: 0,
        retained_bytes: 0,
        segments: 0,
        shards: 0,
        spills: 0,
        refused_binds: 0,
    };

    /// In place of the number of a node: memory that is spread over several.
    pub const SEVERAL: u64 = 64;

    /// Blocks given back by threads on this node.
    pub const fn local_frees(&self) -> u64 {
        self.frees.saturating_sub(self.remote_frees)
    }

    pub(crate) fn add(&mut self, more: &Self) {
        let sums = [
            (&mut self.allocs, more.allocs),
            (&mut self.frees, more.frees),
            (&mut self.remote_frees, more.remote_frees),
            (&mut self.sent_home_bytes, more.sent_home_bytes),
            (&mut self.in_use_bytes, more.in_use_bytes),
            (&mut self.cached_bytes, more.cached_bytes),
            (&mut self.retained_bytes, more.retained_bytes),
            (&mut self.segments, more.segments),
            (&mut self.shards, more.shards),
            (&mut self.spills, more.spills),
            (&mut self.refused_binds, more.refused_binds),
        ];
        for (sum, more) in sums {
            *sum = sum.saturating_add(more);
        }
    }
}

impl SystemStats {
    pub(crate) const ZERO: Self = Self {
        mapped_bytes: 0,
        committed_bytes: 0,
        peak_committed_bytes: 0,
        metadata_bytes: 0,
        retained_bytes: 0,
        purged_bytes: 0,
        maps: 0,
        refused_maps: 0,
        refused_others: 0,
        hard_limit_refusals: 0,
        soft_limit_crossings: 0,
        refused_topologies: 0,
    };

    /// Bytes of OS pages that hold blocks, in use or cached: what is committed, without metadata and what is retained.
    pub const fn active_bytes(&self) -> u64 {
        self.committed_bytes.saturating_sub(self.retained_bytes).saturating_sub(self.metadata_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn class(size: u64, align: u64, allocs: u64, frees: u64, cached_blocks: u64) -> ClassStats {
        ClassStats { size, align, allocs, frees, cached_blocks }
    }

    #[rstest]
    #[case::nothing_freed(class(48, 16, 3, 0, 0), (3, 144, 144, 0))]
    #[case::all_freed(class(48, 16, 3, 3, 2), (0, 0, 144, 144))]
    #[case::freed_before_it_was_seen(class(48, 16, 1, 2, 0), (0, 0, 48, 96))]
    #[case::too_many(class(u64::MAX, 16, 3, 1, 0), (2, u64::MAX, u64::MAX, u64::MAX))]
    fn class_sums(#[case] c: ClassStats, #[case] expected: (u64, u64, u64, u64)) {
        let got = (c.in_use_blocks(), c.in_use_bytes(), c.allocated_bytes(), c.freed_bytes());
        assert_eq!(got, expected);
    }

    #[test]
    fn active_bytes_stop_at_zero() {
        let s = SystemStats {
            committed_bytes: 9,
            retained_bytes: 4,
            metadata_bytes: 2,
            ..SystemStats::ZERO
        };
        assert_eq!(s.active_bytes(), 3);
        assert_eq!(SystemStats { metadata_bytes: 6, ..s }.active_bytes(), 0);
    }
}
