//! Memory that is taken out of the machine while a program runs, and put back.
//! Called by: `guest`, where `init` found memory that can be. For every policy the program runs itself.

use crate::heap::{BYTES, Blocks, List, SIZES, again, ends, share, succeeds};
use nearheap::numa::{NodeSet, Policy, topology};
use nearheap::{NodeHeap, stats};
use std::alloc::{GlobalAlloc, Layout, alloc, dealloc};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// The parts that the memory of a node is switched on and off by.
fn parts(node: u8) -> Vec<PathBuf> {
    let folder = fs::read_dir(format!("/sys/devices/system/node/node{node}")).unwrap();
    let names = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let number = |name: String| name.strip_prefix("memory")?.parse::<usize>().ok();
    let numbers = names.filter_map(number);
    numbers.map(|n| format!("/sys/devices/system/memory/memory{n}/state").into()).collect()
}

fn switch(parts: &[PathBuf], to: &str) {
    for part in parts {
        // Pages that are just in use elsewhere can't be moved for a moment.
        let done = (0..50).any(|n| {
            if n > 0 {
                std::thread::sleep(Duration::from_millis(100));
            }
            fs::write(part, to).is_ok()
        });
        assert!(done, "{}: {to}", part.display());
    }
}

/// The node that all of this is about: the last.
fn last() -> u8 {
    topology().usable().iter().last().unwrap()
}

/// Every policy, in a process of its own; then, with the node gone, processes that ask for it.
pub(crate) fn removed() {
    let node = last();
    for policy in [
        "local".to_owned(),
        format!("preferred:{node}"),
        "interleave".to_owned(),
        format!("weighted:0=1,{node}=1"),
        format!("pinned:0,{node}"),
        format!("pinned:{node}"),
    ] {
        let out = succeeds(again("vanishes", &policy));
        assert_eq!(String::from_utf8_lossy(&out.stderr), "", "{policy}");
        print!("{policy}: {}", String::from_utf8_lossy(&out.stdout));
    }
    let parts = parts(node);
    switch(&parts, "offline");
    for policy in
        [format!("preferred:{node}"), format!("pinned:0,{node}"), format!("interleave:{node}")]
    {
        let out = succeeds(again("one-block", &policy));
        let said = String::from_utf8_lossy(&out.stderr);
        let begins = format!(
            "nearheap: NEARHEAP_NUMA=\"{policy}\": node {node} has no memory; expected nodes of "
        );
        assert!(said.starts_with(&begins) && said.ends_with("; using local\n"), "{said}");
        assert_eq!(said.matches('\n').count(), 1, "{said}");
    }
    let out = succeeds(again("elsewhere", "local"));
    assert_eq!(String::from_utf8_lossy(&out.stderr), "");
    switch(&parts, "online_movable");
}

/// A process starts without the node and asks for it for one collection: the nearest serves.
pub(crate) fn elsewhere() {
    let t = topology();
    let heap = NodeHeap::on(t.online().iter().last().unwrap());
    // SAFETY: the layout has a size.
    let blocks = Blocks::take(320, 10_000, |layout| unsafe { heap.alloc(layout) });
    let mut counts = [0; 64];
    blocks.count(&mut counts);
    assert!(share(&counts, |node| t.usable().has(node)) == 1.0, "{counts:?}");
}

/// Blocks of every size, as far as there is memory for them, as addresses and sizes; of how many sizes there are fewer.
fn some() -> (List, usize) {
    let (mut made, mut missing) = (List::with_room(1 << 20), 0);
    for size in SIZES {
        for _ in 0..BYTES / size {
            // SAFETY: the layout has a size; every write is inside the block.
            unsafe {
                let block = alloc(Layout::from_size_align(size, 8).unwrap());
                if block.is_null() {
                    missing += 1;
                    break;
                }
                (0..size).step_by(4096).for_each(|at| block.add(at).write(size as u8 | 1));
                made.push(block as usize);
                made.push(size);
            }
        }
    }
    (made, missing)
}

fn free(blocks: List) {
    for pair in blocks.get().chunks_exact(2) {
        let (at, size) = (pair[0], pair[1]);
        let block = std::ptr::with_exposed_provenance_mut::<u8>(at);
        // SAFETY: made by `some` with this layout, and freed once.
        unsafe {
            assert!((0..size).step_by(4096).all(|at| block.add(at).read() == size as u8 | 1));
            dealloc(block, Layout::from_size_align(size, 8).unwrap());
        }
    }
}

/// What `removed` runs: the memory goes while there are blocks on it, and comes back.
pub(crate) fn vanishes() {
    let t = topology();
    let (node, parts) = (last(), parts(last()));
    let cpu = ends(&t).into_iter().find(|end| end.0 == node).expect("it has a CPU").1;
    crate::run_on(cpu);
    println!("a thread on CPU {cpu}:");
    let policy = Policy::parse(std::env::var("NEARHEAP_NUMA").unwrap().as_bytes()).unwrap();
    let degraded = || -> (u64, u64) {
        let all = stats();
        let sum = |of: fn(&nearheap::NodeStats) -> u64| all.nodes().iter().map(of).sum();
        (sum(|row| row.spills), sum(|row| row.refused_binds))
    };
    let (before, missing) = some();
    assert_eq!((missing, degraded()), (0, (0, 0)));
    switch(&parts, "offline");
    let (during, missing) = some();
    let (spills, refused) = degraded();
    println!("{missing} sizes ran out, {spills} blocks spilled, {refused} placements refused");
    // The kernel leaves a node that is gone out of the turns, and says nothing.
    let noticed = spills + refused + missing as u64 > 0;
    assert_eq!(noticed, !matches!(policy, Policy::Interleave(_)));
    // With the one node gone that memory may be on, there is none.
    assert_eq!(missing > 0, policy == Policy::Pinned(NodeSet::of(&[node])), "{missing}");
    free(before);
    free(during);
    nearheap::purge();
    switch(&parts, "online_movable");
    // What was known of its free memory holds for 100 ms.
    std::thread::sleep(Duration::from_millis(200));
    let before = degraded();
    let (after, missing) = some();
    assert_eq!(missing, 0);
    if matches!(policy, Policy::Local | Policy::Preferred(_)) {
        assert_eq!(degraded(), before, "it is as before");
    }
    free(after);
}
