//! From an address to the block that it is in, and from each block to the next.
//! Called by: `headed`, `walk`, and the C interface, on behalf of whoever has an address and no layout to trust.
//!
//! An address is only reckoned with until a start bit says that a block is there. The shard's lock is held while the
//! caller looks at that block, so its segment stays where it is (N2).

use super::Granules;
use crate::segment::Segment;
use crate::shard::Shard;
use nearheap_numa::Os;
use nearheap_numa::lock::Guard;

/// What there is at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Around {
    /// Nothing of the heap's.
    Nothing,
    /// Memory of the heap's that is free.
    Free,
    /// A block; the caller has looked at it.
    Block,
}

/// Where a walk over all blocks has come to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cursor {
    shard: usize,
    segment: usize,
    granule: usize,
}

impl<O: Os> Granules<O> {
    /// The segment that an address is in, and the lock that protects it.
    fn segment_at(&self, address: usize) -> Option<(Guard<'_, Shard>, *const Segment)> {
        loop {
            // SAFETY: null, or metadata, which stays readable (N2).
            let shard = unsafe { self.map.find(address).as_ref()? }.shard();
            let inside = self.place(shard).shard.lock();
            let segment = self.map.find(address);
            // SAFETY: as above.
            if unsafe { segment.as_ref()? }.shard() == shard {
                return Some((inside, segment));
            }
        }
    }

    /// Finds the block that an address is in, and calls `look` with its beginning.
    #[inline(never)]
    pub(crate) fn around(&self, address: usize, look: &mut dyn FnMut(usize)) -> Around {
        let Some((_inside, segment)) = self.segment_at(address) else { return Around::Nothing };
        // SAFETY: published, asked under the lock of its shard, which protects it (N2, R3) until the end.
        match unsafe { (*segment).start_of(address) } {
            Some(base) => look(base),
            None => return Around::Free,
        }
        Around::Block
    }

    /// Calls `look` with the blocks that follow, as long as it wants more and they are of one shard. `false`: there are no
    /// more. Blocks in caches and magazines are among them.
    #[inline(never)]
    pub(crate) fn walk(&self, cursor: &mut Cursor, look: &mut dyn FnMut(usize) -> bool) -> bool {
        let Some(place) = self.places().nth(cursor.shard) else { return false };
        let mut shard = place.shard.lock();
        for i in cursor.segment..shard.positions() {
            cursor.segment = i;
            let segment = shard.at(i);
            while let Some(base) = segment.as_ref().and_then(|s| s.next_start(cursor.granule)) {
                cursor.granule = Segment::granule(base) + 1;
                if !look(base) {
                    return true;
                }
            }
            cursor.granule = 0;
        }
        *cursor = Cursor { shard: cursor.shard + 1, ..Cursor::default() };
        true
    }

    /// What is wrong with an address in a segment at which no block is out; `None`: it is in no segment.
    #[cfg(any(feature = "c-interface", feature = "hardened"))]
    pub(crate) fn misuse_at(&self, address: usize) -> Option<crate::fault::Misuse> {
        use crate::fault::Misuse;
        let aligned = address.is_multiple_of(crate::class::GRANULE);
        let mut begins = false;
        match self.around(address, &mut |base| begins = base == address) {
            Around::Nothing => None,
            // With `hardened`, it waits in a cache or a magazine.
            Around::Block if begins => Some(Misuse::DoubleFree),
            Around::Free if aligned => Some(Misuse::DoubleFree),
            Around::Free | Around::Block => Some(Misuse::NotABlock),
        }
    }
}
