//! A magazine keeps what it was given, and hands back what it has no room for.

use super::*;
use core::ptr;
use std::vec::Vec;

impl Depot {
    /// The blocks in the magazine of a slot.
    pub(crate) fn blocks(&self, slot: Slot) -> Vec<*mut u8> {
        let stack = self.of(slot).unwrap().stack.lock();
        stack.items[..stack.n].to_vec()
    }
}

#[test]
fn what_goes_in_comes_out_once() {
    let depot = std::boxed::Box::new(Depot::new());
    for slot in Slot::all().filter(|s| s.is_cached()) {
        let mut next = 16;
        let (mut expected, mut out) = (0, Vec::new());
        for n in [1, 32, 7, 32, 32, 32, 32, 2, 31] {
            let blocks: Vec<_> =
                (next..next + n).map(|i| ptr::without_provenance_mut(i * 16)).collect();
            next += n;
            expected += n;
            let mut overflow = [ptr::null_mut(); GIVE_MAX];
            let over = depot.push(slot, &blocks, &mut overflow);
            out.extend_from_slice(&overflow[..over]);
            assert_eq!(depot.count(slot), depot.blocks(slot).len());
            assert!(depot.count(slot) <= room_of(slot), "A2");
            assert_eq!(out.len() + depot.count(slot), expected, "{slot:?}");
        }
        let mut last = [ptr::null_mut(); ROOM];
        let n = depot.pop(slot, &mut last);
        out.extend_from_slice(&last[..n]);
        assert_eq!(depot.pop(slot, &mut last), 0);
        out.sort_unstable();
        let all: Vec<_> = (16..next).map(|i| ptr::without_provenance_mut(i * 16)).collect();
        assert_eq!(out, all, "{slot:?}");
    }
}
