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

type Field = (&'static str, u64);

pub(super) fn write(
    s: &Snapshot,
    w: &mut dyn Write,
    threads: &mut dyn FnMut(&mut EachThread<'_>) -> fmt::Result,
) -> fmt::Result {
    write!(w, "{{\"version\":{JSON_VERSION},\"pid\":{},\"totals\":", s.pid)?;
    object(w, &sums(&s.totals))?;
    classes(s, w)?;
    w.write_str(",\"unlisted\":")?;
    object(w, &sums(&s.unlisted()))?;
    w.write_str(",\"huge\":")?;
    object(w, &sums(&s.huge.sums()))?;
    nodes(s, w)?;
    write!(w, ",\"live_threads\":{},\"threads\":[", s.live_threads)?;
    let mut first = true;
    threads(&mut |t| {
        let fields = [
            ("id", t.id),
            ("allocs", t.allocs),
            ("frees", t.frees),
            ("allocated_bytes", t.allocated_bytes),
            ("freed_bytes", t.freed_bytes),
            ("cached_bytes", t.cached_bytes),
        ];
        item(w, &mut first, &fields)
    })?;
    w.write_str("],\"system\":")?;
    system(s, w)?;
    w.write_str("}\n")
}

fn sums(t: &Totals) -> [Field; 6] {
    [
        ("allocs", t.allocs),
        ("frees", t.frees),
        ("allocated_bytes", t.allocated_bytes),
        ("freed_bytes", t.freed_bytes),
        ("in_use_bytes", t.in_use_bytes),
        ("in_use_blocks", t.in_use_blocks),
    ]
}

fn classes(s: &Snapshot, w: &mut dyn Write) -> fmt::Result {
    w.write_str(",\"classes\":[")?;
    let mut first = true;
    for c in s.classes().iter().filter(|c| c.is_used()) {
        let fields = [
            ("size", c.size),
            ("align", c.align),
            ("allocs", c.allocs),
            ("frees", c.frees),
            ("in_use_blocks", c.in_use_blocks()),
            ("in_use_bytes", c.in_use_bytes()),
            ("cached_blocks", c.cached_blocks),
        ];
        item(w, &mut first, &fields)?;
    }
    w.write_char(']')
}

fn nodes(s: &Snapshot, w: &mut dyn Write) -> fmt::Result {
    w.write_str(",\"nodes\":[")?;
    let mut first = true;
    for n in s.nodes() {
        let fields = [
            ("node", n.node),
            ("allocs", n.allocs),
            ("frees", n.frees),
            ("in_use_bytes", n.in_use_bytes),
            ("cached_bytes", n.cached_bytes),
            ("retained_bytes", n.retained_bytes),
            ("segments", n.segments),
            ("shards", n.shards),
        ];
        item(w, &mut first, &fields)?;
    }
    w.write_char(']')
}

fn system(s: &Snapshot, w: &mut dyn Write) -> fmt::Result {
    let s = &s.system;
    let fields = [
        ("mapped_bytes", s.mapped_bytes),
        ("committed_bytes", s.committed_bytes),
        ("peak_committed_bytes", s.peak_committed_bytes),
        ("metadata_bytes", s.metadata_bytes),
        ("retained_bytes", s.retained_bytes),
        ("purged_bytes", s.purged_bytes),
        ("maps", s.maps),
        ("refused_maps", s.refused_maps),
        ("refused_others", s.refused_others),
        ("hard_limit_refusals", s.hard_limit_refusals),
        ("soft_limit_crossings", s.soft_limit_crossings),
    ];
    object(w, &fields)
}

/// The next object of an array.
fn item(w: &mut dyn Write, first: &mut bool, fields: &[Field]) -> fmt::Result {
    if !core::mem::replace(first, false) {
        w.write_char(',')?;
    }
    object(w, fields)
}

fn object(w: &mut dyn Write, fields: &[Field]) -> fmt::Result {
    let mut before = '{';
    for (key, value) in fields {
        write!(w, "{before}\"{key}\":{value}")?;
        before = ',';
    }
    w.write_char('}')
}
