//! Extents: where blocks begin and end, for those who give one back without its size, and those who verify it. In use in
//! programs with the C interface, and with the feature `hardened`.
//! Owns: `Extents`. Called by: `granule`, for blocks that leave the granule heap or come back; `foreign`, which reads;
//! `hardened`, for blocks that go to the program or come from it.
//!
//! ```text
//! granule   0                63 |  64              127 | ...  to the end of the segment
//!           [ firsts    lasts   |  firsts    lasts     | ... ]   1 = the first (the last) granule of a block
//! ```
//!
//! Chunks have start bits already, but a reader of those needs the shard's lock: a block ends where another one begins or
//! a free granule lies, and both change while it looks. These bits are the block's own:
//!
//! W1: the first and the last granule of a block that is out have their bit from before it is anyone's to after it is
//!     nobody's any more. So whoever has a block reads both without a lock, and without an order.
//! W2: no other granule has a bit. A block of one granule has both.
//! W3: bits are set by whoever took the block, and cleared under the lock of its shard once the give is verified. A word has
//!     bits of several blocks, of threads that hold no lock; so by read-modify-write, one for all of a batch in the word.
//! W4: a table is metadata, which stays readable (M1), and belongs to its range of addresses for ever. While no segment is
//!     there it is purged, all zeros.
//!
//! With the feature `hardened`, the first granule's bit stands while the block is with the program, and not while it is in
//! a cache or a magazine: set by whoever hands it out, cleared by its free, of which there is one that finds it.
//!
//! It takes 16 bytes for every KiB of blocks, and costs a locked instruction per word and batch.

#![allow(clippy::indexing_slicing, reason = "every index is masked to the length of its array")]

use crate::class::{GRANULE, GRANULE_SHIFT};
use crate::hardened::FREES;
use crate::meta::{Meta, pages_of};
use crate::segment::{SEGMENT, SEGMENT_GRANULES, SEGMENT_SHIFT};
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use nearheap_numa::{Os, PageSource};

const LEAF_LOG: u32 = 13;
/// Segments that a leaf has tables of: 32 GiB of addresses.
pub(crate) const ENTRIES: usize = 1 << LEAF_LOG;
pub(crate) const LEAF_SHIFT: u32 = SEGMENT_SHIFT + LEAF_LOG;
const WORDS: usize = SEGMENT_GRANULES / 64;

/// 64 granules.
#[repr(C, align(16))]
#[derive(Debug)]
struct Word {
    firsts: AtomicU64,
    lasts: AtomicU64,
}

/// The blocks of a segment.
#[derive(Debug)]
pub(crate) struct Table {
    /// And one that stays zero and untouched, so that each has a next.
    words: [Word; WORDS + 1],
}

/// The tables of [`ENTRIES`] segments.
#[derive(Debug)]
pub(crate) struct Leaf {
    /// Of segments that are there.
    live: [AtomicPtr<Table>; ENTRIES],
    /// Of segments that ever were.
    owned: [AtomicPtr<Table>; ENTRIES],
}

/// From addresses to blocks.
#[derive(Debug)]
pub(crate) struct Extents {
    active: AtomicBool,
    root: [AtomicPtr<Leaf>; ENTRIES],
}

impl Table {
    fn word(&self, g: usize) -> &Word {
        &self.words[g / 64 % WORDS]
    }

    /// Granules of the block at an address, if one begins there and has at most 64.
    #[inline(always)]
    pub(crate) fn short(&self, address: usize) -> Option<usize> {
        let g = address >> GRANULE_SHIFT;
        let w = g / 64 % WORDS;
        let (word, next) = (&self.words[w], &self.words[w + 1]);
        if word.firsts.load(Ordering::Relaxed) >> (g % 64) & 1 == 0 {
            return None;
        }
        // The block's last bit is the first of the 64 from its own first granule on, which two words have.
        let (low, high) = (word.lasts.load(Ordering::Relaxed), next.lasts.load(Ordering::Relaxed));
        let lasts = low >> (g % 64) | high << 1 << (63 - g % 64);
        (lasts != 0).then(|| lasts.trailing_zeros() as usize + 1)
    }

    /// Granules of the block at an address, if one begins there.
    fn extent(&self, address: usize) -> Option<usize> {
        let g = (address >> GRANULE_SHIFT) % SEGMENT_GRANULES;
        let firsts = self.word(g).firsts.load(Ordering::Relaxed);
        if firsts >> (g % 64) & 1 == 0 {
            return None;
        }
        let mut w = g / 64;
        let mut lasts = self.word(g).lasts.load(Ordering::Relaxed) & (u64::MAX << (g % 64));
        while lasts == 0 {
            w += 1;
            lasts = self.words.get(w)?.lasts.load(Ordering::Relaxed);
        }
        Some(w * 64 + lasts.trailing_zeros() as usize + 1 - g)
    }
}

impl Leaf {
    /// The table of a place in this leaf.
    ///
    /// # Safety
    /// `place` is under [`ENTRIES`].
    #[inline(always)]
    pub(crate) unsafe fn table(&self, place: usize) -> Option<&Table> {
        // SAFETY: the caller's promise.
        let table = unsafe { self.live.get_unchecked(place) }.load(Ordering::Acquire);
        // SAFETY: null, or a table, which stays readable (W4); it was zero, i.e. valid, when it was published.
        unsafe { table.as_ref() }
    }
}

/// Bits of one word that change together (W3).
struct Change<'t> {
    word: Option<&'t Word>,
    firsts: u64,
    lasts: u64,
    set: bool,
}

impl<'t> Change<'t> {
    fn add(&mut self, word: &'t Word, firsts: u64, lasts: u64) {
        if !self.word.is_some_and(|w| ptr::eq(w, word)) {
            self.finish();
            self.word = Some(word);
        }
        self.firsts |= firsts;
        self.lasts |= lasts;
    }

    fn finish(&mut self) {
        let Some(word) = self.word.take() else { return };
        for (bits, mask) in [(&word.firsts, self.firsts), (&word.lasts, self.lasts)] {
            if mask == 0 {
                continue;
            }
            // Nobody reads these bits before the block is handed over, which orders them (W1).
            if self.set {
                bits.fetch_or(mask, Ordering::Relaxed);
            } else {
                bits.fetch_and(!mask, Ordering::Relaxed);
            }
        }
        (self.firsts, self.lasts) = (0, 0);
    }
}

impl Extents {
    pub(crate) const fn new() -> Self {
        Self {
            active: AtomicBool::new(false),
            root: [const { AtomicPtr::new(ptr::null_mut()) }; ENTRIES],
        }
    }

    /// Keeps extents from now on: before the first segment is there.
    #[cfg(any(feature = "c-interface", test))]
    pub(crate) fn activate(&self) {
        self.active.store(true, Ordering::Relaxed);
    }

    #[inline]
    fn is_active(&self) -> bool {
        FREES || self.active.load(Ordering::Relaxed)
    }

    /// The leaf of an address.
    pub(crate) fn leaf(&self, address: usize) -> Option<&Leaf> {
        let leaf = self.root.get(address >> LEAF_SHIFT)?.load(Ordering::Acquire);
        // SAFETY: null, or a leaf, which is metadata (M1) and was zero, i.e. valid, when it was published.
        unsafe { leaf.as_ref() }
    }

    fn table(&self, address: usize) -> Option<&Table> {
        // SAFETY: the remainder is under `ENTRIES`.
        unsafe { self.leaf(address)?.table((address >> SEGMENT_SHIFT) % ENTRIES) }
    }

    /// Granules of the block at an address, if one begins there.
    pub(crate) fn extent(&self, address: usize) -> Option<usize> {
        self.table(address).filter(|_| address.is_multiple_of(GRANULE))?.extent(address)
    }

    /// Makes a table for the segment at an address. `false`: there is no memory for it.
    pub(crate) fn open<O: Os>(&self, address: usize, meta: &Meta, source: &PageSource<O>) -> bool {
        if !self.is_active() {
            return true;
        }
        let Some(root) = self.root.get(address >> LEAF_SHIFT) else { return false };
        if root.load(Ordering::Acquire).is_null() {
            let Some(leaf) = meta.alloc_pages::<Leaf, O>(source) else { return false };
            // Whoever loses this race leaves a few pages of untouched metadata behind.
            let _ = root.compare_exchange(
                ptr::null_mut(),
                leaf.as_ptr(),
                Ordering::AcqRel,
                Ordering::Acquire,
            );
        }
        let Some(leaf) = self.leaf(address) else { return false };
        let place = (address >> SEGMENT_SHIFT) % ENTRIES;
        // The range of addresses is the caller's alone, so nobody else opens or closes its table.
        let mut table = leaf.owned[place].load(Ordering::Acquire);
        if table.is_null() {
            let Some(fresh) = meta.alloc_pages::<Table, O>(source) else { return false };
            table = fresh.as_ptr();
            leaf.owned[place].store(table, Ordering::Release);
        } else if !source.commit(pages_of::<Table, O>(source)) {
            return false;
        }
        leaf.live[place].store(table, Ordering::Release);
        true
    }

    /// Purges the table of a segment that holds no block and is about to go.
    pub(crate) fn close<O: Os>(&self, address: usize, source: &PageSource<O>) {
        let Some(leaf) = self.leaf(address) else { return };
        let place = (address >> SEGMENT_SHIFT) % ENTRIES;
        let table = leaf.live[place].swap(ptr::null_mut(), Ordering::AcqRel);
        let Some(at) = NonNull::new(table) else { return };
        let len = pages_of::<Table, O>(source);
        // SAFETY: a table in pages of its own, whose bits are all zero by W2, so that a refusal does no harm.
        if unsafe { !source.purge(at.cast(), len) } {
            source.uncommit(len);
        }
    }

    /// Says that the block at an address is with the program.
    #[cfg(feature = "hardened")]
    pub(crate) fn hand_out(&self, address: usize) {
        let g = address >> GRANULE_SHIFT;
        if let Some(table) = self.table(address) {
            table.word(g).firsts.fetch_or(1 << (g % 64), Ordering::Relaxed);
        }
    }

    /// Whether a block of exactly `k` granules at an address is with the program.
    #[cfg(feature = "hardened")]
    pub(crate) fn is_out(&self, address: usize, k: usize) -> bool {
        self.extent(address) == Some(k)
    }

    /// The same; and it is no more: of all who say so at once, one hears that it was.
    #[cfg(feature = "hardened")]
    pub(crate) fn take_back(&self, address: usize, k: usize) -> bool {
        let Some(table) = self.table(address).filter(|_| address.is_multiple_of(GRANULE)) else {
            return false;
        };
        let g = address >> GRANULE_SHIFT;
        let found = if k <= 64 { table.short(address) } else { table.extent(address) };
        let bit = 1 << (g % 64);
        found == Some(k) && table.word(g).firsts.fetch_and(!bit, Ordering::Relaxed) & bit != 0
    }

    /// Says that these blocks of `k` granules are out.
    #[inline]
    pub(crate) fn mark(&self, blocks: &[*mut u8], k: usize) {
        if self.is_active() {
            self.change(blocks, k, true);
        }
    }

    /// Says that they are back.
    #[inline]
    pub(crate) fn unmark(&self, blocks: &[*mut u8], k: usize) {
        if self.is_active() {
            self.change(blocks, k, false);
        }
    }

    fn change(&self, blocks: &[*mut u8], k: usize, set: bool) {
        let mut change = Change { word: None, firsts: 0, lasts: 0, set };
        for &block in blocks {
            let Some(table) = self.table(block as usize) else { continue };
            let g = (block as usize >> GRANULE_SHIFT) % SEGMENT_GRANULES;
            let last = (g + k - 1) % SEGMENT_GRANULES;
            let (at, to) = (1 << (g % 64), 1 << (last % 64));
            let at = if set && FREES { 0 } else { at };
            if g / 64 == last / 64 {
                change.add(table.word(g), at, to);
            } else {
                change.add(table.word(g), at, 0);
                change.add(table.word(last), 0, to);
            }
        }
        change.finish();
    }

    /// Moves the end of a block, which is the caller's, from `old` granules to `new`.
    pub(crate) fn resize(&self, block: *mut u8, old: usize, new: usize) {
        let Some(table) = self.table(block as usize).filter(|_| self.is_active()) else { return };
        let g = (block as usize >> GRANULE_SHIFT) % SEGMENT_GRANULES;
        for (k, set) in [(new, true), (old, false)] {
            let last = (g + k - 1) % SEGMENT_GRANULES;
            let mut change = Change { word: None, firsts: 0, lasts: 0, set };
            change.add(table.word(last), 0, 1 << (last % 64));
            change.finish();
        }
    }

    #[cfg(test)]
    fn leaves(&self) -> impl Iterator<Item = &Leaf> {
        // SAFETY: as in `leaf`.
        self.root.iter().filter_map(|leaf| unsafe { leaf.load(Ordering::Relaxed).as_ref() })
    }

    /// W1 and W2, of blocks by their addresses and sizes: these have their bits, and nothing else has one. With `hardened`
    /// none of them is with the program, but for the time of the test.
    #[cfg(test)]
    pub(crate) fn are_exact(&self, blocks: impl Iterator<Item = (usize, usize)>) -> bool {
        #[cfg(feature = "hardened")]
        {
            let blocks: std::vec::Vec<_> = blocks.collect();
            blocks.iter().for_each(|&(at, _)| self.hand_out(at));
            let exact = self.have_their_bits(blocks.iter().copied());
            exact && blocks.iter().all(|&(at, size)| self.take_back(at, size / GRANULE))
        }
        #[cfg(not(feature = "hardened"))]
        self.have_their_bits(blocks)
    }

    #[cfg(test)]
    fn have_their_bits(&self, blocks: impl Iterator<Item = (usize, usize)>) -> bool {
        let mut n = 0;
        for (at, size) in blocks {
            n += 1;
            let short = self.table(at).and_then(|table| table.short(at));
            if self.extent(at) != Some(size / GRANULE) || short.is_some_and(|k| k * GRANULE != size)
            {
                return false;
            }
        }
        let (mut firsts, mut lasts) = (0, 0);
        for table in self.leaves().flat_map(|leaf| &leaf.owned) {
            // SAFETY: as in `Leaf::table`.
            let Some(table) = (unsafe { table.load(Ordering::Relaxed).as_ref() }) else { continue };
            for word in &table.words {
                firsts += word.firsts.load(Ordering::Relaxed).count_ones();
                lasts += word.lasts.load(Ordering::Relaxed).count_ones();
            }
        }
        (firsts, lasts) == (n, n)
    }

    /// Bytes of tables that are purged (W4).
    #[cfg(test)]
    pub(crate) fn purged_bytes<O: Os>(&self, source: &PageSource<O>) -> usize {
        let count = |tables: &[AtomicPtr<Table>]| {
            tables.iter().filter(|table| !table.load(Ordering::Relaxed).is_null()).count()
        };
        let purged = self.leaves().map(|leaf| count(&leaf.owned) - count(&leaf.live));
        purged.sum::<usize>() * pages_of::<Table, O>(source)
    }
}

const _: () = assert!(size_of::<Table>() == (64 << 10) + 16 && LEAF_SHIFT + LEAF_LOG == 48);
const _: () = assert!(SEGMENT == SEGMENT_GRANULES * GRANULE);

#[cfg(test)]
mod tests {
    use super::*;
    use nearheap_numa::fake::FakeOs;
    use rstest::rstest;
    use std::boxed::Box;
    use std::vec::Vec;

    fn extents(active: bool) -> (Box<Extents>, Meta, PageSource<FakeOs>) {
        let extents = Box::new(Extents::new());
        if active {
            extents.activate();
        }
        (extents, Meta::new(), PageSource::new(FakeOs::new()))
    }

    fn address(granule: usize) -> *mut u8 {
        core::ptr::without_provenance_mut((7 << LEAF_SHIFT) + 3 * SEGMENT + granule * GRANULE)
    }

    /// Sizes and places around the ends of words, and to the end of the segment.
    #[rstest]
    fn a_block_is_found_at_its_first_granule_alone(
        #[values(0, 1, 62, 63, 64, 4095, 261_000)] g: usize,
        #[values(1, 2, 63, 64, 65, 128, 1000, 1144)] k: usize,
    ) {
        let (extents, meta, source) = extents(true);
        assert!(extents.open(address(0) as usize, &meta, &source));
        extents.mark(&[address(g)], k);
        #[cfg(feature = "hardened")]
        extents.hand_out(address(g) as usize);
        for other in g..g + k.min(200) {
            let expected = (other == g).then_some(k);
            assert_eq!(extents.extent(address(other) as usize), expected, "{other}");
        }
        assert_eq!(extents.extent(address(g) as usize + 8), None, "inside a granule");
        let table = extents.table(address(g) as usize).unwrap();
        assert_eq!(table.short(address(g) as usize), (k <= 64).then_some(k));
        extents.unmark(&[address(g)], k);
        assert!(extents.are_exact(core::iter::empty()));
    }

    #[test]
    fn blocks_of_a_batch_are_all_marked_whatever_words_they_are_in() {
        let (extents, meta, source) = extents(true);
        assert!(extents.open(address(0) as usize, &meta, &source));
        let blocks: Vec<_> = (0..200).map(|i| address(i * 7)).collect();
        let sizes = |blocks: &[*mut u8]| -> Vec<_> {
            blocks.iter().map(|&b| (b as usize, 7 * GRANULE)).collect()
        };
        extents.mark(&blocks, 7);
        assert!(extents.are_exact(sizes(&blocks).into_iter()));
        extents.unmark(&blocks[50..150], 7);
        let left = [&blocks[..50], &blocks[150..]].concat();
        assert!(extents.are_exact(sizes(&left).into_iter()));
    }

    #[rstest]
    #[case(3, 200)]
    #[case(200, 3)]
    #[case(10, 20)]
    fn a_block_that_is_resized_has_one_end(#[case] old: usize, #[case] new: usize) {
        let (extents, meta, source) = extents(true);
        assert!(extents.open(address(0) as usize, &meta, &source));
        extents.mark(&[address(40)], old);
        extents.resize(address(40), old, new);
        assert!(extents.are_exact([(address(40) as usize, new * GRANULE)].into_iter()));
    }

    #[test]
    fn a_table_is_purged_while_there_is_no_segment() {
        let (extents, meta, source) = extents(true);
        let at = address(0) as usize;
        let size = pages_of::<Table, FakeOs>(&source);
        for _ in 0..3 {
            assert!(extents.open(at, &meta, &source));
            assert_eq!(extents.purged_bytes(&source), 0);
            assert!(extents.table(at).is_some());
            extents.close(at, &source);
            assert_eq!(extents.purged_bytes(&source), size);
            assert!(extents.table(at).is_none() && extents.extent(at).is_none());
        }
        assert_eq!(source.committed() + size, meta.bytes());
    }

    #[cfg(feature = "hardened")]
    #[test]
    fn a_block_is_taken_back_once_and_only_as_what_it_is() {
        let (extents, meta, source) = extents(true);
        assert!(extents.open(address(0) as usize, &meta, &source));
        for (g, k) in [(0, 1), (60, 7), (200, 64), (300, 65), (4000, 1000)] {
            let at = address(g) as usize;
            extents.mark(&[address(g)], k);
            assert!(!extents.take_back(at, k), "it is in a cache: {k}");
            extents.hand_out(at);
            for wrong in [(at, k + 1), (at, k - 1), (at + GRANULE, k), (at + 8, k), (at - 16, k)] {
                assert!(!extents.take_back(wrong.0, wrong.1) && extents.is_out(at, k), "{wrong:?}");
            }
            assert!(
                extents.take_back(at, k) && !extents.take_back(at, k) && !extents.is_out(at, k)
            );
            extents.hand_out(at);
            assert!(extents.take_back(at, k), "it is handed out again: {k}");
            extents.unmark(&[address(g)], k);
        }
        assert!(extents.are_exact(core::iter::empty()));
    }

    #[cfg(not(feature = "hardened"))]
    #[test]
    fn nothing_is_kept_until_it_is_asked_for() {
        let (extents, meta, source) = extents(false);
        assert!(extents.open(address(0) as usize, &meta, &source));
        extents.mark(&[address(0)], 1);
        assert_eq!((extents.extent(address(0) as usize), meta.bytes()), (None, 0));
    }
}
