//! What C programs ask of their allocator beside blocks.
//! Owns: `malloc_trim`, `mallinfo`, `mallinfo2`, `malloc_stats`, `mallopt`. Called by: programs that know glibc.

use core::ffi::c_int;
use core::fmt;

/// Gives everything free back to the system. 1 if anything was; what is asked to be kept is not.
#[unsafe(no_mangle)]
pub extern "C" fn malloc_trim(_keep: usize) -> c_int {
    c_int::from(nearheap::purge() > 0)
}

/// Accepted and ignored: none of glibc's parameters has a meaning here. The environment has nearheap's own.
#[unsafe(no_mangle)]
pub extern "C" fn mallopt(_parameter: c_int, _value: c_int) -> c_int {
    1
}

/// As glibc's `struct mallinfo2`, in the words of a heap that has no arenas, bins or top.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Info<T> {
    /// Bytes mapped for blocks other than huge ones.
    arena: T,
    /// Free blocks in caches and magazines.
    ordblks: T,
    smblks: T,
    /// Huge blocks, and their bytes.
    hblks: T,
    hblkhd: T,
    usmblks: T,
    fsmblks: T,
    /// Bytes in use, huge blocks included.
    uordblks: T,
    /// Bytes that are committed and not in use.
    fordblks: T,
    /// Bytes that could be given back.
    keepcost: T,
}

fn info<T: Copy + Default + TryFrom<u64>>(most: T) -> Info<T> {
    let stats = nearheap::stats();
    let number = |n: u64| T::try_from(n).unwrap_or(most);
    let huge_bytes = stats.huge.allocated_bytes.saturating_sub(stats.huge.freed_bytes);
    let cached: u64 = stats.classes().iter().map(|c| c.cached_blocks).sum();
    Info {
        arena: number(stats.system.mapped_bytes.saturating_sub(huge_bytes)),
        ordblks: number(cached),
        hblks: number(stats.huge.allocs.saturating_sub(stats.huge.frees)),
        hblkhd: number(huge_bytes),
        uordblks: number(stats.totals.in_use_bytes),
        fordblks: number(stats.system.committed_bytes.saturating_sub(stats.totals.in_use_bytes)),
        keepcost: number(stats.system.retained_bytes),
        ..Info::default()
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn mallinfo2() -> Info<usize> {
    info(usize::MAX)
}

/// The older one, whose numbers stop at what an `int` holds.
#[unsafe(no_mangle)]
pub extern "C" fn mallinfo() -> Info<c_int> {
    info(c_int::MAX)
}

/// Gathers what is written into larger pieces for standard error.
struct Stderr {
    buffer: [u8; 1024],
    len: usize,
}

impl Stderr {
    fn flush(&mut self) {
        let mut rest = self.buffer.get(..self.len).unwrap_or_default();
        while !rest.is_empty() {
            // SAFETY: `rest` is valid to read for its length.
            let wrote = unsafe { libc::write(2, rest.as_ptr().cast(), rest.len()) };
            match usize::try_from(wrote) {
                Ok(n) if n > 0 => rest = rest.get(n..).unwrap_or_default(),
                _ => break,
            }
        }
        self.len = 0;
    }
}

impl fmt::Write for Stderr {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.as_bytes().chunks(self.buffer.len()) {
            if self.len + part.len() > self.buffer.len() {
                self.flush();
            }
            if let Some(to) = self.buffer.get_mut(self.len..self.len + part.len()) {
                to.copy_from_slice(part);
                self.len += part.len();
            }
        }
        Ok(())
    }
}

/// The statistics as text on standard error.
#[unsafe(no_mangle)]
pub extern "C" fn malloc_stats() {
    let mut out = Stderr { buffer: [0; 1024], len: 0 };
    // The writer never errs; where standard error is closed there is nobody to tell.
    let _ = nearheap::stats().write_text(&mut out, nearheap::threads);
    out.flush();
}
