//! What options do to the heap, seen from the program.

use crate::common::child;
use rstest::rstest;
use std::alloc::{Layout, alloc, dealloc};
use std::hint::black_box;

/// Allocates and frees 16 MiB of small blocks, then prints what its cache holds of them, what the heap retains, and
/// how many of its mappings ask for huge pages.
pub(crate) fn frees_and_looks() {
    const SIZE: usize = 256;
    const COUNT: usize = (16 << 20) / SIZE;
    let layout = Layout::from_size_align(SIZE, 8).unwrap();
    let mut blocks = Vec::with_capacity(COUNT);
    for _ in 0..COUNT {
        // SAFETY: the layout has a size; the block is written within it.
        blocks.push(unsafe {
            let block = black_box(alloc(layout));
            block.write_bytes(1, SIZE);
            block
        });
    }
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let flagged = |flag| segments(&maps).filter(|flags| flags.contains(flag)).count();
    let (huge, small) = (flagged(" hg"), flagged(" nh"));
    for block in blocks.drain(..) {
        // SAFETY: allocated above, freed once.
        unsafe { dealloc(block, layout) };
    }
    // SAFETY: `gettid` has no preconditions.
    let me = u64::from(unsafe { libc::gettid() }.unsigned_abs());
    let mut cached = 0;
    nearheap::threads(&mut |thread| {
        if thread.id == me {
            cached = thread.cached_bytes;
        }
        Ok(())
    })
    .unwrap();
    let retained = nearheap::stats().system.retained_bytes;
    eprint!("{cached} {retained} {huge} {small}");
}

/// The flags of the mappings that are segments, by their addresses: the kernel has flags of its own for stacks.
fn segments(maps: &str) -> impl Iterator<Item = &str> {
    let of_segment = |range: &str| {
        let (from, to) = range.split_once('-')?;
        let end = |text| u64::from_str_radix(text, 16).ok();
        Some((end(from)? | end(to)?).is_multiple_of(4 << 20))
    };
    let mut inside = false;
    maps.lines().filter_map(move |line| {
        let first = line.split(' ').next().unwrap_or_default();
        inside = of_segment(first).unwrap_or(inside);
        line.strip_prefix("VmFlags:").filter(|_| inside)
    })
}

/// What the scenario prints with one variable set.
fn with(option: &str, value: &str) -> [u64; 4] {
    let text = child("frees_and_looks").env(option, value).run().succeeds();
    let numbers: Vec<u64> = text.split(' ').map(|n| n.parse().unwrap()).collect();
    numbers.try_into().unwrap()
}

#[rstest]
#[case::none("NEARHEAP_CACHE_BYTES", "0", 0..4 << 10)]
#[case::little("NEARHEAP_CACHE_BYTES", "4K", 64..8 << 10)]
#[case::one_block("NEARHEAP_SLOT_BLOCKS", "1", 0..4 << 10)]
#[case::built_in("NEARHEAP_SLOT_BLOCKS", "63", 8 << 10..80 << 10)]
fn a_cache_holds_what_it_may(
    #[case] option: &str,
    #[case] value: &str,
    #[case] bytes: std::ops::Range<u64>,
) {
    let [cached, ..] = with(option, value);
    assert!(bytes.contains(&cached), "{cached} bytes");
}

#[rstest]
#[case("0", 0..1 << 20)]
#[case("4M", 0..6 << 20)]
#[case("1G", 13 << 20..20 << 20)]
fn free_pages_are_kept_up_to_retain(#[case] value: &str, #[case] bytes: std::ops::Range<u64>) {
    let [_, retained, ..] = with("NEARHEAP_RETAIN", value);
    assert!(bytes.contains(&retained), "{retained} bytes");
}

/// Where the kernel gives huge pages to everybody, a small heap has to refuse them.
#[rstest]
#[case("on", true, false)]
#[case("off", false, true)]
fn huge_pages_are_asked_for_or_refused(
    #[case] value: &str,
    #[case] asked: bool,
    #[case] refused: bool,
) {
    let [.., huge, small] = with("NEARHEAP_HUGE_PAGES", value);
    assert_eq!((huge > 0, small > 0), (asked, refused), "{huge} and {small} mappings");
}
