//! Maps of strings: an index that is filled, searched, halved at random, and filled again.
//! Parameters: 200,000 keys of about 12 to 40 bytes with values of 8 to 120. The hasher is the standard one with a fixed seed.

use crate::block::Random;
use crate::probe::Probe;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, DefaultHasher};

/// What the work needs of a map.
trait Map {
    fn insert(&mut self, key: String, value: String);
    fn get(&self, key: &str) -> Option<&String>;
    fn remove(&mut self, key: &str) -> Option<String>;
}

type Hashed = HashMap<String, String, BuildHasherDefault<DefaultHasher>>;

impl Map for BTreeMap<String, String> {
    fn insert(&mut self, key: String, value: String) {
        self.insert(key, value);
    }
    fn get(&self, key: &str) -> Option<&String> {
        self.get(key)
    }
    fn remove(&mut self, key: &str) -> Option<String> {
        self.remove(key)
    }
}

impl Map for Hashed {
    fn insert(&mut self, key: String, value: String) {
        self.insert(key, value);
    }
    fn get(&self, key: &str) -> Option<&String> {
        self.get(key)
    }
    fn remove(&mut self, key: &str) -> Option<String> {
        self.remove(key)
    }
}

pub(crate) fn btreemap(probe: &mut Probe) -> u64 {
    work(probe, BTreeMap::new())
}

pub(crate) fn hashmap(probe: &mut Probe) -> u64 {
    work(probe, Hashed::default())
}

fn work(probe: &mut Probe, mut map: impl Map) -> u64 {
    let keys = probe.pick(200_000, 50_000, 300);
    fill(&mut map, keys, 0);
    let mut random = Random::new(9);
    let mut sum = 0_u64;
    for _ in 0..keys {
        let found = map.get(&key(random.below(2 * keys), 0));
        sum += found.map_or(1, |value| value.len() as u64);
    }
    for index in 0..keys {
        if random.below(2) == 0 {
            sum += map.remove(&key(index, 0)).map_or(0, |value| value.len() as u64);
        }
    }
    fill(&mut map, keys / 2, 1);
    probe.peak();
    sum
}

fn fill(map: &mut impl Map, keys: usize, generation: usize) {
    let mut random = Random::new(generation as u64);
    for index in 0..keys {
        map.insert(key(index, generation), "v".repeat(random.between(8, 120)));
    }
}

/// Keys of different lengths that don't ascend with their numbers.
fn key(index: usize, generation: usize) -> String {
    let mixed = (index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    format!("{:.*}/{mixed:016x}/{generation}", index % 24, "customer/order/position/")
}
