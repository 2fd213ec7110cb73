//! Segments: 4 MiB of blocks, aligned to 4 MiB, with everything known about them kept elsewhere.
//! Owns: `Segment`. Called by: `shard`, under its lock; the lock-free readers of `base` and `shard` say so.
//!
//! G1: `free` is the number of free granules, `free_in[c]` that of chunk `c`; a chunk is in `empties` when all are free.
//! G2: `longest[c]` is at least as long as every run of free granules inside chunk `c`.
//! G3: an OS page is in `free_pages` when all of its granules are free; in `dirty` when it may be resident (it was handed
//!     out since it was mapped or purged). A page that isn't dirty reads as zero.
//! G4: retained bytes of the page source are the pages in `free_pages & dirty` of all segments.
//! G5: a chunk's arrays hold garbage until it is in `ready`; until then it is all free. So a segment's metadata becomes
//!     resident chunk by chunk.
//!
//! Granules are counted from the segment's base. Blocks of cached classes lie inside one chunk when they are carved;
//! spans cross chunks, and so may a block that grew or shrank in place.

#![allow(clippy::indexing_slicing, reason = "every index is masked to the length of its array")]

use crate::chunk::{CHUNK_GRANULES, Chunk, Run, every};
use crate::class::{GRANULE, GRANULE_SHIFT};
use crate::fault::Misuse;
use crate::hardened::{Dice, Wall};
use crate::huge::HUGE_PAGE;
use crate::scan::at_least_u16;
use crate::shard::Place;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use nearheap_numa::{Os, PageSource};

/// Bytes of a segment, and its alignment.
pub(crate) const SEGMENT: usize = 4 << 20;
pub(crate) const SEGMENT_SHIFT: u32 = SEGMENT.trailing_zeros();
/// Granules of a segment.
pub(crate) const SEGMENT_GRANULES: usize = SEGMENT / GRANULE;
pub(crate) const CHUNKS: usize = SEGMENT_GRANULES / CHUNK_GRANULES;
/// Bytes of a chunk.
const CHUNK: usize = CHUNK_GRANULES * GRANULE;
/// The smallest OS page, for which the page maps are made; larger pages use a part of them.
const MIN_PAGE: usize = 4096;
const PAGE_WORDS: usize = SEGMENT / MIN_PAGE / 64;

const _: () = assert!(CHUNKS == 64, "a word has a bit for every chunk");

/// A set of the OS pages of a segment.
#[derive(Debug, Clone, Copy)]
struct Pages([u64; PAGE_WORDS]);

impl Pages {
    fn has(&self, page: usize) -> bool {
        self.0[page / 64 % PAGE_WORDS] >> (page % 64) & 1 == 1
    }

    fn add(&mut self, page: usize) {
        self.0[page / 64 % PAGE_WORDS] |= 1 << (page % 64);
    }

    fn remove(&mut self, page: usize) {
        self.0[page / 64 % PAGE_WORDS] &= !(1 << (page % 64));
    }

    #[inline(never)] // Counting ones takes much code where the CPU is not known to do it.
    fn count_and(&self, other: &Self) -> usize {
        self.0.iter().zip(&other.0).fold(0, |sum, (a, b)| sum + (a & b).count_ones() as usize)
    }

    fn and(&self, other: &Self) -> Self {
        let mut both = *self;
        both.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a &= b);
        both
    }

    /// The first run of at least one page at or after `from`: where, and how long.
    #[inline(never)]
    fn run_from(&self, from: usize) -> Option<(usize, usize)> {
        let mut w = from / 64;
        let mut word =
            if w < PAGE_WORDS { self.0[w % PAGE_WORDS] & (u64::MAX << (from % 64)) } else { 0 };
        while word == 0 {
            w += 1;
            if w >= PAGE_WORDS {
                return None;
            }
            word = self.0[w % PAGE_WORDS];
        }
        let at = w * 64 + word.trailing_zeros() as usize;
        let mut end = at + (word >> (at % 64)).trailing_ones() as usize;
        while end.is_multiple_of(64) && end < PAGE_WORDS * 64 {
            let more = self.0[end / 64 % PAGE_WORDS].trailing_ones() as usize;
            end += more;
            if more < 64 {
                break;
            }
        }
        Some((at, end - at))
    }
}

/// What a batch of takes and gives has done to the accounts; told to the page source once a batch.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Bytes of dirty pages that became wholly free.
    pub(crate) freed: usize,
    /// Bytes of dirty pages that were wholly free and are taken now.
    pub(crate) taken: usize,
    /// Bytes of pages that had been purged and are taken again, and when that was.
    pub(crate) refaulted: usize,
    pub(crate) purged_ms: u64,
    /// The hard limit refused to let another page become resident.
    pub(crate) refused: bool,
    /// The shard's, for the time of the batch.
    pub(crate) dice: Dice,
}

/// How many blocks were given, and whether pages became wholly free.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Given {
    pub(crate) n: usize,
    pub(crate) pages: bool,
}

/// What is known of 4 MiB.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Segment {
    /// Read without the lock: set before the segment is published.
    base: AtomicUsize,
    shard: AtomicU16,
    /// Where its shard lists it.
    pub(crate) place: Place,
    page_shift: u8,
    /// What is behind its end.
    pub(crate) wall: Wall,
    /// Huge pages were asked for: the first fault in a clean half makes all of that half resident.
    huge: bool,
    /// Milliseconds at which a page was last purged here.
    purged_ms: u64,
    free: usize,
    ready: u64,
    empties: u64,
    longest: [u16; CHUNKS],
    free_in: [u16; CHUNKS],
    /// Milliseconds, low 32 bits, at which a block was last given back.
    given_ms: [u32; CHUNKS],
    free_pages: Pages,
    dirty: Pages,
    purged: Pages,
    chunks: [Chunk; CHUNKS],
}

impl Segment {
    /// Describes a fresh mapping at `base`.
    pub(crate) fn open(&mut self, base: NonNull<u8>, shard: u16, page_size: usize, huge: bool) {
        self.base.store(base.as_ptr() as usize, Ordering::Relaxed);
        self.shard.store(shard, Ordering::Relaxed);
        self.page_shift = page_size.trailing_zeros() as u8;
        self.huge = huge;
        self.purged_ms = 0;
        self.free = SEGMENT_GRANULES;
        self.ready = 0;
        self.empties = u64::MAX;
        self.longest = [CHUNK_GRANULES as u16; CHUNKS];
        self.free_in = [CHUNK_GRANULES as u16; CHUNKS];
        self.given_ms = [0; CHUNKS];
        self.free_pages = Pages([0; PAGE_WORDS]);
        for page in 0..SEGMENT >> self.page_shift {
            self.free_pages.add(page);
        }
        self.dirty = Pages([0; PAGE_WORDS]);
        self.purged = Pages([0; PAGE_WORDS]);
    }

    /// Where its blocks are. Constant while the segment is published, so it needs no lock.
    #[inline]
    pub(crate) fn base(&self) -> usize {
        self.base.load(Ordering::Relaxed)
    }

    /// Whose lock protects it. Constant while the segment is published, so it needs no lock.
    #[inline]
    pub(crate) fn shard(&self) -> usize {
        usize::from(self.shard.load(Ordering::Relaxed))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.free == SEGMENT_GRANULES
    }

    /// A bound of the free runs in chunks that are in use.
    pub(crate) fn longest_in_use(&self) -> u16 {
        let mut longest = 0;
        for (c, &l) in self.longest.iter().enumerate() {
            if self.empties >> c & 1 == 0 {
                longest = longest.max(l);
            }
        }
        longest
    }

    /// A bound of the free runs in chunk `c`; 0 where it is empty.
    pub(crate) fn longest_of(&self, c: usize) -> u16 {
        let c = c % CHUNKS;
        if self.empties >> c & 1 == 1 { 0 } else { self.longest[c] }
    }

    /// Whether a chunk is all free.
    pub(crate) fn has_empties(&self) -> bool {
        self.empties != 0
    }

    /// Chunks with a run that may hold `k` granules: those in use, or the empty ones.
    #[inline]
    pub(crate) fn candidates(&self, k: usize, empty: bool) -> u64 {
        let high = at_least_u16(&self.longest, k as u16);
        if empty { high & self.empties } else { high & !self.empties }
    }

    /// Asks the CPU for what a give of this block will need. Takes no lock: it only reckons with addresses.
    #[inline]
    pub(crate) fn prefetch(this: *const Self, address: usize) {
        let g = Self::granule(address);
        // SAFETY: metadata stays readable (N2); only the place of the chunk is reckoned, nothing is read.
        let chunks = unsafe { &raw const (*this).chunks };
        Chunk::prefetch(
            chunks.cast::<Chunk>().wrapping_add(g / CHUNK_GRANULES),
            g % CHUNK_GRANULES,
        );
    }

    fn address(&self, g: usize) -> *mut u8 {
        core::ptr::with_exposed_provenance_mut(self.base() + (g << GRANULE_SHIFT))
    }

    /// The granule that an address is in.
    pub(crate) fn granule(address: usize) -> usize {
        (address & (SEGMENT - 1)) >> GRANULE_SHIFT
    }

    fn chunk(&mut self, c: usize) -> &mut Chunk {
        let c = c % CHUNKS;
        if self.ready >> c & 1 == 0 {
            self.prepare(c);
        }
        &mut self.chunks[c]
    }

    #[cold]
    #[inline(never)]
    fn prepare(&mut self, c: usize) {
        self.ready |= 1 << c;
        self.chunks[c % CHUNKS].reset();
    }

    /// Carves blocks of `k` granules at multiples of `align` granules, which divides `k`, from chunk `c` until `out` is
    /// full or nothing fits. How many.
    pub(crate) fn carve<O: Os>(
        &mut self,
        c: usize,
        (k, align): (usize, usize),
        out: &mut [*mut u8],
        source: &PageSource<O>,
        tally: &mut Tally,
    ) -> usize {
        debug_assert!(
            k % align == 0,
            "blocks that follow each other keep the alignment of the first"
        );
        let mut got = 0;
        while got < out.len() {
            let Some(run) = self.chunk(c).find(k, align) else {
                // Without an aligned place there may still be one that isn't; a longer one would hold an aligned one.
                let (bound, most) = ((k + align - 2) as u16, self.chunk(c).longest());
                let bound = if most < u8::MAX { bound.min(most.into()) } else { bound };
                self.longest[c % CHUNKS] = self.longest[c % CHUNKS].min(bound);
                break;
            };
            let run = soften(run, k, align);
            let fit = run.len.checked_div(k).unwrap_or(0).min(out.len() - got);
            let run = tally.dice.place(run, k, fit);
            let g = c * CHUNK_GRANULES + run.at;
            if !self.take_run(g, k * fit, source, tally) {
                break;
            }
            self.chunk(c).set_starts(run.at, k, fit);
            let mut at = self.address(g);
            for place in out.iter_mut().skip(got).take(fit) {
                *place = at;
                at = at.wrapping_add(k * GRANULE);
            }
            got += fit;
        }
        tally.dice.shuffle(out.get_mut(..got).unwrap_or_default());
        got
    }

    /// Carves one span of `k` granules from the first run of wholly free pages that holds it at a multiple of `align`
    /// granules; and the bytes from its beginning on that may be other than zero. `Err`: a bound in pages that every run of this segment keeps.
    pub(crate) fn carve_span<O: Os>(
        &mut self,
        (k, align): (usize, usize),
        source: &PageSource<O>,
        tally: &mut Tally,
    ) -> Result<(*mut u8, usize), usize> {
        let shift = u32::from(self.page_shift) - GRANULE_SHIFT;
        let (need, align) = (k.div_ceil(1 << shift), (align >> shift).max(1));
        let (mut from, mut longest) = (0, 0);
        while let Some((at, len)) = self.free_pages.run_from(from) {
            let first = (at + align - 1) & !(align - 1);
            if first + need <= at + len {
                let g = first << shift;
                let dirty = (first..first + need).rev().find(|&p| self.dirty.has(p));
                let dirty = dirty.map_or(0, |p| (p + 1 - first) << self.page_shift);
                if !self.take_run(g, k, source, tally) {
                    return Err(usize::MAX);
                }
                self.chunk(g / CHUNK_GRANULES).set_start(g % CHUNK_GRANULES);
                return Ok((self.address(g), dirty));
            }
            longest = longest.max(len);
            from = at + len;
        }
        Err(longest)
    }

    /// Calls `f` with each chunk that `[g, g + len)` touches, and the part in it.
    fn pieces(&mut self, g: usize, len: usize, mut f: impl FnMut(&mut Self, usize, usize, usize)) {
        let (mut at, end) = (g, g + len);
        while at < end {
            let here = (CHUNK_GRANULES - at % CHUNK_GRANULES).min(end - at);
            f(self, at / CHUNK_GRANULES, at % CHUNK_GRANULES, here);
            at += here;
        }
    }

    fn pages_of(&self, g: usize, len: usize) -> core::ops::RangeInclusive<usize> {
        let shift = u32::from(self.page_shift) - GRANULE_SHIFT;
        g >> shift..=(g + len - 1) >> shift
    }

    /// Takes a free run. `false`: the hard limit forbids its pages, and nothing has changed.
    fn take_run<O: Os>(
        &mut self,
        g: usize,
        len: usize,
        source: &PageSource<O>,
        tally: &mut Tally,
    ) -> bool {
        let pages = self.pages_of(g, len);
        let page = *pages.start();
        // Mostly it is a hole in a page that is in use.
        let in_use = page == *pages.end() && self.dirty.has(page) && !self.free_pages.has(page);
        if !in_use && !self.take_pages(pages, source, tally) {
            return false;
        }
        self.mark_taken(g, len);
        true
    }

    #[inline(never)]
    fn take_pages<O: Os>(
        &mut self,
        pages: core::ops::RangeInclusive<usize>,
        source: &PageSource<O>,
        tally: &mut Tally,
    ) -> bool {
        let page = 1_usize << self.page_shift;
        if self.huge {
            self.commit_halves(pages.clone(), source, tally);
        }
        let clean = pages.clone().filter(|&p| !self.dirty.has(p)).count();
        if clean > 0 && !source.commit(clean * page) {
            tally.refused = true;
            return false;
        }
        for p in pages {
            if self.free_pages.has(p) {
                self.free_pages.remove(p);
                if self.dirty.has(p) {
                    tally.taken += page;
                }
            }
            if self.purged.has(p) {
                self.purged.remove(p);
                tally.refaulted += page;
                tally.purged_ms = tally.purged_ms.max(self.purged_ms);
            }
            self.dirty.add(p);
        }
        true
    }

    /// Where huge pages back the segment, a fault in a half that is all clean makes the whole half resident. Says so, or
    /// leaves it to single pages where the limit forbids.
    fn commit_halves<O: Os>(
        &mut self,
        pages: core::ops::RangeInclusive<usize>,
        source: &PageSource<O>,
        tally: &mut Tally,
    ) {
        let half = HUGE_PAGE >> self.page_shift;
        for first in [pages.start() & !(half - 1), pages.end() & !(half - 1)] {
            let clean = !(first..first + half).any(|p| self.dirty.has(p));
            if clean && source.commit(HUGE_PAGE) {
                for p in first..first + half {
                    self.dirty.add(p);
                    if self.free_pages.has(p) {
                        tally.freed += 1 << self.page_shift;
                    }
                }
            }
        }
    }

    #[inline(never)]
    fn mark_taken(&mut self, g: usize, len: usize) {
        self.pieces(g, len, |this, c, at, len| {
            this.chunk(c).take(at, len);
            let left = this.free_in[c % CHUNKS] - len as u16;
            this.free_in[c % CHUNKS] = left;
            this.longest[c % CHUNKS] = this.longest[c % CHUNKS].min(left);
            this.empties &= !(1 << (c % CHUNKS));
        });
        self.free -= len;
    }

    /// Frees a taken run in which no start bit stands. Whether a page became wholly free.
    fn give_run(&mut self, g: usize, len: usize, tally: &mut Tally) -> bool {
        let mut pages = false;
        self.pieces(g, len, |this, c, at, len| {
            let chunk = this.chunk(c);
            let before = chunk.empty();
            let run = chunk.give(at, len);
            this.freed(c, len, run);
            pages |= this.free_whole_pages(c, before, tally);
        });
        pages
    }

    /// Counts `len` granules of chunk `c` that became free, in a run of known length.
    #[inline]
    fn freed(&mut self, c: usize, len: usize, run: usize) {
        let free = self.free_in[c % CHUNKS] + len as u16;
        self.free_in[c % CHUNKS] = free;
        self.free += len;
        let longest = &mut self.longest[c % CHUNKS];
        *longest = (*longest).max(run as u16);
        if usize::from(free) == CHUNK_GRANULES {
            self.empties |= 1 << (c % CHUNKS);
        }
    }

    /// Finds the pages of chunk `c` that became wholly free since the words in `before` were. Whether there are any.
    #[inline]
    fn free_whole_pages(&mut self, c: usize, before: u64, tally: &mut Tally) -> bool {
        let empty = self.chunks[c % CHUNKS].empty();
        empty != before && self.find_whole_pages(c, (before, empty), tally)
    }

    #[inline(never)]
    fn find_whole_pages(&mut self, c: usize, words: (u64, u64), tally: &mut Tally) -> bool {
        let [before, mut fresh] = [words.0, words.1].map(|words| self.whole_pages(words));
        fresh &= !before;
        let any = fresh != 0;
        while fresh != 0 {
            let w = c * (CHUNK_GRANULES / 64) + fresh.trailing_zeros() as usize;
            fresh &= fresh - 1;
            let p = (w * 64 * GRANULE) >> self.page_shift;
            self.free_pages.add(p);
            if self.dirty.has(p) {
                tally.freed += 1 << self.page_shift;
            }
        }
        any
    }

    /// The first words of the pages of a chunk all of whose words are in `words`.
    fn whole_pages(&self, mut words: u64) -> u64 {
        let (mut have, page) = (1, (1_usize << self.page_shift) / (64 * GRANULE));
        while have < page {
            words &= words >> have;
            have *= 2;
        }
        words & every(page)
    }

    /// Whether a block of exactly `k` granules begins at granule `g`.
    #[inline]
    pub(crate) fn check(&mut self, g: usize, k: usize) -> Result<(), Misuse> {
        let c = g / CHUNK_GRANULES;
        let ready = self.ready >> (c % CHUNKS) & 1 == 1;
        if ready && k <= 64 && self.chunks[c % CHUNKS].is_short_block(g % CHUNK_GRANULES, k) {
            return Ok(());
        }
        self.check_at_length(g, k)
    }

    #[inline(never)]
    fn check_at_length(&mut self, g: usize, k: usize) -> Result<(), Misuse> {
        let c = g / CHUNK_GRANULES;
        if self.ready >> (c % CHUNKS) & 1 == 0 || !self.chunk(c).is_start(g % CHUNK_GRANULES) {
            let free =
                self.ready >> (c % CHUNKS) & 1 == 0 || self.chunk(c).is_free(g % CHUNK_GRANULES, 1);
            return Err(if free { Misuse::DoubleFree } else { Misuse::NotABlock });
        }
        let end = g + k;
        if end > SEGMENT_GRANULES {
            return Err(Misuse::WrongLayout);
        }
        let mut whole = true;
        self.pieces(g, k, |this, c, at, len| {
            let skip = usize::from(c * CHUNK_GRANULES + at == g);
            let chunk = this.chunk(c);
            whole &= chunk.is_taken(at, len) && chunk.no_start(at + skip, len - skip);
        });
        let ends = end == SEGMENT_GRANULES || {
            let chunk = self.chunk(end / CHUNK_GRANULES);
            let at = end % CHUNK_GRANULES;
            chunk.is_start(at) || chunk.is_free(at, 1)
        };
        if whole && ends { Ok(()) } else { Err(Misuse::WrongLayout) }
    }

    /// The address of the first block that begins at or after granule `g`.
    pub(crate) fn next_start(&self, g: usize) -> Option<usize> {
        let mut at = g % CHUNK_GRANULES;
        for c in g / CHUNK_GRANULES..CHUNKS {
            let ready = self.ready >> c & 1 == 1;
            if let Some(found) = ready.then(|| self.chunks[c].next_start(at)).flatten() {
                return Some(self.base() + ((c * CHUNK_GRANULES + found) << GRANULE_SHIFT));
            }
            at = 0;
        }
        None
    }

    /// Where the block begins that an address is in; `None`: the granule there is free.
    pub(crate) fn start_of(&self, address: usize) -> Option<usize> {
        let mut g = Self::granule(address);
        loop {
            let (c, at) = (g / CHUNK_GRANULES % CHUNKS, g % CHUNK_GRANULES);
            if self.ready >> c & 1 == 0 || self.chunks[c].is_free(at, 1) {
                return None;
            }
            if self.chunks[c].is_start(at) {
                return Some(self.base() + (g << GRANULE_SHIFT));
            }
            g = g.checked_sub(1)?;
        }
    }

    /// Gives back blocks of `k` granules, as many of the first as lie in the same chunk. Verifies each.
    #[inline]
    pub(crate) fn give(
        &mut self,
        blocks: &[*mut u8],
        k: usize,
        now_ms: u64,
        tally: &mut Tally,
    ) -> Result<Given, Misuse> {
        let Some(&first) = blocks.first() else { return Ok(Given::default()) };
        let alone = blocks.get(1).is_none_or(|&next| (next as usize ^ first as usize) >= CHUNK);
        let g = Self::granule(first as usize);
        let c = g / CHUNK_GRANULES % CHUNKS;
        self.given_ms[c] = now_ms as u32;
        let short = k <= 64 && (first as usize).is_multiple_of(GRANULE);
        if short && self.ready >> c & 1 == 1 {
            let chunk = &mut self.chunks[c];
            let before = chunk.empty();
            let (n, run) = if alone {
                chunk.give_block(g % CHUNK_GRANULES, k).map_or((0, 0), |run| (1, run))
            } else {
                chunk.give_blocks(blocks, k)
            };
            if n > 0 {
                self.freed(c, n * k, run);
                let pages = self.free_whole_pages(c, before, tally);
                return Ok(Given { n, pages });
            }
        }
        self.give_checked(first as usize, k, tally)
    }

    #[inline(never)]
    fn give_checked(
        &mut self,
        address: usize,
        k: usize,
        tally: &mut Tally,
    ) -> Result<Given, Misuse> {
        if !address.is_multiple_of(GRANULE) {
            return Err(Misuse::NotABlock);
        }
        let g = Self::granule(address);
        self.check(g, k)?;
        self.chunk(g / CHUNK_GRANULES).clear_start(g % CHUNK_GRANULES);
        Ok(Given { n: 1, pages: self.give_run(g, k, tally) })
    }

    /// Makes the checked block at `g` one of `new` granules where it stands. `false`: what follows it is taken, or the
    /// limit forbids it.
    pub(crate) fn resize<O: Os>(
        &mut self,
        g: usize,
        (old, new): (usize, usize),
        source: &PageSource<O>,
        tally: &mut Tally,
    ) -> bool {
        if new <= old {
            if new < old {
                self.give_run(g + new, old - new, tally);
            }
            return true;
        }
        let (from, more) = (g + old, new - old);
        if from + more > SEGMENT_GRANULES {
            return false;
        }
        let mut free = true;
        self.pieces(from, more, |this, c, at, len| {
            free = free
                && usize::from(this.free_in[c % CHUNKS]) >= len
                && this.chunk(c).is_free(at, len);
        });
        free && self.take_run(from, more, source, tally)
    }

    /// Bytes of its pages that may be resident.
    pub(crate) fn dirty_bytes(&self) -> usize {
        self.dirty.count_and(&self.dirty) << self.page_shift
    }

    /// Bytes of its wholly free pages that may be resident (G4).
    pub(crate) fn retained_bytes(&self) -> usize {
        self.dirty.count_and(&self.free_pages) << self.page_shift
    }

    /// Seizes wholly free dirty pages for purging, at most `max` bytes: runs of at least `least` bytes, or any length
    /// where their chunk has been left alone for `quiet_ms`. While seized they are taken, with a start bit, so that the
    /// blocks around them still check out. The first such run at or after page `from`, as page numbers.
    pub(crate) fn seize(
        &mut self,
        from: usize,
        (least, max): (usize, usize),
        (now_ms, quiet_ms): (u64, u64),
        tally: &mut Tally,
    ) -> Option<(usize, usize)> {
        let (mut from, shift) = (from, self.page_shift);
        let loose = self.free_pages.and(&self.dirty);
        while let Some((at, len)) = loose.run_from(from) {
            from = at + len;
            let (at, len) =
                if least == HUGE_PAGE { whole_halves((at, len), shift) } else { (at, len) };
            let chunk = (at << shift) / CHUNK;
            let idle = (now_ms as u32).wrapping_sub(self.given_ms[chunk % CHUNKS]);
            if (len << shift) < least && u64::from(idle) < quiet_ms {
                continue;
            }
            let len = len.min((max >> shift).max(1));
            let (g, k) = self.granules_of((at, len));
            for p in at..at + len {
                self.free_pages.remove(p);
            }
            tally.taken += len << shift;
            self.mark_taken(g, k);
            self.chunk(g / CHUNK_GRANULES).set_start(g % CHUNK_GRANULES);
            return Some((at, len));
        }
        None
    }

    /// Gives seized pages back, purged or (where the kernel refused) as they were.
    pub(crate) fn restore(
        &mut self,
        (at, len): (usize, usize),
        purged: bool,
        now_ms: u64,
        tally: &mut Tally,
    ) {
        let (g, k) = self.granules_of((at, len));
        self.chunk(g / CHUNK_GRANULES).clear_start(g % CHUNK_GRANULES);
        if purged {
            self.purged_ms = now_ms;
            for p in at..at + len {
                self.dirty.remove(p);
                self.purged.add(p);
            }
        }
        self.give_run(g, k, tally);
    }

    /// A run of pages as granules.
    pub(crate) fn granules_of(&self, (page, pages): (usize, usize)) -> (usize, usize) {
        let shift = u32::from(self.page_shift) - GRANULE_SHIFT;
        (page << shift, pages << shift)
    }

    /// The address of a page, and bytes of a run of them.
    pub(crate) fn range_of(&self, (at, len): (usize, usize)) -> (*mut u8, usize) {
        let (g, _) = self.granules_of((at, len));
        (self.address(g), len << self.page_shift)
    }

    #[cfg(test)]
    fn is_page_free(&mut self, p: usize, page_granules: usize) -> bool {
        let g = p * page_granules;
        self.chunk(g / CHUNK_GRANULES).is_free(g % CHUNK_GRANULES, page_granules)
    }

    /// G1 to G3, and C1 to C4 of every chunk in use.
    #[cfg(test)]
    pub(crate) fn audit(&mut self) -> bool {
        let mut free = 0;
        for c in 0..CHUNKS {
            let (f, l) = if self.ready >> c & 1 == 1 {
                let Some(seen) = self.chunk(c).audit() else { return false };
                seen
            } else {
                (CHUNK_GRANULES, CHUNK_GRANULES)
            };
            let empty = self.empties >> c & 1 == 1;
            if f != usize::from(self.free_in[c])
                || l > usize::from(self.longest[c])
                || empty != (f == CHUNK_GRANULES)
            {
                return false;
            }
            free += f;
        }
        let page_granules = 1_usize << (u32::from(self.page_shift) - GRANULE_SHIFT);
        let pages = (0..SEGMENT >> self.page_shift)
            .all(|p| self.is_page_free(p, page_granules) == self.free_pages.has(p));
        pages && free == self.free
    }
}

/// The part of a run of pages that is whole halves of its segment, each of which a huge page may back.
fn whole_halves((at, len): (usize, usize), page_shift: u8) -> (usize, usize) {
    let half = HUGE_PAGE >> page_shift;
    let first = at.next_multiple_of(half);
    (first, ((at + len) / half * half).saturating_sub(first))
}

/// In a long run of free granules, begins at a multiple of the block's largest power of two, up to a cache line: blocks
/// of 32 or 64 bytes then don't straddle lines. The few granules before stay free for smaller classes.
fn soften(run: Run, k: usize, align: usize) -> Run {
    let line = (1_usize << k.trailing_zeros()).min(4);
    let skip = run.at.wrapping_neg() & (line - 1);
    if align == 1 && run.len >= skip + 2 * k.max(32) {
        Run { at: run.at + skip, len: run.len - skip }
    } else {
        run
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
