//! A kernel that refuses on command: the real one behind a script.
//! Owns: `FakeOs`. Called by: tests, which fail the n-th call, every call, or see an OS page of another size.
//!
//! It knows what is mapped: a call on anything else ends the test, and what is left is unmapped with it.

use crate::os::{Errno, Linux, Os};
use core::ptr::{NonNull, with_exposed_provenance_mut};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Mapped ranges: from where to where, as they were mapped and cut.
#[derive(Debug, Default)]
struct Ranges(BTreeMap<usize, usize>);

impl Ranges {
    fn add(&mut self, at: NonNull<u8>, len: usize) {
        self.0.insert(at.as_ptr() as usize, at.as_ptr() as usize + len);
    }

    /// The mapping that all of `[at, at + len)` is in.
    fn around(&self, at: NonNull<u8>, len: usize) -> (usize, usize) {
        let at = at.as_ptr() as usize;
        let found = self.0.range(..=at).next_back().map(|(&from, &to)| (from, to));
        let (from, to) = found.unwrap_or_default();
        assert!(len > 0 && at + len <= to, "{at:#x} and {len} bytes on: not mapped as a whole");
        (from, to)
    }

    fn remove(&mut self, at: NonNull<u8>, len: usize) {
        let (from, to) = self.around(at, len);
        let (at, end) = (at.as_ptr() as usize, at.as_ptr() as usize + len);
        self.0.remove(&from);
        if from < at {
            self.0.insert(from, at);
        }
        if end < to {
            self.0.insert(end, to);
        }
    }
}

/// The real kernel with a script of refusals.
#[derive(Debug)]
pub struct FakeOs {
    page: usize,
    calls: AtomicUsize,
    fail_at: AtomicUsize,
    fail_all: AtomicBool,
    fail_late: AtomicBool,
    ranges: Mutex<Ranges>,
    now: AtomicU64,
}

impl Drop for FakeOs {
    fn drop(&mut self) {
        for (&from, &to) in &self.ranges().0 {
            if let Some(at) = NonNull::new(with_exposed_provenance_mut(from)) {
                // SAFETY: mapped here; whoever used it is gone with this value. A refusal leaves it to the process's end.
                let _ = unsafe { Linux.unmap(at, to - from) };
            }
        }
    }
}

impl Default for FakeOs {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeOs {
    /// A kernel that refuses nothing, with the real page size, at time 1.
    pub fn new() -> Self {
        Self::with_pages(Linux.page_size())
    }

    /// A kernel whose OS page is `page` bytes: a multiple of the real one.
    pub fn with_pages(page: usize) -> Self {
        Self {
            page,
            calls: AtomicUsize::new(0),
            fail_at: AtomicUsize::new(0),
            fail_all: AtomicBool::new(false),
            fail_late: AtomicBool::new(false),
            ranges: Mutex::default(),
            now: AtomicU64::new(1),
        }
    }

    /// Refuses the `n`-th call from now, counted from 1; 0 for none.
    pub fn fail_at(&self, n: usize) {
        self.calls.store(0, SeqCst);
        self.fail_at.store(n, SeqCst);
    }

    /// Refuses every call, or none.
    pub fn fail_all(&self, yes: bool) {
        self.fail_all.store(yes, SeqCst);
    }

    /// Refuses every move onto a place, or none, as late as the kernel may: what was mapped at the place is gone then.
    pub fn fail_late(&self, yes: bool) {
        self.fail_late.store(yes, SeqCst);
    }

    /// Calls since the script began.
    pub fn calls(&self) -> usize {
        self.calls.load(SeqCst)
    }

    /// Bytes that are mapped now.
    pub fn mapped(&self) -> usize {
        self.ranges().0.iter().map(|(from, to)| to - from).sum()
    }

    /// Lets `ms` milliseconds go by.
    pub fn pass_ms(&self, ms: u64) {
        self.now.fetch_add(ms, SeqCst);
    }

    fn ranges(&self) -> MutexGuard<'_, Ranges> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Maps at a multiple of this kernel's page, by cutting off the ends.
    fn place(&self, hint: usize, len: usize) -> Result<NonNull<u8>, Errno> {
        let extra = self.page - Linux.page_size();
        let at = Linux.map(hint, len + extra)?;
        let head = (at.as_ptr() as usize).wrapping_neg() % self.page;
        // SAFETY: both ends are inside the mapping made above.
        unsafe {
            if head > 0 {
                Linux.unmap(at, head)?;
            }
            if extra > head {
                Linux.unmap(at.add(head + len), extra - head)?;
            }
            Ok(at.add(head))
        }
    }

    fn script(&self) -> Result<(), Errno> {
        let n = self.calls.fetch_add(1, SeqCst) + 1;
        if self.fail_all.load(SeqCst) || n == self.fail_at.load(SeqCst) {
            return Err(Errno(libc::ENOMEM));
        }
        Ok(())
    }
}

// SAFETY: what isn't refused is the real kernel's answer, at multiples of the larger page.
unsafe impl Os for FakeOs {
    fn page_size(&self) -> usize {
        self.page
    }

    fn hint(&self) -> usize {
        0
    }

    fn now_ms(&self) -> u64 {
        self.now.load(SeqCst)
    }

    fn map(&self, hint: usize, len: usize) -> Result<NonNull<u8>, Errno> {
        self.script()?;
        assert_eq!(len % self.page, 0, "a mapping of broken pages");
        let mut ranges = self.ranges();
        let at = self.place(hint, len)?;
        at.as_ptr().expose_provenance();
        ranges.add(at, len);
        Ok(at)
    }

    unsafe fn unmap(&self, at: NonNull<u8>, len: usize) -> Result<(), Errno> {
        self.script()?;
        assert_eq!((at.as_ptr() as usize | len) % self.page, 0, "broken pages");
        let mut ranges = self.ranges();
        ranges.around(at, len);
        // SAFETY: the caller's promise.
        unsafe { Linux.unmap(at, len)? };
        ranges.remove(at, len);
        Ok(())
    }

    unsafe fn purge(&self, at: NonNull<u8>, len: usize) -> Result<(), Errno> {
        self.script()?;
        assert_eq!((at.as_ptr() as usize | len) % self.page, 0, "broken pages");
        self.ranges().around(at, len);
        // SAFETY: the caller's promise.
        unsafe { Linux.purge(at, len) }
    }

    unsafe fn advise_huge(&self, at: NonNull<u8>, len: usize) -> Result<(), Errno> {
        self.script()?;
        self.ranges().around(at, len);
        // SAFETY: the caller's promise.
        unsafe { Linux.advise_huge(at, len) }
    }

    unsafe fn remap(
        &self,
        at: NonNull<u8>,
        old: usize,
        new: usize,
        onto: Option<NonNull<u8>>,
    ) -> Result<NonNull<u8>, Errno> {
        self.script()?;
        assert_eq!((at.as_ptr() as usize | old | new) % self.page, 0, "broken pages");
        let mut ranges = self.ranges();
        ranges.around(at, old);
        if let Some(onto) = onto {
            ranges.around(onto, new);
            if self.fail_late.load(SeqCst) {
                // SAFETY: the caller's promise: nobody uses the place.
                unsafe { Linux.unmap(onto, new)? };
                ranges.remove(onto, new);
                return Err(Errno(libc::ENOMEM));
            }
        }
        // The real kernel moves to multiples of its own page.
        let place = match onto {
            None if new > old && self.page > Linux.page_size() => Some(self.place(0, new)?),
            onto => onto,
        };
        // SAFETY: the caller's promise; a place made here is nobody's.
        let moved = unsafe { Linux.remap(at, old, new, place)? };
        moved.as_ptr().expose_provenance();
        ranges.remove(at, old);
        if let Some(onto) = onto {
            ranges.remove(onto, new);
        }
        ranges.add(moved, new);
        Ok(moved)
    }
}
