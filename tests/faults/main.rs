//! Does misuse that reaches the granule heap end in SIGABRT and one line that names it? In headers mode, all of it, and at
//! the free itself?
//! Method: each misuse in a process of its own, which without headers pushes what was freed through the caches with
//! `nearheap::purge`; blocks over 32 KiB are in no cache, so there the line comes from the free itself. What is compared is
//! the signal and all of stderr.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;
mod headed;

use common::{Run, child};
use rstest::rstest;
use std::alloc::{Layout, alloc, dealloc, realloc};
use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

#[global_allocator]
static GLOBAL: nearheap::NearHeap = nearheap::NearHeap::new();

const SMALL: usize = 96;
const SPAN: usize = 128 << 10;
const HUGE: usize = 3 << 20;
/// So large that its mapping isn't kept when it is freed.
const GIANT: usize = 64 << 20;

#[test]
fn scenario() {
    let plain: &[(&str, fn())] = &[
        ("nothing_wrong", nothing_wrong),
        ("small_twice", || free_twice(SMALL)),
        ("cached_twice", || free_twice(20 << 10)),
        ("span_twice", || free_twice(SPAN)),
        ("huge_twice", || free_twice(HUGE)),
        ("giant_twice", || free_twice(GIANT)),
        ("small_twice_with_a_purge_between", small_twice_with_a_purge_between),
        ("small_twice_by_two_threads", small_twice_by_two_threads),
        ("small_once_more_by_a_later_thread", small_once_more_by_a_later_thread),
        ("small_for_ever", small_for_ever),
        ("small_16_bytes_in", || free_at(SMALL, 16)),
        ("small_4_bytes_in", || free_at(SMALL, 4)),
        ("span_a_page_in", || free_at(SPAN, 4096)),
        ("huge_a_page_in", || free_at(HUGE, 4096)),
        ("local", local),
        ("null_page", || free_address(16, SMALL)),
        ("far", || free_address(0xdead_0000_0000_0010, SMALL)),
        ("far_huge", || free_address(0xdead_0000_0000_0010, HUGE)),
        ("small_as_smaller", || free_as(SMALL, 48)),
        ("small_as_larger", || free_as(SMALL, 112)),
        ("small_as_span", || free_as(SMALL, SPAN)),
        ("small_as_huge", || free_as(SMALL, HUGE)),
        ("span_as_smaller", || free_as(SPAN, SPAN / 2)),
        ("span_as_larger", || free_as(SPAN, SPAN * 2)),
        ("span_as_small", || free_as(SPAN, SMALL)),
        ("huge_as_smaller", || free_as(HUGE, 2 << 20)),
        ("huge_as_larger", || free_as(HUGE, 4 << 20)),
        ("huge_as_small", || free_as(HUGE, SMALL)),
        ("resize_inside", || resize_at(8 << 10, 16, 10 << 10)),
        ("resize_span_inside", || resize_at(SPAN, 4096, SPAN * 2)),
        ("resize_huge_inside", || resize_at(HUGE, 4096, HUGE * 2)),
        ("two_threads_at_once", two_threads_at_once),
        ("second_amid_the_line", second_amid_the_line),
    ];
    common::play(&[plain, headed::SCENARIOS].concat());
}

/// A scenario without headers, whatever the build has.
fn plain(scenario: &str) -> Run {
    child(scenario).env("NEARHEAP_HEADERS", "0")
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

/// A block with neighbours on both sides, as in a program: all stay allocated for ever.
fn block(size: usize) -> *mut u8 {
    // Hidden from the optimiser, which would remove blocks that are only freed.
    // SAFETY: no layout here is of size 0.
    let fresh = || black_box(unsafe { alloc(layout(size)) });
    let blocks = [(); 3].map(|()| fresh());
    assert!(blocks.iter().all(|b| !b.is_null()));
    if cfg!(feature = "hardened") && size == SMALL {
        amid_others([(); 99].map(|()| fresh()))
    } else {
        blocks[1]
    }
}

/// One that has neighbours, of blocks at random places.
fn amid_others<const N: usize>(mut blocks: [*mut u8; N]) -> *mut u8 {
    blocks.sort_unstable();
    let apart = |pair: &[*mut u8]| pair[1] as usize - pair[0] as usize;
    let least = blocks.windows(2).map(apart).min().unwrap();
    let amid = blocks.windows(3).find(|w| apart(w) == least && apart(&w[1..]) == least);
    amid.unwrap()[1]
}

fn nothing_wrong() {
    for size in [SMALL, SPAN, HUGE] {
        // SAFETY: a block of this layout, freed once.
        unsafe { dealloc(block(size), layout(size)) };
    }
    nearheap::purge();
}

fn free_twice(size: usize) {
    let block = block(size);
    // SAFETY: none for the second: it is the misuse under test, as in all that follow.
    unsafe {
        dealloc(block, layout(size));
        dealloc(block, layout(size));
    }
    nearheap::purge();
}

fn free_as(size: usize, wrong: usize) {
    let block = block(size);
    // SAFETY: none.
    unsafe { dealloc(block, layout(wrong)) };
    nearheap::purge();
}

fn free_at(size: usize, offset: usize) {
    let block = block(size).wrapping_add(offset);
    // SAFETY: none.
    unsafe { dealloc(block, layout(size)) };
    nearheap::purge();
}

fn free_address(address: usize, size: usize) {
    // SAFETY: none.
    unsafe { dealloc(std::ptr::without_provenance_mut(address), layout(size)) };
    nearheap::purge();
}

fn local() {
    let mut local = [0_u64; 12];
    // SAFETY: none.
    unsafe { dealloc(local.as_mut_ptr().cast(), layout(SMALL)) };
    nearheap::purge();
}

fn small_twice_with_a_purge_between() {
    let block = block(SMALL);
    for _ in 0..2 {
        // SAFETY: none for the second.
        unsafe { dealloc(block, layout(SMALL)) };
        nearheap::purge();
    }
}

fn small_twice_by_two_threads() {
    let block = block(SMALL) as usize;
    // What it takes to start the second thread would get the block that the first has freed.
    let start = &Barrier::new(2);
    thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(move || {
                start.wait();
                free_address(block, SMALL);
            });
        }
    });
}

/// The first free is in a magazine when the second comes, since its thread has ended.
fn small_once_more_by_a_later_thread() {
    let address = block(SMALL) as usize;
    // SAFETY: a block of this layout, freed once.
    let free =
        move || unsafe { dealloc(std::ptr::with_exposed_provenance_mut(address), layout(SMALL)) };
    thread::spawn(free).join().unwrap();
    free_address(address, SMALL);
}

/// Nobody purges: the caches overflow by themselves.
fn small_for_ever() {
    let block = block(SMALL);
    loop {
        // SAFETY: none.
        unsafe { dealloc(block, layout(SMALL)) };
    }
}

fn resize_at(size: usize, offset: usize, to: usize) {
    let block = block(size).wrapping_add(offset);
    // SAFETY: none.
    let moved = unsafe { realloc(block, layout(size), to) };
    assert!(moved.is_null(), "a pointer into a block was taken for one");
}

/// One line is enough, whoever of the two writes it.
fn two_threads_at_once() {
    let blocks = [block(SPAN) as usize, block(SPAN) as usize];
    let start = &Barrier::new(2);
    thread::scope(|s| {
        for block in blocks {
            s.spawn(move || {
                start.wait();
                free_address(block + 4096, SPAN);
            });
        }
    });
}

/// The first to fault waits amid its line when the second comes, since what is its stderr is a full pipe. A process that
/// lives on reads that late, and passes on what comes after the filling.
fn second_amid_the_line() {
    let blocks = [block(SPAN) as usize, block(SPAN) as usize];
    // SAFETY: system calls on descriptors of this process's own; the child calls nothing else.
    unsafe {
        let mut pipe = [0; 2];
        assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
        let [reader, writer] = pipe;
        let room = libc::fcntl(writer, libc::F_GETPIPE_SZ) as usize;
        let filling = vec![b'x'; room];
        assert_eq!(libc::write(writer, filling.as_ptr().cast(), room), room as isize);
        if libc::fork() == 0 {
            // Out of the group, which ends with this process.
            libc::setpgid(0, 0);
            libc::close(writer);
            libc::usleep(300_000);
            let (mut bytes, mut passed) = ([0_u8; 4096], 0);
            while let n @ 1.. = libc::read(reader, bytes.as_mut_ptr().cast(), bytes.len()) {
                let skip = (room - passed).min(n as usize);
                libc::write(2, bytes.as_ptr().add(skip).cast(), n as usize - skip);
                passed += skip;
            }
            libc::_exit(0);
        }
        libc::dup2(writer, 2);
        libc::close(writer);
    }
    let first = blocks[0];
    thread::spawn(move || free_address(first + 4096, SPAN));
    thread::sleep(Duration::from_millis(100));
    free_address(blocks[1] + 4096, SPAN);
}

#[test]
fn what_is_right_is_not_a_fault() {
    plain("nothing_wrong").run().succeeds_with("");
}

const DOUBLE: &str = "double free";
const INSIDE: &str = "not a block start";
const FOREIGN: &str = "not a block of this heap";
const WRONG: &str = "wrong layout: the block has another size";

#[rstest]
#[case::double_free("small_twice", DOUBLE, SMALL)]
#[case::double_free("small_twice_with_a_purge_between", DOUBLE, SMALL)]
#[case::double_free("small_twice_by_two_threads", DOUBLE, SMALL)]
#[case::double_free("small_once_more_by_a_later_thread", DOUBLE, SMALL)]
#[case::double_free("small_for_ever", DOUBLE, SMALL)]
#[case::double_free("cached_twice", DOUBLE, 20 << 10)]
#[case::double_free("span_twice", DOUBLE, SPAN)]
#[case::double_free("huge_twice", DOUBLE, HUGE)]
#[case::unmapped("giant_twice", FOREIGN, GIANT)]
#[case::inside("small_16_bytes_in", INSIDE, SMALL)]
#[case::inside("small_4_bytes_in", INSIDE, SMALL)]
#[case::inside("span_a_page_in", INSIDE, SPAN)]
#[case::inside("huge_a_page_in", INSIDE, HUGE)]
#[case::inside("resize_inside", INSIDE, 8 << 10)]
#[case::inside("resize_span_inside", INSIDE, SPAN)]
#[case::inside("resize_huge_inside", INSIDE, HUGE)]
#[case::foreign("local", FOREIGN, SMALL)]
#[case::foreign("null_page", FOREIGN, SMALL)]
#[case::foreign("far", FOREIGN, SMALL)]
#[case::foreign("far_huge", FOREIGN, HUGE)]
#[case::wrong_layout("small_as_smaller", WRONG, 48)]
#[case::wrong_layout("small_as_larger", WRONG, 112)]
#[case::wrong_layout("small_as_span", WRONG, SPAN)]
#[case::wrong_layout("span_as_smaller", WRONG, SPAN / 2)]
#[case::wrong_layout("span_as_larger", WRONG, SPAN * 2)]
#[case::wrong_layout("span_as_small", WRONG, SMALL)]
#[case::wrong_layout("huge_as_smaller", WRONG, 2 << 20)]
#[case::wrong_layout("huge_as_larger", WRONG, 4 << 20)]
// The layout says where to look, and blocks of the other kind aren't there.
#[case::wrong_layout("small_as_huge", FOREIGN, HUGE)]
#[case::wrong_layout("huge_as_small", FOREIGN, SMALL)]
fn misuse_is_named(#[case] scenario: &str, #[case] words: &str, #[case] class: usize) {
    let line = format!("nearheap: fatal: {words}: ptr=0x... class={class} node=0\n");
    plain(scenario).run().aborts_with(&line);
}

#[test]
fn a_second_fault_leaves_the_line_of_the_first_whole() {
    for _ in 0..30 {
        let line = format!("nearheap: fatal: {INSIDE}: ptr=0x... class={SPAN} node=0\n");
        plain("two_threads_at_once").run().aborts_with(&line);
    }
}

#[test]
fn a_second_fault_waits_for_the_line_of_the_first() {
    let line = format!("nearheap: fatal: {INSIDE}: ptr=0x... class={SPAN} node=0\n");
    plain("second_amid_the_line").run().aborts_with(&line);
}

#[test]
fn a_closed_stderr_changes_nothing_but_the_line() {
    let mut run = plain("small_twice");
    let close = || {
        // SAFETY: closing a descriptor of the child's own.
        unsafe { libc::close(2) };
        Ok(())
    };
    // SAFETY: `close` is safe between fork and exec.
    unsafe { std::os::unix::process::CommandExt::pre_exec(&mut run.command, close) };
    run.run().aborts_with("");
}
