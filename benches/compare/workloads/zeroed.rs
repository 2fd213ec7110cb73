//! Zeroed buffers, as `vec![0; n]` makes them: for tables, bitmaps, and buffers to read into.
//! Parameters: 4 KiB to 4 MiB, every doubling as likely; 16 live at a time; every page written, or one.

use crate::block::Random;
use crate::probe::Probe;
use std::collections::VecDeque;
use std::hint::black_box;

const LIVE: usize = 16;
const PAGE: usize = 4096;

pub(crate) fn touched(probe: &mut Probe) -> u64 {
    let buffers = probe.pick(4_000, 500, 20);
    replace(probe, buffers, |buffer| {
        let before = buffer.iter().step_by(PAGE).fold(0, |sum, byte| sum + u64::from(*byte));
        buffer.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
        before
    })
}

pub(crate) fn untouched(probe: &mut Probe) -> u64 {
    let buffers = probe.pick(25_000, 3_000, 20);
    replace(probe, buffers, |buffer| {
        let middle = buffer.len() / 2;
        u64::from(std::mem::replace(&mut buffer[middle], 1))
    })
}

fn replace(probe: &mut Probe, buffers: usize, touch: impl Fn(&mut [u8]) -> u64) -> u64 {
    let mut random = Random::new(6);
    let mut live: VecDeque<Vec<u8>> = VecDeque::with_capacity(LIVE + 1);
    let mut sum = 0_u64;
    for index in 0..buffers {
        let mut buffer = black_box(vec![0_u8; random.doubling(12, 22)]);
        let dirt = touch(&mut buffer);
        assert_eq!(dirt, 0, "a zeroed buffer holds something");
        sum += buffer.len() as u64;
        live.push_back(buffer);
        if live.len() > LIVE {
            live.pop_front();
        }
        if index == buffers / 2 {
            probe.peak();
        }
    }
    sum
}
