//! Models of the lock and of the page source: every interleaving of two or three threads, over the real code.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release --workspace --lib model`

use crate::lock::Lock;
use crate::os::{Errno, Os};
use crate::source::{Accounts, NO_LIMIT, PageSource};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use loom::thread;
use std::sync::Arc;
use std::vec::Vec;

/// Explores what up to three switches at unforced places can do.
fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(3));
    builder.check(model);
}

/// Runs the parts at the same time, the last one here.
fn together<T: Send + Sync + 'static>(shared: T, parts: &[fn(&T)]) -> Arc<T> {
    let shared = Arc::new(shared);
    let Some((here, others)) = parts.split_last() else { return shared };
    let threads: Vec<_> = others
        .iter()
        .map(|&part| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || part(&shared))
        })
        .collect();
    here(&shared);
    for thread in threads {
        thread.join().unwrap();
    }
    shared
}

fn add_one(lock: &Lock<u32>) {
    *lock.lock() += 1;
}

#[test]
fn two_threads_add_what_both_added_and_nobody_sleeps_for_ever() {
    check(|| {
        let twice = |lock: &Lock<u32>| {
            add_one(lock);
            add_one(lock);
        };
        let total = together(Lock::new(0), &[twice, twice]);
        assert_eq!(*total.lock(), 4);
    });
}

#[test]
fn three_threads_wake_each_other() {
    check(|| {
        let total = together(Lock::new(0), &[add_one, add_one, add_one]);
        assert_eq!(*total.lock(), 3);
    });
}

#[test]
fn whoever_tries_is_inside_alone_or_not_at_all() {
    check(|| {
        let tries = |lock: &Lock<(u32, u32)>| match lock.try_lock() {
            Some(mut inside) => inside.0 += 1,
            None => lock.lock().1 += 1,
        };
        let total = together(Lock::new((0, 0)), &[tries, tries, tries]);
        let (at_once, later) = *total.lock();
        assert_eq!(at_once + later, 3);
        assert!(at_once >= 1, "nobody was inside when the first one tried");
    });
}

#[test]
fn held_across_a_function_it_keeps_others_out_and_lets_them_in_again() {
    check(|| {
        let holds = |lock: &Lock<u32>| {
            lock.hold();
            assert!(lock.try_lock().is_none());
            // SAFETY: held above.
            unsafe { lock.let_go() };
        };
        let total = together(Lock::new(0), &[holds, add_one, add_one]);
        assert_eq!(*total.lock(), 2);
    });
}

/// A kernel for accounts alone: it is never asked for memory.
struct NoMemory;

// SAFETY: it maps nothing.
unsafe impl Os for NoMemory {
    fn page_size(&self) -> usize {
        4096
    }

    fn hint(&self) -> usize {
        0
    }

    fn now_ms(&self) -> u64 {
        0
    }

    fn map(&self, _: usize, _: usize) -> Result<NonNull<u8>, Errno> {
        Err(Errno(libc::ENOMEM))
    }

    unsafe fn unmap(&self, _: NonNull<u8>, _: usize) -> Result<(), Errno> {
        Err(Errno(libc::ENOMEM))
    }

    unsafe fn purge(&self, _: NonNull<u8>, _: usize) -> Result<(), Errno> {
        Err(Errno(libc::ENOMEM))
    }

    unsafe fn advise_huge(&self, _: NonNull<u8>, _: usize, _: bool) -> Result<(), Errno> {
        Err(Errno(libc::ENOMEM))
    }

    unsafe fn remap(
        &self,
        _: NonNull<u8>,
        _: usize,
        _: usize,
        _: Option<NonNull<u8>>,
    ) -> Result<NonNull<u8>, Errno> {
        Err(Errno(libc::ENOMEM))
    }
}

/// A source with its limits, the bytes that commits were granted, and the crossings that were told: counted where loom
/// doesn't see it, so that counting orders nothing.
struct Accounting {
    source: PageSource<NoMemory>,
    committed: AtomicUsize,
    told: AtomicU64,
}

impl Accounting {
    fn new(soft: usize, hard: usize) -> Self {
        let source = PageSource::new(NoMemory);
        source.set_limits(soft, hard);
        Self { source, committed: AtomicUsize::new(0), told: AtomicU64::new(0) }
    }

    fn commit(&self, bytes: usize) -> bool {
        let done = self.source.commit(bytes);
        if done {
            self.committed.fetch_add(bytes, SeqCst);
        }
        done
    }

    fn listen(&self) {
        if self.source.take_crossing() {
            self.told.fetch_add(1, SeqCst);
        }
    }
}

#[test]
fn the_hard_limit_lets_in_what_fits() {
    check(|| {
        let most = |a: &Accounting| {
            a.commit(80);
        };
        let all = together(Accounting::new(NO_LIMIT, 100), &[most, most]);
        let accounts = all.source.accounts();
        assert_eq!(all.committed.load(SeqCst), 80, "one of them fits, and either may be the one");
        assert_eq!((accounts.committed, accounts.peak, accounts.hard_refusals), (80, 80, 1));
    });
}

#[test]
fn a_request_that_can_not_succeed_refuses_no_other() {
    check(|| {
        let greedy = |a: &Accounting| assert!(!a.commit(usize::MAX));
        let modest = |a: &Accounting| {
            assert!(a.commit(30));
            a.source.uncommit(30);
            assert!(a.commit(50));
        };
        let all = together(Accounting::new(NO_LIMIT, 100), &[greedy, modest]);
        let accounts = all.source.accounts();
        assert_eq!((accounts.committed, accounts.peak, accounts.hard_refusals), (50, 50, 1));
    });
}

#[test]
fn a_crossing_is_told_once() {
    check(|| {
        let crosses = |a: &Accounting| {
            assert!(a.commit(80));
            a.listen();
        };
        let all = together(Accounting::new(100, NO_LIMIT), &[crosses, crosses]);
        assert_eq!((all.told.load(SeqCst), all.source.accounts().crossings), (1, 1));
    });
}

#[test]
fn falling_below_the_limit_and_crossing_it_at_once_leaves_no_crossing_untold() {
    check(|| {
        let before = Accounting::new(100, NO_LIMIT);
        assert!(before.commit(101));
        before.listen();
        let falls = |a: &Accounting| a.source.uncommit(60);
        let crosses = |a: &Accounting| {
            assert!(a.commit(60));
            a.listen();
        };
        let all = together(before, &[falls, crosses]);
        all.listen();
        let Accounts { peak, crossings, .. } = all.source.accounts();
        assert!(crossings == 1 || peak < 161 && crossings == 2, "up and down is no crossing");
        assert!(all.commit(1), "and this is a part of the crossing before");
        all.listen();
        assert_eq!(all.told.load(SeqCst), crossings);
    });
}

#[test]
fn a_crossing_that_is_told_while_the_memory_goes_is_over() {
    check(|| {
        let before = Accounting::new(100, NO_LIMIT);
        assert!(before.commit(20));
        let falls = |a: &Accounting| a.source.uncommit(20);
        let crosses = |a: &Accounting| {
            assert!(a.commit(90));
            a.listen();
        };
        let all = together(before, &[falls, crosses]);
        let earlier = u64::from(all.source.accounts().peak == 110);
        assert_eq!(all.told.load(SeqCst), earlier);
        assert!(all.commit(20));
        all.listen();
        assert_eq!(all.told.load(SeqCst), earlier + 1);
    });
}

#[test]
fn a_crossing_is_told_also_where_the_memory_is_gone_again() {
    check(|| {
        let passes = |a: &Accounting| {
            assert!(a.commit(80));
            a.listen();
            a.source.uncommit(80);
        };
        let all = together(Accounting::new(100, NO_LIMIT), &[passes, passes]);
        all.listen();
        let crossings = all.source.accounts().crossings;
        assert_eq!(all.told.load(SeqCst), crossings);
        assert!(all.commit(101), "and the next one is a crossing again");
        all.listen();
        assert_eq!(all.told.load(SeqCst), crossings + 1);
    });
}
