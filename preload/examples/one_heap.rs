//! One heap for Rust and C: this program has the malloc family of `nearheap-preload` in itself, and nearheap as the allocator
//! of its Rust code. Blocks are made by one language and freed by the other.
//!
//! ```sh
//! cc -shared -fPIC -o peer.so preload/tests/c_interface/programs/peer.c
//! cargo run --release --package nearheap-preload --example one_heap ./peer.so
//! ```

// Named, so that it is linked: whoever in this process calls `malloc` means its functions from here on.
extern crate nearheap_preload as _;

use nearheap::{NearHeap, stats};
use std::alloc::{Layout, alloc, dealloc};
use std::error::Error;
use std::ffi::{CString, c_void};

#[global_allocator]
static HEAP: NearHeap = NearHeap::new();

type Make = unsafe extern "C" fn(usize) -> *mut u8;
type Grow = unsafe extern "C" fn(*mut u8, usize) -> *mut u8;
type Free = unsafe extern "C" fn(*mut u8);

/// The functions of the C library.
struct Peer {
    make: Make,
    grow: Grow,
    free: Free,
}

/// From bytes to pages to mappings of their own.
const SIZES: [usize; 8] = [1, 24, 100, 1000, 5000, 40_000, 500_000, 5_000_000];

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("name the C library, as its first lines say")?;
    let peer = Peer::load(&path)?;
    let count = |peer: &Peer| -> u64 {
        let before = stats().totals;
        rust_frees_what_c_made(peer);
        c_frees_what_rust_made(peer);
        let after = stats().totals;
        assert_eq!(after.in_use_blocks, before.in_use_blocks, "nothing is left");
        after.allocs - before.allocs
    };
    // C's allocations are counted beside Rust's: three for each size, and one where a block that grows moves.
    let counted = count(&peer);
    assert!((SIZES.len() as u64 * 3..=SIZES.len() as u64 * 4).contains(&counted), "{counted}");
    // What `strdup` of the C library allocates is Rust's to free, as a `CString` is.
    // SAFETY: a string, and a copy of it, whose length is that of the `CString` made of it.
    let copy = unsafe { CString::from_raw(libc::strdup(c"made by strdup".as_ptr())) };
    assert_eq!(copy.as_c_str(), c"made by strdup");
    drop(copy);
    println!("good");
    Ok(())
}

impl Peer {
    fn load(path: &str) -> Result<Self, Box<dyn Error>> {
        let path = CString::new(path)?;
        // SAFETY: a terminated path.
        let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        if library.is_null() {
            return Err("the C library can't be loaded".into());
        }
        let find = |name: &std::ffi::CStr| -> Result<*mut c_void, Box<dyn Error>> {
            // SAFETY: a library, and a terminated name.
            let symbol = unsafe { libc::dlsym(library, name.as_ptr()) };
            if symbol.is_null() { Err("a function is missing".into()) } else { Ok(symbol) }
        };
        let (make, grow, free) = (find(c"peer_make")?, find(c"peer_grow")?, find(c"peer_free")?);
        // SAFETY: the functions have these types in C.
        unsafe {
            Ok(Self {
                make: std::mem::transmute::<*mut c_void, Make>(make),
                grow: std::mem::transmute::<*mut c_void, Grow>(grow),
                free: std::mem::transmute::<*mut c_void, Free>(free),
            })
        }
    }
}

fn layout(size: usize) -> Layout {
    Layout::array::<u8>(size).unwrap_or(Layout::new::<u8>())
}

fn rust_frees_what_c_made(peer: &Peer) {
    for size in SIZES {
        // SAFETY: C fills a block of this size with sevens; it is freed once, with the layout of that size.
        unsafe {
            let block = (peer.make)(size);
            assert_eq!(block.add(size - 1).read(), 7, "{size}");
            dealloc(block, layout(size));
        }
    }
}

fn c_frees_what_rust_made(peer: &Peer) {
    for size in SIZES {
        // SAFETY: blocks of these sizes; each is freed once.
        unsafe {
            (peer.free)(alloc(layout(size)));
            let block = alloc(layout(size));
            block.write_bytes(9, size);
            let grown = (peer.grow)(block, 2 * size);
            assert_eq!(grown.add(size - 1).read(), 9, "{size}");
            (peer.free)(grown);
        }
    }
}
