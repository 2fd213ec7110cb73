//! OpenMetrics 1.0.
//! Owns: the families, their help, and what a prefix may be. Called by: `Snapshot::write_openmetrics`.
//!
//! O1: a family's lines stand together: TYPE, UNIT where the name ends in `_bytes`, HELP, then its samples.
//!     A family without samples is left out, since some readers reject it.
//! O2: samples of counters end in `_total`, those of the info in `_info`; no two families share a name.
//! O3: all samples of a family have the same labels; their values are numbers and words of our own, so that nothing
//!     needs an escape. A label without a value is written empty, which means the same as its absence.

use crate::rows::{ClassStats, NodeStats, Totals};
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

struct Family {
    kind: Kind,
    name: &'static str,
    help: &'static str,
}

const fn family(kind: Kind, name: &'static str, help: &'static str) -> Family {
    Family { kind, name, help }
}

/// A family, and what it shows of a row.
type Column<T> = (Family, fn(&T) -> u64);

/// Families that have one sample for each class.
const CLASS_FAMILIES: [Column<Totals>; 3] = [
    (family(Counter, "class_allocations", "Blocks handed to the program, per class."), |t| {
        t.allocs
    }),
    (family(Counter, "class_frees", "Blocks given back by the program, per class."), |t| t.frees),
    (family(Gauge, "class_in_use_bytes", "Bytes in the hands of the program, per class."), |t| {
        t.in_use_bytes
    }),
];

/// Families that have one sample for each node.
const NODE_FAMILIES: [Column<NodeStats>; 7] = [
    (family(Counter, "node_allocations", "Blocks handed out, per NUMA node."), |n| n.allocs),
    (family(Counter, "node_frees", "Blocks given back, per NUMA node."), |n| n.frees),
    (
        family(Gauge, "node_in_use_bytes", "Bytes in the hands of the program, per NUMA node."),
        |n| n.in_use_bytes,
    ),
    (family(Gauge, "node_cached_bytes", "Bytes of cached free blocks, per NUMA node."), |n| {
        n.cached_bytes
    }),
    (
        family(Gauge, "node_retained_bytes", "Bytes of free pages kept for reuse, per NUMA node."),
        |n| n.retained_bytes,
    ),
    (family(Gauge, "node_segments", "Segments mapped, per NUMA node."), |n| n.segments),
    (family(Gauge, "node_shards", "Shards in use, per NUMA node."), |n| n.shards),
];

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
    gauges(s, &mut out)?;
    counters(s, &mut out)?;
    classes(s, &mut out)?;
    nodes(s, &mut out)?;
    out.w.write_str("# EOF\n")
}

impl Out<'_> {
    fn info(&mut self) -> fmt::Result {
        let (p, version) = (self.prefix, env!("CARGO_PKG_VERSION"));
        writeln!(self.w, "# TYPE {p} info")?;
        writeln!(self.w, "# HELP {p} The allocator of the process.")?;
        writeln!(self.w, "{p}_info{{allocator=\"nearheap\",version=\"{version}\"}} 1")
    }

    fn describe(&mut self, f: &Family) -> fmt::Result {
        let (p, name) = (self.prefix, f.name);
        let kind = if f.kind == Counter { "counter" } else { "gauge" };
        writeln!(self.w, "# TYPE {p}_{name} {kind}")?;
        if name.ends_with("_bytes") {
            writeln!(self.w, "# UNIT {p}_{name} bytes")?;
        }
        writeln!(self.w, "# HELP {p}_{name} {}", f.help)
    }

    fn sample(&mut self, f: &Family, labels: fmt::Arguments<'_>, value: u64) -> fmt::Result {
        let total = if f.kind == Counter { "_total" } else { "" };
        writeln!(self.w, "{}_{}{total}{labels} {value}", self.prefix, f.name)
    }

    fn class_sample(&mut self, f: &Family, c: &ClassStats, value: u64) -> fmt::Result {
        self.sample(f, format_args!("{{class=\"{}\",align=\"{}\"}}", c.size, c.align), value)
    }

    /// Families without labels.
    fn singles(&mut self, families: &[(Family, u64)]) -> fmt::Result {
        for (f, value) in families {
            self.describe(f)?;
            self.sample(f, format_args!(""), *value)?;
        }
        Ok(())
    }
}

fn gauges(s: &Snapshot, out: &mut Out<'_>) -> fmt::Result {
    let y = &s.system;
    out.singles(&[
        (
            family(
                Gauge,
                "allocated_bytes",
                "Bytes in the hands of the program, in sizes of classes.",
            ),
            s.totals.in_use_bytes,
        ),
        (
            family(Gauge, "active_bytes", "Bytes of pages with blocks, in use or cached."),
            y.active_bytes(),
        ),
        (family(Gauge, "metadata_bytes", "Bytes of the heap's own metadata."), y.metadata_bytes),
        (family(Gauge, "resident_bytes", "Bytes that may be resident."), y.committed_bytes),
        (
            family(Gauge, "peak_resident_bytes", "Most bytes that may have been resident at once."),
            y.peak_committed_bytes,
        ),
        (family(Gauge, "mapped_bytes", "Bytes of address space mapped."), y.mapped_bytes),
        (family(Gauge, "retained_bytes", "Bytes of free pages kept for reuse."), y.retained_bytes),
        (family(Gauge, "threads", "Threads that have a cache."), s.live_threads),
    ])
}

fn counters(s: &Snapshot, out: &mut Out<'_>) -> fmt::Result {
    let (t, y) = (&s.totals, &s.system);
    out.singles(&[
        (family(Counter, "allocations", "Blocks handed to the program."), t.allocs),
        (family(Counter, "frees", "Blocks given back by the program."), t.frees),
        (
            // `allocated_bytes` is the gauge's name, and a family has only one type.
            family(Counter, "allocations_bytes", "Bytes handed to the program."),
            t.allocated_bytes,
        ),
        (family(Counter, "frees_bytes", "Bytes given back by the program."), t.freed_bytes),
        (family(Counter, "purged_bytes", "Bytes given back to the system."), y.purged_bytes),
        (family(Counter, "maps", "Mappings asked of the system."), y.maps),
        (family(Counter, "refused_maps", "Mappings that the system refused."), y.refused_maps),
        (
            family(Counter, "refused_others", "Other calls that the system refused."),
            y.refused_others,
        ),
        (
            family(Counter, "hard_limit_refusals", "Refusals by the hard limit."),
            y.hard_limit_refusals,
        ),
        (
            family(Counter, "soft_limit_crossings", "Upward crossings of the soft limit."),
            y.soft_limit_crossings,
        ),
    ])
}

fn classes(s: &Snapshot, out: &mut Out<'_>) -> fmt::Result {
    let used = || s.classes().iter().filter(|c| c.is_used());
    for (f, value) in &CLASS_FAMILIES {
        out.describe(f)?;
        for c in used() {
            out.class_sample(f, c, value(&c.sums()))?;
        }
        if s.unlisted() != Totals::default() {
            out.sample(f, format_args!("{{class=\"unlisted\",align=\"\"}}"), value(&s.unlisted()))?;
        }
        out.sample(f, format_args!("{{class=\"huge\",align=\"\"}}"), value(&s.huge.sums()))?;
    }
    if used().next().is_none() {
        return Ok(());
    }
    let cached = family(Gauge, "class_cached_blocks", "Free blocks in caches, per class.");
    out.describe(&cached)?;
    for c in used() {
        out.class_sample(&cached, c, c.cached_blocks)?;
    }
    Ok(())
}

fn nodes(s: &Snapshot, out: &mut Out<'_>) -> fmt::Result {
    if s.nodes().is_empty() {
        return Ok(());
    }
    for (f, value) in &NODE_FAMILIES {
        out.describe(f)?;
        for n in s.nodes() {
            out.sample(f, format_args!("{{node=\"{}\"}}", n.node), value(n))?;
        }
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
