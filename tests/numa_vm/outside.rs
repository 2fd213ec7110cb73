//! What the system's own tools say of a program's pages: `/proc/PID/numa_maps` and `numastat -p`, beside what the kernel
//! says of each page of its blocks.
//! Called by: `guest`. For every policy the program runs itself.

use crate::heap::{BYTES, Blocks, SIZES, again, ends, on, succeeds};
use nearheap::numa::topology;
use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

const PAGE: usize = 4096;
/// What a program of this size has beside the blocks: itself, its libraries and stacks, and free pages of the heap.
const BESIDE: usize = (12 << 20) / PAGE;

type Pages = [usize; 64];

pub(crate) fn outside() {
    let t = topology();
    let last = t.usable().iter().last().unwrap();
    for policy in [
        "local".to_owned(),
        "interleave".to_owned(),
        format!("preferred:{last}"),
        format!("pinned:{last}"),
    ] {
        let out = succeeds(again("seen", &policy));
        print!("{}", String::from_utf8_lossy(&out.stdout));
    }
}

/// What `outside` runs.
pub(crate) fn seen() {
    let t = topology();
    let &(_, cpu) = ends(&t).last().unwrap();
    let all = on(cpu, || SIZES.map(|size| Blocks::new(size, 2 * BYTES / size)));
    let mut counts = [0; 64];
    all.iter().for_each(|blocks| blocks.count(&mut counts));
    let maps = numa_maps(&all);
    let stat = numastat();
    let show = |pages: &Pages| -> Vec<usize> {
        t.usable().iter().map(|node| (pages[usize::from(node)] * PAGE) >> 20).collect()
    };
    let policy = std::env::var("NEARHEAP_NUMA").unwrap();
    println!(
        "{policy}: MiB on nodes {}: move_pages {:?}, numa_maps {:?}, numastat -p {:?}",
        t.usable(),
        show(&counts),
        show(&maps),
        show(&stat)
    );
    for node in t.usable().iter().map(usize::from) {
        let (blocks, mapped, told) = (counts[node], maps[node], stat[node]);
        assert!(mapped >= blocks && mapped <= blocks + BESIDE, "node {node}: {blocks}, {mapped}");
        assert!(told >= mapped && told <= mapped + BESIDE, "node {node}: {mapped}, {told}");
    }
    all.into_iter().for_each(Blocks::free);
}

/// The pages of the mappings that blocks are in, by node: the kernel prints where each mapping begins.
fn numa_maps(all: &[Blocks]) -> Pages {
    let text = fs::read_to_string("/proc/self/numa_maps").unwrap();
    let line = |line: &str| -> (usize, Pages) {
        let mut words = line.split(' ');
        let start = usize::from_str_radix(words.next().unwrap(), 16).unwrap();
        let mut pages = [0; 64];
        for (node, n) in words.filter_map(|word| word.strip_prefix('N')?.split_once('=')) {
            pages[node.parse::<usize>().unwrap()] += n.parse::<usize>().unwrap();
        }
        (start, pages)
    };
    let maps: Vec<_> = text.lines().map(line).collect();
    let of = |at: usize| maps.partition_point(|(start, _)| *start <= at) - 1;
    let with_blocks: BTreeSet<_> =
        all.iter().flat_map(|blocks| blocks.addresses().iter().map(|&at| of(at))).collect();
    let mut sum = [0; 64];
    for i in with_blocks {
        sum.iter_mut().zip(maps[i].1).for_each(|(sum, n)| *sum += n);
    }
    sum
}

/// The pages of all mappings, by node, as `numastat` counts them. It prints several tables where there are many nodes.
fn numastat() -> Pages {
    let mut run = Command::new("numastat");
    run.arg("-p").arg(std::process::id().to_string());
    let text = String::from_utf8(succeeds(run).stdout).unwrap();
    let (mut columns, mut sum) = (Vec::new(), [0; 64]);
    for line in text.lines() {
        if line.trim_start().starts_with("Node ") {
            let names = line.split("Node").skip(1);
            columns = names
                .map(|name| name.split_whitespace().next().unwrap().parse().unwrap())
                .collect();
        }
        if let Some(row) = line.strip_prefix("Total ") {
            for (&node, mib) in columns.iter().zip(row.split_whitespace()) {
                let node: usize = node;
                sum[node] = (mib.parse::<f64>().unwrap() * 256.0).round() as usize;
            }
        }
    }
    assert!(sum.iter().any(|&pages| pages > 0), "{text}");
    sum
}
