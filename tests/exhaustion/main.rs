//! Is exhaustion null, never an abort, and is the heap as good as before once something is freed?
//! Method: child processes that take the kernel's memory away from themselves by RLIMIT_AS and RLIMIT_DATA, down to
//! nothing at all, and then allocate. The standard library aborts where its own allocations fail, so while memory is short
//! they call the allocator and the C library only.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;

use common::{Run, child};
use nearheap::NearHeap;
use rstest::rstest;
use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::ffi::CStr;
use std::hint::black_box;
use std::ptr::null_mut;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

#[global_allocator]
static GLOBAL: NearHeap = NearHeap::new();

#[test]
fn scenario() {
    common::play(&[
        ("exhausts", exhausts),
        ("exhausts_on_four_threads", exhausts_on_four_threads),
        ("works_in_half_the_memory", works_in_half_the_memory),
        ("grows_in_vain", grows_in_vain),
        ("starts_a_thread", starts_a_thread),
        ("starts_threads_until_refused", starts_threads_until_refused),
    ]);
}

const MIB: usize = 1 << 20;

fn given(name: &str) -> usize {
    std::env::var(name).unwrap().parse().unwrap()
}

fn resource() -> libc::__rlimit_resource_t {
    // SAFETY: a terminated name; nobody changes the environment. Unlike `std::env` it allocates nothing.
    let name = unsafe { CStr::from_ptr(libc::getenv(c"TEST_LIMIT".as_ptr())) };
    if name == c"AS" { libc::RLIMIT_AS } else { libc::RLIMIT_DATA }
}

/// Lets this process have `more` bytes than it has now, of address space or of private memory.
fn limit_to(more: usize) -> libc::rlimit {
    let which = resource();
    let line = if which == libc::RLIMIT_AS { "VmSize:" } else { "VmData:" };
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let now = status.lines().find_map(|l| l.strip_prefix(line)).unwrap();
    let now: usize = now.trim().trim_end_matches(" kB").parse().unwrap();
    let mut old = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `old` is there to be written, then a limit to be read.
    unsafe {
        libc::getrlimit(which, &mut old);
        let new = libc::rlimit { rlim_cur: ((now << 10) + more) as u64, rlim_max: old.rlim_max };
        libc::setrlimit(which, &new);
    }
    old
}

fn unlimit(old: libc::rlimit) {
    // SAFETY: `old` is a limit to be read.
    unsafe { libc::setrlimit(resource(), &old) };
}

/// Touched blocks of one size, each of which begins with the address of the one before: the list needs no memory.
struct Blocks {
    last: *mut u8,
    count: usize,
    layout: Layout,
}

impl Blocks {
    fn new(size: usize) -> Self {
        Self { last: null_mut(), count: 0, layout: Layout::from_size_align(size, 8).unwrap() }
    }

    fn add(&mut self) -> bool {
        // SAFETY: the block has the layout's size, which is more than a pointer's, and its alignment.
        unsafe {
            let block = black_box(alloc(self.layout));
            if block.is_null() {
                return false;
            }
            block.write_bytes(1, self.layout.size());
            block.cast::<*mut u8>().write(self.last);
            self.last = block;
        }
        self.count += 1;
        true
    }

    fn free(&mut self, count: usize) {
        for _ in 0..count {
            // SAFETY: the last block, which `add` made and linked; freed once.
            unsafe {
                let before = self.last.cast::<*mut u8>().read();
                dealloc(self.last, self.layout);
                self.last = before;
            }
        }
        self.count -= count;
    }
}

/// Allocates until it gets null, frees half, and allocates as much again.
fn exhausts() {
    let more = given("TEST_MORE");
    let mut blocks = Blocks::new(given("TEST_SIZE"));
    let old = limit_to(more);
    while blocks.add() {}
    let full = blocks.count;
    blocks.free(full / 2);
    while blocks.count < full && blocks.add() {}
    // From here on the standard library may allocate.
    let stats = nearheap::stats();
    let (count, system) = (blocks.count, stats.system);
    unlimit(old);
    assert!(system.refused_maps > 0);
    assert_eq!(count, full, "not all of it was served again");
    // Memory comes in segments of 4 MiB, and in whole blocks where they are larger than that.
    let bytes = stats.totals.in_use_bytes as usize;
    assert!(bytes + (5 << 20) > more, "{bytes} bytes were served");
    blocks.free(full);
    assert!(blocks.add());
    blocks.free(1);
}

/// Asks a full heap for what it can only refuse; the blocks that it has must be as they were.
fn grows_in_vain() {
    let old_layout = Layout::from_size_align(given("TEST_SIZE"), 8).unwrap();
    let new = given("TEST_MORE") + 8 * MIB;
    // SAFETY: each block is used with its layout, and not after it has moved or was freed.
    let (grown, zeroed, kept, moved) = unsafe {
        let block = black_box(alloc(old_layout));
        block.write_bytes(7, old_layout.size());
        let old = limit_to(given("TEST_MORE"));
        // The optimiser would remove an allocation that nobody looks at.
        let grown = black_box(realloc(block, old_layout, new));
        let zeroed = black_box(alloc_zeroed(Layout::from_size_align(new, 8).unwrap()));
        let kept = std::slice::from_raw_parts(block, old_layout.size()).iter().all(|&b| b == 7);
        unlimit(old);
        let block = realloc(block, old_layout, new);
        let moved = std::slice::from_raw_parts(block, old_layout.size()).iter().all(|&b| b == 7);
        dealloc(block, Layout::from_size_align(new, 8).unwrap());
        (grown, zeroed, kept, moved)
    };
    assert!(grown.is_null() && zeroed.is_null());
    assert!(kept && moved, "the block is as it was");
}

/// Four threads take all there is at the same time, give half of it back, and take as much again.
fn exhausts_on_four_threads() {
    let size = given("TEST_SIZE");
    let (begin, full, half) = (Barrier::new(5), Barrier::new(5), Barrier::new(4));
    thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                let mut blocks = Blocks::new(size);
                begin.wait();
                begin.wait();
                while blocks.add() {}
                let count = blocks.count;
                half.wait();
                blocks.free(count / 2);
                half.wait();
                // A thread may get null while another has the last segment in its hands, but not for long.
                let enough = count / 2 - count / 50;
                let (mut again, began) = (0, Instant::now());
                while again < enough && began.elapsed() < Duration::from_secs(2) {
                    again += usize::from(blocks.add());
                }
                full.wait();
                full.wait();
                assert!(again >= enough, "{again} of {count} were served again");
                blocks.free(blocks.count);
            });
        }
        begin.wait();
        let old = limit_to(given("TEST_MORE"));
        begin.wait();
        full.wait();
        unlimit(old);
        full.wait();
    });
}

/// Four threads take all there is, give half of it back, and then take and give as much as a quarter of it, again and
/// again.
fn works_in_half_the_memory() {
    let size = given("TEST_SIZE");
    let barrier = Barrier::new(5);
    let nulls = AtomicUsize::new(0);
    thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                let mut blocks = Blocks::new(size);
                barrier.wait();
                barrier.wait();
                while blocks.add() {}
                barrier.wait();
                let count = blocks.count;
                blocks.free(count / 2);
                barrier.wait();
                for _ in 0..ROUNDS {
                    for _ in 0..count / 4 {
                        if !blocks.add() {
                            nulls.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    blocks.free((count / 4).min(blocks.count));
                }
                barrier.wait();
                blocks.free(blocks.count);
            });
        }
        barrier.wait();
        let old = limit_to(given("TEST_MORE"));
        barrier.wait();
        barrier.wait();
        barrier.wait();
        barrier.wait();
        unlimit(old);
    });
    assert_eq!(nulls.load(Ordering::Relaxed), 0, "null where a quarter of the memory is free");
}

/// Fewer where debug assertions check every step.
const ROUNDS: usize = if cfg!(debug_assertions) { 3 } else { 50 };

/// What a thread found that was started without memory.
struct Found {
    /// A block of the other thread, for this one to free.
    given: *mut u8,
    layout: Layout,
    served: bool,
    ended: bool,
}

extern "C" fn begins_without_memory(found: *mut libc::c_void) -> *mut libc::c_void {
    // SAFETY: a `Found` that its maker doesn't use before this thread has ended; the block was given to it.
    unsafe {
        let found = &mut *found.cast::<Found>();
        dealloc(found.given, found.layout);
        // Hidden from the optimiser, which would take a block that is only written for one that is served.
        let block = black_box(alloc(found.layout));
        found.served = !block.is_null();
        if found.served {
            block.write_bytes(2, found.layout.size());
            dealloc(block, found.layout);
        }
        found.ended = true;
    }
    null_mut()
}

/// Starts a thread; the C library's number for why not.
fn start_thread(found: &mut Found) -> i32 {
    let found: *mut Found = found;
    // SAFETY: the handle is written before it is used; the thread is waited for while `found` lives.
    unsafe {
        let mut thread = std::mem::zeroed();
        let why = libc::pthread_create(
            &mut thread,
            std::ptr::null(),
            begins_without_memory,
            found.cast(),
        );
        if why == 0 {
            libc::pthread_join(thread, null_mut());
        }
        why
    }
}

/// Starts a thread when not even a cache can be had for it: its stack is one that the C library kept.
fn starts_a_thread() {
    let mut blocks = Blocks::new(given("TEST_SIZE"));
    assert!(blocks.add());
    let mut before =
        Found { given: blocks.last, layout: blocks.layout, served: false, ended: false };
    assert_eq!((start_thread(&mut before), before.served), (0, true));
    blocks = Blocks::new(given("TEST_SIZE"));
    let old = limit_to(0);
    while blocks.add() {}
    let mut rest = Blocks::new(16);
    while rest.add() {}
    let layout = blocks.layout;
    let mut found = Found { given: blocks.last, layout, served: false, ended: false };
    // SAFETY: the last block, which `add` linked.
    blocks.last = unsafe { blocks.last.cast::<*mut u8>().read() };
    blocks.count -= 1;
    let why = start_thread(&mut found);
    unlimit(old);
    assert_eq!((why, found.ended), (0, true), "the C library has kept no stack");
    assert!(found.served, "what it freed serves it");
    blocks.free(blocks.count);
    rest.free(rest.count);
}

static SERVED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn takes_what_there_is(begin: *mut libc::c_void) -> *mut libc::c_void {
    let mut blocks = Blocks::new(20_000);
    while blocks.count < 10 && blocks.add() {}
    SERVED.fetch_add(blocks.count, Ordering::Relaxed);
    // SAFETY: a mutex that outlives the threads that wait at it.
    unsafe { libc::pthread_mutex_lock(begin.cast()) };
    // SAFETY: as above.
    unsafe { libc::pthread_mutex_unlock(begin.cast()) };
    blocks.free(blocks.count);
    null_mut()
}

/// Starts threads that hold memory until there is no stack for one more, and the same again after they have ended.
fn starts_threads_until_refused() {
    const MOST: usize = 1000;
    let old = limit_to(given("TEST_MORE"));
    let mut counts = [0; 2];
    // SAFETY: the mutex and the attributes live as long as the threads, all of which are waited for.
    unsafe {
        let mut begin = libc::PTHREAD_MUTEX_INITIALIZER;
        let mut attributes = std::mem::zeroed();
        libc::pthread_attr_init(&mut attributes);
        libc::pthread_attr_setstacksize(&mut attributes, MIB);
        let mut threads: [libc::pthread_t; MOST] = [0; MOST];
        for count in &mut counts {
            libc::pthread_mutex_lock(&mut begin);
            let mut why = 0;
            while why == 0 {
                let waits = (&raw mut begin).cast();
                why = libc::pthread_create(
                    &mut threads[*count],
                    &attributes,
                    takes_what_there_is,
                    waits,
                );
                *count += usize::from(why == 0);
            }
            libc::pthread_mutex_unlock(&mut begin);
            for thread in &threads[..*count] {
                libc::pthread_join(*thread, null_mut());
            }
            assert_eq!(why, libc::EAGAIN);
        }
    }
    unlimit(old);
    let [first, second] = counts;
    assert!(first >= given("TEST_MORE") / (2 * MIB), "only {first} threads");
    assert!(second >= first - 1, "{first} threads, and then only {second}");
    assert_ne!(SERVED.load(Ordering::Relaxed), 0);
}

fn under(limit: &str, more: usize, scenario: &str, size: usize) -> Run {
    child(scenario)
        .env("TEST_LIMIT", limit)
        .env("TEST_MORE", &more.to_string())
        .env("TEST_SIZE", &size.to_string())
}

#[rstest]
fn exhaustion_is_null_and_what_is_freed_is_served_again(
    #[values("AS", "DATA")] limit: &str,
    #[values(0, MIB, 7 * MIB, 32 * MIB)] more: usize,
    #[values(48, 3000, 100_000, 3 * MIB)] size: usize,
) {
    // Nothing at all can be had of a size that is larger than what is left.
    let more = if more > 0 { more.max(size + MIB) } else { more };
    if more > 0 || size < MIB {
        under(limit, more, "exhausts", size).run().succeeds_with("");
    }
}

#[rstest]
fn a_block_that_cannot_grow_is_as_it_was(
    #[values("AS", "DATA")] limit: &str,
    #[values(100, 50_000, 2 * MIB)] size: usize,
) {
    under(limit, MIB, "grows_in_vain", size).run().succeeds_with("");
}

#[rstest]
fn threads_that_exhaust_the_heap_together_are_served_again(
    #[values("AS", "DATA")] limit: &str,
    #[values(48, 3000, 100_000)] size: usize,
) {
    under(limit, 32 * MIB, "exhausts_on_four_threads", size).run().succeeds_with("");
}

#[rstest]
fn threads_get_no_null_while_memory_is_free(
    #[values("AS", "DATA")] limit: &str,
    #[values(48, 3000, 100_000)] size: usize,
) {
    under(limit, 32 * MIB, "works_in_half_the_memory", size).run().succeeds_with("");
}

#[rstest]
fn a_thread_that_starts_without_memory_lives_on_what_is_freed(
    #[values("AS", "DATA")] limit: &str,
    #[values(48, 3000, 100_000)] size: usize,
) {
    under(limit, 0, "starts_a_thread", size).run().succeeds_with("");
}

#[rstest]
fn threads_that_the_kernel_refuses_are_an_error(#[values("AS", "DATA")] limit: &str) {
    under(limit, 32 * MIB, "starts_threads_until_refused", 0).run().succeeds_with("");
}
