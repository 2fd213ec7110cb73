//! Huge blocks grow and shrink without a copy: the kernel moves their pages. A copy would touch every page of the new
//! place, which is seen in the thread's page faults and in what is resident.

use crate::common::contents::{check, fill};
use crate::common::{child, rss_bytes};
use std::alloc::{Layout, alloc, dealloc, realloc};
use std::hint::black_box;
use std::mem::MaybeUninit;

const M: usize = 1 << 20;
/// Faults that the allocator's own tables and the stack may cost.
const FEW: i64 = 64;

fn faults() -> i64 {
    let mut usage = MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: `getrusage` fills what it is given, and doesn't fail for the own thread.
    unsafe {
        libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr());
        usage.assume_init().ru_minflt
    }
}

pub(crate) fn grow() {
    walk(16);
}

pub(crate) fn grow_aligned() {
    walk(4 * M);
}

fn walk(align: usize) {
    let full = 64 * M;
    let mut layout = Layout::from_size_align(full, align).unwrap();
    // SAFETY: the block has 64 MiB of contents throughout, and is resized and freed with its own layout.
    unsafe {
        let mut block = black_box(alloc(layout));
        fill(block, 7, 0, full);
        let mut obstacles = Vec::new();
        for size in [100 * M, 300 * M, 1024 * M, 200 * M, 64 * M] {
            // Something right behind it, so that growing in place isn't all that works.
            obstacles.push(black_box(alloc(layout)));
            let (rss, before) = (rss_bytes(), faults());
            block = realloc(block, layout, size);
            let (more, faults) = (rss_bytes().saturating_sub(rss), faults() - before);
            assert!(!block.is_null() && (block as usize).is_multiple_of(align), "{block:p}");
            assert!(faults < FEW, "{faults} page faults from {} to {size}", layout.size());
            assert!(more < M, "{more} bytes more resident from {} to {size}", layout.size());
            layout = Layout::from_size_align(size, align).unwrap();
        }
        check(block, 7, full);
        let rss = rss_bytes();
        block = realloc(block, layout, 2 * M);
        layout = Layout::from_size_align(2 * M, align).unwrap();
        let less = rss - rss_bytes();
        assert!(less > full - 4 * M, "only {less} bytes went back");
        check(block, 7, 2 * M);
        dealloc(block, layout);
    }
}

/// The same through `Vec`: its pages are touched once each, by what is pushed.
pub(crate) fn vector() {
    let (before, len) = (faults(), 256 * M);
    let mut vector = Vec::new();
    while vector.len() < len {
        vector.extend_from_slice(&[1_u8; 4096]);
    }
    // Without huge pages: one fault per 4 KiB. A vector that is copied when it doubles has twice as many.
    let (pages, faults) = ((len / 4096) as i64, faults() - before);
    assert!(faults < pages + pages / 8, "{faults} page faults for {pages} pages");
    assert!(vector.iter().step_by(4097).all(|&b| b == 1));
}

#[test]
fn a_huge_block_grows_and_shrinks_without_a_copy() {
    child("grow").run().succeeds_with("");
}

#[test]
fn an_aligned_huge_block_grows_and_shrinks_without_a_copy() {
    child("grow_aligned").run().succeeds_with("");
}

#[test]
fn a_vector_touches_its_pages_once() {
    child("vector").run().succeeds_with("");
}
