//! Filters of system calls, as containers have them.
//! Called by: tests that ask what the heap does where the kernel refuses a call, and which calls it makes.
//!
//! A filter is made and put in force without an allocation, so also between fork and exec, and under the heap.

use std::io;

pub(crate) const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
pub(crate) const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
pub(crate) const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const END: u32 = libc::BPF_RET | libc::BPF_K;

/// A program for the kernel, in a place that nobody allocates.
#[derive(Clone, Copy)]
pub(crate) struct Filter {
    steps: [libc::sock_filter; 256],
    len: usize,
}

impl Filter {
    /// Looks at the number of a call.
    pub(crate) fn new() -> Self {
        let none = libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 };
        let mut filter = Self { steps: [none; 256], len: 0 };
        filter.push(LOAD, 0, 0, 0);
        filter
    }

    /// Has these calls end so, and allows all others.
    pub(crate) fn of(calls: impl IntoIterator<Item = libc::c_long>, verdict: u32) -> Self {
        let mut filter = Self::new();
        for call in calls {
            filter.push(EQUAL, call as u32, 0, 1);
            filter.end(verdict);
        }
        filter.end(ALLOW);
        filter
    }

    fn push(&mut self, code: u32, k: u32, jt: u8, jf: u8) {
        self.steps[self.len] = libc::sock_filter { code: code as u16, jt, jf, k };
        self.len += 1;
    }

    /// Whatever comes here ends so.
    pub(crate) fn end(&mut self, verdict: u32) {
        self.push(END, verdict, 0, 0);
    }

    /// Allows a call if each of its arguments that is named has one of its values (`0=1,2 3=4`), by their lower halves; else
    /// it ends so.
    pub(crate) fn allow(&mut self, call: libc::c_long, arguments: &str, verdict: u32) {
        let begins = self.len;
        // To the next call where it isn't this one: the distance is known in the end.
        self.push(EQUAL, call as u32, 0, 0);
        for word in arguments.split_ascii_whitespace() {
            let (number, values) = word.split_once('=').unwrap();
            self.push(LOAD, 16 + 8 * number.parse::<u32>().unwrap(), 0, 0);
            let count = values.split(',').count();
            for (i, value) in values.split(',').enumerate() {
                self.push(EQUAL, value.parse::<i32>().unwrap() as u32, (count - i) as u8, 0);
            }
            self.end(verdict);
        }
        self.end(ALLOW);
        self.steps[begins].jf = (self.len - begins - 1) as u8;
    }

    /// Puts it in force, for every thread and for whatever they start.
    pub(crate) fn enforce(&self) -> io::Result<()> {
        let filter = self.steps.as_ptr().cast_mut();
        let program = libc::sock_fprog { len: self.len as u16, filter };
        let (set, all) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_TSYNC);
        // SAFETY: the kernel copies the program, which is as long as it says.
        let done = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            libc::syscall(libc::SYS_seccomp, set, all, &raw const program)
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
