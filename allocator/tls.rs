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
use core::cell::Cell;
use core::ptr;

static FRESH: Cache = Cache::new();
static GONE: Cache = Cache::new();

std::thread_local! {
    // Without a destructor, so that it is there before the first and after the last destructor of the thread.
    static CACHE: Cell<*const Cache> = const { Cell::new(&raw const FRESH) };
}

/// The thread's cache, or a sentinel.
#[inline(always)]
pub(crate) fn cache() -> *const Cache {
    CACHE.with(Cell::get)
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
    CACHE.with(|c| c.set(cache));
}
