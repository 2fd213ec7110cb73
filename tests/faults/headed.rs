//! The same in headers mode: every misuse is named, with size and class, at the free; a write after it when the block
//! leaves the quarantine.

use super::{GIANT, HUGE, SMALL, SPAN, block, free_at, layout};
use crate::common::{Run, child};
use nearheap::NodeHeap;
use rstest::rstest;
use std::alloc::{GlobalAlloc, Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::hint::black_box;
use std::{ptr, thread};

pub(crate) const SCENARIOS: &[(&str, fn())] = &[
    ("all_right", all_right),
    ("freed_by_a_later_thread_and_again", freed_by_a_later_thread_and_again),
    ("a_b_a", a_b_a),
    ("a_new_a", a_new_a),
    ("aligned_twice", || twice(aligned(), ALIGNED)),
    ("aligned_huge_twice", || twice(fresh(HUGE_ALIGNED), HUGE_ALIGNED)),
    ("empty_twice", || twice(block(0), layout(0))),
    ("resized_after_free", resized_after_free),
    ("node_twice", node_twice),
    ("aligned_as_plain", || free_with(aligned(), layout(ALIGNED.size()))),
    ("plain_as_aligned", || free_with(block(SMALL), ALIGNED)),
    ("resized_as_smaller", resized_as_smaller),
    ("one_smaller", || free_with(block(SMALL), layout(SMALL - 1))),
    ("over_0", || write(block(SMALL), SMALL as isize, 0, layout(SMALL))),
    ("over_a", || write(block(SMALL), SMALL as isize, b'a', layout(SMALL))),
    ("over_255", || write(block(SMALL), SMALL as isize, 255, layout(SMALL))),
    ("over_far", || write(block(SMALL), SMALL as isize + 15, 0, layout(SMALL))),
    ("over_odd", || write(block(97), 97, 0, layout(97))),
    ("over_empty", || write(block(0), 0, 0, layout(0))),
    ("over_aligned", || write(aligned(), ALIGNED.size() as isize, 0, ALIGNED)),
    ("over_span", || write(block(SPAN), SPAN as isize, 0, layout(SPAN))),
    ("over_huge", || write(block(HUGE), HUGE as isize, 0, layout(HUGE))),
    ("over_resized", over_resized),
    ("under", || write(block(SMALL), -1, 7, layout(SMALL))),
    ("under_far", || write(block(SMALL), -16, 7, layout(SMALL))),
    ("under_span", || write(block(SPAN), -1, 7, layout(SPAN))),
    ("under_huge", || write(block(HUGE), -1, 7, layout(HUGE))),
    ("under_aligned", || write(aligned(), -1, 7, ALIGNED)),
    ("under_aligned_base", || write(aligned(), -64, 7, ALIGNED)),
    ("static", || free_with((&raw const PLAIN_STATIC).cast_mut().cast(), layout(SMALL))),
    ("mapping", mapping),
    ("integer_16", || free_with(ptr::without_provenance_mut(16), layout(SMALL))),
    ("integer_1", || free_with(ptr::without_provenance_mut(1), layout(SMALL))),
    ("minus_one", || free_with(ptr::without_provenance_mut(usize::MAX), layout(SMALL))),
    ("minus_16", || free_with(ptr::without_provenance_mut(usize::MAX - 15), layout(SMALL))),
    ("small_base", || free_with(block(SMALL).wrapping_sub(16), layout(SMALL))),
    ("small_end", || free_at(SMALL, SMALL)),
    ("huge_end", || free_at(HUGE, HUGE - 16)),
    ("aligned_header", || free_with(aligned().wrapping_sub(48), ALIGNED)),
    ("copied_header", copied_header),
    ("late_5", || late(SMALL, 5)),
    ("late_last", || late(SMALL, SMALL as isize - 1)),
    ("late_end", || late(SMALL, SMALL as isize)),
    ("late_before", || late(SMALL, -1)),
    ("late_span", || late(SPAN, SPAN as isize / 2)),
    ("late_in_another_thread", late_in_another_thread),
    ("late_until_exit", || late_write(SMALL, 5)),
    ("late_until_others_come", late_until_others_come),
];

static PLAIN_STATIC: [u128; 8] = [0; 8];

/// Over-aligned, so that the header is not at the beginning of the block.
const ALIGNED: Layout = match Layout::from_size_align(100, 64) {
    Ok(layout) => layout,
    Err(_) => panic!("a layout"),
};
const HUGE_ALIGNED: Layout = match Layout::from_size_align(HUGE, 1 << 16) {
    Ok(layout) => layout,
    Err(_) => panic!("a layout"),
};

fn fresh(layout: Layout) -> *mut u8 {
    // SAFETY: no layout here is of size 0.
    let block = black_box(unsafe { alloc(layout) });
    assert!(!block.is_null() && (block as usize).is_multiple_of(layout.align()));
    block
}

fn aligned() -> *mut u8 {
    let blocks = [(); 3].map(|()| fresh(ALIGNED));
    blocks[1]
}

// SAFETY of all that follows: none. They are the misuse under test.

fn twice(block: *mut u8, layout: Layout) {
    for _ in 0..2 {
        // SAFETY: none for the second.
        unsafe { dealloc(block, layout) };
    }
}

fn free_with(block: *mut u8, layout: Layout) {
    // SAFETY: none.
    unsafe { dealloc(block, layout) };
}

/// Writes a byte, or another one where it is there already: a header's check follows from the address, which the kernel
/// chooses.
fn overwrite(block: *mut u8, at: isize, byte: u8) {
    let place = block.wrapping_offset(at);
    // SAFETY: none. The optimiser would leave out what nobody reads before the free.
    unsafe { place.write_volatile(if place.read_volatile() == byte { !byte } else { byte }) };
}

fn write(block: *mut u8, at: isize, byte: u8, layout: Layout) {
    overwrite(block, at, byte);
    // SAFETY: none.
    unsafe { dealloc(block, layout) };
}

/// The owner of the block is gone before the first free, and the one who freed it before the second.
fn freed_by_a_later_thread_and_again() {
    let block = thread::spawn(|| block(SMALL) as usize).join().unwrap();
    for _ in 0..2 {
        let free = move || free_with(ptr::with_exposed_provenance_mut(block), layout(SMALL));
        thread::spawn(free).join().unwrap();
    }
}

fn a_b_a() {
    let (a, b) = (block(SMALL), block(SMALL));
    for block in [a, b, a] {
        free_with(block, layout(SMALL));
    }
}

/// Somebody else could have got the memory, but for the quarantine.
fn a_new_a() {
    let a = block(SMALL);
    free_with(a, layout(SMALL));
    assert_ne!(fresh(layout(SMALL)), a);
    free_with(a, layout(SMALL));
}

fn resized_after_free() {
    let block = block(SMALL);
    free_with(block, layout(SMALL));
    // SAFETY: none.
    black_box(unsafe { realloc(block, layout(SMALL), 200) });
}

fn node_twice() {
    let heap = NodeHeap::on(0);
    // SAFETY: none for the second.
    unsafe {
        let block = black_box(heap.alloc(layout(SMALL)));
        heap.dealloc(block, layout(SMALL));
        heap.dealloc(block, layout(SMALL));
    }
}

fn resized_as_smaller() {
    // SAFETY: none.
    black_box(unsafe { realloc(block(SMALL), layout(48), 200) });
}

fn over_resized() {
    let block = block(SMALL);
    // SAFETY: the block's own layout; none for the write.
    unsafe {
        let block = black_box(realloc(block, layout(SMALL), SMALL + 5));
        write(block, SMALL as isize + 5, 0, layout(SMALL + 5));
    }
}

fn mapping() {
    // SAFETY: a new mapping touches nothing; none for the free.
    let at = unsafe {
        let (rw, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        libc::mmap(ptr::null_mut(), 4096, rw, flags, -1, 0)
    };
    free_with(at.cast::<u8>().wrapping_add(64), layout(SMALL));
}

/// The header of one block in another one.
fn copied_header() {
    let block = block(SMALL);
    // SAFETY: inside the block, and its header.
    unsafe { block.copy_from_nonoverlapping(block.wrapping_sub(16), 16) };
    free_with(block.wrapping_add(16), layout(SMALL));
}

fn late_write(size: usize, at: isize) {
    let block = block(size);
    free_with(block, layout(size));
    overwrite(block, at, 1);
}

fn late(size: usize, at: isize) {
    late_write(size, at);
    nearheap::purge();
}

fn late_in_another_thread() {
    thread::spawn(|| late_write(SMALL, 5)).join().unwrap();
    nearheap::purge();
}

/// As the quarantine fills, those that waited longest leave; nobody waits for the exit, which would look at it too.
fn late_until_others_come() {
    late_write(SMALL, 5);
    for _ in 0..100_000 {
        free_with(block(SMALL), layout(SMALL));
    }
    // SAFETY: no preconditions.
    unsafe { libc::_exit(0) };
}

/// What a program may do, with blocks of every kind.
fn all_right() {
    let sizes = [0, 1, 8, 16, 96, 97, 1024, 1025, 20 << 10, SPAN, 1 << 20, HUGE, GIANT];
    for size in sizes {
        for align in [1, 8, 16, 64, 4096, 1 << 16] {
            let layout = Layout::from_size_align(size, align).unwrap();
            // SAFETY: blocks are written inside their sizes, and freed once, with their layouts.
            unsafe {
                let block = black_box(alloc(layout));
                assert!((block as usize).is_multiple_of(align));
                block.write_bytes(7, size.min(1 << 16));
                let larger = size + size / 2 + 1;
                let block = black_box(realloc(block, layout, larger));
                assert!((block as usize).is_multiple_of(align));
                assert!((0..size.min(1 << 16)).all(|i| block.add(i).read() == 7));
                block.add(larger - 1).write(8);
                let layout = Layout::from_size_align(larger, align).unwrap();
                let block = black_box(realloc(block, layout, 1));
                dealloc(block, Layout::from_size_align(1, align).unwrap());
                let layout = Layout::from_size_align(larger, align).unwrap();
                let block = black_box(alloc_zeroed(layout));
                assert!((0..larger.min(1 << 16)).all(|i| block.add(i).read() == 0));
                assert_eq!(block.add(larger - 1).read(), 0);
                dealloc(block, layout);
            }
        }
    }
    nearheap::purge();
}

fn headed(scenario: &str) -> Run {
    child(scenario).env("NEARHEAP_HEADERS", "1")
}

#[test]
fn what_is_right_is_not_a_fault() {
    headed("all_right").run().succeeds_with("");
    headed("all_right").env("NEARHEAP_HEADERS_QUARANTINE", "0").run().succeeds_with("");
    headed("nothing_wrong").run().succeeds_with("");
}

/// Without headers, none of these is noticed at once; with a quarantine of nothing, a late write isn't either.
#[test]
fn without_headers_nothing_is_looked_at() {
    for scenario in ["late_until_exit", "over_a", "under", "one_smaller"] {
        child(scenario).env("NEARHEAP_HEADERS", "off").run().succeeds_with("");
    }
    headed("late_until_exit").env("NEARHEAP_HEADERS_QUARANTINE", "0").run().succeeds_with("");
}

#[test]
fn a_build_with_debug_assertions_has_headers_by_default() {
    let ended = child("late_until_exit").run();
    if cfg!(debug_assertions) {
        ended.aborts_with(
            "nearheap: fatal: write after free: at byte 5: ptr=0x... size=96 class=128 node=0\n",
        );
    } else {
        ended.succeeds_with("");
    }
}

const DOUBLE: &str = "double free";
const INSIDE: &str = "not a block start";
const FOREIGN: &str = "not a block of this heap";
const OVER: &str = "overrun: written behind the end";
const UNDER: &str = "header damaged, as by an underrun: 0x... 0x...";

const SPAN_CLASS: usize = 144 << 10;
const HUGE_CLASS: usize = HUGE + 4096;

/// The class of a block: of a huge one, which is in whole OS pages, as these are on this machine.
fn on_these_pages(class: usize) -> usize {
    // SAFETY: reads a constant of the process.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    if class > 1 << 20 { class.next_multiple_of(page) } else { class }
}

#[rstest]
#[case::double_free("small_twice", DOUBLE, SMALL, 128)]
#[case::double_free("small_twice_with_a_purge_between", DOUBLE, SMALL, 128)]
#[case::double_free("small_twice_by_two_threads", DOUBLE, SMALL, 128)]
#[case::double_free("small_once_more_by_a_later_thread", DOUBLE, SMALL, 128)]
#[case::double_free("freed_by_a_later_thread_and_again", DOUBLE, SMALL, 128)]
#[case::double_free("small_for_ever", DOUBLE, SMALL, 128)]
#[case::double_free("a_b_a", DOUBLE, SMALL, 128)]
#[case::double_free("a_new_a", DOUBLE, SMALL, 128)]
#[case::double_free("resized_after_free", DOUBLE, SMALL, 128)]
#[case::double_free("node_twice", DOUBLE, SMALL, 128)]
#[case::double_free("empty_twice", DOUBLE, 0, 32)]
#[case::double_free("aligned_twice", DOUBLE, 100, 192)]
#[case::double_free("cached_twice", DOUBLE, 20 << 10, 22 << 10)]
#[case::double_free("span_twice", DOUBLE, SPAN, SPAN_CLASS)]
#[case::double_free("huge_twice", DOUBLE, HUGE, HUGE_CLASS)]
#[case::double_free("aligned_huge_twice", DOUBLE, HUGE, HUGE + (1 << 16) + 4096)]
#[case::unmapped("giant_twice", FOREIGN, GIANT, GIANT + 4096)]
#[case::inside("small_16_bytes_in", INSIDE, SMALL, 128)]
#[case::inside("small_4_bytes_in", INSIDE, SMALL, 128)]
#[case::inside("small_base", INSIDE, SMALL, 128)]
#[case::inside("small_end", INSIDE, SMALL, 128)]
#[case::inside("span_a_page_in", INSIDE, SPAN, SPAN_CLASS)]
#[case::inside("huge_a_page_in", INSIDE, HUGE, HUGE_CLASS)]
#[case::inside("huge_end", INSIDE, HUGE, HUGE_CLASS)]
#[case::inside("aligned_header", INSIDE, 100, 192)]
#[case::inside("copied_header", INSIDE, SMALL, 128)]
#[case::inside("resize_inside", INSIDE, 8 << 10, 9 << 10)]
#[case::inside("resize_span_inside", INSIDE, SPAN, SPAN_CLASS)]
#[case::inside("resize_huge_inside", INSIDE, HUGE, HUGE_CLASS)]
#[case::foreign("local", FOREIGN, SMALL, 128)]
#[case::foreign("static", FOREIGN, SMALL, 128)]
#[case::foreign("mapping", FOREIGN, SMALL, 128)]
#[case::foreign("null_page", FOREIGN, SMALL, 128)]
#[case::foreign("integer_16", FOREIGN, SMALL, 128)]
#[case::foreign("integer_1", FOREIGN, SMALL, 128)]
#[case::foreign("minus_one", FOREIGN, SMALL, 128)]
#[case::foreign("minus_16", FOREIGN, SMALL, 128)]
#[case::foreign("far", FOREIGN, SMALL, 128)]
#[case::foreign("far_huge", FOREIGN, HUGE, HUGE_CLASS)]
#[case::overrun("over_0", OVER, SMALL, 128)]
#[case::overrun("over_a", OVER, SMALL, 128)]
#[case::overrun("over_255", OVER, SMALL, 128)]
#[case::overrun("over_far", OVER, SMALL, 128)]
#[case::overrun("over_odd", OVER, 97, 144)]
#[case::overrun("over_empty", OVER, 0, 32)]
#[case::overrun("over_aligned", OVER, 100, 192)]
#[case::overrun("over_span", OVER, SPAN, SPAN_CLASS)]
#[case::overrun("over_huge", OVER, HUGE, HUGE_CLASS)]
#[case::overrun("over_resized", OVER, SMALL + 5, 144)]
#[case::underrun("under", UNDER, SMALL, 128)]
#[case::underrun("under_far", UNDER, SMALL, 128)]
#[case::underrun("under_span", UNDER, SPAN, SPAN_CLASS)]
#[case::underrun("under_huge", UNDER, HUGE, HUGE_CLASS)]
#[case::underrun("under_aligned", UNDER, 100, 192)]
#[case::underrun("under_aligned_base", UNDER, 100, 192)]
#[case::late("late_5", "write after free: at byte 5", SMALL, 128)]
#[case::late("late_last", "write after free: at byte 95", SMALL, 128)]
#[case::late("late_end", "write after free: at byte 96", SMALL, 128)]
#[case::late("late_span", "write after free: at byte 65536", SPAN, SPAN_CLASS)]
#[case::late("late_in_another_thread", "write after free: at byte 5", SMALL, 128)]
#[case::late("late_until_exit", "write after free: at byte 5", SMALL, 128)]
#[case::late("late_until_others_come", "write after free: at byte 5", SMALL, 128)]
fn misuse_is_named(
    #[case] scenario: &str,
    #[case] words: &str,
    #[case] size: usize,
    #[case] class: usize,
) {
    let class = on_these_pages(class);
    let line = format!("nearheap: fatal: {words}: ptr=0x... size={size} class={class} node=0\n");
    headed(scenario).run().aborts_with(&line);
}

#[rstest]
#[case("small_as_smaller", (48, 8), (SMALL, 8), 128)]
#[case("small_as_larger", (112, 8), (SMALL, 8), 128)]
#[case("one_smaller", (SMALL - 1, 8), (SMALL, 8), 128)]
#[case("resized_as_smaller", (48, 8), (SMALL, 8), 128)]
#[case("small_as_span", (SPAN, 8), (SMALL, 8), 128)]
#[case("small_as_huge", (HUGE, 8), (SMALL, 8), 128)]
#[case("span_as_smaller", (SPAN / 2, 8), (SPAN, 8), SPAN_CLASS)]
#[case("span_as_larger", (SPAN * 2, 8), (SPAN, 8), SPAN_CLASS)]
#[case("span_as_small", (SMALL, 8), (SPAN, 8), SPAN_CLASS)]
#[case("huge_as_smaller", (2 << 20, 8), (HUGE, 8), HUGE_CLASS)]
#[case("huge_as_small", (SMALL, 8), (HUGE, 8), HUGE_CLASS)]
#[case("aligned_as_plain", (100, 8), (100, 64), 192)]
#[case("plain_as_aligned", (100, 64), (SMALL, 8), 128)]
fn a_wrong_layout_is_named_beside_the_right_one(
    #[case] scenario: &str,
    #[case] (wrong, to): (usize, usize),
    #[case] (size, align): (usize, usize),
    #[case] class: usize,
) {
    let class = on_these_pages(class);
    let line = format!(
        "nearheap: fatal: wrong layout: given back as size={wrong} align={to}, allocated as size={size} align={align}: \
         ptr=0x... size={size} class={class} node=0\n"
    );
    headed(scenario).run().aborts_with(&line);
}

/// Whose it was isn't known where the header is damaged after the free.
#[test]
fn a_header_that_was_overwritten_late_is_named() {
    let line = format!("nearheap: fatal: {UNDER}: ptr=0x... node=0\n");
    headed("late_before").run().aborts_with(&line);
}
