//! A magazine keeps what it was given, and hands back what it has no room for.

use super::*;
use crate::testing::is_held;
use core::ptr;
use nearheap_numa::fake::FakeOs;
use rstest::rstest;
use std::vec::Vec;

impl Depot {
    /// How many of the locks are held, and how many there are.
    pub(crate) fn held(&self) -> (usize, usize) {
        let held = self.magazines.iter().filter(|m| is_held(&m.stack)).count();
        (held, self.magazines.len())
    }

    /// The blocks in the magazine of a slot.
    pub(crate) fn blocks(&self, slot: Slot) -> Vec<*mut u8> {
        let mut stack = self.of(slot).unwrap().stack.lock();
        let (mut blocks, n) = (Vec::new(), stack.n);
        stack.places(0, n, |places| blocks.extend_from_slice(places));
        blocks
    }
}

/// Pushes as a heap does, with room for as many extents as it wants.
fn push(
    (depot, meta, source): (&Depot, &Meta, &PageSource<FakeOs>),
    slot: Slot,
    blocks: &[*mut u8],
    budget: usize,
) -> Vec<*mut u8> {
    loop {
        match depot.push(slot, slot.size(), blocks, budget) {
            Pushed::Kept => return Vec::new(),
            Pushed::Full => assert!(depot.extend(slot, meta, source)),
            Pushed::Over => break,
        }
    }
    let mut overflow = [ptr::null_mut(); GIVE_MAX];
    let n = depot.push_and_pop(slot, slot.size(), blocks, &mut overflow);
    overflow[..n].to_vec()
}

#[rstest]
#[case::nothing_beside_its_share(0)]
#[case::some(100 << 10)]
#[case::all(usize::MAX)]
fn what_goes_in_comes_out_once(#[case] budget: usize) {
    let depot = std::boxed::Box::new(Depot::new());
    let (meta, source) = (Meta::new(), PageSource::new(FakeOs::new()));
    for slot in Slot::all().filter(|s| s.is_cached()) {
        let mut next = 16;
        let (mut expected, mut out) = (0, Vec::new());
        for n in [1, 32, 7, 32, 32, 32, 32, 2, 31].into_iter().cycle().take(400) {
            let blocks: Vec<_> =
                (next..next + n).map(|i| ptr::without_provenance_mut(i * 16)).collect();
            next += n;
            expected += n;
            out.extend(push((&depot, &meta, &source), slot, &blocks, budget));
            assert_eq!(depot.count(slot), depot.blocks(slot).len());
            assert_eq!(depot.kept(), depot.count(slot) * slot.size());
            assert!(depot.count(slot) <= EXTENT * EXTENTS, "A2");
            let share = room_of(slot).max(n);
            assert!(depot.kept() <= budget.max(share * slot.size()), "A2");
            assert_eq!(out.len() + depot.count(slot), expected, "{slot:?}");
        }
        if budget == usize::MAX {
            assert!(depot.count(slot) > 8000, "as many as it has places for");
        }
        let mut last = [ptr::null_mut(); 100];
        loop {
            match depot.pop(slot, slot.size(), &mut last) {
                0 => break,
                n => out.extend_from_slice(&last[..n]),
            }
        }
        assert_eq!(depot.kept(), 0);
        out.sort_unstable();
        let all: Vec<_> = (16..next).map(|i| ptr::without_provenance_mut(i * 16)).collect();
        assert_eq!(out, all, "{slot:?}");
    }
}

#[test]
fn a_magazine_that_cannot_grow_keeps_its_share() {
    let depot = std::boxed::Box::new(Depot::new());
    let (meta, source) = (Meta::new(), PageSource::new(FakeOs::new()));
    source.os().fail_all(true);
    let slot = Slot::small(16);
    let mut overflow = [ptr::null_mut(); GIVE_MAX];
    let blocks = [ptr::without_provenance_mut(16); 32];
    for _ in 0..4 {
        assert_eq!(depot.push(slot, 16, &blocks, usize::MAX), Pushed::Kept);
    }
    assert_eq!(depot.push(slot, 16, &blocks, usize::MAX), Pushed::Full);
    assert!(!depot.extend(slot, &meta, &source));
    assert_eq!(depot.push(slot, 16, &blocks, 0), Pushed::Over);
    assert_eq!(depot.push_and_pop(slot, 16, &blocks, &mut overflow), 32);
    assert_eq!(depot.count(slot), 128);
}
