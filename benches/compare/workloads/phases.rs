//! Programs that change: from one size to another, slowly or at once, and from busy to idle.
//! Parameters: 128 MiB of one size, 90 % freed, 115 MiB of another; 64 MiB live while sizes drift from 16 bytes to 4 KiB and
//! back; a burst of 256 MiB.

use crate::block::{Block, Random, free_all};
use crate::probe::Probe;
use std::thread;
use std::time::Duration;

const MIB: usize = 1 << 20;

pub(crate) fn up(probe: &mut Probe) -> u64 {
    phases(probe, 128, 1000)
}

pub(crate) fn down(probe: &mut Probe) -> u64 {
    phases(probe, 1000, 128)
}

fn phases(probe: &mut Probe, first: usize, second: usize) -> u64 {
    let bytes = probe.pick(128 * MIB, 32 * MIB, MIB / 8);
    let mut random = Random::new(12);
    let mut blocks: Vec<Block> =
        (0..bytes / first).map(|index| Block::new(first, index as u64)).collect();
    probe.untimed(|_| random.shuffle(&mut blocks));
    let kept = blocks.len() / 10;
    let mut sum = free_all(blocks.drain(kept..));
    blocks.extend((0..bytes / 10 * 9 / second).map(|index| Block::new(second, index as u64)));
    probe.peak();
    sum = sum.wrapping_add(free_all(blocks));
    sum
}

pub(crate) fn drift(probe: &mut Probe) -> u64 {
    let steps = probe.pick(3_000_000, 300_000, 3_000);
    let budget = probe.pick(64 * MIB, 16 * MIB, MIB / 8);
    let mut random = Random::new(13);
    let mut live: Vec<Block> = Vec::new();
    let (mut bytes, mut sum) = (0, 0_u64);
    for step in 0..steps {
        // There and back again, twice: the doubling from which sizes are taken.
        let phase = step * 32 / steps % 16;
        let doubling = 4 + phase.min(15 - phase) as u32;
        let block = Block::new(random.doubling(doubling, doubling + 1), step as u64);
        bytes += block.size();
        live.push(block);
        while bytes > budget {
            let place = random.below(live.len());
            let block = live.swap_remove(place);
            bytes -= block.size();
            sum = sum.wrapping_add(block.free());
        }
    }
    probe.peak();
    sum.wrapping_add(free_all(live))
}

/// After the burst the program lives on: ten times, it wakes for a little work, as a timer would make it.
pub(crate) fn idle_burst(probe: &mut Probe) -> u64 {
    let bytes = probe.pick(128 * MIB, 48 * MIB, MIB / 8);
    let nap = Duration::from_millis(probe.pick(200, 25, 1) as u64);
    let burst = |seed| {
        let mut random = Random::new(seed);
        let mut blocks = Vec::new();
        let mut left = bytes;
        while left > 0 {
            let block = Block::new(random.doubling(4, 14), left as u64);
            left = left.saturating_sub(block.size());
            blocks.push(block);
        }
        blocks
    };
    let mut sum = thread::scope(|scope| {
        let threads = [14, 15].map(|seed| scope.spawn(move || burst(seed)));
        let heaps = threads.map(|thread| thread.join().expect("no panic"));
        probe.peak();
        let threads = heaps.map(|heap| scope.spawn(move || free_all(heap)));
        threads
            .map(|thread| thread.join().expect("no panic"))
            .into_iter()
            .fold(0, u64::wrapping_add)
    });
    probe.untimed(|_| {
        for wake in 0..10 {
            thread::sleep(nap);
            sum = sum.wrapping_add(free_all((0..100).map(|_| Block::new(100, wake))));
        }
    });
    sum
}
