//! Start: what happens once, in the first operation of the process.
//! Owns: the process's heap (`HEAP`) and its options. Called by: the cold path of a thread that has no cache yet.
//!
//! | state | meaning | to |
//! |---|---|---|
//! | `ASLEEP` | nothing has been allocated | `READY` by the first thread that enters |
//! | `READY` | options are in force, fork handlers and the exit dump are registered | - |
//!
//! While a thread starts the heap it counts as one without a cache, so whatever the registrations allocate is served.
//!
//! Another thread may fork meanwhile, and before the handlers are registered nobody keeps it from that. So it is no lock that
//! keeps others out but the number of the process: a child finds its parent's, knows that whoever was inside doesn't exist
//! here, and starts anew. What it finds half done, the options and the nodes, it does again.

use crate::cache::Cache;
use crate::config::Config;
use crate::fault;
use crate::heap::Heap;
use crate::nested;
use crate::settings::{Settings, resolve};
use crate::tls::{Inside, Standing};
use crate::value::{HugePages, Limit, StatsFormat};
use crate::{exit, fork, headed};
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use nearheap_numa::os::{self, Linux};
use nearheap_numa::source::NO_LIMIT;
use once_cell::race::OnceBool;

/// The heap of this process.
pub(crate) static HEAP: Heap<Linux> = Heap::new(Linux);

/// With huge pages on `auto`, segments get them once this much is in use: nearly all of what the first two have. Below, the
/// tail of a huge page would weigh.
const HUGE_PAGES_FROM: usize = 7 << 20;

static READY: OnceBool = OnceBool::new();
/// The process of which a thread is inside the start, or keeps others out of it for a fork; 0 for none.
static STARTER: AtomicU32 = AtomicU32::new(0);
static KEY: AtomicUsize = AtomicUsize::new(NO_KEY);
const NO_KEY: usize = usize::MAX;

struct InForce(UnsafeCell<MaybeUninit<Settings>>);
// SAFETY: written inside the start alone, before `READY` is set; read only after.
unsafe impl Sync for InForce {}
static SETTINGS: InForce = InForce(UnsafeCell::new(MaybeUninit::uninit()));

/// The options in force.
pub(crate) fn settings() -> &'static Settings {
    // SAFETY: nobody writes after `READY`, and nobody asks before `load_options` has written it.
    unsafe { (*SETTINGS.0.get()).assume_init_ref() }
}

/// The calling thread's cache, made if this is its first operation. `None`: it has none any more, or gets none.
#[cold]
#[inline(never)]
pub(crate) fn arrive(inside: &Inside, config: &Config) -> Option<&'static Cache> {
    nested::drain(inside);
    match inside.standing() {
        // The pointer is not to be set meanwhile. It is still that of a fresh thread only where there was no memory.
        Standing::Fresh if inside.is_served() => None,
        Standing::Fresh => begin(inside, config),
        _ => own_cache(inside),
    }
}

/// The calling thread's cache, if it has one.
pub(crate) fn own_cache(inside: &Inside) -> Option<&'static Cache> {
    match inside.standing() {
        Standing::Working(cache) => Some(cache),
        Standing::Headed => registered(),
        Standing::Gone | Standing::Fresh => None,
    }
}

#[cold]
fn begin(inside: &Inside, config: &Config) -> Option<&'static Cache> {
    inside.set(&Standing::Gone);
    start(config);
    // A handler may have come between this thread's look at its pointer and now, and have made it a cache.
    let made = if cfg!(feature = "signals") { registered() } else { None };
    let cache = made.or_else(|| HEAP.enroll());
    let registered = cache.is_some_and(register_exit);
    match cache {
        Some(_) if registered && headed::is_on() => inside.set(&Standing::Headed),
        Some(cache) if registered => inside.set(&Standing::Working(cache)),
        // Without a destructor nothing would bring the blocks back, so the thread stays without a cache.
        Some(cache) => dismiss(cache),
        // There may be memory for a cache at the next operation.
        None => inside.set(&Standing::Fresh),
    }
    cache.filter(|_| registered)
}

/// Whether the heap has been started.
pub(crate) fn is_ready() -> bool {
    READY.get().is_some()
}

/// Starts the heap if nobody has yet.
pub(crate) fn start(config: &Config) {
    if READY.get().is_some() {
        return;
    }
    enter();
    if READY.get().is_none() {
        load_options(config);
        apply_options();
        fork::register();
        make_key();
        if settings().values.stats != StatsFormat::Off || headed::is_on() {
            exit::register();
        }
        // The only writer is inside.
        let _ = READY.set(true);
    }
    leave();
}

/// Waits until this thread is the only one of the process inside the start. It is short, and happens once.
pub(crate) fn enter() {
    let me = os::pid();
    loop {
        let inside = STARTER.load(Ordering::Relaxed);
        // Pairs with the release of `leave`.
        let free = inside != me;
        if free
            && STARTER.compare_exchange(inside, me, Ordering::Acquire, Ordering::Relaxed).is_ok()
        {
            return;
        }
        os::nap();
    }
}

/// Lets others in: also in the child of the process whose thread entered.
pub(crate) fn leave() {
    STARTER.store(0, Ordering::Release);
}

fn load_options(config: &Config) {
    let say = &mut |line: &[u8]| os::write(2, line);
    // SAFETY: before `READY`, inside the start: nobody else has a reference.
    let settings = unsafe { (*SETTINGS.0.get()).write(Settings::of(config)) };
    if os::is_privileged() {
        resolve(config, core::iter::empty(), settings, say);
        return;
    }
    // SAFETY: `environ` is read as `getenv` does, in the first allocation of the process, which precedes its threads.
    let entries = unsafe { os::environment() };
    resolve(config, Pairs(entries), settings, say);
}

/// Names and values of the environment.
#[derive(Clone)]
struct Pairs<I>(I);

impl<'e, I: Iterator<Item = &'e [u8]>> Iterator for Pairs<I> {
    type Item = (&'e [u8], &'e [u8]);

    #[inline(never)] // It is walked in several places.
    fn next(&mut self) -> Option<Self::Item> {
        self.0.find_map(|entry| {
            let at = entry.iter().position(|&b| b == b'=')?;
            Some((entry.get(..at)?, entry.get(at + 1..)?))
        })
    }
}

fn apply_options() {
    let values = &settings().values;
    HEAP.granules.classes.coarsen(|granules| values.classes.round_up(granules));
    HEAP.knobs.set(values);
    headed::settle(values.headers, values.headers_quarantine);
    let huge_from = match values.huge_pages {
        HugePages::Off => usize::MAX,
        HugePages::On => 0,
        HugePages::Auto => HUGE_PAGES_FROM,
    };
    HEAP.granules.huge_pages_from.set(huge_from);
    HEAP.granules.source.set_limits(bytes_of(values.limit_soft), bytes_of(values.limit_hard));
    let misfit =
        &mut |why, nodes| settings().tell_misfit(why, nodes, &mut |line| os::write(2, line));
    // SAFETY: before `READY`, inside the start: what was served meanwhile had the one part that there was.
    unsafe { HEAP.granules.homes.settle(&Linux, values.numa, misfit) };
}

/// A limit in bytes; a percentage is of the control group's limit, and none where that has none.
fn bytes_of(limit: Limit) -> usize {
    match limit {
        Limit::None => NO_LIMIT,
        Limit::Bytes(bytes) => bytes,
        Limit::Percent(percent) => {
            crate::cgroup::memory_max().map_or(NO_LIMIT, |max| max / 100 * usize::from(percent))
        }
    }
}

fn make_key() {
    let mut key = 0;
    // SAFETY: `key` is valid to write; the destructor is a function that lives as long as the process.
    if unsafe { libc::pthread_key_create(&mut key, Some(on_thread_exit)) } == 0 {
        KEY.store(key as usize, Ordering::Relaxed);
    }
}

fn register_exit(cache: &'static Cache) -> bool {
    let key = KEY.load(Ordering::Relaxed);
    let value = core::ptr::from_ref(cache).cast();
    // SAFETY: the key was created and is never deleted.
    key != NO_KEY && unsafe { libc::pthread_setspecific(key as libc::pthread_key_t, value) } == 0
}

/// The cache that this thread has registered, if there is one.
fn registered() -> Option<&'static Cache> {
    let key = KEY.load(Ordering::Relaxed);
    if key == NO_KEY {
        return None;
    }
    // SAFETY: the key was created and is never deleted; its value is null or the cache that `register_exit` set.
    unsafe { libc::pthread_getspecific(key as libc::pthread_key_t).cast::<Cache>().as_ref() }
}

extern "C" fn on_thread_exit(cache: *mut libc::c_void) {
    let inside = Inside::enter();
    inside.set(&Standing::Gone);
    // SAFETY: the value is the cache that `register_exit` set on this thread.
    dismiss(unsafe { &*cache.cast::<Cache>() });
}

fn dismiss(cache: &'static Cache) {
    // SAFETY: this thread's cache, which it doesn't point at any more.
    fault::survive(unsafe { HEAP.dismiss(cache) });
}
