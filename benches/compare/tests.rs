//! Does every workload run, free what it allocated, and arrive at the same sum every time?
//! Method: the program `workload` as it is built without an allocator, which counts the bytes, at the smallest scale.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "catalog.rs"]
mod catalog;

use rstest::rstest;
use serde_json::Value;
use std::process::{Command, Output};

fn workload(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_workload")).args(arguments).output().unwrap()
}

fn report(name: &str) -> Value {
    let output = workload(&[name, "tiny"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{name}: {}: {stderr}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn every_workload_does_the_same_work_every_time() {
    assert!(catalog::ALLOCATORS.contains(&"nearheap"));
    for entry in &catalog::WORKLOADS {
        assert!(!entry.about.is_empty() && catalog::workload(entry.name).is_some());
        let (first, second) = (report(entry.name), report(entry.name));
        assert_eq!(first["workload"], entry.name);
        assert_eq!(first["checksum"], second["checksum"], "{}", entry.name);
        for number in ["time_ns", "rss_start", "rss_peak", "rss_freed", "rss_point"] {
            assert!(first[number].as_u64().unwrap() > 0, "{}: {first}", entry.name);
        }
        assert!(first["rss_peak"].as_u64() >= first["rss_freed"].as_u64(), "{first}");
        if first["allocator"] == "count" {
            assert!(first["live_peak"].as_u64() >= first["live_point"].as_u64(), "{first}");
            // Rust's runtime keeps a little: the names of threads, the buffer of stdout.
            assert!(first["live_freed"].as_u64().unwrap() < 4096, "{}: {first}", entry.name);
        }
        // Kept within what a run on one CPU can be expected to be.
        assert!(entry.pinned || !entry.full_only);
    }
}

#[rstest]
#[case(&[], "usage: workload NAME [full|quick|tiny]\n")]
#[case(&["no-such-thing"], "workload: no-such-thing: no such workload\n")]
#[case(&["json", "huge"], "workload: huge: no such scale; there are full, quick and tiny\n")]
fn a_mistake_is_one_line(#[case] arguments: &[&str], #[case] line: &str) {
    let output = workload(arguments);
    assert_eq!(
        (output.status.code(), String::from_utf8(output.stderr).unwrap().as_str()),
        (Some(2), line)
    );
}
