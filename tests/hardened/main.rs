//! With the feature `hardened`: is a write past the end of a segment or of a huge block a fault of that address, is misuse
//! found at the free itself, and are blocks at places that nobody foresees?
//! Method: each in a process of its own, without headers. What it says on stderr and the signal that ends it are compared;
//! a scenario of misuse says "went on" after the call that must not return.

#![cfg(feature = "hardened")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;

use common::{Ended, child};
use rstest::rstest;
use std::alloc::{GlobalAlloc, Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::hint::black_box;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

#[global_allocator]
static GLOBAL: nearheap::NearHeap = nearheap::NearHeap::new();

const SEGMENT: usize = 4 << 20;
const SMALL: usize = 96;
/// A size that nobody else here uses.
const RARE: usize = 976;
const SPAN: usize = 128 << 10;
const HUGE: usize = 3 << 20;

#[test]
fn scenario() {
    common::play(&[
        ("segment", || write_at(segments_end())),
        ("segment_last_byte", || write_at(segments_end() - 1)),
        ("huge", || write_at(second(HUGE) + HUGE)),
        ("huge_grown", || write_at(occupied(grown()))),
        ("huge_again", || write_at(occupied(again()))),
        ("huge_beside", || write_at(beside())),
        ("small_twice", || twice(SMALL, || {})),
        ("aligned_twice", aligned_twice),
        ("medium_twice", || twice(20 << 10, || {})),
        ("span_twice", || twice(SPAN, || {})),
        ("flushed_between", || twice(SMALL, nearheap::flush_thread)),
        ("purged_between", || twice(SMALL, || _ = nearheap::purge())),
        ("other_thread", other_thread),
        ("other_thread_ended", other_thread_ended),
        ("node_twice", node_twice),
        ("after_one", after_one),
        ("in_free_pages", in_free_pages),
        ("resized_after", resized_after),
        ("moved_after", moved_after),
        ("as_smaller", || free_as(SMALL, 48)),
        ("as_larger", || free_as(SMALL, 112)),
        ("as_span", || free_as(SMALL, SPAN)),
        ("span_as_small", || free_as(SPAN, SMALL)),
        ("inside", || free_at(block(SMALL).wrapping_add(16), SMALL)),
        ("unaligned", || free_at(block(SMALL).wrapping_add(4), SMALL)),
        ("span_inside", || free_at(block(SPAN).wrapping_add(4096), SPAN)),
        ("foreign", || free_at(std::ptr::without_provenance_mut(0x1000), SMALL)),
        ("nothing_wrong", nothing_wrong),
        ("places", places),
        ("orders", orders),
    ]);
}

fn plain(scenario: &str) -> Ended {
    child(scenario).env("NEARHEAP_HEADERS", "0").run()
}

/// Says something on stderr without an allocation.
fn say(text: &str) {
    // SAFETY: the bytes are valid to read.
    unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

fn block(size: usize) -> *mut u8 {
    // Hidden from the optimiser, which would remove a block that is only freed.
    // SAFETY: no layout here is of size 0.
    let block = black_box(unsafe { alloc(layout(size)) });
    assert!(!block.is_null());
    block
}

/// The address at which a write shall be a fault.
static WATCHED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn on_fault(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: of a SIGSEGV, the kernel tells the address.
    let at = unsafe { (*info).si_addr() } as usize;
    say(if at == WATCHED.load(Ordering::SeqCst) {
        "fault where it was written\n"
    } else {
        "fault elsewhere\n"
    });
    // Back at the write, the signal is what it is by default.
    // SAFETY: a constant of the C library.
    unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
}

fn write_at(address: usize) {
    WATCHED.store(address, Ordering::SeqCst);
    let handler: extern "C" fn(_, _, _) = on_fault;
    // SAFETY: a handler that calls `write` and `signal` alone; the write is the overrun under test.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGSEGV, &action, std::ptr::null_mut()), 0);
        std::ptr::with_exposed_provenance_mut::<u8>(address).write_volatile(1);
    }
    say("written\n");
}

/// The end of the lower of two segments that follow each other as near as they may, where a block ends.
fn segments_end() -> usize {
    let mut ends: Vec<_> =
        (0..32).map(|_| block(1 << 20).expose_provenance() + (1 << 20)).collect();
    ends.retain(|end| end.is_multiple_of(SEGMENT));
    ends.sort_unstable();
    assert!(ends.len() > 4, "blocks of 1 MiB end where their segments do: {ends:x?}");
    ends[0]
}

/// The second of two huge blocks: the kernel puts its mapping right before that of the first.
fn second(size: usize) -> usize {
    [(); 2].map(|()| block(size).expose_provenance())[1]
}

/// The same address, where somebody else maps a page if nothing is there.
fn occupied(address: usize) -> usize {
    let (read_write, how) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
    );
    let at = std::ptr::without_provenance_mut(address);
    // SAFETY: it replaces nothing.
    unsafe { libc::mmap(at, 4096, read_write, how, -1, 0) };
    address
}

/// The end of one that grew out of its place.
fn grown() -> usize {
    let block = std::ptr::with_exposed_provenance_mut(second(HUGE));
    // SAFETY: a block of this layout.
    let moved = unsafe { realloc(block, layout(HUGE), 5 * HUGE) };
    assert_ne!(moved, block, "there is no room behind it");
    moved.expose_provenance() + 5 * HUGE
}

/// The end of one in a mapping that was another's before.
fn again() -> usize {
    let block = second(HUGE);
    // SAFETY: a block of this layout.
    unsafe { dealloc(std::ptr::with_exposed_provenance_mut(block), layout(HUGE)) };
    assert_eq!(self::block(HUGE) as usize, block, "what is kept is used again");
    block + HUGE
}

/// The end of one in the first part of a mapping, of which the rest is free: nothing of anybody's is there.
fn beside() -> usize {
    let block = second(2 * HUGE);
    // SAFETY: a block of this layout.
    unsafe { dealloc(std::ptr::with_exposed_provenance_mut(block), layout(2 * HUGE)) };
    assert_eq!(self::block(HUGE) as usize, block, "what is kept is used again");
    block + HUGE
}

const AT_THE_WRITE: &str = "fault where it was written\n";

#[rstest]
#[case("segment")]
#[case("huge")]
#[case("huge_grown")]
#[case("huge_again")]
fn an_overrun_of_a_mapping_is_a_fault_there(#[case] scenario: &str) {
    let end = plain(scenario);
    assert_eq!(end.status.signal(), Some(libc::SIGSEGV), "{end}");
    assert_eq!(end.stderr, AT_THE_WRITE);
}

#[rstest]
#[case::up_to_there("segment_last_byte")]
#[case::where_the_room_is_taken("huge_beside")]
fn before_the_wall_nothing_happens(#[case] scenario: &str) {
    plain(scenario).succeeds_with("written\n");
}

fn free_as(size: usize, wrong: usize) {
    let block = block(size);
    // SAFETY: none: it is the misuse under test, as in all that follow.
    unsafe { dealloc(block, layout(wrong)) };
    say("went on\n");
}

fn free_at(at: *mut u8, size: usize) {
    // SAFETY: none.
    unsafe { dealloc(at, layout(size)) };
    say("went on\n");
}

fn twice(size: usize, between: fn()) {
    let block = block(size);
    // SAFETY: a block of this layout.
    unsafe { dealloc(block, layout(size)) };
    between();
    say("once\n");
    free_at(block, size);
}

fn aligned_twice() {
    let layout = Layout::from_size_align(200, 64).unwrap();
    // SAFETY: no size is 0; none for the second free.
    unsafe {
        let block = black_box(alloc_zeroed(layout));
        dealloc(block, layout);
        say("once\n");
        dealloc(block, layout);
    }
    say("went on\n");
}

/// The block waits in the cache of another thread, which lives.
fn other_thread() {
    let address = block(SMALL).expose_provenance();
    let free = move || free_at(std::ptr::with_exposed_provenance_mut(address), SMALL);
    let (freed, wait) = std::sync::mpsc::channel();
    thread::spawn(move || {
        // SAFETY: a block of this layout.
        unsafe { dealloc(std::ptr::with_exposed_provenance_mut(address), layout(SMALL)) };
        freed.send(()).unwrap();
        thread::sleep(std::time::Duration::from_secs(60));
    });
    wait.recv().unwrap();
    say("once\n");
    free();
}

/// The block waits in a magazine, for its thread has ended.
fn other_thread_ended() {
    let address = block(SMALL).expose_provenance();
    let at = move || std::ptr::with_exposed_provenance_mut(address);
    // SAFETY: a block of this layout.
    thread::spawn(move || unsafe { dealloc(at(), layout(SMALL)) }).join().unwrap();
    say("once\n");
    free_at(at(), SMALL);
}

fn node_twice() {
    let heap = nearheap::NodeHeap::on(0);
    // SAFETY: no size is 0; none for the second free.
    unsafe {
        let block = black_box(heap.alloc(layout(SMALL)));
        heap.dealloc(block, layout(SMALL));
        say("once\n");
        heap.dealloc(block, layout(SMALL));
    }
    say("went on\n");
}

/// The place after a block, where the heap has one that it has given to nobody yet.
fn after_one() {
    let block = block(RARE);
    say("once\n");
    free_at(block.wrapping_add(RARE), RARE);
}

/// A place where nobody has had a block of that size, in pages that are free again.
fn in_free_pages() {
    let span = block(SPAN);
    // SAFETY: a block of this layout.
    unsafe { dealloc(span, layout(SPAN)) };
    say("once\n");
    free_at(span.wrapping_add(3 * 4096), RARE);
}

/// A freed block is to grow where it stands.
fn resized_after() {
    let block = block(SPAN);
    // SAFETY: none for the second.
    unsafe {
        dealloc(block, layout(SPAN));
        say("once\n");
        black_box(realloc(block, layout(SPAN), 2 * SPAN));
    }
    say("went on\n");
}

/// The same for one that moves.
fn moved_after() {
    let block = block(SMALL);
    // SAFETY: none for the second.
    unsafe {
        dealloc(block, layout(SMALL));
        say("once\n");
        black_box(realloc(block, layout(SMALL), 8 * SMALL));
    }
    say("went on\n");
}

/// Every way to get a block and to give it back, on several threads, each on to the next.
fn nothing_wrong() {
    let (first, mut from) = std::sync::mpsc::channel::<Vec<(usize, Layout)>>();
    let mut blocks = Vec::new();
    for size in [1, 16, 96, 1000, 1024, 3000, 20 << 10, SPAN, 1 << 20, HUGE] {
        for align in [1, 16, 64, 4096, 2 << 20] {
            for round in 0..40_usize {
                let layout = Layout::from_size_align(size, align).unwrap();
                // SAFETY: no size is 0; each block is resized with its own layout.
                let block = unsafe {
                    match round % 4 {
                        0 => alloc(layout),
                        1 => alloc_zeroed(layout),
                        2 => nearheap::NodeHeap::on(0).alloc(layout),
                        _ => realloc(alloc(layout), layout, size + round * 100),
                    }
                };
                let size = if round % 4 == 3 { size + round * 100 } else { size };
                let layout = Layout::from_size_align(size, align).unwrap();
                blocks.push((block.expose_provenance(), layout));
                if round % 8 == 7 {
                    let (at, layout) = blocks.swap_remove(blocks.len() / 2);
                    // SAFETY: a block of this layout.
                    unsafe { dealloc(std::ptr::with_exposed_provenance_mut(at), layout) };
                }
            }
        }
    }
    first.send(blocks).unwrap();
    for _ in 0..4 {
        let (to, next) = std::sync::mpsc::channel();
        let receiver = std::mem::replace(&mut from, next);
        thread::spawn(move || {
            let mut blocks = receiver.recv().unwrap();
            let kept = blocks.split_off(blocks.len() / 4);
            for (at, layout) in blocks {
                // SAFETY: a block of this layout.
                unsafe { dealloc(std::ptr::with_exposed_provenance_mut(at), layout) };
            }
            to.send(kept).unwrap();
        })
        .join()
        .unwrap();
    }
    for (at, layout) in from.recv().unwrap() {
        // SAFETY: a block of this layout.
        unsafe { dealloc(std::ptr::with_exposed_provenance_mut(at), layout) };
    }
    nearheap::purge();
}

#[test]
fn what_is_right_is_not_a_fault() {
    plain("nothing_wrong").succeeds_with("");
}

const DOUBLE: &str = "double free";
const INSIDE: &str = "not a block start";
const FOREIGN: &str = "not a block of this heap";
const WRONG: &str = "wrong layout: the block has another size";

#[rstest]
#[case("small_twice", SMALL)]
#[case("aligned_twice", 256)]
#[case("medium_twice", 20 << 10)]
#[case("span_twice", SPAN)]
#[case("flushed_between", SMALL)]
#[case("purged_between", SMALL)]
#[case("other_thread", SMALL)]
#[case("other_thread_ended", SMALL)]
#[case("node_twice", SMALL)]
#[case("after_one", RARE)]
#[case("in_free_pages", RARE)]
#[case("resized_after", SPAN)]
#[case("moved_after", SMALL)]
fn a_second_free_is_found_at_once(#[case] scenario: &str, #[case] class: usize) {
    let line = format!("once\nnearheap: fatal: {DOUBLE}: ptr=0x... class={class} node=0\n");
    plain(scenario).aborts_with(&line);
}

#[rstest]
#[case("as_smaller", WRONG, 48)]
#[case("as_larger", WRONG, 112)]
#[case("as_span", WRONG, SPAN)]
#[case("span_as_small", WRONG, SMALL)]
#[case("inside", INSIDE, SMALL)]
#[case("unaligned", INSIDE, SMALL)]
#[case("span_inside", INSIDE, SPAN)]
#[case("foreign", FOREIGN, SMALL)]
fn other_misuse_is_found_at_once(
    #[case] scenario: &str,
    #[case] words: &str,
    #[case] class: usize,
) {
    let line = format!("nearheap: fatal: {words}: ptr=0x... class={class} node=0\n");
    plain(scenario).aborts_with(&line);
}

/// Where in their chunks 200 blocks are, one after the other.
fn places() {
    let blocks = [(); 200].map(|()| block(48) as usize);
    blocks.iter().for_each(|at| say(&format!("{} ", at % (64 << 10))));
}

/// The same of 200 blocks by their order alone.
fn orders() {
    let blocks = [(); 200].map(|()| block(48) as usize);
    blocks.windows(2).for_each(|pair| say(if pair[0] < pair[1] { "<" } else { ">" }));
}

#[rstest]
#[case("places")]
#[case("orders")]
fn no_two_runs_are_alike(#[case] scenario: &str) {
    let runs = [(); 3].map(|()| plain(scenario).succeeds());
    assert!(runs[0] != runs[1] && runs[1] != runs[2] && runs[0] != runs[2], "{runs:#?}");
}
