//! Replacement: a large set of objects lives, and random ones of them are replaced, as in a cache or a database.
//! Parameters: 1,000,000 objects of 16 to 256 bytes, even; 100,000 of 16 bytes to 8 KiB, every doubling as likely.

use crate::block::{Block, Random, free_all};
use crate::probe::Probe;

pub(crate) fn small(probe: &mut Probe) -> u64 {
    let objects = probe.pick(1_000_000, 200_000, 500);
    let replacements = probe.pick(4_000_000, 500_000, 2_000);
    replace(probe, objects, replacements, |random| random.between(16, 256))
}

pub(crate) fn wide(probe: &mut Probe) -> u64 {
    let objects = probe.pick(100_000, 30_000, 200);
    let replacements = probe.pick(2_000_000, 150_000, 1_000);
    replace(probe, objects, replacements, |random| random.doubling(4, 13))
}

fn replace(
    probe: &mut Probe,
    objects: usize,
    replacements: usize,
    size: impl Fn(&mut Random) -> usize,
) -> u64 {
    let mut random = Random::new(2);
    let mut live: Vec<Block> =
        (0..objects).map(|index| Block::new(size(&mut random), index as u64)).collect();
    let mut sum = 0_u64;
    for index in 0..replacements {
        let place = random.below(objects);
        let old = std::mem::replace(&mut live[place], Block::new(size(&mut random), index as u64));
        sum = sum.wrapping_add(old.free());
    }
    probe.peak();
    sum.wrapping_add(free_all(live))
}
