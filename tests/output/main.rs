//! Does the dump at exit say exactly what happened, wherever it goes and however the process ends?
//! Method: processes that differ in a known number of allocations, and what they wrote, read by strict readers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;
mod counts;
mod files;
mod formats;
mod snapshot;

use common::Run;
use serde_json::Value;
use std::alloc::{Layout, alloc, dealloc};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

#[global_allocator]
static GLOBAL: nearheap::NearHeap = nearheap::NearHeap::new();

/// The size of the blocks that are counted, with their headers if they have them, which nothing else in these processes has.
const SIZE: usize = 752;

#[test]
fn scenario() {
    common::play(&[
        ("allocates", counts::allocates),
        ("allocates_late", counts::allocates_late),
        ("exits_amid_threads", counts::exits_amid_threads),
        ("panics", counts::panics),
        ("exits_with_7", files::exits_with_7),
        ("forks", files::forks),
        ("forks_amid_the_dump", files::forks_amid_the_dump),
        ("asks_for_statistics", snapshot::asks_for_statistics),
    ]);
}

fn given(name: &str) -> usize {
    std::env::var(name).unwrap().parse().unwrap()
}

/// Makes `count` blocks of the size that is counted, and leaves them or frees them.
fn make_blocks(count: usize, leave: bool) {
    let layout = Layout::from_size_align(SIZE - common::overhead(), 8).unwrap();
    for _ in 0..count {
        // SAFETY: the size isn't zero; the block is freed once, with its layout.
        unsafe {
            // The optimiser would remove an allocation that nobody looks at.
            let block = std::hint::black_box(alloc(layout));
            assert!(!block.is_null());
            if !leave {
                dealloc(block, layout);
            }
        }
    }
}

/// A folder for the files of one test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static FOLDERS: AtomicUsize = AtomicUsize::new(0);
        let name =
            format!("output-{}-{}", std::process::id(), FOLDERS.fetch_add(1, Ordering::Relaxed));
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    /// What the files in it hold, each with its name.
    fn files(&self) -> Vec<(String, String)> {
        let entries = std::fs::read_dir(&self.0).unwrap().map(Result::unwrap);
        let mut files: Vec<_> = entries
            .map(|e| {
                let text = std::fs::read_to_string(e.path()).unwrap();
                (e.file_name().into_string().unwrap(), text)
            })
            .collect();
        files.sort();
        files
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// The dump that a scenario leaves in a file; it must end with this status and say nothing else.
fn dump_of(run: Run, status: i32) -> Value {
    let folder = Folder::new();
    let end = run
        .env("NEARHEAP_STATS", "json")
        .env("NEARHEAP_STATS_FILE", &folder.path("dump.%p.json"))
        .run();
    assert_eq!((end.status.code(), end.stderr.as_str()), (Some(status), ""));
    let [(name, text)] = &folder.files()[..] else { panic!("{:?}", folder.files()) };
    let dump: Value = serde_json::from_str(text).unwrap();
    assert_eq!(*name, format!("dump.{}.json", dump["pid"]));
    dump
}

/// One number of the row of the size that is counted; none where there is no row.
fn counted(dump: &Value, key: &str) -> u64 {
    let rows = dump["classes"].as_array().unwrap();
    let row = rows.iter().find(|row| row["size"] == SIZE && row["align"] == 16);
    row.map_or(0, |row| row[key].as_u64().unwrap())
}
