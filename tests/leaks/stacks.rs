//! Who allocated what is live: with frame pointers the right functions, without them whatever is found, and never a fault.

use crate::common::filter::{EPERM, Filter};
use crate::{first_site, leak, list, listing, second_site, two_sites, without_stacks};
use std::arch::asm;
use std::hint::black_box;
use std::process::Command;
use std::{ptr, thread};

pub(crate) const SCENARIOS: &[(&str, fn())] = &[
    ("three_sites", three_sites),
    ("odd_frames", || odd_frames()),
    ("odd_frames_in_a_thread", || thread::spawn(odd_frames).join().unwrap()),
    ("stacks_of_its_own", stacks_of_its_own),
    ("stacks_of_a_thread", || thread::spawn(stacks_of_its_own).join().unwrap()),
    ("deep", deep),
    ("small", small),
    ("without_proc", without_proc),
    ("many_sites", many_sites),
    ("grown", grown),
];

pub(crate) fn all() {
    functions_are_named();
    odd_frames_end_the_walk();
    other_stacks_are_left_alone();
    stacks_may_grow_and_be_small();
    without_a_list_of_mappings_there_are_no_stacks();
    the_largest_are_listed_and_the_others_summed_up();
    who_made_it_larger_is_named();
}

/// Whether this was built with frame pointers; else stacks are what they are.
const FRAMES: bool = option_env!("FRAME_POINTERS").is_some();

/// Blocks, bytes, what the line ends in, and the frames: file and offset.
struct Stack {
    blocks: usize,
    bytes: usize,
    by: String,
    frames: Vec<(String, String)>,
}

impl Stack {
    /// The functions that debuggers name.
    fn functions(&self) -> String {
        let mut names = String::new();
        for (file, offset) in &self.frames {
            let output = Command::new("addr2line").args(["-Cfie", file, offset]).output().unwrap();
            assert!(output.status.success(), "addr2line of {file}+{offset}");
            names += &String::from_utf8(output.stdout).unwrap();
        }
        names
    }
}

fn stacks(stderr: &str) -> Vec<Stack> {
    let mut stacks: Vec<Stack> = Vec::new();
    for line in stderr.lines() {
        if let Some((numbers, by)) = line.split_once(" allocated by") {
            let number = |word: &str| -> usize {
                let at = numbers.split(' ').find_map(|part| part.strip_prefix(word));
                at.unwrap().parse().unwrap()
            };
            let (blocks, bytes) = (number("blocks="), number("bytes="));
            stacks.push(Stack { blocks, bytes, by: by.to_owned(), frames: Vec::new() });
        } else if let Some(frame) = line.strip_prefix("nearheap:     ") {
            let (_, place) = frame.split_once(' ').unwrap_or((frame, "?+0x0"));
            let (file, offset) = place.rsplit_once('+').unwrap();
            stacks.last_mut().unwrap().frames.push((file.to_owned(), offset.to_owned()));
        }
    }
    stacks
}

/// The list by classes is this, and stacks have the same sums. They come with the most bytes first.
#[track_caller]
fn stacks_beside(scenario: &str, expected: &str) -> Vec<Stack> {
    let stderr = listing(scenario).run().succeeds();
    assert_eq!(without_stacks(&stderr), expected, "{stderr}");
    let stacks = stacks(&stderr);
    let sum = |of: fn(&Stack) -> usize| stacks.iter().map(of).sum::<usize>();
    let sums = format!("{} bytes in {} blocks", sum(|s| s.bytes), sum(|s| s.blocks));
    assert!(expected.lines().next().unwrap().ends_with(&sums), "{stderr}");
    assert!(stacks.iter().filter(|s| s.by.is_empty()).is_sorted_by_key(|s| usize::MAX - s.bytes));
    stacks
}

#[inline(never)]
fn in_a_thread() {
    second_site(2);
}

fn three_sites() {
    two_sites();
    thread::spawn(in_a_thread).join().unwrap();
}

fn functions_are_named() {
    let rows = [("1152 align=16", 5, 5760), ("144 align=16", 7, 1008)];
    let found = stacks_beside("three_sites", &list(6768, 12, &rows));
    if !FRAMES {
        return;
    }
    let expected = [
        (3, 3456, ["leaks::leak", "second_site", "two_sites", "main"]),
        (2, 2304, ["leaks::leak", "second_site", "in_a_thread", "spawn"]),
        (7, 1008, ["leaks::leak", "first_site", "two_sites", "main"]),
    ];
    assert_eq!(found.len(), expected.len());
    for (stack, (blocks, bytes, names)) in found.iter().zip(expected) {
        assert_eq!((stack.blocks, stack.bytes), (blocks, bytes));
        let functions = stack.functions();
        let mut rest = functions.as_str();
        for name in names {
            rest = rest.split_once(name).unwrap_or_else(|| panic!("{name} in\n{functions}")).1;
        }
    }
}

extern "C" fn leak_one() {
    leak(black_box(100));
}

/// Calls `leak_one` with this in place of a frame pointer.
fn leak_below(frame: usize) {
    // SAFETY: the register is as before afterwards, and the stack is aligned as calls want it.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!(
            "push rbp", "sub rsp, 8", "mov rbp, {frame}", "call {leak_one}", "add rsp, 8", "pop rbp",
            frame = in(reg) frame, leak_one = sym leak_one, clobber_abi("C"),
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!(
            "stp x29, x30, [sp, #-16]!", "mov x29, {frame}", "bl {leak_one}", "ldp x29, x30, [sp], #16",
            frame = in(reg) frame, leak_one = sym leak_one, clobber_abi("C"),
        );
    }
}

const ODD: usize = 26;

fn odd_frames() {
    let block = Box::new([0_usize; 4]);
    let in_heap = (&raw const *block).addr();
    // SAFETY: this thread's errno.
    let in_tls = unsafe { libc::__errno_location() }.addr();
    // Frames that lead to themselves, down, far up, past the end, and nowhere.
    let mut frames = [[0_usize; 2]; 8];
    let at = |frames: &[[usize; 2]; 8], n: usize| (&raw const frames[n]).addr();
    let (end, far) = (end_of_main_stack(), 1 << 46);
    for (n, next) in [
        at(&frames, 0),
        at(&frames, 0),
        at(&frames, 2) + (1 << 20),
        end - 8,
        at(&frames, 7),
        far,
        1,
        0,
    ]
    .into_iter()
    .enumerate()
    {
        frames[n] = [next, 0x1234_5678];
    }
    let frames = black_box(frames);
    let here = at(&frames, 0);
    let (text, null) = (odd_frames as fn() as usize, 0);
    let odd: [usize; ODD] = [
        null,
        1,
        8,
        16,
        4096,
        usize::MAX,
        usize::MAX - 7,
        usize::MAX - 15,
        in_heap,
        in_tls,
        in_tls - 8,
        in_tls - 16,
        text,
        end - 8,
        end - 16,
        end - 24,
        end,
        end + 4096,
        here + 1,
        here - 16,
        here - (1 << 20),
        at(&frames, 0),
        at(&frames, 1),
        at(&frames, 2),
        at(&frames, 3),
        at(&frames, 4),
    ];
    odd.into_iter().for_each(leak_below);
    for n in 5..8 {
        leak_below(at(&frames, n));
    }
    drop(black_box(block));
}

fn end_of_main_stack() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| line.ends_with("[stack]")).unwrap();
    let end = line.split(['-', ' ']).nth(1).unwrap();
    usize::from_str_radix(end, 16).unwrap()
}

fn odd_frames_end_the_walk() {
    let blocks = ODD + 3;
    for scenario in ["odd_frames", "odd_frames_in_a_thread"] {
        stacks_beside(
            scenario,
            &list(blocks * 144, blocks, &[("144 align=16", blocks, blocks * 144)]),
        );
    }
}

#[cfg(target_env = "gnu")]
fn stacks_of_its_own() {
    use std::mem::zeroed;
    const LEN: usize = 64 << 10;
    // SAFETY: contexts are zeros until they are made; each stack is nobody else's while the context is on it. What the heap
    // knew of the first one's place must not matter once that is gone.
    unsafe {
        for _ in 0..3 {
            let (rw, flags) =
                (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let stack = libc::mmap(ptr::null_mut(), LEN, rw, flags, -1, 0);
            let (mut main, mut other): (libc::ucontext_t, libc::ucontext_t) = (zeroed(), zeroed());
            assert_eq!(libc::getcontext(&mut other), 0);
            other.uc_stack.ss_sp = stack;
            other.uc_stack.ss_size = LEN;
            other.uc_link = &mut main;
            libc::makecontext(&mut other, leak_one, 0);
            assert_eq!(libc::swapcontext(&mut main, &other), 0);
            assert_eq!(libc::munmap(stack, LEN), 0);
            first_site(1);
        }
    }
}

#[cfg(not(target_env = "gnu"))]
fn stacks_of_its_own() {
    first_site(6);
}

fn other_stacks_are_left_alone() {
    let rows = [("144 align=16", 6, 864)];
    for scenario in ["stacks_of_its_own", "stacks_of_a_thread"] {
        let found = stacks_beside(scenario, &list(864, 6, &rows));
        if FRAMES && cfg!(target_env = "gnu") {
            let unknown: Vec<_> = found.iter().filter(|s| s.by == " unknown").collect();
            assert_eq!(unknown.iter().map(|s| s.blocks).sum::<usize>(), 3);
        }
    }
}

#[inline(never)]
fn descend(levels: usize) {
    let room = black_box([0_u8; 4000]);
    leak(100);
    if levels > 1 {
        descend(levels - 1);
    }
    black_box(room);
}

fn deep() {
    descend(500);
}

/// The smallest stack that threads may have.
fn small() {
    const LEN: usize = 16 << 10;
    extern "C" fn run(_: *mut libc::c_void) -> *mut libc::c_void {
        leak_one();
        ptr::null_mut()
    }
    // SAFETY: attributes and threads are made and joined in order.
    unsafe {
        let (mut attributes, mut thread) = (std::mem::zeroed(), std::mem::zeroed());
        assert_eq!(libc::pthread_attr_init(&mut attributes), 0);
        assert_eq!(
            libc::pthread_attr_setstacksize(&mut attributes, LEN.max(libc::PTHREAD_STACK_MIN)),
            0
        );
        assert_eq!(libc::pthread_create(&mut thread, &attributes, run, ptr::null_mut()), 0);
        assert_eq!(libc::pthread_join(thread, ptr::null_mut()), 0);
    }
}

fn stacks_may_grow_and_be_small() {
    let found = stacks_beside("deep", &list(500 * 144, 500, &[("144 align=16", 500, 500 * 144)]));
    if FRAMES {
        assert!(found.iter().all(|s| s.by != " unknown"));
    }
    stacks_beside("small", &list(144, 1, &[("144 align=16", 1, 144)]));
}

fn without_proc() {
    Filter::of([libc::SYS_openat], EPERM).enforce().unwrap();
    thread::spawn(|| first_site(1)).join().unwrap();
    first_site(3);
}

fn without_a_list_of_mappings_there_are_no_stacks() {
    let rows = [("144 align=16", 4, 576)];
    stacks_beside("without_proc", &list(576, 4, &rows));
}

/// Each path is a stack of its own.
#[inline(never)]
fn branch(path: usize, bits: usize) {
    if bits == 0 {
        leak(100);
    } else if path.is_multiple_of(2) {
        branch(path / 2, bits - 1);
    } else {
        branch(path / 2, bits - 1);
        black_box(path);
    }
}

fn many_sites() {
    (0..64).for_each(|path| branch(path, 6));
    first_site(1);
    second_site(1);
}

fn the_largest_are_listed_and_the_others_summed_up() {
    let rows = [("144 align=16", 65, 65 * 144), ("1152 align=16", 1, 1152)];
    let found = stacks_beside("many_sites", &list(65 * 144 + 1152, 66, &rows));
    if FRAMES {
        let (listed, others) = found.split_at(32);
        assert!(listed.iter().all(|stack| stack.by.is_empty()));
        assert_eq!(listed[0].bytes, 1152);
        assert_eq!(others.len(), 1);
        assert_eq!((others[0].by.as_str(), others[0].blocks), (" 34 others", 34));
    }
}

/// Large enough that the kernel moves it, and its header stays.
#[inline(never)]
fn enlarge(block: &mut Vec<u8>) {
    block.reserve_exact(6 << 20);
}

fn grown() {
    let mut block = black_box(Vec::with_capacity(3 << 20));
    enlarge(&mut block);
    std::mem::forget(block);
}

fn who_made_it_larger_is_named() {
    // SAFETY: no preconditions.
    let bytes = (6 << 20) + unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    let found = stacks_beside("grown", &list(bytes, 1, &[("huge", 1, bytes)]));
    assert!(!FRAMES || found[0].functions().contains("leaks::stacks::enlarge"));
}
