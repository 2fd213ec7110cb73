//! Each misuse of `give` has its name, and changes nothing.

use super::*;
use rstest::rstest;

fn slot(size: usize) -> Slot {
    Slot::of(size, 1).expect("a slot")
}

/// A heap with three blocks of `size` bytes that follow each other, and another one behind them.
fn with_three(size: usize) -> (Model, [*mut u8; 3]) {
    let mut model = Model::new(FakeOs::new());
    let mut blocks = Vec::new();
    while blocks.len() < 4 {
        if slot(size).is_cached() {
            model.take(slot(size), 4 - blocks.len(), 0);
            let taken = &mut model.by_slot[slot(size).index()];
            // With `hardened` they come in any order.
            taken.sort_unstable();
            blocks.clone_from(taken);
        } else {
            blocks.push(model.take_span(slot(size), 0));
        }
    }
    let at = |i: usize| blocks[i] as usize;
    assert!(at(0) + size == at(1) && at(1) + size == at(2) && at(2) + size == at(3), "one run");
    (model, [blocks[0], blocks[1], blocks[2]])
}

/// Gives what must not be given: the answer is this misuse of this block, and everything else is as it was.
fn refused(model: &Model, size: usize, blocks: &[*mut u8], misuse: Misuse, at: *mut u8) {
    let fault = Fault { misuse, address: at as usize, size: model.size(slot(size)) };
    assert_eq!(model.granules().give(slot(size), blocks), Err(fault));
    model.audit();
}

/// Gives a good block together with a bad one behind it: the good one is free, the bad one changes nothing.
fn refused_beside(model: &mut Model, size: usize, good: *mut u8, misuse: Misuse, bad: *mut u8) {
    model.went(slot(size), good);
    drop_from_list(model, size, &[good]);
    refused(model, size, &[good, bad], misuse, bad);
}

fn drop_from_list(model: &mut Model, size: usize, given: &[*mut u8]) {
    model.by_slot[slot(size).index()].retain(|b| !given.contains(b));
}

/// Sizes whose blocks are told apart by different means: short, longer than a word, spans.
#[rstest]
fn a_double_free(#[values(16, 48, 1024, 1152, 8192, 40 << 10, 1 << 20)] size: usize) {
    let (mut model, [a, b, c]) = with_three(size);
    // Twice in one batch, and again later.
    for given in [b, a, c] {
        refused_beside(&mut model, size, given, Misuse::DoubleFree, given);
        refused(&model, size, &[given], Misuse::DoubleFree, given);
        refused(&model, size, &[b], Misuse::DoubleFree, b);
    }
    model.finish(&mut Numbers::new(1));
}

#[rstest]
fn a_double_free_behind_a_good_block(#[values(16, 48, 1024, 1152, 8192, 40 << 10)] size: usize) {
    let (mut model, [a, b, _]) = with_three(size);
    drop_from_list(&mut model, size, &[b]);
    model.give(slot(size), &mut [b]);
    refused_beside(&mut model, size, a, Misuse::DoubleFree, b);
    model.finish(&mut Numbers::new(1));
}

#[rstest]
fn no_block_begins_there(#[values(48, 1024, 1152, 8192, 40 << 10, 1 << 20)] size: usize) {
    let (mut model, [a, b, c]) = with_three(size);
    for inside in [16, 32, size - 16] {
        let inside = b.wrapping_add(inside);
        refused(&model, size, &[inside], Misuse::NotABlock, inside);
    }
    for off in [1, 8, size - 1] {
        let off = b.wrapping_add(off);
        refused(&model, size, &[off], Misuse::NotABlock, off);
    }
    refused_beside(&mut model, size, a, Misuse::NotABlock, b.wrapping_add(8));
    // A block that was, and is now inside of a larger one.
    drop_from_list(&mut model, size, &[c]);
    model.give(slot(size), &mut [c]);
    let larger = Slot::all().find(|s| s.size() > size && s.is_cached() == slot(size).is_cached());
    let Some(larger) = larger.filter(|s| s.align() <= 16 || s.size() > CACHED_MAX) else { return };
    model.resize(slot(size), 0, larger);
    refused(&model, size, &[c], Misuse::NotABlock, c);
    model.finish(&mut Numbers::new(1));
}

#[rstest]
fn the_layout_is_another(#[values(48, 1008, 1152, 8192, 40 << 10, 512 << 10)] size: usize) {
    let (mut model, [_, b, _]) = with_three(size);
    for wrong in [16, size - 16, size + 16, size * 2, 1 << 20] {
        let wrong = slot(wrong).size();
        if wrong != size {
            refused(&model, wrong, &[b], Misuse::WrongLayout, b);
        }
    }
    // The same where what follows is free.
    let last = *model.by_slot[slot(size).index()].last().expect("four blocks");
    for wrong in [size - 16, size + 16, size * 2, 1 << 20] {
        let wrong = slot(wrong).size();
        if wrong != size {
            refused(&model, wrong, &[last], Misuse::WrongLayout, last);
        }
    }
    drop_from_list(&mut model, size, &[b]);
    model.give(slot(size), &mut [b]);
    model.finish(&mut Numbers::new(1));
}

#[test]
fn a_layout_that_reaches_beyond_the_segment() {
    let mut model = Model::new(FakeOs::new());
    let spans: Vec<_> = (0..64).map(|_| model.take_span(slot(64 << 10), 0)).collect();
    let last = spans[63];
    assert_eq!((last as usize + (64 << 10)) % SEGMENT, 0, "the end of the segment");
    refused(&model, 1 << 20, &[last], Misuse::WrongLayout, last);
    refused(&model, 48 << 10, &[last], Misuse::WrongLayout, last);
    let end = last.wrapping_add(64 << 10);
    refused_beside(&mut model, 64 << 10, last, Misuse::Foreign, end);
    model.finish(&mut Numbers::new(1));
}

#[rstest]
#[case::null(0)]
#[case::low(4096)]
#[case::beyond_48_bits(1 << 48)]
#[case::last(usize::MAX & !15)]
fn an_address_that_never_was_ours(#[case] address: usize) {
    let (model, _) = with_three(48);
    let foreign = ptr::without_provenance_mut(address);
    refused(&model, 48, &[foreign], Misuse::Foreign, foreign);
    let mut local = 0_u128;
    refused(&model, 48, &[(&raw mut local).cast()], Misuse::Foreign, (&raw mut local).cast());
    model.finish(&mut Numbers::new(1));
}

#[test]
fn a_chunk_that_nobody_has_used() {
    let (model, [a, _, _]) = with_three(48);
    let base = a as usize / SEGMENT * SEGMENT;
    for c in [1, 63] {
        let fresh = ptr::without_provenance_mut(base + c * (64 << 10) + 96);
        refused(&model, 48, &[fresh], Misuse::DoubleFree, fresh);
        refused(&model, 48 << 10, &[fresh], Misuse::DoubleFree, fresh);
    }
    model.finish(&mut Numbers::new(1));
}

#[test]
fn a_segment_that_is_gone() {
    let (mut model, blocks) = with_three(48);
    let mut all = core::mem::take(&mut model.by_slot[slot(48).index()]);
    model.give(slot(48), &mut all);
    // SAFETY: no cache of any thread is touched.
    unsafe { model.heap.purge_all(None) };
    assert_eq!(model.segments(), 0);
    refused(&model, 48, &blocks[..1], Misuse::Foreign, blocks[0]);
    refused(&model, 48, &[blocks[0], blocks[0]], Misuse::Foreign, blocks[0]);
    model.finish(&mut Numbers::new(1));
}

#[rstest]
#[case(48, 64, 48)]
#[case(40 << 10, 48 << 10, 40 << 10)]
fn resizing_what_is_no_block(#[case] size: usize, #[case] new: usize, #[case] other: usize) {
    let (mut model, [a, b, c]) = with_three(size);
    let resize = |model: &Model, block: *mut u8, from: usize| {
        let found = model.granules().resize(block, slot(from), slot(new));
        model.audit();
        found.map_err(|fault| (fault.misuse, fault.address))
    };
    assert_eq!(resize(&model, b, size), Ok(false), "taken behind it, and no misuse");
    assert_eq!(resize(&model, b, other * 2), Err((Misuse::WrongLayout, b as usize)));
    let inside = b.wrapping_add(((size / 2) & !15).min(4096));
    if slot(new).align() == 16 {
        assert_eq!(resize(&model, inside, size), Err((Misuse::NotABlock, inside as usize)));
    }
    drop_from_list(&mut model, size, &[b, c]);
    model.give(slot(size), &mut [b, c]);
    assert_eq!(resize(&model, b, size), Err((Misuse::DoubleFree, b as usize)));
    let foreign = ptr::without_provenance_mut(1 << 46);
    assert_eq!(resize(&model, foreign, size), Err((Misuse::Foreign, 1 << 46)));
    let first = model.by_slot[slot(size).index()].iter().position(|&p| p == a);
    model.resize(slot(size), first.expect("in use"), slot(new));
    model.finish(&mut Numbers::new(1));
}
