//! The results as text.
//! Owns: nothing. Called by: `main`.

use crate::results::{MARK_ABOVE, Measure, OURS, Results, Row};
use std::fmt::Write;

const MIB: f64 = (1 << 20) as f64;

/// Every table, one below the other.
pub(crate) fn write(results: &Results) -> String {
    let mut text = String::new();
    for measure in Measure::ALL {
        text.push_str(&measured(results, measure));
    }
    text.push_str(&overhead(results));
    text.push_str(&accounts(results));
    text.push_str(&means(results));
    text.push_str(&failures(results));
    text
}

fn measured(results: &Results, measure: Measure) -> String {
    let ours = results.ours().is_some();
    let mut lines = vec![headings(results, measure.title(), ours)];
    for row in &results.rows {
        let mut line = vec![row.workload.to_owned()];
        line.extend(row.cells.iter().map(|cell| match (cell.median(measure), &cell.failure) {
            (_, Some(_)) => "failed".to_owned(),
            (Some(number), None) => format_number(number, measure),
            (None, None) => "-".to_owned(),
        }));
        if ours {
            line.extend(comparison(results, row, measure));
        }
        lines.push(line);
    }
    align(&lines)
}

/// Our ratio to the best peer, its name, and a mark if we are far behind.
fn comparison(results: &Results, row: &Row, measure: Measure) -> [String; 3] {
    let best = results.best_peer(row, measure);
    let name = best.and_then(|best| results.allocators.get(best)).copied().unwrap_or("-");
    let ratio = results.ratio_to_best(row, measure);
    let mark = measure.is_marked() && ratio.is_some_and(|ratio| ratio > MARK_ABOVE);
    [format_ratio(ratio), name.to_owned(), if mark { "<<" } else { "" }.to_owned()]
}

fn overhead(results: &Results) -> String {
    let title = "overhead: RSS per live byte, at the peak";
    let mut lines = vec![headings(results, title, false)];
    for row in &results.rows {
        if row.counted("live_peak").is_some() {
            let mut line = vec![row.workload.to_owned()];
            line.extend((0..row.cells.len()).map(|place| format_ratio(row.peak_overhead(place))));
            lines.push(line);
        }
    }
    if lines.len() == 1 { String::new() } else { align(&lines) }
}

fn accounts(results: &Results) -> String {
    let mut headings = vec!["own accounts per live byte, at one moment".to_owned()];
    let places: Vec<usize> = (0..results.allocators.len())
        .filter(|place| results.rows.iter().any(|row| row.point_overheads(*place).is_some()))
        .collect();
    for place in &places {
        let name = results.allocators.get(*place).copied().unwrap_or_default();
        headings.extend(["RSS", "resident", "allocated"].map(|what| format!("{name} {what}")));
    }
    let mut lines = vec![headings];
    for row in &results.rows {
        if row.counted("live_point").is_some() {
            let mut line = vec![row.workload.to_owned()];
            for place in &places {
                let overheads = row.point_overheads(*place);
                line.extend((0..3).map(|column| {
                    format_ratio(overheads.and_then(|all| all.get(column).copied()))
                }));
            }
            lines.push(line);
        }
    }
    if places.is_empty() { String::new() } else { align(&lines) }
}

fn means(results: &Results) -> String {
    if results.ours().is_none() {
        return String::new();
    }
    let mut lines = vec![
        [
            &format!("geometric means: {OURS} to"),
            "time",
            "CPU time",
            "peak RSS",
            "RSS freed",
            "faults",
            "rows",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    let best = std::iter::once(None);
    for peer in best.chain(results.peers().map(Some)) {
        let name = peer.and_then(|peer| results.allocators.get(peer)).copied();
        let mut line = vec![name.unwrap_or("the best of each row").to_owned()];
        line.extend(Measure::ALL.map(|measure| format_ratio(results.mean_ratio(peer, measure))));
        line.push(results.compared_rows(peer).to_string());
        lines.push(line);
    }
    let mut text = align(&lines);
    let behind: Vec<&str> =
        results.rows.iter().filter(|row| results.is_behind(row)).map(|row| row.workload).collect();
    writeln!(
        text,
        "above {MARK_ABOVE} in time or peak RSS (marked <<): {} of {} rows{}{}",
        behind.len(),
        results.rows.len(),
        if behind.is_empty() { "" } else { ": " },
        behind.join(", ")
    )
    .expect("memory");
    text
}

fn failures(results: &Results) -> String {
    let mut text = String::new();
    for row in &results.rows {
        for (allocator, cell) in results.allocators.iter().zip(&row.cells) {
            if let Some(failure) = &cell.failure {
                writeln!(text, "failed: {} on {allocator}: {failure}", row.workload)
                    .expect("memory");
            }
        }
    }
    text
}

fn headings(results: &Results, title: &str, compared: bool) -> Vec<String> {
    let mut headings = vec![title.to_owned()];
    headings.extend(results.allocators.iter().map(|allocator| (*allocator).to_owned()));
    if compared {
        headings.extend(["ratio", "to best", ""].map(str::to_owned));
    }
    headings
}

/// The lines in columns: the first to the left, the others to the right, and an empty line after them.
fn align(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell: &String| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let mut out = String::new();
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let result = match column {
                0 => write!(out, "{cell:<width$}"),
                _ => write!(out, "  {cell:>width$}"),
            };
            result.expect("memory");
        }
        text.push_str(out.trim_end());
        text.push('\n');
    }
    text.push('\n');
    text
}

fn format_number(number: f64, measure: Measure) -> String {
    match measure {
        Measure::Time | Measure::Cpu => format!("{:.1}", number / 1e6),
        Measure::Peak | Measure::Freed => format!("{:.1}", number / MIB),
        Measure::Faults => format!("{number:.0}"),
    }
}

fn format_ratio(ratio: Option<f64>) -> String {
    ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::results;

    #[test]
    fn a_table_has_medians_ratios_the_best_peer_and_marks() {
        let expected = "\
time, ms  nearheap  glibc  jemalloc  ratio  to best
json          12.0   24.0      30.0   0.50    glibc
tiny          80.0   40.0    failed   2.00    glibc  <<

";
        assert_eq!(measured(&results(), Measure::Time), expected);
    }

    #[test]
    fn means_are_to_the_best_and_to_each_peer() {
        let expected = "\
geometric means: nearheap to  time  CPU time  peak RSS  RSS freed  faults  rows
the best of each row          1.00      1.00      1.48       1.48    1.48     2
glibc                         1.00      1.00      1.48       1.48    1.48     2
jemalloc                      0.40      0.40      0.55       0.55    0.55     1

above 1.25 in time or peak RSS (marked <<): 1 of 2 rows: tiny
";
        assert_eq!(means(&results()), expected);
    }

    #[test]
    fn failures_are_named_at_the_end() {
        let text = write(&results());
        assert!(text.ends_with("failed: tiny on jemalloc: signal 11\n"), "{text}");
        assert!(text.contains("overhead: RSS per live byte, at the peak"), "{text}");
    }

    #[test]
    fn without_ours_there_is_nothing_to_compare() {
        let mut results = results();
        results.allocators[0] = "rpmalloc";
        assert!(!write(&results).contains("ratio"));
        assert_eq!(means(&results), "");
    }
}
