//! Do the options that a program builds in take effect, before the build's and after the environment's, and alone when
//! they are locked?
//! Method: child processes whose first allocation is served by one of several values of `NearHeap`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;

use common::{Run, child};
use nearheap::numa::{NodeSet, Policy};
use nearheap::{Config, HugePages, Limit, NearHeap, StatsFormat};
use std::alloc::{GlobalAlloc, Layout, alloc};
use std::hint::black_box;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

const EVERYTHING: Config = Config::new()
    .classes(&[16, 32, 64, 128])
    .cache_bytes(64 << 10)
    .slot_blocks(32)
    .retain(1 << 20)
    .purge_delay(Duration::from_secs(3))
    .huge_pages(HugePages::Off)
    .numa(Policy::Interleave(NodeSet::of(&[0, 1, 2, 5])))
    .limit_soft(Limit::Percent(80))
    .limit_hard(Limit::Bytes(1 << 30))
    .headers(false)
    .headers_quarantine(4 << 10)
    .stats(StatsFormat::Json)
    .stats_file("/dev/null")
    .verbose(true)
    .quiet(false);

const LISTED: [&str; 15] = [
    "classes = 16,32,64,128",
    "cache_bytes = 64K",
    "slot_blocks = 32",
    "retain = 1M",
    "purge_delay = 3s",
    "huge_pages = off",
    "numa = interleave:0-2,5",
    "limit_soft = 80%",
    "limit_hard = 1G",
    "headers = off",
    "headers_quarantine = 4K",
    "stats = json",
    "stats_file = /dev/null",
    "verbose = on",
    "quiet = off",
];

/// A process has one heap, and its options are those of the value that serves the first allocation.
static VALUES: [NearHeap; 4] = [
    NearHeap::new(),
    NearHeap::with(EVERYTHING),
    NearHeap::with(EVERYTHING.lock()),
    NearHeap::with(Config::new().lock()),
];
const BUILT: &str = "1";
const LOCKED_AND_VERBOSE: &str = "2";
const LOCKED: &str = "3";

/// The one of `VALUES` that `TEST_VALUE` names.
struct OneOfThem;

#[global_allocator]
static GLOBAL: OneOfThem = OneOfThem;

impl OneOfThem {
    fn value() -> &'static NearHeap {
        static CHOICE: AtomicU8 = AtomicU8::new(u8::MAX);
        if CHOICE.load(Ordering::Relaxed) == u8::MAX {
            // SAFETY: a terminated name and text; nobody changes the environment. Unlike `std::env` it allocates nothing.
            let digit = unsafe {
                let text = libc::getenv(c"TEST_VALUE".as_ptr());
                if text.is_null() { b'0' } else { *text.cast::<u8>() }
            };
            CHOICE.store(digit - b'0', Ordering::Relaxed);
        }
        &VALUES[usize::from(CHOICE.load(Ordering::Relaxed))]
    }
}

// SAFETY: values of an allocator that has one heap for all of them.
unsafe impl GlobalAlloc for OneOfThem {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract.
        unsafe { Self::value().alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { Self::value().dealloc(block, layout) }
    }
}

#[test]
fn scenario() {
    common::play(&[("counts_70_bytes", counts_70_bytes)]);
}

/// Prints the class that blocks of 70 bytes are counted in, their headers included.
fn counts_70_bytes() {
    let layout = Layout::from_size_align(70 - common::overhead(), 8).unwrap();
    for _ in 0..1000 {
        // SAFETY: the layout has a size.
        assert!(!black_box(unsafe { alloc(layout) }).is_null());
    }
    let stats = nearheap::stats();
    let full = stats.classes().iter().find(|c| c.in_use_blocks() >= 1000);
    eprintln!("{}", full.unwrap().size);
}

fn with(value: &str) -> Run {
    child("counts_70_bytes").env("TEST_VALUE", value)
}

fn list(source: impl Fn(&str) -> &'static str) -> String {
    LISTED.iter().map(|line| format!("nearheap: {line} ({})\n", source(line))).collect()
}

#[test]
fn a_program_without_options_has_the_defaults() {
    child("counts_70_bytes").run().succeeds_with("80\n");
}

#[test]
fn what_is_built_in_takes_effect_and_is_listed_as_such() {
    with(BUILT).run().succeeds_with(&(list(|_| "builder") + "128\n"));
}

#[test]
fn the_environment_goes_before_the_builder() {
    let run = with(BUILT).env("NEARHEAP_CLASSES", "16,32,48,96,128").env("NEARHEAP_RETAIN", "1M");
    let listed = list(|line| match line {
        "classes = 16,32,64,128" | "retain = 1M" => "environment",
        _ => "builder",
    });
    run.run().succeeds_with(&(listed.replace("32,64,", "32,48,96,") + "96\n"));
}

#[test]
fn a_mistake_in_the_environment_leaves_what_is_built_in() {
    let line = "nearheap: NEARHEAP_RETAIN=\"x\": expected a size such as 8M; using 1M\n";
    let run = with(BUILT).env("NEARHEAP_RETAIN", "x");
    run.run().succeeds_with(&(line.to_owned() + &list(|_| "builder") + "128\n"));
}

#[test]
fn locked_options_ignore_the_environment_and_say_so_only_where_the_program_is_verbose() {
    let given = |value: &str| {
        with(value)
            .env("NEARHEAP_CLASSES", "16,32,48,96,128")
            .env("NEARHEAP_STATS", "text")
            .env("NEARHEAP_QUIET", "1")
            .env("NEARHEAP_WHAT", "1")
    };
    let text = given(LOCKED_AND_VERBOSE).run().succeeds();
    let (mut ignored, rest): (Vec<_>, Vec<_>) = text
        .lines()
        .partition(|line| line.ends_with(": ignored, as the program locks its options"));
    ignored.sort_unstable();
    let names: Vec<_> = ignored.iter().filter_map(|line| line.split(':').nth(1)).collect();
    assert_eq!(
        names,
        [" NEARHEAP_CLASSES", " NEARHEAP_QUIET", " NEARHEAP_STATS", " NEARHEAP_WHAT"]
    );
    assert_eq!(rest.join("\n") + "\n", list(|_| "builder") + "128\n");
    given(LOCKED).env("NEARHEAP_VERBOSE", "1").run().succeeds_with("80\n");
}
