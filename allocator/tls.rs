//! Where a thread finds its cache: one pointer in thread-local storage.
//! Owns: the pointer and the two sentinels. Called by: every operation.
//!
//! | pointer | the thread | its operations |
//! |---|---|---|
//! | `FRESH` | has not allocated yet | the first makes a cache |
//! | a cache | is at work | fast |
//! | `GONE` | has given its cache back, or gets none | by the magazines, one block at a time |
//!
//! A sentinel is a cache of zeros that is never written: no block, no room. So the fast path has no test for it.

use crate::cache::Cache;
use core::ptr;

static FRESH: Cache = Cache::new();
static GONE: Cache = Cache::new();

/// The pointer as the language has it. Without a destructor, so that it is there before the first and after the last
/// destructor of the thread. In a shared library every access would call the C library, which may allocate for it.
#[cfg(not(all(feature = "c-interface", any(target_arch = "x86_64", target_arch = "aarch64"))))]
mod pointer {
    use super::{Cache, FRESH};
    use core::cell::Cell;

    std::thread_local! {
        static CACHE: Cell<*const Cache> = const { Cell::new(&raw const FRESH) };
    }

    #[inline(always)]
    pub(super) fn get() -> *const Cache {
        CACHE.with(Cell::get)
    }

    pub(super) fn set(cache: *const Cache) {
        CACHE.with(|c| c.set(cache));
    }
}

/// The pointer in the initial-exec model: at a distance from the thread's own address that the dynamic linker writes
/// down once, so that reading it is two instructions, even in a shared library that was loaded before the program.
#[cfg(all(feature = "c-interface", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod pointer {
    use super::{Cache, FRESH};
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
        fresh = sym FRESH,
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

/// The thread's cache, or a sentinel.
#[inline(always)]
pub(crate) fn cache() -> *const Cache {
    pointer::get()
}

/// What the thread's pointer says.
pub(crate) enum Standing {
    Fresh,
    Gone,
    Working(&'static Cache),
}

/// What the thread's pointer says.
pub(crate) fn standing() -> Standing {
    let cache = cache();
    if ptr::eq(cache, &raw const FRESH) {
        Standing::Fresh
    } else if ptr::eq(cache, &raw const GONE) {
        Standing::Gone
    } else {
        // SAFETY: caches are metadata, which lives for ever.
        Standing::Working(unsafe { &*cache })
    }
}

/// Sets the thread's pointer.
pub(crate) fn set(standing: &Standing) {
    let cache = match *standing {
        Standing::Fresh => &raw const FRESH,
        Standing::Gone => &raw const GONE,
        Standing::Working(cache) => ptr::from_ref(cache),
    };
    pointer::set(cache);
}
