//! Shards: groups of segments under one lock each; the granule heap is all of them.
//! Owns: `Shard`, `Group`. Called by: `granule`, which holds the shard's lock, and `purge`.
//!
//! D1: a segment is listed in one group of its shard while it is published, and in none otherwise.
//! D2: `in_use[i]` bounds the free runs in the chunks in use of segment `i`; `spans[i]` bounds its runs of free pages.
//!     `empties` has the segments with an empty chunk. A failed search lowers the bounds, a give raises them.
//!
//! Lowest place first: chunks in use before empty ones, so that what is rarely needed becomes empty and can be purged.

#![allow(clippy::indexing_slicing, reason = "every index is a bit number of a 64-bit mask")]

use crate::chunk::CHUNK_GRANULES;
use crate::class::{GRANULE, SPAN_MAX};
use crate::hardened::Dice;
use crate::scan::at_least_u16;
use crate::segment::{SEGMENT, Segment, Tally};
use core::ptr;
use nearheap_numa::{Os, PageSource};

/// A search of chunks in use stops after so many when it has a quarter of its batch: a short batch is better than a long
/// walk through crumbs.
const PATIENCE: usize = 4;
/// A search for aligned blocks looks into so many chunks at most: what it doesn't find lowers no bound, so the next would
/// look there again.
const VAIN: usize = 64;
/// What `spans` says of a segment of which only is known that pages became free.
const UNKNOWN: u16 = (SEGMENT / 4096) as u16;

/// Where a segment is listed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    group: *mut Group,
    index: u8,
}

/// 64 segments and what is known of them.
#[derive(Debug)]
pub(crate) struct Group {
    segments: [*mut Segment; 64],
    in_use: [u16; 64],
    spans: [u16; 64],
    empties: u64,
    listed: u64,
    next: *mut Group,
}

/// Segments under one lock.
#[derive(Debug)]
pub(crate) struct Shard {
    first: Group,
    /// Takes and gives, and how many found the lock held: whether more shards are wanted.
    pub(crate) entries: u32,
    pub(crate) contended: u32,
    /// What chooses places.
    dice: Dice,
}

// SAFETY: the pointers lead to segments and groups that only the holder of the shard's lock touches (D1).
unsafe impl Send for Shard {}

impl Group {
    const fn new() -> Self {
        Self {
            segments: [ptr::null_mut(); 64],
            in_use: [0; 64],
            spans: [0; 64],
            empties: 0,
            listed: 0,
            next: ptr::null_mut(),
        }
    }
}

/// The places of the ones in a mask, lowest first.
fn ones(mut mask: u64) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        let i = mask.trailing_zeros() as usize;
        mask &= mask.wrapping_sub(1);
        (i < 64).then_some(i)
    })
}

impl Shard {
    pub(crate) const fn new() -> Self {
        Self { first: Group::new(), entries: 0, contended: 0, dice: Dice::new() }
    }

    /// Calls `f` with each group until it answers.
    fn find_group<T>(&mut self, mut f: impl FnMut(&mut Group) -> Option<T>) -> Option<T> {
        let mut group = &raw mut self.first;
        while !group.is_null() {
            // SAFETY: groups are never freed, and this shard's are touched under its lock only (D1).
            let here = unsafe { &mut *group };
            if let Some(found) = f(here) {
                return Some(found);
            }
            group = here.next;
        }
        None
    }

    /// Takes blocks of `k` granules at multiples of `align` granules. How many; fewer than asked where it is full, or
    /// where finding more would take long.
    pub(crate) fn take<O: Os>(
        &mut self,
        shape: (usize, usize),
        out: &mut [*mut u8],
        source: &PageSource<O>,
        tally: &mut Tally,
    ) -> usize {
        let mut got = 0;
        tally.dice = self.dice.seeded(source.os());
        for empty in [false, true] {
            let mut visits = 0;
            let _ = self.find_group(|group| {
                let high = at_least_u16(&group.in_use, shape.0 as u16);
                let segments = if empty { group.empties } else { high };
                for i in ones(segments) {
                    // SAFETY: a listed segment is published, and touched under this lock only (D1).
                    let segment = unsafe { &mut *group.segments[i] };
                    for c in ones(segment.candidates(shape.0, empty)) {
                        got += segment.carve(
                            c,
                            shape,
                            out.get_mut(got..).unwrap_or_default(),
                            source,
                            tally,
                        );
                        visits += 1;
                        if empty {
                            group.in_use[i] = group.in_use[i].max(segment.longest_of(c));
                            group.empties &= !(u64::from(!segment.has_empties()) << i);
                        }
                        let hungry = got < out.len().div_ceil(4) && (shape.1 == 1 || visits < VAIN);
                        let patient = empty || visits < PATIENCE || hungry;
                        if got == out.len() || tally.refused || !patient {
                            return Some(());
                        }
                    }
                    if !empty {
                        // No chunk in use has a longer run: those that might have had one were looked through.
                        group.in_use[i] = group.in_use[i].min((shape.0 + shape.1 - 2) as u16);
                    }
                }
                None
            });
            if got > 0 || tally.refused {
                break;
            }
        }
        self.dice = tally.dice;
        got
    }

    /// Takes one span of `k` granules at a multiple of `align` granules, and the bytes from its beginning on that may be
    /// other than zero.
    pub(crate) fn take_span<O: Os>(
        &mut self,
        shape: (usize, usize),
        source: &PageSource<O>,
        tally: &mut Tally,
    ) -> Option<(*mut u8, usize)> {
        debug_assert!(shape.0 * GRANULE <= SPAN_MAX);
        let pages = ((shape.0 * GRANULE - 1) >> source.page_size().trailing_zeros()) as u16 + 1;
        self.find_group(|group| {
            for i in ones(at_least_u16(&group.spans, pages)) {
                // SAFETY: a listed segment is published, and touched under this lock only (D1).
                let segment = unsafe { &mut *group.segments[i] };
                match segment.carve_span(shape, source, tally) {
                    Ok(span) => {
                        group.refresh(i);
                        return Some(Some(span));
                    }
                    Err(_) if tally.refused => return Some(None),
                    Err(longest) => group.spans[i] = longest as u16,
                }
            }
            None
        })
        .flatten()
    }

    /// Lists a fresh segment. `Err`: every place is taken; call [`add_group`](Self::add_group) first.
    pub(crate) fn list(&mut self, segment: *mut Segment) -> Result<(), ()> {
        let place = self.find_group(|group| {
            let i = group.listed.trailing_ones() as usize;
            (i < 64).then(|| {
                group.listed |= 1 << i;
                group.segments[i] = segment;
                group.spans[i] = UNKNOWN;
                group.in_use[i] = 0;
                group.empties |= 1 << i;
                Place { group, index: i as u8 }
            })
        });
        // SAFETY: the segment is the caller's, fresh and not published yet.
        place.map(|place| unsafe { (*segment).place = place }).ok_or(())
    }

    /// Adds 64 places. `group` is zeroed memory of [`size_of::<Group>()`] bytes that lives as long as the shard.
    pub(crate) fn add_group(&mut self, group: *mut Group) {
        // SAFETY: the memory is the caller's to give.
        unsafe { group.write(Group::new()) };
        let _ = self.find_group(|last| last.next.is_null().then(|| last.next = group));
    }

    /// Takes a segment off the list.
    pub(crate) fn unlist(&mut self, segment: &mut Segment) {
        let Place { group, index } = segment.place;
        // SAFETY: a listed segment's place is a group of this shard (D1), which is touched under this lock only.
        let group = unsafe { &mut *group };
        let i = usize::from(index) % 64;
        group.listed &= !(1 << i);
        group.empties &= !(1 << i);
        group.in_use[i] = 0;
        group.spans[i] = 0;
        group.segments[i] = ptr::null_mut();
    }

    /// Raises the bounds of a segment to which the granules `[g, g + len)` were given.
    #[inline]
    pub(crate) fn given(&mut self, segment: &mut Segment, g: usize, len: usize, pages_freed: bool) {
        let Place { group, index } = segment.place;
        // SAFETY: as in `unlist`.
        let group = unsafe { &mut *group };
        let i = usize::from(index) % 64;
        if pages_freed {
            group.spans[i] = UNKNOWN;
        }
        if g / CHUNK_GRANULES == (g + len - 1) / CHUNK_GRANULES {
            group.in_use[i] = group.in_use[i].max(segment.longest_of(g / CHUNK_GRANULES));
            group.empties |= u64::from(segment.has_empties()) << i;
        } else {
            group.refresh(i);
        }
    }

    /// Calls `f` with each listed segment, the last first, until it answers.
    pub(crate) fn find_segment<T>(
        &mut self,
        mut f: impl FnMut(&mut Segment) -> Option<T>,
    ) -> Option<T> {
        self.find_group(|group| {
            ones(group.listed.reverse_bits()).find_map(|i| {
                // SAFETY: a listed segment is published, and touched under this lock only (D1).
                f(unsafe { &mut *group.segments[63 - i] })
            })
        })
    }

    /// Places for segments that there are.
    pub(crate) fn positions(&mut self) -> usize {
        let mut n = 0;
        let _ = self.find_group(|_| {
            n += 64;
            None::<()>
        });
        n
    }

    /// The segment at a position, if one is listed there.
    pub(crate) fn at(&mut self, position: usize) -> Option<&mut Segment> {
        let mut first = 0;
        let found = self.find_group(|group| {
            let i = position.wrapping_sub(first);
            first += 64;
            (i < 64).then(|| {
                if group.listed >> i & 1 == 1 { group.segments[i] } else { ptr::null_mut() }
            })
        })?;
        // SAFETY: null, or listed: published, and touched under this lock only (D1).
        unsafe { found.as_mut() }
    }

    /// Segments listed.
    pub(crate) fn segments(&mut self) -> usize {
        let mut n = 0;
        let _ = self.find_group(|group| {
            n += group.listed.count_ones() as usize;
            None::<()>
        });
        n
    }
}

impl Group {
    /// Computes the bounds of segment `i` anew, after a search has lowered those of its chunks.
    #[inline(never)]
    fn refresh(&mut self, i: usize) {
        // SAFETY: a listed segment is published, and touched under the shard's lock only (D1).
        let segment = unsafe { &*self.segments[i % 64] };
        self.in_use[i % 64] = segment.longest_in_use();
        if segment.has_empties() {
            self.empties |= 1 << i;
        } else {
            self.empties &= !(1 << i);
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
