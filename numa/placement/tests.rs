//! What each policy asks of the kernel on machines of every shape.

use super::*;
use crate::fake::{FakeNode, FakeOs};
use crate::os::{Errno, Linux, Os, nodes_of_pages};
use crate::topology::Standing;
use rstest::rstest;

/// Node 2 has no memory, node 3 no CPU, node 5 is twice as large and not allowed where a test says so.
fn machine() -> FakeOs {
    let os = FakeOs::new();
    os.set_nodes(&[
        FakeNode { node: 0, cpus: "0", kib: 1 << 20, distances: "10 20 30 40" },
        FakeNode { node: 2, cpus: "1", kib: 0, distances: "20 10 25 15" },
        FakeNode { node: 3, cpus: "", kib: 1 << 20, distances: "30 25 10 40" },
        FakeNode { node: 5, cpus: "2", kib: 2 << 20, distances: "40 15 40 10" },
    ]);
    os
}

fn loaded(os: &FakeOs) -> Topology {
    let mut topology = Topology::new();
    topology.load(os);
    topology
}

fn policy(text: &str) -> Policy {
    Policy::parse(text.as_bytes()).unwrap()
}

fn set(text: &str) -> NodeSet {
    NodeSet::parse(text.as_bytes()).unwrap()
}

#[rstest]
#[case("local", 0, 0, Some((Mode::Preferred, "0")))]
#[case("local", 2, 5, Some((Mode::Preferred, "5")))]
#[case("local", 5, 5, Some((Mode::Preferred, "5")))]
#[case("preferred:3", 0, 3, Some((Mode::Preferred, "3")))]
#[case("interleave", 5, 0, Some((Mode::Interleave, "0,3,5")))]
#[case("interleave:3,5", 0, 3, Some((Mode::Interleave, "3,5")))]
#[case("pinned:0,3", 5, 0, Some((Mode::Bind, "0,3")))]
#[case("pinned:5", 0, 5, Some((Mode::Bind, "5")))]
#[case("off", 5, 0, None)]
fn a_policy_is_a_placement(
    #[case] text: &str,
    #[case] here: u8,
    #[case] home: u8,
    #[case] placed: Option<(Mode, &str)>,
) {
    let t = loaded(&machine());
    let policy = policy(text);
    assert_eq!(policy.check(&t), Ok(()));
    assert_eq!(policy.home(&t, here), home);
    let expected = placed.map(|(mode, nodes)| Placement { mode, nodes: set(nodes) });
    assert_eq!(policy.place(&t, home, 0), expected);
}

#[test]
fn interleaving_by_the_systems_weights_is_the_kernels_where_it_can() {
    let os = machine();
    os.set_knows_weights(true);
    let t = loaded(&os);
    let expected = Placement { mode: Mode::WeightedInterleave, nodes: set("0,3,5") };
    assert_eq!(policy("weighted").place(&t, 0, 7), Some(expected));
    let own = policy("weighted:0=1").place(&t, 0, 7);
    assert_eq!(own, Some(Placement { mode: Mode::Preferred, nodes: set("0") }));
}

/// Of so many segments each node gets its share, and of any number in a row none is off by more than a few.
#[rstest]
#[case::sizes("weighted", [25, 25, 50])]
#[case::list("weighted:0=3,3=1", [75, 25, 0])]
#[case::one("weighted:5=9", [0, 0, 100])]
#[case::many("weighted:0=255,3=1,5=255", [49, 1, 49])]
fn segments_are_dealt_by_weight(#[case] text: &str, #[case] percents: [usize; 3]) {
    let t = loaded(&machine());
    let mut counts = [0_usize; 3];
    for turn in 0..1000 {
        let placement = policy(text).place(&t, 0, turn).unwrap();
        assert_eq!((placement.mode, placement.nodes.len()), (Mode::Preferred, 1));
        let node = [0, 3, 5].iter().position(|n| placement.nodes.has(*n)).unwrap();
        counts[node] += 1;
        for (count, percent) in counts.iter().zip(percents) {
            let share = (turn + 1) * percent / 100;
            assert!(count.abs_diff(share) <= 3 + turn / 100, "{counts:?} after {turn}");
        }
    }
}

#[test]
fn segments_are_dealt_in_turn_where_no_size_is_known() {
    let os = machine();
    for node in [0, 2, 3, 5] {
        os.set_file(&std::format!("node{node}/meminfo"), None);
    }
    let t = loaded(&os);
    let nodes = [0, 1, 2, 3].map(|turn| policy("weighted").place(&t, 0, turn).unwrap().nodes);
    assert_eq!(nodes, [set("0"), set("3"), set("5"), set("0")]);
}

#[rstest]
#[case("preferred:1", Misfit::NoSuchNode(1), "there is no node 1")]
#[case("interleave:0-5", Misfit::NoSuchNode(1), "there is no node 1")]
#[case("weighted:0=1,2=1", Misfit::NoMemory(2), "node 2 has no memory")]
#[case("pinned:0,5", Misfit::NotAllowed(5), "node 5 is not allowed to this process")]
fn a_policy_that_does_not_fit(#[case] text: &str, #[case] misfit: Misfit, #[case] sentence: &str) {
    use std::string::ToString;
    let os = machine();
    os.allow(Ok(set("0,3")));
    assert_eq!(policy(text).check(&loaded(&os)), Err(misfit));
    assert_eq!(misfit.to_string(), sentence);
    os.allow(Ok(set("0")));
    assert_eq!(policy(text).check(&loaded(&os)), Ok(()), "one node: no effect");
}

#[rstest]
fn one_node_is_never_asked_for(
    #[values("local", "preferred:3", "interleave", "weighted", "weighted:7=1", "pinned:9", "off")]
    text: &str,
    #[values(Ok(NodeSet::of(&[3])), Err(Errno(libc::EPERM)))] allowed: Result<NodeSet, Errno>,
) {
    let os = machine();
    os.allow(allowed);
    let t = loaded(&os);
    let home = t.usable().first().unwrap();
    assert_ne!(t.standing(), Standing::Several);
    assert_eq!((policy(text).home(&t, 5), policy(text).place(&t, home, 1)), (home, None));
}

#[test]
fn a_node_that_went_away_is_not_asked_for() {
    let os = machine();
    os.allow(Ok(set("0,3")));
    let t = loaded(&os);
    assert_eq!(policy("preferred:5").place(&t, 5, 0), None);
    assert_eq!(policy("pinned:5").place(&t, 0, 0), None);
    assert_eq!(policy("local").home(&t, 5), 0);
}

/// On any machine: the kernel takes what is made for it, and a page lies where it was to be.
#[test]
#[cfg_attr(miri, ignore = "asks the kernel about its pages")]
fn the_kernel_takes_every_placement() {
    let len = 4 * Linux.page_size();
    let nodes = match Linux.allowed_nodes() {
        Ok(nodes) => nodes,
        Err(errno) => {
            return std::eprintln!("not run: the kernel doesn't tell of nodes: {errno:?}");
        }
    };
    let first = NodeSet::NONE.with(nodes.first().unwrap());
    let mut modes = std::vec![
        (Mode::Preferred, first),
        (Mode::Bind, nodes),
        (Mode::Bind, first),
        (Mode::Interleave, nodes),
    ];
    if Linux.knows_weights() {
        modes.push((Mode::WeightedInterleave, nodes));
    }
    for (mode, nodes) in modes {
        let at = Linux.map(0, len).unwrap();
        // SAFETY: mapped here; written within its length, and unmapped after its last use.
        unsafe {
            if let Err(errno) = Linux.place(at, len, Placement { mode, nodes }) {
                assert_eq!(errno, Errno(libc::EPERM), "{mode:?}");
                std::eprintln!("not run: a filter forbids mbind");
            }
            at.write(1);
            let mut found = [i32::MAX; 2];
            let pages = [at.as_ptr().cast_const(), at.as_ptr().add(len - 1)];
            if nodes_of_pages(&pages, &mut found).is_ok() {
                let node = u8::try_from(found[0]).unwrap();
                assert!(nodes.has(node), "{mode:?}: {found:?}");
                assert_eq!(found[1], -libc::ENOENT, "never touched");
            }
            Linux.unmap(at, len).unwrap();
        }
    }
}
