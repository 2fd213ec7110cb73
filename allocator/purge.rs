//! Purging: free memory goes back to the system at the free itself; there is no thread for it.
//! Owns: `Budget` and the policy. Called by: `heap` after every flush, exhaustion, limits, and `nearheap::purge`.
//!
//! The budget is `max(retain, live / 8)` plus the regret, which is at most as much again or 256 MiB. Regret is what was
//! given back and needed again within a quarter of a second; it halves every second. Over the budget, pages are purged down to three
//! quarters of it, in this order, from high addresses to low:
//!
//! 1. kept mappings of huge blocks are unmapped, down to half of what may be retained;
//! 2. segments that are all free are unmapped;
//! 3. halves of segments that are all free are purged, which leaves huge pages whole;
//! 4. runs of free pages of at least 64 KiB, if there is twice as much as should be;
//! 5. single free pages, in chunks to which nothing was given for `purge_delay`; in all chunks, where for a quarter of
//!    that more was free than live or half as much again as may be, or where there is six times as much as is out and
//!    not in magazines: page by page, a heap that is being emptied costs the kernel as much as it cost to fill, for pages
//!    that are soon part of something larger;
//! 6. the other kept mappings are unmapped.
//!
//! Where the pages in use are more than three times what is in use on them, few blocks hold many pages, and many of those
//! blocks are in caches and magazines: the freeing thread's cache and all magazines are emptied, again whenever what is
//! in use has halved. Meanwhile magazines keep nothing, and the caches of other threads are emptied as well when those
//! free.
//!
//! U1: one thread purges at a time; the others go on, and it looks again for what they freed meanwhile. No shard's lock is
//! held across the kernel's work: the pages are taken like blocks, purged, and given back.

use crate::cache::Cache;
use crate::class::Slot;
use crate::fault::{self, Fault};
use crate::granule::GIVE_MAX;
use crate::heap::Heap;
use crate::huge::HUGE_PAGE;
use crate::part::Place;
use crate::segment::{Segment, Tally};
use core::ptr::{self, NonNull};
use nearheap_numa::Os;
use nearheap_numa::sync::Ordering;

/// Refaults count as regretted within so many milliseconds of the purge.
const REGRET_MS: u64 = 250;
const REGRET_HALF_LIFE_MS: u64 = 1000;
/// How much a small heap may regret; a large one as much as its budget.
const REGRET_MOST: usize = 256 << 20;
/// The budget's share of what is live.
const LIVE_SHARE: usize = 8;
/// Runs of at least so many bytes are purged whatever their chunk's age.
const LONG_RUN: usize = 64 << 10;
/// At most so many bytes are taken out of use for one call of the kernel.
const ONE_PURGE: usize = 4 << 20;
/// Bytes free over bytes in use from which all of a heap is purged at once.
const LAST: usize = 6;
/// How often a thread looks again for what others freed while it purged.
const ROUNDS: usize = 8;
/// A cache that may hold more than this is emptied there whoever frees.
const SPARSE_CACHE: usize = 512 << 10;
/// Pages in use over bytes in use from which caches are emptied. (At four, a heap that four threads empty often ended short of
/// it, with all that is left in their caches: more than 55 MiB of 1.1 GiB stayed in half of the runs; at three, in a tenth.)
const SPARSE: usize = 3;

/// What the purger remembers.
#[derive(Debug)]
pub(crate) struct Budget {
    regret: usize,
    regret_ms: u64,
    /// What small blocks were live when caches were emptied last, or the most since.
    swept_live: Option<usize>,
    /// What was retained after the last purge, and when that was: a purge that left much will find no more until more
    /// has been freed, or chunks have come to rest.
    left: usize,
    left_ms: u64,
    /// Since when far too much is free, and when that was seen last.
    far_since_ms: u64,
    far_seen_ms: u64,
}

/// How hard a purge looks.
#[derive(Clone, Copy, Debug)]
struct Effort {
    /// Stops when at most so many bytes are retained.
    target: usize,
    /// Shorter runs are purged only in chunks left alone so long.
    least: usize,
    quiet_ms: u64,
}

impl Budget {
    pub(crate) const fn new() -> Self {
        Self {
            regret: 0,
            regret_ms: 0,
            swept_live: None,
            left: 0,
            left_ms: 0,
            far_since_ms: 0,
            far_seen_ms: 0,
        }
    }

    /// Whether far too much has been free for `delay_ms`. If so, it counts from now on anew.
    fn is_far_for(&mut self, delay_ms: u64, now_ms: u64) -> bool {
        if now_ms.saturating_sub(self.far_seen_ms) > delay_ms {
            self.far_since_ms = now_ms;
        }
        self.far_seen_ms = now_ms;
        let long = now_ms.saturating_sub(self.far_since_ms) >= delay_ms;
        if long {
            self.far_since_ms = now_ms;
        }
        long
    }

    fn halve(&mut self, now_ms: u64) {
        let halvings = now_ms.saturating_sub(self.regret_ms) / REGRET_HALF_LIFE_MS;
        if halvings > 0 {
            self.regret = self.regret.checked_shr(halvings.min(64) as u32).unwrap_or(0);
            self.regret_ms = now_ms;
        }
    }
}

impl<O: Os> Heap<O> {
    fn retain_floor(&self) -> usize {
        self.knobs.retain()
    }

    /// The budget without the regret, when `live` bytes are out.
    pub(crate) fn retain_base(&self, live: usize) -> usize {
        self.retain_floor().max(live / LIVE_SHARE)
    }

    /// Purges what is over the budget, after blocks were given back.
    ///
    /// # Safety
    /// `cache` is the calling thread's.
    #[inline]
    pub(crate) unsafe fn after_give(&self, cache: Option<&Cache>) -> Result<(), Fault> {
        let source = &self.granules.source;
        let retained = source.retained();
        let floor = self.retain_floor();
        let in_use = source.committed().saturating_sub(retained);
        if retained <= floor && in_use <= floor {
            return Ok(());
        }
        let (small, huge) = (self.granules.taken(), self.huge.bytes());
        let live = small + huge;
        // Huge blocks hold no page but their own.
        let sparse =
            in_use.saturating_sub(huge) > SPARSE * small.saturating_sub(self.kept()) + floor / 2;
        if sparse != self.sparse.load(Ordering::Relaxed) {
            self.sparse.store(sparse, Ordering::Relaxed);
        }
        if sparse {
            if let Some(cache) = cache.filter(|c| c.held() > SPARSE_CACHE) {
                // SAFETY: the caller's promise.
                unsafe { self.empty_cache(cache, true)? };
            }
            // SAFETY: the caller's promise.
            unsafe { self.sweep(cache, small)? };
        }
        if source.retained() > self.retain_base(live) {
            self.purge_over_budget(usize::MAX);
        }
        Ok(())
    }

    /// Purges down to the budget, with at most so much regret.
    #[cold]
    #[inline(never)]
    pub(crate) fn purge_over_budget(&self, regret_most: usize) {
        // Who finds the purger at work leaves word, or what was freed last would stay (U1).
        self.purge_wanted.store(true, Ordering::SeqCst);
        for again in 0..ROUNDS {
            let Some(mut budget) = self.budget.try_lock() else { return };
            if self.purge_wanted.swap(false, Ordering::SeqCst) {
                self.purge_round(&mut budget, regret_most, again > 0);
            }
            drop(budget);
            if !self.purge_wanted.load(Ordering::SeqCst) {
                return;
            }
        }
    }

    /// Purges once, if that is worth it.
    fn purge_round(&self, budget: &mut Budget, regret_most: usize, again: bool) {
        let live = self.live();
        let now_ms = self.granules.source.os().now_ms();
        let base = self.retain_base(live);
        budget.halve(now_ms);
        let refaults = &self.granules.refaults;
        let lost = refaults.bytes.swap(0, Ordering::Relaxed);
        let when = refaults.purged_ms.load(Ordering::Relaxed) as u64;
        if now_ms.saturating_sub(when) <= REGRET_MS {
            budget.regret = (budget.regret + lost).min(base.max(REGRET_MOST));
        }
        refaults.regret.store(budget.regret, Ordering::Relaxed);
        let most = base + budget.regret.min(regret_most);
        let retained = self.granules.source.retained();
        let delay_ms = self.knobs.quiet_ms();
        let far = retained > live.min(most + most / 2);
        // Where next to nothing is in use, nothing may be called later.
        let last = retained > LAST * self.granules.taken().saturating_sub(self.kept());
        let now = far && (last || budget.is_far_for(delay_ms / 4, now_ms));
        let quiet_ms = if now { 0 } else { delay_ms };
        let rested = now_ms.saturating_sub(budget.left_ms) >= quiet_ms.max(1);
        let step = base.max(budget.left.min(live)) / 8;
        let worth = rested || again && now || retained > budget.left + step;
        if retained <= most || !worth {
            return;
        }
        self.purge_down(Effort { target: most - most / 4, least: LONG_RUN, quiet_ms }, now_ms);
        (budget.left, budget.left_ms) = (self.granules.source.retained(), now_ms);
    }

    /// Empties the thread's cache and the magazines, if what is live has halved since that was done last.
    #[cold]
    unsafe fn sweep(&self, cache: Option<&Cache>, live: usize) -> Result<(), Fault> {
        {
            let Some(mut budget) = self.budget.try_lock() else { return Ok(()) };
            if let Some(swept) = budget.swept_live.filter(|&swept| live > swept / 2) {
                // What was live may have grown meanwhile: the next decline is measured from there.
                budget.swept_live = Some(swept.max(live));
                return Ok(());
            }
            budget.swept_live = Some(live);
        }
        if let Some(cache) = cache {
            // SAFETY: the caller's promise.
            unsafe { self.empty_cache(cache, true)? };
        }
        self.empty_magazines()
    }

    /// Sends everything in a cache back: to the magazines, or `home` to the granule heap.
    ///
    /// # Safety
    /// `cache` is the calling thread's, or that of a thread that doesn't exist any more.
    #[inline(never)]
    pub(crate) unsafe fn empty_cache(&self, cache: &Cache, home: bool) -> Result<(), Fault> {
        for slot in Slot::all() {
            let state = cache.state(slot);
            if state.n + state.room > 0 {
                // SAFETY: the caller's promise.
                unsafe { self.empty_slot(cache, slot, home)? };
            }
        }
        Ok(())
    }

    /// Sends everything in the magazines to the granule heap.
    pub(crate) fn empty_magazines(&self) -> Result<(), Fault> {
        for slot in Slot::all() {
            let mut batch = [ptr::null_mut(); GIVE_MAX];
            let size = self.granules.classes.bytes(slot);
            // A bound, since other threads may fill it meanwhile.
            for (_, depot) in self.depots.iter() {
                for _ in 0..1 + depot.count(slot) / GIVE_MAX {
                    let n = depot.pop(slot, size, &mut batch);
                    match batch.get_mut(..n) {
                        Some(blocks) if n > 0 => self.granules.give(slot, blocks)?,
                        _ => break,
                    }
                }
            }
        }
        Ok(())
    }

    /// Gives everything that is free back to the system: the thread's cache, the magazines, every free page. The bytes
    /// that were given back.
    ///
    /// # Safety
    /// `cache` is the calling thread's.
    pub(crate) unsafe fn purge_all(&self, cache: Option<&Cache>) -> usize {
        let before = self.granules.source.committed();
        // A fault in what is flushed here is a fault of an earlier free; there is no better place to name it.
        // SAFETY: the caller's promise.
        let emptied = unsafe {
            cache
                .map_or(Ok(()), |c| self.empty_cache(c, true))
                .and_then(|()| self.empty_magazines())
        };
        fault::survive(emptied);
        let budget = self.budget.lock();
        let now_ms = self.granules.source.os().now_ms();
        self.purge_down(Effort { target: 0, least: 0, quiet_ms: 0 }, now_ms);
        drop(budget);
        before.saturating_sub(self.granules.source.committed())
    }

    /// Purges until the target is reached. Under the budget's lock (U1).
    fn purge_down(&self, effort: Effort, now_ms: u64) {
        // Neither what is free of huge blocks nor what is free in segments drives the other out.
        self.huge.purge(effort.target, effort.target / 2, &self.granules, now_ms);
        for place in self.granules.places() {
            self.retire_segments(place, effort.target);
        }
        let whole = [(HUGE_PAGE, u64::MAX), (LONG_RUN, u64::MAX)];
        for (least, quiet_ms) in whole.into_iter().chain([(effort.least, effort.quiet_ms)]) {
            // What is a little over the budget isn't worth breaking huge pages for.
            if least == LONG_RUN && self.granules.source.retained() <= 2 * effort.target {
                continue;
            }
            for place in self.granules.places() {
                self.purge_runs(place, Effort { least, quiet_ms, ..effort }, now_ms);
            }
        }
        self.huge.purge(effort.target, 0, &self.granules, now_ms);
    }

    /// Unmaps segments that are all free.
    #[inline(never)]
    fn retire_segments(&self, place: &Place, target: usize) {
        // The purger alone takes segments off the lists, so a segment that could not be unmapped is met at most once.
        for _ in 0..1 << 20 {
            let mut inside = place.shard.lock();
            if inside.segments() == 0 {
                return;
            }
            let over = self.granules.source.retained() > target;
            let empty = inside.find_segment(|s| {
                (s.is_empty() && (over || s.dirty_bytes() == 0)).then_some(ptr::from_mut(s))
            });
            let Some(segment) = empty else { return };
            // SAFETY: listed, under its shard's lock.
            let segment_ref: &mut Segment = unsafe { &mut *segment };
            self.granules.withdraw(segment_ref);
            inside.unlist(segment_ref);
            drop(inside);
            if !self.granules.retire(segment) {
                self.granules.relist(segment);
                return;
            }
        }
    }

    /// Purges runs of free pages, the last segments first.
    #[inline(never)]
    fn purge_runs(&self, place: &Place, effort: Effort, now_ms: u64) {
        let source = &self.granules.source;
        let ages = (now_ms, effort.quiet_ms);
        let positions = place.shard.lock().positions();
        for position in (0..positions).rev() {
            let mut from = 0;
            loop {
                if source.retained() <= effort.target {
                    return;
                }
                let mut tally = Tally::default();
                let mut inside = place.shard.lock();
                let Some(segment) = inside.at(position) else { break };
                let seized = segment.seize(from, (effort.least, ONE_PURGE), ages, &mut tally);
                let range = seized.map(|run| segment.range_of(run));
                source.retain(tally.freed, tally.taken);
                drop(inside);
                let (Some(run), Some((at, len))) = (seized, range) else { break };
                let done = NonNull::new(at)
                    // SAFETY: pages of a segment, seized: nobody else has or gets them until they are restored.
                    .is_some_and(|at| unsafe { source.purge(at, len) });
                let mut tally = Tally::default();
                let mut inside = place.shard.lock();
                if let Some(segment) = inside.at(position) {
                    segment.restore(run, done, now_ms, &mut tally);
                    let (g, len) = segment.granules_of(run);
                    let segment = ptr::from_mut(segment);
                    // SAFETY: the segment is listed at this position, under its shard's lock.
                    inside.given(unsafe { &mut *segment }, g, len, true);
                }
                source.retain(tally.freed, tally.taken);
                drop(inside);
                from = run.0 + run.1;
                if !done {
                    break;
                }
            }
        }
    }
}
