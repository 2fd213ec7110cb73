//! The granule heap against a list of the blocks that are out: none overlaps, all are found, every account is exact.

mod misuse;
mod walk;

use super::*;
use crate::class::{CACHED_MAX, SLOTS};
use crate::heap::Heap;
use crate::testing::{Held, Numbers, check_marks, is_held, is_zero, mark};
use core::ptr;
use nearheap_numa::fake::FakeOs;
use std::boxed::Box;
use std::collections::BTreeMap;
use std::vec::Vec;

impl Granules<FakeOs> {
    /// Looks at every segment, and says what they hold.
    pub(crate) fn audit(&self) -> Held {
        let spare = self.spare.lock().n * pages_of::<Segment, FakeOs>(&self.source);
        let metadata = self.meta.bytes() - spare - self.extents.purged_bytes(&self.source);
        let mut held = Held { segments: 0, dirty: 0, retained: 0, metadata };
        for place in self.places() {
            let mut shard = place.shard.lock();
            assert!(shard.audit(), "D1, D2, G1 to G3, C1 to C3");
            let _ = shard.find_segment(|s| {
                held.segments += 1;
                held.dirty += s.dirty_bytes();
                held.retained += s.retained_bytes();
                None::<()>
            });
        }
        held
    }

    /// How many of the locks are held, and how many there are.
    pub(crate) fn held(&self) -> (usize, usize) {
        let held = self.places().filter(|p| is_held(&p.shard)).count()
            + usize::from(is_held(&self.spare))
            + usize::from(self.meta.is_held());
        (held, SHARDS + 2)
    }

    /// Whether a block of `slot` begins at an address.
    pub(crate) fn is_block(&self, slot: Slot, block: *mut u8) -> bool {
        let segment = self.map.find(block as usize);
        // SAFETY: null, or metadata; these tests have one thread.
        let segment = unsafe { segment.as_mut() };
        let k = self.classes.granules(slot);
        segment.is_some_and(|s| s.check(Segment::granule(block as usize), k).is_ok())
    }
}

struct Model {
    heap: Box<Heap<FakeOs>>,
    /// Blocks that are out: where, and of which slot.
    live: BTreeMap<usize, Slot>,
    /// The same, by slot.
    by_slot: Vec<Vec<*mut u8>>,
    bytes: usize,
}

impl Model {
    fn new(os: FakeOs) -> Self {
        let by_slot = std::vec![Vec::new(); SLOTS];
        let heap = Box::new(Heap::new(os));
        heap.granules.extents.activate();
        Self { heap, live: BTreeMap::new(), by_slot, bytes: 0 }
    }

    fn granules(&self) -> &Granules<FakeOs> {
        &self.heap.granules
    }

    fn size(&self, slot: Slot) -> usize {
        self.granules().classes.bytes(slot)
    }

    fn came(&mut self, slot: Slot, block: *mut u8) {
        let (at, len) = (block as usize, self.size(slot));
        assert_eq!(at % slot.align(), 0, "{slot:?} at {at:#x}");
        // SAFETY: null, or metadata.
        let segment = unsafe { self.granules().map.find(at).as_ref() }.expect("in a segment");
        assert!(at + len <= segment.base() + SEGMENT, "{slot:?} at {at:#x} leaves its segment");
        if let Some((&before, &slot)) = self.live.range(..=at).next_back() {
            assert!(before + self.size(slot) <= at, "{before:#x} and {at:#x} overlap");
        }
        if let Some((&after, _)) = self.live.range(at..).next() {
            assert!(at + len <= after, "{at:#x} and {after:#x} overlap");
        }
        mark(block, len, at);
        self.live.insert(at, slot);
        self.by_slot[slot.index()].push(block);
        self.bytes += len;
    }

    fn went(&mut self, slot: Slot, block: *mut u8) {
        assert_eq!(self.live.remove(&(block as usize)), Some(slot));
        check_marks(block, self.size(slot), block as usize, self.size(slot));
        self.bytes -= self.size(slot);
    }

    fn segments(&self) -> usize {
        self.granules().places().map(|p| p.shard.lock().segments()).sum()
    }

    fn take(&mut self, slot: Slot, n: usize, home: usize) -> usize {
        let segments = self.segments();
        let mut out = std::vec![ptr::null_mut(); n];
        let got =
            self.granules().take(slot, Home { part: 0, shard: home }, &mut out).expect("memory");
        assert!(got >= 1 && got <= n && out[got..].iter().all(|b| b.is_null()));
        if self.segments() > segments {
            self.nothing_else_fits(slot, out[0]);
        }
        out[..got].iter().for_each(|&block| self.came(slot, block));
        got
    }

    fn take_span(&mut self, slot: Slot, home: usize) -> *mut u8 {
        let segments = self.segments();
        let (span, dirty) =
            self.granules().take_span(slot, Home { part: 0, shard: home }).expect("memory");
        if self.segments() > segments {
            self.nothing_else_fits(slot, span);
        }
        let clean = self.size(slot).saturating_sub(dirty);
        assert!(is_zero(span.wrapping_add(dirty), clean), "{slot:?} is zero");
        self.came(slot, span);
        span
    }

    /// After a segment was mapped for `fresh`: no other segment has a place where it would have fitted.
    fn nothing_else_fits(&self, slot: Slot, fresh: *mut u8) {
        let fresh = fresh as usize / SEGMENT * SEGMENT;
        let mut bases: Vec<_> = Vec::new();
        for place in &self.granules().parts.get(0).shards[..self.granules().active()] {
            let _ = place.shard.lock().find_segment(|s| {
                bases.push(s.base());
                None::<()>
            });
        }
        // A block is carved from one chunk, a span from whole pages.
        let span = !slot.is_cached();
        let unit = if span { self.granules().source.page_size() } else { slot.align() };
        let part = if span { SEGMENT } else { 64 << 10 };
        for base in bases.into_iter().filter(|&b| b != fresh) {
            for part in (base..base + SEGMENT).step_by(part).map(|at| at..at + part) {
                let mut free_from = part.start;
                let blocks = self.live.range(part.start.saturating_sub(2 << 20)..part.end);
                let ends = blocks.map(|(&at, &slot)| (at, at + self.size(slot)));
                for (at, end) in ends.chain([(part.end, part.end)]) {
                    let first = free_from.next_multiple_of(unit);
                    let fits = first + self.size(slot).next_multiple_of(unit) <= at.min(part.end);
                    assert!(!fits, "{slot:?} would have fitted at {first:#x}");
                    free_from = free_from.max(end.min(part.end));
                }
            }
        }
    }

    fn give(&mut self, slot: Slot, blocks: &mut [*mut u8]) {
        blocks.iter().for_each(|&block| self.went(slot, block));
        assert_eq!(self.granules().give(slot, blocks), Ok(()));
    }

    /// Gives `n` blocks of a slot back, in no order.
    fn give_some(&mut self, slot: Slot, n: usize, numbers: &mut Numbers) {
        let blocks = &mut self.by_slot[slot.index()];
        let n = n.min(blocks.len()).min(GIVE_MAX);
        let mut batch: Vec<_> =
            (0..n).map(|_| blocks.swap_remove(numbers.under(blocks.len()))).collect();
        self.give(slot, &mut batch);
    }

    /// Makes a block one of slot `to`, and knows beforehand whether that is possible.
    fn resize(&mut self, from: Slot, i: usize, to: Slot) {
        let block = self.by_slot[from.index()][i];
        let (at, old, new) = (block as usize, self.size(from), self.size(to));
        let end = self.live.range(at + 1..).next().map_or(usize::MAX, |(&next, _)| next);
        let end = end.min((at / SEGMENT + 1) * SEGMENT);
        let fits = at % to.align() == 0 && (new <= old || at + new <= end);
        assert_eq!(self.granules().resize(block, from, to), Ok(fits), "{from:?} to {to:?}");
        if fits {
            check_marks(block, old, at, old.min(new));
            self.by_slot[from.index()].swap_remove(i);
            self.live.remove(&at);
            self.bytes -= old;
            self.came(to, block);
        } else {
            check_marks(block, old, at, old);
        }
    }

    fn audit(&self) {
        let source = &self.granules().source;
        let held = self.granules().audit();
        assert_eq!(self.granules().taken(), self.bytes, "bytes out");
        let blocks = self.live.iter().map(|(&at, &slot)| (at, self.size(slot)));
        assert!(self.granules().extents.are_exact(blocks), "W1, W2");
        assert_eq!(source.retained(), held.retained, "G4");
        assert_eq!(source.committed(), held.dirty + held.metadata, "P1");
        let mapped = source.os().mapped();
        assert_eq!(source.accounts().mapped, mapped);
        let metadata = mapped - held.segments * SEGMENT;
        assert!(metadata <= 2 * self.granules().meta.bytes() + (512 << 10), "{metadata} mapped");
    }

    /// Gives everything back and sees it go.
    fn finish(mut self, numbers: &mut Numbers) {
        for slot in Slot::all() {
            while !self.by_slot[slot.index()].is_empty() {
                self.give_some(slot, GIVE_MAX, numbers);
            }
        }
        self.audit();
        // SAFETY: no cache of any thread is touched.
        unsafe { self.heap.purge_all(None) };
        self.audit();
        let source = &self.granules().source;
        assert_eq!((self.bytes, self.live.len(), self.segments()), (0, 0, 0));
        assert_eq!(source.retained(), 0, "nothing is kept");
        assert!(source.committed() < self.granules().meta.bytes(), "only metadata is left");
    }
}

#[test]
fn shards_double_where_the_lock_is_found_held() {
    let mut model = Model::new(FakeOs::new());
    let slot = Slot::small(48);
    for (contended, active) in
        [(ENTRIES_JUDGED / TOO_OFTEN, 1), (ENTRIES_JUDGED / TOO_OFTEN + 1, 2)]
    {
        {
            let mut shard = model.granules().parts.get(0).shards[0].shard.lock();
            (shard.entries, shard.contended) = (ENTRIES_JUDGED - 1, contended);
        }
        model.take(slot, 1, 0);
        assert_eq!(model.granules().active(), active, "found held {contended} times");
        let shard = model.granules().parts.get(0).shards[0].shard.lock();
        assert!(shard.entries < ENTRIES_JUDGED && shard.contended == 0, "it counts anew");
    }
    model.finish(&mut Numbers::new(1));
}
