//! What memcheck is told of blocks (feature `valgrind`), so that it finds in them what it finds in those of `malloc`.
//! Owns: `Untold`. Called by: the program, through `GlobalAlloc`; off the feature this file isn't there.
//!
//! A request to valgrind is a sequence of instructions that does nothing on a real CPU. With `tls`, this is the only assembly
//! in nearheap. Every operation is longer by such a sequence, and a few stale pointers are cleared, which would keep a lost
//! block reachable: for tests, not for programs in production.

use crate::global::NearHeap;
use crate::tls;
use core::alloc::{GlobalAlloc, Layout};
use core::ops::Deref;
use core::ptr;

/// `memcheck.h` and `valgrind.h` have these.
const MALLOCLIKE_BLOCK: usize = 0x1301;
const FREELIKE_BLOCK: usize = 0x1302;
const RESIZEINPLACE_BLOCK: usize = 0x130b;
const MAKE_MEM_DEFINED: usize = (b'M' as usize) << 24 | (b'C' as usize) << 16 | 2;

/// Asks valgrind for something; on a real CPU, nothing happens.
#[inline(never)]
fn ask(request: usize, a: usize, b: usize, c: usize, d: usize) {
    let arguments = [request, a, b, c, d, 0];
    // SAFETY: rotations that come to a whole turn, and an exchange of a register with itself; valgrind reads the arguments.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        core::arch::asm!(
            "rol rdi, 3", "rol rdi, 13", "rol rdi, 61", "rol rdi, 51", "xchg rbx, rbx",
            in("rax") arguments.as_ptr(),
            inout("rdx") 0_usize => _,
            inout("rdi") 0_usize => _,
            options(nostack),
        );
    }
    // SAFETY: as above, with the registers of this CPU.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        core::arch::asm!(
            "ror x12, x12, #3", "ror x12, x12, #13", "ror x12, x12, #51", "ror x12, x12, #61",
            "orr x10, x10, x10",
            inout("x3") 0_usize => _,
            in("x4") arguments.as_ptr(),
            inout("x12") 0_usize => _,
            options(nostack),
        );
    }
    // Elsewhere valgrind isn't told.
    let _ = arguments;
}

fn came(block: *mut u8, layout: Layout) {
    // Who is measured comes here twice: the inner one tells.
    if !block.is_null() && tls::watched().is_none() {
        ask(MALLOCLIKE_BLOCK, block.addr(), layout.size(), 0, 0);
    }
}

fn goes(block: *mut u8) {
    if tls::watched().is_none() {
        ask(FREELIKE_BLOCK, block.addr(), 0, 0, 0);
    }
}

/// The allocator without what is told of it.
#[repr(transparent)]
pub(crate) struct Untold(NearHeap);

impl Deref for Untold {
    type Target = NearHeap;
    #[inline]
    fn deref(&self) -> &NearHeap {
        &self.0
    }
}

fn untold(heap: &NearHeap) -> &Untold {
    // SAFETY: the same in memory.
    unsafe { &*ptr::from_ref(heap).cast() }
}

// SAFETY: as for what does the work.
unsafe impl GlobalAlloc for NearHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract.
        let block = unsafe { untold(self).alloc(layout) };
        came(block, layout);
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        goes(block);
        // SAFETY: the caller's contract.
        unsafe { untold(self).dealloc(block, layout) }
    }

    /// Cleared after it was told of: before, nobody may write to it.
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract; a block of the layout's size.
        unsafe {
            let block = self.alloc(layout);
            if !block.is_null() {
                ptr::write_bytes(block, 0, layout.size());
            }
            block
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new: usize) -> *mut u8 {
        // SAFETY: the caller's contract.
        let to = unsafe { untold(self).realloc(block, layout, new) };
        let told = tls::watched().is_some();
        if to == block && !told {
            ask(RESIZEINPLACE_BLOCK, block.addr(), layout.size(), new, 0);
        } else if !to.is_null() && !told && is_moved_by_the_kernel(layout, new) {
            goes(block);
            ask(MALLOCLIKE_BLOCK, to.addr(), new, 0, 0);
            ask(MAKE_MEM_DEFINED, to.addr(), layout.size().min(new), 0, 0);
        }
        to
    }
}

/// Whether a block that is elsewhere now wasn't copied, which would have been an allocation and a free of their own.
fn is_moved_by_the_kernel(old: Layout, new: usize) -> bool {
    let is_huge = |size| crate::class::Slot::of(size, old.align()).is_none();
    is_huge(old.size()) && is_huge(new)
}
