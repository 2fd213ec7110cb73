//! Size classes: which slot serves a request, and what a block of that slot is.
//! Owns: `Slot`, `Classes`. Called by: everything. Pure arithmetic but for the table, which is written once at start.
//!
//! ```text
//! slot      sizes                        a slot every           blocks start at multiples of
//! 0..65     0 to 1 KiB                   16 bytes               16
//! 65..105   over 1 KiB to 32 KiB         eighth of a doubling   16
//! 105..145  over 32 KiB to 1 MiB: spans  eighth of a doubling   4096
//! 145..189  over-aligned, to 32 KiB      quarter of a doubling  the largest power of two that divides the size
//! none      the rest: huge               OS page                OS page, or more as asked
//! ```
//!
//! K1: a block in a slot has at least the slot's size usable and at least the slot's alignment.
//! K2: the slot of a request depends on its size and alignment alone, never on the configuration, so an allocation and
//!     its free agree, and the arithmetic folds where the size is a constant.
//! K3: a table from the environment only makes blocks larger than their slot.

use core::alloc::Layout;
use core::sync::atomic::{AtomicU32, Ordering};

/// Bytes of a granule: all blocks are whole granules, and start at one.
pub(crate) const GRANULE: usize = 16;
pub(crate) const GRANULE_SHIFT: u32 = GRANULE.trailing_zeros();
/// The largest size with a slot of its own for every 16 bytes.
pub(crate) const SMALL_MAX: usize = 1 << 10;
/// The largest block that caches and magazines hold.
pub(crate) const CACHED_MAX: usize = 32 << 10;
/// The largest block that lives in a segment.
pub(crate) const SPAN_MAX: usize = 1 << 20;
/// The alignment of every span.
pub(crate) const SPAN_ALIGN: usize = 4096;

const SMALL_LOG: u32 = SMALL_MAX.trailing_zeros();
const STEPS_LOG: u32 = 3;
const ALIGNED_STEPS_LOG: u32 = 2;
const ALIGNED_MIN_LOG: u32 = 4;

/// Slots for sizes up to [`SMALL_MAX`].
pub(crate) const SMALL_SLOTS: usize = SMALL_MAX / GRANULE + 1;
const FIRST_SPAN: usize = first_of_doubling(CACHED_MAX);
const FIRST_ALIGNED: usize = first_of_doubling(SPAN_MAX);
/// All slots.
pub(crate) const SLOTS: usize = FIRST_ALIGNED
    + (((CACHED_MAX.trailing_zeros() - ALIGNED_MIN_LOG) as usize) << ALIGNED_STEPS_LOG);

const fn first_of_doubling(size: usize) -> usize {
    SMALL_SLOTS + (((size.trailing_zeros() - SMALL_LOG) as usize) << STEPS_LOG)
}

const _: () =
    assert!(SMALL_SLOTS == 65 && FIRST_SPAN == 105 && FIRST_ALIGNED == 145 && SLOTS == 189);
const _: () = assert!(SMALL_MAX >> STEPS_LOG >= GRANULE, "a step is whole granules");
const _: () = assert!(CACHED_MAX >> STEPS_LOG >= SPAN_ALIGN, "a span's step is whole pages");

/// The number of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot(u8);

/// The place of `size` among steps of `2^log` per doubling, counted from the doubling that begins at `2^min_log`.
/// The step's size is `(m + 2^log + 1) << (e - log)` with `e` and `m` as here.
const fn step_of(size: usize, min_log: u32, log: u32) -> usize {
    let below = size - 1;
    // As `ilog2`, of what is not 0.
    let e = usize::BITS - 1 - below.leading_zeros();
    let m = (below >> (e - log)) & ((1 << log) - 1);
    (((e - min_log) as usize) << log) + m
}

const fn size_of_step(step: usize, min_log: u32, log: u32) -> usize {
    let e = (step >> log) as u32 + min_log;
    let m = step & ((1 << log) - 1);
    (m + (1 << log) + 1) << (e - log)
}

impl Slot {
    /// The slot for a request, or `None` where the block will be a huge one.
    #[inline(always)]
    pub(crate) const fn of(size: usize, align: usize) -> Option<Self> {
        if size <= SMALL_MAX && align <= GRANULE {
            Some(Self::small(size))
        } else {
            Self::of_other(size, align)
        }
    }

    /// As [`of`](Self::of), for the cold paths: one copy of the arithmetic.
    #[inline(never)]
    pub(crate) fn of_layout(layout: Layout) -> Option<Self> {
        Self::of(layout.size(), layout.align())
    }

    /// The slot of a size up to [`SMALL_MAX`].
    #[inline(always)]
    pub(crate) const fn small(size: usize) -> Self {
        debug_assert!(size <= SMALL_MAX);
        Self(((size + GRANULE - 1) >> GRANULE_SHIFT) as u8)
    }

    #[inline]
    const fn of_other(size: usize, align: usize) -> Option<Self> {
        if align <= GRANULE {
            return if size <= SPAN_MAX { Some(Self::stepped(size)) } else { None };
        }
        let least = if size == 0 { 1 } else { size };
        // What overflows wraps to 0, which is then less than it was; `align` is a power of two.
        let size = least.wrapping_add(align - 1) & align.wrapping_neg();
        if size < least {
            return None;
        }
        if size <= CACHED_MAX {
            // A step is a multiple of its 2^k; a size that is a multiple of a larger `align` is a step itself (K1).
            let step = step_of(size, ALIGNED_MIN_LOG, ALIGNED_STEPS_LOG);
            Some(Self((FIRST_ALIGNED + step) as u8))
        } else if size <= SPAN_MAX && align <= SPAN_ALIGN {
            Some(Self::stepped(size))
        } else {
            None
        }
    }

    /// The slot of a size over [`SMALL_MAX`], up to [`SPAN_MAX`].
    const fn stepped(size: usize) -> Self {
        Self((SMALL_SLOTS + step_of(size, SMALL_LOG, STEPS_LOG)) as u8)
    }

    /// The slot at a place in tables of [`SLOTS`] entries.
    #[inline]
    pub(crate) fn numbered(i: usize) -> Option<Self> {
        (i < SLOTS).then_some(Self(i as u8))
    }

    /// Every slot, in order.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..SLOTS).map(|i| Self(i as u8))
    }

    /// Its place in tables of [`SLOTS`] entries.
    #[inline(always)]
    pub(crate) const fn index(self) -> usize {
        // SAFETY: the arithmetic that makes slots ends with the last one, and `all` does.
        unsafe { core::hint::assert_unchecked((self.0 as usize) < SLOTS) };
        self.0 as usize
    }

    /// Whether blocks of this slot pass through caches and magazines.
    #[inline]
    pub(crate) const fn is_cached(self) -> bool {
        self.index() < FIRST_SPAN || self.index() >= FIRST_ALIGNED
    }

    /// The largest size that this slot serves, in bytes: of a block where no table says otherwise.
    #[inline(never)]
    pub(crate) const fn size(self) -> usize {
        let i = self.index();
        if i == 0 {
            GRANULE
        } else if i < SMALL_SLOTS {
            i << GRANULE_SHIFT
        } else if i < FIRST_ALIGNED {
            size_of_step(i - SMALL_SLOTS, SMALL_LOG, STEPS_LOG)
        } else {
            let size = size_of_step(i - FIRST_ALIGNED, ALIGNED_MIN_LOG, ALIGNED_STEPS_LOG);
            // Steps under four granules are fractions of granules; nothing over-aligned asks for those.
            if size < GRANULE { GRANULE } else { size.next_multiple_of(GRANULE) }
        }
    }

    /// What every block of this slot is aligned to, in bytes.
    #[inline(never)]
    pub(crate) const fn align(self) -> usize {
        let i = self.index();
        if i < FIRST_SPAN {
            GRANULE
        } else if i < FIRST_ALIGNED {
            SPAN_ALIGN
        } else {
            1 << self.size().trailing_zeros()
        }
    }
}

/// The blocks of each slot: what is carved for it.
#[derive(Debug)]
pub(crate) struct Classes {
    /// Granules of a block where that is not as large as its slot, else 0.
    larger: [AtomicU32; SLOTS],
}

/// Granules of a block that is as large as its slot.
static BUILT_IN: [u32; SLOTS] = {
    let mut granules = [0; SLOTS];
    let mut i = 0;
    while i < SLOTS {
        #[allow(clippy::indexing_slicing, reason = "`i < SLOTS`, in a constant")]
        {
            granules[i] = (Slot(i as u8).size() / GRANULE) as u32;
        }
        i += 1;
    }
    granules
};

impl Classes {
    /// The built-in classes: a block is as large as its slot.
    pub(crate) const fn new() -> Self {
        Self { larger: [const { AtomicU32::new(0) }; SLOTS] }
    }

    /// Rounds the blocks of ordinary cached slots up with `round_up`, in granules. Before the first block is carved.
    pub(crate) fn coarsen(&self, round_up: impl Fn(u16) -> Option<u16>) {
        for (slot, larger) in Slot::all().zip(&self.larger).take(FIRST_SPAN) {
            let own = (slot.size() / GRANULE) as u16;
            if let Some(granules) = round_up(own).filter(|&g| g > own) {
                larger.store(u32::from(granules), Ordering::Relaxed);
            }
        }
    }

    /// Granules of a block.
    #[inline]
    pub(crate) fn granules(&self, slot: Slot) -> usize {
        let larger = self.larger.get(slot.index()).map_or(0, |g| g.load(Ordering::Relaxed));
        let own = BUILT_IN.get(slot.index()).copied().unwrap_or_default();
        (if larger == 0 { own } else { larger }) as usize
    }

    /// Bytes of a block.
    #[inline]
    pub(crate) fn bytes(&self, slot: Slot) -> usize {
        self.granules(slot) * GRANULE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_fits_its_slot_and_not_the_one_before() {
        for size in 0..=SPAN_MAX {
            let slot = Slot::of(size, 1).unwrap();
            assert!(slot.size() >= size, "size {size}");
            assert_eq!(slot.is_cached(), size <= CACHED_MAX, "size {size}");
            if slot.index() > 1 {
                assert!(Slot(slot.0 - 1).size() < size, "size {size} wastes a slot");
            }
            if size > SMALL_MAX {
                assert!(slot.size() - size < size / 8, "size {size} wastes an eighth");
            }
        }
        assert_eq!(Slot::of(SPAN_MAX + 1, 1), None);
        assert_eq!(Slot::of(usize::MAX, 1), None);
    }

    #[test]
    fn every_alignment_is_kept_by_every_block_of_the_slot() {
        for log in 0..=30 {
            let align = 1_usize << log;
            for size in (0..=4096).chain((4096..=SPAN_MAX + 4096).step_by(997)) {
                let Some(slot) = Slot::of(size, align) else {
                    assert!(align > GRANULE || size > SPAN_MAX, "size {size} align {align}");
                    continue;
                };
                assert!(slot.size() >= size, "size {size} align {align}");
                assert_eq!(slot.align() % align.max(GRANULE).min(slot.align()), 0);
                assert!(slot.align() >= align, "size {size} align {align}");
                assert_eq!(slot.size() % GRANULE, 0);
            }
        }
        assert_eq!(Slot::of(usize::MAX, 4096), None);
        assert_eq!(Slot::of(1, 1 << 63), None);
    }

    #[test]
    fn slot_sizes_rise_within_each_kind() {
        for pair in (0..FIRST_ALIGNED as u8 - 1).skip(1) {
            assert!(Slot(pair).size() < Slot(pair + 1).size(), "slot {pair}");
        }
        assert_eq!(Slot(FIRST_ALIGNED as u8 - 1).size(), SPAN_MAX);
        assert_eq!(Slot(SLOTS as u8 - 1).size(), CACHED_MAX);
    }

    #[test]
    fn without_a_table_a_block_is_as_large_as_its_slot() {
        let classes = Classes::new();
        for slot in Slot::all() {
            assert_eq!(classes.bytes(slot), slot.size(), "{slot:?}");
        }
    }

    #[test]
    fn a_table_only_makes_blocks_larger() {
        let classes = Classes::new();
        classes.coarsen(|g| [1, 4, 64].into_iter().find(|&l| l >= g));
        for slot in Slot::all() {
            assert!(classes.bytes(slot) >= slot.size());
        }
        assert_eq!(classes.granules(Slot::small(17)), 4);
        assert_eq!(classes.granules(Slot::small(65)), 64);
        assert_eq!(classes.bytes(Slot::of(1025, 1).unwrap()), 1152, "above the table: built in");
        assert_eq!(classes.bytes(Slot::of(64, 64).unwrap()), 64, "over-aligned: built in");
    }
}
