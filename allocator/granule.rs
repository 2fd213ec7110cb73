//! The granule heap: the back end. `take` and `give` are all that the layers above know of it.
//! Owns: `Granules`. Called by: magazines' refills and drains, spans, realloc; `purge` works on it from the side.
//!
//! R1: never two locks at once. A shard's lock is not held across a call of the kernel.
//! R2: every give verifies that a block begins at the address and has the extent of its class.
//! R3: a segment belongs to one shard from its publication to its withdrawal, and a shard to one part.
//!
//! Any shard can serve any thread; a thread has a home shard so that threads don't meet. The number of shards in use
//! doubles when locks are found held. A thread's home is in the part of its node; where that node is full, the parts of
//! others serve.

#![allow(clippy::indexing_slicing, reason = "shards are indexed by remainders of their number")]

use crate::class::{Classes, GRANULE, Slot};
use crate::extents::Extents;
use crate::fault::{Fault, Misuse};
use crate::hardened::Wall;
use crate::homes::Homes;
use crate::map::SegmentMap;
use crate::meta::{Meta, pages_of};
use crate::nested;
use crate::part::{Part, PerPart, Place, SHARDS, Traffic};
use crate::segment::{Given, SEGMENT, Segment, Tally};
use crate::shard::{Group, Shard};
use core::ptr::NonNull;
use nearheap_numa::lock::{Guard, Lock};
use nearheap_numa::sync::{AtomicUsize, Late, Ordering};
use nearheap_numa::topology::available_bytes;
use nearheap_numa::{Os, PageSource, const_unless_loom, os};

/// Blocks that one give takes at most.
pub(crate) const GIVE_MAX: usize = 64;
/// Withdrawn segments whose metadata is kept: 16 GiB that come and go at once.
const SPARES: usize = if cfg!(loom) { 4 } else { 4096 };
/// After so many entries a shard judges whether its lock was found held too often...
const ENTRIES_JUDGED: u32 = 1024;
/// ...which is once in so many.
const TOO_OFTEN: u32 = 32;

/// How long is taken for true what a node's free memory was.
const KNOWN_MS: u64 = 100;
/// This share of a node's memory is left to others, beside what the kernel keeps free.
const NODE_RESERVE: u64 = 64;

/// Where a thread asks first.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Home {
    pub(crate) part: usize,
    /// Modulo the shards in use.
    pub(crate) shard: usize,
}

/// The granule heap.
#[derive(Debug)]
pub(crate) struct Granules<O> {
    pub(crate) source: PageSource<O>,
    pub(crate) meta: Meta,
    pub(crate) classes: Classes,
    map: SegmentMap,
    /// Where blocks begin and end, for those who don't know their sizes.
    pub(crate) extents: Extents,
    pub(crate) homes: Homes,
    pub(crate) parts: PerPart<Part>,
    /// Shards in use in each part beside its first.
    others: AtomicUsize,
    /// Metadata of withdrawn segments, for the next ones.
    spare: Lock<Spare>,
    /// New segments are backed by huge pages once so many bytes are out, and a segment's for each shard in use; 0: all.
    pub(crate) huge_pages_from: Late,
    /// What giving memory back too early has cost.
    pub(crate) refaults: Refaults,
}

/// Bytes that went back to the system and were needed again, and when they went.
#[derive(Debug)]
pub(crate) struct Refaults {
    pub(crate) bytes: AtomicUsize,
    pub(crate) purged_ms: AtomicUsize,
    /// When bytes were unmapped last.
    gone_ms: AtomicUsize,
    /// The regret as the purger left it.
    pub(crate) regret: AtomicUsize,
}

impl Refaults {
    /// Counts bytes, of which the last were purged at `purged_ms`.
    pub(crate) fn add(&self, (bytes, purged_ms): (usize, usize)) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.purged_ms.fetch_max(purged_ms, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Spare {
    segments: [*mut Segment; SPARES],
    n: usize,
}

// SAFETY: the pointers lead to metadata that nobody else uses.
unsafe impl Send for Spare {}

/// Why nothing was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The hard limit.
    Limit,
    /// The kernel, or that the nodes are full on which memory may be.
    Kernel,
}

impl<O: Os> Granules<O> {
    const_unless_loom! {
        pub(crate) fn new(os: O) -> Self {
            Self {
                source: PageSource::new(os),
                meta: Meta::new(),
                classes: Classes::new(),
                map: SegmentMap::new(),
                extents: Extents::new(),
                homes: Homes::new(),
                parts: PerPart::new(Part::new()),
                others: AtomicUsize::new(0),
                spare: Lock::new(Spare { segments: [core::ptr::null_mut(); SPARES], n: 0 }),
                huge_pages_from: Late::new(),
                refaults: Refaults {
                    bytes: AtomicUsize::new(0),
                    purged_ms: AtomicUsize::new(0),
                    gone_ms: AtomicUsize::new(0),
                    regret: AtomicUsize::new(0),
                },
            }
        }
    }

    /// Shards in use in each part.
    pub(crate) fn active(&self) -> usize {
        1 + self.others.load(Ordering::Relaxed)
    }

    /// Spreads over `n` shards from now on.
    pub(crate) fn spread(&self, n: usize) {
        self.others.fetch_max(n.clamp(1, SHARDS) - 1, Ordering::Relaxed);
    }

    /// Bytes of blocks that are out.
    #[inline(never)]
    pub(crate) fn taken(&self) -> usize {
        if !self.homes.is_several() {
            return self.taken_of(self.parts.get(0));
        }
        self.parts.iter().fold(0, |sum, (_, part)| sum + self.taken_of(part))
    }

    /// Bytes of blocks of one part that are out.
    #[inline(never)]
    pub(crate) fn taken_of(&self, part: &Part) -> usize {
        let used = part.shards.iter().take(self.active());
        used.fold(0, |sum, place| sum + place.taken.load(Ordering::Relaxed))
    }

    /// All shards of all parts.
    pub(crate) fn places(&self) -> impl Iterator<Item = &Place> {
        self.parts.iter().flat_map(|(_, part)| part.shards.iter().map(|place| &**place))
    }

    /// A shard by its number, which is that of its part times [`SHARDS`] and more.
    #[inline]
    fn place(&self, shard: usize) -> &Place {
        &self.parts.get(shard / SHARDS).shards[shard % SHARDS]
    }

    pub(crate) fn traffic(&self, part: usize) -> &Traffic {
        &self.parts.get(part).traffic
    }

    /// The part that an address is in; `None` where it is in no segment.
    pub(crate) fn part_of(&self, address: usize) -> Option<usize> {
        // SAFETY: null, or metadata, which stays readable (N2).
        let segment = unsafe { self.map.find(address).as_ref() };
        segment.map(|segment| segment.shard() / SHARDS)
    }

    /// Counts bytes of a part that were unmapped.
    #[inline(never)]
    pub(crate) fn unmapped(&self, part: usize, bytes: usize, now_ms: u64) {
        self.traffic(part).gone.fetch_add(bytes, Ordering::Relaxed);
        self.refaults.gone_ms.store(now_ms as usize, Ordering::Relaxed);
    }

    /// Counts bytes that were mapped for a part: as many as had been unmapped of it before were missed. Another node's
    /// are no loss to this one.
    #[inline(never)]
    pub(crate) fn mapped(&self, part: usize, bytes: usize) {
        let take = |gone: usize| Some(gone.saturating_sub(bytes));
        let gone = &self.traffic(part).gone;
        let gone = gone.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        let again = gone.unwrap_or(0).min(bytes);
        self.refaults.add((again, self.refaults.gone_ms.load(Ordering::Relaxed)));
    }

    fn shape(&self, slot: Slot) -> (usize, usize) {
        (self.classes.granules(slot), slot.align() / GRANULE)
    }

    /// Works in one shard, under its lock, and settles the accounts after.
    fn enter<T>(
        &self,
        place: &Place,
        wait: bool,
        work: impl FnOnce(&mut Shard, &mut Tally) -> (T, isize),
    ) -> Option<(T, bool)> {
        let mut tally = Tally::default();
        let mut shard = if wait { place.shard.lock() } else { place.shard.try_lock()? };
        shard.entries += 1;
        shard.contended += u32::from(shard.was_contended());
        let (result, out) = work(&mut shard, &mut tally);
        self.leave(place, shard, out, &tally);
        Some((result, tally.refused))
    }

    #[inline(never)]
    fn leave(&self, place: &Place, mut shard: Guard<'_, Shard>, out: isize, tally: &Tally) {
        let taken = place.taken.load(Ordering::Relaxed).wrapping_add_signed(out);
        place.taken.store(taken, Ordering::Relaxed);
        let judged = (shard.entries >= ENTRIES_JUDGED).then(|| {
            let often = shard.contended > shard.entries / TOO_OFTEN;
            (shard.entries, shard.contended) = (0, 0);
            often
        });
        // Before anyone can take the same pages again, or fork: the accounts then agree with the pages.
        if tally.freed != tally.taken {
            self.source.retain(tally.freed, tally.taken);
        }
        drop(shard);
        if judged == Some(true) {
            self.add_shards();
        }
        if tally.refaulted > 0 {
            self.refaults.add((tally.refaulted, tally.purged_ms as usize));
        }
    }

    #[cold]
    fn add_shards(&self) {
        let active = self.active();
        if active < os::cpus() * 2 {
            self.spread(active * 2);
        }
    }

    /// Takes blocks for `slot`, as many as fit into `out` or fewer; at least one unless there is no memory.
    #[inline(never)]
    pub(crate) fn take(
        &self,
        slot: Slot,
        home: Home,
        out: &mut [*mut u8],
    ) -> Result<usize, Refusal> {
        let shape = self.shape(slot);
        let size = shape.0 * GRANULE;
        let mut n = 0;
        self.search(home, &mut |shard, tally| {
            n = shard.take(shape, out, &self.source, tally);
            n * size
        })?;
        self.extents.mark(out.get(..n).unwrap_or_default(), shape.0);
        Ok(n)
    }

    /// Takes one span, and the bytes from its beginning on that may be other than zero.
    pub(crate) fn take_span(&self, slot: Slot, home: Home) -> Result<(*mut u8, usize), Refusal> {
        let shape = self.shape(slot);
        let mut span = None;
        self.search(home, &mut |shard, tally| {
            span = shard.take_span(shape, &self.source, tally);
            if span.is_some() { shape.0 * GRANULE } else { 0 }
        })?;
        let span = span.ok_or(Refusal::Kernel)?;
        self.extents.mark(&[span.0], shape.0);
        Ok(span)
    }

    /// Asks the home shard, then the others where nobody is inside, then for a fresh segment, and at last everywhere, until
    /// a shard answers with the bytes that it has found.
    #[inline(never)]
    fn search(
        &self,
        home: Home,
        ask: &mut dyn FnMut(&mut Shard, &mut Tally) -> usize,
    ) -> Result<(), Refusal> {
        let active = self.active();
        let mut ask = |shard: &mut Shard, tally: &mut Tally| {
            let found = ask(shard, tally);
            (found > 0, found.cast_signed())
        };
        let mut part = self.parts.ensure(home.part, &self.meta, &self.source);
        let (mut other, mut may_grow) = (0, true);
        while other < active {
            let place = self.place(part * SHARDS + (home.shard + other) % active);
            match self.enter(place, other == 0, &mut ask) {
                Some((true, _)) => return Ok(()),
                Some((false, true)) => return Err(Refusal::Limit),
                _ => other += 1,
            }
            if other == active && self.homes.is_several() {
                match self.with_room(part, SEGMENT) {
                    Some(next) if next != part && part == home.part => (part, other) = (next, 0),
                    found => may_grow = found.is_some(),
                }
            }
        }
        let shard = part * SHARDS + home.shard.checked_rem(active).unwrap_or(0);
        // A fresh segment is empty, but others of the same home may be faster; they can't be for ever.
        for _ in 0..64 {
            if !may_grow || !self.grow(shard) {
                break;
            }
            match self.enter(self.place(shard), true, &mut ask) {
                Some((true, _)) => return Ok(()),
                Some((false, true)) => return Err(Refusal::Limit),
                _ => {}
            }
        }
        // There is no more memory, so it is worth waiting for the shards in which somebody was.
        for place in self.places() {
            if let Some((true, _)) = self.enter(place, true, &mut ask) {
                return Ok(());
            }
        }
        Err(Refusal::Kernel)
    }

    /// The part that memory of `bytes` bytes is mapped for, when this one asks; `None`: its nodes are full.
    #[inline]
    pub(crate) fn part_for(&self, part: usize, bytes: usize) -> Option<usize> {
        if !self.homes.is_several() {
            return Some(part);
        }
        self.with_room(self.parts.ensure(part, &self.meta, &self.source), bytes)
    }

    /// The part that memory of `bytes` bytes is mapped for: this one or, where its node is full, the nearest whose node is
    /// not. Where all are, this one, for the kernel to do what it can; `None` where memory may be on those nodes alone.
    #[cold]
    #[inline(never)]
    fn with_room(&self, part: usize, bytes: usize) -> Option<usize> {
        if self.has_room(part, bytes) {
            return Some(part);
        }
        let made = |&other: &usize| self.parts.ensure(other, &self.meta, &self.source) == other;
        let next = self.homes.others(part).filter(made).find(|&other| self.has_room(other, bytes));
        if next.is_some() {
            self.traffic(part).spills.fetch_add(1, Ordering::Relaxed);
        }
        next.or((!self.homes.is_strict()).then_some(part))
    }

    /// Whether a part's node has memory for `bytes` more, as far as that can be told.
    fn has_room(&self, part: usize, bytes: usize) -> bool {
        let Some((node, topology)) = self.homes.node(part) else { return true };
        let (traffic, now_ms) = (self.traffic(part), self.source.os().now_ms());
        let left = traffic.room.load(Ordering::Relaxed);
        if now_ms < traffic.known_until_ms.load(Ordering::Relaxed) {
            let rest = left.checked_sub(bytes).filter(|&rest| rest > 0);
            // Two may take the same bytes: what is left is a share of what there was.
            if let Some(rest) = rest {
                traffic.room.store(rest, Ordering::Relaxed);
                return true;
            }
            if left == 0 {
                return false;
            }
        }
        let Some(free) = available_bytes(self.source.os(), node) else { return true };
        let reserve = topology.kept_free(node) + topology.memory_bytes(node) / NODE_RESERVE;
        let free = free.saturating_sub(reserve);
        let rest = free.checked_sub(bytes as u64);
        // A part of the rest goes without another look.
        traffic.room.store(rest.map_or(0, |rest| rest / 4 + 1) as usize, Ordering::Relaxed);
        traffic.known_until_ms.store(now_ms + KNOWN_MS, Ordering::Relaxed);
        rest.is_some()
    }

    /// Looks again at what the nodes have, after memory was given back.
    #[cold]
    pub(crate) fn look_again(&self) {
        for (_, part) in self.parts.iter() {
            part.traffic.known_until_ms.store(0, Ordering::Relaxed);
        }
    }

    /// Puts a fresh mapping where memory of the part belongs. A refusal is counted: the memory then lies where it is first
    /// touched.
    #[inline]
    pub(crate) fn put(&self, part: usize, at: NonNull<u8>, len: usize) {
        if self.homes.is_several() {
            self.put_on_node(part, at, len);
        }
    }

    #[cold]
    #[inline(never)]
    fn put_on_node(&self, part: usize, at: NonNull<u8>, len: usize) {
        let traffic = self.traffic(part);
        let turn = traffic.turns.fetch_add(1, Ordering::Relaxed);
        let Some(on) = self.homes.placement(part, turn) else { return };
        // SAFETY: the caller's mapping, in whole pages; its contents stay.
        if unsafe { self.source.os().place(at, len, on) }.is_err() {
            traffic.refused_binds.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Adds a fresh segment to a shard.
    #[cold]
    #[inline(never)]
    fn grow(&self, shard: usize) -> bool {
        let Some(segment) = self.segment_metadata() else { return false };
        let Some(base) = self.source.map(SEGMENT, SEGMENT) else {
            self.keep_metadata(segment);
            return false;
        };
        self.mapped(shard / SHARDS, SEGMENT);
        self.put(shard / SHARDS, base, SEGMENT);
        // The shards fill the last segment together; what each has alone may end in half a one.
        let huge = match self.huge_pages_from.get() {
            0 => true,
            from => self.taken() >= from.max(self.active() * SEGMENT),
        };
        // A small heap says no as well: where the system's setting is `always`, a touched byte would cost 2 MiB.
        // SAFETY: mapped above.
        unsafe { self.source.advise_huge(base, SEGMENT, huge) };
        base.as_ptr().expose_provenance();
        let address = base.as_ptr() as usize;
        let mut wall = Wall::put(address + SEGMENT, &self.source);
        // SAFETY: metadata that nobody else has.
        unsafe {
            (*segment).open(base, shard as u16, self.source.page_size(), huge);
            (*segment).wall = wall;
        }
        let listed = self.extents.open(address, &self.meta, &self.source)
            && self.map.publish(address, segment, &self.meta, &self.source)
            && self.list(shard, segment);
        if !listed {
            self.map.withdraw(address);
            self.extents.close(address, &self.source);
            // SAFETY: mapped above, never handed out.
            unsafe {
                wall.lift(address + SEGMENT, &self.source);
                self.source.unmap(base, SEGMENT, 0);
            }
            self.keep_metadata(segment);
        }
        listed
    }

    fn list(&self, shard: usize, segment: *mut Segment) -> bool {
        let shard = &self.place(shard).shard;
        loop {
            if shard.lock().list(segment).is_ok() {
                return true;
            }
            let Some(group) = self.meta.alloc::<Group, O>(&self.source) else {
                return false;
            };
            shard.lock().add_group(group.as_ptr());
        }
    }

    fn segment_metadata(&self) -> Option<*mut Segment> {
        let mut spare = self.spare.lock();
        if let Some(n) = spare.n.checked_sub(1) {
            spare.n = n;
            let segment = spare.segments[n % SPARES];
            drop(spare);
            if self.source.commit(pages_of::<Segment, O>(&self.source)) {
                return Some(segment);
            }
            self.spare.lock().put(segment);
            return None;
        }
        drop(spare);
        self.meta.alloc_pages::<Segment, O>(&self.source).map(NonNull::as_ptr)
    }

    /// Keeps the metadata of a segment that is published no more; its pages go back to the kernel.
    #[inline(never)]
    fn keep_metadata(&self, segment: *mut Segment) {
        if let Some(at) = NonNull::new(segment.cast()) {
            let len = pages_of::<Segment, O>(&self.source);
            // SAFETY: metadata from `segment_metadata`, in pages of its own, that nobody uses. A refusal leaves garbage,
            // which `open` and `ready` expect.
            if unsafe { !self.source.purge(at, len) } {
                self.source.uncommit(len);
            }
        }
        self.spare.lock().put(segment);
    }

    /// Gives blocks of `slot` back: at most [`GIVE_MAX`].
    pub(crate) fn give(&self, slot: Slot, blocks: &[*mut u8]) -> Result<(), Fault> {
        debug_assert!(blocks.len() <= GIVE_MAX);
        for &block in blocks {
            Segment::prefetch(self.map.find(block as usize), block as usize);
        }
        let now_ms = self.source.os().now_ms();
        let mut left = u64::MAX >> (64 - blocks.len().clamp(1, 64));
        while let Some(&first) = blocks.get(left.trailing_zeros() as usize) {
            let shard = match self.shard_of(first, slot) {
                Ok(shard) => shard,
                Err(foreign) => {
                    let ours = nested::give_back(first, Some(slot)).ok_or(foreign)?;
                    ours.map_err(|misuse| self.fault(misuse, first, slot))?;
                    left &= left - 1;
                    continue;
                }
            };
            let place = self.place(shard);
            let done = self.enter(place, true, |inside, tally| {
                let (given, fault) = self.give_in(inside, shard, slot, blocks, left, now_ms, tally);
                let bytes = given.count_ones() as usize * self.classes.bytes(slot);
                ((given, fault), -bytes.cast_signed())
            });
            match done {
                Some(((_, Some(fault)), _)) => return Err(fault),
                Some(((given, None), _)) => left &= !given,
                None => {}
            }
        }
        Ok(())
    }

    fn fault(&self, misuse: Misuse, block: *mut u8, slot: Slot) -> Fault {
        Fault { misuse, address: block as usize, size: self.classes.bytes(slot) }
    }

    fn shard_of(&self, block: *mut u8, slot: Slot) -> Result<usize, Fault> {
        let segment = self.map.find(block as usize);
        // SAFETY: null, or metadata, which stays readable (N2).
        let segment = unsafe { segment.as_ref() };
        segment.map(Segment::shard).ok_or_else(|| self.fault(Misuse::Foreign, block, slot))
    }

    /// Gives back those of `blocks` (only the ones in `left`) that are in this shard; which those were, and the fault at
    /// which it stopped.
    #[allow(clippy::too_many_arguments, reason = "one call, split from `give` for its length")]
    fn give_in(
        &self,
        inside: &mut Shard,
        shard: usize,
        slot: Slot,
        blocks: &[*mut u8],
        left: u64,
        now_ms: u64,
        tally: &mut Tally,
    ) -> (u64, Option<Fault>) {
        let k = self.classes.granules(slot);
        let (mut given, mut rest) = (0, left);
        while rest != 0 {
            let i = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            let segment = self.map.find(blocks[i] as usize);
            // SAFETY: null, or metadata, which stays readable (N2).
            if unsafe { segment.as_ref() }.is_none_or(|s| s.shard() != shard) {
                continue;
            }
            // SAFETY: published, asked under the lock of its shard (N2), which protects it (R3).
            let segment = unsafe { &mut *segment };
            match segment.give(blocks.get(i..).unwrap_or_default(), k, now_ms, tally) {
                Ok(Given { n, pages }) => {
                    self.extents.unmark(blocks.get(i..i + n).unwrap_or_default(), k);
                    inside.given(segment, Segment::granule(blocks[i] as usize), k, pages);
                    let these = (u64::MAX >> (64 - n)) << i;
                    given |= these;
                    rest &= !these;
                }
                Err(misuse) => return (given, Some(self.fault(misuse, blocks[i], slot))),
            }
        }
        (given, None)
    }

    /// Makes a block of slot `from` one of slot `to` where it stands. `false`: it can't be, and nothing has changed.
    pub(crate) fn resize(&self, block: *mut u8, from: Slot, to: Slot) -> Result<bool, Fault> {
        let (old, new) = (self.classes.granules(from), self.classes.granules(to));
        if !(block as usize).is_multiple_of(to.align()) {
            return Ok(false);
        }
        let shard = self.shard_of(block, from)?;
        let done = self.enter(self.place(shard), true, |inside, tally| {
            let segment = self.map.find(block as usize);
            // SAFETY: null, or metadata (N2); the block is the caller's, so its segment stays published and in its shard.
            let Some(segment) = (unsafe { segment.as_mut() }) else {
                return (Err(self.fault(Misuse::Foreign, block, from)), 0);
            };
            let g = Segment::granule(block as usize);
            if let Err(misuse) = segment.check(g, old) {
                return (Err(self.fault(misuse, block, from)), 0);
            }
            let fits = segment.resize(g, (old, new), &self.source, tally);
            if fits && new != old {
                self.extents.resize(block, old, new);
                // Growing counts as well: the chunk where it ends may have been an empty one.
                inside.given(segment, g + old.min(new), old.abs_diff(new), new < old);
            }
            let out = if fits {
                (new * GRANULE).cast_signed() - (old * GRANULE).cast_signed()
            } else {
                0
            };
            (Ok(fits), out)
        });
        done.map_or(Ok(false), |(fits, _)| fits)
    }

    /// Withdraws an empty segment that is no longer listed, and unmaps it. `false`: the kernel refuses; list it again.
    pub(crate) fn retire(&self, segment: *mut Segment) -> bool {
        // SAFETY: the caller took it off its shard's list, so nobody else writes to it.
        let (base, dirty, shard) =
            unsafe { ((*segment).base(), (*segment).dirty_bytes(), (*segment).shard()) };
        let Some(at) = NonNull::new(core::ptr::with_exposed_provenance_mut(base)) else {
            return false;
        };
        // Once the range is unmapped it may be another segment's.
        self.extents.close(base, &self.source);
        // SAFETY: both mapped by `grow`; empty, so nobody has a block of it, and metadata that nobody else has.
        let gone = unsafe {
            (*segment).wall.lift(base + SEGMENT, &self.source);
            self.source.unmap(at, SEGMENT, dirty)
        };
        if gone {
            self.source.retain(0, dirty);
            self.unmapped(shard / SHARDS, dirty, self.source.os().now_ms());
            self.keep_metadata(segment);
        } else {
            // SAFETY: metadata that nobody else has.
            unsafe { (*segment).wall = Wall::put(base + SEGMENT, &self.source) };
        }
        gone
    }

    /// Takes a segment out of the map: before [`retire`](Self::retire), under its shard's lock.
    pub(crate) fn withdraw(&self, segment: &Segment) {
        self.map.withdraw(segment.base());
    }

    /// Puts a segment that could not be retired back to its shard.
    pub(crate) fn relist(&self, segment: *mut Segment) {
        // SAFETY: metadata that nobody else has.
        let (base, shard) = unsafe { ((*segment).base(), (*segment).shard()) };
        // The leaf is there since the first publication, and a place was free a moment ago; where another segment took
        // it, there may be no memory for more places: then the range stays mapped and unused, as the kernel has it.
        let _ = self.extents.open(base, &self.meta, &self.source)
            && self.map.publish(base, segment, &self.meta, &self.source)
            && self.list(shard, segment);
    }

    /// Enters every lock, in order, and stays inside: for `fork`.
    pub(crate) fn hold(&self) {
        self.parts.hold();
        for place in self.places() {
            place.shard.hold();
        }
        self.spare.hold();
        self.meta.hold();
    }

    /// # Safety
    /// After [`hold`](Self::hold), on the same thread or its copy.
    pub(crate) unsafe fn let_go(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            self.meta.let_go();
            self.spare.let_go();
            for place in self.places() {
                place.shard.let_go();
            }
            self.parts.let_go();
        }
    }
}

impl Spare {
    /// Beyond these the metadata is forgotten: its pages are purged, what is lost are addresses.
    fn put(&mut self, segment: *mut Segment) {
        if self.n < SPARES {
            self.segments[self.n % SPARES] = segment;
            self.n += 1;
        }
    }
}

#[cfg(not(loom))]
pub(crate) mod lookup;

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
