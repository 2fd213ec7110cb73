//! The page source: reserves, commits and purges memory, keeps the accounts of each, and holds the limits.
//! Owns: `PageSource`. Called by: segments, huge blocks and metadata of the heap; never holds a lock.
//!
//! P1: *mapped* is address space; *committed* is what may be resident: pages handed out since they were last purged,
//!     huge blocks, metadata. `committed <= mapped`, and `committed <= hard limit` after every successful `commit`.
//! P2: *retained* pages are committed and wholly free. Whoever frees or takes a page says so here.
//! P3: a refusal of the kernel is counted and returned, never printed, and changes no account.
//!
//! The soft limit:
//!
//! | state | meaning | to |
//! |---|---|---|
//! | `BELOW` | committed is under the soft limit | `CROSSED` by the commit that goes over it |
//! | `CROSSED` | nobody has reacted yet | `KNOWN` by the one caller of `take_crossing` that gets `true` |
//! | `KNOWN` | reacted, still near it | `BELOW` when committed falls a sixteenth below the limit |
//!
//! `committed` is only ever exchanged by those who then look at the state, and the exchanges pair with each other: of two
//! that change both at once, the later exchange sees the other's state. So no crossing goes untold; a fall that is made up
//! for before anyone looks is none.

use crate::os::{Errno, Os};
use crate::sync::{AtomicU64, AtomicUsize, Late, Ordering};
use core::ptr::NonNull;

const BELOW: usize = 0;
const CROSSED: usize = 1;
const KNOWN: usize = 2;

/// How many places on either side of the last mapping are tried, where address space is short.
const HOLES: usize = 16;

/// What a limit is when there is none.
pub const NO_LIMIT: usize = usize::MAX;

/// How close the heap is to its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// Under 80 % of the limit, or no limit is set.
    Normal,
    /// At least 80 % of the limit.
    Warning,
    /// At least 90 % of the limit.
    Critical,
}

/// The accounts of a page source, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    /// Bytes of address space.
    pub mapped: usize,
    /// Bytes that may be resident.
    pub committed: usize,
    /// The highest `committed` so far.
    pub peak: usize,
    /// Bytes of wholly free pages among them.
    pub retained: usize,
    /// Bytes given back by purging and unmapping.
    pub purged: u64,
    /// Mappings asked for.
    pub maps: u64,
    /// Mappings refused.
    pub refused_maps: u64,
    /// Unmappings, purges and moves refused.
    pub refused_others: u64,
    /// Commits refused by the hard limit.
    pub hard_refusals: u64,
    /// Times that the soft limit was crossed upwards.
    pub crossings: u64,
}

/// Memory from and to the kernel.
#[derive(Debug)]
pub struct PageSource<O> {
    os: O,
    page: AtomicUsize,
    next: AtomicUsize,
    hard: Late,
    soft: Late,
    crossing: AtomicUsize,
    mapped: AtomicUsize,
    committed: AtomicUsize,
    peak: AtomicUsize,
    retained: AtomicUsize,
    purged: AtomicU64,
    maps: AtomicU64,
    refused_maps: AtomicU64,
    refused_others: AtomicU64,
    hard_refusals: AtomicU64,
    crossings: AtomicU64,
}

/// Addresses that a program can have.
const ADDRESSES: usize = 1 << 47;
/// Up to this alignment it is worth looking for a hole among the neighbours.
const NEAR: usize = 4 << 20;

/// The next multiple of `align`, a power of two; `None` where that overflows.
pub const fn round_up(n: usize, align: usize) -> Option<usize> {
    let low = align.wrapping_sub(1);
    match n.checked_add(low) {
        Some(sum) => Some(sum & !low),
        None => None,
    }
}

impl<O: Os> PageSource<O> {
    crate::const_unless_loom! {
        /// A source without limits.
        pub fn new(os: O) -> Self {
            Self {
                os,
                page: AtomicUsize::new(0),
                next: AtomicUsize::new(0),
                hard: Late::new(),
                soft: Late::new(),
                crossing: AtomicUsize::new(BELOW),
                mapped: AtomicUsize::new(0),
                committed: AtomicUsize::new(0),
                peak: AtomicUsize::new(0),
                retained: AtomicUsize::new(0),
                purged: AtomicU64::new(0),
                maps: AtomicU64::new(0),
                refused_maps: AtomicU64::new(0),
                refused_others: AtomicU64::new(0),
                hard_refusals: AtomicU64::new(0),
                crossings: AtomicU64::new(0),
            }
        }
    }

    /// The kernel behind it.
    pub fn os(&self) -> &O {
        &self.os
    }

    /// Bytes of an OS page.
    #[inline]
    pub fn page_size(&self) -> usize {
        match self.page.load(Ordering::Relaxed) {
            0 => {
                let size = self.os.page_size();
                self.page.store(size, Ordering::Relaxed);
                size
            }
            size => size,
        }
    }

    /// `len` in whole OS pages; `None` where that overflows.
    #[inline(never)]
    pub fn in_pages(&self, len: usize) -> Option<usize> {
        round_up(len, self.page_size())
    }

    /// Sets both limits, in bytes; [`NO_LIMIT`] for none.
    pub fn set_limits(&self, soft: usize, hard: usize) {
        self.soft.set(soft);
        self.hard.set(hard);
    }

    /// Maps `len` bytes (whole pages) at a multiple of `align` (a power of two). Not committed yet.
    pub fn map(&self, len: usize, align: usize) -> Option<NonNull<u8>> {
        self.maps.fetch_add(1, Ordering::Relaxed);
        let at = if align <= self.page_size() {
            self.os.map(0, len)
        } else {
            self.map_aligned(len, align)
        };
        match at {
            Ok(at) => {
                self.mapped.fetch_add(len, Ordering::Relaxed);
                Some(at)
            }
            Err(_) => {
                self.refused_maps.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }

    /// Neighbours in the address space share one entry of the kernel's map, so the next mapping is asked for right
    /// after the last. Only where that is taken, more is mapped than needed and the ends are cut off.
    fn map_aligned(&self, len: usize, align: usize) -> Result<NonNull<u8>, Errno> {
        if align.max(len) >= ADDRESSES {
            return Err(Errno(libc::ENOMEM));
        }
        let start = match self.next.load(Ordering::Relaxed) {
            0 => self.os.hint(),
            next => next,
        };
        let hint = round_up(start, align).unwrap_or(0);
        let at = self.os.map(hint, len)?;
        if (at.as_ptr() as usize).is_multiple_of(align) {
            self.next.store(at.as_ptr() as usize + len, Ordering::Relaxed);
            return Ok(at);
        }
        // SAFETY: mapped two lines above, used by nobody.
        unsafe { self.trim(at, len) };
        let padded = len.checked_add(align - self.page_size()).ok_or(Errno(libc::ENOMEM))?;
        let at = match self.os.map(0, padded) {
            Err(_) if align <= NEAR => return self.map_near(hint, len, align),
            at => at?,
        };
        let head = (at.as_ptr() as usize).wrapping_neg() % align;
        // SAFETY: `head + len <= padded`: both ends are inside the new mapping, and nobody uses them.
        unsafe {
            let body = at.add(head);
            if head > 0 {
                self.trim(at, head);
            }
            if padded > head + len {
                self.trim(body.add(len), padded - head - len);
            }
            self.next.store(body.as_ptr() as usize + len, Ordering::Relaxed);
            Ok(body)
        }
    }

    /// Unmaps what was mapped beyond need. What the kernel doesn't take back stays in the account of what is mapped.
    ///
    /// # Safety
    /// The range was mapped here, and nobody uses it.
    unsafe fn trim(&self, at: NonNull<u8>, len: usize) {
        // SAFETY: the caller's promise.
        if self.counted(unsafe { self.os.unmap(at, len) }).is_none() {
            self.mapped.fetch_add(len, Ordering::Relaxed);
        }
    }

    fn counted<T>(&self, result: Result<T, Errno>) -> Option<T> {
        if result.is_err() {
            self.refused_others.fetch_add(1, Ordering::Relaxed);
        }
        result.ok()
    }

    /// Looks for a hole that a neighbour left: near its limit, a process may have room for `len` bytes and not for the
    /// ends that would be cut off.
    #[cold]
    fn map_near(&self, hint: usize, len: usize, align: usize) -> Result<NonNull<u8>, Errno> {
        for n in 1..=HOLES {
            for hint in [hint.wrapping_sub(n * align), hint.wrapping_add(n * align)] {
                let at = self.os.map(hint, len)?;
                if (at.as_ptr() as usize).is_multiple_of(align) {
                    self.next.store(at.as_ptr() as usize + len, Ordering::Relaxed);
                    return Ok(at);
                }
                // SAFETY: mapped above, used by nobody.
                unsafe { self.trim(at, len) };
            }
        }
        Err(Errno(libc::ENOMEM))
    }

    /// Unmaps a range of which `committed` bytes were committed. Where the kernel refuses, `false`: the range is still
    /// the caller's, and as it was.
    ///
    /// # Safety
    /// The range was mapped here, and nobody uses it any more.
    pub unsafe fn unmap(&self, at: NonNull<u8>, len: usize, committed: usize) -> bool {
        // SAFETY: the caller's promise.
        let done = self.counted(unsafe { self.os.unmap(at, len) }).is_some();
        if done {
            self.mapped.fetch_sub(len, Ordering::Relaxed);
            self.uncommit(committed);
            self.purged.fetch_add(committed as u64, Ordering::Relaxed);
        }
        done
    }

    /// Gives the pages of a committed range back; it stays mapped. `false` where the kernel refuses: the range stays
    /// committed and its contents are not zero.
    ///
    /// # Safety
    /// The range was mapped here, in whole OS pages, and nobody needs its contents.
    pub unsafe fn purge(&self, at: NonNull<u8>, len: usize) -> bool {
        // SAFETY: the caller's promise.
        let done = self.counted(unsafe { self.os.purge(at, len) }).is_some();
        if done {
            self.uncommit(len);
            self.purged.fetch_add(len as u64, Ordering::Relaxed);
        }
        done
    }

    /// Puts a wall of one OS page at `at`, where every access is a fault: if nothing is there, or in place of the page that
    /// is `ours`. Whether it did. It is mapped then, and goes by [`unmap`](Self::unmap).
    ///
    /// # Safety
    /// If it is `ours`, the page was mapped here, and nobody uses it.
    pub unsafe fn wall(&self, at: usize, ours: bool) -> bool {
        let page = self.page_size();
        // SAFETY: the caller's promise.
        let done = self.counted(unsafe { self.os.wall(at, page, ours) }) == Some(true);
        if done && !ours {
            self.mapped.fetch_add(page, Ordering::Relaxed);
            // The next mapping is asked for behind it.
            let (from, to) = (Ordering::Relaxed, Ordering::Relaxed);
            let _ = self.next.compare_exchange(at, at + page, from, to);
        }
        done
    }

    /// Asks for huge pages, or for none; a refusal is counted and costs nothing else.
    ///
    /// # Safety
    /// The range was mapped here.
    pub unsafe fn advise_huge(&self, at: NonNull<u8>, len: usize, yes: bool) {
        // SAFETY: the caller's promise.
        self.counted(unsafe { self.os.advise_huge(at, len, yes) });
    }

    /// Makes a wholly committed mapping longer or shorter, moving it if it must; `align` (a power of two) holds for the
    /// new place too. `None`: the old one stands.
    ///
    /// # Safety
    /// `[at, at + old)` was mapped here at a multiple of `align`; if the result is elsewhere, nobody uses the old one any
    /// more.
    pub unsafe fn remap(
        &self,
        at: NonNull<u8>,
        (old, new): (usize, usize),
        align: usize,
    ) -> Option<NonNull<u8>> {
        let (grown, shrunk) = (new.saturating_sub(old), old.saturating_sub(new));
        if grown > 0 && !self.commit(grown) {
            return None;
        }
        // The kernel moves to where it likes, so a wider alignment needs a place made for it.
        let moves = grown > 0 && align > self.page_size();
        let onto = if moves { self.map(new, align) } else { None };
        let moved = if moves && onto.is_none() {
            None
        } else {
            // SAFETY: the caller's promise; `onto` was mapped above.
            self.counted(unsafe { self.os.remap(at, old, new, onto) })
        };
        if moved.is_some() {
            self.mapped.fetch_add(if moves { 0 } else { grown }, Ordering::Relaxed);
            self.mapped.fetch_sub(if moves { old } else { shrunk }, Ordering::Relaxed);
            self.uncommit(shrunk);
            self.purged.fetch_add(shrunk as u64, Ordering::Relaxed);
        } else {
            // The kernel gives up `onto` before it fails for another reason, and somebody else may have those addresses
            // by now. So they are not unmapped: at worst, untouched addresses are lost.
            self.uncommit(grown);
        }
        moved
    }

    /// Asks for `bytes` more to be resident. `false`: the hard limit forbids it, and nothing has changed.
    #[inline(never)]
    pub fn commit(&self, bytes: usize) -> bool {
        let hard = self.hard.get();
        // Not added first and taken back if it was too much: others would be refused what fits meanwhile.
        let sum = |now: usize| now.checked_add(bytes).filter(|&sum| sum <= hard);
        let Ok(before) = self.committed.fetch_update(Ordering::AcqRel, Ordering::Relaxed, sum)
        else {
            self.hard_refusals.fetch_add(1, Ordering::Relaxed);
            return false;
        };
        let now = before + bytes;
        if now > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(now, Ordering::Relaxed);
        }
        if now > self.soft.get() {
            self.cross();
        }
        true
    }

    #[cold]
    fn cross(&self) {
        let crossed =
            self.crossing.compare_exchange(BELOW, CROSSED, Ordering::Relaxed, Ordering::Relaxed);
        if crossed.is_ok() {
            self.crossings.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether the soft limit has been crossed and nobody has been told: `true` once a crossing.
    #[inline]
    pub fn take_crossing(&self) -> bool {
        self.crossing.load(Ordering::Relaxed) == CROSSED && self.hear()
    }

    #[cold]
    fn hear(&self) -> bool {
        let heard =
            self.crossing.compare_exchange(CROSSED, KNOWN, Ordering::Relaxed, Ordering::Relaxed);
        if heard.is_ok() {
            // The memory may be gone again already.
            self.fall();
        }
        heard.is_ok()
    }

    /// Ends a crossing that is known, if `committed` is far enough below the limit.
    #[cold]
    fn fall(&self) {
        let soft = self.soft.get();
        let fell = self.committed.fetch_add(0, Ordering::AcqRel) < soft - soft / 16
            && self
                .crossing
                .compare_exchange(KNOWN, BELOW, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if fell && self.committed.fetch_add(0, Ordering::AcqRel) > soft {
            self.cross();
        }
    }

    /// Says that `bytes` are no longer resident.
    #[inline(never)]
    pub fn uncommit(&self, bytes: usize) {
        self.committed.fetch_sub(bytes, Ordering::AcqRel);
        if self.crossing.load(Ordering::Relaxed) == KNOWN {
            self.fall();
        }
    }

    /// Says that pages became wholly free (`freed` bytes of them) and were taken again (`taken`).
    #[inline]
    pub fn retain(&self, freed: usize, taken: usize) {
        self.retained.fetch_add(freed.wrapping_sub(taken), Ordering::Relaxed);
    }

    /// Bytes of wholly free pages that are committed.
    #[inline]
    pub fn retained(&self) -> usize {
        self.retained.load(Ordering::Relaxed)
    }

    /// Bytes that may be resident.
    #[inline]
    pub fn committed(&self) -> usize {
        self.committed.load(Ordering::Relaxed)
    }

    /// How close `committed` is to the hard limit, or to the soft one where there is no hard one.
    pub fn pressure(&self) -> Pressure {
        let limit = match self.hard.get() {
            NO_LIMIT => self.soft.get(),
            hard => hard,
        };
        let committed = self.committed();
        if limit == NO_LIMIT || committed < limit / 10 * 8 {
            Pressure::Normal
        } else if committed < limit / 10 * 9 {
            Pressure::Warning
        } else {
            Pressure::Critical
        }
    }

    /// Every account at this moment.
    pub fn accounts(&self) -> Accounts {
        Accounts {
            mapped: self.mapped.load(Ordering::Relaxed),
            committed: self.committed(),
            peak: self.peak.load(Ordering::Relaxed),
            retained: self.retained(),
            purged: self.purged.load(Ordering::Relaxed),
            maps: self.maps.load(Ordering::Relaxed),
            refused_maps: self.refused_maps.load(Ordering::Relaxed),
            refused_others: self.refused_others.load(Ordering::Relaxed),
            hard_refusals: self.hard_refusals.load(Ordering::Relaxed),
            crossings: self.crossings.load(Ordering::Relaxed),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::fake::FakeOs;

    const MIB: usize = 1 << 20;

    #[test]
    fn mappings_are_aligned_also_where_the_hint_is_not_taken() {
        for align in [4096, 64 << 10, 4 * MIB, 1 << 30] {
            let source = PageSource::new(FakeOs::new());
            let at = source.map(2 * MIB, align).unwrap();
            assert_eq!(at.as_ptr() as usize % align, 0, "align {align}");
            assert_eq!(source.os().mapped(), 2 * MIB, "the ends were cut off");
            // SAFETY: mapped above, unused.
            assert!(unsafe { source.unmap(at, 2 * MIB, 0) });
            assert_eq!(source.os().mapped(), 0);
        }
    }

    #[test]
    fn the_hard_limit_refuses_and_changes_nothing() {
        let source = PageSource::new(FakeOs::new());
        source.set_limits(NO_LIMIT, MIB);
        assert!(source.commit(MIB));
        assert!(!source.commit(1));
        assert_eq!(source.accounts().committed, MIB);
        assert_eq!(source.accounts().hard_refusals, 1);
        assert_eq!(source.pressure(), Pressure::Critical);
    }

    #[test]
    fn the_soft_limit_is_told_once_a_crossing() {
        let source = PageSource::new(FakeOs::new());
        source.set_limits(MIB, NO_LIMIT);
        assert!(source.commit(MIB) && !source.take_crossing(), "at the limit is not over it");
        assert!(source.commit(1) && source.take_crossing() && !source.take_crossing());
        source.uncommit(MIB / 32);
        assert!(source.commit(MIB) && !source.take_crossing(), "it never fell a sixteenth below");
        source.uncommit(MIB + MIB / 2);
        assert!(source.commit(2 * MIB) && source.take_crossing());
        assert_eq!(source.accounts().crossings, 2);
    }

    #[test]
    fn every_refusal_is_counted_and_changes_no_account() {
        let source = PageSource::new(FakeOs::new());
        let at = source.map(MIB, 4096).unwrap();
        assert!(source.commit(MIB));
        let before = source.accounts();
        source.os().fail_all(true);
        assert!(source.map(MIB, 4096).is_none());
        // SAFETY: mapped above, unused; every call is refused and touches nothing.
        unsafe {
            assert!(!source.unmap(at, MIB, MIB));
            assert!(!source.purge(at, MIB));
            assert!(source.remap(at, (MIB, 2 * MIB), 4096).is_none());
            assert!(source.remap(at, (MIB, MIB / 2), 4096).is_none());
        }
        let after = source.accounts();
        assert_eq!((after.refused_maps, after.refused_others), (1, 4));
        assert_eq!((after.mapped, after.committed), (before.mapped, before.committed));
    }

    #[test]
    fn a_wall_takes_the_place_of_what_is_ours_and_of_nothing_else() {
        let source = PageSource::new(FakeOs::new());
        let page = source.page_size();
        let at = source.map(2 * page, page).unwrap();
        let end = at.as_ptr() as usize + page;
        // SAFETY: mapped above, and unused.
        unsafe {
            source.os().fail_all(true);
            assert!(!source.wall(end, true));
            source.os().fail_all(false);
            assert_eq!(source.accounts().refused_others, 1);
            at.add(page).write(1);
            assert!(!source.wall(end, false), "something is there");
            assert_eq!(at.add(page).read(), 1);
            assert!(source.wall(end, true) && !source.wall(end, false));
            let a = source.accounts();
            assert_eq!((a.mapped, source.os().mapped(), a.refused_others), (2 * page, 2 * page, 1));
            assert!(source.unmap(at.add(page), page, 0) && source.unmap(at, page, 0));
        }
        assert_eq!((source.accounts().mapped, source.os().mapped()), (0, 0));
    }

    #[test]
    fn moving_keeps_a_wide_alignment_and_the_accounts() {
        for fail in 0..4 {
            let source = PageSource::new(FakeOs::new());
            let at = source.map(MIB, 4 * MIB).unwrap();
            assert!(source.commit(MIB));
            source.os().fail_at(fail);
            let moved_not;
            // SAFETY: the mapping is ours, and `at` isn't used after a move.
            unsafe {
                at.as_ptr().write(42);
                let moved = source.remap(at, (MIB, 8 * MIB), 4 * MIB);
                source.os().fail_at(0);
                moved_not = moved.is_none();
                let (now, len) = moved.map_or((at, MIB), |to| (to, 8 * MIB));
                assert_eq!(now.as_ptr().read(), 42);
                assert_eq!(now.as_ptr() as usize % (4 * MIB), 0);
                assert_eq!(source.accounts().committed, len);
                if fail == 0 {
                    assert!(moved.is_some());
                    assert_eq!(source.os().mapped(), len, "the old place is gone");
                }
                assert!(source.unmap(now, len, len));
            }
            let left = source.accounts();
            assert_eq!(left.committed, 0);
            // A place that was made for a move that failed is given up, and an end that the kernel doesn't take back of a
            // place that was not aligned by itself stays.
            assert!(left.mapped == 0 || left.refused_others > 0, "{left:?}");
            assert!(!moved_not || left.mapped <= 8 * MIB, "{left:?}");
            assert_eq!(source.os().mapped(), left.mapped);
        }
    }

    #[test]
    fn a_place_that_a_refused_move_gave_up_is_let_alone() {
        let source = PageSource::new(FakeOs::new());
        let at = source.map(MIB, 4 * MIB).unwrap();
        assert!(source.commit(MIB));
        source.os().fail_late(true);
        // SAFETY: the mapping is ours, and didn't move.
        unsafe {
            at.as_ptr().write(42);
            // Somebody else may be where the place was: this kernel ends the test if it is unmapped again.
            assert!(source.remap(at, (MIB, 8 * MIB), 4 * MIB).is_none());
            assert_eq!(at.as_ptr().read(), 42);
        }
        let a = source.accounts();
        assert_eq!((a.committed, a.refused_others), (MIB, 1));
        assert_eq!(source.os().mapped(), MIB, "the block is where it was");
        assert_eq!(a.mapped, 9 * MIB, "the place may still be mapped, for all that is known");
        // SAFETY: as above.
        assert!(unsafe { source.unmap(at, MIB, MIB) });
        assert_eq!(source.accounts().committed, 0);
    }

    #[test]
    fn moving_keeps_contents_and_accounts() {
        let source = PageSource::new(FakeOs::new());
        let at = source.map(MIB, 4096).unwrap();
        assert!(source.commit(MIB));
        // SAFETY: the mapping is ours, and `at` isn't used after the move.
        unsafe {
            at.as_ptr().write(42);
            let moved = source.remap(at, (MIB, 64 * MIB), 4096).unwrap();
            assert_eq!(moved.as_ptr().read(), 42);
            assert_eq!(source.accounts().committed, 64 * MIB);
            let moved = source.remap(moved, (64 * MIB, 4096), 4096).unwrap();
            assert_eq!(moved.as_ptr().read(), 42);
            assert!(source.unmap(moved, 4096, 4096));
        }
        let a = source.accounts();
        assert_eq!((a.mapped, a.committed), (0, 0));
    }
}
