//! OpenMetrics 1.0.
//! Owns: the families, their help, and what a prefix may be. Called by: `Snapshot::write_openmetrics`.
//!
//! O1: a family's lines stand together: TYPE, UNIT where the name ends in `_bytes`, HELP, then its samples.
//!     A family without samples is left out, since some readers reject it.
//! O2: samples of counters end in `_total`, those of the info in `_info`; no two families share a name.
//! O3: all samples of a family have the same labels; their values are numbers and words of our own, so that nothing
//!     needs an escape. A label without a value is written empty, which means the same as its absence.

use super::{NodeName, cut};
use crate::rows::{ClassStats, Totals};
use crate::snapshot::Snapshot;
use core::fmt::{self, Write};

/// The prefix of names when the program asks for no other.
pub const DEFAULT_PREFIX: &str = "allocator";

/// Whether names may begin with `prefix`: an ASCII letter or `_`, then letters, digits and `_`. The format would also
/// allow colons, but they are kept for the names that a monitoring server computes.
pub fn is_prefix(prefix: &str) -> bool {
    !prefix.starts_with(|c: char| c.is_ascii_digit())
        && !prefix.is_empty()
        && prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Gauge,
    Counter,
}
use Kind::{Counter, Gauge};

/// A family: its name without the prefix, and its help.
struct Family {
    kind: Kind,
    name: &'static str,
    help: &'static str,
}

/// Families of one kind, a line for each, of its name and its help: text takes less room in a program than tables do.
struct List(Kind, &'static str);

const GAUGES: List = List(
    Gauge,
    "allocated_bytes Bytes in the hands of the program, in sizes of classes.
active_bytes Bytes of pages with blocks, in use or cached.
metadata_bytes Bytes of the heap's own metadata.
resident_bytes Bytes that may be resident.
peak_resident_bytes Most bytes that may have been resident at once.
mapped_bytes Bytes of address space mapped.
retained_bytes Bytes of free pages kept for reuse.
threads Threads that have a cache.",
);

// `allocated_bytes` is the gauge's name, and a family has only one type.
const COUNTERS: List = List(
    Counter,
    "allocations Blocks handed to the program.
frees Blocks given back by the program.
allocations_bytes Bytes handed to the program.
frees_bytes Bytes given back by the program.
purged_bytes Bytes given back to the system.
maps Mappings asked of the system.
refused_maps Mappings that the system refused.
refused_others Other calls that the system refused.
hard_limit_refusals Refusals by the hard limit.
soft_limit_crossings Upward crossings of the soft limit.
refused_topologies Times that the NUMA nodes could not be found out.",
);

const CLASS_COUNTERS: List = List(
    Counter,
    "class_allocations Blocks handed to the program, per class.
class_frees Blocks given back by the program, per class.",
);

const CLASS_GAUGES: List =
    List(Gauge, "class_in_use_bytes Bytes in the hands of the program, per class.");

const CLASS_CACHED: List = List(Gauge, "class_cached_blocks Free blocks in caches, per class.");

const NODE_COUNTERS: List = List(
    Counter,
    "node_allocations Blocks handed out, per NUMA node.
node_frees Blocks given back, per NUMA node.
node_local_frees Blocks given back by threads on the NUMA node.
node_remote_frees Blocks given back by threads on other NUMA nodes.
node_sent_home_bytes Bytes given back by threads on other NUMA nodes.
node_spills Times that the NUMA node was full.
node_refused_binds Times that memory could not be put on the NUMA node.",
);

const NODE_GAUGES: List = List(
    Gauge,
    "node_in_use_bytes Bytes in the hands of the program, per NUMA node.
node_cached_bytes Bytes of cached free blocks, per NUMA node.
node_retained_bytes Bytes of free pages kept for reuse, per NUMA node.
node_segments Segments mapped, per NUMA node.
node_shards Shards in use, per NUMA node.",
);

/// A writer and the prefix of every name.
struct Out<'a> {
    w: &'a mut dyn Write,
    prefix: &'a str,
}

pub(super) fn write(s: &Snapshot, w: &mut dyn Write, prefix: &str) -> fmt::Result {
    if !is_prefix(prefix) {
        return Err(fmt::Error);
    }
    let mut out = Out { w, prefix };
    out.info()?;
    singles(s, &mut out)?;
    classes(s, &mut out)?;
    nodes(s, &mut out)?;
    out.w.write_str("# EOF\n")
}

impl List {
    /// Calls `f` with each family and its place in the list.
    #[inline(never)]
    fn each(&self, f: &mut dyn FnMut(&Family, usize) -> fmt::Result) -> fmt::Result {
        let (mut rest, mut i) = (self.1, 0);
        while !rest.is_empty() {
            let (line, after) = cut(rest, b'\n');
            let (name, help) = cut(line, b' ');
            f(&Family { kind: self.0, name, help }, i)?;
            (rest, i) = (after, i + 1);
        }
        Ok(())
    }
}

fn at(values: &[u64], i: usize) -> u64 {
    values.get(i).copied().unwrap_or(0)
}

impl Out<'_> {
    fn info(&mut self) -> fmt::Result {
        let (p, version) = (self.prefix, env!("CARGO_PKG_VERSION"));
        writeln!(self.w, "# TYPE {p} info")?;
        writeln!(self.w, "# HELP {p} The allocator of the process.")?;
        writeln!(self.w, "{p}_info{{allocator=\"nearheap\",version=\"{version}\"}} 1")
    }

    #[inline(never)]
    fn describe(&mut self, f: &Family) -> fmt::Result {
        let (p, name) = (self.prefix, f.name);
        let kind = if f.kind == Counter { "counter" } else { "gauge" };
        writeln!(self.w, "# TYPE {p}_{name} {kind}")?;
        if name.ends_with("_bytes") {
            writeln!(self.w, "# UNIT {p}_{name} bytes")?;
        }
        writeln!(self.w, "# HELP {p}_{name} {}", f.help)
    }

    #[inline(never)]
    fn sample(&mut self, f: &Family, labels: fmt::Arguments<'_>, value: u64) -> fmt::Result {
        let total = if f.kind == Counter { "_total" } else { "" };
        writeln!(self.w, "{}_{}{total}{labels} {value}", self.prefix, f.name)
    }

    #[inline(never)]
    fn class_sample(&mut self, f: &Family, c: &ClassStats, value: u64) -> fmt::Result {
        self.sample(f, format_args!("{{class=\"{}\",align=\"{}\"}}", c.size, c.align), value)
    }
}

/// Families without labels.
fn singles(s: &Snapshot, out: &mut Out<'_>) -> fmt::Result {
    let (t, y) = (&s.totals, &s.system);
    let gauges = [
        t.in_use_bytes,
        y.active_bytes(),
        y.metadata_bytes,
        y.committed_bytes,
        y.peak_committed_bytes,
        y.mapped_bytes,
        y.retained_bytes,
        s.live_threads,
    ];
    let counters = [
        t.allocs,
        t.frees,
        t.allocated_bytes,
        t.freed_bytes,
        y.purged_bytes,
        y.maps,
        y.refused_maps,
        y.refused_others,
        y.hard_limit_refusals,
        y.soft_limit_crossings,
        y.refused_topologies,
    ];
    for (list, values) in [(&GAUGES, &gauges[..]), (&COUNTERS, &counters[..])] {
        list.each(&mut |f, i| {
            out.describe(f)?;
            out.sample(f, format_args!(""), at(values, i))
        })?;
    }
    Ok(())
}

fn classes(s: &Snapshot, out: &mut Out<'_>) -> fmt::Result {
    let used = || s.classes().iter().filter(|c| c.is_used());
    for (list, first) in [(&CLASS_COUNTERS, 0), (&CLASS_GAUGES, 2)] {
        list.each(&mut |f, i| {
            let value = |t: Totals| at(&[t.allocs, t.frees, t.in_use_bytes], first + i);
            out.describe(f)?;
            for c in used() {
                out.class_sample(f, c, value(c.sums()))?;
            }
            if s.unlisted() != Totals::default() {
                let labels = format_args!("{{class=\"unlisted\",align=\"\"}}");
                out.sample(f, labels, value(s.unlisted()))?;
            }
            out.sample(f, format_args!("{{class=\"huge\",align=\"\"}}"), value(s.huge.sums()))
        })?;
    }
    if used().next().is_none() {
        return Ok(());
    }
    CLASS_CACHED.each(&mut |f, _| {
        out.describe(f)?;
        for c in used() {
            out.class_sample(f, c, c.cached_blocks)?;
        }
        Ok(())
    })
}

fn nodes(s: &Snapshot, out: &mut Out<'_>) -> fmt::Result {
    if s.nodes().is_empty() {
        return Ok(());
    }
    for (list, first) in [(&NODE_COUNTERS, 0), (&NODE_GAUGES, 7)] {
        list.each(&mut |f, i| {
            out.describe(f)?;
            for n in s.nodes() {
                let values = [
                    n.allocs,
                    n.frees,
                    n.local_frees(),
                    n.remote_frees,
                    n.sent_home_bytes,
                    n.spills,
                    n.refused_binds,
                    n.in_use_bytes,
                    n.cached_bytes,
                    n.retained_bytes,
                    n.segments,
                    n.shards,
                ];
                let node = NodeName(n.node);
                out.sample(f, format_args!("{{node=\"{node}\"}}"), at(&values, first + i))?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::is_prefix;
    use rstest::rstest;

    #[rstest]
    #[case("allocator", true)]
    #[case("my_app_2", true)]
    #[case("_x", true)]
    #[case("", false)]
    #[case("1a", false)]
    #[case("1a-b", false)]
    #[case("a-b", false)]
    #[case("a:b", false)]
    #[case("a b", false)]
    #[case("a\n", false)]
    #[case("größe", false)]
    fn prefixes(#[case] prefix: &str, #[case] good: bool) {
        assert_eq!(is_prefix(prefix), good);
    }
}
