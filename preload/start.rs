//! The start of the library: before the constructors of every other one, the C library's included.
//! Owns: one constructor. Called by: the dynamic linker, first of all (`-z initfirst`, see `build.rs`).
//!
//! The heap would start by itself, in the first call. But the handlers that it registers for `fork` must be there before
//! anybody else's: those of the program then run while no lock of the heap is held, and may allocate.

use core::ffi::{c_char, c_int};

unsafe extern "C" {
    static mut environ: *const *const c_char;
}

unsafe extern "C" fn start(_: c_int, _: *const *const c_char, environment: *const *const c_char) {
    // SAFETY: the process has one thread. The C library, whose own constructor comes later, will write the same.
    unsafe {
        if environ.is_null() {
            environ = environment;
        }
    }
    nearheap::foreign::start();
}

#[used]
#[unsafe(link_section = ".init_array")]
static START: unsafe extern "C" fn(c_int, *const *const c_char, *const *const c_char) = start;
