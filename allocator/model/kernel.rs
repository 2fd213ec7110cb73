//! A kernel for models: memory that is there before the first interleaving and is handed out anew in each.
//! Owns: `Kernel`. Called by: the models of the heap.
//!
//! It makes no system call for a mapping, and the same calls get the same addresses, since loom repeats what it has seen.
//! An address that was unmapped is the first to be mapped again. Nobody writes to blocks, so segments stay zero.

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use nearheap_numa::os::{Errno, Linux, Os};
use std::sync::Mutex;

const MIB: usize = 1 << 20;
/// Mappings under a MiB are metadata; the others begin at multiples of this.
const STEP: usize = 4 * MIB;
const METADATA: usize = STEP;
const ALL: usize = 16 * STEP;

/// Memory for one interleaving after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory(usize);

impl Memory {
    pub(crate) fn new() -> Self {
        let at = Linux.map(0, ALL + STEP).unwrap();
        at.expose_provenance();
        Self((at.as_ptr() as usize).next_multiple_of(STEP))
    }
}

/// The kernel of one interleaving.
#[derive(Debug)]
pub(crate) struct Kernel {
    metadata: AtomicUsize,
    next: AtomicUsize,
    end: usize,
    free: Mutex<Vec<(usize, usize)>>,
}

impl Kernel {
    pub(crate) fn new(Memory(base): Memory) -> Self {
        Self {
            metadata: AtomicUsize::new(base),
            next: AtomicUsize::new(base + METADATA),
            end: base + ALL,
            free: Mutex::new(Vec::new()),
        }
    }

    fn again(&self, len: usize) -> Option<usize> {
        let mut free = self.free.lock().unwrap();
        let last = free.iter().rposition(|&(_, l)| l == len)?;
        Some(free.remove(last).0)
    }
}

// SAFETY: the memory is mapped, handed out once until it is unmapped, and cleared when it is metadata (else it is zero).
unsafe impl Os for Kernel {
    fn page_size(&self) -> usize {
        4096
    }

    fn hint(&self) -> usize {
        0
    }

    fn now_ms(&self) -> u64 {
        1
    }

    fn map(&self, _: usize, len: usize) -> Result<NonNull<u8>, Errno> {
        let at = if len < MIB {
            let at = self.metadata.fetch_add(len, SeqCst);
            // SAFETY: inside the memory, handed out for the first time in this interleaving.
            unsafe { ptr::with_exposed_provenance_mut::<u8>(at).write_bytes(0, len) };
            at
        } else {
            let step = len.next_multiple_of(STEP);
            self.again(len).unwrap_or_else(|| self.next.fetch_add(step, SeqCst))
        };
        assert!(at + len <= self.end, "the model needs more memory");
        Ok(NonNull::new(ptr::with_exposed_provenance_mut(at)).unwrap())
    }

    unsafe fn unmap(&self, at: NonNull<u8>, len: usize) -> Result<(), Errno> {
        self.free.lock().unwrap().push((at.as_ptr() as usize, len));
        Ok(())
    }

    unsafe fn purge(&self, at: NonNull<u8>, len: usize) -> Result<(), Errno> {
        // SAFETY: the caller's promise.
        unsafe { Linux.purge(at, len) }
    }

    unsafe fn advise_huge(&self, _: NonNull<u8>, _: usize, _: bool) -> Result<(), Errno> {
        Ok(())
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
