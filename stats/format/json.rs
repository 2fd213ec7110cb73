//! JSON: one object, on one line.
//! Owns: the keys and `JSON_VERSION`. Called by: `Snapshot::write_json`.
//!
//! J1: a value is a whole number, an object or an array; there is no string to escape.
//! J2: classes without an allocation, a free or a cached block are left out.

use super::EachThread;
use crate::rows::Totals;
use crate::snapshot::Snapshot;
use core::fmt::{self, Write};

/// The number of the schema, at the key `version`.
pub const JSON_VERSION: u32 = 1;

/// Keys between commas: text takes less room in a program than a table does.
type Keys = &'static str;

const SUMS: Keys = "allocs,frees,allocated_bytes,freed_bytes,in_use_bytes,in_use_blocks";
const THREAD: Keys = "id,allocs,frees,allocated_bytes,freed_bytes,cached_bytes";
const CLASS: Keys = "size,align,allocs,frees,in_use_blocks,in_use_bytes,cached_blocks";
const NODE: Keys = "node,allocs,frees,local_frees,remote_frees,sent_home_bytes,in_use_bytes,cached_bytes,\
    retained_bytes,segments,shards,spills,refused_binds";
const SYSTEM: Keys = "mapped_bytes,committed_bytes,peak_committed_bytes,metadata_bytes,retained_bytes,purged_bytes,maps,\
    refused_maps,refused_others,hard_limit_refusals,soft_limit_crossings,refused_topologies";

pub(super) fn write(
    s: &Snapshot,
    w: &mut dyn Write,
    threads: &mut dyn FnMut(&mut EachThread<'_>) -> fmt::Result,
) -> fmt::Result {
    write!(w, "{{\"version\":{JSON_VERSION},\"pid\":{},\"totals\":", s.pid)?;
    object(w, SUMS, &sums(&s.totals))?;
    classes(s, w)?;
    w.write_str(",\"unlisted\":")?;
    object(w, SUMS, &sums(&s.unlisted()))?;
    w.write_str(",\"huge\":")?;
    object(w, SUMS, &sums(&s.huge.sums()))?;
    nodes(s, w)?;
    write!(w, ",\"live_threads\":{},\"threads\":[", s.live_threads)?;
    let mut first = true;
    threads(&mut |t| {
        let fields = [t.id, t.allocs, t.frees, t.allocated_bytes, t.freed_bytes, t.cached_bytes];
        item(w, &mut first, THREAD, &fields)
    })?;
    w.write_str("],\"system\":")?;
    system(s, w)?;
    w.write_str("}\n")
}

fn sums(t: &Totals) -> [u64; 6] {
    [t.allocs, t.frees, t.allocated_bytes, t.freed_bytes, t.in_use_bytes, t.in_use_blocks]
}

fn classes(s: &Snapshot, w: &mut dyn Write) -> fmt::Result {
    w.write_str(",\"classes\":[")?;
    let mut first = true;
    for c in s.classes().iter().filter(|c| c.is_used()) {
        let fields = [
            c.size,
            c.align,
            c.allocs,
            c.frees,
            c.in_use_blocks(),
            c.in_use_bytes(),
            c.cached_blocks,
        ];
        item(w, &mut first, CLASS, &fields)?;
    }
    w.write_char(']')
}

fn nodes(s: &Snapshot, w: &mut dyn Write) -> fmt::Result {
    w.write_str(",\"nodes\":[")?;
    let mut first = true;
    for n in s.nodes() {
        let fields = [
            n.node,
            n.allocs,
            n.frees,
            n.local_frees(),
            n.remote_frees,
            n.sent_home_bytes,
            n.in_use_bytes,
            n.cached_bytes,
            n.retained_bytes,
            n.segments,
            n.shards,
            n.spills,
            n.refused_binds,
        ];
        item(w, &mut first, NODE, &fields)?;
    }
    w.write_char(']')
}

fn system(s: &Snapshot, w: &mut dyn Write) -> fmt::Result {
    let s = &s.system;
    let fields = [
        s.mapped_bytes,
        s.committed_bytes,
        s.peak_committed_bytes,
        s.metadata_bytes,
        s.retained_bytes,
        s.purged_bytes,
        s.maps,
        s.refused_maps,
        s.refused_others,
        s.hard_limit_refusals,
        s.soft_limit_crossings,
        s.refused_topologies,
    ];
    object(w, SYSTEM, &fields)
}

/// The next object of an array.
fn item(w: &mut dyn Write, first: &mut bool, keys: Keys, values: &[u64]) -> fmt::Result {
    if !core::mem::replace(first, false) {
        w.write_char(',')?;
    }
    object(w, keys, values)
}

#[inline(never)]
fn object(w: &mut dyn Write, keys: Keys, values: &[u64]) -> fmt::Result {
    let (mut before, mut rest) = ('{', keys);
    for value in values {
        let (key, after) = super::cut(rest, b',');
        write!(w, "{before}\"{key}\":{value}")?;
        (before, rest) = (',', after);
    }
    w.write_char('}')
}
