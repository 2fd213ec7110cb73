//! What a program's tests ask: how much does this code allocate?
//! Owns: `Usage`, `Tally`, `Team`. Called by: the program's tests; the cold paths of `global` on a thread that is watched.
//!
//! While a thread is watched, its pointer is that of a sentinel, so that every operation takes the cold path. There it
//! steps out, does the same operation as if nobody watched, counts it, and steps in again. Whoever doesn't measure pays
//! nothing: the fast path has no test for it.
//!
//! G1: `WATCH` of a thread is null exactly while the thread isn't watched or has stepped out.
//! G2: a tally outlives its being watched, since both end with the function that made it.

use crate::cache::Cache;
use crate::class::Slot;
use crate::global::NearHeap;
use crate::start::HEAP;
use crate::tls::{Inside, Server};
use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use core::fmt;
use core::hint::black_box;
use core::ptr;
use core::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::thread::{self, Scope, ScopedJoinHandle};

#[cfg(test)]
mod trial;
#[cfg(test)]
pub(crate) use trial::*;

pub use crate::{assert_allocs, assert_no_leaks};

/// What a piece of code allocated. Bytes are those of the size classes, as everywhere in nearheap: a block for 20 bytes
/// counts as 32. Headers don't count, so a build with debug assertions gives the numbers of a release.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Blocks that were allocated. One that grew or shrank into another size class counts as freed and allocated.
    pub allocations: u64,
    /// Blocks that were freed, whoever allocated them.
    pub frees: u64,
    /// Bytes of the blocks that were allocated.
    pub bytes: u64,
    /// Bytes of the blocks that were freed.
    pub freed_bytes: u64,
    /// The most bytes that were in use at any moment, beyond what was in use at the beginning.
    pub peak_bytes: u64,
}

impl Usage {
    /// Whether more blocks or bytes were allocated than freed.
    pub fn leaks(&self) -> bool {
        self.allocations > self.frees || self.bytes > self.freed_bytes
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { allocations, frees, bytes, freed_bytes, peak_bytes } = self;
        write!(
            f,
            "{allocations} allocations of {bytes} bytes, {frees} frees of {freed_bytes} bytes, peak {peak_bytes} bytes"
        )
    }
}

/// Counts of threads that are watched together; those of an inner measurement count for the outer ones too.
#[derive(Debug)]
struct Tally {
    allocations: AtomicU64,
    frees: AtomicU64,
    bytes: AtomicU64,
    freed_bytes: AtomicU64,
    in_use: AtomicI64,
    peak: AtomicI64,
    outer: *const Tally,
}

// SAFETY: counters, and a pointer that is only followed while what it points to lives (G2).
unsafe impl Sync for Tally {}

impl Tally {
    /// Inside what watches this thread already.
    fn new() -> Self {
        Self {
            allocations: AtomicU64::new(0),
            frees: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            freed_bytes: AtomicU64::new(0),
            in_use: AtomicI64::new(0),
            peak: AtomicI64::new(0),
            outer: WATCH.get().0,
        }
    }

    fn usage(&self) -> Usage {
        Usage {
            allocations: self.allocations.load(Relaxed),
            frees: self.frees.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            freed_bytes: self.freed_bytes.load(Relaxed),
            peak_bytes: self.peak.load(Relaxed).unsigned_abs(),
        }
    }

    /// Counts a block of this layout here and in all that is around.
    fn count(tally: *const Self, layout: Layout, alloc: bool) {
        let bytes = HEAP.usable(layout) as u64;
        let mut next = tally;
        // SAFETY: null, or a tally that lives (G2).
        while let Some(tally) = unsafe { next.as_ref() } {
            let (count, sum, more) = if alloc {
                (&tally.allocations, &tally.bytes, bytes.cast_signed())
            } else {
                (&tally.frees, &tally.freed_bytes, -bytes.cast_signed())
            };
            count.fetch_add(1, Relaxed);
            sum.fetch_add(bytes, Relaxed);
            tally.peak.fetch_max(tally.in_use.fetch_add(more, Relaxed) + more, Relaxed);
            next = tally.outer;
        }
    }
}

std::thread_local! {
    /// Who counts, and what the thread's pointer was before.
    static WATCH: Cell<(*const Tally, *const Cache)> = const { Cell::new((ptr::null(), ptr::null())) };
}

static WATCHER: Server = Server { alloc, dealloc, resized, behind: || WATCH.get().1 };

/// Watches the calling thread until dropped, or lets it step out until then.
struct Watch(*const Tally);

impl Watch {
    fn begin(tally: *const Tally) -> Self {
        Self(Self::set(tally))
    }

    fn set(tally: *const Tally) -> *const Tally {
        // A handler sees all of it or nothing.
        let inside = Inside::enter();
        let (before, behind) = WATCH.get();
        match (before.is_null(), tally.is_null()) {
            (true, false) => WATCH.set((tally, inside.watch(&WATCHER))),
            (false, true) => {
                inside.unwatch(behind);
                WATCH.set((tally, ptr::null()));
            }
            _ => WATCH.set((tally, behind)),
        }
        before
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        Self::set(self.0);
    }
}

/// Does something as if nobody watched; who does.
#[inline]
fn stepped_out<T>(work: impl FnOnce() -> T) -> (T, *const Tally) {
    let out = Watch::begin(ptr::null());
    (work(), out.0)
}

/// Does something that isn't counted.
fn uncounted<T>(work: impl FnOnce() -> T) -> T {
    stepped_out(work).0
}

/// An allocation of a thread that is watched.
fn alloc(heap: &NearHeap, layout: Layout, zeroed: bool) -> *mut u8 {
    let (block, tally) = stepped_out(|| {
        // SAFETY: no size is asked for that the caller didn't ask for.
        unsafe { if zeroed { heap.alloc_zeroed(layout) } else { heap.alloc(layout) } }
    });
    if !block.is_null() {
        Tally::count(tally, layout, true);
    }
    block
}

/// A free of a thread that is watched.
///
/// # Safety
/// As for `GlobalAlloc::dealloc`.
unsafe fn dealloc(heap: &NearHeap, block: *mut u8, layout: Layout) {
    // SAFETY: the caller's promise.
    let ((), tally) = stepped_out(|| unsafe { heap.dealloc(block, layout) });
    Tally::count(tally, layout, false);
}

/// Counts a block of a thread that may be watched, which came from somewhere else than `global`, or went there.
pub(crate) fn passed(layout: Layout, alloc: bool) {
    Tally::count(WATCH.get().0, layout, alloc);
}

/// Counts a block of a thread that is watched, which was made one of `new` bytes without being moved by anybody but the
/// kernel.
fn resized(old: Layout, new: usize) {
    let Ok(new) = Layout::from_size_align(new, old.align()) else { return };
    // The heap counts nothing where a block keeps its class or, if it is huge, its length.
    let stays = match (Slot::of_layout(old), Slot::of_layout(new)) {
        (None, None) => HEAP.usable(old) == HEAP.usable(new),
        (from, to) => from == to,
    };
    if !stays {
        Tally::count(WATCH.get().0, old, false);
        Tally::count(WATCH.get().0, new, true);
    }
}

/// Whether what the program allocates is counted here.
fn is_global() -> bool {
    // Not a part of what is around: it is nothing that the program did.
    let probe = Tally { outer: ptr::null(), ..Tally::new() };
    let _watch = Watch::begin(&raw const probe);
    let layout = Layout::new::<u64>();
    // SAFETY: the layout has a size; the block is freed once.
    unsafe { std::alloc::dealloc(black_box(std::alloc::alloc(black_box(layout))), layout) };
    probe.allocations.load(Relaxed) > 0
}

#[track_caller]
#[allow(clippy::panic, reason = "how a test is told that it can't be right")]
fn need_global() {
    if !is_global() {
        panic!(
            "nearheap::testing counts what nearheap serves, and nearheap is not the global allocator of this program: \
             declare `#[global_allocator] static GLOBAL: nearheap::NearHeap = nearheap::NearHeap::new();` in the test"
        );
    }
}

/// Runs `code` and says what the calling thread allocated and freed meanwhile; other threads don't count, also those that
/// `code` starts: see [`measure_with_threads`]. Every operation costs some 200 instructions more meanwhile, and nothing at
/// any other time. The measurements of several threads, and one inside of another, don't disturb each other.
///
/// # Panics
/// Where nearheap is not the program's global allocator.
///
/// ```
/// # #[global_allocator] static GLOBAL: nearheap::NearHeap = nearheap::NearHeap::new();
/// # fn main() {
/// let (used, text) = nearheap::testing::measure(|| {
///     let parts = vec![String::from("near"), String::from("heap")];
///     parts.concat()
/// });
/// assert_eq!((used.allocations, used.frees), (4, 3));
/// assert_eq!((used.bytes, used.freed_bytes), (48 + 3 * 16, 48 + 2 * 16));
/// assert_eq!(used.peak_bytes, 48 + 3 * 16);
/// # drop(text);
/// # }
/// ```
#[track_caller]
pub fn measure<R>(code: impl FnOnce() -> R) -> (Usage, R) {
    need_global();
    let tally = Tally::new();
    let watch = Watch::begin(&raw const tally);
    let result = code();
    drop(watch);
    (tally.usage(), result)
}

/// The threads of a measurement, see [`measure_with_threads`].
#[derive(Debug)]
pub struct Team<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    tally: &'scope Tally,
}

/// A thread of a measurement.
#[derive(Debug)]
pub struct Member<'scope, T>(Option<ScopedJoinHandle<'scope, T>>);

impl<'scope, T> Member<'scope, T> {
    /// Waits for the thread's end.
    ///
    /// # Errors
    /// What the thread panicked with.
    pub fn join(mut self) -> thread::Result<T> {
        uncounted(|| match self.0.take() {
            Some(thread) => thread.join(),
            // Nobody can: joining takes the member.
            None => Err(std::boxed::Box::new(()) as _),
        })
    }
}

impl<T> Drop for Member<'_, T> {
    fn drop(&mut self) {
        uncounted(|| drop(self.0.take()));
    }
}

impl<'scope> Team<'scope, '_> {
    /// Starts a thread that counts. What the standard library allocates to start and end it doesn't.
    pub fn spawn<T: Send + 'scope>(
        &self,
        code: impl FnOnce() -> T + Send + 'scope,
    ) -> Member<'scope, T> {
        let tally = self.tally;
        uncounted(|| {
            Member(Some(self.scope.spawn(move || {
                let _watch = Watch::begin(tally);
                code()
            })))
        })
    }
}

/// Runs `code` and says what was allocated and freed meanwhile by the calling thread and by those that it starts with
/// [`Team::spawn`], which all have ended when this returns.
///
/// # Panics
/// As [`measure`]; and where a thread panicked that nobody joined.
///
/// ```
/// # #[global_allocator] static GLOBAL: nearheap::NearHeap = nearheap::NearHeap::new();
/// # fn main() {
/// let (used, ()) = nearheap::testing::measure_with_threads(|team| {
///     for i in 0..4 {
///         team.spawn(move || assert_eq!(vec![i; 10].len(), 10));
///     }
/// });
/// assert_eq!((used.allocations, used.frees), (4, 4));
/// # }
/// ```
#[track_caller]
pub fn measure_with_threads<'env, R>(
    code: impl for<'scope> FnOnce(&Team<'scope, 'env>) -> R,
) -> (Usage, R) {
    need_global();
    let tally = Tally::new();
    let counts = &tally;
    let result = uncounted(|| {
        // SAFETY: the scope ends, with all its threads, before the tally is gone.
        let tally: &'env Tally = unsafe { &*ptr::from_ref(counts) };
        thread::scope(|scope| {
            let team = Team { scope, tally };
            let _watch = Watch::begin(tally);
            code(&team)
        })
    });
    (tally.usage(), result)
}

/// Fails unless the code allocates as many blocks as said, on the calling thread: `<= 3`, `== 0`, or any other
/// comparison. The value is that of the code, which is a closure: `return` and `?` don't leave the test.
///
/// ```
/// # #[global_allocator] static GLOBAL: nearheap::NearHeap = nearheap::NearHeap::new();
/// # fn main() {
/// use nearheap::testing::assert_allocs;
///
/// let mut line = String::with_capacity(100);
/// assert_allocs!(== 0, line.push_str("within its capacity"));
/// let words = assert_allocs!(<= 1, { line.split(' ').map(str::len).collect::<Vec<_>>() });
/// # drop(words);
/// # }
/// ```
///
/// ```should_panic
/// # #[global_allocator] static GLOBAL: nearheap::NearHeap = nearheap::NearHeap::new();
/// # fn main() {
/// // "expected allocations == 0, found 1 allocations of 16 bytes, 1 frees of 16 bytes, peak 16 bytes"
/// nearheap::testing::assert_allocs!(== 0, String::from("one"));
/// # }
/// ```
#[macro_export]
macro_rules! assert_allocs {
    ($than:tt $count:expr, $($code:tt)+) => {{
        let (used, value) = $crate::testing::measure(|| { $($code)+ });
        let count: u64 = $count;
        ::core::assert!(
            used.allocations $than count,
            "expected allocations {} {count}, found {used}",
            ::core::stringify!($than)
        );
        value
    }};
}

/// Fails unless the code frees as much as it allocates, on the calling thread, its value included: in blocks, and in bytes.
/// What it frees of others makes up for what it keeps, so that is better done before.
///
/// ```
/// # #[global_allocator] static GLOBAL: nearheap::NearHeap = nearheap::NearHeap::new();
/// # fn main() {
/// nearheap::testing::assert_no_leaks!({
///     let list = vec![Box::new(1); 10];
///     list.into_iter().map(|n| *n).sum::<i32>()
/// });
/// # }
/// ```
///
/// ```should_panic
/// # #[global_allocator] static GLOBAL: nearheap::NearHeap = nearheap::NearHeap::new();
/// # fn main() {
/// // "expected no leaks, found 1 allocations of 16 bytes, 0 frees of 0 bytes, peak 16 bytes"
/// nearheap::testing::assert_no_leaks!(std::mem::forget(Box::new(1)));
/// # }
/// ```
#[macro_export]
macro_rules! assert_no_leaks {
    ($($code:tt)+) => {{
        let (used, ()) = $crate::testing::measure(|| ::core::mem::drop({ $($code)+ }));
        ::core::assert!(!used.leaks(), "expected no leaks, found {used}");
    }};
}

#[cfg(test)]
mod tests {
    /// The tests of this crate are served by the system's allocator.
    #[test]
    #[should_panic(expected = "nearheap is not the global allocator of this program")]
    fn a_program_without_nearheap_is_told_so() {
        let _ = super::measure(|| std::vec![1, 2, 3]);
    }
}
