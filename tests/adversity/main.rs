//! Does the heap survive what systems do to programs?
//! Method: campaigns, each in a process of its own that lives under one kind of adversity for a while: a second here,
//! `ADVERSITY_SECONDS` in `tests/adversity/run`. Threads hold blocks of all sizes whose contents are checked; a refusal is a
//! null, never more, and in the end the heap has what it had in the beginning.
//!
//! Forty keys of threads are taken before the heap is started, so that its own comes after the 32 for which the C library
//! has room from the start.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;
mod kernel;
mod process;
mod work;

use common::{Run, child};
use rstest::rstest;
use std::time::Duration;

#[global_allocator]
static GLOBAL: nearheap::NearHeap = nearheap::NearHeap::new();

#[test]
fn scenario() {
    common::play(&[
        ("no_mappings_left", kernel::no_mappings_left),
        ("little_memory", kernel::little_memory),
        ("overcommit", kernel::overcommit),
        ("under_a_filter", kernel::under_a_filter),
        ("hidden_files", kernel::hidden_files),
        ("small_disk", kernel::small_disk),
        ("one_refusal", kernel::one_refusal),
        ("threads_come_and_go", process::threads_come_and_go),
        ("forks", process::forks),
        ("interrupted", process::interrupted),
        ("handlers", process::handlers),
        ("small_stacks", process::small_stacks),
        ("destructors", process::destructors),
        ("work", || work::on_threads(4, work::Nulls::Never)),
    ]);
}

/// How long a campaign lasts.
fn span() -> Duration {
    let seconds = std::env::var("ADVERSITY_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs_f64(seconds.unwrap_or(1.0))
}

/// What a campaign prints is what it saw, for whoever looks.
fn survives(run: Run) {
    eprintln!("{}", run.within(span() * 3 + Duration::from_secs(60)).run().succeeds());
}

#[rstest]
#[case("threads_come_and_go")]
#[case("forks")]
#[case("interrupted")]
#[case("small_stacks")]
#[case("destructors")]
#[case("no_mappings_left")]
fn it_survives(#[case] campaign: &str) {
    survives(child(campaign));
}

/// Wherever the threads are, also under the locks of the heap. (With one thread and one shard, `signals` looks at each instruction.)
#[rstest]
fn it_survives_handlers_that_allocate(
    #[values("1000", "20000")] hz: &str,
    #[values("0", "1")] headers: &str,
) {
    survives(child("handlers").env("HZ", hz).env("NEARHEAP_HEADERS", headers));
}

#[rstest]
fn it_survives_a_limit(#[values("AS", "DATA")] limit: &str) {
    survives(child("little_memory").env("LIMIT", limit));
}

/// The heap is started with the filter in force.
#[rstest]
fn it_survives_a_filter(#[values("mbind", "madvise", "mremap", "all")] calls: &str) {
    survives(kernel::filtered(child("under_a_filter"), calls));
}

#[test]
fn it_survives_closed_descriptors() {
    for stats in ["0", "1"] {
        let mut run = child("work").env("NEARHEAP_STATS", stats).env("NEARHEAP_RETAIN", "nonsense");
        process::close_all(&mut run);
        let end = run.within(span() * 3 + Duration::from_secs(60)).run();
        assert_eq!((end.status.code(), end.stderr.as_str()), (Some(0), ""), "{end}");
    }
}

#[test]
fn it_survives_without_proc_and_sys() {
    survives(child("hidden_files").env("NEARHEAP_LIMIT_HARD", "50%"));
}

#[test]
fn it_survives_a_disk_that_is_full() {
    survives(child("small_disk"));
}
