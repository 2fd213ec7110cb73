//! A lock for short critical sections inside an allocator.
//! Owns: `Lock` and its `Guard`. Called by: everything in nearheap that is shared.
//!
//! It never allocates, never poisons, is 4 bytes beside its value, and can be held across `fork`.
//!
//! | state | meaning | to |
//! |---|---|---|
//! | `FREE` | nobody is inside | `HELD` by an acquire |
//! | `HELD` | one thread is inside, nobody sleeps | `FREE` by the release; `AWAITED` by a thread that will sleep |
//! | `AWAITED` | one thread is inside, others may sleep | `FREE` by the release, which wakes one sleeper |
//!
//! L1: whoever moved the state from `FREE` is alone inside until it stores `FREE`.
//! L2: a thread sleeps only while the state is `AWAITED`, so a release that finds `HELD` owes no wake.
//! The release store pairs with the acquire exchange of the next holder.

use crate::sync::{Futex, Ordering, UnsafeCell};
use core::ops::{Deref, DerefMut};

const FREE: u32 = 0;
const HELD: u32 = 1;
const AWAITED: u32 = 2;

/// Looks at a held lock this many times before sleeping: about the length of a critical section here.
const SPINS: u32 = if cfg!(loom) { 1 } else { 100 };

/// A value that one thread at a time may use.
#[derive(Debug)]
pub struct Lock<T> {
    state: Futex,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached only through a guard, and L1 makes the guard's thread the only one inside.
unsafe impl<T: Send> Sync for Lock<T> {}
// SAFETY: moving a lock moves its value.
unsafe impl<T: Send> Send for Lock<T> {}

impl<T> Lock<T> {
    crate::const_unless_loom! {
        /// A free lock around `value`.
        pub fn new(value: T) -> Self {
            Self { state: Futex::new(FREE), value: UnsafeCell::new(value) }
        }
    }

    /// Waits until this thread is alone inside.
    #[inline]
    pub fn lock(&self) -> Guard<'_, T> {
        let contended = !self.grab();
        if contended {
            wait(&self.state);
        }
        Guard { lock: self, contended }
    }

    /// Enters if nobody is inside.
    #[inline]
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        // Lazily: a guard that is made and dropped would open the lock of the thread inside.
        self.grab().then(|| Guard { lock: self, contended: false })
    }

    #[inline]
    fn grab(&self) -> bool {
        grab(&self.state)
    }

    #[inline]
    fn release(&self) {
        release(&self.state);
    }

    /// Enters and stays inside without a guard: for `fork`, whose handlers enter in one function and leave in another.
    pub fn hold(&self) {
        core::mem::forget(self.lock());
    }

    /// Leaves a lock that [`hold`](Self::hold) entered.
    ///
    /// # Safety
    /// This thread (or, after `fork`, the thread that it is a copy of) called `hold` and hasn't left since.
    pub unsafe fn let_go(&self) {
        self.release();
    }

    /// The value, where the borrow proves that no other thread has it.
    pub fn get_mut(&mut self) -> &mut T {
        // SAFETY: the borrow is the only one.
        self.value.with_mut(|value| unsafe { &mut *value })
    }
}

#[inline]
fn grab(state: &Futex) -> bool {
    state.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_ok()
}

/// Leaves a lock. One copy for all of them, of which the compiler knows that it doesn't unwind.
#[inline(never)]
extern "C" fn release(state: &Futex) {
    if state.swap(FREE, Ordering::Release) == AWAITED {
        state.wake_one();
    }
}

/// Enters a lock that is held. The same code for whatever the lock protects.
#[cold]
#[inline(never)]
extern "C" fn wait(state: &Futex) {
    for _ in 0..SPINS {
        if state.load(Ordering::Relaxed) == FREE && grab(state) {
            return;
        }
        core::hint::spin_loop();
    }
    // From here on this thread leaves `AWAITED` behind: it can't know whether others sleep (L2).
    while state.swap(AWAITED, Ordering::Acquire) != FREE {
        state.wait(AWAITED);
    }
}

/// The right to use the value, until dropped.
#[derive(Debug)]
pub struct Guard<'a, T> {
    lock: &'a Lock<T>,
    contended: bool,
}

impl<T> Guard<'_, T> {
    /// Whether another thread was inside when this one came.
    #[inline]
    pub fn was_contended(&self) -> bool {
        self.contended
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this guard's thread is alone inside (L1).
        self.lock.value.with(|value| unsafe { &*value })
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this guard's thread is alone inside (L1), and the guard is borrowed alone.
        self.lock.value.with_mut(|value| unsafe { &mut *value })
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.lock.release();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;
    use std::vec::Vec;

    #[test]
    fn additions_by_many_threads_are_all_there() {
        let total = Arc::new(Lock::new(0_u64));
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let total = Arc::clone(&total);
                thread::spawn(move || {
                    for _ in 0..20_000 {
                        *total.lock() += 1;
                    }
                })
            })
            .collect();
        for t in threads {
            t.join().unwrap();
        }
        assert_eq!(*total.lock(), 160_000);
    }

    #[test]
    fn a_held_lock_refuses_and_says_that_it_was_contended() {
        let lock = Arc::new(Lock::new(()));
        let guard = lock.lock();
        assert!(!guard.was_contended());
        assert!(lock.try_lock().is_none());
        let other = Arc::clone(&lock);
        let waiter = thread::spawn(move || other.lock().was_contended());
        while lock.state.load(Ordering::Relaxed) != AWAITED {
            thread::yield_now();
        }
        drop(guard);
        assert!(waiter.join().unwrap());
    }

    #[test]
    fn hold_and_let_go_bracket_like_a_guard() {
        let lock = Lock::new(());
        lock.hold();
        assert!(lock.try_lock().is_none());
        // SAFETY: held two lines above.
        unsafe { lock.let_go() };
        assert!(lock.try_lock().is_some());
    }
}
