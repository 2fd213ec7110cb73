//! What the tests of several files share: numbers that look random and are the same in every run.

use nearheap_numa::lock::Lock;

/// Whether nobody can enter a lock: no test's other thread ever is inside.
pub(crate) fn is_held<T>(lock: &Lock<T>) -> bool {
    lock.try_lock().is_none()
}

/// A sequence of numbers; the seed is its name.
#[derive(Debug)]
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number under `end`.
    pub(crate) fn under(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((u128::from(self.0) * end as u128) >> 64) as usize
    }

    /// A number from 1 to `2^log`, each doubling as likely as the next.
    pub(crate) fn sized(&mut self, log: usize) -> usize {
        let top = 1 << self.under(log + 1);
        1 + self.under(top)
    }

    /// True once in `n` times.
    pub(crate) fn once_in(&mut self, n: usize) -> bool {
        self.under(n) == 0
    }
}

/// Steps of a random walk: a thirtieth where the code isn't optimised.
pub(crate) const fn steps(n: usize) -> usize {
    if cfg!(debug_assertions) { n / 30 } else { n }
}

/// Where a block carries its marks: both ends, and places between them.
fn marked(len: usize) -> impl Iterator<Item = usize> {
    let step = (len / 64).max(4096);
    (0..len.min(16)).chain(len.saturating_sub(16)..len).chain((0..len).step_by(step))
}

fn mark_at(stamp: usize, i: usize) -> u8 {
    ((stamp ^ i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

/// Writes marks into a block of the caller's, of `len` bytes.
pub(crate) fn mark(block: *mut u8, len: usize, stamp: usize) {
    for i in marked(len) {
        // SAFETY: inside the block.
        unsafe { block.add(i).write(mark_at(stamp, i)) };
    }
}

/// Looks for the marks of a block of `len` bytes in its first `kept` bytes.
pub(crate) fn check_marks(block: *mut u8, len: usize, stamp: usize, kept: usize) {
    for i in marked(len).filter(|&i| i < kept) {
        // SAFETY: inside the block.
        let found = unsafe { block.add(i).read() };
        assert_eq!(found, mark_at(stamp, i), "byte {i} of {len} at {block:?}");
    }
}

/// Whether all of a block of the caller's is zero.
pub(crate) fn is_zero(block: *const u8, len: usize) -> bool {
    // SAFETY: inside the block, which nobody writes to meanwhile.
    let bytes = unsafe { core::slice::from_raw_parts(block, len) };
    bytes.chunks(4096).all(|part| part == &[0; 4096][..part.len()])
}

/// What the segments of a heap hold, counted from their maps.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) segments: usize,
    /// Bytes of pages that may be resident, and of those among them that are free.
    pub(crate) dirty: usize,
    pub(crate) retained: usize,
    /// Bytes of metadata that may be resident.
    pub(crate) metadata: usize,
}
