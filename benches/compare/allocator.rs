//! The allocator of this build, and what it knows of itself.
//! Owns: the global allocator. Called by: `probe` and `main`.
//!
//! A feature chooses the allocator. Without one it is the system's with two counters before it: the bytes that are asked
//! for and live, and the most that they were. All allocators are asked for the same, so one run tells them for all.

#[cfg(feature = "glibc")]
#[global_allocator]
static GLOBAL: std::alloc::System = std::alloc::System;

#[cfg(feature = "jemalloc")]
#[global_allocator]
static GLOBAL: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[cfg(any(feature = "mimalloc2", feature = "mimalloc3"))]
#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[cfg(feature = "nearheap")]
#[global_allocator]
static GLOBAL: nearheap::NearHeap = nearheap::NearHeap::new();

#[cfg(feature = "numalloc")]
#[global_allocator]
static GLOBAL: numalloc::NumaAlloc = numalloc::NumaAlloc::new();

#[cfg(feature = "rpmalloc")]
#[global_allocator]
static GLOBAL: rpmalloc::RpMalloc = rpmalloc::RpMalloc;

#[cfg(feature = "rusty_alloc")]
#[global_allocator]
static GLOBAL: rusty_alloc_api::RustyAlloc = rusty_alloc_api::RustyAlloc;

#[cfg(feature = "snmalloc")]
#[global_allocator]
static GLOBAL: snmalloc_rs::SnMalloc = snmalloc_rs::SnMalloc;

#[cfg(feature = "tcmalloc")]
#[global_allocator]
static GLOBAL: tcmalloc_better::TCMalloc = tcmalloc_better::TCMalloc;

const CHOSEN: &[&str] = &[
    #[cfg(feature = "glibc")]
    "glibc",
    #[cfg(feature = "jemalloc")]
    "jemalloc",
    #[cfg(feature = "mimalloc2")]
    "mimalloc2",
    #[cfg(feature = "mimalloc3")]
    "mimalloc3",
    #[cfg(feature = "nearheap")]
    "nearheap",
    #[cfg(feature = "numalloc")]
    "numalloc",
    #[cfg(feature = "rpmalloc")]
    "rpmalloc",
    #[cfg(feature = "rusty_alloc")]
    "rusty_alloc",
    #[cfg(feature = "snmalloc")]
    "snmalloc",
    #[cfg(feature = "tcmalloc")]
    "tcmalloc",
];

const _: () = assert!(CHOSEN.len() <= 1, "one allocator at a time");

/// The feature that chose the allocator, or `count`.
pub(crate) fn name() -> &'static str {
    CHOSEN.first().copied().unwrap_or("count")
}

/// What its makers ask a program to do first: tcmalloc gives memory back on a thread that the program starts.
pub(crate) fn start() {
    #[cfg(feature = "tcmalloc")]
    let _ = tcmalloc_better::TCMalloc::process_background_actions_thread();
}

/// The version of the engine where it tells; the versions of the crates stand in `Cargo.lock`.
pub(crate) fn engine() -> Option<String> {
    engine_of_this_build()
}

#[cfg(any(feature = "mimalloc2", feature = "mimalloc3"))]
fn engine_of_this_build() -> Option<String> {
    unsafe extern "C" {
        fn mi_version() -> std::ffi::c_int;
    }
    // SAFETY: mimalloc defines it, without parameters and without preconditions.
    let version = unsafe { mi_version() };
    // 3.3.2 is 30302 in version 3, and 2.3.2 was 232 before four digits ran out.
    Some(match version {
        10_000.. => format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100),
        1_000.. => format!("{}.{}.{}", version / 1_000, version / 100 % 10, version % 100),
        _ => format!("{}.{}.{}", version / 100, version / 10 % 10, version % 10),
    })
}

#[cfg(feature = "jemalloc")]
fn engine_of_this_build() -> Option<String> {
    let version = tikv_jemalloc_ctl::version::read().ok()?;
    Some(version.split('-').next()?.to_owned())
}

#[cfg(feature = "glibc")]
fn engine_of_this_build() -> Option<String> {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it has no preconditions, and returns a string that lasts as long as the process.
        let version = unsafe { libc::gnu_get_libc_version() };
        // SAFETY: as above: it is not null, ends with a zero, and does not change.
        let version = unsafe { std::ffi::CStr::from_ptr(version) };
        version.to_str().ok().map(str::to_owned)
    }
    #[cfg(not(target_env = "gnu"))]
    None
}

#[cfg(not(any(
    feature = "glibc",
    feature = "jemalloc",
    feature = "mimalloc2",
    feature = "mimalloc3"
)))]
fn engine_of_this_build() -> Option<String> {
    None
}

/// An allocator's own accounts, in bytes.
#[derive(Clone, Copy)]
pub(crate) struct Accounts {
    /// In blocks that the program has, in the sizes of their classes.
    pub(crate) allocated: u64,
    /// In pages that hold such blocks.
    pub(crate) active: u64,
    /// In pages that the allocator believes resident, its metadata included.
    pub(crate) resident: u64,
    /// In metadata.
    pub(crate) metadata: u64,
}

/// The accounts at this moment, of the allocators that keep them.
pub(crate) fn accounts() -> Option<Accounts> {
    accounts_of_this_build()
}

#[cfg(feature = "nearheap")]
fn accounts_of_this_build() -> Option<Accounts> {
    let stats = nearheap::stats();
    Some(Accounts {
        allocated: stats.totals.in_use_bytes,
        active: stats.system.active_bytes(),
        resident: stats.system.committed_bytes,
        metadata: stats.system.metadata_bytes,
    })
}

#[cfg(feature = "jemalloc")]
fn accounts_of_this_build() -> Option<Accounts> {
    use tikv_jemalloc_ctl::{epoch, stats};
    // The numbers are those of the last epoch.
    epoch::advance().ok()?;
    let bytes = |read: Result<usize, tikv_jemalloc_ctl::Error>| read.ok().map(|bytes| bytes as u64);
    Some(Accounts {
        allocated: bytes(stats::allocated::read())?,
        active: bytes(stats::active::read())?,
        resident: bytes(stats::resident::read())?,
        metadata: bytes(stats::metadata::read())?,
    })
}

#[cfg(not(any(feature = "nearheap", feature = "jemalloc")))]
fn accounts_of_this_build() -> Option<Accounts> {
    None
}

/// The bytes that the program asked for and has not freed: now, and the most of them so far. Only in the counting build.
pub(crate) fn live_bytes() -> Option<(u64, u64)> {
    #[cfg(feature = "chosen")]
    return None;
    #[cfg(not(feature = "chosen"))]
    Some(counting::live_bytes())
}

#[cfg(not(feature = "chosen"))]
mod counting {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    /// The system's allocator, with the bytes counted.
    struct Counting;

    #[global_allocator]
    static GLOBAL: Counting = Counting;

    // Relaxed, because they are read when the threads of the workload wait or have ended; nothing else hangs on them.
    static LIVE: AtomicU64 = AtomicU64::new(0);
    static PEAK: AtomicU64 = AtomicU64::new(0);

    pub(super) fn live_bytes() -> (u64, u64) {
        (LIVE.load(Relaxed), PEAK.load(Relaxed))
    }

    fn add(size: usize) {
        let live = LIVE.fetch_add(size as u64, Relaxed) + size as u64;
        PEAK.fetch_max(live, Relaxed);
    }

    fn subtract(size: usize) {
        LIVE.fetch_sub(size as u64, Relaxed);
    }

    // SAFETY: every operation is the system allocator's own, with the caller's arguments.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            // SAFETY: the caller's promise is passed on.
            let block = unsafe { System.alloc(layout) };
            if !block.is_null() {
                add(layout.size());
            }
            block
        }

        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            // SAFETY: the caller's promise is passed on.
            let block = unsafe { System.alloc_zeroed(layout) };
            if !block.is_null() {
                add(layout.size());
            }
            block
        }

        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            // SAFETY: the caller's promise is passed on.
            unsafe { System.dealloc(block, layout) };
            subtract(layout.size());
        }

        unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
            // SAFETY: the caller's promise is passed on.
            let moved = unsafe { System.realloc(block, layout, new_size) };
            if !moved.is_null() {
                subtract(layout.size());
                add(new_size);
            }
            moved
        }
    }
}
