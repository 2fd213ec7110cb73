//! Homes: which part of the heap serves a thread, and where a part's memory lies.
//! Owns: `Homes`. Called by: `start` (once), the cold paths of `heap` and `granule`.
//!
//! | part | its memory lies |
//! |---|---|
//! | 0 to 63 | on the node of that number, or with `pinned` on the nodes of the list, that one first |
//! | `SPREAD` | where the policy spreads it: `interleave`, `weighted` |
//! | `TURNS` | page by page on all nodes in turn |
//!
//! J1: with one node, with `off`, and before `settle` there is the part 0 alone and `is_several` is false; then nothing
//!     here is asked, and the kernel neither.
//! J2: what `settle` writes is read only once `is_several` says so: its store pairs with the acquiring load.
//! J3: all zeros is a value, so it can be a part of a static that takes no room in a file.

use crate::part::{PARTS, SPREAD, TURNS};
use crate::policy::Policy;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use nearheap_numa::nodes::NODES_MOST;
use nearheap_numa::placement::{Misfit, Placement};
use nearheap_numa::topology::Standing;
use nearheap_numa::{NodeSet, Os, Topology};

/// What is known once there are several nodes.
#[derive(Debug)]
struct Known {
    topology: Topology,
    policy: Policy,
    /// By the node of a thread, the part that serves it.
    homes: [u8; NODES_MOST],
    /// The nodes that memory may be on: all that are usable, or with `pinned` the listed ones.
    nodes: NodeSet,
}

/// Which part serves whom.
#[derive(Debug)]
pub(crate) struct Homes {
    several: AtomicBool,
    known: UnsafeCell<Known>,
    /// Times that the kernel did not say what nodes there are.
    refusals: AtomicU64,
}

// SAFETY: what is behind the cell is written before `several` is set, by whoever starts the heap, and only read after (J2).
unsafe impl Sync for Homes {}

impl Homes {
    pub(crate) const fn new() -> Self {
        let known = Known {
            topology: Topology::new(),
            policy: Policy::Local,
            homes: [0; NODES_MOST],
            nodes: NodeSet::NONE,
        };
        Self {
            several: AtomicBool::new(false),
            known: UnsafeCell::new(known),
            refusals: AtomicU64::new(0),
        }
    }

    /// Whether there are several parts.
    #[inline]
    pub(crate) fn is_several(&self) -> bool {
        !cfg!(loom) && self.several.load(Ordering::Acquire)
    }

    fn known(&self) -> Option<&Known> {
        // SAFETY: nobody writes any more (J2).
        self.is_several().then(|| unsafe { &*self.known.get() })
    }

    /// Finds out what nodes there are. A policy that does not fit them is told to `misfit`, with the nodes that there
    /// are, and `local` stands.
    ///
    /// # Safety
    /// Before the heap serves anyone, and once.
    #[cold]
    pub(crate) unsafe fn settle(
        &self,
        os: &impl Os,
        policy: Policy,
        misfit: &mut dyn FnMut(Misfit, NodeSet),
    ) {
        if policy == Policy::Off {
            return;
        }
        // SAFETY: the caller's promise: there is no other reference.
        let known = unsafe { &mut *self.known.get() };
        known.topology.load(os);
        if let Standing::Refused(_) | Standing::Unreadable = known.topology.standing() {
            self.refusals.store(1, Ordering::Relaxed);
        }
        if !known.topology.is_several() {
            return;
        }
        let usable = known.topology.usable();
        known.policy = policy;
        if let Err(why) = policy.check(&known.topology) {
            misfit(why, usable);
            known.policy = Policy::Local;
        }
        known.nodes = match known.policy {
            Policy::Pinned(nodes) => nodes.and(usable),
            _ => usable,
        };
        for (here, home) in known.homes.iter_mut().enumerate() {
            *home = match known.policy {
                Policy::Interleave(_) | Policy::Weighted(_) => SPREAD as u8,
                policy => policy.home(&known.topology, here as u8),
            };
        }
        self.several.store(PARTS > 1, Ordering::Release);
    }

    /// The part that serves a thread on the CPU that this one runs on.
    #[cold]
    pub(crate) fn here(&self, os: &impl Os) -> usize {
        let Some(known) = self.known() else { return 0 };
        let node = usize::from(known.topology.here(os));
        known.homes.get(node).copied().map_or(0, usize::from)
    }

    /// The part of a node's memory; of the nearest, where the heap may not use that node's.
    pub(crate) fn of_node(&self, node: u8) -> usize {
        let near = self.known().and_then(|k| k.topology.nearest(node, k.nodes));
        near.map_or(0, usize::from)
    }

    /// The part of memory on all nodes in turn; with `pinned`, on the listed ones.
    pub(crate) fn turns(&self) -> usize {
        if self.is_several() { TURNS } else { 0 }
    }

    /// Where the `turn`-th mapping of a part lies.
    pub(crate) fn placement(&self, part: usize, turn: usize) -> Option<Placement> {
        let Known { topology, policy, nodes, .. } = self.known()?;
        let node = NodeSet::NONE.with(part as u8);
        let policy = match (part, *policy) {
            (SPREAD, policy) => policy,
            (TURNS, _) => Policy::Interleave(*nodes),
            (_, policy @ Policy::Pinned(_)) => policy,
            _ => Policy::Preferred(node.first()?),
        };
        policy.place(topology, part as u8, turn)
    }

    /// Of a part on one node, that node and what is known of it.
    pub(crate) fn node(&self, part: usize) -> Option<(u8, &Topology)> {
        let known = self.known()?;
        (part < NODES_MOST).then_some((part as u8, &known.topology))
    }

    /// The parts of other nodes that may serve in place of this one, the nearest first.
    pub(crate) fn others(&self, part: usize) -> impl Iterator<Item = usize> {
        let found = self.known().zip(self.node(part)).map(|(known, (node, topology))| {
            topology.by_distance(node, known.nodes.without(NodeSet::NONE.with(node)))
        });
        found.into_iter().flatten().map(usize::from)
    }

    /// Whether memory may be on the listed nodes alone.
    pub(crate) fn is_strict(&self) -> bool {
        matches!(self.known(), Some(Known { policy: Policy::Pinned(_), .. }))
    }

    /// Times that the kernel did not say what nodes there are.
    pub(crate) fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

    /// The node of the one part that there is, where there is one.
    pub(crate) fn only(&self) -> u8 {
        // SAFETY: not written since the heap's start (J2).
        let topology = unsafe { &(*self.known.get()).topology };
        topology.usable().first().unwrap_or(0)
    }
}
