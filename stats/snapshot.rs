//! The snapshot: every number that nearheap counts, at one moment, as plain data.
//! Owns: `Snapshot`. Called by: the heap (which fills it) and the writers (which print it).
//!
//! S1: after `finish`, the totals are the sums of the class rows, the unlisted ones and the huge row; nothing is
//!     counted twice. What is in use is the difference of those sums.
//! S2: class rows ascend by size, then alignment, and no two have both alike; node rows ascend by node.
//!
//! A snapshot is 14 KiB, so it is filled in place: nothing here makes a second one on the stack.

use crate::rows::{ClassStats, HugeStats, NodeStats, SystemStats, Totals};
use core::fmt;

/// Rows for size classes that a snapshot has room for.
pub const MAX_CLASSES: usize = 256;
/// Rows for NUMA nodes that a snapshot has room for: 64 nodes, and what is spread over several.
pub const MAX_NODES: usize = 65;

/// Every number that nearheap counts, at one moment.
///
/// `Display` writes the text of [`Snapshot::write_text`] without threads.
#[derive(Clone, Copy)]
pub struct Snapshot {
    /// The kernel's number of the process.
    pub pid: u32,
    /// The sums, as [`Snapshot::finish`] left them.
    pub totals: Totals,
    /// What the heap holds of the system.
    pub system: SystemStats,
    /// Blocks over 1 MiB.
    pub huge: HugeStats,
    /// Threads that have a cache now.
    pub live_threads: u64,
    classes: [ClassStats; MAX_CLASSES],
    class_count: usize,
    unlisted: Totals,
    nodes: [NodeStats; MAX_NODES],
    node_count: usize,
}

impl Snapshot {
    /// An empty snapshot.
    pub const fn new() -> Self {
        Self {
            pid: 0,
            totals: Totals::ZERO,
            system: SystemStats::ZERO,
            huge: HugeStats::ZERO,
            live_threads: 0,
            classes: [ClassStats::ZERO; MAX_CLASSES],
            class_count: 0,
            unlisted: Totals::ZERO,
            nodes: [NodeStats::ZERO; MAX_NODES],
            node_count: 0,
        }
    }

    /// Empties the snapshot in place.
    pub fn clear(&mut self) {
        self.pid = 0;
        self.totals = Totals::ZERO;
        self.system = SystemStats::ZERO;
        self.huge = HugeStats::ZERO;
        self.live_threads = 0;
        self.class_count = 0;
        self.unlisted = Totals::ZERO;
        self.node_count = 0;
    }

    /// The size classes, by size and then by alignment.
    pub fn classes(&self) -> &[ClassStats] {
        self.classes.get(..self.class_count).unwrap_or_default()
    }

    /// The nodes, by their numbers.
    pub fn nodes(&self) -> &[NodeStats] {
        self.nodes.get(..self.node_count).unwrap_or_default()
    }

    /// The sums over the classes for which no row was left: all zero unless more than [`MAX_CLASSES`] were pushed.
    pub fn unlisted(&self) -> Totals {
        self.unlisted
    }

    /// Adds `row` to the row of the same size and alignment, or makes it a row of its own. Where no row is left, its
    /// blocks count in [`Snapshot::unlisted`] and in the totals.
    pub fn push_class(&mut self, row: ClassStats) {
        let (rows, count) = (&mut self.classes, &mut self.class_count);
        if !push(rows, count, row, |r| (r.size, r.align), ClassStats::add) {
            self.unlisted.add(row.sums());
        }
    }

    /// Adds `row` to the row of the same node, or makes it a row of its own. Where no row is left it is dropped: the
    /// totals don't rest on node rows.
    pub fn push_node(&mut self, row: NodeStats) {
        push(&mut self.nodes, &mut self.node_count, row, |r| r.node, NodeStats::add);
    }

    /// Computes the totals from the rows and `huge`; called when all of them are filled in. May be called again.
    pub fn finish(&mut self) {
        let mut totals = self.unlisted;
        totals.add(self.huge.sums());
        for row in self.classes.iter().take(self.class_count) {
            totals.add(row.sums());
        }
        self.totals = totals;
    }
}

impl Default for Snapshot {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("pid", &self.pid)
            .field("totals", &self.totals)
            .field("system", &self.system)
            .field("huge", &self.huge)
            .field("live_threads", &self.live_threads)
            .field("classes", &self.classes())
            .field("unlisted", &self.unlisted)
            .field("nodes", &self.nodes())
            .finish()
    }
}

/// Puts `row` where its key belongs among the first `count` of `rows`, which ascend by key, or adds it to the row
/// that has the same key. False when there is no room.
fn push<T: Copy, K: Ord>(
    rows: &mut [T],
    count: &mut usize,
    row: T,
    key: fn(&T) -> K,
    add: fn(&mut T, &T),
) -> bool {
    match rows.get(..*count).unwrap_or_default().binary_search_by_key(&key(&row), key) {
        Ok(at) => {
            if let Some(same) = rows.get_mut(at) {
                add(same, &row);
            }
        }
        Err(at) => {
            if *count >= rows.len() {
                return false;
            }
            rows.copy_within(at..*count, at + 1);
            if let Some(place) = rows.get_mut(at) {
                *place = row;
            }
            *count += 1;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use std::vec::Vec;

    fn class(size: u64, align: u64, allocs: u64, frees: u64, cached_blocks: u64) -> ClassStats {
        ClassStats { size, align, allocs, frees, cached_blocks }
    }

    /// It can live in a static, which needs `new` to be const.
    static EMPTY: Snapshot = Snapshot::new();

    #[rstest]
    #[case::nothing(&[], &[])]
    #[case::ascends(&[(64, 16), (16, 16), (32, 16)], &[(16, 16), (32, 16), (64, 16)])]
    #[case::alignment_second(&[(64, 64), (64, 16), (32, 32)], &[(32, 32), (64, 16), (64, 64)])]
    #[case::merges(&[(64, 16), (32, 16), (64, 16)], &[(32, 16), (64, 16)])]
    fn rows_ascend_and_no_two_are_alike(
        #[case] pushed: &[(u64, u64)],
        #[case] kept: &[(u64, u64)],
    ) {
        let mut s = EMPTY;
        for &(size, align) in pushed {
            s.push_class(class(size, align, 3, 1, 1));
        }
        let keys: Vec<_> = s.classes().iter().map(|c| (c.size, c.align)).collect();
        assert_eq!(keys, kept);
        s.finish();
        assert_eq!(s.totals.allocs, 3 * pushed.len() as u64);
    }

    #[test]
    fn rows_of_one_class_are_added() {
        let mut s = Snapshot::new();
        s.push_class(class(64, 16, 5, 2, 1));
        s.push_class(class(64, 16, 7, 4, 2));
        assert_eq!(s.classes(), [class(64, 16, 12, 6, 3)]);
    }

    #[test]
    fn rows_of_one_node_are_added_and_ascend() {
        let mut s = Snapshot::new();
        let node = |node, allocs| NodeStats { node, allocs, shards: 1, ..NodeStats::default() };
        for row in [node(3, 5), node(1, 1), node(3, 6)] {
            s.push_node(row);
        }
        assert_eq!(s.nodes(), [node(1, 1), NodeStats { shards: 2, ..node(3, 11) }]);
    }

    #[test]
    fn totals_are_the_sums() {
        let mut s = Snapshot::new();
        s.push_class(class(16, 16, 10, 4, 9));
        s.push_class(class(100_000, 16, 2, 2, 0));
        s.huge =
            HugeStats { allocs: 3, frees: 1, allocated_bytes: 9_000_000, freed_bytes: 2_000_000 };
        let expected = Totals {
            allocs: 15,
            frees: 7,
            allocated_bytes: 160 + 200_000 + 9_000_000,
            freed_bytes: 64 + 200_000 + 2_000_000,
            in_use_blocks: 8,
            in_use_bytes: 96 + 7_000_000,
        };
        s.finish();
        assert_eq!(s.totals, expected);
        s.finish();
        assert_eq!(s.totals, expected, "a second time changes nothing");
    }

    #[test]
    fn a_class_without_a_row_counts_in_the_totals() {
        let mut s = Snapshot::new();
        for i in 1..=MAX_CLASSES as u64 + 2 {
            s.push_class(class(16 * i, 16, 1, 0, 0));
        }
        s.push_class(class(16, 16, 1, 0, 0));
        assert_eq!(s.classes().len(), MAX_CLASSES);
        let (last, n) = (MAX_CLASSES as u64 + 2, MAX_CLASSES as u64);
        assert_eq!(s.unlisted().allocs, 2);
        assert_eq!(s.unlisted().in_use_bytes, 16 * (last + last - 1));
        s.finish();
        assert_eq!(s.totals.in_use_blocks, n + 3);
        assert_eq!(s.totals.in_use_bytes, 16 * (last * (last + 1) / 2 + 1));
    }

    #[test]
    fn a_node_without_a_row_is_dropped() {
        let mut s = Snapshot::new();
        for node in (0..=MAX_NODES as u64).rev() {
            s.push_node(NodeStats { node, ..NodeStats::default() });
        }
        assert_eq!(s.nodes().len(), MAX_NODES);
        assert_eq!(s.nodes().first().map(|n| n.node), Some(1));
    }

    #[test]
    fn clear_leaves_what_new_makes() {
        let mut s = Snapshot::new();
        for i in 0..=MAX_CLASSES as u64 {
            s.push_class(class(16 * i, 16, 1, 0, 0));
        }
        s.push_node(NodeStats { allocs: 1, ..NodeStats::default() });
        s.huge.allocs = 1;
        (s.pid, s.live_threads, s.system.maps) = (1, 1, 1);
        s.finish();
        s.clear();
        assert_eq!(std::format!("{s:?}"), std::format!("{:?}", Snapshot::new()));
    }

    #[test]
    fn sums_stop_at_the_largest_number() {
        let mut s = Snapshot::new();
        for _ in 0..2 {
            s.push_class(class(u64::MAX, 1, u64::MAX, 0, u64::MAX));
        }
        s.huge.allocs = 1;
        s.finish();
        assert_eq!((s.totals.allocs, s.totals.allocated_bytes), (u64::MAX, u64::MAX));
    }
}
