//! A version: tells a reader on another thread whether what it read belongs together.
//! Owns: `Version`. Called by: `cache`.
//!
//! | number | meaning | to |
//! |---|---|---|
//! | even | what it guards is whole | odd, when its thread begins a change |
//! | odd | it is being changed | the next even number, when that is done |
//!
//! V1: one thread makes the changes, and what it guards are atomics, since readers look while they change.
//! V2: whoever finds the same even number before and after looking has seen no part of a change.

use nearheap_numa::const_unless_loom;
use nearheap_numa::sync::{AtomicU64, Ordering, fence};

/// A version stays odd for a few instructions; a thread that loses its CPU there, or that died there in the parent of
/// this process, must not hold a reader up for ever.
const LOOKS: u32 = if cfg!(loom) { 2 } else { 10_000 };

/// A number that changes with what it guards.
#[derive(Debug)]
pub(crate) struct Version(AtomicU64);

impl Version {
    const_unless_loom! {
        /// The version of what is whole.
        pub(crate) fn new() -> Self {
            Self(AtomicU64::new(0))
        }
    }

    /// Begins a change that the next `change` ends, on the one thread that makes them (V1).
    #[inline]
    pub(crate) fn begin(&self) -> u64 {
        let odd = self.0.load(Ordering::Relaxed) | 1;
        self.0.store(odd, Ordering::Relaxed);
        // Pairs with the acquire fence of `look`: whoever sees a part of the change sees the odd number too.
        fence(Ordering::Release);
        odd
    }

    /// Makes a change, or the rest of one, on the one thread that does (V1).
    #[inline]
    pub(crate) fn change(&self, change: impl FnOnce()) {
        let odd = self.begin();
        change();
        // Pairs with the acquire load of `look`: whoever sees the even number sees all of the change.
        self.0.store(odd.wrapping_add(1), Ordering::Release);
    }

    /// What `look` sees, and whether it is whole (V2); parts of a change only after many looks at one that doesn't end.
    #[inline]
    pub(crate) fn look<T>(&self, mut look: impl FnMut() -> T) -> (T, bool) {
        let mut left = LOOKS;
        loop {
            let before = self.0.load(Ordering::Acquire);
            let seen = look();
            fence(Ordering::Acquire);
            let whole = before & 1 == 0 && self.0.load(Ordering::Relaxed) == before;
            left -= 1;
            if whole || left == 0 {
                return (seen, whole);
            }
            core::hint::spin_loop();
        }
    }

    /// Says that a change which was begun is not going to end, and what is there now is whole.
    pub(crate) fn abandon(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}
