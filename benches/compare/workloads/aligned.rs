//! Over-aligned blocks, as for SIMD, for cache lines of their own, and for direct input and output.
//! Parameters: 30,000 live blocks of 32 bytes to 8 KiB, aligned to 32 bytes up to 4 KiB, replaced at random.

use crate::block::{Block, Random, free_all};
use crate::probe::Probe;

pub(crate) fn aligned(probe: &mut Probe) -> u64 {
    let (objects, replacements) =
        (probe.pick(30_000, 10_000, 200), probe.pick(1_200_000, 150_000, 1_000));
    let mut random = Random::new(7);
    let mut make = |stamp: u64| {
        let align = 32_usize << random.below(8);
        (Block::aligned(random.doubling(5, 13), align, stamp), random.below(objects))
    };
    let mut live: Vec<Block> = (0..objects as u64).map(|index| make(index).0).collect();
    let mut sum = 0_u64;
    for index in 0..replacements as u64 {
        let (block, place) = make(index);
        sum = sum.wrapping_add(std::mem::replace(&mut live[place], block).free());
    }
    probe.peak();
    sum.wrapping_add(free_all(live))
}
