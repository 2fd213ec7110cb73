//! Huge blocks: over 1 MiB, or aligned beyond what a segment does; one mapping each.
//! Owns: `Huge`, the table of their mappings. Called by: `heap`.
//!
//! H1: an address is in `live` exactly while a huge block begins there; `len` is the block's size in whole OS pages.
//! H2: a mapping in `kept` is free, committed, counted as retained, and not zero. The oldest comes first.
//! H3: the lock is not held across a call of the kernel: an entry is taken out before its mapping is changed.
//! H4: while the lock is free, the accounts of live and of retained bytes agree with the table: a fork copies both.
//!
//! A block grows by `mremap`: the kernel moves page table entries, never contents. What is kept serves smaller blocks by
//! parts and larger ones by growing: its pages are resident, and each saves a page fault.

#![allow(
    clippy::indexing_slicing,
    reason = "places in the table are masked to its length, a power of two"
)]

use crate::fault::{Fault, Misuse};
use crate::granule::Granules;
#[cfg(not(loom))]
use crate::granule::lookup::Around;
use crate::hardened::Wall;
use crate::meta::Meta;
use crate::part::PARTS;
use core::ptr::{self, NonNull};
use nearheap_numa::lock::Lock;
use nearheap_numa::sync::{AtomicUsize, Ordering};
use nearheap_numa::{Os, PageSource, const_unless_loom};

/// Free mappings that are kept at most.
const KEPT: usize = if cfg!(loom) { 4 } else { 64 };
/// Bytes of the smallest OS page, at a multiple of which every block begins.
#[cfg(not(loom))]
const MIN_PAGE: usize = 4096;
/// Bytes of a huge page.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

#[derive(Clone, Copy, Debug)]
struct Mapping {
    at: usize,
    len: usize,
    mapped: usize,
    /// The number of the kernel's mapping that it is a part of: what the kernel has in one piece can be moved in one.
    origin: usize,
    /// Whose memory it is: it serves that part alone while it is kept.
    part: u8,
    /// What is behind its end; nothing, while it is kept.
    wall: Wall,
}

const NOTHING: Mapping = Mapping { at: 0, len: 0, mapped: 0, origin: 0, part: 0, wall: Wall::NONE };
const _: () = assert!(PARTS <= u8::MAX as usize);

/// An open-addressing table in metadata memory, at most half full.
#[derive(Debug)]
struct Table {
    entries: *mut Mapping,
    capacity: usize,
    /// Live blocks, and those that are promised a place.
    count: usize,
    kept: [Mapping; KEPT],
    /// Mappings in `kept`.
    keeps: usize,
}

// SAFETY: the entries are metadata of the table's alone.
unsafe impl Send for Table {}

/// The huge blocks.
#[derive(Debug)]
pub(crate) struct Huge {
    table: Lock<Table>,
    /// Bytes of live blocks.
    bytes: AtomicUsize,
    /// Mappings there have been.
    origins: AtomicUsize,
}

/// Whether a mapping is large enough for a block and at most an eighth too large.
fn fits(mapped: usize, len: usize) -> bool {
    mapped >= len && mapped - len <= len / 8
}

impl Table {
    fn entries(&mut self) -> &mut [Mapping] {
        if self.entries.is_null() {
            return &mut [];
        }
        // SAFETY: `capacity` entries of metadata, which lives for ever, under the lock.
        unsafe { core::slice::from_raw_parts_mut(self.entries, self.capacity) }
    }

    /// The entry at a place, which is masked to the table's length.
    fn entry(&mut self, i: usize) -> &mut Mapping {
        let mask = self.capacity - 1;
        // SAFETY: `capacity` entries of metadata, a power of two, and never none where there is a place; under the lock.
        unsafe { &mut *self.entries.add(i & mask) }
    }

    /// Where an address is, or the empty place where it would be.
    #[inline(never)]
    fn place(&mut self, at: usize) -> Option<usize> {
        let mask = self.capacity.checked_sub(1)?;
        // Addresses are whole pages; the multiplication brings their high bits down.
        let mut i = (at >> 12).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20 & mask;
        for _ in 0..=mask {
            let here = self.entry(i).at;
            if here == at || here == 0 {
                return Some(i);
            }
            i = (i + 1) & mask;
        }
        None
    }

    fn find(&mut self, at: usize) -> Option<Mapping> {
        let i = self.place(at)?;
        Some(*self.entry(i)).filter(|m| m.at == at && at != 0)
    }

    #[inline(never)]
    fn insert(&mut self, mapping: Mapping) {
        if let Some(i) = self.place(mapping.at) {
            *self.entry(i) = mapping;
        }
    }

    /// Moves all entries to a larger table.
    fn move_to(&mut self, entries: *mut Mapping, capacity: usize) {
        let (old, n) = (self.entries, self.capacity);
        (self.entries, self.capacity) = (entries, capacity);
        for i in 0..n {
            // SAFETY: `i` is inside the old table, which nobody else reads any more.
            let mapping = unsafe { old.add(i).read() };
            if mapping.at != 0 {
                self.insert(mapping);
            }
        }
    }

    /// Takes an entry out and moves those behind it up, so that no search stops too early.
    fn remove(&mut self, at: usize) {
        let Some(i) = self.place(at) else { return };
        if self.entry(i).at != at {
            return;
        }
        let mask = self.capacity - 1;
        *self.entry(i) = NOTHING;
        let mut j = (i + 1) & mask;
        while self.entry(j).at != 0 {
            let mapping = core::mem::replace(self.entry(j), NOTHING);
            self.insert(mapping);
            j = (j + 1) & mask;
        }
    }

    /// What an address is at which no block begins: free already, inside of a block, or none of ours (any more).
    #[cold]
    fn misuse_at(&mut self, at: usize) -> Misuse {
        if self.kept().iter().any(|m| m.at == at) {
            Misuse::DoubleFree
        } else if self.entries().iter().any(|m| (m.at..m.at + m.len).contains(&at)) {
            Misuse::NotABlock
        } else {
            Misuse::Foreign
        }
    }

    fn kept(&self) -> &[Mapping] {
        &self.kept[..self.keeps.min(KEPT)]
    }

    /// Keeps a free mapping, joined with what is kept of the same origin right before and behind it. `false`: there is no
    /// place for it.
    fn keep(&mut self, mut mapping: Mapping) -> bool {
        for _ in 0..2 {
            let joins = |m: &Mapping| {
                m.origin == mapping.origin
                    && (m.at + m.mapped == mapping.at || mapping.at + mapping.mapped == m.at)
            };
            let Some(i) = self.kept().iter().position(joins) else { break };
            let other = self.take_kept(i);
            mapping.at = mapping.at.min(other.at);
            mapping.mapped += other.mapped;
        }
        let Some(place) = self.kept.get_mut(self.keeps) else { return false };
        *place = mapping;
        self.keeps += 1;
        true
    }

    /// Takes the kept mapping at a place out.
    #[inline(never)]
    fn take_kept(&mut self, i: usize) -> Mapping {
        let mut mapping = NOTHING;
        for place in self.kept.iter_mut().take(self.keeps).skip(i).rev() {
            core::mem::swap(place, &mut mapping);
        }
        self.keeps -= 1;
        mapping
    }

    /// Takes `len` bytes of the smallest kept mapping of a part that has them, or the largest there is if it has half of
    /// them.
    #[inline(never)]
    fn take_near(&mut self, part: usize, (len, align): (usize, usize)) -> Option<Mapping> {
        let kept = self.kept().iter().enumerate().filter(|(_, m)| usize::from(m.part) == part);
        let aligned = kept.filter(|(_, m)| m.at.is_multiple_of(align));
        let larger = aligned.clone().filter(|(_, m)| m.mapped >= len);
        if let Some((i, &mapping)) = larger.min_by_key(|(_, m)| m.mapped) {
            if fits(mapping.mapped, len) {
                return Some(self.take_kept(i));
            }
            let rest = Mapping { at: mapping.at + len, mapped: mapping.mapped - len, ..mapping };
            if let Some(place) = self.kept.get_mut(i) {
                *place = rest;
            }
            return Some(Mapping { mapped: len, ..mapping });
        }
        let near = aligned.filter(|(_, m)| m.mapped >= len / 2);
        let (i, _) = near.max_by_key(|(_, m)| m.mapped)?;
        Some(self.take_kept(i))
    }
}

impl Huge {
    const_unless_loom! {
        pub(crate) fn new() -> Self {
            Self {
                table: Lock::new(Table {
                    entries: ptr::null_mut(),
                    capacity: 0,
                    count: 0,
                    kept: [NOTHING; KEPT],
                    keeps: 0,
                }),
                bytes: AtomicUsize::new(0),
                origins: AtomicUsize::new(0),
            }
        }
    }

    /// Bytes of live blocks.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// A block of `len` bytes (whole pages) of a part at a multiple of `align`; and how many from its beginning on may be
    /// other than zero. Fresh memory is backed by `huge_pages` if that is asked for.
    pub(crate) fn alloc<O: Os>(
        &self,
        (len, align): (usize, usize),
        huge_pages: bool,
        part: usize,
        granules: &Granules<O>,
    ) -> Option<(NonNull<u8>, usize)> {
        let Granules { meta, source, .. } = granules;
        if !self.reserve(meta, source) {
            return None;
        }
        if let Some(reused) = self.reuse(part, (len, align), source) {
            return Some(reused);
        }
        let Some(part) = granules.part_for(part, len) else {
            self.forgo();
            return None;
        };
        let align = if huge_pages { align.max(HUGE_PAGE) } else { align };
        if !source.commit(len) {
            self.forgo();
            return None;
        }
        let Some(at) = source.map(len + Wall::room(source), align) else {
            source.uncommit(len);
            self.forgo();
            return None;
        };
        granules.put(part, at, len);
        if huge_pages {
            // SAFETY: mapped above.
            unsafe { source.advise_huge(at, len, true) };
        }
        let (origin, part) = (self.origin(), part as u8);
        let place = at.as_ptr().expose_provenance();
        // SAFETY: the room behind the block was mapped above.
        let wall = unsafe { Wall::put_in_room(place + len, source) };
        self.enlist(Mapping { at: place, len, mapped: len, origin, part, wall });
        Some((at, 0))
    }

    /// A number for what the kernel has just made or moved.
    fn origin(&self) -> usize {
        self.origins.fetch_add(1, Ordering::Relaxed)
    }

    #[inline(never)]
    fn enlist(&self, mapping: Mapping) {
        let mut table = self.table.lock();
        table.insert(mapping);
        self.bytes.fetch_add(mapping.len, Ordering::Relaxed);
    }

    /// Keeps a free mapping if there is a place for it.
    fn keep<O: Os>(&self, mapping: Mapping, source: &PageSource<O>) -> bool {
        let mut table = self.table.lock();
        let kept = table.keep(mapping);
        if kept {
            source.retain(mapping.mapped, 0);
        }
        kept
    }

    /// Takes the mapping out that has been kept for longest, if all together have more than `share` bytes.
    fn oldest<O: Os>(&self, share: usize, source: &PageSource<O>) -> Option<Mapping> {
        let mut table = self.table.lock();
        let bytes: usize = table.kept().iter().map(|m| m.mapped).sum();
        (bytes > share).then(|| {
            let mapping = table.take_kept(0);
            source.retain(0, mapping.mapped);
            mapping
        })
    }

    /// Makes a block of what is kept, and says how many bytes of it were: to clear them takes less time than faults would.
    fn reuse<O: Os>(
        &self,
        part: usize,
        (len, align): (usize, usize),
        source: &PageSource<O>,
    ) -> Option<(NonNull<u8>, usize)> {
        let mut table = self.table.lock();
        let mapping = table.take_near(part, (len, align))?;
        source.retain(0, mapping.mapped);
        drop(table);
        let mut at = NonNull::new(ptr::with_exposed_provenance_mut(mapping.at))?;
        let dirty = mapping.mapped;
        let wall = if dirty < len {
            // SAFETY: a kept mapping is nobody's.
            let Some((to, wall)) = (unsafe { Wall::remap(at, (dirty, len), align, source) }) else {
                self.unmap(mapping, source);
                return None;
            };
            to.as_ptr().expose_provenance();
            at = to;
            wall
        } else {
            Wall::put(mapping.at + dirty, source)
        };
        let origin = if dirty < len { self.origin() } else { mapping.origin };
        let (place, mapped) = (at.as_ptr() as usize, dirty.max(len));
        self.enlist(Mapping { at: place, len, mapped, origin, wall, ..mapping });
        Some((at, dirty))
    }

    /// Makes room in the table for one entry more.
    #[inline(never)]
    fn reserve<O: Os>(&self, meta: &Meta, source: &PageSource<O>) -> bool {
        // Each turn makes the table larger, so addresses end before the turns do.
        loop {
            let mut table = self.table.lock();
            if 2 * (table.count + 1) <= table.capacity {
                table.count += 1;
                return true;
            }
            let capacity = (table.capacity * 2).max(256);
            drop(table);
            // The old table is left behind: all of them together are as large as the last.
            let bytes = capacity * size_of::<Mapping>();
            let Some(fresh) = meta.bytes_of(source, bytes, align_of::<Mapping>()) else {
                return false;
            };
            table = self.table.lock();
            if table.capacity < capacity {
                table.move_to(fresh.as_ptr().cast(), capacity);
            }
        }
    }

    /// Gives up the place in the table that `reserve` promised or a block had.
    #[inline(never)]
    fn forgo(&self) {
        self.table.lock().count -= 1;
    }

    /// Takes the block at `at` out of the table after checking that it is one, of `len` bytes. Its place stays promised.
    fn delist(&self, at: *mut u8, len: usize) -> Result<Mapping, Fault> {
        let fault = |misuse| Fault { misuse, address: at as usize, size: len };
        let mut table = self.table.lock();
        let Some(mapping) = table.find(at as usize) else {
            return Err(fault(table.misuse_at(at as usize)));
        };
        if mapping.len != len {
            return Err(fault(Misuse::WrongLayout));
        }
        table.remove(at as usize);
        self.bytes.fetch_sub(len, Ordering::Relaxed);
        Ok(mapping)
    }

    /// Gives a block of `len` bytes back; keeps its mapping for the next one if it is not over `keep` bytes. The bytes that
    /// were unmapped.
    pub(crate) fn free<O: Os>(
        &self,
        at: *mut u8,
        len: usize,
        keep: usize,
        source: &PageSource<O>,
    ) -> Result<usize, Fault> {
        let mut mapping = self.delist(at, len)?;
        self.forgo();
        // SAFETY: the mapping's, which is nobody's any more.
        unsafe { mapping.wall.lift(mapping.at + mapping.mapped, source) };
        if mapping.mapped > keep {
            self.unmap(mapping, source);
            return Ok(mapping.mapped);
        }
        for _ in 0..2 {
            if self.keep(mapping, source) {
                return Ok(0);
            }
            // There is no place for it: the oldest makes one.
            if let Some(oldest) = self.oldest(0, source) {
                self.unmap(oldest, source);
            }
        }
        self.unmap(mapping, source);
        Ok(mapping.mapped)
    }

    /// Bytes of the block at an address; or what is wrong with it. `None`: somebody is inside, and this doesn't wait.
    #[cfg(all(feature = "c-interface", not(loom)))]
    pub(crate) fn len_of(&self, address: usize, wait: bool) -> Option<Result<usize, Misuse>> {
        let mut table = if wait { self.table.lock() } else { self.table.try_lock()? };
        Some(match table.find(address) {
            Some(mapping) => Ok(mapping.len),
            None => Err(table.misuse_at(address)),
        })
    }

    /// Finds the block that an address is in, and calls `look` with its beginning, which stays mapped meanwhile (H3).
    #[cfg(not(loom))]
    #[inline(never)]
    pub(crate) fn around(&self, address: usize, look: &mut dyn FnMut(usize)) -> Around {
        let within = |m: &&Mapping| m.at != 0 && address.wrapping_sub(m.at) < m.len.max(m.mapped);
        let mut table = self.table.lock();
        // Mostly it is in the first page.
        let near = table.find(address & !(MIN_PAGE - 1));
        if let Some(mapping) = near.or_else(|| table.entries().iter().find(within).copied()) {
            look(mapping.at);
            return Around::Block;
        }
        if table.kept().iter().any(|m| within(&m)) { Around::Free } else { Around::Nothing }
    }

    /// Calls `look` with the block of the lowest address over `after`; that address.
    #[cfg(not(loom))]
    pub(crate) fn next(&self, after: usize, look: &mut dyn FnMut(usize)) -> Option<usize> {
        let mut table = self.table.lock();
        let next = table.entries().iter().map(|m| m.at).filter(|&at| at > after).min()?;
        look(next);
        Some(next)
    }

    /// Unmaps; where the kernel refuses, purges the range, and keeps it for another attempt if there is room, else leaves
    /// it behind: each is in the counts of refusals.
    #[inline(never)]
    fn unmap<O: Os>(&self, mapping: Mapping, source: &PageSource<O>) {
        let Some(at) = NonNull::new(ptr::with_exposed_provenance_mut(mapping.at)) else { return };
        // SAFETY: mapped by `alloc`, in nobody's hands since it left the table.
        unsafe {
            if source.unmap(at, mapping.mapped, mapping.mapped) {
                return;
            }
            let purged = source.purge(at, mapping.mapped);
            // What is kept counts as committed (H2), and what was purged does no more.
            if purged && !source.commit(mapping.mapped) {
                return;
            }
            if !self.keep(mapping, source) && purged {
                source.uncommit(mapping.mapped);
            }
        }
    }

    /// Makes the block of `old` bytes one of `new` bytes, both whole pages, without touching what is in it.
    /// `Ok(None)`: there is no memory, and the block is as it was.
    pub(crate) fn resize<O: Os>(
        &self,
        at: *mut u8,
        (old, new): (usize, usize),
        (align, huge_pages): (usize, bool),
        source: &PageSource<O>,
    ) -> Result<Option<NonNull<u8>>, Fault> {
        let mut mapping = self.delist(at, old)?;
        if fits(mapping.mapped, new) {
            self.enlist(Mapping { len: new, ..mapping });
            return Ok(NonNull::new(at));
        }
        let behind = mapping.at + mapping.mapped;
        // SAFETY: the mapping's, which no other thread finds in the table. It may grow to there.
        unsafe { mapping.wall.lift(behind, source) };
        let to_align = if huge_pages { align.max(HUGE_PAGE) } else { align };
        let moved = NonNull::new(at).and_then(|at| {
            // SAFETY: the mapping is the caller's block, which is the caller's no more once it has moved.
            unsafe { Wall::remap(at, (mapping.mapped, new), to_align, source) }
        });
        let Some((to, wall)) = moved else {
            mapping.wall = Wall::put(behind, source);
            self.enlist(mapping);
            return Ok(None);
        };
        if huge_pages && new > mapping.mapped {
            // SAFETY: mapped, and the block's.
            unsafe { source.advise_huge(to, new, true) };
        }
        to.as_ptr().expose_provenance();
        let origin = self.origin();
        let at = to.as_ptr() as usize;
        self.enlist(Mapping { at, len: new, mapped: new, origin, wall, ..mapping });
        debug_assert!((to.as_ptr() as usize).is_multiple_of(align));
        Ok(Some(to))
    }

    /// Unmaps kept mappings, the oldest first, until at most `target` bytes are retained by everyone, or `share` bytes here.
    pub(crate) fn purge<O: Os>(
        &self,
        target: usize,
        share: usize,
        granules: &Granules<O>,
        now_ms: u64,
    ) {
        let source = &granules.source;
        // What can't be unmapped is kept again, so there is a bound.
        for _ in 0..KEPT {
            if source.retained() <= target {
                break;
            }
            let Some(mapping) = self.oldest(share, source) else { break };
            self.unmap(mapping, source);
            granules.unmapped(usize::from(mapping.part), mapping.mapped, now_ms);
        }
    }

    /// The part of the block at an address.
    pub(crate) fn part_of(&self, at: *mut u8) -> Option<usize> {
        self.table.lock().find(at as usize).map(|m| usize::from(m.part))
    }

    /// Bytes of live blocks of a part, and bytes that are kept of it.
    pub(crate) fn of_part(&self, part: usize) -> (usize, usize) {
        let mut table = self.table.lock();
        let (mut live, mut kept) = (0, 0);
        for mapping in table.kept().iter().filter(|m| usize::from(m.part) == part) {
            kept += mapping.mapped;
        }
        for mapping in table.entries().iter().filter(|m| usize::from(m.part) == part) {
            live += mapping.len;
        }
        (live, kept)
    }

    /// The lock, for `fork`.
    pub(crate) fn hold(&self) {
        self.table.hold();
    }

    /// # Safety
    /// After [`hold`](Self::hold), on the same thread or its copy.
    pub(crate) unsafe fn let_go(&self) {
        // SAFETY: the caller's promise.
        unsafe { self.table.let_go() };
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
