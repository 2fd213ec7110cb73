//! The formats of the dump say the same, and their readers take them.

use crate::common::{Run, child};
use openmetrics_parser::openmetrics::parse_openmetrics;
use rstest::rstest;
use serde_json::Value;

fn allocates() -> Run {
    child("allocates")
        .env("TEST_COUNT", "1234")
        .env("TEST_THREADS", "1")
        .env("TEST_LEAVE", "1")
        .env("TEST_CLOSE_STDERR", "0")
}

/// What the process that allocates writes to stderr with `NEARHEAP_STATS` as given.
fn written(stats: &str) -> String {
    let end = allocates().env("NEARHEAP_STATS", stats).run();
    assert!(!end.stdout.contains("nearheap"), "{}", end.stdout);
    end.succeeds()
}

/// The totals by their names, from JSON.
fn totals() -> impl Fn(&str) -> u64 {
    let dump: Value = serde_json::from_str(&written("json")).unwrap();
    move |key| dump["totals"][key].as_u64().unwrap()
}

#[rstest]
fn nothing_is_written_unless_asked_for(#[values("0", "off", "OFF", "no", "false")] stats: &str) {
    assert_eq!(written(stats), "");
    allocates().run().succeeds_with("");
}

#[rstest]
fn text_has_the_same_totals_as_json(#[values("1", "text", "on", "TEXT", "true")] stats: &str) {
    let (text, of) = (written(stats), totals());
    let mut lines = text.lines();
    assert!(lines.next().unwrap().starts_with("nearheap: heap of process "));
    let in_use = format!(
        "nearheap: in use at exit: {} bytes in {} blocks",
        of("in_use_bytes"),
        of("in_use_blocks")
    );
    let usage = format!(
        "nearheap: total heap usage: {} allocs, {} frees, {} bytes allocated",
        of("allocs"),
        of("frees"),
        of("allocated_bytes")
    );
    assert_eq!((lines.next(), lines.next()), (Some(in_use.as_str()), Some(usage.as_str())));
    assert!(text.lines().all(|line| line.starts_with("nearheap: ")), "{text}");
}

#[test]
fn openmetrics_is_strict_and_has_the_same_totals_as_json() {
    let (text, of) = (written("openmetrics"), totals());
    let read = parse_openmetrics(&text).unwrap();
    assert!(read.families.contains_key("allocator"), "the info");
    for (sample, key) in [
        ("allocator_allocations_total", "allocs"),
        ("allocator_frees_total", "frees"),
        ("allocator_allocations_bytes_total", "allocated_bytes"),
        ("allocator_allocated_bytes", "in_use_bytes"),
    ] {
        let line = format!("{sample} {}", of(key));
        assert!(text.lines().any(|l| l == line), "{line} is not in {text}");
    }
    let class = "allocator_class_allocations_total{class=\"752\",align=\"16\"} 1234";
    assert!(text.lines().any(|l| l == class), "{class} is not in {text}");
}
