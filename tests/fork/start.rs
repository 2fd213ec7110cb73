//! A fork while another thread starts the heap: before `main`, since nothing in Rust starts a thread without allocating.
//!
//! The start asks whether the process is privileged, registers the handlers of forks, and makes a `pthread_key`. The first
//! and the last are functions of this file in this executable: in the scenarios each says so, and takes its time.

use std::alloc::{Layout, alloc, dealloc};
use std::ffi::{CStr, c_int, c_void};
use std::hint::black_box;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the thread is inside the start.
static STARTING: AtomicBool = AtomicBool::new(false);
static SERVED: AtomicBool = AtomicBool::new(false);

fn is_played(scenario: &CStr) -> bool {
    // SAFETY: terminated names; nobody changes the environment. Unlike `std::env` it allocates nothing.
    unsafe {
        let name = libc::getenv(c"TEST_SCENARIO".as_ptr());
        !name.is_null() && CStr::from_ptr(name) == scenario
    }
}

fn linger() {
    STARTING.store(true, Ordering::SeqCst);
    // SAFETY: no preconditions.
    unsafe { libc::usleep(200_000) };
}

/// What the heap calls in place of the C library's function, before there are handlers.
#[unsafe(no_mangle)]
extern "C" fn getauxval(what: libc::c_ulong) -> libc::c_ulong {
    if what == libc::AT_SECURE && is_played(c"amid_the_options") && !STARTING.load(Ordering::SeqCst)
    {
        linger();
    }
    // SAFETY: the next function of this name is the C library's, of this type.
    unsafe {
        let next = libc::dlsym(libc::RTLD_NEXT, c"getauxval".as_ptr());
        let next: extern "C" fn(libc::c_ulong) -> libc::c_ulong = std::mem::transmute(next);
        next(what)
    }
}

type Destructor = Option<unsafe extern "C" fn(*mut c_void)>;

/// What the heap calls in place of the C library's function.
///
/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_key_create(key: *mut libc::pthread_key_t, last: Destructor) -> c_int {
    if is_played(c"amid_the_start") {
        linger();
    }
    // SAFETY: the next function of this name is the C library's, of this type; the caller's contract.
    unsafe {
        let next = libc::dlsym(libc::RTLD_NEXT, c"pthread_key_create".as_ptr());
        let next: unsafe extern "C" fn(*mut libc::pthread_key_t, Destructor) -> c_int =
            std::mem::transmute(next);
        next(key, last)
    }
}

fn is_served() -> bool {
    let layout = Layout::new::<[u64; 20]>();
    // SAFETY: a layout with a size; freed once.
    unsafe {
        let block = black_box(alloc(layout));
        if !block.is_null() {
            dealloc(block, layout);
        }
        !block.is_null()
    }
}

extern "C" fn starts(_: *mut c_void) -> *mut c_void {
    is_served();
    ptr::null_mut()
}

/// The loader calls what stands in this section before `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static FIRST: extern "C" fn() = {
    extern "C" fn first() {
        if is_played(c"amid_the_start") || is_played(c"amid_the_options") {
            // SAFETY: before `main` there is nothing that this could disturb.
            unsafe { forks() };
        }
    }
    first
};

unsafe fn forks() {
    let mut thread = 0;
    // SAFETY: system calls, and a thread that is waited for; the child uses nothing but the heap.
    unsafe {
        libc::alarm(20);
        if libc::pthread_create(&mut thread, ptr::null(), starts, ptr::null_mut()) != 0 {
            libc::_exit(9);
        }
        while !STARTING.load(Ordering::SeqCst) {
            libc::usleep(1000);
        }
        let child = libc::fork();
        if child == 0 {
            libc::alarm(10);
            libc::_exit(if is_served() { 0 } else { 1 });
        }
        let mut status = 0;
        let waited = libc::waitpid(child, &mut status, 0) == child;
        libc::pthread_join(thread, ptr::null_mut());
        SERVED.store(waited && status == 0, Ordering::SeqCst);
    }
}

pub(crate) fn amid_the_start() {
    assert!(STARTING.load(Ordering::SeqCst), "the heap was started without this file's function");
    assert!(SERVED.load(Ordering::SeqCst), "the child was not served: it inherited a held lock");
}
