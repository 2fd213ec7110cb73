//! Random walks over everything that the granule heap does, for every page size that kernels have.

use super::*;
use crate::options::Values;
use crate::testing::steps;
use core::cell::{Cell, RefCell};
use rstest::rstest;
use std::thread_local;

/// Bytes that are out at most.
const FULL: usize = 12 << 20;

fn any_slot(numbers: &mut Numbers) -> Slot {
    let nth = match numbers.under(8) {
        0..=3 => numbers.under(65),
        4 | 5 => 65 + numbers.under(40),
        6 => 145 + numbers.under(44),
        _ => 105 + numbers.under(40),
    };
    Slot::all().nth(nth).expect("a slot")
}

/// A slot of which blocks are out, if there is one.
fn slot_in_use(model: &Model, numbers: &mut Numbers) -> Option<Slot> {
    let first = any_slot(numbers).index();
    let in_turn = Slot::all().skip(first).chain(Slot::all());
    in_turn.into_iter().find(|s| !model.by_slot[s.index()].is_empty())
}

fn give(model: &mut Model, n: usize, numbers: &mut Numbers) {
    if let Some(slot) = slot_in_use(model, numbers) {
        model.give_some(slot, n, numbers);
    }
}

fn step(model: &mut Model, filling: bool, numbers: &mut Numbers) {
    let slot = any_slot(numbers);
    let home = numbers.under(16);
    match numbers.under(if filling { 8 } else { 24 }) {
        0 => give(model, 1 + slot.index() % 8, numbers),
        1 => {
            if let Some(from) = slot_in_use(model, numbers) {
                let near = from.index().saturating_sub(8) + numbers.under(16);
                let near = Slot::all().nth(near).unwrap_or(slot);
                let i = numbers.under(model.by_slot[from.index()].len());
                model.resize(from, i, if numbers.once_in(8) { slot } else { near });
            }
        }
        2..8 if slot.is_cached() => {
            // No more than a few pages' worth at a time, so that all sizes mix.
            let most = (CACHED_MAX / model.size(slot)).clamp(1, GIVE_MAX);
            model.take(slot, 1 + numbers.under(most), home);
        }
        2..8 => {
            model.take_span(slot, home);
        }
        _ => give(model, GIVE_MAX, numbers),
    }
}

#[rstest]
#[case::pages_of_4_kib(4096, 1, usize::MAX, 11)]
#[case::pages_of_16_kib(16 << 10, 1, usize::MAX, 12)]
#[case::pages_of_64_kib(64 << 10, 2, usize::MAX, 13)]
#[case::many_shards(4096, 5, usize::MAX, 14)]
#[case::huge_pages(4096, 1, 8 << 20, 15)]
#[case::huge_pages_from_the_start(16 << 10, 2, 0, 16)]
fn every_block_is_apart_and_every_account_is_exact(
    #[case] page: usize,
    #[case] shards: usize,
    #[case] huge_pages_from: usize,
    #[case] seed: u64,
    #[values(false, true)] coarse: bool,
) {
    let mut model = Model::new(FakeOs::with_pages(page));
    let mut numbers = Numbers::new(seed);
    model.granules().spread(shards);
    model.granules().huge_pages_from.set(huge_pages_from);
    if coarse {
        let table = [2, 3, 6, 10, 24, 40, 64, 128, 1000];
        model.granules().classes.coarsen(|g| table.into_iter().find(|&larger| larger >= g));
    }
    model.heap.knobs.set(&Values { retain: 1 << 20, ..Values::DEFAULT });
    let mut filling = true;
    let (mut rounds, mut most) = (0, 0);
    for i in 0..steps(75_000) {
        step(&mut model, filling, &mut numbers);
        most = most.max(model.bytes);
        if filling && model.bytes > FULL {
            filling = false;
        } else if !filling && model.bytes < FULL / 8 {
            filling = true;
            rounds += 1;
        }
        if numbers.once_in(16) {
            model.granules().source.os().pass_ms(numbers.sized(9) as u64);
            // SAFETY: no cache of any thread is touched.
            assert_eq!(unsafe { model.heap.after_give(None) }, Ok(()));
        }
        if numbers.once_in(200) {
            // SAFETY: no cache of any thread is touched.
            unsafe { model.heap.purge_all(None) };
            assert_eq!(model.granules().source.retained(), 0, "all of it can go");
        }
        if i % 100 == 0 {
            model.audit();
        }
    }
    assert!(rounds > 0, "it was full and drained: {most}");
    model.finish(&mut numbers);
}

#[test]
fn more_segments_than_a_group_of_a_shard_lists() {
    let model = Model::new(FakeOs::new());
    let slot = Slot::of(1 << 20, 1).expect("a slot");
    let span = || model.granules().take_span(slot, Home::default()).expect("memory").0;
    let mut spans: Vec<_> = (0..4 * 140).map(|_| span()).collect();
    assert_eq!(model.segments(), 140);
    spans.sort_unstable();
    spans.dedup();
    assert_eq!(spans.len(), 4 * 140);
    // Places in the middle become free, and are the next to be listed.
    for batch in spans[100..300].chunks_mut(GIVE_MAX) {
        assert_eq!(model.granules().give(slot, batch), Ok(()));
    }
    // SAFETY: no cache of any thread is touched.
    unsafe { model.heap.purge_all(None) };
    assert_eq!(model.segments(), 90);
    spans.splice(100..300, (0..240).map(|_| span()));
    assert_eq!(model.segments(), 150);
    for batch in spans.chunks_mut(GIVE_MAX) {
        assert_eq!(model.granules().give(slot, batch), Ok(()));
    }
    model.granules().audit();
    // SAFETY: no cache of any thread is touched.
    unsafe { model.heap.purge_all(None) };
    assert_eq!((model.segments(), model.granules().taken()), (0, 0));
}

#[test]
fn a_span_that_grows_into_an_empty_chunk_leaves_the_rest_of_it_to_others() {
    let mut model = Model::new(FakeOs::new());
    let of = |kib: usize| Slot::of(kib << 10, 1).expect("a slot");
    // The lowest place first: chunk by chunk, the segment is full.
    let spans: Vec<_> = (0..64).map(|_| model.take_span(of(64), 0)).collect();
    model.by_slot[of(64).index()].retain(|&span| span != spans[1]);
    model.give(of(64), &mut [spans[1]]);
    model.resize(of(64), 0, of(72));
    model.take(of(32), 1, 0);
    assert_eq!(model.segments(), 1, "there was room");
    model.finish(&mut Numbers::new(1));
}

thread_local! {
    static SOUGHT_IN: Cell<*const Granules<FakeOs>> = const { Cell::new(ptr::null()) };
    static FOUND: RefCell<Vec<(Slot, *mut u8)>> = const { RefCell::new(Vec::new()) };
}

/// Looks for what only the pages have that are being purged, and so gets it from a fresh segment.
fn seek() {
    // SAFETY: the heap of the test that this thread runs.
    let granules = unsafe { &*SOUGHT_IN.get() };
    let mut out = [ptr::null_mut()];
    let [span, block] = [128 << 10, 20 << 10].map(|size| Slot::of(size, 1).expect("a slot"));
    assert_eq!(granules.take(block, Home::default(), &mut out), Ok(1));
    let (at, dirty) = granules.take_span(span, Home::default()).expect("memory");
    assert_eq!(dirty, 0, "it is from a fresh segment");
    FOUND.with_borrow_mut(|found| found.extend([(block, out[0]), (span, at)]));
}

/// While pages are purged, other threads look for them in vain and lower the bounds; whoever brings the pages back has to
/// raise them.
#[test]
fn what_was_sought_in_vain_while_it_was_purged_is_found_again() {
    let mut model = Model::new(FakeOs::new());
    let slot = Slot::of(64 << 10, 1).expect("a slot");
    let spans: Vec<_> = (0..64).map(|_| model.take_span(slot, 0)).collect();
    let gone = &spans[10..13];
    model.by_slot[slot.index()].retain(|span| !gone.contains(span));
    model.give(slot, &mut gone.to_vec());
    SOUGHT_IN.set(&raw const *model.granules());
    model.granules().source.os().during_purge(seek);
    // SAFETY: no cache of any thread is touched.
    unsafe { model.heap.purge_all(None) };
    let found = FOUND.take();
    assert_eq!((found.len(), model.segments()), (2, 2));
    found.into_iter().for_each(|(slot, block)| model.came(slot, block));
    model.audit();
    model.finish(&mut Numbers::new(1));
}
