//! The life of a process and of its threads: they come and go, are forked, interrupted, and have little stack.

use crate::common::{Rng, Run, contents, handled, rss_bytes};
use crate::work::{Work, beside};
use std::cell::RefCell;
use std::hint::black_box;
use std::mem::zeroed;
use std::os::unix::process::CommandExt;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

/// Keys that are taken before the heap asks for its own.
const KEYS: usize = 40;
static TAKEN: AtomicU32 = AtomicU32::new(0);

/// The loader calls what stands in this section before `main`, and before anything in it allocates.
#[used]
#[unsafe(link_section = ".init_array.00001")]
static FIRST: extern "C" fn() = {
    extern "C" fn first() {
        for _ in 0..KEYS {
            let mut key = 0;
            // SAFETY: a place for the key, which has no destructor.
            let made = unsafe { libc::pthread_key_create(&mut key, None) };
            TAKEN.fetch_add(u32::from(made == 0), Relaxed);
        }
    }
    first
};

/// How often something is done until the campaign's time is over; once at least.
fn repeat(mut what: impl FnMut(u64)) -> u64 {
    let began = Instant::now();
    let mut times = 0;
    while times == 0 || began.elapsed() < crate::span() {
        what(times);
        times += 1;
    }
    times
}

/// Threads that do a little and end, beside two that go on. What is resident in the end is bounded by what is in use, not
/// by how many there were.
pub(crate) fn threads_come_and_go() {
    assert_eq!(TAKEN.load(Relaxed) as usize, KEYS);
    let batch = |seed: u64| {
        thread::scope(|s| {
            for i in 0..16 {
                s.spawn(move || {
                    let mut work = Work::new(seed * 16 + i, 50);
                    (0..100).for_each(|_| work.step());
                    work.end();
                });
            }
        });
    };
    let mut times = 0;
    beside(2, || {
        times = repeat(batch);
    });
    nearheap::purge();
    let (rss, in_use) = (rss_bytes() >> 20, nearheap::stats().totals.in_use_bytes >> 20);
    eprintln!("{} threads, then {rss} MiB resident and {in_use} in use", times * 16);
    assert!(rss < in_use as usize + 24);
}

/// Children of a process whose threads are anywhere: each works, and starts a thread that works.
pub(crate) fn forks() {
    let mut count = 0;
    beside(3, || {
        count = repeat(|_| {
            // SAFETY: the child uses the heap and leaves.
            let child = unsafe { libc::fork() };
            assert!(child >= 0);
            if child == 0 {
                // SAFETY: no preconditions; the signal ends a child that waits for ever.
                unsafe { libc::alarm(30) };
                let mut work = Work::new(1, 60);
                (0..200).for_each(|_| work.step());
                let other = thread::spawn(|| {
                    let mut work = Work::new(2, 60);
                    (0..200).for_each(|_| work.step());
                    work.end();
                });
                work.end();
                let status = if other.join().is_ok() { 0 } else { 1 };
                // SAFETY: no preconditions.
                unsafe { libc::_exit(status) };
            }
            let mut status = 0;
            // SAFETY: a child of this process's own, and a place for its status. A signal interrupts nothing here.
            assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
            assert_eq!(status, 0, "the child ended so");
        });
    });
    eprintln!("{count} forks");
}

static INTERRUPTIONS: AtomicU64 = AtomicU64::new(0);

/// Every millisecond or so each thread is interrupted, wherever it is, and what it waited for in the kernel with it. The
/// handler doesn't use the heap.
pub(crate) fn interrupted() {
    extern "C" fn handler(_: libc::c_int) {
        INTERRUPTIONS.fetch_add(1, Relaxed);
    }
    // SAFETY: the handler only counts; no SA_RESTART, so calls end with EINTR.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = handler as *const () as usize;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &action, ptr::null_mut()), 0);
    }
    let began = Instant::now();
    beside(4, || {
        while began.elapsed() < crate::span() {
            let here = std::process::id() as libc::c_int;
            for thread in std::fs::read_dir("/proc/self/task").unwrap() {
                let name = thread.unwrap().file_name();
                let thread: libc::c_int = name.to_str().unwrap().parse().unwrap();
                if thread != here {
                    // SAFETY: a signal that has a handler; a thread that has ended gets none.
                    unsafe { libc::syscall(libc::SYS_tgkill, here, thread, libc::SIGUSR1) };
                }
            }
            thread::sleep(Duration::from_millis(1));
        }
    });
    let times = INTERRUPTIONS.load(Relaxed);
    eprintln!("{times} interruptions");
    assert!(times > 100);
}

/// A timer that interrupts one thread.
struct Timer(libc::timer_t);

impl Timer {
    fn of(thread: libc::c_int, hz: i64) -> Option<Self> {
        // SAFETY: events and times that are set up before they are used; a thread that has ended is refused.
        unsafe {
            let (mut event, mut timer): (libc::sigevent, libc::timer_t) = (zeroed(), zeroed());
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = libc::SIGUSR2;
            event.sigev_notify_thread_id = thread;
            if libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) != 0 {
                return None;
            }
            let span = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000_000 / hz };
            let times = libc::itimerspec { it_interval: span, it_value: span };
            assert_eq!(libc::timer_settime(timer, 0, &times, ptr::null_mut()), 0);
            Some(Self(timer))
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: made above.
        assert_eq!(unsafe { libc::timer_delete(self.0) }, 0);
    }
}

/// As often as `HZ` says each thread is interrupted, wherever it is, and the handler allocates, resizes, frees, keeps blocks,
/// frees some of the program's and leaves it some. In the end nothing is lost, and the counts agree.
pub(crate) fn handlers() {
    extern "C" fn handler(_: libc::c_int) {
        handled::handle(|| handled::step(if now_and_then() { 200_000 } else { 2000 }));
    }
    fn now_and_then() -> bool {
        handled::STEPS.load(Relaxed).is_multiple_of(61)
    }
    contents::prepare();
    handled::UNWRAPPED.store(std::env::var_os("UNWRAPPED").is_some(), Relaxed);
    let hz = std::env::var("HZ").unwrap().parse().unwrap();
    // SAFETY: the handler uses the heap, as is to be tested.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        assert_eq!(libc::sigaction(libc::SIGUSR2, &action, ptr::null_mut()), 0);
    }
    let began = Instant::now();
    beside(4, || {
        let mut threads = Vec::new();
        for thread in std::fs::read_dir("/proc/self/task").unwrap() {
            let name = thread.unwrap().file_name();
            threads.push(name.to_str().unwrap().parse().unwrap());
        }
        let timers: Vec<_> = threads.iter().filter_map(|&thread| Timer::of(thread, hz)).collect();
        let mut rng = Rng::new(hz as u64);
        while began.elapsed() < crate::span() {
            (0..20).for_each(|_| handled::exchange(&mut rng, 2000));
            if rng.below(10) == 0 {
                nearheap::purge();
            }
        }
        drop(timers);
        thread::sleep(Duration::from_millis(20));
        handled::end();
    });
    let steps = handled::STEPS.load(Relaxed);
    eprintln!("{steps} handlers that allocate");
    assert!(steps > 300);
}

/// Threads with the smallest stack that the C library allows.
pub(crate) fn small_stacks() {
    extern "C" fn work(seed: *mut libc::c_void) -> *mut libc::c_void {
        let mut work = Work::new(seed.addr() as u64, 30);
        (0..300).for_each(|_| work.step());
        work.end();
        ptr::null_mut()
    }
    // A debug build's own frames take as much as the whole stack.
    let size = if cfg!(debug_assertions) { 64 << 10 } else { libc::PTHREAD_STACK_MIN };
    let mut count = 0;
    beside(2, || {
        count = repeat(|seed| {
            // SAFETY: attributes that are set up before they are used, and a thread that is waited for.
            unsafe {
                let (mut attributes, mut thread) = (zeroed(), 0);
                assert_eq!(libc::pthread_attr_init(&mut attributes), 0);
                assert_eq!(libc::pthread_attr_setstacksize(&mut attributes, size), 0);
                let seed = ptr::without_provenance_mut(seed as usize);
                assert_eq!(libc::pthread_create(&mut thread, &attributes, work, seed), 0);
                assert_eq!(libc::pthread_join(thread, ptr::null_mut()), 0);
                libc::pthread_attr_destroy(&mut attributes);
            }
        });
    });
    eprintln!("{count} threads with {size} bytes of stack");
}

/// Each value's destructor allocates, and makes the next value.
struct Link(u32, Vec<u8>);

const NESTED: u32 = 1000;
static DESTROYED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static ODD: RefCell<Vec<Link>> = const { RefCell::new(Vec::new()) };
}

impl Drop for Link {
    fn drop(&mut self) {
        DESTROYED.fetch_add(1, Relaxed);
        assert!(self.1.iter().all(|&b| b == self.0 as u8));
        let mut work = Work::new(u64::from(self.0), 10);
        (0..20).for_each(|_| work.step());
        work.end();
        if self.0 > 1 {
            drop(black_box(Self::new(self.0 - 1)));
        }
    }
}

impl Link {
    fn new(n: u32) -> Self {
        Self(n, vec![n as u8; 1 + n as usize % 300])
    }
}

/// A thousand destructors, one inside of the other, in each of the threads' ends.
pub(crate) fn destructors() {
    let mut threads = 0;
    beside(2, || {
        threads = repeat(|_| {
            let builder = thread::Builder::new().stack_size(8 << 20);
            let ends = || ODD.with(|links| links.borrow_mut().push(Link::new(NESTED)));
            builder.spawn(ends).unwrap().join().unwrap();
        });
    });
    assert_eq!(DESTROYED.load(Relaxed), threads * u64::from(NESTED));
    eprintln!("{threads} threads with {NESTED} destructors");
}

/// Closes the descriptors 0 to 2 before the program begins.
pub(crate) fn close_all(run: &mut Run) {
    // SAFETY: system calls alone.
    unsafe {
        run.command.pre_exec(|| {
            (0..3).for_each(|fd| _ = libc::close(fd));
            Ok(())
        });
    }
}
