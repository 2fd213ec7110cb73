//! Statistics: the counters of every layer, brought into one snapshot.
//! Called by: `nearheap::stats`, `nearheap::threads`, the exit dump.
//!
//! Under the registry's lock, so that no thread comes or goes meanwhile; each slot's counts belong together (T3). While
//! other threads allocate, different slots are read at slightly different moments; at rest every number is exact.

use crate::cache::HugeCounts;
use crate::class::{CACHED_MAX, GRANULE, Slot};
use crate::heap::Heap;
use crate::registry::Registry;
use core::sync::atomic::Ordering;
use nearheap_numa::{Os, os};
use nearheap_stats::{ClassStats, HugeStats, NodeStats, Snapshot, SystemStats, ThreadStats};

fn add_huge(to: &mut HugeStats, from: &HugeCounts) {
    to.allocs += from.allocs.load(Ordering::Relaxed);
    to.frees += from.frees.load(Ordering::Relaxed);
    to.allocated_bytes += from.allocated.load(Ordering::Relaxed);
    to.freed_bytes += from.freed.load(Ordering::Relaxed);
}

impl<O: Os> Heap<O> {
    /// Fills a snapshot.
    pub(crate) fn snapshot(&self, into: &mut Snapshot) {
        into.clear();
        into.pid = os::pid();
        let registry = self.registry.lock();
        let mut cached_bytes = 0;
        for slot in Slot::all() {
            let row = self.class_row(&registry, slot);
            cached_bytes += row.cached_blocks * row.size;
            into.push_class(row);
        }
        add_huge(&mut into.huge, &self.ledger.huge);
        for cache in registry.living() {
            add_huge(&mut into.huge, &cache.huge);
        }
        into.live_threads = registry.threads as u64;
        drop(registry);
        into.system = self.system_row();
        into.finish();
        let segments: usize = self.granules.shards.iter().map(|p| p.shard.lock().segments()).sum();
        into.push_node(NodeStats {
            node: 0,
            allocs: into.totals.allocs,
            frees: into.totals.frees,
            in_use_bytes: into.totals.in_use_bytes,
            cached_bytes,
            retained_bytes: into.system.retained_bytes,
            segments: segments as u64,
            shards: self.granules.active() as u64,
        });
    }

    fn class_row(&self, registry: &Registry, slot: Slot) -> ClassStats {
        let (mut allocs, mut frees) = self.ledger.counts(slot);
        let mut cached_blocks = self.depot.count(slot) as u64;
        for cache in registry.living() {
            let counts = cache.counts(slot);
            allocs += counts.allocs;
            frees += counts.frees;
            cached_blocks += counts.cached;
        }
        let size = self.granules.classes.bytes(slot) as u64;
        // The alignment of spans is how they are carved, not what sets them apart.
        let align = if slot.size() > CACHED_MAX { GRANULE } else { slot.align() };
        ClassStats { size, align: align as u64, allocs, frees, cached_blocks }
    }

    fn system_row(&self) -> SystemStats {
        let a = self.granules.source.accounts();
        SystemStats {
            mapped_bytes: a.mapped as u64,
            committed_bytes: a.committed as u64,
            peak_committed_bytes: a.peak as u64,
            metadata_bytes: self.granules.meta.bytes() as u64,
            retained_bytes: a.retained as u64,
            purged_bytes: a.purged,
            maps: a.maps,
            refused_maps: a.refused_maps,
            refused_others: a.refused_others,
            hard_limit_refusals: a.hard_refusals,
            soft_limit_crossings: a.crossings,
        }
    }

    /// Calls `each` for every thread with a cache, and once for all others together, until it errs.
    pub(crate) fn each_thread<E>(
        &self,
        mut each: impl FnMut(&ThreadStats) -> Result<(), E>,
    ) -> Result<(), E> {
        let registry = self.registry.lock();
        for cache in registry.living() {
            let id = u64::from(cache.tid.load(Ordering::Relaxed));
            each(&self.thread_row(id, &cache.huge, |slot| {
                let c = cache.counts(slot);
                (c.allocs, c.frees, c.cached)
            }))?;
        }
        each(&self.thread_row(0, &self.ledger.huge, |slot| {
            let (allocs, frees) = self.ledger.counts(slot);
            (allocs, frees, 0)
        }))
    }

    fn thread_row(
        &self,
        id: u64,
        huge: &HugeCounts,
        counts: impl Fn(Slot) -> (u64, u64, u64),
    ) -> ThreadStats {
        let mut all = HugeStats::default();
        add_huge(&mut all, huge);
        let mut row = ThreadStats {
            id,
            allocs: all.allocs,
            frees: all.frees,
            allocated_bytes: all.allocated_bytes,
            freed_bytes: all.freed_bytes,
            cached_bytes: 0,
        };
        for slot in Slot::all() {
            let (allocs, frees, cached) = counts(slot);
            let size = self.granules.classes.bytes(slot) as u64;
            row.allocs += allocs;
            row.frees += frees;
            row.allocated_bytes += allocs * size;
            row.freed_bytes += frees * size;
            row.cached_bytes += cached * size;
        }
        row
    }
}
