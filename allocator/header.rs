//! Block headers: what stands before and behind the bytes of a block in headers mode.
//! Owns: `BlockHeader`, `Shape`, the seal, the filling. Called by: `headed`, `quarantine`, `walk`.
//!
//! ```text
//! base                                            payload: what the program has
//! | header apart | (up to the alignment) BlockHeader | size bytes | seal: 16 bytes | what the class has left
//!
//! word 0   63 .. 56 state | 55 loose | 54 .. 48 log2 of the alignment | 47 .. 0 size
//! word 1   63 .. 48 check | 47 .. 0 next: the payload that was freed after this one; of a live one, the stack (`stacks`)
//! ```
//!
//! Where nothing is between base and payload but the header, as in most blocks, there is no header apart.
//!
//! B1: the check is of the two words and of their address, so neither what the program wrote nor a header that was copied
//!     passes for one, but for one in 65,536. It is the last of the header's bytes: one byte too low hits it.
//! B2: a block that begins at `base` has a header there, its own or one with the state `Apart`, which says by the
//!     alignment where its own is. So a block is found from its payload and from its base.
//! B3: `next` links blocks in the quarantine. Live blocks are found by their start bits, which needs no list that every
//!     operation would have to change under a lock of its own.
//! B4: no byte of the seal is under 128, so that the most likely overrun, a terminating zero, never fits.

use crate::class::GRANULE;
use core::alloc::Layout;
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};
use nearheap_numa::source::round_up;

/// Bytes behind a payload.
const SEAL: usize = 16;
/// Bytes before a payload.
const BEFORE: usize = size_of::<BlockHeader>();
/// What fills a payload that was freed.
const FILLING: u8 = 0xdb;

const SIZE_BITS: u32 = 48;
const LOW: u64 = (1 << SIZE_BITS) - 1;

/// What a block is.
///
/// | state | the block | to |
/// |---|---|---|
/// | `Live` | is the program's | `Waiting` by its free |
/// | `Waiting` | is in the quarantine, or on its way there | `Freed` when it leaves |
/// | `Freed` | is the heap's, which may use it again | `Live` by an allocation |
/// | `Apart` | has its own header further on | - |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    Live = 1,
    Waiting,
    Freed,
    Apart,
}

/// The header of a block, 16 bytes before its payload. Words, since whoever walks over the blocks reads them while others
/// write; what was read in between has no sound check.
#[repr(C, align(16))]
#[derive(Debug)]
pub(crate) struct BlockHeader {
    size: AtomicU64,
    next: AtomicU64,
}

const _: () = assert!(size_of::<BlockHeader>() == GRANULE && align_of::<BlockHeader>() == GRANULE);

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Says {
    /// Bytes of the payload, and its alignment, as the program asked for them.
    pub(crate) size: usize,
    pub(crate) align: usize,
    /// It was asked for in C, which has no layouts: any of its class gives it back.
    pub(crate) loose: bool,
    pub(crate) state: State,
    pub(crate) next: usize,
}

/// The words of what is no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Damaged(pub(crate) u64, pub(crate) u64);

impl BlockHeader {
    /// The header before a payload.
    ///
    /// # Safety
    /// The 16 bytes before the payload, a multiple of 16, are memory of the heap that stays mapped for `'a`.
    pub(crate) unsafe fn of<'a>(payload: usize) -> &'a Self {
        // SAFETY: the caller's promise; any two words are valid.
        unsafe { &*ptr::with_exposed_provenance(payload.wrapping_sub(BEFORE)) }
    }

    fn check(&self, size: u64, next: u64) -> u64 {
        let mut h = ptr::from_ref(self) as u64 ^ size.rotate_left(20) ^ next.rotate_left(44);
        for _ in 0..2 {
            h = (h ^ h >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        h & !LOW
    }

    /// Says something else from now on.
    #[inline(never)]
    pub(crate) fn say(&self, says: Says) {
        let log = u64::from(says.align.trailing_zeros()) | u64::from(says.loose) << 7;
        let shape = u64::from(says.state as u8) << 56 | log << 48;
        let (size, next) = (shape | says.size as u64 & LOW, says.next as u64 & LOW);
        self.size.store(size, Ordering::Relaxed);
        self.next.store(next | self.check(size, next), Ordering::Relaxed);
    }

    /// What it says, if it is one (B1).
    #[inline(never)]
    pub(crate) fn read(&self) -> Result<Says, Damaged> {
        let (size, last) = (self.size.load(Ordering::Relaxed), self.next.load(Ordering::Relaxed));
        let state = match size >> 56 {
            1 => State::Live,
            2 => State::Waiting,
            3 => State::Freed,
            4 => State::Apart,
            _ => return Err(Damaged(size, last)),
        };
        let (log, next) = ((size >> 48 & 0x7f) as u32, last & LOW);
        let loose = size >> 55 & 1 == 1;
        if log >= SIZE_BITS || last & !LOW != self.check(size, next) {
            return Err(Damaged(size, last));
        }
        Ok(Says { size: (size & LOW) as usize, align: 1 << log, loose, state, next: next as usize })
    }
}

/// How a block of a layout lies in the block of the heap that it is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Bytes before the payload.
    pub(crate) before: usize,
    /// The block of the heap.
    pub(crate) whole: Layout,
}

impl Shape {
    /// Of a layout; `None` where that overflows.
    #[inline(never)]
    pub(crate) fn of(size: usize, align: usize) -> Option<Self> {
        let align = align.max(GRANULE);
        let before = round_up(BEFORE, align)?;
        let bytes = before.checked_add(size)?.checked_add(SEAL)?;
        Some(Self { before, whole: Layout::from_size_align(bytes, align).ok()? })
    }

    /// Whether the header of the payload is not at the base (B2).
    pub(crate) const fn is_apart(self) -> bool {
        self.before > BEFORE
    }
}

/// The header at the base of a block: its own, or the one that says where that is.
///
/// # Safety
/// As for [`BlockHeader::of`], of the 16 bytes at the base.
pub(crate) unsafe fn at_base<'a>(base: usize) -> &'a BlockHeader {
    // SAFETY: the caller's promise.
    unsafe { BlockHeader::of(base + BEFORE) }
}

fn seal_of(payload: usize, size: usize) -> (*mut u64, u64) {
    let end = payload + size;
    let value = (end as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 0x8080_8080_8080_8080;
    (ptr::with_exposed_provenance_mut(end), value)
}

/// Seals the end of a payload (B4).
///
/// # Safety
/// The 16 bytes behind it are the block's.
pub(crate) unsafe fn seal(payload: usize, size: usize) {
    let (at, value) = seal_of(payload, size);
    // SAFETY: the caller's promise.
    unsafe { at.cast::<[u64; 2]>().write_unaligned([value; 2]) };
}

/// Whether the seal is as it was.
///
/// # Safety
/// As for [`seal`].
pub(crate) unsafe fn is_sealed(payload: usize, size: usize) -> bool {
    let (at, value) = seal_of(payload, size);
    // SAFETY: the caller's promise.
    unsafe { at.cast::<[u64; 2]>().read_unaligned() == [value; 2] }
}

/// Fills a payload that was freed.
///
/// # Safety
/// It is nobody's.
pub(crate) unsafe fn fill(payload: usize, size: usize) {
    // SAFETY: the caller's promise.
    unsafe { ptr::with_exposed_provenance_mut::<u8>(payload).write_bytes(FILLING, size) };
}

/// The first byte of a payload that isn't filled any more.
///
/// # Safety
/// It is nobody's.
pub(crate) unsafe fn first_written(payload: usize, size: usize) -> Option<usize> {
    // SAFETY: the caller's promise. Whoever writes there meanwhile is the one that is looked for.
    let bytes =
        unsafe { core::slice::from_raw_parts(ptr::with_exposed_provenance::<u8>(payload), size) };
    // Each byte is as the one before: a comparison that the C library makes, which is fast in debug builds too.
    match bytes {
        [] => None,
        [FILLING, rest @ ..] if bytes.get(..rest.len()) == Some(rest) => None,
        _ => bytes.iter().position(|&byte| byte != FILLING),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[repr(align(64))]
    struct Block([u8; 256]);

    impl Block {
        fn payload(&mut self, at: usize) -> usize {
            (&raw mut self.0[at]).expose_provenance()
        }
    }

    #[rstest]
    #[case(0, 1, State::Live, 0)]
    #[case((1 << 47) - 1, 1 << 46, State::Waiting, (1 << 47) - 16)]
    #[case(100, 8, State::Freed, 32)]
    #[case(100, 4096, State::Apart, 0)]
    fn a_header_says_what_it_was_told(
        #[case] size: usize,
        #[case] align: usize,
        #[case] state: State,
        #[case] next: usize,
    ) {
        let mut block = Block([0; 256]);
        let says = Says { size, align, loose: align == 8, state, next };
        // SAFETY: inside the block.
        let header = unsafe { BlockHeader::of(block.payload(64)) };
        assert_eq!(header.read(), Err(Damaged(0, 0)), "zeros are no header");
        header.say(says);
        assert_eq!(header.read(), Ok(says));
    }

    #[test]
    fn every_damaged_bit_is_seen_and_so_is_a_copy() {
        let mut block = Block([0; 256]);
        let says = Says { size: 96, align: 8, loose: false, state: State::Live, next: 0 };
        let payload = block.payload(64);
        // SAFETY: inside the block.
        unsafe { BlockHeader::of(payload) }.say(says);
        for bit in 0..128 {
            block.0[48 + bit / 8] ^= 1 << (bit % 8);
            // SAFETY: inside the block.
            assert!(unsafe { BlockHeader::of(payload) }.read().is_err(), "bit {bit}");
            block.0[48 + bit / 8] ^= 1 << (bit % 8);
        }
        block.0.copy_within(48..64, 112);
        // SAFETY: inside the block.
        assert!(unsafe { BlockHeader::of(block.payload(128)) }.read().is_err());
    }

    #[test]
    fn every_byte_of_the_seal_counts() {
        let mut block = Block([0; 256]);
        let payload = block.payload(64);
        for size in [0, 1, 7, 96] {
            for byte in 0..SEAL {
                for wrong in [0, b'a', 255] {
                    // SAFETY: inside the block.
                    unsafe { seal(payload, size) };
                    // SAFETY: as above.
                    assert!(unsafe { is_sealed(payload, size) });
                    let place = &mut block.0[64 + size + byte];
                    let before = core::mem::replace(place, wrong);
                    assert!(before >= 128);
                    // SAFETY: as above.
                    assert_eq!(unsafe { is_sealed(payload, size) }, before == wrong);
                }
            }
        }
    }

    #[test]
    fn the_first_byte_that_was_written_is_found() {
        let mut block = Block([0; 256]);
        let payload = block.payload(64);
        // SAFETY: inside the block.
        unsafe { fill(payload, 100) };
        assert_eq!((block.0[63], block.0[164]), (0, 0));
        // SAFETY: as above.
        assert_eq!(unsafe { first_written(payload, 100) }, None);
        block.0[64 + 99] = 0;
        block.0[64 + 7] = 1;
        core::hint::black_box(&mut block);
        // SAFETY: as above.
        assert_eq!(unsafe { first_written(payload, 100) }, Some(7));
    }

    #[rstest]
    #[case(96, 8, Some((16, 128, 16)))]
    #[case(96, 64, Some((64, 176, 64)))]
    #[case(0, 1, Some((16, 32, 16)))]
    #[case(usize::MAX / 2, 1, None)]
    #[case(usize::MAX, 1, None)]
    fn a_shape_has_room_for_all_of_it(
        #[case] size: usize,
        #[case] align: usize,
        #[case] expected: Option<(usize, usize, usize)>,
    ) {
        let shape = Shape::of(size, align);
        assert_eq!(shape.map(|s| (s.before, s.whole.size(), s.whole.align())), expected);
    }
}
