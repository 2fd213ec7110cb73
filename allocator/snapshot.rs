//! Statistics: the counters of every layer, brought into one snapshot.
//! Called by: `nearheap::stats`, `nearheap::threads`, the exit dump.
//!
//! Under the registry's lock, so that no thread comes or goes meanwhile; each slot's counts belong together (T3). While
//! other threads allocate, different slots are read at slightly different moments; at rest every number is exact.

use crate::cache::HugeCounts;
use crate::class::{CACHED_MAX, GRANULE, Slot};
use crate::heap::Heap;
use crate::part::Place;
use crate::registry::Registry;
use core::sync::atomic::{AtomicU64, Ordering};
use crossbeam_utils::CachePadded;
use nearheap_numa::{Os, os};
use nearheap_stats::{ClassStats, HugeStats, NodeStats, Snapshot, SystemStats, ThreadStats};

fn add_huge(to: &mut HugeStats, from: &HugeCounts) {
    to.allocs += from.allocs.load(Ordering::Relaxed);
    to.frees += from.frees.load(Ordering::Relaxed);
    to.allocated_bytes += from.allocated.load(Ordering::Relaxed);
    to.freed_bytes += from.freed.load(Ordering::Relaxed);
}

/// Segments of some shards, and bytes that they retain.
#[inline(never)]
fn held_by(places: &[CachePadded<Place>]) -> (u64, u64) {
    let (mut segments, mut retained) = (0, 0);
    for place in places {
        let _ = place.shard.lock().find_segment(|segment| {
            segments += 1;
            retained += segment.retained_bytes() as u64;
            None::<()>
        });
    }
    (segments, retained)
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
        into.system = self.system_row();
        into.finish();
        if self.granules.homes.is_several() {
            self.node_rows(&registry, into);
            return;
        }
        drop(registry);
        let mut segments = 0;
        for (_, of) in self.granules.parts.iter() {
            segments += held_by(&of.shards).0;
        }
        into.push_node(NodeStats {
            node: u64::from(self.granules.homes.only()),
            allocs: into.totals.allocs,
            frees: into.totals.frees,
            in_use_bytes: into.totals.in_use_bytes,
            cached_bytes,
            retained_bytes: into.system.retained_bytes,
            segments,
            shards: self.granules.active() as u64,
            ..NodeStats::default()
        });
    }

    /// The rows of several nodes. Blocks in a thread's cache count where the thread is, wherever they are.
    #[cold]
    #[inline(never)]
    fn node_rows(&self, registry: &Registry, into: &mut Snapshot) {
        for (part, of) in self.granules.parts.iter() {
            let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
            let (huge, kept) = self.huge.of_part(part);
            let (segments, retained) = held_by(&of.shards);
            let retained = retained + kept as u64;
            let cached_bytes = self.cached_in(registry, part);
            let live = (self.granules.taken_of(of) + huge) as u64;
            let t = &of.traffic;
            let (allocs, near, remote_frees) = (count(&t.out), count(&t.back), count(&t.far));
            let (spills, refused_binds) = (count(&t.spills), count(&t.refused_binds));
            if segments + retained + live + allocs + spills + refused_binds == 0 {
                continue;
            }
            into.push_node(NodeStats {
                node: (part as u64).min(NodeStats::SEVERAL),
                allocs,
                frees: near + remote_frees,
                remote_frees,
                sent_home_bytes: count(&t.far_bytes),
                in_use_bytes: live.saturating_sub(cached_bytes),
                cached_bytes,
                retained_bytes: retained,
                segments,
                shards: self.granules.active() as u64,
                spills,
                refused_binds,
            });
        }
    }

    /// Bytes of free blocks in the magazines of a part, and in the caches of threads on it.
    #[inline(never)]
    fn cached_in(&self, registry: &Registry, part: usize) -> u64 {
        let mut bytes = 0;
        for slot in Slot::all() {
            let mut blocks = self.depots.find(part).map_or(0, |depot| depot.count(slot)) as u64;
            for cache in registry.living() {
                if cache.part.get() == part {
                    blocks += cache.counts(slot).cached;
                }
            }
            bytes += blocks * self.granules.classes.bytes(slot) as u64;
        }
        bytes
    }

    #[inline(never)]
    fn class_row(&self, registry: &Registry, slot: Slot) -> ClassStats {
        let (mut allocs, mut frees) = self.ledger.counts(slot);
        let mut cached_blocks = 0;
        for (_, depot) in self.depots.iter() {
            cached_blocks += depot.count(slot) as u64;
        }
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
            refused_topologies: self.granules.homes.refusals(),
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
