//! Atomics, cells and sleep for the parts whose interleavings are model-checked; under `--cfg loom` they are loom's.
//! Owns: `UnsafeCell`, `Futex`, `Late`. Called by: everything that threads share.

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

#[cfg(loom)]
pub(crate) use self::modelled::Futex;
#[cfg(loom)]
pub(crate) use loom::cell::UnsafeCell;

/// A cell whose every use says whether it reads or writes, which loom checks.
#[cfg(not(loom))]
#[derive(Debug)]
pub(crate) struct UnsafeCell<T>(core::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(core::cell::UnsafeCell::new(value))
    }

    #[inline(always)]
    pub(crate) fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
        read(self.0.get())
    }

    #[inline(always)]
    pub(crate) fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
        write(self.0.get())
    }
}

/// A word that threads can sleep on.
#[cfg(not(loom))]
#[derive(Debug)]
pub(crate) struct Futex(AtomicU32);

#[cfg(not(loom))]
impl Futex {
    pub(crate) const fn new(value: u32) -> Self {
        Self(AtomicU32::new(value))
    }

    /// Sleeps while the word is `expected`; may return early.
    pub(crate) fn wait(&self, expected: u32) {
        crate::os::futex_wait(&self.0, expected);
    }

    /// Wakes one thread that sleeps here.
    pub(crate) extern "C" fn wake_one(&self) {
        crate::os::futex_wake_one(&self.0);
    }
}

impl core::ops::Deref for Futex {
    type Target = AtomicU32;
    #[inline(always)]
    fn deref(&self) -> &AtomicU32 {
        &self.0
    }
}

#[cfg(loom)]
mod modelled {
    use super::{AtomicU32, Ordering};
    use loom::sync::{Condvar, Mutex};
    use std::sync::PoisonError;

    /// The kernel's promise: to compare and fall asleep is one step for those who wake. A wake that finds nobody is lost,
    /// and whoever sleeps for ever is a deadlock to loom.
    #[derive(Debug)]
    pub(crate) struct Futex(pub(super) AtomicU32, Mutex<()>, Condvar);

    impl Futex {
        pub(crate) fn new(value: u32) -> Self {
            Self(AtomicU32::new(value), Mutex::new(()), Condvar::new())
        }

        pub(crate) fn wait(&self, expected: u32) {
            let bucket = self.1.lock().unwrap_or_else(PoisonError::into_inner);
            if self.0.load(Ordering::Relaxed) == expected {
                drop(self.2.wait(bucket));
            }
        }

        pub(crate) fn wake_one(&self) {
            drop(self.1.lock());
            self.2.notify_one();
        }
    }
}

/// Declares a function that is `const`, except under loom, whose atomics cannot be made in constants.
#[macro_export]
macro_rules! const_unless_loom {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($args:tt)*) -> $ret:ty $body:block) => {
        $(#[$meta])*
        #[cfg(not(loom))]
        $vis const fn $name($($args)*) -> $ret $body

        $(#[$meta])*
        #[cfg(loom)]
        $vis fn $name($($args)*) -> $ret $body
    };
}

/// A number that is `usize::MAX` until it is set. It is kept inverted: the large static that it is a part of is then all
/// zeros, which takes no room in the program's file and no memory until it is touched.
#[derive(Debug)]
pub struct Late(AtomicUsize);

impl Late {
    crate::const_unless_loom! {
        /// Not set.
        pub fn new() -> Self {
            Self(AtomicUsize::new(0))
        }
    }

    /// The number, or `usize::MAX`.
    #[inline]
    pub fn get(&self) -> usize {
        !self.0.load(Ordering::Relaxed)
    }

    /// The number, or `default` if it was not set.
    #[inline]
    pub fn get_or(&self, default: usize) -> usize {
        match self.get() {
            usize::MAX => default,
            number => number,
        }
    }

    /// Sets the number.
    pub fn set(&self, number: usize) {
        self.0.store(!number, Ordering::Relaxed);
    }
}

impl Default for Late {
    fn default() -> Self {
        Self::new()
    }
}
