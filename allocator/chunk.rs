//! Chunks: 64 KiB described by one bit per 16-byte granule.
//! Owns: `Chunk`. Called by: `segment`, under the shard's lock. Never locks, never maps, never faults a page in.
//!
//! ```text
//! granule   0                63 64              127        4032           4095
//! words    [ free     starts   | free     starts   |  ...  | free     starts  ]   1 = free; 1 = a block begins here
//! most     [ u8                | u8                |  ...  | u8               ]   bound of the runs that begin there
//! ```
//!
//! Both bits of a granule are in one cache line, since whoever needs the one needs the other.
//!
//! C1: a granule is free exactly when its `free` bit is 1.
//! C2: `most[w]` is at least as long as every maximal run of free granules that begins in word `w`, up to 255.
//! C3: a start bit stands only on a granule that is taken; the first granule of every block has one, no other has.
//!
//! A failed search lowers `most`, a give raises it; taking from the front of a run moves its beginning, so the word
//! where the rest begins inherits a bound.

#![allow(clippy::indexing_slicing, reason = "every index is masked to the length of its array")]

use crate::scan::at_least_u8;

/// Granules of a chunk.
pub(crate) const CHUNK_GRANULES: usize = 4096;
const WORDS: usize = CHUNK_GRANULES / 64;
/// How far a give looks to each side for the run it joins: from here on the bound is 255 anyway.
const JOIN_WORDS: usize = 4;

/// A run of free granules: where it begins in the chunk, and how long it is at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) at: usize,
    pub(crate) len: usize,
}

/// 64 granules.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug)]
struct Word {
    free: u64,
    starts: u64,
}

/// The bits of 64 KiB.
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct Chunk {
    words: [Word; WORDS],
    most: [u8; WORDS],
}

/// Positions in `bits` at which at least `k` ones follow each other.
#[inline]
const fn runs_of(mut bits: u128, k: usize) -> u128 {
    let mut have = 1;
    while have < k {
        let step = if have < k - have { have } else { k - have };
        bits &= bits >> step;
        have += step;
    }
    bits
}

/// The longest run of ones that has a part in the first 64 bits, from there on, to the end of the 128.
#[inline]
const fn longest_of(bits: u128) -> usize {
    if bits as u64 == 0 {
        return 0;
    }
    // A one in `runs`: here and at the next `len - 1` places.
    let (mut runs, mut len) = (bits, 1);
    while len < 128 {
        let longer = runs & (runs >> len);
        if longer as u64 == 0 {
            break;
        }
        runs = longer;
        len *= 2;
    }
    let mut step = len / 2;
    while step > 0 {
        let longer = runs & (runs >> step);
        if longer as u64 != 0 {
            runs = longer;
            len += step;
        }
        step /= 2;
    }
    len
}

/// Ones at every position of a word that is a multiple of `align` (a power of two up to 64).
#[inline]
const fn every(align: usize) -> u64 {
    match align {
        1 => u64::MAX,
        2 => u64::MAX / 0b11,
        4 => u64::MAX / 0xf,
        8 => u64::MAX / 0xff,
        16 => u64::MAX / 0xffff,
        32 => u64::MAX / 0xffff_ffff,
        _ => 1,
    }
}

/// Ones at `[from, from + len)` of a word.
#[inline]
const fn ones(from: usize, len: usize) -> u64 {
    if len >= 64 { u64::MAX } else { ((1 << len) - 1) << from }
}

/// The words that `[at, at + len)` touches, with the mask in each.
#[inline]
fn words(at: usize, len: usize) -> impl Iterator<Item = (usize, u64)> {
    debug_assert!(at + len <= CHUNK_GRANULES);
    let (mut at, end) = (at, at + len);
    core::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let (w, from) = (at / 64, at % 64);
        let here = (64 - from).min(end - at);
        at += here;
        Some((w % WORDS, ones(from, here)))
    })
}

impl Chunk {
    /// Makes every granule free, as in a segment that was just mapped.
    pub(crate) fn reset(&mut self) {
        self.words = [Word { free: u64::MAX, starts: 0 }; WORDS];
        self.most = [0; WORDS];
        self.most[0] = u8::MAX;
    }

    /// The first free run, by address, that holds `k` granules from a multiple of `align` granules on; and from there on
    /// how long it is, as far as it had to look. Lowers the bounds of the words where it looked in vain.
    pub(crate) fn find(&mut self, k: usize, align: usize) -> Option<Run> {
        let mut words = at_least_u8(&self.most, k.min(255) as u8);
        while words != 0 {
            let w = words.trailing_zeros() as usize;
            words &= words - 1;
            let found =
                if k <= 64 { self.find_short(w, k, align) } else { self.find_long(w, k, align) };
            if found.is_some() {
                return found;
            }
        }
        None
    }

    #[inline]
    fn find_short(&mut self, w: usize, k: usize, align: usize) -> Option<Run> {
        let next = if w + 1 < WORDS { self.words[(w + 1) % WORDS].free } else { 0 };
        let pair = u128::from(self.words[w % WORDS].free) | u128::from(next) << 64;
        let runs = runs_of(pair, k) as u64;
        if runs == 0 {
            self.lower(w, longest_of(pair));
            return None;
        }
        let aligned =
            if align > 64 && !(w * 64).is_multiple_of(align) { 0 } else { runs & every(align) };
        if aligned == 0 {
            // The last run goes on in words that no run begins in and that the search therefore passes by.
            return self.find_long(w, k, align);
        }
        let p = aligned.trailing_zeros();
        Some(Run { at: w * 64 + p as usize, len: (pair >> p).trailing_ones() as usize })
    }

    /// Over 64 granules, or aligned beyond the word: only the run that reaches the end of the word can be long enough.
    fn find_long(&mut self, w: usize, k: usize, align: usize) -> Option<Run> {
        let lead = self.words[w % WORDS].free.leading_ones() as usize;
        if lead == 0 {
            self.lower(w, 63);
            return None;
        }
        let at = w * 64 + 64 - lead;
        let len = self.run_at(at);
        let first = (at + align - 1) & !(align - 1);
        if first + k <= at + len {
            return Some(Run { at: first, len: at + len - first });
        }
        if len < k {
            self.lower(w, len.max(63));
        }
        None
    }

    /// A bound of all runs, exact as far as searches have looked.
    pub(crate) fn longest(&self) -> u8 {
        self.most.iter().copied().max().unwrap_or(0)
    }

    fn lower(&mut self, w: usize, to: usize) {
        let most = &mut self.most[w % WORDS];
        *most = (*most).min(to.min(255) as u8);
    }

    fn raise(&mut self, w: usize, to: usize) {
        let most = &mut self.most[w % WORDS];
        *most = (*most).max(to.min(255) as u8);
    }

    /// How many granules from `at` on are free, to the end of the chunk.
    pub(crate) fn run_at(&self, at: usize) -> usize {
        let (mut w, from) = (at / 64, at % 64);
        let mut len = (self.words[w % WORDS].free >> from).trailing_ones() as usize;
        if len < 64 - from {
            return len;
        }
        w += 1;
        while w < WORDS {
            let more = self.words[w % WORDS].free.trailing_ones() as usize;
            len += more;
            if more < 64 {
                break;
            }
            w += 1;
        }
        len
    }

    /// Marks `[at, at + len)` taken.
    pub(crate) fn take(&mut self, at: usize, len: usize) {
        debug_assert!(self.is_free(at, len));
        for (w, mask) in words(at, len) {
            self.words[w].free &= !mask;
        }
        let end = at + len;
        if end < CHUNK_GRANULES && self.words[end / 64 % WORDS].free >> (end % 64) & 1 == 1 {
            // The rest of the run begins here now: as long as it looks in this word, or of unknown length beyond it.
            let here = (self.words[end / 64 % WORDS].free >> (end % 64)).trailing_ones() as usize;
            self.raise(end / 64, if here + end % 64 == 64 { 255 } else { here });
        }
    }

    /// Marks `[at, at + len)` free. The length of the run that it is a part of now, and whether that is exact: it looks
    /// only so far to each side.
    pub(crate) fn give(&mut self, at: usize, len: usize) -> (usize, bool) {
        debug_assert!(self.is_taken(at, len));
        for (w, mask) in words(at, len) {
            self.words[w].free |= mask;
        }
        self.join(at, len)
    }

    fn join(&mut self, at: usize, len: usize) -> (usize, bool) {
        let (before, begins) = self.free_before(at);
        let (after, ends) = self.free_after(at + len);
        let run = before + len + after;
        if begins {
            self.raise((at - before) / 64, run);
        }
        (run, begins && ends)
    }

    /// Gives back the block of exactly `k` granules, at most 64, that begins at `at`, as [`give`](Self::give) would.
    /// `None`, and nothing has changed, where there is none, or where it ends with the chunk or beyond, which only the
    /// segment can judge.
    #[inline]
    pub(crate) fn give_block(&mut self, at: usize, k: usize) -> Option<(usize, bool)> {
        let (w, from) = (at / 64 % WORDS, at % 64);
        let end = from + k;
        if end >= 64 {
            return self.give_across(at, k);
        }
        let word = &mut self.words[w];
        let mask = ones(from, k);
        let ends = (word.free | word.starts) >> end & 1 == 1;
        if word.free & mask != 0 || word.starts & mask != 1 << from || !ends {
            return None;
        }
        word.free |= mask;
        word.starts &= !mask;
        let (below, above) = (!word.free & !(u64::MAX << from), !word.free >> end);
        if below == 0 || above == 0 {
            return Some(self.join(at, k));
        }
        // Something is taken on both sides in this word.
        let run = end + above.trailing_zeros() as usize - (64 - below.leading_zeros() as usize);
        self.raise(w, run);
        Some((run, true))
    }

    /// A block that reaches the end of its first word.
    #[inline(never)]
    fn give_across(&mut self, at: usize, k: usize) -> Option<(usize, bool)> {
        let here = self.is_short_block(at, k);
        here.then(|| {
            self.clear_start(at);
            self.give(at, k)
        })
    }

    /// Asks the CPU for what a give at `at` will need.
    #[inline]
    pub(crate) fn prefetch(this: *const Self, at: usize) {
        let (word, most) = (size_of::<Word>() * (at / 64), size_of::<[Word; WORDS]>());
        crate::scan::prefetch(this.wrapping_byte_add(word));
        crate::scan::prefetch(this.wrapping_byte_add(most));
    }

    /// Free granules that end right before `at`, and whether the run begins there: it looks at a few words only, and a
    /// run that goes on beyond them is so long that its bound is 255 already (C2).
    fn free_before(&self, at: usize) -> (usize, bool) {
        let (w, from) = (at / 64, at % 64);
        let mut free = 0;
        if from > 0 {
            free = (self.words[w % WORDS].free << (64 - from)).leading_ones() as usize;
            if free < from {
                return (free, true);
            }
        }
        for back in 1..=JOIN_WORDS {
            let Some(w) = w.checked_sub(back) else { return (free, true) };
            let more = self.words[w % WORDS].free.leading_ones() as usize;
            free += more;
            if more < 64 {
                return (free, true);
            }
        }
        (free, w == JOIN_WORDS)
    }

    fn free_after(&self, at: usize) -> (usize, bool) {
        let (w, from) = (at / 64, at % 64);
        let mut free = 0;
        for ahead in 0..=JOIN_WORDS {
            if w + ahead >= WORDS {
                return (free, true);
            }
            let from = if ahead == 0 { from } else { 0 };
            let more = (self.words[(w + ahead) % WORDS].free >> from).trailing_ones() as usize;
            let more = more.min(64 - from);
            free += more;
            if more < 64 - from {
                return (free, true);
            }
        }
        (free, false)
    }

    /// Whether all of `[at, at + len)` is free.
    pub(crate) fn is_free(&self, at: usize, len: usize) -> bool {
        words(at, len).all(|(w, mask)| self.words[w].free & mask == mask)
    }

    /// Whether all of `[at, at + len)` is taken.
    pub(crate) fn is_taken(&self, at: usize, len: usize) -> bool {
        words(at, len).all(|(w, mask)| self.words[w].free & mask == 0)
    }

    /// 128 granules from `at` on: which are free, and where blocks begin; none of either beyond the chunk.
    #[inline]
    fn window(&self, at: usize) -> (u128, u128) {
        let (w, from) = (at / 64, at % 64);
        let here = self.words[w % WORDS];
        let next = self.words.get(w + 1).copied().unwrap_or(Word { free: 0, starts: 0 });
        let pair = |low, high| (u128::from(low) | u128::from(high) << 64) >> from;
        (pair(here.free, next.free), pair(here.starts, next.starts))
    }

    /// Whether a block of exactly `k` granules, at most 64, begins at `at` and ends inside the chunk. `false` also where
    /// it ends with the chunk, which only the segment can judge.
    #[inline]
    pub(crate) fn is_short_block(&self, at: usize, k: usize) -> bool {
        debug_assert!(k <= 64);
        let (free, starts) = self.window(at);
        let mask = (1_u128 << k) - 1;
        free & mask == 0 && starts & mask == 1 && (free | starts) >> k & 1 == 1
    }

    /// Whether no block begins in `[at, at + len)`.
    pub(crate) fn no_start(&self, at: usize, len: usize) -> bool {
        words(at, len).all(|(w, mask)| self.words[w].starts & mask == 0)
    }

    /// Whether a block begins at `at`.
    pub(crate) fn is_start(&self, at: usize) -> bool {
        self.words[at / 64 % WORDS].starts >> (at % 64) & 1 == 1
    }

    /// The first place from `at` on where a block begins.
    pub(crate) fn next_start(&self, at: usize) -> Option<usize> {
        let found =
            words(at, CHUNK_GRANULES - at).find(|&(w, mask)| self.words[w].starts & mask != 0);
        found.map(|(w, mask)| w * 64 + (self.words[w].starts & mask).trailing_zeros() as usize)
    }

    /// Says that a block begins at `at`, which is taken.
    pub(crate) fn set_start(&mut self, at: usize) {
        self.words[at / 64 % WORDS].starts |= 1 << (at % 64);
    }

    /// Says that no block begins at `at` any more.
    pub(crate) fn clear_start(&mut self, at: usize) {
        self.words[at / 64 % WORDS].starts &= !(1 << (at % 64));
    }

    /// C1 to C3 as far as they can be seen from the bits; and the free granules and the longest run.
    #[cfg(test)]
    pub(crate) fn audit(&self) -> Option<(usize, usize)> {
        let (mut free, mut longest, mut run) = (0, 0, 0);
        for g in (0..CHUNK_GRANULES).rev() {
            let is_free = self.words[g / 64].free >> (g % 64) & 1 == 1;
            if is_free && self.is_start(g) {
                return None;
            }
            run = if is_free { run + 1 } else { 0 };
            free += usize::from(is_free);
            longest = longest.max(run);
            let begins =
                is_free && (g == 0 || self.words[(g - 1) / 64].free >> ((g - 1) % 64) & 1 == 0);
            if begins && usize::from(self.most[g / 64]) < run.min(255) {
                return None;
            }
        }
        Some((free, longest))
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
