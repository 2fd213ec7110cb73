//! What no address space holds: null at once. The kernel isn't asked, nothing is purged for it, no account changes.

use super::*;

/// The first is the second in whole pages; the last is the largest of a layout with alignment 64.
const SIZES: [usize; 4] = [(1 << 47) - 4095, 1 << 47, 1 << 60, isize::MAX as usize - 63];
const ALIGNS: [usize; 4] = [1 << 47, 1 << 48, 1 << 55, 1 << 62];

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).expect("a layout")
}

/// A program with a block of each kind, and something free of each kind, so that a purge would find something.
fn program() -> Program {
    let mut program = Program::new(FakeOs::new());
    program.enroll();
    for size in [100, 3000, 40 << 10, 3 << 20] {
        (0..2).for_each(|_| assert!(program.alloc(0, layout(size, 8))));
        program.free(0, program.blocks.len() - 1);
    }
    assert!(program.heap.granules.source.retained() > 3 << 20);
    program
}

#[test]
fn what_no_address_space_holds_is_refused_at_once() {
    let mut program = program();
    let before = (program.heap.granules.source.accounts(), program.os().calls());
    let mut refused = 0;
    let large = SIZES.iter().flat_map(|&size| [1, 64].map(|align| (size, align)));
    let aligned = ALIGNS.iter().flat_map(|&align| [1, 5000, 2 << 20].map(|size| (size, align)));
    for (size, align) in large.chain(aligned) {
        // With a cache, and without.
        for who in [0, 1] {
            assert!(!program.alloc(who, layout(size, align)), "{size} {align}");
            refused += 1;
        }
    }
    for i in 0..program.blocks.len() {
        for size in SIZES {
            assert!(!program.realloc(0, i, size), "{:?} to {size}", program.blocks[i]);
            refused += 1;
        }
    }
    assert_eq!(program.nulls, refused);
    let after = (program.heap.granules.source.accounts(), program.os().calls());
    assert_eq!(after, before);
    program.check();
    program.finish();
}
