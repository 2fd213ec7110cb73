//! Are the three formats exact, and does a strict reader of each accept them?
//!
//! The files in `golden/` are what the writers must produce for `sample()`, byte for byte; with `BLESS=1` in
//! the environment the tests write them anew. Python's strict reader accepts the same file:
//! `python3 -c 'import sys; from prometheus_client.openmetrics.parser import *;
//! print(len(list(text_fd_to_metric_families(sys.stdin))))' < stats/tests/golden/openmetrics.txt`

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail")]

use nearheap_stats::{
    ClassStats, DEFAULT_PREFIX, EachThread, HugeStats, JSON_VERSION, MAX_CLASSES, NodeStats,
    Snapshot, SystemStats, TEXT_THREADS, ThreadStats, no_threads,
};
use openmetrics_parser::openmetrics::parse_openmetrics;
use rstest::rstest;
use serde_json::Value;
use std::fmt::{self, Write};

/// A process with three used classes (one over-aligned), one unused, huge blocks, two nodes.
fn sample() -> Snapshot {
    let mut s = Snapshot::new();
    s.pid = 4711;
    for (size, align, allocs, frees, cached_blocks) in [
        (64, 16, 1000, 990, 32),
        (16, 16, 7, 7, 0),
        (64, 64, 3, 1, 4),
        (96, 16, 0, 0, 0),
        (128, 16, 0, 0, 5),
    ] {
        s.push_class(ClassStats { size, align, allocs, frees, cached_blocks });
    }
    s.huge = HugeStats { allocs: 2, frees: 1, allocated_bytes: 6 << 20, freed_bytes: 2 << 20 };
    let node = NodeStats {
        node: 0,
        allocs: 1000,
        frees: 990,
        remote_frees: 0,
        sent_home_bytes: 0,
        in_use_bytes: 640,
        cached_bytes: 2048,
        retained_bytes: 1 << 20,
        segments: 1,
        shards: 2,
        spills: 3,
        refused_binds: 0,
    };
    s.push_node(NodeStats { node: NodeStats::SEVERAL, refused_binds: 4, ..node });
    let far = NodeStats { remote_frees: 5, sent_home_bytes: 640, spills: 0, ..node };
    s.push_node(NodeStats { node: 2, allocs: 10, frees: 8, in_use_bytes: 128, ..far });
    s.push_node(node);
    s.system = SystemStats {
        mapped_bytes: 12 << 20,
        committed_bytes: 7 << 20,
        peak_committed_bytes: 9 << 20,
        metadata_bytes: 64 << 10,
        retained_bytes: 2 << 20,
        purged_bytes: 5_000_000,
        maps: 4,
        refused_maps: 1,
        refused_others: 2,
        hard_limit_refusals: 3,
        soft_limit_crossings: 5,
        refused_topologies: 1,
    };
    s.live_threads = 2;
    s.finish();
    s
}

/// A snapshot in which every row is there and every number is as long as can be.
fn full() -> Snapshot {
    let mut s = Snapshot::new();
    s.pid = u32::MAX;
    for i in 0..=MAX_CLASSES as u64 {
        let size = u64::MAX - i;
        s.push_class(ClassStats {
            size,
            align: 1 << 63,
            allocs: u64::MAX,
            frees: 0,
            cached_blocks: u64::MAX,
        });
    }
    s.finish();
    s
}

fn two_threads(each: &mut EachThread<'_>) -> fmt::Result {
    each(&ThreadStats::default())?;
    each(&ThreadStats {
        id: 4712,
        allocs: 1012,
        frees: 999,
        allocated_bytes: 6_355_648,
        freed_bytes: 2_160_624,
        cached_bytes: 2944,
    })
}

#[derive(Clone, Copy, Debug)]
enum Format {
    Text,
    Json,
    OpenMetrics,
}

fn write(format: Format, s: &Snapshot, w: &mut impl Write) -> fmt::Result {
    match format {
        Format::Text => s.write_text(w, two_threads),
        Format::Json => s.write_json(w, two_threads),
        Format::OpenMetrics => s.write_openmetrics(w, DEFAULT_PREFIX),
    }
}

fn written(format: Format, s: &Snapshot) -> String {
    let mut out = String::new();
    write(format, s, &mut out).unwrap();
    out
}

#[rstest]
#[case(Format::Text, "text.txt", include_str!("golden/text.txt"))]
#[case(Format::Json, "json.json", include_str!("golden/json.json"))]
#[case(Format::OpenMetrics, "openmetrics.txt", include_str!("golden/openmetrics.txt"))]
fn golden(#[case] format: Format, #[case] name: &str, #[case] expected: &str) {
    // A release must not change the files.
    let version = concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"");
    let got = written(format, &sample()).replace(version, "version=\"VERSION\"");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR")), got).unwrap();
        return;
    }
    assert_eq!(got, expected);
}

/// Takes `left` bytes, then refuses.
struct Narrow {
    left: usize,
}

impl Write for Narrow {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        self.left = self.left.checked_sub(s.len()).ok_or(fmt::Error)?;
        Ok(())
    }
}

#[rstest]
fn a_writer_that_fails_anywhere_is_heard(
    #[values(Format::Text, Format::Json, Format::OpenMetrics)] format: Format,
) {
    let s = sample();
    let len = written(format, &s).len();
    for left in 0..len {
        assert_eq!(write(format, &s, &mut Narrow { left }), Err(fmt::Error), "{left} of {len}");
    }
    assert_eq!(write(format, &s, &mut Narrow { left: len }), Ok(()));
}

#[test]
fn a_walk_that_fails_is_heard() {
    let fails = |_: &mut EachThread<'_>| Err(fmt::Error);
    assert!(sample().write_text(&mut String::new(), fails).is_err());
    assert!(sample().write_json(&mut String::new(), fails).is_err());
}

#[rstest]
#[case::sample(sample())]
#[case::empty(Snapshot::new())]
#[case::full(full())]
fn every_line_of_text_has_the_prefix(#[case] s: Snapshot) {
    let text = written(Format::Text, &s);
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        assert!(line.starts_with("nearheap: ") && line.trim_end() == line, "{line:?}");
    }
}

#[rstest]
#[case(TEXT_THREADS, None)]
#[case(TEXT_THREADS + 1, Some("nearheap: and 1 threads more"))]
#[case(5000, Some("nearheap: and 4968 threads more"))]
fn text_shows_a_bounded_number_of_threads(#[case] threads: u64, #[case] last: Option<&str>) {
    let mut text = String::new();
    let walk = |each: &mut EachThread<'_>| {
        (1..=threads).try_for_each(|id| each(&ThreadStats { id, ..ThreadStats::default() }))
    };
    sample().write_text(&mut text, walk).unwrap();
    let rows = text.lines().filter(|l| l.starts_with("nearheap: thread ")).count() as u64;
    assert_eq!(rows, TEXT_THREADS);
    assert_eq!(text.lines().last().filter(|l| l.contains("and")), last);
}

#[test]
fn display_is_the_text_without_threads() {
    let mut text = String::new();
    sample().write_text(&mut text, no_threads).unwrap();
    assert_eq!(sample().to_string(), text);
}

#[rstest]
#[case::sample(sample())]
#[case::empty(Snapshot::new())]
#[case::full(full())]
fn json_is_one_object_of_whole_numbers(#[case] s: Snapshot) {
    fn whole(v: &Value) -> bool {
        match v {
            Value::Number(n) => n.is_u64(),
            Value::Array(a) => a.iter().all(whole),
            Value::Object(o) => o.values().all(whole),
            _ => false,
        }
    }
    let json = written(Format::Json, &s);
    assert_eq!(json.find('\n'), Some(json.len() - 1), "one line");
    let v: Value = serde_json::from_str(&json).unwrap();
    assert!(v.is_object() && whole(&v));
    assert_eq!(v["version"], JSON_VERSION);
    assert_eq!(v["pid"], s.pid);
    assert_eq!(v["totals"]["in_use_blocks"], s.totals.in_use_blocks);
    assert_eq!(v["threads"].as_array().unwrap().len(), 2);
    let classes = v["classes"].as_array().unwrap();
    assert_eq!(classes.len(), s.classes().iter().filter(|c| c.is_used()).count());
    for (row, c) in classes.iter().zip(s.classes().iter().filter(|c| c.is_used())) {
        assert_eq!(
            (&row["size"], &row["in_use_bytes"]),
            (&c.size.into(), &c.in_use_bytes().into())
        );
    }
}

#[test]
fn json_rows_add_up_to_the_totals() {
    let v: Value = serde_json::from_str(&written(Format::Json, &sample())).unwrap();
    for key in ["allocs", "frees", "in_use_blocks", "in_use_bytes"] {
        let of = |row: &Value| row[key].as_u64().unwrap();
        let classes: u64 = v["classes"].as_array().unwrap().iter().map(of).sum();
        assert_eq!(classes + of(&v["huge"]) + of(&v["unlisted"]), of(&v["totals"]), "{key}");
    }
}

#[rstest]
fn a_strict_reader_takes_the_openmetrics(
    #[values(sample(), Snapshot::new(), full())] s: Snapshot,
    #[values(DEFAULT_PREFIX, "_my_app2")] prefix: &str,
) {
    let mut text = String::new();
    s.write_openmetrics(&mut text, prefix).unwrap();
    let read = parse_openmetrics(&text).unwrap();
    assert!(text.ends_with("\n# EOF\n"));
    assert_eq!(read.families.len(), text.lines().filter(|l| l.starts_with("# TYPE ")).count());
    assert!(read.families.contains_key(prefix), "the info");
    for name in ["allocated", "active", "metadata", "resident", "mapped", "retained"] {
        let family = &read.families[&format!("{prefix}_{name}_bytes")];
        assert_eq!(family.unit, "bytes");
    }
}

#[test]
fn openmetrics_lines_follow_the_rules() {
    let mut seen = std::collections::BTreeSet::new();
    let (mut name, mut kind) = (String::new(), String::new());
    for line in written(Format::OpenMetrics, &sample()).lines() {
        let words: Vec<_> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "EOF"] => {}
            ["#", "TYPE", n, k] => {
                (name, kind) = (n.to_owned(), k.to_owned());
                assert!(seen.insert(name.clone()), "{name} is in two places");
            }
            ["#", "UNIT", n, unit] => assert!(n == name && n.ends_with(&format!("_{unit}"))),
            ["#", "HELP", n, help] => assert!(n == name && help.ends_with('.')),
            [sample, number] => {
                let suffix = match kind.as_str() {
                    "counter" => "_total",
                    "info" => "_info",
                    _ => "",
                };
                assert_eq!(sample.split('{').next(), Some(format!("{name}{suffix}").as_str()));
                assert!(number.parse::<u64>().is_ok(), "{line}");
            }
            _ => assert_eq!(line, "", "not a line of the format"),
        }
    }
}

#[rstest]
fn a_bad_prefix_writes_nothing(#[values("", "1a-b", "a-b", "a b", "a{", "a\n")] prefix: &str) {
    let mut text = String::new();
    assert_eq!(sample().write_openmetrics(&mut text, prefix), Err(fmt::Error));
    assert_eq!(text, "");
}
