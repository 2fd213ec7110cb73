//! Who allocated what is live: call stacks, found by frame pointers (feature `leak-stacks`).
//! Owns: the stacks that were seen. Called by: `headed`, for each block; the exit, which lists them.
//!
//! Each stack is kept once, in a static that is touched only where `headers` is `leaks`; a live block's header says which.
//! Nothing is allocated or locked for it.
//!
//! A program that was built without frame pointers has anything in that register, so:
//! F1: only words between the frame that asks and the end of the thread's own stack are read. That is the kernel's stack of
//!     the main thread, or of another thread the part of a mapping below what the C library keeps for it, down to the guard
//!     page. Both live as long as the thread; on any other stack nothing is read.
//! F2: each frame is aligned, and further up than the one before, so the walk ends.

use crate::cache::Cache;
use crate::maps::region_of;
use crate::tls;
use crate::walk::visit;
use core::fmt::{self, Write};
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use nearheap_numa::os;

/// Frames of a stack that are kept: those next to the allocation.
const FRAMES: usize = 29;
/// Stacks that there is room for; what further ones allocate counts as unknown.
const STACKS: usize = 1 << 13;
/// Places that are tried for a stack.
const TRIES: usize = 64;
/// Stacks that are listed.
const LISTED: usize = 32;
/// `headed::alloc_for`, which is nobody's interest.
const OWN: usize = 1;

type Frames = [usize; FRAMES];

/// A stack, and what is live of it. Zeros are a free place.
struct Kept {
    hash: AtomicU64,
    blocks: AtomicUsize,
    bytes: AtomicUsize,
    frames: [AtomicUsize; FRAMES],
}

const _: () = assert!(size_of::<Kept>() == 256 && STACKS.is_power_of_two());

static KEPT: [Kept; STACKS] = [const {
    Kept {
        hash: AtomicU64::new(0),
        blocks: AtomicUsize::new(0),
        bytes: AtomicUsize::new(0),
        frames: [const { AtomicUsize::new(0) }; FRAMES],
    }
}; STACKS];

static ON: AtomicBool = AtomicBool::new(false);

/// Keeps stacks from now on, or none.
pub(crate) fn keep(on: bool) {
    ON.store(on, Ordering::Relaxed);
}

/// The mapping that a thread was in when it asked, and up to where it may be walked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    start: usize,
    end: usize,
    /// 0: it is not the thread's own stack.
    last: usize,
}

impl Bounds {
    /// Of a thread that has not asked.
    pub(crate) const NONE: Self = Self { start: 0, end: 0, last: 0 };
}

/// The number of the stack that leads here; 0 for none.
#[inline(never)]
pub(crate) fn here(cache: Option<&Cache>) -> usize {
    let Some(cache) = cache.filter(|_| ON.load(Ordering::Relaxed)) else { return 0 };
    let mut frames = [0; FRAMES];
    if walk_up(cache, tls::frame(), &mut frames) == 0 { 0 } else { number_of(&frames) }
}

/// Finds where the calls return to, the latest first; how many.
fn walk_up(cache: &Cache, mut frame: usize, frames: &mut Frames) -> usize {
    let mut floor = (&raw const *frames).addr();
    let last = last_of(cache, floor);
    let (mut own, mut n) = (OWN, 0);
    while (floor..last).contains(&frame)
        && last - frame >= size_of::<[usize; 2]>()
        && frame.is_multiple_of(align_of::<usize>())
        && let Some(place) = frames.get_mut(n)
    {
        // SAFETY: two words of the thread's own stack, above what this function has there (F1).
        let [next, back] = unsafe { ptr::with_exposed_provenance::<[usize; 2]>(frame).read() };
        if back == 0 {
            break;
        }
        if let Some(left) = own.checked_sub(1) {
            own = left;
        } else {
            // Within the call, not behind it.
            *place = back - 1;
            n += 1;
        }
        (floor, frame) = (frame + size_of::<[usize; 2]>(), next);
    }
    n
}

/// The end of the thread's own stack, if that is where `at` is; else 0 (F1).
fn last_of(cache: &Cache, at: usize) -> usize {
    let known = cache.stack.get();
    if (known.start..known.end).contains(&at) {
        return known.last;
    }
    // The first time, or the main thread's stack has grown, or the thread is on another one.
    let Some(region) = region_of(at) else { return 0 };
    let (start, end) = (region.start, region.end);
    let own = os::thread_place();
    // What the C library keeps for the main thread is in some mapping, which others may join from below.
    let last = match os::tid() == os::pid() {
        true if region.path() == "[stack]" => end,
        false if (at..end).contains(&own) => own,
        _ => 0,
    };
    cache.stack.set(Bounds { start, end, last });
    last
}

/// The number of a stack, which gets one if it is new and there is room.
fn number_of(frames: &Frames) -> usize {
    let mix =
        |h: u64, &f: &usize| (h ^ f as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    // So long a hash stands for the stack; 0 is a free place.
    let hash = frames.iter().fold(1, mix) | 1;
    for place in (hash >> 32) as usize..(hash >> 32) as usize + TRIES {
        let place = place % STACKS;
        let Some(kept) = KEPT.get(place) else { continue };
        match kept.hash.compare_exchange(0, hash, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => {
                for (to, from) in kept.frames.iter().zip(frames) {
                    to.store(*from, Ordering::Relaxed);
                }
                return place + 1;
            }
            Err(there) if there == hash => return place + 1,
            Err(_) => {}
        }
    }
    0
}

/// Writes the stacks that have live blocks, the most bytes first. Bytes are those of classes.
pub(crate) fn write(out: &mut dyn Write) -> fmt::Result {
    let (mut unknown_blocks, mut unknown_bytes) = (0, 0);
    visit(&mut |block| {
        if let Some(kept) = block.stack.checked_sub(1).and_then(|place| KEPT.get(place)) {
            kept.blocks.fetch_add(1, Ordering::Relaxed);
            kept.bytes.fetch_add(block.class, Ordering::Relaxed);
        } else {
            unknown_blocks += 1;
            unknown_bytes += block.class;
        }
    });
    for _ in 0..LISTED {
        let Some(kept) = KEPT.iter().max_by_key(|kept| kept.bytes.load(Ordering::Relaxed)) else {
            break;
        };
        let (blocks, bytes) =
            (kept.blocks.swap(0, Ordering::Relaxed), kept.bytes.swap(0, Ordering::Relaxed));
        if blocks == 0 {
            break;
        }
        writeln!(out, "nearheap: live: blocks={blocks} bytes={bytes} allocated by")?;
        for frame in &kept.frames {
            match frame.load(Ordering::Relaxed) {
                0 => break,
                address => write_frame(out, address)?,
            }
        }
    }
    let (mut stacks, mut blocks, mut bytes) = (0, 0, 0);
    for kept in KEPT.iter().filter(|kept| kept.blocks.load(Ordering::Relaxed) > 0) {
        stacks += 1;
        blocks += kept.blocks.swap(0, Ordering::Relaxed);
        bytes += kept.bytes.swap(0, Ordering::Relaxed);
    }
    if stacks > 0 {
        writeln!(
            out,
            "nearheap: live: blocks={blocks} bytes={bytes} allocated by {stacks} others"
        )?;
    }
    if unknown_blocks > 0 {
        let (blocks, bytes) = (unknown_blocks, unknown_bytes);
        writeln!(out, "nearheap: live: blocks={blocks} bytes={bytes} allocated by unknown")?;
    }
    Ok(())
}

/// Where it is in memory, and in the file that it comes from.
fn write_frame(out: &mut dyn Write, address: usize) -> fmt::Result {
    write!(out, "nearheap:     {address:#x}")?;
    if let Some(region) = region_of(address) {
        write!(out, " {}+{:#x}", region.path(), address - region.base)?;
    }
    out.write_char('\n')
}
