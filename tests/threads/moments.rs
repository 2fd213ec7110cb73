//! Odd moments in the life of a thread and of the process: before `main`, in destructors before and after the thread's
//! cache has gone, at exit.

use crate::Held;
use crate::common::child;
use crate::common::contents::{check, fill, prepare};
use rstest::rstest;
use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::ffi::{c_int, c_void};
use std::hint::black_box;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::thread;

/// One of each kind of operation and block, checked.
fn use_the_heap(id: u64) {
    for size in [1, 48, 1000, 10 << 10, 100 << 10, 3 << 20] {
        for align in [8, 256] {
            let mut layout = Layout::from_size_align(size, align).unwrap();
            // SAFETY: the block is filled to its size, resized and freed with its own layout.
            unsafe {
                // Hidden from the optimiser, which would remove a block that is only read.
                let zeroed = black_box(alloc_zeroed(layout));
                assert!(!zeroed.is_null() && *zeroed.add(size - 1) == 0);
                let mut block = black_box(alloc(layout));
                assert!(!block.is_null() && (block as usize).is_multiple_of(align));
                fill(block, id, 0, size);
                dealloc(zeroed, layout);
                block = realloc(block, layout, size * 3);
                layout = Layout::from_size_align(size * 3, align).unwrap();
                assert!(!block.is_null() && (block as usize).is_multiple_of(align));
                check(block, id, size);
                dealloc(block, layout);
            }
        }
    }
}

static EARLY: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
const EARLY_LAYOUT: Layout = Layout::new::<[u64; 500]>();

/// The loader calls what stands in this section before `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static FIRST: extern "C" fn() = {
    extern "C" fn first() {
        use_the_heap(1);
        // SAFETY: a layout with a size; all of it is filled.
        unsafe {
            let block = alloc(EARLY_LAYOUT);
            fill(block, 2, 0, EARLY_LAYOUT.size());
            EARLY.store(block, Ordering::Release);
        }
    }
    first
};

pub(crate) fn before_main() {
    let block = EARLY.load(Ordering::Acquire);
    assert!(!block.is_null(), "nothing ran before main");
    // SAFETY: filled by `first`, freed here on another thread, once.
    unsafe {
        check(block, 2, EARLY_LAYOUT.size());
        dealloc(block, EARLY_LAYOUT);
    }
}

/// A destructor of a thread-local value: the cache is still there, but who knows for how long.
struct Late(u64);

impl Drop for Late {
    fn drop(&mut self) {
        use_the_heap(self.0);
        DROPS.fetch_add(1, Ordering::Relaxed);
    }
}

static DROPS: AtomicUsize = AtomicUsize::new(0);
static LIVE_IN_DESTRUCTOR: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static ONE: Late = const { Late(11) };
    static OTHER: (Late, Vec<u8>) = (Late(12), vec![1; 5000]);
}

pub(crate) fn thread_locals() {
    exactly(2, 200, || {
        ONE.with(|one| assert_eq!(one.0, 11));
        use_the_heap(13);
        OTHER.with(|(late, bytes)| assert_eq!((late.0, bytes.len()), (12, 5000)));
    });
}

/// Runs `work` on `threads` threads, one after another, each of which runs `drops` destructors that count themselves;
/// the heap is as before then.
fn exactly(drops: usize, threads: usize, work: fn()) {
    prepare();
    // The first thread also makes what the standard library keeps.
    thread::spawn(work).join().unwrap();
    let before = Held::now();
    for _ in 1..threads {
        thread::spawn(work).join().unwrap();
    }
    assert_eq!(DROPS.load(Ordering::Relaxed), drops * threads, "destructors that ran");
    Held::is_as(&before);
}

fn key(destructor: extern "C" fn(*mut c_void)) -> libc::pthread_key_t {
    let mut key = 0;
    // SAFETY: `key` is valid to write, the destructor is a function.
    assert_eq!(unsafe { libc::pthread_key_create(&mut key, Some(unsafe_of(destructor))) }, 0);
    key
}

fn unsafe_of(destructor: extern "C" fn(*mut c_void)) -> unsafe extern "C" fn(*mut c_void) {
    destructor
}

fn set(key: libc::pthread_key_t, value: usize) {
    // SAFETY: the key was made and is never deleted; the value is a number.
    assert_eq!(unsafe { libc::pthread_setspecific(key, ptr::without_provenance(value)) }, 0);
}

static AFTER: AtomicU64 = AtomicU64::new(0);

/// Keys are destroyed in the order of their making, so one that is made after the heap's comes when the cache has gone.
/// It sets itself again, as often as the C library lets it.
extern "C" fn after(round: *mut c_void) {
    let allocs = || nearheap::stats().totals.allocs;
    let before = allocs();
    use_the_heap(20);
    // Counted at once, though there is no cache that would count: 24 allocations, and 9 blocks that change their class.
    assert_eq!(allocs() - before, 33);
    LIVE_IN_DESTRUCTOR.store(nearheap::stats().live_threads, Ordering::Relaxed);
    DROPS.fetch_add(1, Ordering::Relaxed);
    if round.addr() < 4 {
        set(AFTER.load(Ordering::Relaxed) as libc::pthread_key_t, round.addr() + 1);
    }
}

pub(crate) fn after_the_cache() {
    AFTER.store(u64::from(key(after)), Ordering::Relaxed);
    let others = nearheap::stats().live_threads;
    exactly(4, 100, || {
        use_the_heap(21);
        set(AFTER.load(Ordering::Relaxed) as libc::pthread_key_t, 1);
    });
    assert_eq!(LIVE_IN_DESTRUCTOR.load(Ordering::Relaxed), others, "the destructor found a cache");
}

/// A thread of the C library whose very first operation on the heap is in a destructor: nothing of Rust's standard
/// library allocates for it before.
pub(crate) fn first_of_all() {
    extern "C" fn main(_: *mut c_void) -> *mut c_void {
        set(AFTER.load(Ordering::Relaxed) as libc::pthread_key_t, 3);
        ptr::null_mut()
    }
    prepare();
    AFTER.store(u64::from(key(after)), Ordering::Relaxed);
    let before = Held::now();
    for _ in 0..100 {
        let mut thread = 0;
        // SAFETY: `main` takes no argument, and the thread is joined once.
        unsafe {
            assert_eq!(libc::pthread_create(&mut thread, ptr::null(), main, ptr::null_mut()), 0);
            assert_eq!(libc::pthread_join(thread, ptr::null_mut()), 0);
        }
    }
    assert_eq!(DROPS.load(Ordering::Relaxed), 200);
    Held::is_as(&before);
}

const NESTED: usize = 1000;

unsafe extern "C" {
    /// What the standard library registers destructors of thread-local values with.
    fn __cxa_thread_atexit_impl(
        destructor: unsafe extern "C" fn(*mut c_void),
        value: *mut c_void,
        dso: *mut c_void,
    ) -> c_int;
    static __dso_handle: u8;
}

/// Registers itself again while there are more to come.
extern "C" fn nest(left: *mut c_void) {
    let block = black_box(vec![left.addr(); 1 + left.addr() % 300]);
    DROPS.fetch_add(1, Ordering::Relaxed);
    if let Some(left) = left.addr().checked_sub(1).filter(|&left| left > 0) {
        // SAFETY: the destructor is a function of this executable; the value is a number.
        let done = unsafe {
            __cxa_thread_atexit_impl(
                unsafe_of(nest),
                ptr::without_provenance_mut(left),
                (&raw const __dso_handle).cast_mut().cast(),
            )
        };
        assert_eq!(done, 0);
    }
    assert!(block.iter().all(|&word| word == left.addr()));
}

static KEYS: [AtomicU64; NESTED] = [const { AtomicU64::new(0) }; NESTED];

/// Sets the next key, which comes after it.
extern "C" fn next(place: *mut c_void) {
    let place = place.addr();
    let block = black_box(vec![place; 1 + place % 300]);
    DROPS.fetch_add(1, Ordering::Relaxed);
    if let Some(key) = KEYS.get(place) {
        set(key.load(Ordering::Relaxed) as libc::pthread_key_t, place + 1);
    }
    assert!(block.iter().all(|&word| word == place));
}

/// 1,000 destructors while there is a cache, each registered by the one before, and 1,000 when there is none any more.
pub(crate) fn nested() {
    for place in &KEYS {
        place.store(u64::from(key(next)), Ordering::Relaxed);
    }
    exactly(2 * NESTED, 20, || {
        nest(ptr::without_provenance_mut(NESTED));
        set(KEYS[0].load(Ordering::Relaxed) as libc::pthread_key_t, 1);
    });
}

/// Handlers run in the reverse order of their registration: this one last, with the heap still in use by others.
pub(crate) fn at_exit() {
    extern "C" fn last() {
        use_the_heap(30);
        say(format!("last, {} drops\n", DROPS.load(Ordering::Relaxed)));
    }
    extern "C" fn first() {
        let many: Vec<String> = (0..1000).map(|i| i.to_string()).collect();
        say(format!("first, {} bytes\n", many.concat().len()));
        // A thread that starts now is served too.
        thread::spawn(|| use_the_heap(31)).join().unwrap();
    }
    prepare();
    // SAFETY: handlers that live as long as the process.
    unsafe {
        assert_eq!(libc::atexit(last), 0);
        assert_eq!(libc::atexit(first), 0);
    }
    ONE.with(|one| assert_eq!(one.0, 11));
}

fn say(line: String) {
    // SAFETY: a string's bytes, to be read.
    let written = unsafe { libc::write(2, line.as_ptr().cast(), line.len()) };
    assert_eq!(written, line.len() as isize);
}

/// What a thread holds while it lives, and what is left of it when it has ended.
pub(crate) fn ended() {
    prepare();
    let cached = || {
        let mut rows = [(0, 0); 16];
        let mut n = 0;
        nearheap::threads(&mut |row| {
            rows[n] = (row.id, row.cached_bytes);
            n += 1;
            Ok(())
        })
        .unwrap();
        rows
    };
    let cached_by = move |id: u64| cached().iter().find(|row| row.0 == id).map(|row| row.1);
    let before = Held::now();
    let (id, kept) = thread::spawn(move || {
        // Every class: a few blocks are kept, more are freed into the cache.
        let kept: Vec<Vec<u8>> = (0..100).map(|i| black_box(vec![1; 16 + i * 160])).collect();
        drop((0..100).map(|i| black_box(vec![1_u8; 16 + i * 160])).collect::<Vec<_>>());
        // SAFETY: a number that the kernel knows.
        let id = unsafe { libc::gettid() } as u64;
        assert!(cached_by(id).unwrap() > 100 << 10, "{:?} bytes in the cache", cached_by(id));
        (id, kept)
    })
    .join()
    .unwrap();
    assert_eq!(cached_by(id), None, "an ended thread has no row");
    assert_eq!(cached_by(0), Some(0), "ended threads hold nothing");
    let blocks = nearheap::stats().totals.in_use_blocks;
    assert!(blocks >= before.0.blocks + 101, "{blocks} blocks, {before:?} before");
    drop(kept);
    Held::is_as(&before);
}

#[rstest]
#[case("before_main")]
#[case("thread_locals")]
#[case("after_the_cache")]
#[case("first_of_all")]
#[case("nested")]
#[case("ended")]
fn served_at_every_moment(#[case] scenario: &str) {
    // In headers mode, what is freed passes by the caches, and `ended` wants it there.
    let headers = if scenario == "ended" { "0" } else { "1" };
    child(scenario).env("NEARHEAP_HEADERS", headers).run().succeeds_with("");
    if scenario != "ended" {
        child(scenario).env("NEARHEAP_HEADERS", "0").run().succeeds_with("");
    }
}

/// `exit` destroys the thread-local values of the thread that calls it, and of no other.
#[test]
fn served_at_exit() {
    child("at_exit").run().succeeds_with("first, 2890 bytes\nlast, 1 drops\n");
    child("at_exit").returning().run().succeeds_with("first, 2890 bytes\nlast, 1 drops\n");
}
