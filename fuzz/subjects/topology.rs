//! What a kernel may write in the files about its NUMA nodes: whatever it is, the topology that is read from it holds
//! together, and is the same in whatever parts the text comes.
//! Called by: the fuzz target, and `tests/fuzz`, which replays what was found.
//!
//! The input is a byte that says how the files are cut into parts, two bytes of nodes that the process may use, and the
//! texts of the files, one after the other, each ended by a zero.

use nearheap_numa::os::{Errno, Os};
use nearheap_numa::{NodeSet, Topology};
use std::ffi::CStr;
use std::ptr::NonNull;

struct Machine<'i> {
    allowed: NodeSet,
    part: usize,
    texts: Vec<&'i [u8]>,
}

const REFUSED: Errno = Errno(12);

impl<'i> Machine<'i> {
    fn new(input: &'i [u8]) -> Option<Self> {
        let (&[part, low, high], texts) = input.split_first_chunk()?;
        Some(Self {
            // Nodes of both ends of the set.
            allowed: NodeSet::from_bits(u64::from(low) | u64::from(high) << 56),
            part: usize::from(part).max(1),
            texts: texts.split(|&byte| byte == 0).collect(),
        })
    }

    /// The text of a file: each node's three files are others, as long as there are texts.
    fn text(&self, path: &[u8]) -> Option<&'i [u8]> {
        let name = path.strip_prefix(b"/sys/devices/system/node/");
        let i = match name {
            None => 0,
            Some(b"online") => 1,
            Some(name) => {
                let digits = name.get(4..)?.iter().take_while(|d| d.is_ascii_digit());
                let node = digits.fold(0, |n, d| n * 10 + usize::from(d - b'0'));
                let file = match name.rsplit(|&byte| byte == b'/').next()? {
                    b"meminfo" => 0,
                    b"distance" => 1,
                    _ => 2,
                };
                2 + (node * 3 + file) % self.texts.len().saturating_sub(2).max(1)
            }
        };
        self.texts.get(i).copied()
    }
}

// SAFETY: it maps nothing.
unsafe impl Os for Machine<'_> {
    fn page_size(&self) -> usize {
        4096
    }

    fn hint(&self) -> usize {
        0
    }

    fn now_ms(&self) -> u64 {
        0
    }

    fn map(&self, _: usize, _: usize) -> Result<NonNull<u8>, Errno> {
        Err(REFUSED)
    }

    unsafe fn unmap(&self, _: NonNull<u8>, _: usize) -> Result<(), Errno> {
        Err(REFUSED)
    }

    unsafe fn purge(&self, _: NonNull<u8>, _: usize) -> Result<(), Errno> {
        Err(REFUSED)
    }

    unsafe fn advise_huge(&self, _: NonNull<u8>, _: usize, _: bool) -> Result<(), Errno> {
        Err(REFUSED)
    }

    unsafe fn remap(
        &self,
        _: NonNull<u8>,
        _: usize,
        _: usize,
        _: Option<NonNull<u8>>,
    ) -> Result<NonNull<u8>, Errno> {
        Err(REFUSED)
    }

    fn allowed_nodes(&self) -> Result<NodeSet, Errno> {
        if self.allowed.is_empty() { Err(REFUSED) } else { Ok(self.allowed) }
    }

    fn read(&self, path: &CStr, each: &mut dyn FnMut(&[u8]) -> bool) -> Result<(), Errno> {
        let text = self.text(path.to_bytes()).ok_or(REFUSED)?;
        // Of `meminfo` the first part counts, so that is always whole.
        let whole = path.to_bytes().ends_with(b"meminfo");
        let part = if whole { text.len().max(1) } else { self.part };
        let _ = text.chunks(part).all(each);
        Ok(())
    }
}

fn check(topology: &Topology, may_use: NodeSet) {
    let (online, usable) = (topology.online(), topology.usable());
    assert!(!online.is_empty() && usable.without(online).is_empty());
    assert!(topology.allowed().without(may_use).len() <= 1, "more than is allowed");
    if !topology.is_several() {
        assert_eq!(topology.allowed().len(), 1);
    }
    for from in online.with(0).with(63).iter() {
        assert!((0..64).all(|to| topology.distance(from, to) > 0));
        if !online.has(from) {
            assert_eq!(topology.cpus(from).next(), None, "CPUs of node {from}, which is not there");
        }
        let order: Vec<_> = topology.by_distance(from, usable).collect();
        assert_eq!(order.len(), usable.len());
        let far = |&to: &u8| topology.distance(from, to);
        assert!(order.is_sorted_by_key(far), "{order:?} from {from}");
        assert_eq!(topology.nearest(from, usable), order.first().copied());
        for cpu in topology.cpus(from).take(100) {
            assert_eq!(topology.node_of_cpu(cpu), Some(from));
        }
    }
}

/// Both say the same.
fn check_same(a: &Topology, b: &Topology) {
    assert_eq!((a.standing(), a.online(), a.usable()), (b.standing(), b.online(), b.usable()));
    for node in 0..64 {
        assert_eq!(a.memory_bytes(node), b.memory_bytes(node), "memory of {node}");
        assert_eq!(a.kept_free(node), b.kept_free(node), "kept free of {node}");
        let differs = (0..64).find(|&to| a.distance(node, to) != b.distance(node, to));
        assert_eq!(differs, None, "distance from {node}");
    }
    assert_eq!((0..2048).find(|&cpu| a.node_of_cpu(cpu) != b.node_of_cpu(cpu)), None);
}

/// Runs one input.
pub(crate) fn try_input(input: &[u8]) {
    let Some(mut machine) = Machine::new(input) else { return };
    let read = |machine: &Machine<'_>, all: bool| {
        let mut topology = Box::new(Topology::new());
        if all {
            topology.survey(machine)
        } else {
            topology.load(machine)
        }
        topology
    };
    let loaded = read(&machine, false);
    check(&loaded, machine.allowed);
    let surveyed = read(&machine, true);
    // On a machine with one node, people are told of all that there are.
    if loaded.is_several() {
        assert_eq!(loaded.online(), surveyed.online());
    }
    machine.part = usize::MAX;
    check_same(&read(&machine, false), &loaded);
}
