//! Huge blocks against a list of them; the heap asks for them over 1 MiB only, but they may be of any number of pages.

use super::*;
use crate::testing::{Numbers, check_marks, is_held, is_zero, mark, steps};
use nearheap_numa::fake::FakeOs;
use rstest::rstest;
use std::boxed::Box;
use std::vec::Vec;

impl Huge {
    pub(crate) fn is_held(&self) -> bool {
        is_held(&self.table)
    }

    /// Bytes of the mappings of live blocks, and of those that are kept.
    pub(crate) fn mapped(&self) -> (usize, usize) {
        let mut table = self.table.lock();
        let kept = table.kept.iter().map(|m| m.mapped).sum();
        let seen = table.entries().iter().filter(|m| m.at != 0).count();
        assert_eq!(table.count, seen);
        (table.entries().iter().map(|m| m.mapped).sum(), kept)
    }
}

#[derive(Clone, Copy, Debug)]
struct Block {
    at: *mut u8,
    len: usize,
    align: usize,
    stamp: usize,
}

struct Model {
    huge: Box<Huge>,
    granules: Box<Granules<FakeOs>>,
    blocks: Vec<Block>,
    stamp: usize,
    keep: usize,
}

impl Model {
    fn new(page: usize, keep: usize) -> Self {
        let granules = Box::new(Granules::new(FakeOs::with_pages(page)));
        let huge = Box::new(Huge::new());
        Self { huge, granules, blocks: Vec::new(), stamp: 0, keep }
    }

    fn put(&mut self, at: NonNull<u8>, len: usize, align: usize) {
        let at = at.as_ptr();
        assert_eq!(at as usize % align, 0);
        self.stamp += 1;
        mark(at, len, self.stamp);
        self.blocks.push(Block { at, len, align, stamp: self.stamp });
    }

    /// Whether there was memory.
    fn alloc(&mut self, pages: usize, align: usize) -> bool {
        let len = pages * self.granules.source.page_size();
        let found = self.huge.alloc((len, align), false, 0, &self.granules);
        let Some((at, dirty)) = found else { return false };
        assert!(dirty >= len || is_zero(at.as_ptr().wrapping_add(dirty), len - dirty));
        self.put(at, len, align);
        true
    }

    fn free(&mut self, i: usize) {
        let Block { at, len, stamp, .. } = self.blocks.swap_remove(i);
        check_marks(at, len, stamp, len);
        let before = self.granules.source.accounts();
        let unmapped = self.huge.free(at, len, self.keep, &self.granules.source).expect("a block");
        let after = self.granules.source.accounts();
        if after.refused_others == before.refused_others && unmapped > 0 {
            assert!(after.mapped <= before.mapped - unmapped);
        }
    }

    /// Whether there was memory; if not, the block is as it was.
    fn resize(&mut self, i: usize, pages: usize) -> bool {
        let Block { at, len, align, stamp } = self.blocks[i];
        let new = pages * self.granules.source.page_size();
        match self.huge.resize(at, (len, new), (align, false), &self.granules.source) {
            Ok(Some(to)) => {
                check_marks(to.as_ptr(), len, stamp, len.min(new));
                self.blocks.swap_remove(i);
                self.put(to, new, align);
                true
            }
            Ok(None) => {
                check_marks(at, len, stamp, len);
                false
            }
            Err(fault) => panic!("{fault:?}"),
        }
    }

    fn check(&self) {
        let (live, kept) = self.huge.mapped();
        assert_eq!(
            self.huge.bytes(),
            self.blocks.iter().map(|b| b.len).sum::<usize>(),
            "bytes of blocks"
        );
        assert!(live >= self.huge.bytes());
        let source = &self.granules.source;
        assert_eq!(source.retained(), kept, "H2");
        assert_eq!(source.committed(), live + kept + self.granules.meta.bytes(), "P1");
        assert_eq!(source.accounts().mapped, source.os().mapped());
        assert!(source.accounts().mapped >= live + kept);
    }

    fn fault(&self, at: *mut u8, len: usize) -> Option<Misuse> {
        let freed = self.huge.free(at, len, self.keep, &self.granules.source);
        let resized = self.huge.resize(at, (len, 2 * len), (4096, false), &self.granules.source);
        let (freed, resized) = (freed.err()?, resized.err()?);
        assert_eq!(freed, resized);
        assert_eq!((freed.address, freed.size), (at as usize, len));
        self.check();
        Some(freed.misuse)
    }

    fn finish(mut self) {
        while !self.blocks.is_empty() {
            self.free(0);
        }
        self.huge.purge(0, 0, &self.granules, 0);
        self.check();
        assert_eq!(self.granules.source.committed(), self.granules.meta.bytes());
    }
}

#[rstest]
#[case::nothing_is_kept(4096, 0, 1)]
#[case::some_is_kept(4096, 64 << 10, 2)]
#[case::large_pages(64 << 10, 1 << 20, 3)]
fn thousands_of_blocks(#[case] page: usize, #[case] keep: usize, #[case] seed: u64) {
    let (mut model, mut numbers) = (Model::new(page, keep), Numbers::new(seed));
    let full = if cfg!(debug_assertions) { 1500 } else { 6000 };
    let (mut filling, mut drained) = (true, 0);
    let mut step = 0;
    while drained < 2 {
        step += 1;
        let live = model.blocks.len();
        match numbers.under(if filling { 8 } else { 20 }) {
            0..=4 => {
                let align = page << if numbers.once_in(8) { numbers.under(6) } else { 0 };
                assert!(model.alloc(numbers.sized(4), align));
            }
            5 if live > 0 => {
                assert!(model.resize(numbers.under(live), numbers.sized(5)));
            }
            _ if live > 0 => model.free(numbers.under(live)),
            _ => {}
        }
        if live > full {
            filling = false;
        } else if !filling && live < full / 10 {
            (filling, drained) = (true, drained + 1);
        }
        if numbers.once_in(200) {
            model.huge.purge(numbers.under(keep + 1), numbers.under(keep + 1), &model.granules, 0);
        }
        if step % 100 == 0 {
            model.check();
        }
    }
    model.finish();
}

#[test]
fn the_table_finds_every_entry_after_any_removal() {
    // A small table, so that entries collide, and addresses that the hash brings near each other.
    let mut numbers = Numbers::new(9);
    let mut entries = [NOTHING; 16];
    let mut table = Table {
        entries: entries.as_mut_ptr(),
        capacity: entries.len(),
        count: 0,
        kept: [NOTHING; KEPT],
        keeps: 0,
    };
    let mut inside = Vec::new();
    for _ in 0..steps(300_000) {
        let at = 4096 * (1 + numbers.under(40));
        match inside.iter().position(|&a| a == at) {
            Some(i) if numbers.once_in(2) => {
                inside.swap_remove(i);
                table.remove(at);
            }
            None if inside.len() < 8 => {
                inside.push(at);
                table.insert(Mapping { at, len: at, mapped: at, ..NOTHING });
            }
            _ => table.remove(4096 * 1000),
        }
        assert_eq!(table.entries().iter().filter(|m| m.at != 0).count(), inside.len());
        for at in (0..=40).map(|i| i * 4096) {
            let found = table.find(at).map(|m| m.len);
            assert_eq!(found, inside.contains(&at).then_some(at));
        }
    }
}

#[test]
fn every_promised_place_is_there() {
    let (huge, meta, source) = (Huge::new(), Meta::new(), PageSource::new(FakeOs::new()));
    for promised in 1..=1000 {
        assert!(huge.reserve(&meta, &source));
        let table = huge.table.lock();
        assert!(table.count == promised && 2 * promised <= table.capacity, "{promised}");
    }
    (0..1000).for_each(|_| huge.forgo());
    assert_eq!(huge.table.lock().count, 0);
}

#[rstest]
#[case::the_same(8, 8, 0)]
#[case::a_little_smaller(18, 16, 0)]
#[case::a_part_of_it(18, 15, 3)]
#[case::less_than_half_of_it(8, 3, 5)]
#[case::larger_than_half_of_it(4, 8, 0)]
#[case::too_large(4, 9, 4)]
fn a_kept_mapping_serves_what_is_near(
    #[case] kept: usize,
    #[case] wanted: usize,
    #[case] left: usize,
) {
    let mut model = Model::new(4096, 1 << 20);
    assert!(model.alloc(kept, 4096));
    model.free(0);
    assert_eq!(model.granules.source.retained(), kept * 4096);
    assert!(model.alloc(wanted, 4096));
    assert_eq!(model.granules.source.retained(), left * 4096);
    model.check();
    model.finish();
}

#[test]
fn of_several_the_smallest_that_is_large_enough_is_taken() {
    let mut model = Model::new(4096, 1 << 20);
    for pages in [40, 10, 20, 30] {
        assert!(model.alloc(pages, 4096));
    }
    let at = |model: &Model, i: usize| model.blocks[i].at;
    let (ten, twenty) = (at(&model, 1), at(&model, 2));
    (0..4).for_each(|_| model.free(0));
    for (pages, expected) in [(20, twenty), (9, ten)] {
        assert!(model.alloc(pages, 4096));
        let last = model.blocks.len() - 1;
        assert_eq!(at(&model, last), expected);
        model.check();
    }
    model.finish();
}

#[test]
fn when_all_places_are_taken_the_oldest_goes() {
    let mut model = Model::new(4096, 1 << 20);
    (0..KEPT + 5).for_each(|i| assert!(model.alloc(4 + i % 3, 4096)));
    let first = model.blocks[0].at;
    while !model.blocks.is_empty() {
        let sum = model.blocks.len();
        model.blocks.rotate_left(1);
        model.free(sum - 1);
        model.check();
    }
    let (_, kept) = model.huge.mapped();
    assert_eq!(model.huge.table.lock().keeps, KEPT);
    assert_eq!(model.granules.source.retained(), kept);
    assert_eq!(model.fault(first, 4 * 4096), Some(Misuse::Foreign), "it is unmapped");
    model.finish();
}

#[test]
fn a_kept_mapping_has_the_alignment_that_is_asked_for() {
    let mut model = Model::new(4096, 1 << 20);
    (0..16).for_each(|_| assert!(model.alloc(4, 4096)));
    (0..16).for_each(|_| model.free(0));
    for align in [8192, 1 << 20, 1 << 26] {
        assert!(model.alloc(4, align));
        let i = model.blocks.len() - 1;
        assert!(model.resize(i, 40), "aligned where it moves to as well");
        model.check();
    }
    model.finish();
}

#[test]
fn misuse_has_a_name() {
    let mut model = Model::new(4096, 64 << 10);
    assert!(model.alloc(40, 4096) && model.alloc(4, 4096));
    let (large, small) = (model.blocks[0].at, model.blocks[1].at);
    assert_eq!(model.fault(large, 39 * 4096), Some(Misuse::WrongLayout));
    assert_eq!(model.fault(large, 0), Some(Misuse::WrongLayout));
    assert_eq!(model.fault(large.wrapping_add(4096), 4096), Some(Misuse::NotABlock));
    assert_eq!(model.fault(large.wrapping_add(1), 40 * 4096), Some(Misuse::NotABlock));
    assert_eq!(model.fault(ptr::without_provenance_mut(4096), 4096), Some(Misuse::Foreign));
    assert_eq!(model.fault(ptr::null_mut(), 4096), Some(Misuse::Foreign));
    model.free(1);
    assert_eq!(model.fault(small, 4 * 4096), Some(Misuse::DoubleFree), "it is kept");
    model.free(0);
    assert_eq!(model.fault(large, 40 * 4096), Some(Misuse::Foreign), "it is unmapped");
    model.finish();
}

#[test]
fn a_table_that_can_not_grow_refuses_blocks_and_loses_none() {
    let mut model = Model::new(4096, 0);
    let mut refusals = 0;
    for _ in 0..1000 {
        // The first call of an allocation is the table's, where that is full.
        model.granules.source.os().fail_at(1);
        refusals += usize::from(!model.alloc(1, 4096));
        model.granules.source.os().fail_at(0);
        assert!(model.alloc(1, 4096));
        model.check();
    }
    assert_eq!(refusals, 1000);
    model.finish();
}

/// Which of its calls unmaps a block; with `hardened`, the first takes the wall away.
const UNMAPS_AT: usize = if cfg!(feature = "hardened") { 2 } else { 1 };

#[test]
fn a_refused_unmapping_is_tried_again() {
    for all in [false, true] {
        let mut model = Model::new(4096, 0);
        (0..12).for_each(|_| assert!(model.alloc(3, 4096)));
        for _ in 0..12 {
            model.granules.source.os().fail_at(UNMAPS_AT);
            model.granules.source.os().fail_all(all);
            model.free(0);
            model.check();
        }
        assert_eq!(model.granules.source.retained(), 12 * 3 * 4096);
        model.granules.source.os().fail_all(false);
        model.granules.source.os().fail_at(0);
        assert!(model.alloc(3, 4096), "and what couldn't go can be used");
        assert_eq!(model.granules.source.retained(), 11 * 3 * 4096);
        model.finish();
    }
}

#[test]
fn what_is_left_behind_is_in_the_accounts() {
    let mut model = Model::new(4096, 0);
    (0..KEPT + 4).for_each(|_| assert!(model.alloc(3, 4096)));
    for _ in 0..KEPT + 4 {
        // The unmapping is refused; the purge is not.
        model.granules.source.os().fail_at(UNMAPS_AT);
        model.free(0);
    }
    model.granules.source.os().fail_at(0);
    let metadata = model.granules.meta.bytes();
    assert_eq!(model.granules.source.retained(), KEPT * 3 * 4096);
    assert_eq!(
        model.granules.source.committed(),
        KEPT * 3 * 4096 + metadata,
        "purged: not resident"
    );
    assert_eq!(model.granules.source.accounts().mapped, model.granules.source.os().mapped());
    model.finish();
}

#[test]
fn a_block_that_can_not_move_is_as_it_was() {
    for align in [4096, 1 << 20] {
        let mut model = Model::new(4096, 0);
        assert!(model.alloc(3, align));
        for call in 1..=6 {
            model.granules.source.os().fail_at(call);
            model.resize(0, 20 * call);
            model.check();
        }
        model.granules.source.os().fail_at(0);
        model.granules.source.os().fail_all(true);
        assert!(!model.resize(0, 300), "growing needs the kernel");
        model.check();
        model.granules.source.os().fail_all(false);
        assert!(model.resize(0, 300));
        model.check();
        model.finish();
    }
}

#[test]
fn a_block_that_lost_the_place_it_was_to_move_to_is_as_it_was() {
    let mut model = Model::new(4096, 0);
    assert!(model.alloc(3, 1 << 20));
    let committed = model.granules.source.committed();
    model.granules.source.os().fail_late(true);
    for pages in [4, 40, 400] {
        assert!(!model.resize(0, pages));
        assert_eq!(model.granules.source.committed(), committed);
        assert_eq!(model.huge.mapped(), (3 * 4096, 0));
    }
    model.granules.source.os().fail_late(false);
    assert!(model.resize(0, 40));
    model.free(0);
    assert_eq!(model.huge.bytes(), 0);
    assert_eq!(model.granules.source.committed(), model.granules.meta.bytes());
}
