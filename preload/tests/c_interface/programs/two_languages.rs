//! A Rust program with a C library in it, linked with nearheap's shared library: both have the system's allocator, which is
//! nearheap then.

use std::alloc::{Layout, alloc, dealloc};

#[link(name = "nearheap_preload")]
unsafe extern "C" {}

#[link(name = "peer", kind = "static")]
unsafe extern "C" {
    fn peer_make(size: usize) -> *mut u8;
    fn peer_grow(block: *mut u8, size: usize) -> *mut u8;
    fn peer_free(block: *mut u8);
}

fn main() {
    for round in 0..1000 {
        for size in [1, 24, 100, 1000, 5000, 40_000, 500_000] {
            let layout = Layout::array::<u8>(size).unwrap();
            // SAFETY: blocks of these sizes; each is freed once.
            unsafe {
                let made = peer_make(size);
                assert_eq!(made.add(size - 1).read(), 7, "{round}");
                dealloc(made, layout);
                let grown = peer_grow(alloc(layout), 2 * size);
                peer_free(grown);
            }
        }
    }
    println!("good");
}
