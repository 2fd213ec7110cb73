//! Models of the heap: conservation in every interleaving of two threads and two shards, over the real code.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release --workspace --lib model`
//!
//! A block is with the program, in one cache, in one magazine, or in the granule heap. `World` knows what is with the
//! program and fails where the heap hands a block out that is there already. In the end it counts the blocks in the other
//! places too, gives everything back, and finds that nothing is left.

mod heap;
mod kernel;
mod parts;

use self::kernel::{Kernel, Memory};
use crate::cache::Cache;
use crate::class::Slot;
use crate::granule::GIVE_MAX;
use crate::heap::Heap;
use crate::options::Values;
use crate::part::SHARDS;
use crate::segment::Segment;
use core::alloc::Layout;
use core::ptr;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

/// The heap is larger than loom's stacks.
const STACK_WORDS: usize = 64 << 10;

/// A heap, the caches of two threads whose homes are different shards, and what is with the program.
struct World {
    heap: Heap<Kernel>,
    caches: [*const Cache; 2],
    /// Every block that is with the program.
    out: Mutex<BTreeMap<usize, Layout>>,
    /// Every slot that was used.
    slots: Mutex<BTreeSet<Slot>>,
    /// The blocks that each thread is going to free.
    owned: [Mutex<Vec<usize>>; 2],
}

// SAFETY: each cache is used by one thread at a time; the rest is shared as in a program.
unsafe impl Send for World {}
// SAFETY: as above.
unsafe impl Sync for World {}

/// A thread in a world.
#[derive(Clone, Copy)]
struct Thread<'w> {
    world: &'w World,
    cache: &'w Cache,
    owned: &'w Mutex<Vec<usize>>,
}

/// Explores what up to `switches` unforced switches between two threads can do.
fn explore(switches: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(switches));
    builder.max_branches = 50_000;
    let model = Arc::new(model);
    builder.check(move || {
        let model = Arc::clone(&model);
        spawn(move || model()).join().unwrap();
    });
}

fn spawn(part: impl FnOnce() + Send + 'static) -> loom::thread::JoinHandle<()> {
    loom::thread::Builder::new().stack_size(STACK_WORDS).spawn(part).unwrap()
}

/// Runs two threads at the same time in a world that `before` has prepared.
fn check(
    switches: usize,
    before: fn(Thread<'_>, Thread<'_>),
    here: fn(Thread<'_>),
    there: fn(Thread<'_>),
) {
    check_in(SHARDS, switches, before, here, there);
}

/// The same, with so many shards at first.
fn check_in(
    shards: usize,
    switches: usize,
    before: fn(Thread<'_>, Thread<'_>),
    here: fn(Thread<'_>),
    there: fn(Thread<'_>),
) {
    let memory = Memory::new();
    let run = move || {
        let world = Arc::new(World::new(memory, shards));
        before(world.thread(0), world.thread(1));
        let other = Arc::clone(&world);
        let thread = spawn(move || there(other.thread(1)));
        here(world.thread(0));
        thread.join().unwrap();
        world.settle();
    };
    explore(switches, run);
}

impl World {
    /// Caches of one block a slot, so that every second operation leaves them.
    fn new(memory: Memory, shards: usize) -> Self {
        let heap = Heap::new(Kernel::new(memory));
        heap.knobs.set(&Values { slot_blocks: 1, ..Values::DEFAULT });
        heap.granules.spread(shards);
        let caches = [(); 2].map(|()| ptr::from_ref(heap.enroll().unwrap()));
        let owned = [(); 2].map(|()| Mutex::new(Vec::new()));
        let (out, slots) = (Mutex::new(BTreeMap::new()), Mutex::new(BTreeSet::new()));
        Self { heap, caches, out, slots, owned }
    }

    fn thread(&self, i: usize) -> Thread<'_> {
        // SAFETY: caches are metadata of the heap, which lives as long as the model.
        Thread { world: self, cache: unsafe { &*self.caches[i] }, owned: &self.owned[i] }
    }

    /// Bytes that a layout takes of segments.
    fn bytes(&self, layout: Layout) -> usize {
        let classes = &self.heap.granules.classes;
        Slot::of(layout.size(), layout.align()).map_or(0, |slot| classes.bytes(slot))
    }

    /// Counts every block where it is, gives all back, and finds nothing left. After the threads have ended.
    fn settle(&self) {
        let out = core::mem::take(&mut *self.out.lock().unwrap());
        self.check_counts(&out);
        let mut all: BTreeMap<usize, Layout> = BTreeMap::new();
        for (slot, block) in self.at_rest() {
            let layout = Layout::from_size_align(slot.size(), slot.align().min(16)).unwrap();
            assert_eq!(all.insert(block as usize, layout), None, "a block in two places");
        }
        for (&block, &layout) in &out {
            assert_eq!(all.insert(block, layout), None, "a block in two places");
        }
        let bytes: usize = all.values().map(|&layout| self.bytes(layout)).sum();
        assert_eq!(self.heap.granules.taken(), bytes, "a block is nowhere");
        for (block, layout) in all {
            let block = ptr::with_exposed_provenance_mut(block);
            match Slot::of(layout.size(), layout.align()) {
                Some(slot) => self.heap.granules.give(slot, &mut [block]).unwrap(),
                // SAFETY: the block is with the program, and no thread's.
                None => unsafe { self.heap.free(None, block, layout).unwrap() },
            }
        }
        // SAFETY: no cache is given.
        unsafe { self.heap.purge_all(None) };
        assert_eq!(self.heap.live(), 0);
        for place in self.heap.granules.places() {
            let left = place.shard.lock().find_segment(|_| Some(()));
            assert_eq!(left, None, "a segment that is all free, and not seen as that");
        }
        // What is left is metadata, but for that of segments, which are all unmapped.
        let source = &self.heap.granules.source;
        let purged = self.heap.granules.meta.bytes() - source.committed();
        assert_eq!(purged % source.in_pages(size_of::<Segment>()).unwrap(), 0, "{purged} bytes");
        assert_eq!(source.retained(), 0);
    }

    /// Blocks in caches and magazines, which are empty after.
    fn at_rest(&self) -> Vec<(Slot, *mut u8)> {
        let classes = &self.heap.granules.classes;
        let registry = self.heap.registry.lock();
        let mut found = Vec::new();
        for slot in Slot::all() {
            for cache in registry.living().filter(|cache| cache.state(slot).n > 0) {
                let mut items = [ptr::null_mut(); 64];
                // SAFETY: the cache's thread has ended.
                let n = unsafe { cache.empty(slot, classes.bytes(slot), &mut items) };
                found.extend(items[..n].iter().map(|&block| (slot, block)));
            }
            let mut items = [ptr::null_mut(); GIVE_MAX];
            let waiting = self.heap.depots.get(0).count(slot);
            let n = self.heap.depots.get(0).pop(slot, classes.bytes(slot), &mut items);
            assert_eq!(n, waiting, "a magazine's count");
            found.extend(items[..n].iter().map(|&block| (slot, block)));
        }
        found
    }

    /// What was allocated and not freed is what is with the program, slot by slot.
    fn check_counts(&self, out: &BTreeMap<usize, Layout>) {
        let registry = self.heap.registry.lock();
        let slots = self.slots.lock().unwrap();
        for &slot in slots.iter() {
            let (mut allocs, mut frees) = self.heap.ledger.counts(slot);
            for cache in registry.living() {
                let counts = cache.counts(slot);
                allocs += counts.allocs;
                frees += counts.frees;
            }
            let of_slot = |l: &&Layout| Slot::of(l.size(), l.align()) == Some(slot);
            let held = out.values().filter(of_slot).count() as u64;
            assert_eq!(allocs - frees, held, "counts of {slot:?}");
        }
    }
}

impl Thread<'_> {
    /// Allocates as the program does. `None`: there is no memory.
    fn alloc(self, layout: Layout) -> Option<usize> {
        let slot = Slot::of(layout.size(), layout.align()).filter(|slot| slot.is_cached());
        // SAFETY: the cache is this thread's.
        let quick = slot.and_then(|slot| unsafe { self.cache.pop(slot) });
        let block = quick.map_or_else(
            // SAFETY: the cache is this thread's.
            || unsafe { self.world.heap.alloc(Some(self.cache), layout).0 },
            |block| block.as_ptr(),
        ) as usize;
        if block == 0 {
            return None;
        }
        self.world.slots.lock().unwrap().extend(Slot::of(layout.size(), layout.align()));
        let twice = self.world.out.lock().unwrap().insert(block, layout);
        assert_eq!(twice, None, "a block handed out twice");
        Some(block)
    }

    /// Frees as the program does.
    fn free(self, block: usize) {
        let layout = self.world.out.lock().unwrap().remove(&block).unwrap();
        let block = ptr::with_exposed_provenance_mut(block);
        let slot = Slot::of(layout.size(), layout.align()).filter(|slot| slot.is_cached());
        // SAFETY: the cache is this thread's, and the block is nobody's any more.
        unsafe {
            if !slot.is_some_and(|slot| self.cache.push(slot, block)) {
                self.world.heap.free(Some(self.cache), block, layout).unwrap();
            }
        }
    }

    /// Frees the next of the blocks that are this thread's to free.
    fn free_owned(self) {
        let block = self.owned.lock().unwrap().pop().unwrap();
        self.free(block);
    }

    /// Allocates a block that `to` is going to free.
    fn alloc_for(self, to: Thread<'_>, layout: Layout) {
        let block = self.alloc(layout).unwrap();
        to.owned.lock().unwrap().push(block);
    }

    /// Leaves its cache.
    fn end(self) {
        // SAFETY: the cache is this thread's, which does not use it any more.
        unsafe { self.world.heap.dismiss(self.cache).unwrap() };
    }
}
