//! A walk over the live blocks, in headers mode.
//! Owns: `walk`, `LiveBlock`. Called by: the program.
//!
//! Blocks are found where they are: by the start bits of every segment, and in the table of huge blocks. A list of them
//! would have to be changed by every operation, under a lock of its own.

use crate::granule::lookup::Cursor;
use crate::headed::{self, Block};
use crate::start::HEAP;
use crate::tls::{self, Inside};

/// Blocks that are looked at under one lock.
const BATCH: usize = 32;

/// A block that is live: that somebody has allocated and nobody freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LiveBlock {
    /// Where it is.
    pub address: usize,
    /// The size that was asked for.
    pub size: usize,
    /// The alignment that was asked for.
    pub align: usize,
    /// The size of its class, header included.
    pub class: usize,
    /// The number of the stack that allocated it.
    #[cfg(feature = "leak-stacks")]
    pub(crate) stack: usize,
}

#[derive(Default)]
struct Batch {
    blocks: [Option<LiveBlock>; BATCH],
    n: usize,
}

impl Batch {
    /// Adds the block that begins here, if it is live; whether there is room for another.
    ///
    /// # Safety
    /// A block of the heap is there, and stays.
    unsafe fn add(&mut self, base: usize) -> bool {
        // SAFETY: the caller's promise.
        if let Some(block) = unsafe { Block::based_at(base) }
            && let Some(place) = self.blocks.get_mut(self.n)
        {
            let (says, class) = (block.says, HEAP.usable(block.shape.whole));
            let address = block.payload;
            *place = Some(LiveBlock {
                address,
                size: says.size,
                align: says.align,
                class,
                #[cfg(feature = "leak-stacks")]
                stack: says.next,
            });
            self.n += 1;
        }
        self.n < BATCH
    }

    fn tell(&mut self, each: &mut dyn FnMut(&LiveBlock)) {
        self.blocks.iter().flatten().for_each(each);
        *self = Self::default();
    }
}

/// Visits every live block, in [headers mode](crate::Config::headers); without headers nobody knows which those are, and
/// the answer is `false`.
///
/// Blocks that other threads allocate, move or free meanwhile may be visited or not. No lock is held while `each` runs, so
/// it may allocate; a block that it is told of may have been freed by then, by another thread or by itself. Blocks that were
/// allocated in [signal handlers](crate::in_signal_handler) are not visited.
///
/// ```
/// # use nearheap::{Config, NearHeap};
/// #[global_allocator]
/// static GLOBAL: NearHeap = NearHeap::with(Config::new().headers(true).lock());
///
/// # fn main() {
/// let kept = vec![1_u8; 1000];
/// let (mut blocks, mut found) = (0, None);
/// assert!(nearheap::walk(&mut |block| {
///     blocks += 1;
///     found = found.or((block.address == kept.as_ptr() as usize).then_some(block.size));
/// }));
/// assert_eq!(found, Some(1000));
/// # }
/// ```
pub fn walk(each: &mut dyn FnMut(&LiveBlock)) -> bool {
    if !headed::is_on() || tls::is_nested() {
        return false;
    }
    visit(each);
    true
}

/// The same, where the caller knows that there are headers.
pub(crate) fn visit(each: &mut dyn FnMut(&LiveBlock)) {
    let mut batch = Batch::default();
    let mut cursor = Cursor::default();
    while {
        let _inside = Inside::enter();
        // SAFETY: `look` is called with blocks of the heap, under the lock that keeps them.
        HEAP.granules.walk(&mut cursor, &mut |base| unsafe { batch.add(base) })
    } {
        batch.tell(each);
    }
    let mut at = 0;
    while let Some(next) = {
        let _inside = Inside::enter();
        // SAFETY: as above.
        HEAP.huge.next(at, &mut |base| _ = unsafe { batch.add(base) })
    } {
        batch.tell(each);
        at = next;
    }
}
