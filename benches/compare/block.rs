//! What the workloads are made of: blocks that show whether they were kept whole, and random numbers.
//! Owns: `Block`, `Random`. Called by: every workload.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::hint::black_box;
use std::ptr::NonNull;

/// Bytes between two writes to a block: every cache line of it is touched.
const LINE: usize = 64;
/// The smallest block; its stamp takes all of it.
pub(crate) const SMALLEST: usize = size_of::<u64>();

/// A block straight from the allocator, written to in every cache line.
pub(crate) struct Block {
    pointer: NonNull<u8>,
    size: u32,
    align: u32,
}

// SAFETY: a block is plain memory that has one owner.
unsafe impl Send for Block {}

impl Block {
    /// A block of `size` bytes, at least [`SMALLEST`], which remembers `stamp`.
    pub(crate) fn new(size: usize, stamp: u64) -> Self {
        Self::aligned(size, align_of::<u64>(), stamp)
    }

    /// The same, aligned to `align`.
    pub(crate) fn aligned(size: usize, align: usize, stamp: u64) -> Self {
        assert!(size >= SMALLEST);
        let layout = Layout::from_size_align(size, align).expect("a size and an alignment");
        // SAFETY: the layout isn't of zero bytes.
        let pointer = black_box(unsafe { alloc(layout) });
        let Some(pointer) = NonNull::new(pointer) else { handle_alloc_error(layout) };
        for offset in (LINE..size).step_by(LINE) {
            // SAFETY: `offset` is inside of the block.
            unsafe { pointer.add(offset).write(stamp as u8) };
        }
        // SAFETY: the block has room for it, and it need not be aligned.
        unsafe { pointer.cast::<u64>().write_unaligned(stamp) };
        let size = u32::try_from(size).expect("a size under 4 GiB");
        Self { pointer, size, align: u32::try_from(align).expect("an alignment under 4 GiB") }
    }

    /// The size that was asked for.
    pub(crate) fn size(&self) -> usize {
        self.size as usize
    }

    /// The stamp, after a look whether the end of the block still agrees with it.
    pub(crate) fn stamp(&self) -> u64 {
        // SAFETY: it was written when the block was made.
        let stamp = unsafe { self.pointer.cast::<u64>().read_unaligned() };
        let last = (self.size() - 1) / LINE * LINE;
        if last > 0 {
            // SAFETY: the byte is inside of the block, and was written when the block was made.
            assert_eq!(unsafe { self.pointer.add(last).read() }, stamp as u8, "damaged block");
        }
        stamp
    }

    /// Frees the block; the stamp it had.
    pub(crate) fn free(self) -> u64 {
        self.stamp()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: `aligned` made a layout of both numbers.
        let layout =
            unsafe { Layout::from_size_align_unchecked(self.size as usize, self.align as usize) };
        // SAFETY: the block was allocated with this layout, and it ends here.
        unsafe { dealloc(black_box(self.pointer.as_ptr()), layout) };
    }
}

/// Frees the blocks in their order; the sum of their stamps.
pub(crate) fn free_all(blocks: impl IntoIterator<Item = Block>) -> u64 {
    blocks.into_iter().fold(0, |sum, block| sum.wrapping_add(block.free()))
}

/// Random numbers, the same in every run (splitmix64).
pub(crate) struct Random(u64);

impl Random {
    /// The sequence of this seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is under 2^32.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (((self.next() >> 32) * end as u64) >> 32) as usize
    }

    /// A number from `first` to `last`.
    pub(crate) fn between(&mut self, first: usize, last: usize) -> usize {
        first + self.below(last - first + 1)
    }

    /// A size of at least `1 << first` and below `1 << end`: every doubling is as likely as the others.
    pub(crate) fn doubling(&mut self, first: u32, end: u32) -> usize {
        let base = 1_usize << (first + self.below((end - first) as usize) as u32);
        base + self.below(base)
    }

    /// Brings `items` into a random order.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for index in (1..items.len()).rev() {
            let other = self.below(index + 1);
            items.swap(index, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(8, 8)]
    #[case(64, 8)]
    #[case(65, 64)]
    #[case(100_000, 4096)]
    fn a_block_remembers_its_stamp(#[case] size: usize, #[case] align: usize) {
        let block = Block::aligned(size, align, 0x1234_5678_9ABC_DEF0);
        assert_eq!(block.pointer.as_ptr() as usize % align, 0);
        assert_eq!((block.size(), block.free()), (size, 0x1234_5678_9ABC_DEF0));
    }

    #[test]
    fn random_numbers_stay_in_their_range() {
        let mut random = Random::new(1);
        for _ in 0..10_000 {
            assert!((16..=256).contains(&random.between(16, 256)));
            assert!((1 << 4..1 << 13).contains(&random.doubling(4, 13)));
        }
        let mut items: Vec<u32> = (0..100).collect();
        random.shuffle(&mut items);
        assert_ne!(items[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        items.sort_unstable();
        assert!(items.into_iter().eq(0..100));
    }
}
