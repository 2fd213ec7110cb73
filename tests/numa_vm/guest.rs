//! What runs on the emulated machines: questions about the topology and about placement, each with an oracle.
//! Called by: `init`, the first process there. `numa-guest QUESTION` prints answers that `init` compares with those of
//! `numactl`, or checks by itself, page by page, and fails with a line that says what it saw.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use nearheap::NearHeap;
use nearheap::numa::{NodeSet, Policy, Standing, Topology, topology};
use nearheap_numa::os::{Linux, Os, nodes_of_pages};
use nearheap_numa::topology::free_bytes;
use std::path::Path;

#[allow(dead_code, reason = "written for all tests")]
#[path = "../common/filter.rs"]
mod filter;
mod heap;
mod hotplug;
mod outside;

#[global_allocator]
static GLOBAL: NearHeap = NearHeap::new();

fn main() {
    let question = std::env::args().nth(1).unwrap_or_default();
    match question.as_str() {
        "hardware" => hardware(),
        "usable" => println!("{}", topology().usable()),
        "one" => one(),
        "here" => here(),
        "placement" => placement(),
        "free" => free(),
        "policies" => heap::policies(),
        "blocks" => heap::blocks(),
        "moved" => heap::moved(),
        "home" => heap::home(),
        "spill" => heap::spill(),
        "strict" => heap::strict(),
        "fill" => heap::fill(),
        "chosen" => heap::chosen(),
        "collections" => heap::collections(),
        "outside" => outside::outside(),
        "seen" => outside::seen(),
        "removed" => hotplug::removed(),
        "vanishes" => hotplug::vanishes(),
        "elsewhere" => hotplug::elsewhere(),
        "misfit" => heap::misfit(),
        "refused" => heap::refused(),
        "shrink" => heap::shrink(),
        "without" => heap::without(),
        "one-block" => drop(std::hint::black_box(Box::new(1))),
        "fork" => heap::fork(),
        _ => panic!("which question?"),
    }
}

/// The topology as `numactl -H` prints it, but for the free memory and runs of blanks.
fn hardware() {
    let t = topology();
    println!("available: {} nodes ({})", t.online().len(), t.online());
    for node in t.online().iter() {
        let cpus: String = t.cpus(node).map(|cpu| format!(" {cpu}")).collect();
        println!("node {node} cpus:{cpus}");
        println!("node {node} size: {} MB", t.memory_bytes(node) >> 20);
    }
    println!("node distances:");
    let row = |head: String, cell: &dyn Fn(u8) -> String| {
        println!("{head}{}", t.online().iter().map(cell).collect::<String>());
    };
    row("node".to_owned(), &|to| format!(" {to}"));
    for from in t.online().iter() {
        row(format!("{from}:"), &|to| format!(" {}", t.distance(from, to)));
    }
}

/// In a cpuset with one node: no more than that node is known, and no placement is made.
fn one() {
    let mut t = Topology::new();
    t.load(&Linux);
    assert_eq!((t.standing(), t.usable().len(), t.usable()), (Standing::One, 1, t.online()));
    assert_eq!(Policy::Local.place(&t, 0, 0), None);
    println!("{}", t.usable());
}

/// On every CPU in turn, the node is the one whose folder in /sys has that CPU.
fn here() {
    let t = topology();
    for node in t.online().iter() {
        for cpu in t.cpus(node) {
            run_on(cpu);
            assert_eq!(t.here(&Linux), node, "on CPU {cpu}");
            let path = format!("/sys/devices/system/node/node{node}/cpu{cpu}");
            assert!(Path::new(&path).exists(), "no {path}");
        }
    }
}

fn run_on(cpu: usize) {
    // SAFETY: a zeroed set is a valid set; the kernel reads it.
    let done = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set)
    };
    assert_eq!(done, 0, "CPU {cpu}");
}

/// From every CPU, what each policy asks for is where the pages are.
fn placement() {
    let t = topology();
    assert_eq!(t.standing(), Standing::Several);
    let all = t.usable();
    let (first, last) = (all.first().unwrap(), all.iter().last().unwrap());
    let both = NodeSet::of(&[first, last]);
    for node in t.online().iter() {
        let Some(cpu) = t.cpus(node).next() else { continue };
        run_on(cpu);
        // Where this node's threads have their memory: of several as near, the kernel may take another, so the distance
        // counts.
        let near = t.nearest(node, all).unwrap();
        expect(&t, Policy::Local, node, &|found| found == near);
        for to in all.iter() {
            expect(&t, Policy::Preferred(to), node, &|found| found == to);
            expect(&t, Policy::Pinned(NodeSet::of(&[to])), node, &|found| found == to);
        }
        let nearest = t.nearest(node, both).unwrap();
        let distance = |to| t.distance(node, to);
        let pinned = |found| both.has(found) && distance(found) == distance(nearest);
        expect(&t, Policy::Pinned(both), node, &pinned);
        let counts = expect(&t, Policy::Interleave(NodeSet::ALL), node, &|found| all.has(found));
        let share = PAGES / all.len();
        assert!(all.iter().all(|n| counts[usize::from(n)].abs_diff(share) <= 1), "{counts:?}");
        let counts = expect(&t, Policy::Off, node, &|found| distance(found) == distance(near));
        assert_eq!(counts.iter().sum::<usize>(), PAGES);
    }
}

const PAGES: usize = 96;

/// Maps and touches pages as the policy wants it for a thread on `here`, and counts them by node.
fn expect(t: &Topology, policy: Policy, here: u8, right: &dyn Fn(u8) -> bool) -> [usize; 64] {
    assert_eq!(policy.check(t), Ok(()));
    let page = Linux.page_size();
    let at = Linux.map(0, PAGES * page).unwrap();
    let placement = policy.place(t, policy.home(t, here), 0);
    let mut pages = [std::ptr::null(); PAGES];
    let mut nodes = [i32::MIN; PAGES];
    // SAFETY: mapped above, touched within, unmapped after its last use.
    unsafe {
        if let Some(placement) = placement {
            Linux.place(at, PAGES * page, placement).unwrap();
        }
        for (n, slot) in pages.iter_mut().enumerate() {
            let at = at.add(n * page);
            at.write(1);
            *slot = at.as_ptr().cast_const();
        }
        nodes_of_pages(&pages, &mut nodes).unwrap();
        Linux.unmap(at, PAGES * page).unwrap();
    }
    let mut counts = [0; 64];
    for node in nodes {
        counts[usize::try_from(node).expect("a page that was touched is on a node")] += 1;
    }
    let wrong = (0..64).any(|n| counts[usize::from(n)] > 0 && !right(n));
    assert!(!wrong, "{policy} on node {here} asked for {placement:?} and got {counts:?}");
    counts
}

/// Free memory is less than all of it, and falls on the node where pages are touched.
fn free() {
    let t = topology();
    const TAKEN: usize = 64 << 20;
    for node in t.usable().iter() {
        let before = free_bytes(&Linux, node).unwrap();
        let at = Linux.map(0, TAKEN).unwrap();
        let on = Policy::Preferred(node).place(&t, node, 0).unwrap();
        // SAFETY: mapped above, touched within, unmapped after its last use.
        unsafe {
            Linux.place(at, TAKEN, on).unwrap();
            at.write_bytes(1, TAKEN);
        }
        let after = free_bytes(&Linux, node).unwrap();
        // SAFETY: as above.
        unsafe { Linux.unmap(at, TAKEN).unwrap() };
        let fell = before.saturating_sub(after);
        assert!(before < t.memory_bytes(node), "node {node}: {before}");
        assert!(fell.abs_diff(TAKEN as u64) < TAKEN as u64 / 4, "node {node}: {fell} bytes");
    }
}
