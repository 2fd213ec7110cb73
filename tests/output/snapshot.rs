//! Asking for the statistics changes nothing in them.

use super::{SIZE, make_blocks};
use crate::common::child;
use nearheap::{Snapshot, stats, threads};
use std::fmt::{self, Write};

/// A writer that has room, and needs no more.
struct Page {
    bytes: [u8; 64 << 10],
    len: usize,
}

impl Write for Page {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

fn same(a: &Snapshot, b: &Snapshot) {
    assert_eq!(a.totals, b.totals);
    assert_eq!(a.classes(), b.classes());
    assert_eq!(a.huge, b.huge);
    assert_eq!(a.system, b.system);
    assert_eq!(a.live_threads, b.live_threads);
}

pub(crate) fn asks_for_statistics() {
    let first = stats();
    let second = stats();
    let mut page = Page { bytes: [0; 64 << 10], len: 0 };
    second.write_text(&mut page, |each| threads(each)).unwrap();
    page.len = 0;
    second.write_json(&mut page, |each| threads(each)).unwrap();
    page.len = 0;
    second.write_openmetrics(&mut page, nearheap::DEFAULT_PREFIX).unwrap();
    let mut sum = 0;
    threads(&mut |row| {
        sum += row.allocs;
        Ok(())
    })
    .unwrap();
    let third = stats();
    same(&first, &second);
    same(&second, &third);
    assert_eq!(sum, third.totals.allocs, "the threads' rows add up to the totals");
    make_blocks(17, true);
    let rows = |s: &Snapshot| {
        let row = s.classes().iter().find(|c| c.size == SIZE as u64 && c.align == 16);
        row.map_or((0, 0), |c| (c.allocs, c.in_use_blocks()))
    };
    let fourth = stats();
    assert_eq!((rows(&third), rows(&fourth)), ((0, 0), (17, 17)));
    assert_eq!(fourth.totals.allocs, third.totals.allocs + 17);
}

#[test]
fn asking_allocates_nothing() {
    child("asks_for_statistics").run().succeeds_with("");
}
