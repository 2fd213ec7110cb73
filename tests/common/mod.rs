//! What the tests share: scenarios in processes of their own, resident memory, random numbers.
//! Called by: every folder here; each test crate compiles its own copy.
//!
//! A scenario is a function of the test crate, played in a fresh process: the crate has one test named `scenario` that
//! hands its table to [`play`], and its other tests start it by name through [`child`]:
//!
//! ```ignore
//! #[test]
//! fn scenario() {
//!     common::play(&[("frees_twice", frees_twice)]);
//! }
//!
//! #[test]
//! fn a_double_free_aborts() {
//!     child("frees_twice").run().aborts_with("nearheap: fatal: double free: ptr=0x... class=96 node=0\n");
//! }
//! ```
//!
//! The test harness prints on the scenario's stdout, never on its stderr.

#![allow(dead_code, reason = "no test crate uses all of it")]

pub(crate) mod contents;
pub(crate) mod filter;
pub(crate) mod handled;

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const SCENARIO: &str = "TEST_SCENARIO";
const RETURNS: &str = "TEST_SCENARIO_RETURNS";

/// Plays the scenario that the environment names and ends the process with status 0. Does nothing in an ordinary run.
/// It runs on a thread of the harness; the main thread does nothing meanwhile.
pub(crate) fn play(scenarios: &[(&str, fn())]) {
    let Ok(name) = std::env::var(SCENARIO) else { return };
    let run = scenarios.iter().find(|(n, _)| *n == name).map(|&(_, run)| run);
    let run = run.unwrap_or_else(|| panic!("no scenario is named {name}"));
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `none` is a limit to read. Scenarios that abort on purpose leave no core behind.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) };
    await_silence();
    run();
    if std::env::var_os(RETURNS).is_none() {
        std::process::exit(0);
    }
}

/// Waits until the harness's own thread sleeps for the scenario's end: before, its allocations would count too. Allocates
/// the same, however often it looks.
fn await_silence() {
    let stat = format!("/proc/self/task/{}/stat", std::process::id());
    let mut sleeping = 0;
    // Where a scenario has no /proc, it counts no allocations either.
    while sleeping < 3 && File::open(&stat).is_ok() {
        thread::sleep(Duration::from_millis(1));
        let mut text = [0; 512];
        let len = File::open(&stat).unwrap().read(&mut text).unwrap();
        let sleeps = text[..len].windows(4).any(|part| part == b") S ");
        sleeping = if sleeps { sleeping + 1 } else { 0 };
    }
}

/// A scenario to be run: the same executable in a process group of its own, without the `NEARHEAP_` variables of the
/// caller, for at most a minute.
pub(crate) fn child(scenario: &str) -> Run {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["scenario", "--exact", "--nocapture", "--test-threads=1"]);
    command.env(SCENARIO, scenario).env("RUST_BACKTRACE", "0").process_group(0);
    for (name, _) in
        std::env::vars_os().filter(|(n, _)| n.as_encoded_bytes().starts_with(b"NEARHEAP_"))
    {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Run { command, timeout: Duration::from_secs(60) }
}

/// A process that has not started yet.
pub(crate) struct Run {
    /// For what has no method here.
    pub(crate) command: Command,
    timeout: Duration,
}

/// How a process ended, and what it printed.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// From its start to its end.
    pub(crate) took: Duration,
}

impl Run {
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Ends by a return from `main` and not in `exit` on the scenario's thread.
    pub(crate) fn returning(self) -> Self {
        self.env(RETURNS, "1")
    }

    /// How long it may take before it and every process that it started are killed, which fails the test.
    pub(crate) fn within(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Runs it to its end.
    pub(crate) fn run(mut self) -> Ended {
        let began = Instant::now();
        let mut child = self.command.spawn().unwrap();
        let (out, err) = (gather(child.stdout.take()), gather(child.stderr.take()));
        let status = self.wait(&mut child, began);
        let took = began.elapsed();
        let mut stderr = err.join().unwrap();
        // What an emulator says itself of a program that aborts.
        if let Some((programs_own, _)) = stderr.split_once("qemu: uncaught target signal") {
            stderr = programs_own.to_owned();
        }
        let stdout = out.join().unwrap();
        let end = Ended { status: status.unwrap_or_default(), stdout, stderr, took };
        assert!(status.is_some(), "still running after {:?}, killed: {end}", self.timeout);
        end
    }

    fn wait(&self, child: &mut Child, began: Instant) -> Option<ExitStatus> {
        let mut ended = has_ended(child);
        while !ended && began.elapsed() < self.timeout {
            thread::sleep(Duration::from_millis(2));
            ended = has_ended(child);
        }
        // Also those that it started and left behind: they would keep its pipes open.
        // SAFETY: a signal to the group that the child leads; it has not been waited for, so the number is still its own.
        unsafe { libc::kill(-(child.id() as i32), libc::SIGKILL) };
        let status = child.wait().unwrap();
        ended.then_some(status)
    }
}

/// Whether a process has ended, which nobody has waited for.
fn has_ended(child: &Child) -> bool {
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: zeros are a valid `info`, and stay zeros where the process goes on.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        assert_eq!(libc::waitid(libc::P_PID, child.id(), &mut info, flags), 0);
        info.si_pid() != 0
    }
}

/// Reads a pipe to its end on a thread of its own, so that a full pipe holds nobody up.
fn gather(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            pipe.read_to_end(&mut bytes).unwrap();
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

impl Ended {
    /// It ended with status 0; what it printed on stderr.
    #[track_caller]
    pub(crate) fn succeeds(self) -> String {
        assert_eq!(self.status.code(), Some(0), "{self}");
        self.stderr
    }

    /// It ended with status 0 and printed exactly this on stderr.
    #[track_caller]
    pub(crate) fn succeeds_with(self, stderr: &str) {
        assert_eq!(self.status.code(), Some(0), "{self}");
        assert_eq!(self.stderr, stderr, "{self}");
    }

    /// It ended by SIGABRT and printed exactly this on stderr, where every hexadecimal number is written `0x...`.
    #[track_caller]
    pub(crate) fn aborts_with(self, stderr: &str) {
        assert_eq!(self.status.signal(), Some(libc::SIGABRT), "{self}");
        assert_eq!(without_addresses(&self.stderr), stderr);
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} after {:?}, stderr:\n{}", self.status, self.took, self.stderr)
    }
}

/// Bytes that each block has beside those that were asked for: those of a header and a seal, in headers mode.
pub(crate) fn overhead() -> usize {
    let byte = std::alloc::Layout::new::<u8>();
    if nearheap::NearHeap::usable_size(byte) == 1 { 32 } else { 0 }
}

/// The text with the digits of every `0x` number as three dots.
pub(crate) fn without_addresses(text: &str) -> String {
    let mut parts = text.split("0x");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| {
        all + "0x..." + part.trim_start_matches(|c: char| c.is_ascii_hexdigit())
    })
}

/// Resident bytes of this process as the kernel counts them now: `statm` and `status` may lag behind by megabytes.
/// Allocates nothing.
pub(crate) fn rss_bytes() -> usize {
    rollup_bytes("Rss:")
}

/// One line of `/proc/self/smaps_rollup`, such as `Anonymous:`, in bytes. Allocates nothing.
pub(crate) fn rollup_bytes(key: &str) -> usize {
    let mut text = [0; 4096];
    let mut file = File::open("/proc/self/smaps_rollup").unwrap();
    let mut len = 0;
    while let Ok(n @ 1..) = file.read(&mut text[len..]) {
        len += n;
    }
    let text = std::str::from_utf8(&text[..len]).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

/// splitmix64: every seed gives a sequence of full length.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number less than `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// A number from `low` to `high`, both included, with its order of magnitude evenly spread.
    pub(crate) fn by_magnitude(&mut self, low: usize, high: usize) -> usize {
        let (from, to) = (low.max(1).ilog2(), high.ilog2());
        let e = from + self.below((to - from + 1) as usize) as u32;
        ((1 << e) + self.below(1 << e)).clamp(low, high)
    }
}

/// A seed that differs from run to run, printed where a failing test shows it; `TEST_SEED` repeats one.
pub(crate) fn seed() -> u64 {
    let given = std::env::var("TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        now.as_nanos() as u64 ^ u64::from(std::process::id()) << 40
    });
    eprintln!("TEST_SEED={seed}");
    seed
}
