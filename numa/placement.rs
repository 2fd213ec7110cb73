//! Placement: what a policy asks of the kernel, on the machine that there is.
//! Owns: `Placement`, `Misfit`. Called by: the heap, when it maps a segment and when it finds the node of a thread.
//!
//! A1: a placement names only nodes that have memory which the process may use, as far as the topology knows.
//! A2: on a machine with one node, and with the policy `off`, there is no placement: the kernel is not asked.
//! A3: memory is bound strictly by `pinned` alone.

use crate::nodes::{NODES_MOST, NodeSet};
use crate::policy::{Policy, Weights};
use crate::topology::Topology;
use core::fmt;

/// How the kernel chooses among the nodes of a [`Placement`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The one node; another where it is full.
    Preferred,
    /// The nearest to the thread that touches the page, of these nodes; none other.
    Bind,
    /// One after the other.
    Interleave,
    /// One after the other, as often as the kernel's weights say.
    WeightedInterleave,
}

/// On which nodes the pages of a range shall be put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// How the kernel chooses.
    pub mode: Mode,
    /// From which nodes.
    pub nodes: NodeSet,
}

/// Why a policy does not fit the machine; `Display` is the end of a sentence that names the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// The machine has no node of this number.
    NoSuchNode(u8),
    /// The node has no memory.
    NoMemory(u8),
    /// The process may not use the node's memory (its cpuset says so).
    NotAllowed(u8),
}

impl fmt::Display for Misfit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchNode(node) => write!(out, "there is no node {node}"),
            Self::NoMemory(node) => write!(out, "node {node} has no memory"),
            Self::NotAllowed(node) => write!(out, "node {node} is not allowed to this process"),
        }
    }
}

impl Policy {
    /// The nodes that the policy names; [`NodeSet::ALL`], which is not a list, and weights of the system name none.
    fn named(&self) -> NodeSet {
        match self {
            Self::Local | Self::Off | Self::Interleave(NodeSet::ALL) => NodeSet::NONE,
            Self::Preferred(node) => NodeSet::NONE.with(*node),
            Self::Interleave(nodes) | Self::Pinned(nodes) => *nodes,
            Self::Weighted(weights) => weights.nodes(),
        }
    }

    /// Whether the machine has the nodes that the policy names. Where there is one node, every policy fits.
    ///
    /// # Errors
    /// The lowest node that the policy can't have.
    pub fn check(&self, topology: &Topology) -> Result<(), Misfit> {
        let missing = self.named().without(topology.usable());
        match missing.first() {
            Some(node) if topology.is_several() => Err(if !topology.online().has(node) {
                Misfit::NoSuchNode(node)
            } else if !topology.with_memory().has(node) {
                Misfit::NoMemory(node)
            } else {
                Misfit::NotAllowed(node)
            }),
            _ => Ok(()),
        }
    }

    /// The node whose free memory serves a thread on the node `here`: with policies that don't ask where a thread is, one
    /// for all.
    pub fn home(&self, topology: &Topology, here: u8) -> u8 {
        let usable = topology.usable();
        let home = match self {
            _ if !topology.is_several() => None,
            Self::Local => topology.nearest(here, usable),
            Self::Preferred(node) => Some(*node),
            Self::Pinned(nodes) => topology.nearest(here, nodes.and(usable)),
            Self::Interleave(nodes) => nodes.and(usable).first(),
            Self::Weighted(_) | Self::Off => None,
        };
        home.or(usable.first()).unwrap_or(0)
    }

    /// The placement of the `turn`-th segment that serves threads whose [`home`](Self::home) is this; `None`: the kernel is
    /// not asked for any.
    pub fn place(&self, topology: &Topology, home: u8, turn: usize) -> Option<Placement> {
        let usable = topology.usable();
        let (mode, nodes) = match self {
            _ if !topology.is_several() => return None,
            Self::Off => return None,
            Self::Local | Self::Preferred(_) => (Mode::Preferred, NodeSet::NONE.with(home)),
            Self::Interleave(nodes) => (Mode::Interleave, *nodes),
            Self::Pinned(nodes) => (Mode::Bind, *nodes),
            Self::Weighted(Weights::SYSTEM) if topology.knows_weights() => {
                (Mode::WeightedInterleave, usable)
            }
            Self::Weighted(weights) => {
                (Mode::Preferred, NodeSet::NONE.with(deal(topology, weights, turn)?))
            }
        };
        let nodes = nodes.and(usable);
        (!nodes.is_empty()).then_some(Placement { mode, nodes })
    }
}

/// The node that the `turn`-th segment goes to.
///
/// The turns are spread over the weights by the golden ratio: after any number of them, no node is far from its share,
/// and there are no long runs on one node as there would be if each took all of its turns at once.
fn deal(topology: &Topology, weights: &Weights, turn: usize) -> Option<u8> {
    /// 2^32 divided by the golden ratio.
    const STEP: u32 = 0x9e37_79b9;
    let weight = |node: u8| -> u64 {
        match *weights {
            // In MiB, whose sum over 64 nodes stays far under 2^32.
            Weights::SYSTEM => (topology.memory_bytes(node) >> 20).min(u64::from(u32::MAX) >> 6),
            _ => u64::from(weights.get(node)),
        }
    };
    let usable = topology.usable();
    let sum: u64 = usable.iter().map(weight).sum();
    let mut rest = (u64::from((turn as u32).wrapping_mul(STEP)) * sum) >> 32;
    for node in usable.iter() {
        match rest.checked_sub(weight(node)) {
            Some(more) => rest = more,
            None => return Some(node),
        }
    }
    // Every weight is 0: the sizes are not known.
    let turn = turn % usable.len().max(1);
    usable.iter().nth(turn)
}

const _: () = assert!(NODES_MOST <= 64, "the bound of the weights' sum");

#[cfg(test)]
mod tests;
