//! A heap on a machine with several nodes, as a scripted kernel has them: where memory is put, how blocks go home, and
//! what every refusal leaves.

use super::*;
use crate::part::{SPREAD, TURNS};
use crate::policy::Policy;
use crate::testing::is_held;
use crate::value::Millis;
use nearheap_numa::fake::FakeNode;
use nearheap_numa::placement::{Mode, Placement};
use nearheap_numa::{Errno, NodeSet, Weights};
use rstest::rstest;

const SMALL: Layout = Layout::new::<[u64; 6]>();
const SPAN: Layout = Layout::new::<[u64; 16 << 10]>();
const HUGE: Layout = Layout::new::<[u64; 512 << 10]>();
const GIB: u64 = 1 << 20;

/// CPUs 0 and 1 on node 0, 2 and 3 on node 2, 4 on node 5, which has no memory and is nearer to node 2.
fn machine(kib: [u64; 2]) -> FakeOs {
    let os = FakeOs::new();
    os.set_nodes(&[
        FakeNode { node: 0, cpus: "0-1", kib: kib[0], distances: "10 21 31" },
        FakeNode { node: 2, cpus: "2-3", kib: kib[1], distances: "21 10 15" },
        FakeNode { node: 5, cpus: "4", kib: 0, distances: "31 15 10" },
    ]);
    os
}

fn settle(os: FakeOs, policy: Policy) -> Program {
    let mut program = Program::new(os);
    let told = settle_telling(&program, policy);
    assert!(told.is_empty(), "{told:?}");
    program.enroll();
    program
}

fn settle_telling(program: &Program, policy: Policy) -> Vec<std::string::String> {
    let mut told = Vec::new();
    let homes = &program.heap.granules.homes;
    // SAFETY: nobody else has the heap, which is new.
    unsafe {
        homes.settle(program.os(), policy, &mut |why, nodes| {
            told.push(std::format!("{why}, of {nodes}"));
        });
    }
    told
}

impl Program {
    /// Moves all threads to a CPU, where their caches are empty.
    fn go(&self, cpu: usize) {
        self.threads.iter().for_each(|&cache| {
            // SAFETY: one thread plays all of them.
            assert_eq!(unsafe { self.heap.empty_cache(&*cache, false) }, Ok(()));
        });
        self.os().set_cpu(Some(cpu));
    }

    fn full(&self, node: u8, kib: u64) {
        let text = std::format!(
            "Node {node} MemTotal: {GIB} kB\nNode {node} MemFree: {kib} kB\nNode {node} Active(file): 8 kB\n"
        );
        self.os().set_file(&std::format!("node{node}/meminfo"), Some(&text));
        self.heap.granules.look_again();
    }

    /// The part that a block of the program is in.
    fn part_of(&self, i: usize) -> usize {
        let at = self.blocks[i].at;
        let found = self.heap.granules.part_of(at as usize).or(self.heap.huge.part_of(at));
        found.expect("a block")
    }

    fn last(&self) -> usize {
        self.part_of(self.blocks.len() - 1)
    }

    fn row(&self, node: u64) -> nearheap_stats::NodeStats {
        let mut snapshot = Box::new(Snapshot::new());
        self.heap.snapshot(&mut snapshot);
        snapshot.nodes().iter().find(|row| row.node == node).copied().unwrap_or_default()
    }
}

fn on(mode: Mode, nodes: &[u8]) -> Option<Placement> {
    Some(Placement { mode, nodes: NodeSet::of(nodes) })
}

#[rstest]
#[case::local(Policy::Local, [0, 2, 2], on(Mode::Preferred, &[2]))]
#[case::preferred(Policy::Preferred(2), [2, 2, 2], on(Mode::Preferred, &[2]))]
#[case::pinned(Policy::Pinned(NodeSet::of(&[0, 2])), [0, 2, 2], on(Mode::Bind, &[0, 2]))]
#[case::pinned_to_one(Policy::Pinned(NodeSet::of(&[2])), [2, 2, 2], on(Mode::Bind, &[2]))]
#[case::interleave(Policy::Interleave(NodeSet::ALL), [SPREAD; 3], on(Mode::Interleave, &[0, 2]))]
#[case::weighted(Policy::Weighted(Weights::of(&[(2, 1)])), [SPREAD; 3], on(Mode::Preferred, &[2]))]
#[case::off(Policy::Off, [0, 0, 0], None)]
fn every_policy_has_its_parts_and_places(
    #[case] policy: Policy,
    #[case] parts: [usize; 3],
    #[case] on_node_2: Option<Placement>,
) {
    let mut program = settle(machine([GIB, GIB]), policy);
    for (cpu, part) in [0, 2, 4].into_iter().zip(parts) {
        program.go(cpu);
        for layout in [SMALL, SPAN, HUGE] {
            assert!(program.alloc(0, layout));
            assert_eq!(program.last(), part, "CPU {cpu}, {layout:?}");
        }
    }
    program.go(2);
    let before = program.os().placed().len();
    assert!(program.alloc(0, HUGE));
    let placed = program.os().placed();
    assert_eq!(
        placed.get(before).map(|(_, len, on)| (*len, *on)),
        on_node_2.map(|on| (4 << 20, on))
    );
    let segments = program.heap.granules.audit().segments;
    assert_eq!(placed.len(), if on_node_2.is_some() { segments + 4 } else { 0 }, "one call each");
    program.check();
    program.finish();
}

#[test]
fn one_node_costs_one_call() {
    let os = FakeOs::new();
    os.set_nodes(&[FakeNode { node: 3, cpus: "0-3", kib: GIB, distances: "10" }]);
    let before = os.calls();
    let program = Program::new(os);
    assert!(settle_telling(&program, Policy::Preferred(1)).is_empty());
    assert_eq!(program.os().calls() - before, 1);
    assert!(!program.heap.granules.homes.is_several());
    assert_eq!(program.heap.granules.homes.only(), 3);
    assert_eq!(program.heap.granules.homes.of_node(7), 0);
}

#[test]
fn blocks_go_home_and_are_counted() {
    let mut program = settle(machine([GIB, GIB]), Policy::Local);
    program.enroll();
    (0..1000).for_each(|_| assert!(program.alloc(0, SMALL)));
    let out = program.row(0);
    assert!(out.allocs >= 1000 && out.remote_frees == 0 && out.in_use_bytes == 48_000, "{out:?}");
    program.os().set_cpu(Some(2));
    (0..1000).for_each(|_| program.free(1, 0));
    let (home, far) = (program.row(0), program.row(2));
    assert!(home.remote_frees >= 1000 - 64, "{home:?}");
    assert_eq!(home.sent_home_bytes, home.remote_frees * 48);
    assert_eq!((far.frees, far.remote_frees), (0, 0));
    // What is left in the cache comes first; it is little.
    (0..1000).for_each(|_| assert!(program.alloc(1, SMALL)));
    let near = (0..1000).filter(|&i| program.part_of(i) == 2).count();
    assert!(near >= 1000 - 16, "{near}");
    program.check();
    program.finish();
}

#[test]
fn a_thread_that_moves_takes_nothing_along() {
    let mut program = settle(machine([GIB, GIB]), Policy::Local);
    assert!(program.alloc(0, SMALL));
    // The rest of the batch is in the cache, from which the thread is served until that is empty.
    program.os().set_cpu(Some(3));
    (0..64).for_each(|_| assert!(program.alloc(0, SMALL)));
    assert_eq!(program.last(), 2);
    program.os().set_cpu(Some(0));
    (0..200).for_each(|_| assert!(program.alloc(0, SMALL)));
    assert_eq!(program.last(), 0);
    program.finish();
}

#[test]
fn what_another_node_gave_back_is_not_missed() {
    let mut program = settle(machine([GIB, GIB]), Policy::Local);
    let again = |program: &Program| program.heap.granules.refaults.bytes.load(Ordering::Relaxed);
    let round = |program: &mut Program, cpu: usize| {
        program.go(cpu);
        (0..16).for_each(|_| assert!(program.alloc(0, HUGE)));
        let missed = again(program);
        (0..16).rev().for_each(|i| program.free(0, i));
        missed
    };
    round(&mut program, 0);
    assert_eq!(round(&mut program, 2), 0, "these are other pages");
    assert!(round(&mut program, 0) > 0, "these were given back a moment ago");
    program.finish();
}

/// What one node's threads freed, and will need again, is given back when another node grows: its threads can't use it.
#[test]
fn a_node_that_grows_purges_what_others_retain() {
    let mut program = settle(machine([GIB, GIB]), Policy::Local);
    let purge_delay = Millis(0);
    program.heap.knobs.set(&Values { retain: 2 << 20, purge_delay, ..Values::DEFAULT });
    let sizes = [48, 256, 1024, 4096, 64 << 10].map(|size| Layout::array::<u8>(size).unwrap());
    for cpu in [0, 2, 0, 2] {
        program.go(cpu);
        for layout in sizes {
            (0..(2 << 20) / layout.size()).for_each(|_| assert!(program.alloc(0, layout)));
        }
        let (retained, live) = (program.heap.granules.source.retained(), program.heap.live());
        let budget = program.heap.retain_base(live);
        // Blocks at random places leave fewer pages wholly free, and those later.
        let late = if cfg!(feature = "hardened") { 1536 << 10 } else { 512 << 10 };
        assert!(retained <= budget + late, "{retained} of {budget} on CPU {cpu}");
        // Some stay, so that pages are purged and not segments.
        for i in (0..program.blocks.len()).rev().filter(|i| i % 64 != 0) {
            program.free(0, i);
        }
        program.os().pass_ms(10);
    }
    program.finish();
}

#[test]
fn a_kept_mapping_serves_its_own_part() {
    let mut program = settle(machine([GIB, GIB]), Policy::Local);
    assert!(program.alloc(0, HUGE));
    program.free(0, 0);
    program.go(2);
    assert!(program.alloc(0, HUGE));
    assert_eq!((program.last(), program.os().placed().len()), (2, 2));
    program.go(0);
    assert!(program.alloc(0, HUGE));
    assert_eq!((program.last(), program.os().placed().len()), (0, 2), "what was kept");
    program.finish();
}

#[rstest]
#[case::segments(SMALL)]
#[case::spans(SPAN)]
#[case::huge(HUGE)]
fn a_full_node_spills_to_the_next(#[case] layout: Layout) {
    let mut program = settle(machine([GIB, GIB]), Policy::Local);
    program.full(0, 17 << 10);
    assert!(program.alloc(0, layout));
    assert_eq!((program.last(), program.row(0).spills), (2, 1));
    // Where all are full, the kernel does what it can.
    program.full(2, 0);
    let before = program.blocks.len();
    (0..100).for_each(|_| assert!(program.alloc(0, SPAN)));
    assert!((before..program.blocks.len()).any(|i| program.part_of(i) == 0));
    // There is room again.
    program.full(0, GIB);
    (0..100).for_each(|_| assert!(program.alloc(0, SPAN)));
    assert_eq!(program.last(), 0);
    program.finish();
}

#[rstest]
fn pinned_to_full_nodes_allocations_fail(#[values(SMALL, SPAN, HUGE)] layout: Layout) {
    let mut program = settle(machine([GIB, GIB]), Policy::Pinned(NodeSet::of(&[2])));
    program.full(2, 1 << 10);
    assert!(!program.alloc(0, layout));
    assert_eq!(program.os().placed(), [], "nothing was mapped for it");
    program.full(2, GIB);
    assert!(program.alloc(0, layout));
    assert_eq!(program.last(), 2);
    if layout == HUGE {
        program.full(2, 1 << 10);
        assert!(!program.realloc(0, 0, 64 << 20));
    }
    program.finish();
}

#[test]
fn pinned_to_two_nodes_the_other_serves() {
    let mut program = settle(machine([GIB, GIB]), Policy::Pinned(NodeSet::of(&[0, 2])));
    program.full(0, 0);
    assert!(program.alloc(0, SMALL));
    assert_eq!(program.last(), 2);
    program.full(2, 0);
    (0..1000).for_each(|_| assert!(program.alloc(0, SMALL), "there are free blocks"));
    assert!(!program.alloc(0, HUGE));
    program.finish();
}

#[test]
fn a_refused_placement_is_counted_and_nothing_else() {
    let mut program = settle(machine([GIB, GIB]), Policy::Local);
    // A cpuset without these nodes, or memory that was removed.
    program.os().allow(Ok(NodeSet::of(&[7])));
    for layout in [SMALL, SPAN, HUGE] {
        assert!(program.alloc(0, layout));
    }
    assert_eq!(program.row(0).refused_binds, 2, "a segment and a mapping");
    program.os().allow(Ok(NodeSet::of(&[0, 2])));
    assert!(program.alloc(0, HUGE));
    assert_eq!(program.row(0).refused_binds, 2);
    program.finish();
}

/// A node without CPUs goes with its memory, files and all: what is free there can't be asked, and placements are refused.
#[rstest]
fn memory_lies_elsewhere_when_its_node_is_gone(
    #[values(Policy::Preferred(2), Policy::Pinned(NodeSet::of(&[2])))] policy: Policy,
) {
    let mut program = settle(machine([GIB, GIB]), policy);
    assert!(program.alloc(0, SMALL));
    assert_eq!((program.last(), program.row(2).refused_binds), (2, 0));
    program.os().allow(Ok(NodeSet::of(&[0])));
    program.os().set_file("node2/meminfo", None);
    program.os().set_file("online", Some("0,5\n"));
    program.heap.granules.look_again();
    for layout in [SMALL, SPAN, HUGE, HUGE] {
        assert!(program.alloc(0, layout), "{layout:?}");
    }
    let row = program.row(2);
    assert_eq!((row.refused_binds, row.spills), (2, 0), "two mappings");
    program.finish();
}

#[rstest]
#[case::refused(Err(Errno(libc::EPERM)), true)]
#[case::unknown(Err(Errno(libc::ENOSYS)), true)]
#[case::unreadable(Ok(NodeSet::of(&[0, 2])), false)]
fn what_can_not_be_asked_leaves_one_part(
    #[case] allowed: Result<NodeSet, Errno>,
    #[case] files: bool,
) {
    let os = machine([GIB, GIB]);
    os.allow(allowed);
    if !files {
        os.set_file("online", None);
    }
    let mut program = settle(os, Policy::Pinned(NodeSet::of(&[2])));
    let mut snapshot = Box::new(Snapshot::new());
    program.heap.snapshot(&mut snapshot);
    assert_eq!(snapshot.system.refused_topologies, 1);
    for layout in [SMALL, SPAN, HUGE] {
        assert!(program.alloc(0, layout));
    }
    assert_eq!(program.os().placed(), []);
    program.finish();
}

#[rstest]
#[case(Policy::Preferred(1), "there is no node 1, of 0,2")]
#[case(Policy::Pinned(NodeSet::of(&[2, 5])), "node 5 has no memory, of 0,2")]
fn a_policy_that_does_not_fit_is_told_and_local_stands(
    #[case] policy: Policy,
    #[case] sentence: &str,
) {
    let mut program = Program::new(machine([GIB, GIB]));
    assert_eq!(settle_telling(&program, policy), [sentence]);
    program.enroll();
    program.go(2);
    assert!(program.alloc(0, SMALL));
    assert_eq!(program.last(), 2);
    assert!(!program.heap.granules.homes.is_strict());
    program.finish();
}

#[test]
fn a_chosen_node_serves_past_the_policy() {
    let mut program = settle(machine([GIB, GIB]), Policy::Preferred(2));
    let homes = &program.heap.granules.homes;
    let parts = [homes.of_node(0), homes.of_node(2), homes.of_node(5), homes.turns()];
    assert_eq!(parts, [0, 2, 2, TURNS], "the nearest, where a node has no memory");
    for (layout, part) in [SMALL, SPAN, HUGE].into_iter().flat_map(|l| parts.map(|p| (l, p))) {
        // SAFETY: one thread plays all of them.
        let (block, _) = unsafe { program.heap.alloc_of(part, program.cache(0), layout) };
        program.count(layout, true);
        program.keep(block, layout);
        assert_eq!(program.last(), part, "{layout:?}");
    }
    let placed: BTreeSet<_> = program.os().placed().iter().map(|p| p.2.nodes.bits()).collect();
    assert_eq!(placed, BTreeSet::from([1, 4, 5]));
    program.check();
    while let Some(Block { at, layout, .. }) = program.blocks.pop() {
        // SAFETY: as above.
        assert_eq!(unsafe { program.heap.free_past(program.cache(0), at, layout) }, Ok(()));
        program.count(layout, false);
    }
    assert_eq!(program.row(0).remote_frees, 3, "from a thread that node 2 serves");
    program.finish();
}

#[test]
fn threads_on_every_node_keep_the_numbers() {
    for (seed, policy) in [Policy::Local, Policy::Interleave(NodeSet::ALL)].into_iter().enumerate()
    {
        let mut program = settle(machine([GIB, GIB]), policy);
        (0..3).for_each(|_| program.enroll());
        let mut numbers = Numbers::new(seed as u64);
        for step in 0..crate::testing::steps(60_000) {
            if numbers.once_in(50) {
                program.os().set_cpu(Some(numbers.under(5)));
            }
            let who = numbers.under(4);
            if program.blocks.len() < 2000 && !numbers.once_in(3) {
                assert!(program.alloc(who, any_layout(&mut numbers)));
            } else if let Some(last) = program.blocks.len().checked_sub(1) {
                program.free(who, numbers.under(last + 1));
            }
            if step % 5000 == 0 {
                program.check();
            }
        }
        program.check();
        program.finish();
    }
}

#[test]
fn a_fork_enters_the_locks_of_every_part() {
    let mut program = settle(machine([GIB, GIB]), Policy::Local);
    for cpu in [0, 2] {
        program.go(cpu);
        assert!(program.alloc(0, SMALL));
    }
    let heap = &program.heap;
    let held = |heap: &Heap<FakeOs>| {
        let places = heap.granules.places().filter(|place| is_held(&place.shard)).count();
        places + heap.depots.iter().map(|(_, depot)| depot.held().0).sum::<usize>()
    };
    assert_eq!(heap.depots.iter().count(), 2);
    heap.hold();
    let all = heap.granules.places().count()
        + heap.depots.iter().map(|(_, depot)| depot.held().1).sum::<usize>();
    assert_eq!(held(heap), all);
    // SAFETY: entered above.
    unsafe { heap.let_go() };
    assert_eq!(held(heap), 0);
    program.finish();
}
