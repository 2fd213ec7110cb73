//! fork: the child gets a heap in which no lock is held and no block is lost.
//! Called by: the C library, around `fork`, once `start` has registered it.
//!
//! Before the fork, the forking thread enters every lock, in one order everywhere: start, registry, purger,
//! magazines, shards, metadata, huge, quarantine. Nobody else is inside anything then, so what the child copies is whole.
//! Both sides leave the locks; the child then takes over the caches of the threads that it doesn't have: their words and items
//! agree at every instruction (T4), but for the slot whose blocks a thread was just moving: those stay in use for ever.
//!
//! A fork in a signal handler enters no lock: its own thread may be inside. What the child may do then is what a handler may.

use crate::fault;
use crate::quarantine;
use crate::start::{self, HEAP, own_cache};
use crate::tls::Inside;
use core::ptr;
use core::sync::atomic::Ordering;
use nearheap_numa::os;

/// Registers the handlers. Where the C library has no memory for that, a fork while another thread is inside the heap
/// may leave the child without it; the process itself is not affected.
pub(crate) fn register() {
    unsafe extern "C" {
        fn pthread_atfork(
            prepare: Option<unsafe extern "C" fn()>,
            parent: Option<unsafe extern "C" fn()>,
            child: Option<unsafe extern "C" fn()>,
        ) -> libc::c_int;
    }
    // SAFETY: the handlers are functions that live as long as the process.
    let _ = unsafe { pthread_atfork(Some(prepare), Some(parent), Some(child)) };
}

unsafe extern "C" fn prepare() {
    let inside = Inside::enter();
    if inside.is_nested() {
        return;
    }
    start::enter();
    HEAP.hold();
    quarantine::hold();
    inside.stay();
}

unsafe extern "C" fn parent() {
    if let Some(_inside) = Inside::stayed() {
        leave();
    }
}

fn leave() {
    // SAFETY: `prepare` entered all of them on this thread, or on the one that this is the copy of.
    unsafe {
        quarantine::let_go();
        HEAP.let_go();
    }
    start::leave();
}

unsafe extern "C" fn child() {
    let Some(inside) = Inside::stayed() else { return };
    leave();
    let own = own_cache(&inside);
    if let Some(cache) = own {
        cache.tid.store(os::tid(), Ordering::Relaxed);
    }
    let own = own.map_or(ptr::null(), ptr::from_ref);
    loop {
        let other = {
            let registry = HEAP.registry.lock();
            registry.living().map(ptr::from_ref).find(|&c| !ptr::eq(c, own))
        };
        // SAFETY: a cache in the registry, which lives for ever.
        let Some(cache) = (unsafe { other.and_then(|c| c.as_ref()) }) else { return };
        // SAFETY: its thread doesn't exist in this process.
        fault::survive(unsafe { HEAP.dismiss(cache) });
    }
}
