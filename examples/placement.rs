//! Where are the pages of a running program? A table of its memory by NUMA node, every second, while threads allocate,
//! hand blocks to each other and free them.
//!
//! ```sh
//! cargo run --release --example placement            # 3 seconds
//! NEARHEAP_NUMA=interleave cargo run --release --example placement 10
//! ```
//!
//! The nodes of the pages come from the kernel (`move_pages`), which is asked about every page of the process's anonymous
//! memory that was touched; the rest of the table is what the heap counts. On a machine with one node the table has one
//! column.

use nearheap::numa::topology;
use nearheap::{NearHeap, NodeStats};
use nearheap_numa::os::nodes_of_pages;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;
use std::{env, fs, ptr, thread};

#[global_allocator]
static GLOBAL: NearHeap = NearHeap::new();

const PAGE: usize = 4096;
static STOP: AtomicBool = AtomicBool::new(false);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let seconds: u64 = env::args().nth(1).map_or(Ok(3), |text| text.parse())?;
    let threads = thread::available_parallelism()?.get().clamp(2, 16);
    let t = topology();
    println!("{threads} threads on nodes {}, memory on {}", t.online(), t.usable());
    thread::scope(|scope| {
        // Each thread hands a part of what it makes to the next.
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..threads).map(|_| sync_channel(8)).unzip();
        for (i, receiver) in receivers.into_iter().enumerate() {
            let next = senders.get((i + 1) % threads).cloned();
            scope.spawn(move || next.map(|next| work(i, &receiver, &next)));
        }
        drop(senders);
        for second in 1..=seconds {
            thread::sleep(Duration::from_secs(1));
            show(second);
        }
        STOP.store(true, Ordering::Relaxed);
    });
    Ok(())
}

/// Maps of words that grow and shrink; every hundredth goes to the next thread.
fn work(seed: usize, from: &Receiver<Vec<String>>, to: &SyncSender<Vec<String>>) {
    let mut kept: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    let mut state = seed as u64 + 1;
    while !STOP.load(Ordering::Relaxed) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let key = (state >> 40) as usize % 4096;
        let words = (0..key % 64).map(|i| format!("{key}-{i}").repeat(1 + i % 8)).collect();
        if let Some(old) = kept.insert(key, words)
            && key.is_multiple_of(100)
        {
            // Where the next thread is behind, the words end here.
            let _ = to.try_send(old);
        }
        // What others made is freed here.
        from.try_iter().for_each(drop);
    }
}

/// Pages of anonymous memory by node.
fn pages() -> std::io::Result<BTreeMap<i32, usize>> {
    let mut counts = BTreeMap::new();
    for line in fs::read_to_string("/proc/self/maps")?.lines() {
        let mut words = line.split_whitespace();
        let (Some(range), Some(rights)) = (words.next(), words.next()) else { continue };
        let file = words.nth(3).unwrap_or_default();
        let ends = range
            .split_once('-')
            .map(|(from, to)| (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16)));
        let Some((Ok(from), Ok(to))) = ends else { continue };
        if !rights.starts_with("rw") || file.starts_with('/') {
            continue;
        }
        let mut at = from;
        while at < to {
            let mut list = [ptr::null(); 512];
            let n = ((to - at) / PAGE).min(list.len());
            for (i, page) in list.iter_mut().take(n).enumerate() {
                *page = ptr::without_provenance(at + i * PAGE);
            }
            let mut nodes = [-1; 512];
            let list = list.get(..n).unwrap_or_default();
            if nodes_of_pages(list, &mut nodes).is_err() {
                return Err(std::io::Error::other("the kernel does not tell where pages are"));
            }
            for &node in nodes.iter().take(n).filter(|node| **node >= 0) {
                *counts.entry(node).or_default() += 1;
            }
            at += n.max(1) * PAGE;
        }
    }
    Ok(counts)
}

fn show(second: u64) {
    let counts = match pages() {
        Ok(counts) => counts,
        Err(why) => return println!("{why}"),
    };
    let stats = nearheap::stats();
    let all: usize = counts.values().sum();
    println!("after {second} s: {} MiB resident", (all * PAGE) >> 20);
    println!(
        "{:>8}{:>12}{:>8}{:>14}{:>14}{:>14}{:>14}{:>8}",
        "node", "resident", "share", "in use", "retained", "local frees", "remote frees", "spills"
    );
    let heap = |node: u64| stats.nodes().iter().find(|row| row.node == node).copied();
    let several = heap(NodeStats::SEVERAL).map(|row| (-1, row));
    // Nodes that have pages, and those that the heap has something to say of.
    let told = stats.nodes().iter().map(|row| row.node).filter(|&node| node != NodeStats::SEVERAL);
    let nodes: BTreeSet<_> = counts.keys().copied().chain(told.map(|node| node as i32)).collect();
    let rows = nodes.into_iter().map(|node| (node, heap(node as u64).unwrap_or_default()));
    for (node, row) in rows.chain(several) {
        let pages = counts.get(&node).copied().unwrap_or(0);
        let name = if node < 0 { "several".to_owned() } else { node.to_string() };
        println!(
            "{name:>8}{:>8} MiB{:>6} %{:>10} KiB{:>10} KiB{:>14}{:>14}{:>8}",
            (pages * PAGE) >> 20,
            100 * pages / all.max(1),
            row.in_use_bytes >> 10,
            row.retained_bytes >> 10,
            row.local_frees(),
            row.remote_frees,
            row.spills
        );
    }
}
