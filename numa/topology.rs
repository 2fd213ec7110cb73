//! The topology: which NUMA nodes there are, with their CPUs, memory and distances, and which the process may use.
//! Owns: `Topology`. Called by: the heap, once at its start; the program, when it asks.
//!
//! Everything comes from one system call and the files below `/sys/devices/system/node`, whose text is read by pure
//! functions, part by part: a file may have any length, and nothing here needs more than 1 KiB of stack.
//!
//! T1: one node is found by the one call, and then no file is read.
//! T2: what can't be asked or read is not guessed: the topology is then that of one node, and `standing` says why. Only
//!     what is missing of a single node has a stand-in: the usual distances, no CPUs, memory of unknown size.
//! T3: nodes of 64 and more and CPUs of `CPUS_MOST` and more are left out.
//! T4: all zeros is a topology: that of the node 0. So it can be a part of a static that takes no room in a file.

use crate::nodes::{NODES_MOST, NodeSet};
use crate::os::{Errno, Os};
use core::ffi::CStr;

/// CPUs that a topology has room for, by number.
pub const CPUS_MOST: usize = 2048;

/// The distance of a node to itself, in the kernel's units.
const NEAR: u8 = 10;
/// The distance of two nodes for which none is told.
const FAR: u8 = 20;

/// What is known of the nodes, and why not more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// The process may use the memory of one node.
    #[default]
    One,
    /// It may use several.
    Several,
    /// The kernel did not say which: it knows no nodes, or a filter of system calls forbids the question.
    Refused(Errno),
    /// There are several, but the files that tell of them are missing or not as they should be.
    Unreadable,
}

/// The NUMA nodes of the machine, as they were when this was read.
#[derive(Clone, Debug)]
pub struct Topology {
    standing: Standing,
    online: NodeSet,
    allowed: NodeSet,
    with_memory: NodeSet,
    knows_weights: bool,
    /// KiB that the kernel keeps free on all nodes together.
    kept_kib: u32,
    /// Bytes of each node; 0 where it has none and where its size is not known.
    memory: [u64; NODES_MOST],
    /// From, to; 0 where none is told.
    distances: [[u8; NODES_MOST]; NODES_MOST],
    /// Of each CPU, its node plus one; 0 where there is no such CPU.
    cpus: [u8; CPUS_MOST],
}

const _: () = assert!(NODES_MOST < u8::MAX as usize && size_of::<Topology>() < 8 << 10);

impl Topology {
    /// That of one node, before anything was asked.
    pub const fn new() -> Self {
        Self {
            standing: Standing::One,
            online: NodeSet::NONE,
            allowed: NodeSet::NONE,
            with_memory: NodeSet::NONE,
            knows_weights: false,
            kept_kib: 0,
            memory: [0; NODES_MOST],
            distances: [[0; NODES_MOST]; NODES_MOST],
            cpus: [0; CPUS_MOST],
        }
    }

    /// Asks how many nodes the process may use and, only where it is more than one, what they are (T1).
    pub fn load(&mut self, os: &impl Os) {
        self.allow(os);
        if self.is_several() {
            self.knows_weights = os.knows_weights();
            let _ = read_list(os, c"/proc/sys/vm/min_free_kbytes", b',', &mut |kib, _| {
                self.kept_kib = kib;
            });
            if self.read(os).is_none() {
                self.shrink(Standing::Unreadable);
            }
        }
    }

    /// Reads all that there is to know, on a machine with one node too: for people, not for the heap.
    pub fn survey(&mut self, os: &impl Os) {
        self.allow(os);
        self.knows_weights = os.knows_weights();
        if self.read(os).is_none() && self.is_several() {
            self.shrink(Standing::Unreadable);
        }
    }

    /// Finds the nodes that the process may use: those and no more are known then.
    fn allow(&mut self, os: &impl Os) {
        let (standing, allowed) = match os.allowed_nodes() {
            Ok(nodes) if nodes.len() > 1 => (Standing::Several, nodes),
            Ok(nodes) => (Standing::One, nodes),
            Err(errno) => (Standing::Refused(errno), NodeSet::NONE),
        };
        self.allowed = allowed;
        self.shrink(standing);
        if standing == Standing::Several {
            (self.online, self.allowed, self.with_memory) = (allowed, allowed, allowed);
        }
    }

    /// Forgets everything but one node.
    fn shrink(&mut self, standing: Standing) {
        let one = NodeSet::NONE.with(self.allowed.first().unwrap_or(0));
        self.standing = standing;
        (self.online, self.allowed, self.with_memory) = (one, one, one);
        self.memory.fill(0);
        self.distances.as_flattened_mut().fill(0);
        self.cpus.fill(0);
    }

    /// Reads the files. `None`: there is no list of nodes, or one without those that the process may use.
    fn read(&mut self, os: &impl Os) -> Option<()> {
        let online = self.read_online(os)?;
        if self.standing == Standing::Several && !self.allowed.without(online).is_empty() {
            return None;
        }
        self.online = online;
        for node in online.iter() {
            self.read_memory(os, node);
            self.read_distances(os, node);
            self.read_cpus(os, node);
        }
        Some(())
    }

    fn read_online(&self, os: &impl Os) -> Option<NodeSet> {
        let mut online = NodeSet::NONE;
        read_list(os, c"/sys/devices/system/node/online", b',', &mut |first, last| {
            (first..=last.min(NODES_MOST as u32 - 1)).for_each(|n| online = online.with(n as u8));
        })?;
        (!online.is_empty()).then_some(online)
    }

    #[inline(never)]
    fn read_memory(&mut self, os: &impl Os, node: u8) {
        let bytes = memory_field(os, node, b"MemTotal:");
        if let Some(slot) = self.memory.get_mut(usize::from(node)) {
            *slot = bytes.unwrap_or(0);
        }
        let one = NodeSet::NONE.with(node);
        // What the process may use has memory, whatever a file doesn't say.
        let has = bytes.map_or(self.allowed.has(node), |bytes| bytes > 0);
        self.with_memory =
            if has { self.with_memory.with(node) } else { self.with_memory.without(one) };
    }

    /// A line of distances, to each node that is online.
    #[inline(never)]
    fn read_distances(&mut self, os: &impl Os, from: u8) {
        let Some(row) = self.distances.get_mut(usize::from(from)) else { return };
        let mut nodes = self.online.iter();
        let told = read_list(os, Path::of(from, b"distance").get(), b' ', &mut |distance, _| {
            let to = nodes.next().map_or(NODES_MOST, usize::from);
            if let Some(slot) = row.get_mut(to) {
                *slot = u8::try_from(distance).unwrap_or(u8::MAX);
            }
        });
        if told.is_none() {
            row.fill(0);
        }
    }

    #[inline(never)]
    fn read_cpus(&mut self, os: &impl Os, node: u8) {
        let cpus = &mut self.cpus;
        // Where it isn't told, or told badly, the CPUs read so far stay.
        let _ = read_list(os, Path::of(node, b"cpulist").get(), b',', &mut |first, last| {
            let end = (last as usize).saturating_add(1).min(CPUS_MOST);
            for slot in cpus.get_mut(first as usize..end).unwrap_or_default() {
                *slot = node + 1;
            }
        });
    }

    /// What is known, and why not more.
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// Whether the process may use the memory of several nodes, and they are known.
    #[inline]
    pub fn is_several(&self) -> bool {
        self.standing == Standing::Several
    }

    /// The nodes that there are.
    pub fn online(&self) -> NodeSet {
        self.online
    }

    /// The nodes whose memory the process may use.
    pub fn allowed(&self) -> NodeSet {
        self.allowed
    }

    /// The nodes that have memory.
    pub fn with_memory(&self) -> NodeSet {
        self.with_memory
    }

    /// The nodes that have memory which the process may use.
    pub fn usable(&self) -> NodeSet {
        self.with_memory.and(self.allowed)
    }

    /// Whether the kernel can interleave by weights (since Linux 6.9).
    pub fn knows_weights(&self) -> bool {
        self.knows_weights
    }

    /// Bytes of the node's memory, used or free; 0 where that is not known.
    pub fn memory_bytes(&self, node: u8) -> u64 {
        self.memory.get(usize::from(node)).copied().unwrap_or(0)
    }

    /// Bytes that the kernel keeps free on the node: it looks on others before it takes them. 0 where that is not known, or
    /// there is one node.
    ///
    /// Each node keeps a share by its size, and the kernel begins to reclaim at half as much again.
    pub fn kept_free(&self, node: u8) -> u64 {
        let mib = |node| self.memory_bytes(node) >> 20;
        let all: u64 = self.online.iter().map(mib).sum();
        let kept = u64::from(self.kept_kib).saturating_mul(mib(node)) / all.max(1);
        (kept + kept / 2) << 10
    }

    /// How far a node's memory is from another node's CPUs, as the kernel tells it: 10 is near, 20 takes twice the time,
    /// 255 can't be reached.
    pub fn distance(&self, from: u8, to: u8) -> u8 {
        let row = self.distances.get(usize::from(from));
        match row.and_then(|row| row.get(usize::from(to))).copied().unwrap_or(0) {
            0 if from == to => NEAR,
            0 => FAR,
            told => told,
        }
    }

    /// The node of a CPU; `None` for one that isn't known.
    #[inline]
    pub fn node_of_cpu(&self, cpu: usize) -> Option<u8> {
        self.cpus.get(cpu)?.checked_sub(1)
    }

    /// The CPUs of a node, by their numbers, ascending.
    pub fn cpus(&self, node: u8) -> impl Iterator<Item = usize> {
        let all = self.cpus.iter().enumerate();
        all.filter(move |(_, slot)| slot.checked_sub(1) == Some(node)).map(|(cpu, _)| cpu)
    }

    /// The node that the calling thread runs on; where that can't be told, the first whose memory may be used.
    pub fn here(&self, os: &impl Os) -> u8 {
        let told = os.cpu().and_then(|cpu| self.node_of_cpu(cpu));
        told.or(self.usable().first()).unwrap_or(0)
    }

    /// Of some nodes the nearest to `from`; the lowest, of several as near.
    pub fn nearest(&self, from: u8, among: NodeSet) -> Option<u8> {
        // A node comes first for its own CPUs, even where another is told to be as near.
        among.iter().min_by_key(|&to| (self.distance(from, to), from != to))
    }

    /// Some nodes, the nearest to `from` first: where memory spills to.
    pub fn by_distance(&self, from: u8, among: NodeSet) -> impl Iterator<Item = u8> {
        let mut rest = among;
        core::iter::from_fn(move || {
            let next = self.nearest(from, rest)?;
            rest = rest.without(NodeSet::NONE.with(next));
            Some(next)
        })
    }
}

impl Default for Topology {
    fn default() -> Self {
        Self::new()
    }
}

/// Bytes of the node's memory that are free now, caches of files not counted; `None` where that can't be read.
pub fn free_bytes(os: &impl Os, node: u8) -> Option<u64> {
    memory_field(os, node, b"MemFree:")
}

/// Bytes of the node's memory that the kernel can hand out without writing anything to swap: what is free, and what is
/// cached of files; `None` where that can't be read.
pub fn available_bytes(os: &impl Os, node: u8) -> Option<u64> {
    let mut found = None;
    look_at_memory(os, node, &mut |part| {
        let cached = |name: &[u8]| field(part, name).unwrap_or(0);
        found = field(part, b"MemFree:")
            .map(|free| free.saturating_add(cached(b"Active(file):") + cached(b"Inactive(file):")));
    });
    found
}

/// The name of a node's file, terminated.
struct Path([u8; 64]);

impl Path {
    fn of(node: u8, file: &[u8]) -> Self {
        let mut path = [0; 64];
        let digits = [b'0' + node / 10 % 10, b'0' + node % 10];
        let digits = if node < 10 { digits.get(1..) } else { digits.get(..) };
        let mut rest = path.iter_mut();
        for part in [b"/sys/devices/system/node/node", digits.unwrap_or_default(), b"/", file] {
            part.iter().zip(rest.by_ref()).for_each(|(from, to)| *to = *from);
        }
        Self(path)
    }

    fn get(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or_default()
    }
}

/// Hands every range of a file's list to `each`. `None`: the file can't be read or holds no list, of which a part may have
/// been handed out.
#[inline(never)]
fn read_list(
    os: &impl Os,
    path: &CStr,
    separator: u8,
    each: &mut dyn FnMut(u32, u32),
) -> Option<()> {
    let mut list = List { separator, first: None, number: None, state: State::Empty };
    os.read(path, &mut |part| {
        for &byte in part {
            if let Some((first, last)) = list.feed(byte) {
                each(first, last);
            }
        }
        true
    })
    .ok()?;
    if let Some((first, last)) = list.end() {
        each(first, last);
    }
    (list.state != State::Bad).then_some(())
}

/// A reader of a file with one line, which is empty or a list such as `0-3,8`: byte by byte, so that a file of any length
/// goes through a small buffer.
///
/// | state | what was read |
/// |---|---|
/// | `Empty` | nothing yet |
/// | `Inside` | a part of a list |
/// | `Ended` | a whole line |
/// | `Bad` | what no list begins with |
struct List {
    separator: u8,
    first: Option<u32>,
    number: Option<u32>,
    state: State,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Empty,
    Inside,
    Ended,
    Bad,
}

impl List {
    /// The range that this byte completes.
    #[inline(never)]
    fn feed(&mut self, byte: u8) -> Option<(u32, u32)> {
        if self.state == State::Empty && byte == b'\n' {
            self.state = State::Ended;
            return None;
        }
        let inside = matches!(self.state, State::Empty | State::Inside);
        self.state = if inside { State::Inside } else { State::Bad };
        match (byte, self.number) {
            _ if !inside => None,
            (b'0'..=b'9', before) => {
                let tens = before.unwrap_or(0).checked_mul(10);
                self.number = tens.and_then(|tens| tens.checked_add(u32::from(byte - b'0')));
                if self.number.is_none() {
                    self.state = State::Bad;
                }
                None
            }
            (b'-', Some(first)) if self.first.is_none() => {
                (self.first, self.number) = (Some(first), None);
                None
            }
            (b'\n', _) => self.end(),
            (separator, _) if separator == self.separator => self.range(),
            _ => {
                self.state = State::Bad;
                None
            }
        }
    }

    /// The range that the end of the line completes.
    fn end(&mut self) -> Option<(u32, u32)> {
        if self.state != State::Inside {
            return None;
        }
        self.state = State::Ended;
        self.range()
    }

    #[inline(never)]
    fn range(&mut self) -> Option<(u32, u32)> {
        let (first, last) = (self.first.take(), self.number.take());
        match (first.or(last), last) {
            (Some(first), Some(last)) if first <= last => Some((first, last)),
            _ => {
                self.state = State::Bad;
                None
            }
        }
    }
}

/// A line of a node's `meminfo`, in bytes: one of its first, so that only the first part of the file is read.
#[inline(never)]
fn memory_field(os: &impl Os, node: u8, name: &[u8]) -> Option<u64> {
    let mut found = None;
    look_at_memory(os, node, &mut |part| found = field(part, name));
    found
}

/// Hands the first part of a node's `meminfo` to `look`: the first ten lines are in it.
fn look_at_memory(os: &impl Os, node: u8, look: &mut dyn FnMut(&[u8])) {
    let _ = os.read(Path::of(node, b"meminfo").get(), &mut |part| {
        look(part);
        false
    });
}

/// The number in a line such as `Node 0 MemTotal:       2031356 kB`, in bytes.
#[inline(never)]
fn field(text: &[u8], name: &[u8]) -> Option<u64> {
    let mut rest = text;
    let named = |rest: &[u8]| rest.strip_prefix(b" ").is_some_and(|rest| rest.starts_with(name));
    while !named(rest) {
        rest = rest.get(1..)?;
    }
    let mut rest = rest.get(1 + name.len()..)?.strip_prefix(b" ")?;
    while let [b' ', after @ ..] = rest {
        rest = after;
    }
    let mut kib = 0_u64;
    while let [digit @ b'0'..=b'9', after @ ..] = rest {
        kib = kib.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
        rest = after;
    }
    if rest.starts_with(b" kB") { kib.checked_mul(1024) } else { None }
}

#[cfg(test)]
mod tests;
