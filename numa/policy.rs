//! A NUMA policy: on which nodes memory shall lie, as a value and as text.
//! Owns: `Policy`, `Weights`. Called by: the options of nearheap, its build script, which compiles this file too (as
//! `allocator/policy.rs`, a link; so it uses core and `nodes` alone), and `placement`, which makes system calls of it.
//!
//! L1: reading is `const`, so a default that does not parse is a compile error.
//! L2: what `Display` writes, `parse` reads back as the same value.
//! L3: a policy that `is_sound` names at least one node where it must name any; whether the machine has them is for
//!     `placement` to say.

use super::nodes::{NODES_MOST, NodeSet, number};
use core::fmt;

/// On which NUMA nodes the memory of the heap lies. Without effect on a machine with one node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// On the node of the thread that allocates it. Where that is full or has no memory, on the nearest. As text: `local`.
    Local,
    /// On this node, for all threads. Where it is full, on the nearest. As text: `preferred:1`.
    Preferred(u8),
    /// Page by page on these nodes in turn; [`NodeSet::ALL`] stands for all that the process may use. As text:
    /// `interleave` or `interleave:0-2,5`.
    Interleave(NodeSet),
    /// In turn, but more often on some nodes than on others. As text: `weighted` or `weighted:0=3,1=1`.
    Weighted(Weights),
    /// On these nodes and no other: when they are full, allocations fail. As text: `pinned:0-1`.
    Pinned(NodeSet),
    /// Where the kernel and the policy of the thread put it, as with an allocator that knows nothing of nodes. As text:
    /// `off`.
    Off,
}

/// How many parts of the memory each node gets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Weights([u8; NODES_MOST]);

impl Weights {
    /// The kernel's own weights, which follow the bandwidth of each node, page by page; where it has none (before Linux
    /// 6.9), the sizes of the nodes, segment by segment.
    pub const SYSTEM: Self = Self([0; NODES_MOST]);

    /// These nodes, each with its weight, segment by segment. A node of 64 or more, one named twice, or a weight of 0 does
    /// not compile in a constant.
    pub const fn of(weights: &[(u8, u8)]) -> Self {
        let mut all = Self::SYSTEM;
        let mut rest = weights;
        while let [(node, weight), after @ ..] = rest {
            assert!(
                all.put(*node, *weight),
                "weights are nodes from 0 to 63, each once, with 1 to 255"
            );
            rest = after;
        }
        all
    }

    /// Gives one more node its weight; whether that can be.
    const fn put(&mut self, node: u8, weight: u8) -> bool {
        match self.0.split_at_mut_checked(node as usize) {
            Some((_, [slot @ 0, ..])) if weight > 0 => {
                *slot = weight;
                true
            }
            _ => false,
        }
    }

    /// The weight of a node, 0 for one that was not named.
    pub fn get(&self, node: u8) -> u8 {
        self.0.get(usize::from(node)).copied().unwrap_or(0)
    }

    /// The nodes that were named: none for [`Weights::SYSTEM`].
    pub fn nodes(&self) -> NodeSet {
        (0..NODES_MOST as u8).filter(|&n| self.get(n) > 0).fold(NodeSet::NONE, NodeSet::with)
    }

    /// Reads `N=W,...`; whether it is that.
    const fn read(&mut self, text: &[u8]) -> bool {
        let mut rest = text;
        loop {
            let Some((node, [b'=', after @ ..])) = number(rest) else { return false };
            let Some((weight, after)) = number(after) else { return false };
            if !self.put(node, weight) {
                return false;
            }
            rest = match after {
                [] => return true,
                [b',', after @ ..] => after,
                _ => return false,
            };
        }
    }
}

impl Policy {
    /// Reads a policy; `None` for what is not one. Letters in either case.
    pub const fn parse(text: &[u8]) -> Option<Self> {
        let (mut word, mut list) = (text, None);
        let mut rest = text;
        while let [byte, after @ ..] = rest {
            if *byte == b':' {
                (word, list) = (text.split_at(text.len() - rest.len()).0, Some(after));
                break;
            }
            rest = after;
        }
        let policy = if same(word, b"preferred") {
            let Some(text) = list else { return None };
            let Some((node, [])) = number(text) else { return None };
            Self::Preferred(node)
        } else if same(word, b"weighted") {
            let mut weights = Weights::SYSTEM;
            if let Some(text) = list
                && !weights.read(text)
            {
                return None;
            }
            Self::Weighted(weights)
        } else {
            let nodes = match list {
                Some(text) => match NodeSet::parse(text) {
                    Some(nodes) => nodes,
                    None => return None,
                },
                None => NodeSet::ALL,
            };
            if same(word, b"interleave") {
                Self::Interleave(nodes)
            } else if list.is_some() && same(word, b"pinned") {
                Self::Pinned(nodes)
            } else if list.is_none() && same(word, b"local") {
                Self::Local
            } else if list.is_none() && same(word, b"off") {
                Self::Off
            } else {
                return None;
            }
        };
        if policy.is_sound() { Some(policy) } else { None }
    }

    /// Whether there can be a machine for it (L3).
    pub const fn is_sound(&self) -> bool {
        match self {
            Self::Preferred(node) => (*node as usize) < NODES_MOST,
            Self::Interleave(nodes) | Self::Pinned(nodes) => !nodes.is_empty(),
            Self::Local | Self::Weighted(_) | Self::Off => true,
        }
    }
}

/// Whether two texts are the same but for the case of ASCII letters.
#[doc(hidden)]
#[inline(never)] // As `number`.
pub const fn same(left: &[u8], right: &[u8]) -> bool {
    let (mut left, mut right) = (left, right);
    while let ([l, left_after @ ..], [r, right_after @ ..]) = (left, right) {
        if !l.eq_ignore_ascii_case(r) {
            return false;
        }
        (left, right) = (left_after, right_after);
    }
    left.is_empty() && right.is_empty()
}

impl fmt::Display for Policy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => out.write_str("local"),
            Self::Preferred(node) => write!(out, "preferred:{node}"),
            Self::Interleave(NodeSet::ALL) => out.write_str("interleave"),
            Self::Interleave(nodes) => write!(out, "interleave:{nodes}"),
            Self::Weighted(weights) => write!(out, "weighted{weights}"),
            Self::Pinned(nodes) => write!(out, "pinned:{nodes}"),
            Self::Off => out.write_str("off"),
        }
    }
}

/// With the colon in front, or nothing for [`Weights::SYSTEM`].
impl fmt::Display for Weights {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut mark = ':';
        for (node, weight) in self.0.iter().enumerate().filter(|(_, weight)| **weight > 0) {
            write!(out, "{mark}{node}={weight}")?;
            mark = ',';
        }
        Ok(())
    }
}

impl fmt::Debug for Weights {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Weights({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn accepted_text_reads_back() {
        let list = |text: &str| NodeSet::parse(text.as_bytes()).unwrap();
        for (text, shown, policy) in [
            ("local", "local", Policy::Local),
            ("LOCAL", "local", Policy::Local),
            ("off", "off", Policy::Off),
            ("preferred:0", "preferred:0", Policy::Preferred(0)),
            ("Preferred:63", "preferred:63", Policy::Preferred(63)),
            ("interleave", "interleave", Policy::Interleave(NodeSet::ALL)),
            ("interleave:1,0", "interleave:0-1", Policy::Interleave(list("0-1"))),
            ("interleave:0-3,8", "interleave:0-3,8", Policy::Interleave(list("0-3,8"))),
            ("weighted", "weighted", Policy::Weighted(Weights::SYSTEM)),
            (
                "weighted:1=1,0=3",
                "weighted:0=3,1=1",
                Policy::Weighted(Weights::of(&[(0, 3), (1, 1)])),
            ),
            ("weighted:63=255", "weighted:63=255", Policy::Weighted(Weights::of(&[(63, 255)]))),
            ("pinned:1", "pinned:1", Policy::Pinned(list("1"))),
            ("pinned:0,2", "pinned:0,2", Policy::Pinned(list("0,2"))),
        ] {
            assert_eq!(Policy::parse(text.as_bytes()), Some(policy), "{text}");
            assert_eq!(policy.to_string(), shown);
            assert_eq!(Policy::parse(shown.as_bytes()), Some(policy), "{shown}");
        }
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        for text in [
            "",
            "on",
            "1",
            "none",
            "local ",
            " local",
            "local:0",
            "locals",
            "off:1",
            "preferred",
            "preferred:",
            "preferred:64",
            "preferred:256",
            "preferred:0,1",
            "preferred:-1",
            "preferred=1",
            "interleave:",
            "interleave:64",
            "interleave:0-",
            "interleaved",
            "weighted:",
            "weighted:0",
            "weighted:0=",
            "weighted:0=0",
            "weighted:0=256",
            "weighted:0=1,",
            "weighted:0=1,0=1",
            "weighted:64=1",
            "weighted:0=1 1=1",
            "pinned",
            "pinned:",
            "pinned:all",
            "pinned:\0",
        ] {
            assert_eq!(Policy::parse(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn what_no_machine_can_do_is_not_sound() {
        for policy in [
            Policy::Preferred(64),
            Policy::Interleave(NodeSet::NONE),
            Policy::Pinned(NodeSet::NONE),
        ] {
            assert!(!policy.is_sound(), "{policy:?}");
        }
        assert_eq!(Weights::of(&[(2, 9)]).nodes(), NodeSet::of(&[2]));
        assert_eq!(Weights::SYSTEM.nodes(), NodeSet::NONE);
    }
}
