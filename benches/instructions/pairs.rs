//! Allocates and frees so many blocks, one after another, and nothing else: `pairs LOOP COUNT`.
//!
//! The script `run` beside this file counts the instructions of two runs, one of COUNT pairs and one of twice as many.
//! What they differ by is the cost of the pairs; the start and the end of the process cancel out. The feature chosen
//! at build names the allocator; without one it is the system's.
//!
//! | loop | what it does |
//! |---|---|
//! | `empty` | the loop without an allocator: what the rows below include |
//! | `constant-48` | 48 bytes, aligned to 8; the compiler sees the size, as it does for `Box::new` |
//! | `constant-64` | the same with 64 bytes: a power of two, for which mimalloc has a shorter path |
//! | `opaque-48` | 48 bytes; the compiler does not see the size |
//! | `random` | sizes from 1 to 1,024 bytes in random order, each size read from a table |
//! | `shuffled` | the same sizes, 4,096 blocks at a time, freed in an order that has nothing to do with that of their making |

use std::alloc::{Layout, alloc, dealloc};
use std::hint::black_box;
use std::process::ExitCode;

#[cfg(all(feature = "nearheap", feature = "mimalloc"))]
compile_error!("one allocator at a time");

#[cfg(feature = "nearheap")]
#[global_allocator]
static GLOBAL: nearheap::NearHeap = nearheap::NearHeap::new();

#[cfg(feature = "mimalloc")]
#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

const WORDS_6: Layout = Layout::new::<[u64; 6]>();
const WORDS_8: Layout = Layout::new::<[u64; 8]>();
/// Sizes in the table; a power of two, so that finding the next one costs a mask.
const SIZES: usize = 4_096;
/// Blocks that live through the loops of one size.
const HELD: usize = 100;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (name, count) = (arguments.next(), arguments.next().and_then(|text| text.parse().ok()));
    let (Some(name), Some(count)) = (name, count) else {
        eprintln!("usage: pairs empty|constant-48|constant-64|opaque-48|random|shuffled COUNT");
        return ExitCode::FAILURE;
    };
    match name.as_str() {
        "empty" => (0..count).for_each(|_| {
            black_box(black_box(WORDS_6));
        }),
        "constant-48" => {
            hold(&[WORDS_6; HELD]);
            (0..count).for_each(|_| pair(WORDS_6));
        }
        "constant-64" => {
            hold(&[WORDS_8; HELD]);
            (0..count).for_each(|_| pair(WORDS_8));
        }
        "opaque-48" => {
            hold(&[WORDS_6; HELD]);
            (0..count).for_each(|_| pair(black_box(WORDS_6)));
        }
        "random" => random_pairs(count),
        "shuffled" => shuffled_batches(count),
        _ => {
            eprintln!("pairs: {name}: no such loop");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Allocates a block of each layout and keeps it until the process ends, so that the pairs run in a heap that is in use.
/// In an empty one, each pair would empty a slab of mimalloc and take it again.
fn hold(layouts: &[Layout]) {
    for layout in layouts {
        // SAFETY: no layout in this program is of zero bytes.
        black_box(unsafe { alloc(*layout) });
    }
}

#[inline(always)]
fn pair(layout: Layout) {
    // SAFETY: no layout in this program is of zero bytes.
    let block = black_box(unsafe { alloc(layout) });
    if !block.is_null() {
        // SAFETY: `block` comes from `alloc` with the same layout, and nobody else has it.
        unsafe { dealloc(block, layout) };
    }
}

fn random_pairs(count: u64) {
    let table = random_layouts();
    hold(&table[..]);
    for index in 0..count as usize {
        pair(table[index % SIZES]);
    }
}

fn shuffled_batches(count: u64) {
    let table = random_layouts();
    let mut blocks = vec![std::ptr::null_mut(); SIZES];
    for _ in 0..count / SIZES as u64 {
        for (block, layout) in blocks.iter_mut().zip(table.iter()) {
            // SAFETY: no layout in this program is of zero bytes.
            *block = black_box(unsafe { alloc(*layout) });
        }
        for index in 0..SIZES {
            // An odd factor visits every place once.
            let place = index * 1_597 % SIZES;
            // SAFETY: the block was allocated above with the layout at the same place, and is freed once.
            unsafe { dealloc(blocks[place], table[place]) };
        }
    }
}

/// The same layouts in every run. The table is made before the loop, so that its cost cancels out.
fn random_layouts() -> Box<[Layout; SIZES]> {
    let mut random = 1_u64;
    let mut table = Box::new([WORDS_6; SIZES]);
    for layout in table.iter_mut() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let size = 1 + (random >> 16) as usize % 1_024;
        *layout = Layout::array::<u8>(size).unwrap_or(WORDS_6);
    }
    table
}
