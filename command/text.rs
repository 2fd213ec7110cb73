//! Dumps for terminals: tables with bars.
//! Called by: `nearheap report`.

use crate::dump::{Dump, bytes, pairs};
use std::fmt::Write;

const BAR: usize = 24;

/// A bar of the part that `n` is of `most`, in eighths of a character.
fn bar(n: u64, most: u64) -> String {
    const PARTS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    if n == 0 || most == 0 {
        return String::new();
    }
    let eighths = (n as f64 / most as f64 * (BAR * 8) as f64).round().max(1.0) as usize;
    format!("{}{}", "█".repeat(eighths / 8), PARTS.get(eighths % 8).copied().unwrap_or_default())
}

fn heading(out: &mut String, dump: &Dump) {
    let totals = &dump.totals;
    // A `String` takes whatever is written.
    let _ = writeln!(out, "{}: process {}, {} threads", dump.name, dump.pid, dump.threads);
    let _ = writeln!(
        out,
        "in use: {} in {} blocks; in all {} allocations of {}, {} frees",
        bytes(totals.in_use_bytes),
        totals.in_use_blocks,
        totals.allocs,
        bytes(dump.allocated_bytes),
        totals.frees
    );
}

pub(crate) fn one(dump: &Dump) -> String {
    let mut out = String::new();
    heading(&mut out, dump);
    for (name, n) in &dump.system {
        let shown = if name.ends_with("bytes") { bytes(*n) } else { n.to_string() };
        let name = name.trim_end_matches(" bytes");
        let _ = writeln!(out, "{name}: {shown}");
    }
    let most = dump.classes.iter().map(|c| c.allocs).max().unwrap_or(0);
    let most_bytes = dump.classes.iter().map(|c| c.in_use_bytes).max().unwrap_or(0);
    let _ = writeln!(
        out,
        "\n{:>10}  {:>12}  {:>12}  {:>10}  {:>10}  {:<BAR$}  in use",
        "class", "allocations", "in use", "blocks", "cached", "allocations"
    );
    for c in &dump.classes {
        let line = format!(
            "{:>10}  {:>12}  {:>12}  {:>10}  {:>10}  {:<BAR$}  {}",
            c.name(),
            c.allocs,
            bytes(c.in_use_bytes),
            c.in_use_blocks,
            c.cached_blocks,
            bar(c.allocs, most),
            bar(c.in_use_bytes, most_bytes)
        );
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

fn change(before: u64, after: u64) -> String {
    format!("{:+}", i128::from(after) - i128::from(before))
}

pub(crate) fn two(before: &Dump, after: &Dump) -> String {
    let mut out = String::new();
    heading(&mut out, before);
    heading(&mut out, after);
    for (name, n) in &after.system {
        let was = before.system.iter().find(|(other, _)| other == name).map_or(0, |(_, n)| *n);
        if was != *n {
            let _ = writeln!(out, "{name}: {was} -> {n} ({})", change(was, *n));
        }
    }
    let pairs = pairs(before, after);
    let grown =
        |(b, a): &(crate::dump::Class, crate::dump::Class)| a.in_use_bytes.abs_diff(b.in_use_bytes);
    let most = pairs.iter().map(grown).max().unwrap_or(0);
    let _ = writeln!(
        out,
        "\n{:>10}  {:>14}  {:>14}  {:>12}  in use",
        "class", "allocations", "in use bytes", "blocks"
    );
    for (b, a) in pairs.iter().filter(|(b, a)| b != a) {
        let sign = if a.in_use_bytes < b.in_use_bytes { "-" } else { "+" };
        let bar = bar(grown(&(*b, *a)), most);
        let line = format!(
            "{:>10}  {:>14}  {:>14}  {:>12}  {}{bar}",
            a.name(),
            change(b.allocs, a.allocs),
            change(b.in_use_bytes, a.in_use_bytes),
            change(b.in_use_blocks, a.in_use_blocks),
            if bar.is_empty() { "" } else { sign }
        );
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}
