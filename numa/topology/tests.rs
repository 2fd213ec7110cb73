//! What is understood of machines of every shape, and of machines that don't tell.

use super::*;
use crate::fake::{FakeNode, FakeOs};
use crate::os::Linux;
use rstest::rstest;
use std::vec::Vec;

const fn node(node: u8, cpus: &'static str, kib: u64, distances: &'static str) -> FakeNode {
    FakeNode { node, cpus, kib, distances }
}

const TWO: [FakeNode; 2] = [node(0, "0-1", 1 << 20, "10 21"), node(1, "2-3", 2 << 20, "21 10")];
/// Numbers with holes, CPUs that alternate, distances that are not symmetric.
const SPARSE: [FakeNode; 4] = [
    node(0, "0,4", 1 << 20, "10 40 20 30"),
    node(3, "1,5", 1 << 20, "41 10 31 21"),
    node(8, "2,6", 1 << 20, "20 30 10 15"),
    node(63, "3,7-9", 1 << 20, "254 255 256 10"),
];
const MEMORYLESS: [FakeNode; 3] = [
    node(0, "0-1", 1 << 20, "10 20 30"),
    node(1, "2-3", 0, "20 10 17"),
    node(2, "4", 1 << 20, "30 17 10"),
];
const CPULESS: [FakeNode; 2] = [node(0, "0-3", 1 << 20, "10 28"), node(1, "", 4 << 20, "28 10")];

fn machine(nodes: &[FakeNode]) -> FakeOs {
    let os = FakeOs::new();
    os.set_nodes(nodes);
    os
}

fn loaded(os: &FakeOs) -> Topology {
    let mut topology = Topology::new();
    topology.load(os);
    topology
}

fn set(text: &str) -> NodeSet {
    NodeSet::parse(text.as_bytes()).unwrap_or(NodeSet::NONE)
}

/// The machine as its sets, its CPUs by node, its MiB and its distances.
fn table(t: &Topology) -> Vec<(u8, Vec<usize>, u64, Vec<u8>)> {
    let row = |n| t.online().iter().map(|to| t.distance(n, to)).collect();
    t.online().iter().map(|n| (n, t.cpus(n).collect(), t.memory_bytes(n) >> 20, row(n))).collect()
}

#[test]
fn two_nodes() {
    let t = loaded(&machine(&TWO));
    assert_eq!((t.standing(), t.online(), t.usable()), (Standing::Several, set("0-1"), set("0-1")));
    let expected =
        [(0, [0, 1].into(), 1024, [10, 21].into()), (1, [2, 3].into(), 2048, [21, 10].into())];
    assert_eq!(table(&t), expected);
    assert_eq!([0, 3, 4, CPUS_MOST].map(|cpu| t.node_of_cpu(cpu)), [Some(0), Some(1), None, None]);
}

#[test]
fn numbers_with_holes() {
    let os = machine(&SPARSE);
    let t = loaded(&os);
    assert_eq!(t.online(), set("0,3,8,63"));
    let expected = [
        (0, [0, 4].into(), 1024, [10, 40, 20, 30].into()),
        (3, [1, 5].into(), 1024, [41, 10, 31, 21].into()),
        (8, [2, 6].into(), 1024, [20, 30, 10, 15].into()),
        (63, [3, 7, 8, 9].into(), 1024, [254, 255, 255, 10].into()),
    ];
    assert_eq!(table(&t), expected);
    let spill = |from| t.by_distance(from, t.usable()).collect::<Vec<_>>();
    assert_eq!([spill(0), spill(3), spill(8)], [[0, 8, 63, 3], [3, 63, 8, 0], [8, 63, 0, 3]]);
    os.set_cpu(Some(6));
    assert_eq!(t.here(&os), 8);
}

#[test]
fn a_node_without_memory() {
    let os = machine(&MEMORYLESS);
    let t = loaded(&os);
    assert_eq!((t.online(), t.with_memory(), t.usable()), (set("0-2"), set("0,2"), set("0,2")));
    os.set_cpu(Some(3));
    assert_eq!((t.here(&os), t.nearest(t.here(&os), t.usable())), (1, Some(2)));
}

#[test]
fn a_node_without_cpus() {
    let t = loaded(&machine(&CPULESS));
    assert_eq!((t.standing(), t.usable(), t.cpus(1).count()), (Standing::Several, set("0-1"), 0));
    assert_eq!(t.by_distance(0, t.usable()).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn a_cpuset_leaves_the_nodes_but_allows_fewer() {
    let os = machine(&SPARSE);
    os.allow(Ok(set("3,8")));
    let t = loaded(&os);
    assert_eq!((t.standing(), t.usable(), t.online().len()), (Standing::Several, set("3,8"), 4));
    os.allow(Ok(set("8")));
    let t = loaded(&os);
    assert_eq!((t.standing(), t.usable(), t.online()), (Standing::One, set("8"), set("8")));
}

#[test]
fn one_node_is_one_call() {
    let os = machine(&TWO);
    os.allow(Ok(set("0")));
    os.fail_at(0);
    let mut t = loaded(&os);
    assert_eq!(
        (os.calls(), t.standing(), t.usable(), t.here(&os)),
        (1, Standing::One, set("0"), 0)
    );
    t.survey(&os);
    assert_eq!((t.standing(), t.online(), t.usable()), (Standing::One, set("0-1"), set("0")));
}

#[rstest]
#[case::seccomp(libc::EPERM)]
#[case::no_numa(libc::ENOSYS)]
fn a_refused_question_is_one_node(#[case] errno: i32) {
    let os = machine(&TWO);
    os.allow(Err(Errno(errno)));
    let t = loaded(&os);
    assert_eq!((t.standing(), t.usable()), (Standing::Refused(Errno(errno)), set("0")));
}

#[rstest]
#[case::missing(None)]
#[case::empty(Some(""))]
#[case::blank(Some("\n"))]
#[case::words(Some("yes\n"))]
#[case::backwards(Some("1-0\n"))]
#[case::cut(Some("0-\n"))]
#[case::two_lines(Some("0-1\n0-1\n"))]
#[case::others(Some("0,2\n"))]
#[case::large(Some("0-99999999999\n"))]
#[case::all_beyond(Some("64-65\n"))]
fn a_list_of_nodes_that_is_none_is_one_node(#[case] online: Option<&str>) {
    let os = machine(&TWO);
    os.allow(Ok(set("0-1")));
    os.set_file("online", online);
    let t = loaded(&os);
    assert_eq!((t.standing(), t.online(), t.usable()), (Standing::Unreadable, set("0"), set("0")));
}

#[test]
fn nodes_beyond_the_room_are_left_out() {
    let os = machine(&TWO);
    os.set_file("online", Some("0-1,64-127\n"));
    os.set_file("node0/cpulist", Some("0-1,2000-4294967295\n"));
    let t = loaded(&os);
    assert_eq!((t.standing(), t.online()), (Standing::Several, set("0-1")));
    assert_eq!(t.cpus(0).count(), 2 + CPUS_MOST - 2000);
}

#[rstest]
#[case::missing(None)]
#[case::strange(Some("10 x\n"))]
#[case::negative(Some("10 -1\n"))]
fn what_is_missing_of_a_node_has_a_stand_in(#[case] text: Option<&str>) {
    let os = machine(&TWO);
    for name in ["cpulist", "distance", "meminfo"] {
        os.set_file(&std::format!("node1/{name}"), text.filter(|_| name == "distance"));
    }
    let t = loaded(&os);
    assert_eq!((t.standing(), t.usable()), (Standing::Several, set("0-1")));
    assert_eq!(table(&t)[1], (1, [].into(), 0, [20, 10].into()));
    os.set_cpu(Some(2));
    assert_eq!(t.here(&os), 0);
    os.set_cpu(None);
    assert_eq!(t.here(&os), 0);
}

#[test]
fn every_refusal_leaves_a_topology() {
    for n in 1.. {
        let os = machine(&SPARSE);
        os.fail_at(n);
        let t = loaded(&os);
        let calls = os.calls();
        match n {
            1 => assert_eq!(t.standing(), Standing::Refused(Errno(libc::ENOMEM))),
            4 => assert_eq!(t.standing(), Standing::Unreadable),
            _ => assert_eq!((t.standing(), t.usable()), (Standing::Several, set("0,3,8,63"))),
        }
        if n > calls {
            assert_eq!(calls, 4 + 3 * 4, "a call for the nodes, one for the mode, and the files");
            return;
        }
    }
}

#[test]
fn what_was_read_before_is_gone() {
    let os = machine(&SPARSE);
    let mut t = loaded(&os);
    os.set_nodes(&TWO);
    t.load(&os);
    assert_eq!(table(&t), table(&loaded(&os)));
    assert_eq!((t.distance(0, 63), t.node_of_cpu(9)), (FAR, None));
}

#[test]
fn distances_of_more_nodes_than_were_there_are_ignored() {
    let os = machine(&TWO);
    os.set_file("node0/distance", Some("10 21 30 40\n"));
    assert_eq!(table(&loaded(&os))[0].3, [10, 21]);
}

#[rstest]
#[case("Node 0 MemTotal:       2031356 kB\nNode 0 MemFree: 1 kB\n", Some(2_031_356 << 10))]
#[case("Node 12 MemUsed: 5 kB\nNode 12 MemTotal:0 kB\n", None)]
#[case("Node 12 MemTotal: 0 kB", Some(0))]
#[case("Node 0 MemTotal:\nNode 0 MemFree: 7 kB", None)]
#[case("Node 0 MemTotal: 7", None)]
#[case("Node 0 MemTotal: 7 MB", None)]
#[case("Node 0 MemTotal: -7 kB", None)]
#[case("Node 0 MemTotal: 18446744073709551615 kB", None)]
#[case("Node 0 MemTotal: 99999999999999999999999 kB", None)]
#[case("", None)]
fn a_line_of_meminfo(#[case] text: &str, #[case] bytes: Option<u64>) {
    assert_eq!(field(text.as_bytes(), b"MemTotal:"), bytes);
}

#[test]
fn free_memory_is_read_anew() {
    assert_eq!(free_bytes(&machine(&TWO), 1), Some(1 << 30));
    assert_eq!(free_bytes(&machine(&TWO), 2), None);
}

/// What all nodes keep free together is divided by their sizes, and half as much again is not touched.
#[test]
fn a_small_node_keeps_a_small_part_free() {
    let os = machine(&TWO);
    os.set_file("/proc/sys/vm/min_free_kbytes", Some("90000\n"));
    let t = loaded(&os);
    assert_eq!([0, 1, 2].map(|node| t.kept_free(node) >> 10), [45_000, 90_000, 0]);
    os.set_file("/proc/sys/vm/min_free_kbytes", None);
    assert_eq!(loaded(&os).kept_free(0), 0);
}

#[rstest]
#[case(0, b"cpulist", "/sys/devices/system/node/node0/cpulist")]
#[case(9, b"meminfo", "/sys/devices/system/node/node9/meminfo")]
#[case(63, b"distance", "/sys/devices/system/node/node63/distance")]
fn paths(#[case] node: u8, #[case] file: &[u8], #[case] path: &str) {
    assert_eq!(Path::of(node, file).get().to_bytes(), path.as_bytes());
}

#[test]
fn no_bytes_surprise_it() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as usize
    };
    let letters = b"0123456789,,,--- \n\nx\0";
    for _ in 0..if cfg!(miri) { 20 } else { 2_000 } {
        let os = machine(&TWO);
        for name in ["online", "node0/cpulist", "node1/distance", "node0/meminfo"] {
            let text: Vec<u8> =
                (0..random() % 20).map(|_| letters[random() % letters.len()]).collect();
            os.set_file(name, Some(&std::string::String::from_utf8_lossy(&text)));
        }
        let t = loaded(&os);
        assert!(!t.usable().is_empty() && t.usable().and(t.online()) == t.usable(), "{t:?}");
    }
}

#[test]
fn the_machine_that_this_runs_on() {
    let (mut loaded, mut surveyed) = (Topology::new(), Topology::new());
    loaded.load(&Linux);
    surveyed.survey(&Linux);
    assert_eq!(loaded.standing(), surveyed.standing());
    assert!(surveyed.usable().has(surveyed.here(&Linux)) || surveyed.is_several());
    if loaded.standing() == Standing::One
        && std::path::Path::new("/sys/devices/system/node/online").exists()
    {
        let here = surveyed.here(&Linux);
        assert!(surveyed.cpus(here).count() >= 1 && surveyed.memory_bytes(here) > 1 << 20);
        assert!(free_bytes(&Linux, here).unwrap() <= surveyed.memory_bytes(here));
    }
}
