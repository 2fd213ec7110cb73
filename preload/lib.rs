//! The malloc family on the heap of nearheap, for programs that nobody recompiled:
//!
//! ```sh
//! LD_PRELOAD=/path/to/libnearheap_preload.so program
//! ```
//!
//! Owns: the symbols that C means. Called by: every library of the process, from the dynamic linker's first allocation on;
//! C++'s `new` and `delete` come here through `malloc`, `aligned_alloc` and `free`.
//!
//! P1: what is returned, refused and written to `errno` is as in glibc 2.36, whose documentation is the contract; where
//!     that leaves a choice, its behaviour is.
//! P2: nothing is needed before the first call: the heap starts in it, whoever makes it, or in `start`.
//! P3: nothing unwinds; the functions are `extern "C"`, which would abort.

#![cfg(not(loom))]
#![allow(clippy::missing_safety_doc, reason = "the contract is that of C")]
#![allow(missing_docs, reason = "the names are C's, and so are the meanings")]

pub mod report;
mod start;

use core::ffi::{c_int, c_void};
use core::ptr;
use nearheap::foreign;

static NEAR: foreign::Near = foreign::Near::new();

fn fail(errno: c_int) -> *mut c_void {
    // SAFETY: the thread's own `errno`.
    unsafe { *libc::__errno_location() = errno };
    ptr::null_mut()
}

fn page_size() -> usize {
    // SAFETY: asks for a constant of the process.
    unsafe { libc::getauxval(libc::AT_PAGESZ) as usize }
}

#[unsafe(no_mangle)]
pub extern "C" fn malloc(size: usize) -> *mut c_void {
    foreign::malloc(size).cast()
}

#[unsafe(no_mangle)]
pub extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
    foreign::calloc(count, size).cast()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn free(block: *mut c_void) {
    // SAFETY: the caller's contract.
    unsafe { foreign::free(block.cast(), &NEAR) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn realloc(block: *mut c_void, size: usize) -> *mut c_void {
    if size == 0 && !block.is_null() {
        // SAFETY: the caller's contract.
        unsafe { foreign::free(block.cast(), &NEAR) };
        return ptr::null_mut();
    }
    // SAFETY: the caller's contract.
    unsafe { foreign::realloc(block.cast(), size, &NEAR) }.cast()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn reallocarray(
    block: *mut c_void,
    count: usize,
    size: usize,
) -> *mut c_void {
    match count.checked_mul(size) {
        // SAFETY: the caller's contract.
        Some(size) => unsafe { realloc(block, size) },
        None => fail(libc::ENOMEM),
    }
}

/// As glibc's: what is no power of two is rounded up to one.
#[unsafe(no_mangle)]
pub extern "C" fn memalign(align: usize, size: usize) -> *mut c_void {
    let Some(align) = align.max(1).checked_next_power_of_two() else { return fail(libc::EINVAL) };
    let block = foreign::aligned(align, size);
    if block.is_null() { fail(libc::ENOMEM) } else { block.cast() }
}

#[unsafe(no_mangle)]
pub extern "C" fn aligned_alloc(align: usize, size: usize) -> *mut c_void {
    memalign(align, size)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_memalign(
    place: *mut *mut c_void,
    align: usize,
    size: usize,
) -> c_int {
    if !align.is_power_of_two() || !align.is_multiple_of(size_of::<*mut c_void>()) {
        return libc::EINVAL;
    }
    let block = foreign::aligned(align, size);
    if block.is_null() {
        // glibc's says it twice.
        let _ = fail(libc::ENOMEM);
        return libc::ENOMEM;
    }
    // SAFETY: the caller's contract: a valid place for a pointer.
    unsafe { *place = block.cast() };
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn valloc(size: usize) -> *mut c_void {
    memalign(page_size(), size)
}

#[unsafe(no_mangle)]
pub extern "C" fn pvalloc(size: usize) -> *mut c_void {
    match size.checked_next_multiple_of(page_size()) {
        Some(size) => memalign(page_size(), size),
        None => fail(libc::ENOMEM),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc_usable_size(block: *mut c_void) -> usize {
    // SAFETY: the caller's contract.
    unsafe { foreign::usable_size(block.cast()) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn free_sized(block: *mut c_void, _size: usize) {
    // SAFETY: the caller's contract.
    unsafe { foreign::free(block.cast(), &NEAR) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn free_aligned_sized(block: *mut c_void, _align: usize, _size: usize) {
    // SAFETY: the caller's contract.
    unsafe { foreign::free(block.cast(), &NEAR) }
}

/// Other names of glibc's for the same, which some programs call.
macro_rules! aliases {
    ($($alias:ident = $name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        $(
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $alias($($arg: $type),*) $(-> $result)? {
                #[allow(unused_unsafe, reason = "some of them are safe")]
                // SAFETY: the caller's contract.
                unsafe { $name($($arg),*) }
            }
        )*
    };
}

aliases! {
    __libc_malloc = malloc(size: usize) -> *mut c_void;
    __libc_calloc = calloc(count: usize, size: usize) -> *mut c_void;
    __libc_realloc = realloc(block: *mut c_void, size: usize) -> *mut c_void;
    __libc_reallocarray = reallocarray(block: *mut c_void, count: usize, size: usize) -> *mut c_void;
    __libc_free = free(block: *mut c_void);
    __libc_memalign = memalign(align: usize, size: usize) -> *mut c_void;
    __libc_valloc = valloc(size: usize) -> *mut c_void;
    __libc_pvalloc = pvalloc(size: usize) -> *mut c_void;
    __posix_memalign = posix_memalign(place: *mut *mut c_void, align: usize, size: usize) -> c_int;
    cfree = free(block: *mut c_void);
}
