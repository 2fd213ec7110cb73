//! Batches: many objects are allocated, then all are freed, as the parts of a request or of a frame are.
//! Parameters: 20,000 objects of 16 to 512 bytes a batch; 1,500,000 objects of 16 to 256 bytes for the mass free.

use crate::block::{Block, Random, free_all};
use crate::probe::Probe;

const BATCH: usize = 20_000;

pub(crate) fn in_order(probe: &mut Probe) -> u64 {
    batches(probe, |_, blocks| free_all(blocks.drain(..)))
}

pub(crate) fn reverse(probe: &mut Probe) -> u64 {
    batches(probe, |_, blocks| free_all(blocks.drain(..).rev()))
}

pub(crate) fn shuffled(probe: &mut Probe) -> u64 {
    batches(probe, |random, blocks| {
        random.shuffle(blocks);
        free_all(blocks.drain(..))
    })
}

pub(crate) fn mass_free(probe: &mut Probe) -> u64 {
    let objects = probe.pick(1_500_000, 300_000, 500);
    let mut random = Random::new(4);
    let mut blocks: Vec<Block> =
        (0..objects as u64).map(|index| Block::new(random.between(16, 256), index)).collect();
    probe.peak();
    probe.untimed(|_| random.shuffle(&mut blocks));
    free_all(blocks)
}

fn batches(probe: &mut Probe, free: impl Fn(&mut Random, &mut Vec<Block>) -> u64) -> u64 {
    let (rounds, size) = (probe.pick(250, 30, 2), probe.pick(BATCH, BATCH, BATCH / 100));
    let mut random = Random::new(3);
    let mut blocks = Vec::with_capacity(size);
    let mut sum = 0_u64;
    for round in 0..rounds {
        blocks.extend((0..size as u64).map(|index| Block::new(random.between(16, 512), index)));
        if round == rounds / 2 {
            probe.peak();
        }
        sum = sum.wrapping_add(free(&mut random, &mut blocks));
    }
    sum
}
