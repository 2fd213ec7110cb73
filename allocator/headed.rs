//! Headers mode: the same heap, whose blocks have headers, so that misuse is found at the free itself.
//! Owns: the mode, its operations. Called by: the cold paths of `global`, `on_node` and `foreign`, once they have asked
//! [`is_on`]; every operation takes them, since a thread points at the sentinel `HEADED` (see `tls`).
//!
//! A block is one of the heap underneath, larger by what `header` says; it counts as a block of that class. Its thread's
//! real cache serves it.
//!
//! Z1: the mode is settled by the start, before anything is registered and so before the first block: every block of the
//!     process has a header, or none has, but for those that signal handlers were given before: see `nested`.
//! Z2: an address is looked up first. What is before it is read only where a block is, under the lock that keeps it there.
//! Z3: a block goes from `Live` to `Waiting` under that lock, so of two frees one is the second.
//! Z4: a free is counted at once. The block then waits in the quarantine, and goes back past the caches.

use crate::cache::Cache;
use crate::class::{GRANULE, Slot};
use crate::fault;
use crate::granule::lookup::Around;
use crate::header::{self, BlockHeader, Damaged, Says, Shape, State};
use crate::heap::Found;
use crate::nested;
use crate::quarantine;
use crate::report::Line;
use crate::stacks;
use crate::start::HEAP;
#[cfg(feature = "c-interface")]
use crate::tls::Inside;
#[cfg(feature = "signals")]
use crate::tls::{self, Standing};
use crate::value::Headers;
use core::alloc::Layout;
use core::fmt;
use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering};

static ON: AtomicBool = AtomicBool::new(false);

/// Whether blocks have headers.
#[inline]
pub(crate) fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Settles the mode (Z1).
pub(crate) fn settle(headers: Headers, quarantine_bytes: usize) {
    quarantine::limit(quarantine_bytes);
    let on = match headers {
        Headers::Auto => cfg!(debug_assertions),
        Headers::Off => false,
        Headers::On | Headers::Leaks => true,
    };
    // Other threads ask once they have passed the start, whose end this comes before.
    // Memcheck has marks of its own before and behind blocks.
    ON.store(on && !cfg!(feature = "valgrind"), Ordering::Relaxed);
    stacks::keep(headers == Headers::Leaks);
}

/// Does something of the program's on a thread that is inside the heap, as if it weren't.
#[cfg(feature = "signals")]
pub(crate) fn outside(cache: Option<&Cache>, work: fn()) {
    let standing = match cache {
        Some(_) if is_on() => Standing::Headed,
        // SAFETY: caches are metadata, which lives for ever.
        Some(cache) => Standing::Working(unsafe { &*ptr::from_ref(cache) }),
        None => Standing::Gone,
    };
    tls::outside(&standing, work);
}

/// What is wrong with a block.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trouble {
    Foreign,
    NotABlock,
    DoubleFree,
    WrongLayout { size: usize, align: usize },
    Damaged(Damaged),
    Overrun,
    WrittenAt(usize),
}

/// A block that was looked up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub(crate) base: usize,
    pub(crate) payload: usize,
    pub(crate) says: Says,
    pub(crate) shape: Shape,
}

impl Block {
    /// The block whose payload is here, as far as its header tells.
    ///
    /// # Safety
    /// As for [`BlockHeader::of`].
    pub(crate) unsafe fn at(payload: usize) -> Result<Self, Damaged> {
        // SAFETY: the caller's promise.
        let header = unsafe { BlockHeader::of(payload) };
        let says = header.read()?;
        let sound = Shape::of(says.size, says.align).zip(payload.checked_sub(GRANULE));
        let Some((shape, _)) = sound.filter(|(shape, _)| shape.before <= payload) else {
            return Err(Damaged(0, 0));
        };
        Ok(Self { base: payload - shape.before, payload, says, shape })
    }

    /// The live block that begins here, if it is one.
    ///
    /// # Safety
    /// A block of the heap is there, and stays.
    pub(crate) unsafe fn based_at(base: usize) -> Option<Self> {
        // SAFETY: the caller's promise; a block has 16 bytes at least, and what a sound header says of it is true (B2).
        unsafe {
            let first = header::at_base(base).read().ok()?;
            let shape = Shape::of(first.size, first.align)?;
            if shape.is_apart() != (first.state == State::Apart) {
                return None;
            }
            let block = Self::at(base + shape.before).ok()?;
            (block.base == base && block.says.state == State::Live).then_some(block)
        }
    }

    /// Changes what its header says.
    ///
    /// # Safety
    /// The block is the caller's.
    pub(crate) unsafe fn become_state(&mut self, state: State, next: usize) {
        self.says = Says { state, next, ..self.says };
        // SAFETY: the caller's promise.
        unsafe { BlockHeader::of(self.payload) }.say(self.says);
    }

    /// Ends the process.
    #[cold]
    pub(crate) fn die(&self, trouble: Trouble) -> ! {
        die(trouble, self.payload, Some((self.says.size, self.says.align)))
    }
}

/// Writes the headers and the seal of a block at `base`; its payload.
///
/// # Safety
/// The block is the caller's, and of the shape's whole layout at least.
pub(crate) unsafe fn dress(base: usize, shape: Shape, says: Says) -> usize {
    let payload = base + shape.before;
    // SAFETY: the caller's promise.
    unsafe {
        if shape.is_apart() {
            header::at_base(base).say(Says { state: State::Apart, ..says });
        }
        header::seal(payload, says.size);
        BlockHeader::of(payload).say(says);
    }
    payload
}

/// A block for `layout`, of a part if one is named, and how many bytes from its beginning on may be other than zero.
///
/// # Safety
/// `cache` is the calling thread's.
#[inline]
pub(crate) unsafe fn alloc(part: Option<usize>, cache: Option<&Cache>, layout: Layout) -> Found {
    // SAFETY: the caller's promise.
    unsafe { alloc_for(part, cache, layout, false) }
}

/// The same, `loose` for C.
///
/// # Safety
/// As for [`alloc`].
#[inline(never)]
pub(crate) unsafe fn alloc_for(
    part: Option<usize>,
    cache: Option<&Cache>,
    layout: Layout,
    loose: bool,
) -> Found {
    let nothing = (ptr::null_mut(), 0);
    let (size, align) = (layout.size(), layout.align());
    let Some(shape) = Shape::of(size, align) else { return nothing };
    // SAFETY: the caller's promise.
    let mut found = unsafe { take(part, cache, shape.whole) };
    if found.0.is_null() && quarantine::drain(cache) {
        // SAFETY: as above.
        found = unsafe { take(part, cache, shape.whole) };
    }
    if found.0.is_null() {
        return nothing;
    }
    let base = found.0.expose_provenance();
    let says = Says { size, align, loose, state: State::Live, next: stacks::here(cache) };
    // SAFETY: a block of the whole layout, which is nobody else's.
    unsafe { dress(base, shape, says) };
    (found.0.wrapping_add(shape.before), found.1.saturating_sub(shape.before))
}

unsafe fn take(part: Option<usize>, cache: Option<&Cache>, whole: Layout) -> Found {
    // SAFETY: the cache is the calling thread's, by the caller's promise.
    unsafe {
        if let Some(part) = part {
            return HEAP.alloc_of(part, cache, whole);
        }
        let slot = Slot::of_layout(whole).filter(|slot| slot.is_cached());
        if let Some((slot, cache)) = slot.zip(cache)
            && let Some(block) = cache.pop(slot)
        {
            return (block.as_ptr(), usize::MAX);
        }
        HEAP.alloc(cache, whole)
    }
}

/// Looks a payload up, and changes the state of its block if all is well with it.
fn claim(payload: usize, layout: Option<Layout>, state: State) -> Result<Block, Trouble> {
    let before = payload.wrapping_sub(GRANULE);
    if !payload.is_multiple_of(GRANULE) {
        let ours = HEAP.granules.around(payload, &mut |_| {}) != Around::Nothing
            || HEAP.huge.around(payload, &mut |_| {}) != Around::Nothing;
        return Err(if ours { Trouble::NotABlock } else { Trouble::Foreign });
    }
    let mut found = Err(Trouble::NotABlock);
    // SAFETY: `look` is called with the beginning of the block that `before` is in (Z2).
    let mut look = |base| found = unsafe { judge(base, payload, layout, state) };
    let mut around = HEAP.granules.around(before, &mut look);
    if around == Around::Nothing {
        // Before the huge blocks, for which there is a lock.
        around = nested::around(before, &mut look);
    }
    if around == Around::Nothing {
        around = HEAP.huge.around(before, &mut look);
    }
    match around {
        Around::Nothing => Err(Trouble::Foreign),
        Around::Free => Err(Trouble::DoubleFree),
        Around::Block => found,
    }
}

/// Whether a layout may give back a block of C's: it is of the class that would have one of that size.
fn fits(layout: Layout, says: Says) -> bool {
    let class = |size| Layout::from_size_align(size, GRANULE).map_or(0, |l| HEAP.usable(l));
    says.loose && layout.align() <= GRANULE && class(layout.size()) == class(says.size)
}

/// What is to be said of a payload in the block at `base`.
///
/// # Safety
/// A block of the heap is there, it stays there, and `payload - 16` is in it.
unsafe fn judge(
    base: usize,
    payload: usize,
    layout: Option<Layout>,
    state: State,
) -> Result<Block, Trouble> {
    // SAFETY: the caller's promise; a block has 16 bytes at least.
    let (found, first) = unsafe { (Block::at(payload), header::at_base(base).read()) };
    let mut block = match (found, first) {
        (Ok(block), _) if block.base != base => return Err(Trouble::NotABlock),
        (Ok(block), Err(damaged)) if block.shape.is_apart() => {
            return if block.says.state == State::Live {
                Err(Trouble::Damaged(damaged))
            } else {
                Err(Trouble::DoubleFree)
            };
        }
        (Ok(block), _) => block,
        // Is this where the payload of the block is?
        (Err(damaged), Ok(first)) => {
            let shape = Shape::of(first.size, first.align).filter(|s| base + s.before == payload);
            return Err(shape.map_or(Trouble::NotABlock, |_| Trouble::Damaged(damaged)));
        }
        (Err(damaged), Err(_)) => {
            let here = payload - base == GRANULE;
            return Err(if here { Trouble::Damaged(damaged) } else { Trouble::NotABlock });
        }
    };
    let Says { size, align, .. } = block.says;
    if block.says.state != State::Live {
        return Err(Trouble::DoubleFree);
    }
    if layout.is_some_and(|l| (l.size(), l.align()) != (size, align) && !fits(l, block.says)) {
        return Err(Trouble::WrongLayout { size, align });
    }
    // SAFETY: the header is sound and live, so the block has all of its shape.
    unsafe {
        if !header::is_sealed(payload, size) {
            return Err(Trouble::Overrun);
        }
        if state != State::Live {
            block.become_state(state, 0);
        }
    }
    Ok(block)
}

/// As `claim`, or the end of the process.
fn claim_or_die(payload: usize, layout: Option<Layout>, state: State) -> Block {
    claim(payload, layout, state).unwrap_or_else(|trouble| {
        die(trouble, payload, layout.map(|layout| (layout.size(), layout.align())))
    })
}

/// Takes a block back; of this layout, where the caller has one.
///
/// # Safety
/// `cache` is the calling thread's. What `payload` is, is checked.
#[inline(never)]
pub(crate) unsafe fn free(cache: Option<&Cache>, payload: *mut u8, layout: Option<Layout>) {
    if nested::take_early(payload, layout) {
        return;
    }
    let block = claim_or_die(payload as usize, layout, State::Waiting);
    HEAP.count_free(cache, block.shape.whole);
    match nested::give_back(ptr::without_provenance_mut(block.base), None) {
        None => quarantine::keep(block, cache),
        Some(Ok(())) => {}
        Some(Err(_)) => block.die(Trouble::DoubleFree),
    }
}

/// Makes a block one of `new` bytes without copying it; null where that can't be, and the block is as it was.
///
/// # Safety
/// `cache` is the calling thread's. What `payload` is, is checked.
#[inline(never)]
pub(crate) unsafe fn resize(
    cache: Option<&Cache>,
    payload: *mut u8,
    layout: Option<Layout>,
    new: usize,
) -> *mut u8 {
    if nested::is_early(payload) {
        return ptr::null_mut();
    }
    let block = claim_or_die(payload as usize, layout, State::Live);
    let Some(to) = Shape::of(new, block.says.align) else { return ptr::null_mut() };
    let base = ptr::with_exposed_provenance_mut(block.base);
    // SAFETY: the caller's promise; the block was checked.
    let moved = unsafe { HEAP.resize(cache, base, block.shape.whole, to.whole.size()) };
    let moved = fault::survive(moved);
    if moved.is_null() {
        return moved;
    }
    let says = Says { size: new, next: stacks::here(cache), ..block.says };
    // SAFETY: the block is of the new shape now, and the caller's.
    let payload = unsafe { dress(moved.expose_provenance(), to, says) };
    ptr::with_exposed_provenance_mut(payload)
}

/// Bytes of a block: those that the program asked for.
#[cfg(feature = "c-interface")]
pub(crate) fn size_of(inside: &Inside, payload: *mut u8) -> usize {
    if inside.is_nested() && !nested::has(payload) {
        // A signal handler looks nothing up that is under a lock, and has to trust its caller.
        // SAFETY: a block of the heap's, by the caller's contract.
        return unsafe { Block::at(payload as usize) }.map_or(0, |block| block.says.size);
    }
    claim_or_die(payload as usize, None, State::Live).says.size
}

/// Says what is wrong with the block at an address, of this size and alignment as far as anybody says, and aborts.
#[cold]
#[inline(never)]
pub(crate) fn die(trouble: Trouble, payload: usize, asked: Option<(usize, usize)>) -> ! {
    let mut line = Line::new();
    let mut say = |text: fmt::Arguments<'_>| line.push(text);
    say(format_args!("nearheap: fatal: "));
    let mut shown = asked;
    match (trouble, asked) {
        (Trouble::Foreign, _) => say(format_args!("not a block of this heap")),
        (Trouble::NotABlock, _) => say(format_args!("not a block start")),
        (Trouble::DoubleFree, _) => say(format_args!("double free")),
        (Trouble::WrongLayout { size, align }, Some((wrong, to))) => {
            say(format_args!(
                "wrong layout: given back as size={wrong} align={to}, allocated as size={size} align={align}"
            ));
            shown = Some((size, align));
        }
        (Trouble::WrongLayout { .. }, None) => {}
        (Trouble::Damaged(Damaged(first, second)), _) => {
            say(format_args!("header damaged, as by an underrun: {first:#018x} {second:#018x}"));
        }
        (Trouble::Overrun, _) => say(format_args!("overrun: written behind the end")),
        (Trouble::WrittenAt(at), _) => say(format_args!("write after free: at byte {at}")),
    }
    say(format_args!(": ptr={payload:#x}"));
    if let Some((size, align)) = shown {
        say(format_args!(" size={size}"));
        if let Some(shape) = Shape::of(size, align) {
            say(format_args!(" class={}", HEAP.usable(shape.whole)));
        }
    }
    say(format_args!(" node={}", HEAP.granules.part_of(payload).unwrap_or(0)));
    fault::end(line)
}
