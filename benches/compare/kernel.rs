//! What the kernel knows of this process, read without an allocation.
//! Owns: nothing. Called by: `probe`, `workload`, the driver, and the workload `tiny`.

use std::ffi::CStr;
use std::ops::Sub;
use std::time::Duration;

/// What the process and those of its children that have ended took of the machine.
#[derive(Clone, Copy, Default)]
pub(crate) struct Usage {
    /// Page faults that were served from memory.
    pub(crate) minor_faults: u64,
    /// Page faults that waited for a disk.
    pub(crate) major_faults: u64,
    /// Time on a CPU, in the program and in the kernel, of all threads together.
    pub(crate) cpu: Duration,
}

impl Sub for Usage {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            minor_faults: self.minor_faults - earlier.minor_faults,
            major_faults: self.major_faults - earlier.major_faults,
            cpu: self.cpu.saturating_sub(earlier.cpu),
        }
    }
}

/// Resident bytes now, exactly: the kernel walks the page tables for them.
pub(crate) fn resident_bytes() -> u64 {
    field_kib(c"/proc/self/smaps_rollup", b"\nRss:")
        .or_else(|| field_kib(c"/proc/self/status", b"\nVmRSS:"))
        .map_or(0, |kib| kib * 1024)
}

/// The most that was resident since this program was loaded. `getrusage` would tell that of the parent if that was more.
pub(crate) fn peak_resident_bytes() -> u64 {
    let peak = field_kib(c"/proc/self/status", b"\nVmHWM:").map_or(0, |kib| kib * 1024);
    // The kernel counts in batches per CPU, so the exact number of now may be above its peak.
    peak.max(resident_bytes())
}

/// The usage so far.
pub(crate) fn usage() -> Usage {
    let mut sum = Usage::default();
    for who in [libc::RUSAGE_SELF, libc::RUSAGE_CHILDREN] {
        // SAFETY: all zeros is a value of the type, which holds only numbers.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is to a value of the type that the call fills.
        if unsafe { libc::getrusage(who, &raw mut usage) } == 0 {
            sum.minor_faults += usage.ru_minflt.unsigned_abs();
            sum.major_faults += usage.ru_majflt.unsigned_abs();
            sum.cpu += duration(usage.ru_utime) + duration(usage.ru_stime);
        }
    }
    sum
}

fn duration(time: libc::timeval) -> Duration {
    Duration::from_secs(time.tv_sec.unsigned_abs())
        + Duration::from_micros(time.tv_usec.unsigned_abs())
}

/// The argument with which `workload` only warms the machine.
pub(crate) const WARM: &str = "--warm";

/// Takes so many bytes in huge pages, writes to each, and gives them back. What the next program gets is then memory that
/// the machine has at hand, in pieces that make huge pages, whatever the program before has left: in a virtual machine the
/// first touch of memory that the host has not provided yet takes ten times as long.
pub(crate) fn warm(bytes: usize) {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a fresh mapping at an address of the kernel's choice.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return;
    }
    // SAFETY: advice about the mapping made above.
    unsafe { libc::madvise(at, bytes, libc::MADV_HUGEPAGE) };
    for offset in (0..bytes).step_by(4096) {
        // SAFETY: inside the mapping made above, which nobody else knows.
        unsafe { at.cast::<u8>().add(offset).write_volatile(1) };
    }
    // SAFETY: the mapping made above, which nobody uses any more.
    unsafe { libc::munmap(at, bytes) };
}

/// Keeps this thread, and those that it starts, on the last CPU that it may use; the first has most of the interrupts.
pub(crate) fn pin() {
    // SAFETY: all zeros is a value of the type: the empty set.
    let mut allowed: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::cpu_set_t>();
    // SAFETY: the pointer is to a set of the size that is named.
    if unsafe { libc::sched_getaffinity(0, size, &raw mut allowed) } != 0 {
        return;
    }
    // SAFETY: the index is below the number of bits in the set.
    let last = (0..8 * size).rev().find(|cpu| unsafe { libc::CPU_ISSET(*cpu, &allowed) });
    if let Some(last) = last {
        // SAFETY: as above.
        let mut one: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: the index is below the number of bits in the set.
        unsafe { libc::CPU_SET(last, &mut one) };
        // SAFETY: the pointer is to a set of the size that is named. A refusal leaves the thread where it was.
        unsafe { libc::sched_setaffinity(0, size, &raw const one) };
    }
}

/// Has the kernel end this process with SIGALRM if it still runs after so long.
pub(crate) fn end_after(seconds: u32) {
    // SAFETY: the call has no preconditions; nobody else here uses the alarm.
    unsafe { libc::alarm(seconds) };
}

/// The number that follows `key` in `file`, in KiB.
fn field_kib(file: &CStr, key: &[u8]) -> Option<u64> {
    let mut buffer = [0_u8; 4096];
    let text = read(file, &mut buffer)?;
    let at = text.windows(key.len()).position(|window| window == key)?;
    let digits = text.get(at + key.len()..)?.trim_ascii_start();
    let number = digits.iter().take_while(|byte| byte.is_ascii_digit());
    Some(number.fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

/// The beginning of `file`, as much of it as the buffer holds.
fn read<'b>(file: &CStr, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
    // SAFETY: the path ends with a zero.
    let fd = unsafe { libc::open(file.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if fd < 0 {
        return None;
    }
    let mut filled = 0;
    loop {
        let rest = buffer.get_mut(filled..).unwrap_or_default();
        // SAFETY: the pointer is to so many bytes of the buffer.
        let got = unsafe { libc::read(fd, rest.as_mut_ptr().cast(), rest.len()) };
        match usize::try_from(got) {
            Ok(1..) => filled += got.unsigned_abs(),
            _ => break,
        }
    }
    // SAFETY: the descriptor is open, and nobody else has it.
    unsafe { libc::close(fd) };
    buffer.get(..filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_follows_what_is_touched() {
        const SIZE: usize = 32 << 20;
        let before = resident_bytes();
        let memory = std::hint::black_box(vec![1_u8; SIZE]);
        let during = resident_bytes();
        assert!(during >= before + SIZE as u64 / 2, "{before} then {during}");
        assert!(peak_resident_bytes() >= during);
        assert!(usage().minor_faults > 0);
        drop(memory);
    }

    #[test]
    fn a_key_that_is_not_there_is_no_number() {
        assert_eq!(field_kib(c"/proc/self/status", b"\nNothing:"), None);
        assert_eq!(field_kib(c"/proc/self/no-such-file", b"\nRss:"), None);
    }
}
