//! A set of NUMA nodes, as a value and as text.
//! Owns: `NodeSet`. Called by: `policy`, `topology`, and the build script of nearheap, which compiles this file
//! too (as `allocator/nodes.rs`, a link); so it uses core alone.
//!
//! N1: a node is a number under `NODES_MOST`. Machines with more have nodes that are in no set.

use core::fmt;

/// How many nodes there may be, and one more than the highest number of one.
pub const NODES_MOST: usize = 64;

/// A set of nodes, by their numbers. As text it is a list such as `0-2,5`.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct NodeSet(u64);

impl NodeSet {
    /// No node.
    pub const NONE: Self = Self(0);
    /// Every number from 0 to 63, for "all that there are".
    pub const ALL: Self = Self(u64::MAX);

    /// The set of these nodes, of which each must be under 64; a higher number does not compile in a constant.
    pub const fn of(nodes: &[u8]) -> Self {
        let mut set = Self::NONE;
        let mut rest = nodes;
        while let [node, after @ ..] = rest {
            assert!((*node as usize) < NODES_MOST, "nodes have numbers from 0 to 63");
            set = set.with(*node);
            rest = after;
        }
        set
    }

    /// The set whose node n is bit n.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Bit n is node n.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// This set and one node more; a number of 64 or more changes nothing.
    pub const fn with(self, node: u8) -> Self {
        match 1_u64.checked_shl(node as u32) {
            Some(bit) => Self(self.0 | bit),
            None => self,
        }
    }

    /// Whether the node is in the set.
    pub const fn has(self, node: u8) -> bool {
        matches!(self.0.checked_shr(node as u32), Some(bits) if bits & 1 == 1)
    }

    /// The nodes that are in both.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The nodes of this set that are not in the other.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// How many nodes.
    #[inline(never)]
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether there is no node in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The lowest node.
    pub const fn first(self) -> Option<u8> {
        if self.is_empty() { None } else { Some(self.0.trailing_zeros() as u8) }
    }

    /// The nodes, ascending.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        let mut rest = self.0;
        core::iter::from_fn(move || {
            let node = Self(rest).first()?;
            rest &= rest - 1;
            Some(node)
        })
    }

    /// Reads a list such as `0-2,5`; `None` for what is not one, names no node, or names one of 64 or more.
    pub const fn parse(text: &[u8]) -> Option<Self> {
        let mut set = Self::NONE;
        let mut rest = text;
        loop {
            let Some((first, mut after)) = number(rest) else { return None };
            let mut last = first;
            if let [b'-', more @ ..] = after {
                let Some(end) = number(more) else { return None };
                (last, after) = end;
            }
            if first > last || last as usize >= NODES_MOST {
                return None;
            }
            set.0 |= (u64::MAX >> (63 - last)) & (u64::MAX << first);
            rest = match after {
                [] => return Some(set),
                [b',', more @ ..] => more,
                _ => return None,
            };
        }
    }
}

/// The number up to 255 that `text` begins with, and what follows it.
#[inline(never)] // Options are read once; the code should be small.
pub(crate) const fn number(text: &[u8]) -> Option<(u8, &[u8])> {
    let (mut number, mut rest) = (0_u32, text);
    while let [digit @ b'0'..=b'9', after @ ..] = rest {
        number = number * 10 + (*digit - b'0') as u32;
        if number > u8::MAX as u32 {
            return None;
        }
        rest = after;
    }
    if rest.len() == text.len() { None } else { Some((number as u8, rest)) }
}

impl fmt::Display for NodeSet {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut rest, mut comma) = (self.0, "");
        while rest != 0 {
            let first = rest.trailing_zeros();
            let last = first + (rest >> first).trailing_ones() - 1;
            write!(out, "{comma}{first}")?;
            if last > first {
                write!(out, "-{last}")?;
            }
            rest &= (u64::MAX << last) << 1;
            comma = ",";
        }
        Ok(())
    }
}

impl fmt::Debug for NodeSet {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{{{self}}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;
    use std::vec::Vec;

    #[test]
    fn lists_read_back() {
        for (text, shown, bits) in [
            ("0", "0", 1_u64),
            ("0-3,8", "0-3,8", 0x10f),
            ("1,0", "0-1", 3),
            ("5,5,5-6", "5-6", 0x60),
            ("63", "63", 1 << 63),
            ("0-63", "0-63", u64::MAX),
            ("62-63,0", "0,62-63", 3 << 62 | 1),
            ("007", "7", 1 << 7),
        ] {
            let set = NodeSet::parse(text.as_bytes()).unwrap();
            assert_eq!((set.bits(), set.to_string().as_str()), (bits, shown), "{text}");
            assert_eq!(NodeSet::parse(shown.as_bytes()), Some(set));
        }
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in [
            "",
            ",",
            "-",
            "1-",
            "-1",
            "1,",
            ",1",
            "1,,2",
            "3-1",
            "1-2-3",
            "64",
            "0-64",
            "4294967296",
            "99999999999",
            "1 ",
            " 1",
            "1\n",
            "a",
            "+1",
            "\0",
        ] {
            assert_eq!(NodeSet::parse(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn a_set_is_its_nodes() {
        const SET: NodeSet = NodeSet::of(&[7, 0, 63]);
        assert_eq!(SET.iter().collect::<Vec<_>>(), [0, 7, 63]);
        assert_eq!((SET.len(), SET.first(), NodeSet::NONE.first()), (3, Some(0), None));
        assert!(SET.has(63) && !SET.has(62) && !SET.has(64) && !SET.has(255));
        assert_eq!(SET.with(64), SET);
        assert_eq!(SET.and(NodeSet::of(&[7, 8])), NodeSet::of(&[7]));
        assert_eq!(SET.without(NodeSet::of(&[7, 8])), NodeSet::of(&[0, 63]));
        assert_eq!(NodeSet::NONE.to_string(), "");
    }

    #[test]
    #[should_panic(expected = "nodes have numbers from 0 to 63")]
    fn a_node_of_64_is_refused() {
        NodeSet::of(&[64]);
    }
}
