//! Small stacks: the smallest that the C library allows are enough, and slow paths stay within a few KiB.

use crate::common::child;
use crate::common::contents::prepare;
use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::ffi::c_void;
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Every path, fast and slow, with hardly any stack of its own.
fn all_paths() {
    // SAFETY: every block is resized and freed with its own layout, once.
    unsafe {
        for size in [16, 200, 3000, 20 << 10, 100 << 10, 2 << 20] {
            for align in [8, 512] {
                let layout = Layout::from_size_align_unchecked(size, align);
                let mut blocks = [ptr::null_mut(); 40];
                for (i, block) in blocks.iter_mut().enumerate() {
                    // Hidden from the optimiser, which would remove blocks that are only freed.
                    *block =
                        black_box(if i % 2 == 0 { alloc(layout) } else { alloc_zeroed(layout) });
                    if block.is_null() {
                        libc::_exit(3);
                    }
                }
                for block in blocks {
                    dealloc(block, layout);
                }
                let block = black_box(realloc(black_box(alloc(layout)), layout, size + size / 2));
                dealloc(block, Layout::from_size_align_unchecked(size + size / 2, align));
            }
        }
    }
    nearheap::flush_thread();
    nearheap::purge();
}

/// Where the stack of the thread was when its own work began.
static TOP: AtomicUsize = AtomicUsize::new(0);

extern "C" fn small(_: *mut c_void) -> *mut c_void {
    let here = 0_u8;
    TOP.store((&raw const here).addr(), Ordering::Relaxed);
    all_paths();
    ptr::null_mut()
}

/// Runs a thread on a stack of this size that was filled with one byte before; how far down it wrote.
fn run_on(size: usize) -> usize {
    const PAINT: u8 = 0xa5;
    // SAFETY: a new mapping, which is the thread's alone until it has ended.
    unsafe {
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
        let stack = libc::mmap(ptr::null_mut(), size, rw, flags, -1, 0);
        assert!(stack != libc::MAP_FAILED);
        stack.cast::<u8>().write_bytes(PAINT, size);
        let mut attributes = MaybeUninit::uninit();
        assert_eq!(libc::pthread_attr_init(attributes.as_mut_ptr()), 0);
        assert_eq!(libc::pthread_attr_setstack(attributes.as_mut_ptr(), stack, size), 0);
        let mut thread = 0;
        let created =
            libc::pthread_create(&mut thread, attributes.as_ptr(), small, ptr::null_mut());
        assert_eq!(created, 0);
        assert_eq!(libc::pthread_join(thread, ptr::null_mut()), 0);
        let painted = std::slice::from_raw_parts(stack.cast::<u8>(), size);
        let lowest = stack.addr() + painted.iter().position(|&b| b != PAINT).unwrap();
        assert!(lowest > stack.addr(), "the whole stack was used");
        libc::munmap(stack, size);
        TOP.load(Ordering::Relaxed) - lowest
    }
}

pub(crate) fn smallest_stacks() {
    prepare();
    for _ in 0..100 {
        run_on(libc::PTHREAD_STACK_MIN);
    }
}

/// Also the thread's first operation and its end, the heap's start but not the process's.
pub(crate) fn depth() {
    let depth = run_on(256 << 10);
    eprintln!("{depth} bytes deep");
    let allowed = if cfg!(debug_assertions) { 12 << 10 } else { 4 << 10 };
    assert!(depth < allowed, "{depth} bytes deep");
}

#[test]
fn the_smallest_stacks_are_enough() {
    child("smallest_stacks").run().succeeds_with("");
}

#[test]
fn slow_paths_take_little_stack() {
    eprintln!("{}", child("depth").run().succeeds());
}
