//! Contents that tell their block and their place in it: a table of random bytes, read from a place that the block's id
//! chooses. The table's length is a prime, so bytes that moved by a power of two are the wrong ones.
//! Called by: every test that checks what a block holds.

use super::Rng;
use std::sync::LazyLock;

const PERIOD: usize = 65_521;

static TABLE: LazyLock<Box<[u8]>> = LazyLock::new(|| {
    let mut rng = Rng::new(0);
    // Without zeros, so that no content is taken for fresh memory.
    (0..PERIOD).map(|_| (rng.next() as u8).max(1)).collect()
});

/// Makes the table now, for those who count allocations.
pub(crate) fn prepare() {
    LazyLock::force(&TABLE);
}

/// Calls `f` with the pieces of `[from, to)` of a block and the table's bytes for them.
fn pieces(id: u64, from: usize, to: usize, mut f: impl FnMut(usize, &[u8])) {
    let start = (id.wrapping_mul(7919) % PERIOD as u64) as usize;
    let mut at = from;
    while at < to {
        let place = (start + at) % PERIOD;
        let len = (PERIOD - place).min(to - at);
        f(at, &TABLE[place..place + len]);
        at += len;
    }
}

/// Writes the contents of block `id` to its bytes `[from, to)`.
///
/// # Safety
/// The block has `to` bytes.
pub(crate) unsafe fn fill(block: *mut u8, id: u64, from: usize, to: usize) {
    // SAFETY: the pieces are inside of `[from, to)`.
    pieces(id, from, to, |at, bytes| unsafe {
        block.add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
    });
}

/// Compares the first `len` bytes of a block with what `fill` wrote.
///
/// # Safety
/// The block has `len` bytes, which are initialised.
#[track_caller]
pub(crate) unsafe fn check(block: *const u8, id: u64, len: usize) {
    pieces(id, 0, len, |at, bytes| {
        // SAFETY: the pieces are inside of `[0, len)`.
        let found = unsafe { std::slice::from_raw_parts(block.add(at), bytes.len()) };
        assert!(found == bytes, "block {id} at {block:p}: other contents at {at}");
    });
}

/// Whether the first `len` bytes of a block are zero.
///
/// # Safety
/// As for [`check`].
pub(crate) unsafe fn is_zero(block: *const u8, len: usize) -> bool {
    static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
    (0..len).step_by(ZEROS.len()).all(|at| {
        let here = (len - at).min(ZEROS.len());
        // SAFETY: inside of `[0, len)`.
        unsafe { std::slice::from_raw_parts(block.add(at), here) == &ZEROS[..here] }
    })
}
