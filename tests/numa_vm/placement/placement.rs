//! On which node do the pages of blocks lie, when the threads that allocate them are pinned to nodes?
//! Method: a machine with two nodes or more; blocks of 48 B to 3 MiB, touched on every page; `move_pages`, which tells the
//! node of each page; a child process for each stage. `placement` prints a line of the table for each stage,
//! `placement heading` the line above them.
//!
//! | stage | what is counted |
//! |---|---|
//! | `fresh` | the first blocks of a thread on each node |
//! | `reused` | the blocks of threads that come and go on alternating nodes, each after the one before freed nearly all of its own |
//! | `crossed` | the blocks of a thread that has freed those of a thread on another node, which lives on |
//!
//! What the program writes down lies in mappings of its own, so the allocator sees the blocks and little else.

use std::alloc::{Layout, alloc, dealloc};
use std::process::Command;
use std::sync::Barrier;
use std::time::Duration;
use std::{env, fs, ptr, slice, thread};

#[cfg(feature = "jemalloc")]
#[global_allocator]
static GLOBAL: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
#[cfg(feature = "mimalloc")]
#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;
#[cfg(feature = "nearheap")]
#[global_allocator]
static GLOBAL: nearheap::NearHeap = nearheap::NearHeap::new();
#[cfg(feature = "numalloc")]
#[global_allocator]
static GLOBAL: numalloc::NumaAlloc = numalloc::NumaAlloc::new();

const NAME: &str = if cfg!(feature = "jemalloc") {
    "jemalloc"
} else if cfg!(feature = "mimalloc") {
    "mimalloc"
} else if cfg!(feature = "nearheap") {
    "nearheap"
} else if cfg!(feature = "numalloc") {
    "numalloc"
} else {
    "glibc"
};

const KIB: usize = 1 << 10;
/// Sizes of blocks, and the column of the table that each counts in.
const SIZES: [(usize, usize); 11] = [
    (48, 0),
    (112, 0),
    (256, 0),
    (KIB, 0),
    (4 * KIB, 1),
    (16 * KIB, 1),
    (64 * KIB, 1),
    (256 * KIB, 2),
    (512 * KIB, 2),
    (1024 * KIB, 2),
    (3072 * KIB, 2),
];
const COLUMNS: usize = 3;
/// Bytes of each size in a set of blocks, and the fewest blocks that there are of it.
const BYTES: usize = 4 << 20;
const LEAST: usize = 4;
const PAGE: usize = 4096;
const ROUNDS: usize = 6;
/// Of so many blocks a thread leaves one for good, so that no allocator is rid of all its memory when the thread ends.
const KEEP: usize = 32;

/// Pages by column: those on the thread's own node, and all.
type Counts = [(usize, usize); COLUMNS];

fn main() {
    match env::args().nth(1).as_deref() {
        Some("heading") => {
            let widths = "48 B to 1 KiB   4 to 64 KiB   256 KiB to 3 MiB";
            println!("allocator  stage    {widths}     all   peak RSS");
        }
        None => {
            let me = env::current_exe().expect("its own path");
            for stage in ["fresh", "reused", "crossed"] {
                let status = Command::new(&me).arg(stage).status().expect("itself");
                assert!(status.success(), "{stage}: {status}");
            }
        }
        Some("fresh") => print("fresh", fresh()),
        Some("reused") => print("reused", reused()),
        Some("crossed") => print("crossed", crossed()),
        Some(_) => panic!("which stage?"),
    }
}

fn print(stage: &str, counts: Counts) {
    let percent = |(own, all): (usize, usize)| format!("{:.1} %", 100.0 * own as f64 / all as f64);
    let [small, medium, large] = counts.map(percent);
    let all = counts.iter().fold((0, 0), |sum, c| (sum.0 + c.0, sum.1 + c.1));
    let (all, peak) = (percent(all), peak_mib());
    println!(
        "{NAME:10} {stage:8} {small:>13}   {medium:>11}   {large:>16} {all:>7}   {peak:>4} MiB"
    );
}

/// The highest resident memory of the process so far.
fn peak_mib() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the line");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") / KIB
}

/// CPUs by node, of the nodes that have both CPUs and memory; the first of each.
fn ends() -> Vec<(i32, usize)> {
    let mut ends = Vec::new();
    for node in 0..64 {
        let file = |name| fs::read_to_string(format!("/sys/devices/system/node/node{node}/{name}"));
        let (Ok(cpus), Ok(memory)) = (file("cpulist"), file("meminfo")) else { continue };
        let first = cpus.trim().split([',', '-']).next().and_then(|cpu| cpu.parse().ok());
        let total = memory.lines().next().and_then(|line| line.split_whitespace().nth(3));
        if let (Some(cpu), true) = (first, total != Some("0")) {
            ends.push((node, cpu));
        }
    }
    assert!(ends.len() > 1, "one node: nothing to count");
    ends
}

/// Makes the calling thread one of this CPU, and checks that it is.
fn run_on(cpu: usize) {
    // SAFETY: a zeroed set is a valid set; the kernel reads it.
    let done = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set)
    };
    assert_eq!(done, 0, "CPU {cpu}");
    check_on(cpu);
}

/// The thread is where it was put: an allocator that moves it fails here instead of passing.
fn check_on(cpu: usize) {
    // SAFETY: `sched_getcpu` has no preconditions.
    let here = unsafe { libc::sched_getcpu() };
    assert_eq!(usize::try_from(here), Ok(cpu), "the thread was moved");
}

/// Zeroed memory that is not the allocator's, for the rest of the process.
fn mapped<T>(count: usize) -> &'static mut [T] {
    let rw = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping of the size that the slice has; the types used here may be zero.
    unsafe {
        let at = libc::mmap(ptr::null_mut(), count * size_of::<T>(), rw, flags, -1, 0);
        assert_ne!(at, libc::MAP_FAILED);
        slice::from_raw_parts_mut(at.cast(), count)
    }
}

/// Blocks of every size, as many as `SIZES` and `BYTES` say.
struct Blocks {
    at: &'static mut [usize],
}

/// Of each block its size and its column, in the order of allocation.
fn shapes() -> impl Iterator<Item = (usize, usize)> {
    let count = |size: usize| (BYTES / size).max(LEAST);
    SIZES.iter().flat_map(move |&(size, column)| (0..count(size)).map(move |_| (size, column)))
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 16).expect("a small alignment")
}

impl Blocks {
    fn none() -> Self {
        Self { at: mapped(shapes().count()) }
    }

    /// Allocates all of them on the calling thread and writes to every page.
    fn fill(&mut self) {
        for ((size, _), slot) in shapes().zip(self.at.iter_mut()) {
            // SAFETY: the size is not 0; every write is inside the block.
            unsafe {
                let block = alloc(layout(size));
                assert!(!block.is_null());
                for offset in (0..size).step_by(PAGE).chain([size - 1]) {
                    block.add(offset).write_volatile(1);
                }
                *slot = block as usize;
            }
        }
    }

    fn free(&mut self) {
        self.free_but(usize::MAX);
    }

    /// Frees those that are left, but one in `keep`.
    fn free_but(&mut self, keep: usize) {
        for (n, ((size, _), slot)) in shapes().zip(self.at.iter_mut()).enumerate() {
            if *slot == 0 || n % keep == keep - 1 {
                continue;
            }
            // SAFETY: allocated by `fill` with this layout, and freed once: the address is forgotten.
            unsafe { dealloc(std::mem::take(slot) as *mut u8, layout(size)) };
        }
    }

    /// Adds up on which nodes the pages are.
    fn count(&self, own: i32, counts: &mut Counts) {
        let most: usize = shapes().map(|(size, _)| size / PAGE + 2).sum();
        let (pages, nodes) = (mapped::<usize>(most), mapped::<i32>(most));
        for (column, sum) in counts.iter_mut().enumerate() {
            let mut len = 0;
            for ((size, _), &at) in shapes().zip(self.at.iter()).filter(|((_, c), _)| *c == column)
            {
                for page in at / PAGE..=(at + size - 1) / PAGE {
                    pages[len] = page * PAGE;
                    len += 1;
                }
            }
            let pages = &mut pages[..len];
            pages.sort_unstable();
            let mut unique = 0;
            for n in 0..len {
                if n == 0 || pages[n] != pages[n - 1] {
                    pages[unique] = pages[n];
                    unique += 1;
                }
            }
            let nodes = &mut nodes[..unique];
            ask(&pages[..unique], nodes);
            sum.0 += nodes.iter().filter(|node| **node == own).count();
            sum.1 += unique;
        }
        // SAFETY: mapped above, not used any more.
        unsafe {
            libc::munmap(pages.as_mut_ptr().cast(), size_of_val(pages));
            libc::munmap(nodes.as_mut_ptr().cast(), size_of_val(nodes));
        }
    }
}

/// The node of each page. One that the kernel is just moving or joining with others is nowhere for a moment.
fn ask(pages: &[usize], nodes: &mut [i32]) {
    let (me, to, at, found) = (0, ptr::null::<i32>(), pages.as_ptr(), nodes.as_mut_ptr());
    for _ in 0..100 {
        // SAFETY: as many addresses, which the kernel doesn't follow, as room for nodes.
        let done =
            unsafe { libc::syscall(libc::SYS_move_pages, me, pages.len(), at, to, found, 0) };
        assert_eq!(done, 0, "move_pages");
        if nodes.iter().all(|node| *node >= 0) {
            return;
        }
        thread::sleep(Duration::from_millis(50));
    }
    let n = nodes.iter().position(|node| *node < 0).expect("found above");
    panic!("the page {:#x} is nowhere: {}", pages[n], nodes[n]);
}

/// Runs `work` on a thread of its own, pinned to the CPU.
fn on<T: Send>(cpu: usize, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let pinned = move || {
            run_on(cpu);
            let result = work();
            check_on(cpu);
            result
        };
        scope.spawn(pinned).join().expect("the thread has said why")
    })
}

fn fresh() -> Counts {
    let mut counts = Counts::default();
    for (node, cpu) in ends() {
        let mut blocks = Blocks::none();
        on(cpu, || blocks.fill());
        blocks.count(node, &mut counts);
    }
    counts
}

fn reused() -> Counts {
    let (mut counts, ends) = (Counts::default(), ends());
    for (round, &(node, cpu)) in ends.iter().cycle().take(ROUNDS).enumerate() {
        let mut blocks = Blocks::none();
        on(cpu, || {
            blocks.fill();
            if round > 0 {
                blocks.count(node, &mut counts);
            }
            blocks.free_but(KEEP);
        });
    }
    counts
}

fn crossed() -> Counts {
    let (mut counts, ends) = (Counts::default(), ends());
    let (first, last) = (ends[0], ends[ends.len() - 1]);
    for ((_, maker), (node, taker)) in [(first, last), (last, first)] {
        let (mut made, mut own) = (Blocks::none(), Blocks::none());
        let taken = Barrier::new(2);
        thread::scope(|scope| {
            let (send, receive) = std::sync::mpsc::channel();
            let (made, own, taken) = (&mut made, &mut own, &taken);
            scope.spawn(move || {
                run_on(maker);
                made.fill();
                send.send(made).expect("somebody takes them");
                taken.wait();
            });
            scope.spawn(move || {
                run_on(taker);
                let made: &mut Blocks = receive.recv().expect("blocks");
                made.free();
                own.fill();
                check_on(taker);
                taken.wait();
            });
        });
        own.count(node, &mut counts);
        on(taker, || own.free());
    }
    counts
}
