//! Chunks: 64 KiB described by one bit per 16-byte granule.
//! Owns: `Chunk`. Called by: `segment`, under the shard's lock. Never locks, never maps, never faults a page in.
//!
//! ```text
//! granule   0                63 64              127        4032           4095
//! words    [ free     starts   | free     starts   |  ...  | free     starts  ]   1 = free; 1 = a block begins here
//! most     [ u8                | u8                |  ...  | u8               ]   bound of the runs that begin there
//! empty    [ bit               | bit               |  ...  | bit              ]   1 = all of the word is free
//! ```
//!
//! Both bits of a granule are in one cache line, since whoever needs the one needs the other.
//!
//! C1: a granule is free exactly when its `free` bit is 1.
//! C2: `most[w]` is at least as long as every maximal run of free granules that begins in word `w`, up to 255.
//! C3: a word is in `empty` exactly when all of its granules are free.
//! C4: a start bit stands only on a granule that is taken; the first granule of every block has one, no other has.
//!
//! A failed search lowers `most`, a give raises it; taking from the front of a run moves its beginning, so the word
//! where the rest begins inherits a bound.

#![allow(clippy::indexing_slicing, reason = "every index is masked to the length of its array")]

use crate::class::{GRANULE, GRANULE_SHIFT};
use crate::scan::at_least_u8;

/// Granules of a chunk.
pub(crate) const CHUNK_GRANULES: usize = 4096;
const WORDS: usize = CHUNK_GRANULES / 64;

/// A run of free granules: where it begins in the chunk, and how long it is from there on.
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
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Chunk {
    words: [Word; WORDS],
    most: [u8; WORDS],
    empty: u64,
}

/// Positions in `bits` at which at least `k` ones (up to 64) follow each other.
#[inline]
const fn runs_of(mut bits: u64, k: usize) -> u64 {
    let mut have = 1;
    while have < k {
        let step = if have < k - have { have } else { k - have };
        bits &= bits >> step;
        have += step;
    }
    bits
}

/// The longest run of ones.
#[inline]
const fn longest_of(bits: u64) -> usize {
    if bits == 0 || bits == u64::MAX {
        return bits.count_ones() as usize;
    }
    // A one in `runs`: here and at the next `len - 1` places.
    let (mut runs, mut len) = (bits, 1);
    loop {
        let longer = runs & (runs >> len);
        if longer == 0 {
            break;
        }
        runs = longer;
        len *= 2;
    }
    let mut step = len / 2;
    while step > 0 {
        let longer = runs & (runs >> step);
        if longer != 0 {
            runs = longer;
            len += step;
        }
        step /= 2;
    }
    len
}

/// Ones at every position of a word that is a multiple of `align` (a power of two up to 64).
#[inline]
pub(crate) const fn every(align: usize) -> u64 {
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
        self.empty = u64::MAX;
    }

    /// The first free run, by address, that holds `k` granules from a multiple of `align` granules on. Lowers the bounds of
    /// the words where it looked in vain.
    pub(crate) fn find(&mut self, k: usize, align: usize) -> Option<Run> {
        let mut words = at_least_u8(&self.most, k.min(255) as u8);
        while words != 0 {
            let w = words.trailing_zeros() as usize;
            words &= words - 1;
            let found = self.find_in(w, k, align);
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// The same among the runs that begin in word `w`, or go on from there in words that no run begins in.
    #[inline]
    fn find_in(&mut self, w: usize, k: usize, align: usize) -> Option<Run> {
        let free = self.words[w % WORDS].free;
        if k <= 64 && (align <= 64 || (w * 64).is_multiple_of(align)) {
            let runs = runs_of(free, k) & every(align);
            if runs != 0 {
                let at = w * 64 + runs.trailing_zeros() as usize;
                return Some(Run { at, len: self.run_at(at) });
            }
        }
        // Only the run that reaches the end of the word can be longer than what is seen of it there.
        let mut longest = longest_of(free);
        let lead = free.leading_ones() as usize;
        if lead > 0 {
            let at = w * 64 + 64 - lead;
            let len = self.run_at(at);
            let first = (at + align - 1) & !(align - 1);
            if first + k <= at + len {
                return Some(Run { at: first, len: at + len - first });
            }
            longest = longest.max(len);
        }
        self.lower(w, longest);
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
    #[inline]
    pub(crate) fn run_at(&self, at: usize) -> usize {
        let (w, from) = (at / 64, at % 64);
        let len = (self.words[w % WORDS].free >> from).trailing_ones() as usize;
        if len < 64 - from { len } else { len + self.run_from(w + 1) }
    }

    /// How many granules from the beginning of a word on are free.
    #[inline(never)]
    fn run_from(&self, w: usize) -> usize {
        if w >= WORDS {
            return 0;
        }
        let taken = !self.empty >> w;
        if taken == 0 {
            return (WORDS - w) * 64;
        }
        let whole = taken.trailing_zeros() as usize;
        whole * 64 + self.words[(w + whole) % WORDS].free.trailing_ones() as usize
    }

    /// How many granules right before the beginning of a word are free.
    #[inline(never)]
    fn run_to(&self, w: usize) -> usize {
        if w == 0 {
            return 0;
        }
        let taken = !self.empty << (WORDS - w);
        if taken == 0 {
            return w * 64;
        }
        let whole = taken.leading_zeros() as usize;
        whole * 64 + self.words[(w - 1 - whole) % WORDS].free.leading_ones() as usize
    }

    /// Marks `[at, at + len)` taken.
    pub(crate) fn take(&mut self, at: usize, len: usize) {
        debug_assert!(self.is_free(at, len));
        for (w, mask) in words(at, len) {
            self.words[w].free &= !mask;
            self.empty &= !(1 << w);
        }
        let end = at + len;
        if end < CHUNK_GRANULES && self.words[end / 64 % WORDS].free >> (end % 64) & 1 == 1 {
            // The rest of the run begins here now: as long as it looks in this word, or of unknown length beyond it.
            let here = (self.words[end / 64 % WORDS].free >> (end % 64)).trailing_ones() as usize;
            self.raise(end / 64, if here + end % 64 == 64 { 255 } else { here });
        }
    }

    /// Marks `[at, at + len)` free. The length of the run that it is a part of now.
    pub(crate) fn give(&mut self, at: usize, len: usize) -> usize {
        self.free(at, len);
        self.join(at, len)
    }

    #[inline(never)]
    fn free(&mut self, at: usize, len: usize) {
        debug_assert!(self.is_taken(at, len));
        for (w, mask) in words(at, len) {
            self.words[w].free |= mask;
            self.empty |= u64::from(self.words[w].free == u64::MAX) << w;
        }
    }

    /// The length of the free run around `[at, at + len)`, which becomes a bound where it begins.
    #[inline]
    fn join(&mut self, at: usize, len: usize) -> usize {
        let (w, from, end) = (at / 64 % WORDS, at % 64, at % 64 + len);
        if end < 64 {
            let taken = !self.words[w].free;
            let (below, above) = (taken & ones(0, from), taken >> end);
            if below != 0 && above != 0 {
                // Something is taken on both sides in this word.
                let run =
                    end + above.trailing_zeros() as usize - (64 - below.leading_zeros() as usize);
                self.raise(w, run);
                return run;
            }
        }
        self.join_far(at, len)
    }

    #[inline(never)]
    fn join_far(&mut self, at: usize, len: usize) -> usize {
        let (w, from) = (at / 64, at % 64);
        // Of 64, those above `from` are no part of it.
        let below = !self.words[w % WORDS].free & ones(0, from);
        let mut before = below.leading_zeros() as usize - (64 - from);
        if before == from {
            before += self.run_to(w);
        }
        let after = if at + len < CHUNK_GRANULES { self.run_at(at + len) } else { 0 };
        let run = before + len + after;
        self.raise((at - before) / 64, run);
        run
    }

    /// Gives back the block of exactly `k` granules, at most 64, at `at`: as [`give_blocks`](Self::give_blocks), for one.
    #[inline]
    pub(crate) fn give_block(&mut self, at: usize, k: usize) -> Option<usize> {
        self.give_one(at, k).then(|| self.join(at, k))
    }

    /// Gives back the blocks of exactly `k` granules, at most 64, at addresses in this chunk, up to the first that is
    /// elsewhere, is none, or ends with the chunk or beyond, which only the segment can judge. How many, and the longest run
    /// that they are in now.
    #[inline(never)]
    pub(crate) fn give_blocks(&mut self, blocks: &[*mut u8], k: usize) -> (usize, usize) {
        let granule = |block: *mut u8| block as usize >> GRANULE_SHIFT;
        let first = blocks.first().map_or(0, |&block| granule(block));
        // What is free now and not joined with its neighbours yet: mostly a program frees one block after the other.
        let (mut at, mut end) = (first % CHUNK_GRANULES, first % CHUNK_GRANULES);
        let (mut n, mut longest) = (0, 0);
        for &block in blocks {
            let g = granule(block) % CHUNK_GRANULES;
            let here = (granule(block) ^ first) < CHUNK_GRANULES;
            if !here || !(block as usize).is_multiple_of(GRANULE) || !self.give_one(g, k) {
                break;
            }
            if g == end {
                end += k;
            } else if g + k == at {
                at = g;
            } else {
                longest = longest.max(self.join(at, end - at));
                (at, end) = (g, g + k);
            }
            n += 1;
        }
        if n > 0 {
            longest = longest.max(self.join(at, end - at));
        }
        (n, longest)
    }

    /// Marks a block free; `false`, and nothing has changed, where there is none.
    #[inline]
    fn give_one(&mut self, at: usize, k: usize) -> bool {
        let (w, from) = (at / 64 % WORDS, at % 64);
        let end = from + k;
        if end >= 64 {
            return self.give_across(at, k);
        }
        let (word, mask) = (&mut self.words[w], ((1 << k) - 1) << from);
        let ends = (word.free | word.starts) >> end & 1 == 1;
        if word.free & mask != 0 || word.starts & mask != 1 << from || !ends {
            return false;
        }
        word.free |= mask;
        word.starts &= !mask;
        self.empty |= u64::from(word.free == u64::MAX) << w;
        true
    }

    /// A block that reaches the end of its first word.
    #[inline(never)]
    fn give_across(&mut self, at: usize, k: usize) -> bool {
        let here = self.is_short_block(at, k);
        if here {
            self.clear_start(at);
            self.free(at, k);
        }
        here
    }

    /// Asks the CPU for what a give at `at` will need.
    #[inline]
    pub(crate) fn prefetch(this: *const Self, at: usize) {
        let (word, most) = (size_of::<Word>() * (at / 64), size_of::<[Word; WORDS]>());
        crate::scan::prefetch(this.wrapping_byte_add(word));
        crate::scan::prefetch(this.wrapping_byte_add(most));
    }

    /// Whether all of `[at, at + len)` is free.
    #[inline(never)]
    pub(crate) fn is_free(&self, at: usize, len: usize) -> bool {
        words(at, len).all(|(w, mask)| self.words[w].free & mask == mask)
    }

    /// Words of which all granules are free, by bits.
    #[inline]
    pub(crate) fn empty(&self) -> u64 {
        self.empty
    }

    /// Whether all of `[at, at + len)` is taken.
    #[inline(never)]
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
    #[inline(never)]
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

    /// Says that `n` blocks of `k` granules begin at `at`, one behind the other, which is taken.
    #[inline]
    pub(crate) fn set_starts(&mut self, at: usize, k: usize, n: usize) {
        for g in (at..).step_by(k).take(n) {
            self.set_start(g);
        }
    }

    /// Says that a block begins at `at`, which is taken.
    #[inline]
    pub(crate) fn set_start(&mut self, at: usize) {
        self.words[at / 64 % WORDS].starts |= 1 << (at % 64);
    }

    /// Says that no block begins at `at` any more.
    pub(crate) fn clear_start(&mut self, at: usize) {
        self.words[at / 64 % WORDS].starts &= !(1 << (at % 64));
    }

    /// C1 to C4 as far as they can be seen from the bits; and the free granules and the longest run.
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
            if (self.empty >> (g / 64) & 1 == 1) != (self.words[g / 64].free == u64::MAX) {
                return None;
            }
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
