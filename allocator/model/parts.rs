//! Models of parts of the heap by themselves: a magazine, and the counts of a cache.

use super::explore;
use crate::class::Slot;
use crate::granule::GIVE_MAX;
use crate::magazine::{Depot, Pushed};
use crate::version::Version;
use core::ptr;
use loom::thread;
use nearheap_numa::sync::{AtomicU64, Ordering};
use std::sync::Arc;

const SLOT: Slot = Slot::small(48);

/// Pushes these blocks at once, and pops as many as two; what came out, of both.
fn exchange(depot: &Depot, blocks: &[usize]) -> Vec<usize> {
    let blocks: Vec<_> = blocks.iter().map(|&block| ptr::without_provenance_mut(block)).collect();
    let mut overflow = [ptr::null_mut(); GIVE_MAX];
    let over = match depot.push(SLOT, SLOT.size(), &blocks, 0) {
        Pushed::Kept => 0,
        _ => depot.push_and_pop(SLOT, SLOT.size(), &blocks, &mut overflow),
    };
    let mut popped = [ptr::null_mut(); 2];
    let n = depot.pop(SLOT, SLOT.size(), &mut popped);
    overflow[..over].iter().chain(&popped[..n]).map(|&block: &*mut u8| block.addr()).collect()
}

#[test]
fn what_goes_into_a_magazine_comes_out_once() {
    explore(5, || {
        let depot = Arc::new(Depot::new());
        let mut all = exchange(&depot, &[16, 32, 48, 64]);
        let shared = Arc::clone(&depot);
        let other = thread::spawn(move || exchange(&shared, &[80, 96, 112]));
        all.extend(exchange(&depot, &[128, 144, 160]));
        all.extend(other.join().unwrap());
        let waiting = depot.count(SLOT);
        let mut left = [ptr::null_mut(); GIVE_MAX];
        let n = depot.pop(SLOT, SLOT.size(), &mut left);
        assert_eq!(n, waiting);
        all.extend(left[..n].iter().map(|block| block.addr()));
        all.sort_unstable();
        assert_eq!(all, (1..=10).map(|i| i * 16).collect::<Vec<_>>());
    });
}

#[test]
fn a_reader_sees_two_counts_together() {
    explore(3, || {
        let counts = Arc::new((Version::new(), AtomicU64::new(0), AtomicU64::new(0)));
        let writers = Arc::clone(&counts);
        let writer = thread::spawn(move || {
            let (version, one, two) = &*writers;
            for i in 1..=2 {
                version.change(|| {
                    one.store(i, Ordering::Relaxed);
                    two.store(i, Ordering::Relaxed);
                });
            }
        });
        let (version, one, two) = &*counts;
        let look = || (one.load(Ordering::Relaxed), two.load(Ordering::Relaxed));
        let ((a, b), whole) = version.look(look);
        assert!(!whole || a == b, "parts of two changes: {a} and {b}");
        writer.join().unwrap();
        assert_eq!(version.look(look), ((2, 2), true));
    });
}
