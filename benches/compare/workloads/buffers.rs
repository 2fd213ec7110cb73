//! Large buffers, as for files, images and network frames.
//! Parameters: 64 live buffers of 64 KiB to 8 MiB, every doubling as likely, replaced at random and filled.

use crate::block::{Block, Random, free_all};
use crate::probe::Probe;

pub(crate) fn buffers(probe: &mut Probe) -> u64 {
    let (slots, replacements) = (probe.pick(64, 64, 8), probe.pick(2_000, 250, 10));
    let mut random = Random::new(8);
    let mut live: Vec<Block> =
        (0..slots as u64).map(|index| Block::new(random.doubling(16, 23), index)).collect();
    let mut sum = 0_u64;
    for index in 0..replacements as u64 {
        let place = random.below(slots);
        // The new buffer is filled before the old one goes, as when a frame is replaced by the next.
        let buffer = Block::new(random.doubling(16, 23), index);
        sum = sum.wrapping_add(std::mem::replace(&mut live[place], buffer).free());
    }
    probe.peak();
    sum.wrapping_add(free_all(live))
}
