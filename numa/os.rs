//! The kernel: the only system calls in nearheap.
//! Owns: `Os` (what the heap asks of memory, nodes and time), `Linux` (the real answers), and the calls of the process.
//! Called by: `source`, `topology` and `lock`; the process calls by the heap's start, its reports and its exit.
//!
//! O1: nothing here allocates, and nothing prints but `write`.
//! O2: a failed call changes nothing; the error number is in the result, and `errno` is the caller's as before.

use crate::nodes::NodeSet;
#[cfg(target_os = "linux")]
use crate::placement::Mode;
use crate::placement::Placement;
#[cfg(all(target_os = "linux", not(loom)))]
use crate::sync::AtomicU32;
use core::ffi::CStr;
use core::ptr::NonNull;

#[cfg(not(target_os = "linux"))]
mod unix;
#[cfg(not(target_os = "linux"))]
use unix::{CLOCK, errno_place};
#[cfg(not(target_os = "linux"))]
pub use unix::{cpus, is_privileged, tid};
#[cfg(all(not(target_os = "linux"), not(loom)))]
pub(crate) use unix::{futex_wait, futex_wake_one};

#[cfg(target_os = "linux")]
const CLOCK: libc::clockid_t = libc::CLOCK_MONOTONIC_COARSE;

/// This thread's `errno`.
#[cfg(target_os = "linux")]
fn errno_place() -> *mut libc::c_int {
    // SAFETY: glibc and musl return a valid pointer to this thread's `errno`.
    unsafe { libc::__errno_location() }
}

/// An address in what the C library keeps for this thread: for all but the main thread, that is above its stack and in the
/// same mapping.
pub fn thread_place() -> usize {
    errno_place().addr()
}

/// The kernel's number for a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

/// Of a kernel that doesn't know the call.
const REFUSED: Errno = Errno(libc::ENOSYS);

/// What the heap asks of the kernel about memory and time; tests answer in its place.
///
/// # Safety
/// A mapping that `map` or `remap` returns is readable, writable, zero where it is fresh, aligned to the OS page, and
/// nobody else's until it is unmapped. After a successful `purge`, the range reads as zero.
pub unsafe trait Os: Sync {
    /// Bytes of an OS page: a power of two.
    fn page_size(&self) -> usize;

    /// An address around which mappings are likely to be free, or 0.
    fn hint(&self) -> usize;

    /// Milliseconds of a clock that never goes back; a few of error is fine.
    fn now_ms(&self) -> u64;

    /// Maps `len` bytes, at `hint` if that is free.
    ///
    /// # Errors
    /// The kernel's number: out of memory, out of mappings, over a limit.
    fn map(&self, hint: usize, len: usize) -> Result<NonNull<u8>, Errno>;

    /// Unmaps `[at, at + len)`.
    ///
    /// # Errors
    /// The kernel's number; the range is still mapped then.
    ///
    /// # Safety
    /// The range was mapped here and nobody uses it any more.
    unsafe fn unmap(&self, at: NonNull<u8>, len: usize) -> Result<(), Errno>;

    /// Gives the pages of `[at, at + len)` back; the range stays mapped and reads as zero.
    ///
    /// # Errors
    /// The kernel's number; the contents are undefined then.
    ///
    /// # Safety
    /// The range was mapped here and nobody needs its contents.
    unsafe fn purge(&self, at: NonNull<u8>, len: usize) -> Result<(), Errno>;

    /// Asks for huge pages behind `[at, at + len)`, or for none.
    ///
    /// # Errors
    /// The kernel's number; the range is as it was.
    ///
    /// # Safety
    /// The range was mapped here.
    unsafe fn advise_huge(&self, at: NonNull<u8>, len: usize, yes: bool) -> Result<(), Errno> {
        let _ = (at, len, yes);
        Err(REFUSED)
    }

    /// Makes the mapping of `old` bytes at `at` one of `new` bytes: in place of the mapping `onto`, or, where there is
    /// none, here if it can and somewhere else if it must.
    ///
    /// # Errors
    /// The kernel's number; the old mapping stands then.
    ///
    /// # Safety
    /// `[at, at + old)` was mapped here as one mapping; if the result is elsewhere, nobody uses the old one any more.
    /// `onto` is a mapping of `new` bytes that nobody uses.
    unsafe fn remap(
        &self,
        at: NonNull<u8>,
        old: usize,
        new: usize,
        onto: Option<NonNull<u8>>,
    ) -> Result<NonNull<u8>, Errno> {
        let _ = (at, old, new, onto);
        Err(REFUSED)
    }

    /// Maps `[at, at + len)`, whole pages, so that every access to it is a fault: in place of what is `ours` there, or only
    /// if nothing is. `false`: something is.
    ///
    /// # Errors
    /// The kernel's number: out of mappings, over a limit; the range is as it was.
    ///
    /// # Safety
    /// If it is `ours`, the range was mapped here and nobody uses it.
    unsafe fn wall(&self, at: usize, len: usize, ours: bool) -> Result<bool, Errno> {
        let _ = (at, len, ours);
        Ok(false)
    }

    /// A number that nobody foresees. The answer given here is for tests, which want the same every time.
    fn random(&self) -> u64 {
        0x6e65_6172_6865_6170
    }

    // What follows is about NUMA nodes. The answers given here are those of a kernel that knows nothing of them.

    /// The nodes whose memory this process may use at the moment.
    ///
    /// # Errors
    /// The kernel's number: it knows no nodes, or a filter of system calls forbids to ask.
    fn allowed_nodes(&self) -> Result<NodeSet, Errno> {
        Err(REFUSED)
    }

    /// Says on which nodes the pages of `[at, at + len)` shall be put when they are first touched. Pages that are there
    /// already stay where they are.
    ///
    /// # Errors
    /// The kernel's number; the range is as it was.
    ///
    /// # Safety
    /// The range was mapped here, in whole OS pages.
    unsafe fn place(&self, at: NonNull<u8>, len: usize, on: Placement) -> Result<(), Errno> {
        let _ = (at, len, on);
        Err(REFUSED)
    }

    /// Whether the kernel can interleave by weights.
    fn knows_weights(&self) -> bool {
        false
    }

    /// The CPU that the calling thread runs on, or ran on a moment ago.
    fn cpu(&self) -> Option<usize> {
        None
    }

    /// Reads a file and hands it to `each` in parts, until that returns `false`.
    ///
    /// # Errors
    /// The kernel's number; a part of the file may have been handed out.
    fn read(&self, path: &CStr, each: &mut dyn FnMut(&[u8]) -> bool) -> Result<(), Errno> {
        let _ = (path, each);
        Err(Errno(libc::ENOENT))
    }
}

/// The kernel that this process runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Linux;

/// Runs a call and leaves `errno` as it was, returning the call's own (O2).
fn keeping_errno<T>(failed: impl FnOnce(&T) -> bool, call: impl FnOnce() -> T) -> Result<T, Errno> {
    // SAFETY: the pointer is valid, and this thread's alone.
    let errno = unsafe { &mut *errno_place() };
    let before = *errno;
    let result = call();
    let after = core::mem::replace(errno, before);
    if failed(&result) { Err(Errno(after)) } else { Ok(result) }
}

fn zero_or_errno<R: Default + PartialEq>(call: impl FnOnce() -> R) -> Result<(), Errno> {
    keeping_errno(|r| *r != R::default(), call).map(drop)
}

fn mapping_or_errno(call: impl FnOnce() -> *mut libc::c_void) -> Result<NonNull<u8>, Errno> {
    let at = keeping_errno(|&p| p == libc::MAP_FAILED, call)?;
    NonNull::new(at.cast()).ok_or(Errno(libc::ENOMEM))
}

// SAFETY: anonymous private mappings are zero, page-aligned and new; MADV_DONTNEED on them makes them zero again.
unsafe impl Os for Linux {
    fn page_size(&self) -> usize {
        // SAFETY: `sysconf` reads a constant of the process.
        let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        usize::try_from(size).unwrap_or(4096)
    }

    fn hint(&self) -> usize {
        // The stack is near the top of the address space at a random place, libraries come close below it. A 128th of
        // the way down (1 TiB of 47 bits, 4 GiB of 39) nothing lives, and the place is as random as the stack's.
        let here = 0_u8;
        let stack = (&raw const here) as usize;
        stack - stack / 128
    }

    fn now_ms(&self) -> u64 {
        let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `t` is valid for the call to write.
        unsafe { libc::clock_gettime(CLOCK, &mut t) };
        (t.tv_sec as u64).wrapping_mul(1000).wrapping_add(t.tv_nsec as u64 / 1_000_000)
    }

    fn map(&self, hint: usize, len: usize) -> Result<NonNull<u8>, Errno> {
        let at = core::ptr::without_provenance_mut(hint);
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: without MAP_FIXED a new anonymous mapping touches no existing memory.
        mapping_or_errno(|| unsafe { libc::mmap(at, len, rw, flags, -1, 0) })
    }

    unsafe fn unmap(&self, at: NonNull<u8>, len: usize) -> Result<(), Errno> {
        // SAFETY: the caller owns the range and has stopped using it.
        zero_or_errno(|| unsafe { libc::munmap(at.as_ptr().cast(), len) })
    }

    unsafe fn purge(&self, at: NonNull<u8>, len: usize) -> Result<(), Errno> {
        #[cfg(not(target_os = "linux"))]
        // SAFETY: the caller's promise.
        return unsafe { unix::purge(at, len) };
        #[cfg(target_os = "linux")]
        // SAFETY: the caller owns the range and needs none of its contents.
        zero_or_errno(|| unsafe { libc::madvise(at.as_ptr().cast(), len, libc::MADV_DONTNEED) })
    }

    #[cfg(target_os = "linux")]
    unsafe fn advise_huge(&self, at: NonNull<u8>, len: usize, yes: bool) -> Result<(), Errno> {
        let advice = if yes { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
        // SAFETY: the advice changes no contents.
        zero_or_errno(|| unsafe { libc::madvise(at.as_ptr().cast(), len, advice) })
    }

    #[cfg(target_os = "linux")]
    unsafe fn remap(
        &self,
        at: NonNull<u8>,
        old: usize,
        new: usize,
        onto: Option<NonNull<u8>>,
    ) -> Result<NonNull<u8>, Errno> {
        // What becomes shorter stays: the kernel has it so, emulations of it only if they are told.
        let flags = match onto {
            Some(_) => libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
            None if new > old => libc::MREMAP_MAYMOVE,
            None => 0,
        };
        let onto = onto.unwrap_or(at).as_ptr();
        // SAFETY: the caller owns both mappings; the kernel carries the contents to the new place.
        mapping_or_errno(|| unsafe { libc::mremap(at.as_ptr().cast(), old, new, flags, onto) })
    }

    unsafe fn wall(&self, at: usize, len: usize, ours: bool) -> Result<bool, Errno> {
        // Off Linux, and on one older than 4.17, the address is a wish, which may be granted elsewhere.
        #[cfg(target_os = "linux")]
        const NOTHING_THERE: libc::c_int = libc::MAP_FIXED_NOREPLACE;
        #[cfg(not(target_os = "linux"))]
        const NOTHING_THERE: libc::c_int = 0;
        let place = if ours { libc::MAP_FIXED } else { NOTHING_THERE };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | place;
        let wish = core::ptr::without_provenance_mut(at);
        // SAFETY: a new anonymous mapping, which replaces none but one that nobody uses, by the caller's promise.
        let mapped =
            mapping_or_errno(|| unsafe { libc::mmap(wish, len, libc::PROT_NONE, flags, -1, 0) });
        match mapped {
            Ok(here) if here.as_ptr() as usize == at => Ok(true),
            // SAFETY: mapped above, and nobody's.
            Ok(elsewhere) => unsafe { self.unmap(elsewhere, len) }.map(|()| false),
            Err(Errno(libc::EEXIST)) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    fn random(&self) -> u64 {
        #[cfg(target_os = "linux")]
        {
            let mut bytes = [0; 8];
            let (at, len) = (bytes.as_mut_ptr().cast(), bytes.len());
            // SAFETY: the bytes are valid to write. It doesn't wait: a machine that has just started knows no such number.
            let got = keeping_errno(
                |&n| n < 8,
                || unsafe { libc::getrandom(at, len, libc::GRND_NONBLOCK) },
            );
            if got.is_ok() {
                return u64::from_ne_bytes(bytes);
            }
        }
        // Where the stack is, the kernel has chosen at random too.
        (self.hint() as u64).rotate_left(32) ^ self.now_ms()
    }

    #[cfg(target_os = "linux")]
    fn allowed_nodes(&self) -> Result<NodeSet, Errno> {
        /// Of `get_mempolicy`: asks for what may be used, not for what was chosen.
        const MPOL_F_MEMS_ALLOWED: libc::c_ulong = 1 << 2;
        /// Words of the mask. The kernel refuses one with less room than it has nodes: at most 1024.
        const WORDS: usize = 1024 / u64::BITS as usize;
        let mut mask = [0_u64; WORDS];
        let bits = mask_bits(WORDS);
        zero_or_errno(|| {
            // SAFETY: the kernel writes at most the words of the mask; without MPOL_F_ADDR it looks at no address.
            unsafe {
                let mode = core::ptr::null_mut::<libc::c_int>();
                let (mask, at) = (mask.as_mut_ptr(), 0_usize);
                libc::syscall(libc::SYS_get_mempolicy, mode, mask, bits, at, MPOL_F_MEMS_ALLOWED)
            }
        })?;
        Ok(NodeSet::from_bits(mask.first().copied().unwrap_or(0)))
    }

    #[cfg(target_os = "linux")]
    unsafe fn place(&self, at: NonNull<u8>, len: usize, on: Placement) -> Result<(), Errno> {
        let mode = match on.mode {
            Mode::Preferred => libc::MPOL_PREFERRED,
            Mode::Bind => libc::MPOL_BIND,
            Mode::Interleave => libc::MPOL_INTERLEAVE,
            Mode::WeightedInterleave => MPOL_WEIGHTED_INTERLEAVE,
        };
        let mask = on.nodes.bits();
        // SAFETY: the caller owns the range, whose contents stay; the kernel reads the one word of the mask.
        zero_or_errno(|| unsafe {
            let (at, mask, bits) = (at.as_ptr(), &raw const mask, mask_bits(1));
            libc::syscall(libc::SYS_mbind, at, len, mode, mask, bits, 0_usize)
        })
    }

    #[cfg(target_os = "linux")]
    fn knows_weights(&self) -> bool {
        let (nowhere, nothing) = (core::ptr::null_mut::<u8>(), 0_usize);
        let (mode, mask) = (MPOL_WEIGHTED_INTERLEAVE, core::ptr::null::<u64>());
        // SAFETY: the kernel looks at the mode first, and then there is nothing to do for a range of no bytes.
        let known = zero_or_errno(|| unsafe {
            libc::syscall(libc::SYS_mbind, nowhere, nothing, mode, mask, 0_usize, 0_usize)
        });
        known.is_ok()
    }

    #[cfg(target_os = "linux")]
    fn cpu(&self) -> Option<usize> {
        // SAFETY: `sched_getcpu` has no preconditions. It is no system call: the kernel leaves the number in user space.
        let cpu = keeping_errno(|&cpu| cpu < 0, || unsafe { libc::sched_getcpu() });
        usize::try_from(cpu.ok()?).ok()
    }

    fn read(&self, path: &CStr, each: &mut dyn FnMut(&[u8]) -> bool) -> Result<(), Errno> {
        let fd = open_to_read(path)?;
        let mut buffer = [0; 512];
        let result = loop {
            match read_some(fd, &mut buffer) {
                Ok([]) => break Ok(()),
                Ok(part) if each(part) => {}
                Ok(_) => break Ok(()),
                Err(Errno(libc::EINTR)) => {}
                Err(errno) => break Err(errno),
            }
        };
        close(fd);
        result
    }
}

#[cfg(target_os = "linux")]
/// A mode of `mbind` that libc doesn't know: pages on several nodes in turn, by the kernel's weights. Since Linux 6.9.
const MPOL_WEIGHTED_INTERLEAVE: libc::c_int = 6;

#[cfg(target_os = "linux")]
/// The size of a node mask as the kernel wants to be told it: in bits, and one more.
const fn mask_bits(words: usize) -> usize {
    words * u64::BITS as usize + 1
}

/// Where pages are: for each address the node of its page, or a negative error number, such as `-ENOENT` for one that was
/// never touched.
///
/// # Errors
/// The kernel's number: moving pages, even nowhere, may be forbidden.
pub fn nodes_of_pages(at: &[*const u8], nodes: &mut [i32]) -> Result<(), Errno> {
    #[cfg(not(target_os = "linux"))]
    return {
        let _ = (at, nodes);
        Err(REFUSED)
    };
    #[cfg(target_os = "linux")]
    nodes_of_pages_on_linux(at, nodes)
}

#[cfg(target_os = "linux")]
fn nodes_of_pages_on_linux(at: &[*const u8], nodes: &mut [i32]) -> Result<(), Errno> {
    let count = at.len().min(nodes.len());
    let (me, nowhere) = (0_usize, core::ptr::null::<i32>());
    // SAFETY: the kernel reads `count` addresses, of which it follows none, and writes as many numbers.
    zero_or_errno(|| unsafe {
        let (at, nodes) = (at.as_ptr(), nodes.as_mut_ptr());
        libc::syscall(libc::SYS_move_pages, me, count, at, nowhere, nodes, 0_usize)
    })
}

/// Sleeps while `*word` is `expected`; may return early.
#[cfg(all(target_os = "linux", not(loom)))]
pub(crate) extern "C" fn futex_wait(word: &AtomicU32, expected: u32) {
    let op = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    let forever = core::ptr::null::<libc::timespec>();
    // SAFETY: the word outlives the call; the kernel only reads it. Early returns are the caller's loop's business.
    let _ = keeping_errno(
        |&r: &libc::c_long| r != 0,
        || unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), op, expected, forever) },
    );
}

/// Wakes one thread that sleeps on `word`.
#[cfg(all(target_os = "linux", not(loom)))]
pub(crate) extern "C" fn futex_wake_one(word: &AtomicU32) {
    let op = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: only the address counts; the kernel doesn't touch the word.
    let _ = keeping_errno(
        |&r: &libc::c_long| r < 0,
        || unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), op, 1) },
    );
}

/// Writes all of `bytes` to the descriptor, as far as it takes them; a closed or full one is not an error here.
pub fn write(fd: i32, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        // SAFETY: `bytes` is valid to read for its length.
        let wrote = keeping_errno(
            |&r| r < 0,
            || unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) },
        );
        match wrote {
            Ok(n) if n > 0 => bytes = bytes.get(n.unsigned_abs()..).unwrap_or_default(),
            Err(Errno(libc::EINTR)) => {}
            _ => return,
        }
    }
}

/// Opens a file for writing from its start, made if it isn't there, readable by its owner only, never through a link.
///
/// # Errors
/// The kernel's number.
pub fn create(path: &CStr) -> Result<i32, Errno> {
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: `path` is a terminated string.
    keeping_errno(|&fd| fd < 0, || unsafe { libc::open(path.as_ptr(), flags, 0o600) })
}

/// Reads the start of a file into `into`; the bytes read.
///
/// # Errors
/// The kernel's number.
pub fn read_start<'a>(path: &CStr, into: &'a mut [u8]) -> Result<&'a [u8], Errno> {
    let fd = open_to_read(path)?;
    let got = read_some(fd, into);
    close(fd);
    got
}

fn open_to_read(path: &CStr) -> Result<i32, Errno> {
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    // SAFETY: `path` is a terminated string.
    keeping_errno(|&fd| fd < 0, || unsafe { libc::open(path.as_ptr(), flags) })
}

/// What the kernel has to give next; nothing at the end.
fn read_some(fd: i32, into: &mut [u8]) -> Result<&[u8], Errno> {
    // SAFETY: `into` is valid to write for its length.
    let got = keeping_errno(
        |&n| n < 0,
        || unsafe { libc::read(fd, into.as_mut_ptr().cast(), into.len()) },
    )?;
    Ok(into.get(..got.unsigned_abs()).unwrap_or_default())
}

/// Closes a descriptor that was opened here.
pub fn close(fd: i32) {
    // SAFETY: closing is safe for any number; the callers own theirs.
    let _ = keeping_errno(|&r| r != 0, || unsafe { libc::close(fd) });
}

/// The process.
pub fn pid() -> u32 {
    // SAFETY: `getpid` has no preconditions.
    unsafe { libc::getpid() }.unsigned_abs()
}

#[cfg(target_os = "linux")]
/// The calling thread, as the kernel numbers it.
pub fn tid() -> u32 {
    // SAFETY: `gettid` has no preconditions.
    unsafe { libc::syscall(libc::SYS_gettid) as u32 }
}

#[cfg(target_os = "linux")]
/// CPUs that this process may run on, as far as its main thread tells: the calling one may be pinned. At least 1.
pub fn cpus() -> usize {
    // SAFETY: a zeroed set is a valid set, and the kernel writes at most its size.
    let n = unsafe {
        let mut set: libc::cpu_set_t = core::mem::zeroed();
        let done = libc::sched_getaffinity(libc::getpid(), size_of::<libc::cpu_set_t>(), &mut set);
        // It fails where there are more CPUs than a set has room for.
        if done == 0 { libc::CPU_COUNT(&set) } else { libc::CPU_SETSIZE }
    };
    usize::try_from(n).unwrap_or(1).max(1)
}

#[cfg(target_os = "linux")]
/// Whether this program runs with more rights than its user has: nothing of the environment may be trusted then.
pub fn is_privileged() -> bool {
    // SAFETY: `getauxval` reads a constant of the process.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// The environment as the process was given it: `NAME=value`, one after the other.
///
/// # Safety
/// No other thread changes the environment while the iterator lives, as for `getenv`.
pub unsafe fn environment() -> impl Iterator<Item = &'static [u8]> + Clone {
    unsafe extern "C" {
        static environ: *const *const libc::c_char;
    }
    // SAFETY: reading the process's own pointer; null where there is no environment.
    let mut next = unsafe { environ };
    core::iter::from_fn(move || {
        if next.is_null() {
            return None;
        }
        // SAFETY: `environ` is a list of terminated strings that ends with a null (and the caller keeps it unchanged).
        unsafe {
            let entry = *next;
            if entry.is_null() {
                return None;
            }
            next = next.add(1);
            Some(CStr::from_ptr(entry).to_bytes())
        }
    })
}

/// Sleeps for a millisecond.
pub fn nap() {
    let t = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    // SAFETY: `t` is valid to read; what is left after a signal isn't asked for.
    let _ = zero_or_errno(|| unsafe { libc::nanosleep(&t, core::ptr::null_mut()) });
}

/// Ends the process with SIGABRT.
pub fn abort() -> ! {
    // SAFETY: `abort` has no preconditions and doesn't return.
    unsafe { libc::abort() }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_failed_call_tells_its_number_and_leaves_the_callers() {
        // SAFETY: this thread's own number.
        let errno = || unsafe { &mut *libc::__errno_location() };
        *errno() = 77;
        // No page begins at 1, and no mapping is of no bytes.
        let odd = NonNull::without_provenance(core::num::NonZero::<usize>::MIN);
        // SAFETY: what the kernel refuses touches nothing.
        unsafe {
            assert_eq!(Linux.unmap(odd, 4096), Err(Errno(libc::EINVAL)));
            assert_eq!(Linux.purge(odd, 4096), Err(Errno(libc::EINVAL)));
            assert_eq!(Linux.remap(odd, 4096, 8192, None), Err(Errno(libc::EINVAL)));
        }
        assert_eq!(Linux.map(0, 0), Err(Errno(libc::EINVAL)));
        assert_eq!(create(c"/proc/none/file"), Err(Errno(libc::ENOENT)));
        assert_eq!(read_start(c"/proc/none/file", &mut [0]), Err(Errno(libc::ENOENT)));
        write(-1, b"nowhere");
        close(-1);
        assert_eq!(*errno(), 77);
    }

    #[test]
    fn the_cpus_are_those_of_the_process_also_for_a_thread_that_is_pinned() {
        let all = cpus();
        let pinned = std::thread::spawn(|| {
            // SAFETY: a zeroed set is a valid one; the calls read and write at most its size, for this thread only.
            unsafe {
                let mut set: libc::cpu_set_t = core::mem::zeroed();
                let size = size_of::<libc::cpu_set_t>();
                assert_eq!(libc::sched_getaffinity(0, size, &mut set), 0);
                let first = (0..libc::CPU_SETSIZE as usize).find(|&cpu| libc::CPU_ISSET(cpu, &set));
                libc::CPU_ZERO(&mut set);
                libc::CPU_SET(first.unwrap(), &mut set);
                assert_eq!(libc::sched_setaffinity(0, size, &set), 0);
            }
            cpus()
        });
        assert_eq!(pinned.join().unwrap(), all);
        if all == 1 {
            std::eprintln!("SKIPPED: with one CPU, a pinned thread sees what the process does");
        }
    }
}
