//! Pairs: a block is allocated and freed at once, over and over, as temporary values are.
//! Parameters: 48 bytes, or 1 to 1024 at random; 100 blocks of the same kind live meanwhile.

use crate::block::{Block, Random, free_all};
use crate::probe::Probe;
use std::hint::black_box;

const HELD: usize = 100;
/// Sizes in the table of random ones; a power of two.
const SIZES: usize = 4096;
const LARGEST: usize = 1024;

pub(crate) fn constant(probe: &mut Probe) -> u64 {
    let held: Vec<Box<[u64; 6]>> = (0..HELD as u64).map(|index| Box::new([index; 6])).collect();
    probe.peak();
    let mut sum = 0_u64;
    for index in 0..probe.pick(100_000_000, 10_000_000, 10_000) as u64 {
        let block = black_box(Box::new([index; 6]));
        sum = sum.wrapping_add(block[5]);
    }
    held.iter().fold(sum, |sum, block| sum.wrapping_add(block[0]))
}

pub(crate) fn random(probe: &mut Probe) -> u64 {
    let mut random = Random::new(1);
    let sizes: Vec<u16> = (0..SIZES).map(|_| random.between(1, LARGEST) as u16).collect();
    let held: Vec<Block> = sizes[..HELD].iter().map(|size| small(*size, 0)).collect();
    probe.peak();
    let mut sum = 0_u64;
    for index in 0..probe.pick(20_000_000, 3_000_000, 10_000) {
        sum = sum.wrapping_add(small(sizes[index % SIZES], index as u64).free());
    }
    sum.wrapping_add(free_all(held))
}

/// A block of that size, or of the smallest that holds a stamp.
fn small(size: u16, stamp: u64) -> Block {
    Block::new(usize::from(size).max(crate::block::SMALLEST), stamp)
}
