//! Faults: misuse of the heap that leaves no way to go on.
//! Owns: `Misuse`, `die`, the only abort in nearheap. Called by: whoever finds that what it was given is no block.
//!
//! F1: one `write(2)` of at most 256 bytes, no allocation, no lock, then SIGABRT; nothing unwinds.
//! F2: the line stays in a static, where a core dump shows it.
//! F3: a second fault while the first is being reported has no line, and waits for the abort of the first: for a second at
//!     most, since that may be in a `write` that nobody reads, or below the second on the same stack.

use crate::report::Line;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};
use nearheap_numa::os;

/// What was wrong with a block that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Misuse {
    /// The address was never the heap's, or no longer is.
    Foreign,
    /// The address is the heap's, but no block begins there.
    NotABlock,
    /// The granule at the address is free already.
    DoubleFree,
    /// A block begins there, of another size than the `Layout` says.
    WrongLayout,
}

impl Misuse {
    const fn words(self) -> &'static str {
        match self {
            Self::Foreign => "not a block of this heap",
            Self::NotABlock => "not a block start",
            Self::DoubleFree => "double free",
            Self::WrongLayout => "wrong layout: the block has another size",
        }
    }
}

/// A misuse and where it showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) misuse: Misuse,
    /// The address that came back.
    pub(crate) address: usize,
    /// Bytes of a block as the caller's `Layout` has it; 0 where the caller doesn't say.
    pub(crate) size: usize,
}

struct LastWords(UnsafeCell<Option<Line>>);
// SAFETY: written once, by the thread that set `REPORTING` first (F3); read by debuggers only.
unsafe impl Sync for LastWords {}

#[used]
static LAST_WORDS: LastWords = LastWords(UnsafeCell::new(None));
static REPORTING: AtomicBool = AtomicBool::new(false);

/// The value, or the end: for callers that have nobody to tell of a fault.
#[inline]
pub(crate) fn survive<T>(result: Result<T, Fault>) -> T {
    match result {
        Ok(value) => value,
        Err(fault) => die(fault),
    }
}

/// Says what happened and aborts.
#[cold]
#[inline(never)]
pub(crate) fn die(fault: Fault) -> ! {
    let mut line = Line::new();
    line.push(format_args!("nearheap: fatal: {}: ptr={:#x}", fault.misuse.words(), fault.address));
    if fault.size != 0 {
        line.push(format_args!(" class={}", fault.size));
    }
    line.push(format_args!(" node=0"));
    end(line)
}

/// Writes the last line and aborts.
#[cold]
#[inline(never)]
pub(crate) fn end(mut line: Line) -> ! {
    if REPORTING.swap(true, Ordering::Relaxed) {
        (0..1000).for_each(|_| os::nap());
    } else {
        os::write(2, line.finish());
        // SAFETY: the swap above lets one thread in, once.
        unsafe { *LAST_WORDS.0.get() = Some(line) };
    }
    os::abort()
}
