//! Text for people, in the words known from Valgrind.
//! Owns: the lines and columns. Called by: `Snapshot::write_text`.
//!
//! T1: every line begins with `nearheap: ` and ends with a newline.
//! T2: bytes appear exactly, as plain digits; the rounded figure before them is for the eye.

use super::{EachThread, NodeName, cut};
use crate::rows::{SystemStats, Totals};
use crate::snapshot::Snapshot;
use core::fmt::{self, Write};

/// Threads that the text shows; of the others it gives the number, and JSON lists them all.
pub const TEXT_THREADS: u64 = 32;

/// The lines above the tables, in the columns of their rows; and how wide their columns of numbers are.
const CLASSES: &str = "nearheap: classes      size   align       allocs        frees  in use blocks    in use bytes  cached blocks\n";
const CLASS: &[u8] = &[13, 13, 15, 16, 15];
const NODES: &str = "nearheap: nodes        node  shards       allocs        frees   cached bytes    in use bytes retained bytes  segments\n";
const NODE: &[u8] = &[8, 13, 13, 15, 16, 15, 10];
const THREADS: &str = "nearheap: threads                id       allocs        frees  allocated bytes   freed bytes   cached bytes\n";
const THREAD: &[u8] = &[16, 13, 13, 17, 14, 15];

/// Bytes as `12.5 MiB (13107200 bytes)`, rounded down; below 1 KiB only the exact count.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(bytes) = *self;
        let thousands = bytes.checked_ilog2().unwrap_or(0) / 10;
        if let Some(letter) = b"KMGTPE".get(thousands.wrapping_sub(1) as usize) {
            let unit = 1_u64 << (10 * thousands);
            // The rest is below 2^60, so ten times it fits.
            let (whole, tenths) = (bytes / unit, bytes % unit * 10 / unit);
            write!(f, "{whole}.{tenths} {}iB (", char::from(*letter))?;
            return write!(f, "{bytes} bytes)");
        }
        write!(f, "{bytes} bytes")
    }
}

pub(super) fn write(
    s: &Snapshot,
    w: &mut dyn Write,
    threads: &mut dyn FnMut(&mut EachThread<'_>) -> fmt::Result,
) -> fmt::Result {
    let t = s.totals;
    writeln!(w, "nearheap: heap of process {}", s.pid)?;
    writeln!(
        w,
        "nearheap: in use at exit: {} bytes in {} blocks",
        t.in_use_bytes, t.in_use_blocks
    )?;
    writeln!(
        w,
        "nearheap: total heap usage: {} allocs, {} frees, {} bytes allocated",
        t.allocs, t.frees, t.allocated_bytes
    )?;
    system(&s.system, w)?;
    classes(s, w)?;
    nodes(s, w)?;
    thread_rows(s, w, threads)
}

fn system(s: &SystemStats, w: &mut dyn Write) -> fmt::Result {
    let bytes = [
        s.mapped_bytes,
        s.committed_bytes,
        s.peak_committed_bytes,
        s.metadata_bytes,
        s.retained_bytes,
        s.purged_bytes,
    ];
    let (mut bytes, mut names) =
        (bytes.iter(), "mapped,committed,peak committed,metadata,retained,purged");
    while !names.is_empty() {
        let (name, rest) = cut(names, b',');
        writeln!(w, "nearheap: {name}: {}", Bytes(bytes.next().copied().unwrap_or_default()))?;
        names = rest;
    }
    writeln!(
        w,
        "nearheap: refused: {} of {} maps, {} other calls, {} by the hard limit",
        s.refused_maps, s.maps, s.refused_others, s.hard_limit_refusals
    )?;
    writeln!(w, "nearheap: soft limit crossed: {} times", s.soft_limit_crossings)
}

/// One row of a table: what it is of, then numbers; a dash in each column that has none.
#[inline(never)]
fn row(w: &mut dyn Write, what: fmt::Arguments<'_>, widths: &[u8], numbers: &[u64]) -> fmt::Result {
    write!(w, "nearheap: {what}")?;
    for (column, &width) in widths.iter().enumerate() {
        let width = usize::from(width);
        match numbers.get(column) {
            Some(number) => write!(w, "{number:>width$}")?,
            None => write!(w, "{:>width$}", "-")?,
        }
    }
    w.write_char('\n')
}

fn classes(s: &Snapshot, w: &mut dyn Write) -> fmt::Result {
    w.write_str(CLASSES)?;
    for c in s.classes().iter().filter(|c| c.is_used()) {
        let numbers = [c.allocs, c.frees, c.in_use_blocks(), c.in_use_bytes(), c.cached_blocks];
        row(w, format_args!("class    {:>8}{:>8}", c.size, c.align), CLASS, &numbers)?;
    }
    if s.unlisted() != Totals::default() {
        sums(w, format_args!("unlisted        -       -"), s.unlisted())?;
    }
    sums(w, format_args!("huge            -       -"), s.huge.sums())
}

fn sums(w: &mut dyn Write, what: fmt::Arguments<'_>, t: Totals) -> fmt::Result {
    row(w, what, CLASS, &[t.allocs, t.frees, t.in_use_blocks, t.in_use_bytes])
}

fn nodes(s: &Snapshot, w: &mut dyn Write) -> fmt::Result {
    w.write_str(NODES)?;
    for n in s.nodes() {
        let numbers = [
            n.shards,
            n.allocs,
            n.frees,
            n.cached_bytes,
            n.in_use_bytes,
            n.retained_bytes,
            n.segments,
        ];
        row(w, format_args!("node     {:>8}", NodeName(n.node)), NODE, &numbers)?;
    }
    if s.system.refused_topologies > 0 {
        w.write_str("nearheap: the system does not say what NUMA nodes there are\n")?;
    }
    // With one node there is nothing to tell.
    for n in s.nodes().iter().filter(|n| s.nodes().len() > 1 || n.spills + n.refused_binds > 0) {
        writeln!(
            w,
            "nearheap: node {}: {} local frees, {} remote, {} bytes sent home, {} spills, {} refused binds",
            NodeName(n.node),
            n.local_frees(),
            n.remote_frees,
            n.sent_home_bytes,
            n.spills,
            n.refused_binds
        )?;
    }
    Ok(())
}

fn thread_rows(
    s: &Snapshot,
    w: &mut dyn Write,
    threads: &mut dyn FnMut(&mut EachThread<'_>) -> fmt::Result,
) -> fmt::Result {
    writeln!(w, "nearheap: threads with a cache: {}", s.live_threads)?;
    let mut seen = 0_u64;
    threads(&mut |t| {
        seen = seen.saturating_add(1);
        if seen > TEXT_THREADS {
            return Ok(());
        }
        if seen == 1 {
            w.write_str(THREADS)?;
        }
        let numbers = [t.id, t.allocs, t.frees, t.allocated_bytes, t.freed_bytes, t.cached_bytes];
        row(w, format_args!("thread   "), THREAD, &numbers)
    })?;
    match seen.saturating_sub(TEXT_THREADS) {
        0 => Ok(()),
        more => writeln!(w, "nearheap: and {more} threads more"),
    }
}

/// What is in use, in the words of the lines that name misuse.
pub(super) fn write_live(s: &Snapshot, w: &mut dyn Write) -> fmt::Result {
    let Totals { in_use_bytes, in_use_blocks, .. } = s.totals;
    writeln!(w, "nearheap: live at exit: {in_use_bytes} bytes in {in_use_blocks} blocks")?;
    let mut last = (u64::MAX, usize::MAX);
    loop {
        // Done once, over rows in another order: so the next is looked for among all.
        let mut next = (0, 0);
        for place in 0..=s.classes().len() {
            let row = (in_use(s, place).0, place);
            if row < last && row > next {
                next = row;
            }
        }
        let (bytes @ 1.., place) = next else { return Ok(()) };
        last = next;
        match s.classes().get(place) {
            Some(c) => write!(w, "nearheap: live: class={} align={}", c.size, c.align)?,
            None => w.write_str("nearheap: live: class=huge")?,
        }
        writeln!(w, " blocks={} bytes={bytes}", in_use(s, place).1)?;
    }
}

/// Bytes and blocks of a class by its place; behind the last, those of huge blocks.
#[inline(never)]
fn in_use(s: &Snapshot, place: usize) -> (u64, u64) {
    match s.classes().get(place) {
        Some(class) => (class.in_use_bytes(), class.in_use_blocks()),
        None => (s.huge.sums().in_use_bytes, s.huge.sums().in_use_blocks),
    }
}

#[cfg(test)]
mod tests {
    use super::Bytes;
    use rstest::rstest;
    use std::string::ToString;

    #[rstest]
    #[case(0, "0 bytes")]
    #[case(1023, "1023 bytes")]
    #[case(1024, "1.0 KiB (1024 bytes)")]
    #[case(1535, "1.4 KiB (1535 bytes)")]
    #[case(1536, "1.5 KiB (1536 bytes)")]
    #[case((1 << 20) - 1, "1023.9 KiB (1048575 bytes)")]
    #[case(4 << 20, "4.0 MiB (4194304 bytes)")]
    #[case(5 << 30, "5.0 GiB (5368709120 bytes)")]
    #[case(u64::MAX, "15.9 EiB (18446744073709551615 bytes)")]
    fn bytes(#[case] n: u64, #[case] text: &str) {
        assert_eq!(Bytes(n).to_string(), text);
    }
}
