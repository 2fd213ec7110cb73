//! What other Unix systems have in place of Linux's calls: plain mappings are all that the heap needs of them.
//! Called by: `os`, for targets other than Linux. It is compiled for macOS in `tests/targets/run`, and has not been run.

use super::{Errno, keeping_errno, mapping_or_errno, nap};
use crate::sync::AtomicU32;
use core::ptr::NonNull;

pub(super) const CLOCK: libc::clockid_t = libc::CLOCK_MONOTONIC;

/// This thread's `errno`.
pub(super) fn errno_place() -> *mut libc::c_int {
    // SAFETY: a valid pointer to this thread's `errno`.
    unsafe { libc::__error() }
}

/// A new mapping in place of the old one: elsewhere MADV_DONTNEED promises nothing.
///
/// # Safety
/// As for `Os::purge`.
pub(super) unsafe fn purge(at: NonNull<u8>, len: usize) -> Result<(), Errno> {
    let rw = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_FIXED;
    // SAFETY: the caller owns the range and needs none of its contents.
    mapping_or_errno(|| unsafe { libc::mmap(at.as_ptr().cast(), len, rw, flags, -1, 0) }).map(drop)
}

/// Sleeps while the word may be `expected`.
pub(crate) fn futex_wait(_: &AtomicU32, _: u32) {
    nap();
}

/// Whoever sleeps wakes by itself.
pub(crate) fn futex_wake_one(_: &AtomicU32) {}

/// The calling thread, as a number.
pub fn tid() -> u32 {
    // SAFETY: no preconditions.
    unsafe { libc::pthread_self() as usize as u32 }
}

/// CPUs that there are. At least 1.
pub fn cpus() -> usize {
    // SAFETY: no preconditions.
    let n = keeping_errno(|&n| n < 1, || unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) });
    n.map_or(1, |n| n as usize)
}

/// Whether this program runs with more rights than its user has.
pub fn is_privileged() -> bool {
    // SAFETY: no preconditions.
    unsafe { libc::geteuid() != libc::getuid() || libc::getegid() != libc::getgid() }
}
