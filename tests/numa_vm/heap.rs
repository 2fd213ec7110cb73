//! Questions about the heap: on which nodes the blocks lie that a program gets, in every policy and whatever goes wrong.
//! Called by: `guest`. Where a question needs another policy or a refusal, the program runs itself.

use crate::filter::{self, Filter};
use crate::run_on;
use nearheap::numa::{NodeSet, Policy, Topology, topology};
use nearheap::{NodeHeap, NodeStats, stats};
use nearheap_numa::os::{Linux, Os, nodes_of_pages};
use nearheap_numa::topology::free_bytes;
use std::alloc::{GlobalAlloc, Layout, System, alloc, dealloc};
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};
use std::time::Duration;
use std::{slice, thread};

pub(crate) const SIZES: [usize; 6] = [48, 320, 1000, 20_000, 200_000, 3 << 20];
/// Bytes of blocks of each size: several segments.
pub(crate) const BYTES: usize = 8 << 20;
const PAGE: usize = 4096;

/// Blocks of one size.
pub(crate) struct Blocks {
    layout: Layout,
    at: List,
}

/// A list outside of the heap, so that the heap has the blocks and little else.
pub(crate) struct List {
    at: *mut usize,
    len: usize,
    room: usize,
}

// SAFETY: the list owns what it points to.
unsafe impl Send for List {}

impl List {
    pub(crate) fn with_room(room: usize) -> Self {
        // SAFETY: the layout has a size.
        let at = unsafe { System.alloc(Layout::array::<usize>(room).unwrap()) }.cast();
        Self { at, len: 0, room }
    }

    pub(crate) fn push(&mut self, item: usize) {
        assert!(self.len < self.room);
        // SAFETY: inside the list.
        unsafe { self.at.add(self.len).write(item) };
        self.len += 1;
    }

    fn items(&mut self) -> &mut [usize] {
        // SAFETY: `len` items were written.
        unsafe { slice::from_raw_parts_mut(self.at, self.len) }
    }

    pub(crate) fn get(&self) -> &[usize] {
        // SAFETY: as above.
        unsafe { slice::from_raw_parts(self.at, self.len) }
    }
}

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: allocated by `with_room` with this layout.
        unsafe { System.dealloc(self.at.cast(), Layout::array::<usize>(self.room).unwrap()) };
    }
}

impl Blocks {
    pub(crate) fn take(size: usize, count: usize, mut from: impl FnMut(Layout) -> *mut u8) -> Self {
        let layout = Layout::from_size_align(size, 8).unwrap();
        let mut at = List::with_room(count);
        for _ in 0..count {
            let block = from(layout);
            assert!(!block.is_null());
            for offset in (0..size).step_by(PAGE).chain([size - 1]) {
                // SAFETY: inside the block.
                unsafe { block.add(offset).write_volatile(1) };
            }
            at.push(block as usize);
        }
        Self { layout, at }
    }

    pub(crate) fn new(size: usize, count: usize) -> Self {
        // SAFETY: the layout has a size.
        Self::take(size, count, |layout| unsafe { alloc(layout) })
    }

    pub(crate) fn free(self) {
        for &at in self.at.get() {
            // SAFETY: allocated with this layout, freed once.
            unsafe { dealloc(at as *mut u8, self.layout) };
        }
    }

    pub(crate) fn addresses(&self) -> &[usize] {
        self.at.get()
    }

    /// In an order that looks random.
    fn shuffle(&mut self) {
        let at = self.at.items();
        let mut state = 1_u64;
        for i in (1..at.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            at.swap(i, (state >> 33) as usize % (i + 1));
        }
    }

    /// Pages by node.
    pub(crate) fn count(&self, counts: &mut [usize; 64]) {
        let each = self.layout.size() / PAGE + 2;
        let mut pages = List::with_room(self.at.get().len() * each);
        for &at in self.at.get() {
            (at / PAGE..=(at + self.layout.size() - 1) / PAGE).for_each(|page| pages.push(page));
        }
        let pages = pages.items();
        pages.sort_unstable();
        let mut last = 0;
        for part in pages.chunks_mut(1024) {
            let mut at = [std::ptr::null(); 1024];
            let mut n = 0;
            for &mut page in part {
                if page == last {
                    continue;
                }
                at[n] = std::ptr::without_provenance(page * PAGE);
                (n, last) = (n + 1, page);
            }
            let mut nodes = [0; 1024];
            // A page that the kernel is just joining with others is nowhere for a moment.
            for _ in 0..100 {
                nodes_of_pages(&at[..n], &mut nodes[..n]).unwrap();
                if nodes[..n].iter().all(|&node| node >= 0) {
                    break;
                }
                thread::sleep(Duration::from_millis(20));
            }
            for &node in &nodes[..n] {
                counts[usize::try_from(node).expect("a touched page is on a node")] += 1;
            }
        }
    }
}

/// Blocks of every size, made by a thread on a CPU: their pages by node.
fn pages_of_a_thread(cpu: usize) -> [usize; 64] {
    on(cpu, || {
        let mut counts = [0; 64];
        let all = SIZES.map(|size| Blocks::new(size, BYTES / size));
        all.iter().for_each(|blocks| blocks.count(&mut counts));
        all.into_iter().for_each(Blocks::free);
        counts
    })
}

pub(crate) fn on<T: Send>(cpu: usize, work: impl FnOnce() -> T + Send) -> T {
    let pinned = || {
        run_on(cpu);
        work()
    };
    thread::scope(|scope| scope.spawn(pinned).join().unwrap())
}

/// The first CPU of each node that has one.
pub(crate) fn ends(t: &Topology) -> Vec<(u8, usize)> {
    t.online().iter().filter_map(|node| Some((node, t.cpus(node).next()?))).collect()
}

pub(crate) fn share(counts: &[usize; 64], right: impl Fn(u8) -> bool) -> f64 {
    let own: usize = (0..64).filter(|&n| right(n)).map(|n| counts[usize::from(n)]).sum();
    own as f64 / counts.iter().sum::<usize>() as f64
}

/// The row of a node in the statistics.
fn row(node: u8) -> NodeStats {
    let node = u64::from(node);
    stats().nodes().iter().find(|row| row.node == node).copied().unwrap_or_default()
}

pub(crate) fn again(question: &str, numa: &str) -> Command {
    let mut run = Command::new(std::env::current_exe().unwrap());
    run.arg(question).env("NEARHEAP_NUMA", numa);
    run
}

pub(crate) fn succeeds(mut run: Command) -> Output {
    let out = run.output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{run:?}: {}\n{said}", out.status);
    out
}

/// Every policy, in a process of its own.
pub(crate) fn policies() {
    let t = topology();
    let mut policies = vec!["local".to_owned(), "off".to_owned(), "interleave".to_owned()];
    policies.push("weighted".to_owned());
    for node in t.usable().iter() {
        policies.extend([format!("preferred:{node}"), format!("pinned:{node}")]);
    }
    policies.push(format!("pinned:{}", t.usable()));
    policies.push(format!("interleave:{}", t.usable()));
    let weights: Vec<_> =
        t.usable().iter().zip([3, 1, 2, 1]).map(|(n, w)| format!("{n}={w}")).collect();
    policies.push(format!("weighted:{}", weights.join(",")));
    for policy in policies {
        let mut run = again("blocks", &policy);
        if policy.starts_with("interleave") {
            without_huge_pages(&mut run);
        }
        let out = succeeds(run);
        assert_eq!(String::from_utf8_lossy(&out.stderr), "", "{policy}");
    }
}

/// With huge pages it is those that are put in turn, and too few of them here for all nodes to have as many.
fn without_huge_pages(run: &mut Command) {
    let disable = || {
        // SAFETY: the call takes numbers alone.
        let done = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
        if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: a system call alone.
    unsafe { run.pre_exec(disable) };
}

/// The blocks of threads on every node are where the policy of this process wants them.
pub(crate) fn blocks() {
    let t = topology();
    let text = std::env::var("NEARHEAP_NUMA").unwrap();
    let policy = Policy::parse(text.as_bytes()).unwrap();
    let usable = t.usable();
    for (here, cpu) in ends(&t) {
        let counts = pages_of_a_thread(cpu);
        let near = t.distance(here, t.nearest(here, usable).unwrap());
        match policy {
            Policy::Local => {
                let own = share(&counts, |n| t.nearest(here, usable) == Some(n));
                assert!(own >= 0.97, "{text} on node {here}: {own} of {counts:?}");
                let home = row(t.nearest(here, usable).unwrap());
                assert!(home.allocs > 1000 && home.frees > 1000 && home.spills == 0, "{home:?}");
            }
            // The next thread gets what this one leaves, wherever it is on.
            Policy::Off if Some(&(here, cpu)) != ends(&t).first() => {}
            Policy::Off => {
                let own = share(&counts, |n| t.distance(here, n) == near);
                assert!(own >= 0.9, "{text} on node {here}: {own} of {counts:?}");
            }
            Policy::Preferred(node) => {
                let own = share(&counts, |n| n == node);
                assert!(own >= 0.97, "{text} on node {here}: {own} of {counts:?}");
                assert_eq!(row(node).remote_frees, 0, "all threads are served from there");
            }
            Policy::Pinned(nodes) => {
                assert!(share(&counts, |n| nodes.has(n)) == 1.0, "{text}: {counts:?}");
                let near = t.nearest(here, nodes.and(usable)).unwrap();
                let own = share(&counts, |n| t.distance(here, n) == t.distance(here, near));
                assert!(own >= 0.97, "{text} on node {here}: {own} of {counts:?}");
            }
            Policy::Interleave(nodes) => {
                let nodes = nodes.and(usable);
                for n in nodes.iter() {
                    let part = share(&counts, |of| of == n) * nodes.len() as f64;
                    assert!((0.93..1.07).contains(&part), "{text} on node {here}: {counts:?}");
                }
                assert!(row(NodeStats::SEVERAL as u8).allocs > 1000, "{:?}", stats().nodes());
            }
            Policy::Weighted(weights) => {
                let sum: f64 = usable.iter().map(|n| f64::from(weights.get(n))).sum();
                for n in usable.iter().filter(|_| sum > 0.0) {
                    let wanted = f64::from(weights.get(n)) / sum;
                    let found = share(&counts, |of| of == n);
                    assert!((found - wanted).abs() < 0.15, "{text} on node {here}: {counts:?}");
                }
            }
        }
        let refused: u64 = stats().nodes().iter().map(|row| row.refused_binds).sum();
        assert_eq!(refused, 0, "{text}");
    }
}

/// A thread that has blocks in its cache goes to another node.
pub(crate) fn moved() {
    let t = topology();
    let ends = ends(&t);
    let (first, last) = (ends[0], ends[ends.len() - 1]);
    on(first.1, || {
        for (node, cpu) in [first, last, first, last] {
            run_on(cpu);
            let mut counts = [0; 64];
            let blocks = Blocks::new(48, 20_000);
            blocks.count(&mut counts);
            blocks.free();
            let own = share(&counts, |n| t.nearest(node, t.usable()) == Some(n));
            assert!(own >= 0.97, "on node {node}: {own} of {counts:?}");
        }
    });
}

fn resident_kib() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// One thread makes blocks, one on another node frees them all and makes as many.
pub(crate) fn home() {
    const COUNT: usize = 100_000;
    let t = topology();
    let mut ends = ends(&t);
    ends.retain(|(node, _)| t.usable().has(*node));
    let Some(&last) = ends.last().filter(|_| ends.len() > 1) else { return };
    for ((maker, from), (taker, to)) in [(ends[0], last), (last, ends[0])] {
        for (size, random) in [(48, true), (256, false)] {
            let before = row(maker);
            let mut made = on(from, || Blocks::new(size, COUNT));
            if random {
                made.shuffle();
            }
            let resident = resident_kib();
            let next = on(to, || {
                made.free();
                Blocks::new(size, COUNT)
            });
            let grown = resident_kib() as f64 / resident as f64;
            let mut counts = [0; 64];
            next.count(&mut counts);
            let own = share(&counts, |n| n == taker);
            let after = row(maker);
            let far = after.remote_frees - before.remote_frees;
            println!(
                "{size} B, random {random}: {:.2} % on node {taker}, RSS {grown:.2}",
                own * 100.0
            );
            assert!(own >= 0.97, "{size}: {own} of {counts:?}");
            assert!(grown < 2.0, "{size}: {grown}");
            assert!(far >= 99_000, "{size}: {far} came home");
            assert!(after.sent_home_bytes - before.sent_home_bytes >= far * 48);
            on(to, || next.free());
        }
    }
}

/// Takes free memory of a node away, but for so many bytes. What it returns is to be unmapped.
fn occupy(t: &Topology, node: u8, but: usize) -> (std::ptr::NonNull<u8>, usize) {
    let free = free_bytes(&Linux, node).unwrap() as usize;
    let len = free.saturating_sub(but) / PAGE * PAGE;
    let at = Linux.map(0, len).unwrap();
    // SAFETY: mapped above, touched within.
    unsafe {
        Linux.place(at, len, Policy::Preferred(node).place(t, node, 0).unwrap()).unwrap();
        at.write_bytes(1, len);
    }
    (at, len)
}

/// What the heap leaves free on a node: where the kernel begins to reclaim, as it tells itself, and a sixty-fourth.
fn reserve(t: &Topology, node: u8) -> usize {
    let zones = fs::read_to_string("/proc/zoneinfo").unwrap();
    let mut here = false;
    let mut pages = 0;
    for line in zones.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("Node"), Some(number)) => here = number == format!("{node},"),
            (Some("high"), Some(number)) if here => pages += number.parse::<usize>().unwrap(),
            _ => {}
        }
    }
    assert!(pages > 0, "node {node} in {zones}");
    pages * PAGE + t.memory_bytes(node) as usize / 64
}

/// A thread on a node that is nearly full goes on, on another one.
pub(crate) fn spill() {
    let t = topology();
    let ends = ends(&t);
    let Some(&(node, cpu)) = ends.iter().rev().find(|(node, _)| t.usable().has(*node)) else {
        return;
    };
    if t.usable().len() < 2 {
        return;
    }
    // Twice as much as there is room for, even if what was mapped is touched late.
    let (at, len) = occupy(&t, node, (24 << 20) + reserve(&t, node));
    let (counts, row) = on(cpu, || {
        let mut counts = [0; 64];
        let all = SIZES.map(|size| Blocks::new(size, 2 * BYTES / size));
        all.iter().for_each(|blocks| blocks.count(&mut counts));
        let row = row(node);
        all.into_iter().for_each(Blocks::free);
        (counts, row)
    });
    // SAFETY: mapped by `occupy`, used by nobody.
    unsafe { Linux.unmap(at, len).unwrap() };
    let next = t.by_distance(node, t.usable()).nth(1).unwrap();
    let (own, other) = (share(&counts, |n| n == node), share(&counts, |n| n == next));
    assert!(own > 0.1 && own < 0.9 && own + other > 0.97, "{next}: {counts:?}");
    assert!(row.spills > 0, "{row:?}");
}

/// A node is filled by a process that is pinned to it.
pub(crate) fn strict() {
    let t = topology();
    let node = t.usable().iter().min_by_key(|&node| t.memory_bytes(node)).unwrap();
    let out = succeeds(again("fill", &format!("pinned:{node}")));
    print!("{}", String::from_utf8_lossy(&out.stdout));
}

/// Allocates until an allocation fails, and goes on after.
pub(crate) fn fill() {
    let t = topology();
    let text = std::env::var("NEARHEAP_NUMA").unwrap();
    let Some(Policy::Pinned(nodes)) = Policy::parse(text.as_bytes()) else { panic!("{text}") };
    let node = nodes.first().unwrap();
    let reserve = reserve(&t, node) >> 20;
    for size in [20_000, 3 << 20] {
        let layout = Layout::from_size_align(size, 8).unwrap();
        let room = t.memory_bytes(node) as usize / size;
        let mut at = List::with_room(room);
        let full = loop {
            // SAFETY: the layout has a size.
            let block = unsafe { alloc(layout) };
            if block.is_null() {
                break free_bytes(&Linux, node).unwrap() >> 20;
            }
            // SAFETY: inside the block.
            (0..size)
                .step_by(PAGE)
                .chain([size - 1])
                .for_each(|at| unsafe { block.add(at).write(1) });
            at.push(block as usize);
        };
        let blocks = Blocks { layout, at };
        let taken = (blocks.at.get().len() * size) >> 20;
        println!("{size} B: {taken} MiB, {full} MiB free when it failed");
        assert!(full < reserve as u64 + 16, "{full} MiB were free, {reserve} are kept");
        let mut counts = [0; 64];
        blocks.count(&mut counts);
        assert!(share(&counts, |n| nodes.has(n)) == 1.0, "{counts:?}");
        assert!(taken > 32, "{size} B: {taken} MiB");
        blocks.free();
        Blocks::new(size, (16 << 20) / size).free();
        nearheap::purge();
    }
}

/// One collection on a chosen node, and one on all in turn.
pub(crate) fn chosen() {
    let mut run = again("collections", "local");
    without_huge_pages(&mut run);
    succeeds(run);
}

/// What `chosen` runs, from threads on every node.
pub(crate) fn collections() {
    let t = topology();
    for (here, cpu) in ends(&t) {
        for node in t.usable().iter() {
            let heap = NodeHeap::on(node);
            let own = on(cpu, || {
                let mut counts = [0; 64];
                for size in SIZES {
                    // SAFETY: the layout has a size.
                    let from = |layout| unsafe { heap.alloc(layout) };
                    let blocks = Blocks::take(size, (4 << 20) / size + 1, from);
                    blocks.count(&mut counts);
                    for &at in blocks.at.get() {
                        // SAFETY: allocated above, freed once.
                        unsafe { heap.dealloc(at as *mut u8, blocks.layout) };
                    }
                }
                share(&counts, |n| n == node)
            });
            assert!(own >= 0.99, "node {node} from node {here}: {own}");
        }
        let counts = on(cpu, || {
            let mut counts = [0; 64];
            let heap = NodeHeap::interleaved();
            for size in SIZES {
                // SAFETY: the layout has a size.
                let from = |layout| unsafe { heap.alloc(layout) };
                let blocks = Blocks::take(size, BYTES / size, from);
                blocks.count(&mut counts);
                for &at in blocks.at.get() {
                    // SAFETY: allocated above, freed once.
                    unsafe { heap.dealloc(at as *mut u8, blocks.layout) };
                }
            }
            counts
        });
        for node in t.usable().iter() {
            let part = share(&counts, |n| n == node) * t.usable().len() as f64;
            assert!((0.93..1.07).contains(&part), "from node {here}: {counts:?}");
        }
    }
}

/// A list with a node that there is not: one line, and `local` stands.
pub(crate) fn misfit() {
    let t = topology();
    let out = succeeds(again("one-block", "pinned:9"));
    let line = format!(
        "nearheap: NEARHEAP_NUMA=\"pinned:9\": there is no node 9; expected nodes of {}; using local\n",
        t.usable()
    );
    assert_eq!(String::from_utf8_lossy(&out.stderr), line);
    let mut quiet = again("one-block", "pinned:9");
    quiet.env("NEARHEAP_QUIET", "1");
    assert_eq!(String::from_utf8_lossy(&succeeds(quiet).stderr), "");
}

/// Makes the kernel refuse a system call to a program that is started after.
fn refuse(run: &mut Command, call: libc::c_long) {
    let filter = Filter::of([call], filter::EPERM);
    // SAFETY: system calls alone.
    unsafe { run.pre_exec(move || filter.enforce()) };
}

/// A filter of system calls as containers have it: everything goes on, and the statistics say what was refused.
pub(crate) fn refused() {
    for (call, counted) in [(libc::SYS_mbind, "mbind"), (libc::SYS_get_mempolicy, "topology")] {
        for numa in ["local", "interleave", "pinned:0"] {
            let mut run = again("without", numa);
            run.env("TEST_WITHOUT", counted);
            refuse(&mut run, call);
            assert_eq!(String::from_utf8_lossy(&succeeds(run).stderr), "", "{counted}, {numa}");
        }
        // The dump at the end shows it, once.
        let mut run = again("without", "local");
        run.env("TEST_WITHOUT", counted).env("NEARHEAP_STATS", "text");
        refuse(&mut run, call);
        let out = succeeds(run);
        let dump = String::from_utf8_lossy(&out.stderr);
        let shown = dump.lines().filter(|&line| match counted {
            "mbind" => line.ends_with(" refused binds") && !line.ends_with(" 0 refused binds"),
            _ => line == "nearheap: the system does not say what NUMA nodes there are",
        });
        assert_eq!(shown.count(), 1, "{dump}");
    }
}

/// What `refused` runs.
pub(crate) fn without() {
    let t = topology();
    let all = SIZES.map(|size| Blocks::new(size, BYTES / size));
    all.into_iter().for_each(Blocks::free);
    let s = stats();
    let refused: u64 = s.nodes().iter().map(|row| row.refused_binds).sum();
    if std::env::var("TEST_WITHOUT").unwrap() == "mbind" {
        assert!(t.usable().len() > 1 && refused > 5, "{:?}", s.nodes());
        assert_eq!(s.system.refused_topologies, 0);
    } else {
        assert_eq!((s.system.refused_topologies, refused, s.nodes().len()), (1, 0, 1));
    }
}

/// The nodes that the process may use become fewer while it runs.
pub(crate) fn shrink() {
    let t = topology();
    if t.usable().len() < 2 {
        return;
    }
    let set = |file: &str, text: &str| fs::write(format!("/cgroup/shrink/{file}"), text).unwrap();
    fs::create_dir_all("/cgroup/shrink").unwrap();
    set("cpuset.mems", &t.usable().to_string());
    set("cgroup.procs", &std::process::id().to_string());
    let ends = ends(&t);
    let use_all = || {
        for &(_, cpu) in &ends {
            pages_of_a_thread(cpu);
            nearheap::purge();
        }
    };
    use_all();
    let (first, last) = (t.usable().first().unwrap(), t.usable().iter().last().unwrap());
    set("cpuset.mems", &first.to_string());
    use_all();
    let gone: u64 = stats().nodes().iter().map(|row| row.refused_binds).sum();
    let has_cpus = ends.iter().any(|(node, _)| *node == last);
    assert!(gone > 0 || !has_cpus, "{:?}", stats().nodes());
    set("cpuset.mems", &t.usable().to_string());
    use_all();
    fs::write("/cgroup/cgroup.procs", std::process::id().to_string()).unwrap();
}

/// A child gets the blocks and the magazines of every node.
pub(crate) fn fork() {
    let t = topology();
    let ends = ends(&t);
    let mut all: Vec<Blocks> =
        ends.iter().map(|&(_, cpu)| on(cpu, || Blocks::new(320, 20_000))).collect();
    all.pop().unwrap().free();
    // SAFETY: the child uses the heap alone, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        all.into_iter().for_each(Blocks::free);
        for &(_, cpu) in &ends {
            pages_of_a_thread(cpu);
        }
        std::process::exit(0);
    }
    let mut status = 0;
    // SAFETY: the child is ours.
    unsafe { libc::waitpid(child, &mut status, 0) };
    assert_eq!(status, 0);
    all.into_iter().for_each(Blocks::free);
    let nodes: NodeSet = ends.iter().fold(NodeSet::NONE, |set, (node, _)| set.with(*node));
    assert!(!nodes.is_empty());
}
