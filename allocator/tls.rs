//! Where a thread finds its cache: one pointer in thread-local storage.
//! Owns: the pointer and the five sentinels. Called by: every operation.
//!
//! | pointer | the thread | its operations |
//! |---|---|---|
//! | `FRESH` | has not allocated yet | the first makes a cache |
//! | a cache | is at work | fast |
//! | `HEADED` | has a cache, in headers mode | not here: the cache is where `start` finds it |
//! | `GONE` | has given its cache back, or gets none | by the magazines, one block at a time |
//! | `WATCHED` | is being measured | told to whoever measures, see `testing` |
//! | `NESTED` | runs a signal handler | by what has no locks and leaves the cache alone, see `nested` |
//!
//! With the feature `signals`, the pointer is `NESTED` for as long as the thread is inside the heap, too, for any handler that
//! comes meanwhile; what it is for the heap itself is in `Inside`.
//!
//! A sentinel is a cache of zeros that is never written: no block, no room. So the fast path has no test for it.

#![allow(clippy::indexing_slicing, reason = "constants, which the compiler checks")]

use crate::cache::Cache;
use crate::global::NearHeap;
use core::alloc::Layout;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering, compiler_fence};

/// Together, so that one comparison tells a sentinel from a cache; the first is `FRESH`.
static SENTINELS: [Cache; 5] = [const { Cache::new() }; 5];
const FRESH: *const Cache = &raw const SENTINELS[0];
const GONE: *const Cache = &raw const SENTINELS[1];
const HEADED: *const Cache = &raw const SENTINELS[2];
const WATCHED: *const Cache = &raw const SENTINELS[3];
const NESTED: *const Cache = &raw const SENTINELS[4];

/// The pointer as the language has it. Without a destructor, so that it is there before the first and after the last
/// destructor of the thread. In a shared library every access would call the C library, which may allocate for it.
#[cfg(not(all(feature = "c-interface", any(target_arch = "x86_64", target_arch = "aarch64"))))]
mod pointer {
    use super::{Cache, FRESH};
    use core::cell::Cell;

    std::thread_local! {
        static CACHE: Cell<*const Cache> = const { Cell::new(FRESH) };
    }

    #[inline(always)]
    pub(super) fn get() -> *const Cache {
        CACHE.with(Cell::get)
    }

    #[inline(always)]
    pub(super) fn set(cache: *const Cache) {
        CACHE.with(|c| c.set(cache));
    }
}

/// The pointer in the initial-exec model: at a distance from the thread's own address that the dynamic linker writes
/// down once, so that reading it is two instructions, even in a shared library that was loaded before the program.
#[cfg(all(feature = "c-interface", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod pointer {
    use super::{Cache, SENTINELS};
    use core::arch::{asm, global_asm};

    // A name with a dot, which no other language's name holds.
    global_asm!(
        ".pushsection .tdata.nearheap.cache, \"awT\", %progbits",
        ".globl nearheap.cache",
        ".hidden nearheap.cache",
        ".type nearheap.cache, %object",
        ".size nearheap.cache, 8",
        ".p2align 3",
        "nearheap.cache:",
        ".quad {fresh}",
        ".popsection",
        fresh = sym SENTINELS,
        options(att_syntax),
    );

    #[inline(always)]
    fn place() -> usize {
        let place;
        // SAFETY: reads a constant of the process.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            asm!(
                "movq nearheap.cache@GOTTPOFF(%rip), {0}",
                out(reg) place,
                options(att_syntax, pure, nomem, nostack, preserves_flags),
            );
        }
        // SAFETY: reads constants of the process and of the thread.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            asm!(
                "adrp {0}, :gottprel:nearheap.cache",
                "ldr {0}, [{0}, :gottprel_lo12:nearheap.cache]",
                "mrs {1}, tpidr_el0",
                "add {0}, {0}, {1}",
                out(reg) place,
                out(reg) _,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        place
    }

    #[inline(always)]
    pub(super) fn get() -> *const Cache {
        let place = place();
        #[cfg(target_arch = "x86_64")]
        {
            let cache;
            // SAFETY: the thread's own pointer, which is there as long as the thread.
            unsafe {
                asm!(
                    "movq %fs:({0}), {1}",
                    in(reg) place,
                    out(reg) cache,
                    options(att_syntax, pure, readonly, nostack, preserves_flags),
                );
            }
            cache
        }
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            *core::ptr::with_exposed_provenance::<*const Cache>(place)
        }
    }

    #[inline(always)]
    pub(super) fn set(cache: *const Cache) {
        let place = place();
        // SAFETY: the thread's own pointer, which is there as long as the thread; aligned to 8 bytes.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            asm!(
                "movq {1}, %fs:({0})",
                in(reg) place,
                in(reg) cache,
                options(att_syntax, nostack, preserves_flags),
            );
        }
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            *core::ptr::with_exposed_provenance_mut::<*const Cache>(place) = cache;
        }
    }
}

/// The thread's pointer: its cache, or a sentinel.
#[inline(always)]
fn cache() -> *const Cache {
    pointer::get()
}

/// The frame of the function that asks, where it has a frame pointer; else anything.
#[cfg(feature = "leak-stacks")]
#[inline(always)]
pub(crate) fn frame() -> usize {
    let frame;
    // SAFETY: reads a register.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        core::arch::asm!("mov {}, rbp", out(reg) frame, options(nomem, nostack, preserves_flags));
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        core::arch::asm!("mov {}, x29", out(reg) frame, options(nomem, nostack, preserves_flags));
    }
    // No address of a frame.
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        frame = 0;
    }
    frame
}

/// Does something with the thread's cache, or with a sentinel, that may have been in the middle of the same. With the feature
/// `signals`, handlers that come meanwhile are served elsewhere, as within `in_signal_handler`.
#[inline(always)]
pub(crate) fn within<T>(work: impl FnOnce(*const Cache) -> T) -> T {
    let cache = cache();
    if cfg!(not(feature = "signals")) {
        return work(cache);
    }
    pointer::set(NESTED);
    // On one thread, it is the compiler alone that could put the work elsewhere.
    compiler_fence(Ordering::SeqCst);
    let done = work(cache);
    compiler_fence(Ordering::SeqCst);
    pointer::set(cache);
    done
}

/// What is done on a thread that is watched, or in a signal handler. Behind a pointer, so that it isn't in programs that do
/// neither.
pub(crate) struct Server {
    pub(crate) alloc: fn(&NearHeap, Layout, bool) -> *mut u8,
    pub(crate) dealloc: unsafe fn(&NearHeap, *mut u8, Layout),
    /// A block was made one of another size where it stands, or by the kernel.
    pub(crate) resized: fn(Layout, usize),
    /// What the thread's pointer would be.
    pub(crate) behind: fn() -> *const Cache,
}

/// Null until somebody measures, and until a handler says that it is one.
static WATCHER: AtomicPtr<Server> = AtomicPtr::new(ptr::null_mut());
static NESTER: AtomicPtr<Server> = AtomicPtr::new(if cfg!(feature = "signals") {
    crate::nested::SERVER.cast_mut()
} else {
    ptr::null_mut()
});

fn server_of(cache: *const Cache) -> Option<&'static Server> {
    let server = if ptr::eq(cache, WATCHED) {
        &WATCHER
    } else if ptr::eq(cache, NESTED) {
        &NESTER
    } else {
        return None;
    };
    // SAFETY: a static; a thread has set it before it pointed at the sentinel.
    unsafe { server.load(Ordering::Relaxed).as_ref() }
}

/// Who serves the thread in the heap's place.
pub(crate) fn server() -> Option<&'static Server> {
    server_of(cache())
}

/// Who watches the thread.
pub(crate) fn watched() -> Option<&'static Server> {
    if ptr::eq(cache(), WATCHED) { server() } else { None }
}

/// Whether the thread runs a signal handler, and so may be anywhere inside the heap already.
pub(crate) fn is_nested() -> bool {
    ptr::eq(cache(), NESTED)
}

/// Who serves the thread in a signal handler.
pub(crate) fn nested() -> Option<&'static Server> {
    if is_nested() { server() } else { None }
}

/// Begins a signal handler; what the thread's pointer was.
pub(crate) fn nest(server: *const Server) -> *const Cache {
    NESTER.store(server.cast_mut(), Ordering::Relaxed);
    let behind = cache();
    pointer::set(NESTED);
    behind
}

/// Ends it.
pub(crate) fn restore(behind: *const Cache) {
    pointer::set(behind);
}

/// What is behind a signal handler: nothing that it may use.
pub(crate) fn nothing() -> *const Cache {
    GONE
}

/// What the thread's pointer says.
pub(crate) enum Standing {
    Fresh,
    Headed,
    Gone,
    Working(&'static Cache),
}

impl Standing {
    fn of(cache: *const Cache) -> Self {
        if ptr::eq(cache, FRESH) {
            Self::Fresh
        } else if ptr::eq(cache, GONE) {
            Self::Gone
        } else if ptr::eq(cache, HEADED) {
            Self::Headed
        } else {
            // SAFETY: caches are metadata, which lives for ever; nobody is watched twice.
            Self::Working(unsafe { &*cache })
        }
    }

    fn pointer(&self) -> *const Cache {
        match *self {
            Self::Fresh => FRESH,
            Self::Headed => HEADED,
            Self::Gone => GONE,
            Self::Working(cache) => ptr::from_ref(cache),
        }
    }
}

#[inline]
fn is_cache(cache: *const Cache) -> bool {
    cache.addr().wrapping_sub(FRESH.addr()) >= size_of_val(&SENTINELS)
}

/// That the thread is inside the heap, until dropped: what its pointer is for the heap. With the feature `signals`, it is
/// `NESTED` for handlers meanwhile.
pub(crate) struct Inside {
    #[cfg(feature = "signals")]
    pointer: core::cell::Cell<*const Cache>,
}

#[cfg(not(feature = "signals"))]
impl Inside {
    #[inline]
    pub(crate) fn enter() -> Self {
        Self {}
    }

    #[inline]
    fn pointer(&self) -> *const Cache {
        cache()
    }

    #[inline]
    fn point(&self, cache: *const Cache) {
        pointer::set(cache);
    }

    /// Leaves before the end of what it is in.
    #[inline]
    pub(crate) fn leave(self) {}

    /// Stays inside, for `fork`.
    pub(crate) fn stay(self) {}

    /// Of the thread that stayed inside; `None`: it didn't, as it forked in a signal handler.
    pub(crate) fn stayed() -> Option<Self> {
        (!is_nested()).then_some(Self {})
    }
}

#[cfg(feature = "signals")]
mod inside {
    use super::{Cache, Inside, NESTED, cache, pointer};
    use core::cell::Cell;
    use core::ptr;
    use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering, compiler_fence};

    /// The thread that forks, and its pointer; in the child it is the same one.
    static FORKER: AtomicUsize = AtomicUsize::new(0);
    static POINTER: AtomicPtr<Cache> = AtomicPtr::new(ptr::null_mut());

    fn this_thread() -> usize {
        // SAFETY: no preconditions.
        unsafe { libc::pthread_self() as usize }
    }

    impl Inside {
        pub(crate) fn enter() -> Self {
            let cache = cache();
            pointer::set(NESTED);
            compiler_fence(Ordering::SeqCst);
            Self { pointer: Cell::new(cache) }
        }

        pub(super) fn pointer(&self) -> *const Cache {
            self.pointer.get()
        }

        pub(super) fn point(&self, cache: *const Cache) {
            self.pointer.set(cache);
        }

        pub(crate) fn leave(self) {
            drop(self);
        }

        pub(crate) fn stay(self) {
            // One thread at a time forks: it keeps others out of the start.
            POINTER.store(self.pointer.get().cast_mut(), Ordering::Relaxed);
            FORKER.store(this_thread(), Ordering::Relaxed);
            core::mem::forget(self);
        }

        pub(crate) fn stayed() -> Option<Self> {
            if FORKER.load(Ordering::Relaxed) != this_thread() {
                return None;
            }
            FORKER.store(0, Ordering::Relaxed);
            Some(Self { pointer: Cell::new(POINTER.load(Ordering::Relaxed)) })
        }
    }

    impl Drop for Inside {
        fn drop(&mut self) {
            compiler_fence(Ordering::SeqCst);
            pointer::set(self.pointer.get());
        }
    }
}

impl Inside {
    /// Whether the thread runs a signal handler.
    pub(crate) fn is_nested(&self) -> bool {
        ptr::eq(self.pointer(), NESTED)
    }

    /// Whether somebody else serves the thread: whoever watches it, or what serves handlers.
    pub(crate) fn is_served(&self) -> bool {
        server_of(self.pointer()).is_some()
    }

    /// The cache of the thread, if it has one and nobody watches.
    #[inline]
    pub(crate) fn working(&self) -> Option<&'static Cache> {
        let cache = self.pointer();
        // SAFETY: caches are metadata, which lives for ever.
        is_cache(cache).then(|| unsafe { &*cache })
    }

    /// What the thread's pointer says, or would say if nobody watched; in a signal handler, that there is no cache.
    #[inline]
    pub(crate) fn standing(&self) -> Standing {
        self.working().map_or_else(|| self.of_sentinel(), Standing::Working)
    }

    #[cold]
    #[inline(never)]
    fn of_sentinel(&self) -> Standing {
        let cache = self.pointer();
        Standing::of(server_of(cache).map_or(cache, |server| (server.behind)()))
    }

    /// Sets the thread's pointer.
    pub(crate) fn set(&self, standing: &Standing) {
        self.point(standing.pointer());
    }

    /// Has the thread watched; what its pointer was.
    pub(crate) fn watch(&self, watcher: &'static Server) -> *const Cache {
        WATCHER.store(ptr::from_ref(watcher).cast_mut(), Ordering::Relaxed);
        let behind = self.pointer();
        self.point(WATCHED);
        behind
    }

    /// Ends it.
    pub(crate) fn unwatch(&self, behind: *const Cache) {
        self.point(behind);
    }
}

/// Does something of the program's on a thread that is inside, as if it weren't.
#[cfg(feature = "signals")]
pub(crate) fn outside(standing: &Standing, work: impl FnOnce()) {
    let inside = cache();
    pointer::set(standing.pointer());
    work();
    pointer::set(inside);
}
