//! Growth: a buffer grows by what is pushed to it, without knowing its end, as when a file or an answer is read.
//! Parameters: to 64 MiB again and again, to 1 GiB once; 64 buffers in turn, to 1 MiB each.

use crate::probe::Probe;
use std::hint::black_box;

const MIB: usize = 1 << 20;
/// What a String grows by at a time: 32 bytes.
const PIECE: &str = "nearheap reads what it is given\n";

pub(crate) fn vec_64m(probe: &mut Probe) -> u64 {
    let (times, bytes) = (probe.pick(10, 2, 1), probe.pick(64 * MIB, 64 * MIB, MIB / 4));
    grow_vec(probe, times, bytes)
}

pub(crate) fn vec_1g(probe: &mut Probe) -> u64 {
    let bytes = probe.pick(1024 * MIB, 256 * MIB, MIB / 4);
    grow_vec(probe, 1, bytes)
}

pub(crate) fn string_64m(probe: &mut Probe) -> u64 {
    let (times, bytes) = (probe.pick(10, 2, 1), probe.pick(64 * MIB, 64 * MIB, MIB / 4));
    grow_string(probe, times, bytes)
}

pub(crate) fn string_1g(probe: &mut Probe) -> u64 {
    let bytes = probe.pick(1024 * MIB, 256 * MIB, MIB / 4);
    grow_string(probe, 1, bytes)
}

pub(crate) fn vec_many(probe: &mut Probe) -> u64 {
    let (times, bytes) = (probe.pick(8, 1, 1), probe.pick(MIB, MIB, MIB / 64));
    let mut sum = 0_u64;
    for time in 0..times {
        let mut buffers: Vec<Vec<u64>> = (0..64).map(|_| Vec::new()).collect();
        for index in 0..(bytes / size_of::<u64>()) as u64 {
            for buffer in &mut buffers {
                buffer.push(index);
            }
        }
        if time + 1 == times {
            probe.peak();
        }
        for buffer in black_box(buffers) {
            sum = sum.wrapping_add(buffer[buffer.len() / 2]);
        }
    }
    sum
}

fn grow_vec(probe: &mut Probe, times: usize, bytes: usize) -> u64 {
    let mut sum = 0_u64;
    for time in 0..times {
        let mut buffer: Vec<u64> = Vec::new();
        for index in 0..(bytes / size_of::<u64>()) as u64 {
            buffer.push(index);
        }
        let buffer = black_box(buffer);
        if time + 1 == times {
            probe.peak();
        }
        sum = buffer.iter().step_by(512).fold(sum, |sum, item| sum.wrapping_add(*item));
    }
    sum
}

fn grow_string(probe: &mut Probe, times: usize, bytes: usize) -> u64 {
    let mut sum = 0_u64;
    for time in 0..times {
        let mut text = String::new();
        for _ in 0..bytes / PIECE.len() {
            text.push_str(black_box(PIECE));
        }
        let text = black_box(text);
        if time + 1 == times {
            probe.peak();
        }
        let bytes = text.as_bytes().iter().step_by(4095);
        sum = bytes.fold(sum, |sum, byte| sum.wrapping_add(u64::from(*byte)));
    }
    sum
}
