//! Does a child get a whole heap, whatever the other threads were doing?
//! Method: threads allocate at full speed while one forks hundreds of times. Each child frees what the parent allocated,
//! allocates, starts threads, and forks again, and exits with 0 where all of that was as it should be. Every process has an
//! alarm, so that a deadlock is a death by SIGALRM; a child that finds something wrong panics, which ends it with 101.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;
mod start;

use common::contents::{check, fill, prepare};
use common::{Rng, child};
use rstest::rstest;
use std::alloc::{Layout, alloc, dealloc, realloc};
use std::ffi::c_void;
use std::hint::black_box;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

#[global_allocator]
static GLOBAL: nearheap::NearHeap = nearheap::NearHeap::new();

#[test]
fn scenario() {
    common::play(&[
        ("small_blocks", || amid(small_blocks, 300)),
        ("all_blocks", || amid(all_blocks, 60)),
        ("huge_blocks", || amid(huge_blocks, 60)),
        ("purges", || amid(purges, 60)),
        ("threads_come_and_go", || amid(threads_come_and_go, 60)),
        ("first_operation", first_operation),
        ("amid_a_walk", amid_a_walk),
        ("amid_the_start", start::amid_the_start),
        ("amid_the_options", start::amid_the_start),
        ("counters", counters),
    ]);
}

/// Long enough for a child on a busy machine, which takes some milliseconds on an idle one.
const ALARM_S: u32 = 20;

struct Block {
    at: *mut u8,
    layout: Layout,
    id: u64,
}

impl Block {
    fn new(size: usize, id: u64) -> Self {
        let layout = Layout::from_size_align(size, 16).unwrap();
        // SAFETY: the size isn't 0, and all of it is filled.
        let at = unsafe { alloc(layout) };
        assert!(!at.is_null());
        // SAFETY: as above.
        unsafe { fill(at, id, 0, size) };
        Self { at, layout, id }
    }

    fn resize(&mut self, size: usize) {
        // SAFETY: the block is its own, and is filled to its size again.
        unsafe {
            self.at = realloc(self.at, self.layout, size);
            assert!(!self.at.is_null());
            let kept = size.min(self.layout.size());
            check(self.at, self.id, kept);
            fill(self.at, self.id, kept, size);
        }
        self.layout = Layout::from_size_align(size, 16).unwrap();
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: the block is its own, filled to its size.
        unsafe {
            check(self.at, self.id, self.layout.size());
            dealloc(self.at, self.layout);
        }
    }
}

fn any_size(rng: &mut Rng) -> usize {
    match rng.below(100) {
        0..=79 => rng.by_magnitude(1, 1 << 10),
        80..=97 => rng.by_magnitude(1 << 10, 64 << 10),
        98 => rng.by_magnitude(64 << 10, 300 << 10),
        _ => rng.by_magnitude(1 << 20, 2 << 20),
    }
}

/// Blocks of all kinds, some resized; about `n` of them.
fn some_blocks(seed: u64, n: usize) -> Vec<Block> {
    let mut rng = Rng::new(seed);
    let mut blocks = Vec::new();
    for id in 0..n as u64 {
        let mut block = Block::new(any_size(&mut rng), id);
        if rng.below(4) == 0 {
            block.resize(any_size(&mut rng));
        }
        blocks.push(block);
        if rng.below(3) == 0 {
            blocks.swap_remove(rng.below(blocks.len()));
        }
    }
    blocks
}

static STOP: AtomicBool = AtomicBool::new(false);

/// One of four threads that never rest.
fn busy(seed: u64, work: fn(&mut Rng, &mut Vec<Block>)) {
    let mut rng = Rng::new(seed);
    let mut kept = Vec::new();
    while !STOP.load(Ordering::Relaxed) {
        work(&mut rng, &mut kept);
    }
}

fn small_blocks(rng: &mut Rng, kept: &mut Vec<Block>) {
    kept.push(Block::new(rng.by_magnitude(1, 600), rng.next()));
    if kept.len() > 400 || rng.below(2) == 0 {
        kept.swap_remove(rng.below(kept.len()));
    }
}

fn all_blocks(rng: &mut Rng, kept: &mut Vec<Block>) {
    match rng.below(4) {
        0 if !kept.is_empty() => {
            let place = rng.below(kept.len());
            kept[place].resize(any_size(rng));
        }
        1 if !kept.is_empty() => drop(kept.swap_remove(rng.below(kept.len()))),
        _ => kept.push(Block::new(any_size(rng), rng.next())),
    }
    if kept.len() > 50 {
        kept.truncate(10);
    }
}

fn huge_blocks(rng: &mut Rng, kept: &mut Vec<Block>) {
    // Only the ends are looked at: the contents are the other scenarios' question.
    let layout = Layout::from_size_align(rng.by_magnitude(2 << 20, 16 << 20), 16).unwrap();
    // SAFETY: a layout with a size; resized and freed with its own.
    unsafe {
        let block = black_box(alloc(layout));
        block.write(7);
        let larger = black_box(realloc(block, layout, layout.size() * 2));
        assert!(larger.read() == 7);
        dealloc(larger, Layout::from_size_align_unchecked(layout.size() * 2, 16));
    }
    kept.clear();
}

fn purges(rng: &mut Rng, kept: &mut Vec<Block>) {
    all_blocks(rng, kept);
    match rng.below(20) {
        0 => drop(nearheap::purge()),
        1 => nearheap::flush_thread(),
        2 => assert!(nearheap::stats().totals.allocs > 0),
        _ => {}
    }
}

fn threads_come_and_go(rng: &mut Rng, _: &mut Vec<Block>) {
    let seed = rng.next();
    thread::spawn(move || drop(some_blocks(seed, 20))).join().unwrap();
}

/// Forks `times` while four threads do `work`.
fn amid(work: fn(&mut Rng, &mut Vec<Block>), times: u64) {
    prepare();
    let workers: Vec<_> = (0..4).map(|i| thread::spawn(move || busy(i, work))).collect();
    let mut inherited = some_blocks(1, 100);
    for round in 0..times {
        fork(
            || {
                be_a_child(std::mem::take(&mut inherited), round);
                // A grandchild, from the child's only thread.
                fork(|| be_a_child(some_blocks(round, 20), round), round);
            },
            round,
        );
        inherited[round as usize % 40] = Block::new(1 + round as usize * 37, round);
    }
    STOP.store(true, Ordering::Relaxed);
    workers.into_iter().for_each(|w| w.join().unwrap());
}

/// Starts a thread of the C library. The standard library's may wait for ever in a child, for a lock of its own that a
/// thread of the parent held as it started or ended.
fn start(work: extern "C" fn(*mut c_void) -> *mut c_void, argument: u64) -> libc::pthread_t {
    let mut thread = 0;
    let argument = ptr::without_provenance_mut(argument as usize);
    // SAFETY: the argument is a number.
    assert_eq!(unsafe { libc::pthread_create(&mut thread, ptr::null(), work, argument) }, 0);
    thread
}

fn join(thread: libc::pthread_t) {
    // SAFETY: every thread that was started is joined once.
    assert_eq!(unsafe { libc::pthread_join(thread, ptr::null_mut()) }, 0);
}

extern "C" fn allocator_at_work(seed: *mut c_void) -> *mut c_void {
    let mut blocks = some_blocks(seed.addr() as u64, 20);
    blocks.truncate(5);
    ptr::null_mut()
}

/// Everything that a child may want of its heap.
fn be_a_child(inherited: Vec<Block>, round: u64) {
    // Frees what the parent allocated, and looks at it.
    drop(inherited);
    let own = some_blocks(round ^ 99, 30);
    let threads = [start(allocator_at_work, round), start(allocator_at_work, !round)];
    threads.into_iter().for_each(join);
    drop(own);
    let stats = nearheap::stats();
    assert_eq!(stats.live_threads, 1, "only the thread that forked is there");
    for class in stats.classes() {
        assert!(class.frees <= class.allocs, "{class:?}");
    }
    assert!(stats.huge.frees <= stats.huge.allocs, "{:?}", stats.huge);
    nearheap::purge();
    assert_eq!(nearheap::stats().system.retained_bytes, 0);
}

/// Runs `child` in a child process and waits for its end.
fn fork(child: impl FnOnce(), round: u64) {
    // Longer than the child's, which tells more. It is for a fork that hangs here, or in the child's own handlers.
    // SAFETY: no preconditions.
    unsafe { libc::alarm(2 * ALARM_S) };
    // SAFETY: the child uses nothing of other threads but the heap, which is what is under test; and, to panic, stderr.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: no preconditions.
            unsafe { libc::alarm(ALARM_S) };
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child));
            // SAFETY: ends the child without the handlers of the parent.
            unsafe { libc::_exit(if done.is_ok() { 0 } else { 101 }) };
        }
        id => {
            assert!(id > 0, "fork: {}", std::io::Error::last_os_error());
            let mut status = 0;
            // SAFETY: `status` is valid to write; the child is this process's own.
            assert_eq!(unsafe { libc::waitpid(id, &mut status, 0) }, id);
            let hung = libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGALRM;
            assert!(!hung, "the child of fork {round} hangs, in a lock that nobody holds");
            assert_eq!(status, 0, "the child of fork {round} ended with wait status {status:#x}");
        }
    }
}

/// A thread whose first operation on the heap is in the child; and one that forks before its own first.
fn first_operation() {
    extern "C" fn main(_: *mut c_void) -> *mut c_void {
        fork(|| be_a_child(some_blocks(3, 100), 3), 0);
        ptr::null_mut()
    }
    prepare();
    for _ in 0..20 {
        join(start(main, 0));
    }
}

/// Forks while another thread walks over the threads, inside the registry's lock, and purges there. A fork that held the
/// purger's lock and waited for the registry's would never end, and neither would the walk.
fn amid_a_walk() {
    static WALKING: AtomicBool = AtomicBool::new(false);
    static FORKING: AtomicBool = AtomicBool::new(false);
    let await_flag = |flag: &AtomicBool| {
        while !flag.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
    };
    prepare();
    let walker = thread::spawn(move || {
        let mut rows = 0;
        nearheap::threads(&mut |_| {
            if rows == 0 {
                WALKING.store(true, Ordering::SeqCst);
                await_flag(&FORKING);
                // Until the fork waits for this walk to end.
                thread::sleep(Duration::from_millis(100));
                nearheap::purge();
            }
            rows += 1;
            Ok(())
        })
        .unwrap();
        rows
    });
    let inherited = some_blocks(5, 100);
    await_flag(&WALKING);
    FORKING.store(true, Ordering::SeqCst);
    fork(|| be_a_child(inherited, 0), 0);
    // The main thread, the scenario's, the walker's, and those that have ended.
    assert_eq!(walker.join().unwrap(), 4);
}

/// With the other threads at rest nothing is in flight, so the child's numbers are the parent's.
fn counters() {
    prepare();
    let gate = std::sync::Arc::new(std::sync::Barrier::new(5));
    let threads: Vec<_> = (0..4)
        .map(|i| {
            let gate = gate.clone();
            thread::spawn(move || {
                let kept = some_blocks(i, 300);
                gate.wait();
                gate.wait();
                drop(kept);
            })
        })
        .collect();
    gate.wait();
    // Threads that have just passed the gate may still be about to sleep.
    thread::sleep(Duration::from_millis(100));
    let parent = nearheap::stats();
    fork(
        || {
            let child = nearheap::stats();
            assert_eq!((parent.live_threads, child.live_threads), (6, 1));
            assert_eq!(child.totals, parent.totals);
            for (of_child, of_parent) in child.classes().iter().zip(parent.classes()) {
                assert_eq!(of_child.in_use_blocks(), of_parent.in_use_blocks(), "{of_child:?}");
            }
        },
        0,
    );
    gate.wait();
    threads.into_iter().for_each(|t| t.join().unwrap());
}

#[rstest]
#[case("small_blocks")]
#[case("all_blocks")]
#[case("huge_blocks")]
#[case("purges")]
#[case("threads_come_and_go")]
#[case("first_operation")]
#[case("amid_a_walk")]
#[case("amid_the_options")]
#[case("amid_the_start")]
#[case("counters")]
fn a_child_has_a_whole_heap(#[case] scenario: &str) {
    child(scenario).within(Duration::from_secs(170)).run().succeeds_with("");
}
