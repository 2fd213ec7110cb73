//! The results as a picture for a page: a self-contained SVG, for light and dark backgrounds.
//! Owns: nothing. Called by: `main`.
//!
//! On top a bar for each allocator: the geometric mean of its time, and of its peak RSS, as a multiple of ours. Below a line
//! for each workload: our ratio to the best peer, on a logarithmic scale from a quarter to four.

use crate::results::{MARK_ABOVE, Measure, Results};
use std::fmt::Write;

const WIDTH: f64 = 840.0;
const MARGIN: f64 = 24.0;
const LABELS: f64 = 130.0;
const LINE: f64 = 20.0;
/// The left edge and the width of the two panels with bars.
const PANELS: [(Measure, &str, f64); 2] =
    [(Measure::Time, "Time", 154.0), (Measure::Peak, "Peak memory", 494.0)];
const PANEL: f64 = 270.0;
/// The widest ratio that the lower part shows; what lies beyond stands at its edge.
const WIDEST: f64 = 4.0;

const STYLE: &str = "\
<style>
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-size: 14px; font-weight: 600 }
.card { fill: #ffffff; stroke: #d0d7de }
.bar { fill: #afb8c1 } .ours { fill: #0969da }
.line { stroke: #d0d7de } .even { stroke: #57606a }
.time { fill: #0969da } .rss { fill: none; stroke: #bc4c00; stroke-width: 2 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 }
.card { fill: #0d1117; stroke: #30363d }
.bar { fill: #484f58 } .ours { fill: #4493f8 }
.line { stroke: #30363d } .even { stroke: #9198a1 }
.time { fill: #4493f8 } .rss { stroke: #f0883e }
}
</style>
";

/// The picture, or nothing where there is nothing to compare.
pub(crate) fn write(results: &Results) -> Option<String> {
    let ours = results.ours()?;
    let bars = MARGIN + 2.0 * LINE;
    let dots = bars + results.allocators.len() as f64 * LINE + 3.0 * LINE;
    let height = dots + results.rows.len() as f64 * LINE + 2.0 * MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n\
         <title>Time and resident memory of nearheap and of its peers</title>\n{STYLE}\
         <rect class=\"card\" x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"6\"/>\n",
        WIDTH - 1.0,
        height - 1.0
    );
    for (measure, title, left) in PANELS {
        panel(&mut svg, results, ours, measure, title, (left, bars));
    }
    rows(&mut svg, results, dots);
    svg.push_str("</svg>\n");
    Some(svg)
}

/// A bar for each allocator, whose length is its mean as a multiple of ours.
fn panel(
    svg: &mut String,
    results: &Results,
    ours: usize,
    measure: Measure,
    title: &str,
    (left, top): (f64, f64),
) {
    let mean = |place| match place == ours {
        true => Some(1.0),
        false => results.mean_ratio(Some(place), measure).map(|ratio| 1.0 / ratio),
    };
    let widest = (0..results.allocators.len()).filter_map(mean).fold(1.0, f64::max);
    text(
        svg,
        "title",
        (left, top - LINE),
        "start",
        &format!("{title}, nearheap = 1; less is better"),
    );
    for (place, name) in results.allocators.iter().enumerate() {
        let y = top + place as f64 * LINE;
        if left < WIDTH / 2.0 {
            text(svg, "", (left - 8.0, y + 11.0), "end", name);
        }
        let Some(mean) = mean(place) else { continue };
        let (class, length) = (if place == ours { "ours" } else { "bar" }, PANEL * mean / widest);
        element(
            svg,
            &format!(
                "<rect class=\"{class}\" x=\"{left}\" y=\"{y}\" width=\"{length:.1}\" height=\"14\" rx=\"2\"/>"
            ),
        );
        text(svg, "", (left + length + 4.0, y + 11.0), "start", &format!("{mean:.2}"));
    }
}

/// A line for each workload, with a dot for time and a ring for memory.
fn rows(svg: &mut String, results: &Results, top: f64) {
    let (left, right) = (MARGIN + LABELS, WIDTH - MARGIN - 40.0);
    let bottom = top + results.rows.len() as f64 * LINE;
    let place = |ratio: f64| {
        let share = ratio.clamp(1.0 / WIDEST, WIDEST).log2() / WIDEST.log2();
        f64::midpoint(left, right) + share * (right - left) / 2.0
    };
    let title =
        "Each workload beside its best peer: time (dot) and peak memory (ring); left is better";
    text(svg, "title", (MARGIN, top - 1.6 * LINE), "start", title);
    for (ratio, label) in [
        (1.0 / WIDEST, "≤ ¼"),
        (0.5, "½"),
        (1.0, "1"),
        (MARK_ABOVE, "1.25"),
        (2.0, "2"),
        (WIDEST, "≥ 4"),
    ] {
        let (x, class) = (place(ratio), if ratio == 1.0 { "even" } else { "line" });
        text(svg, "", (x, top - 0.5 * LINE), "middle", label);
        element(
            svg,
            &format!(
                "<line class=\"{class}\" x1=\"{x:.1}\" y1=\"{top}\" x2=\"{x:.1}\" y2=\"{bottom}\"/>"
            ),
        );
    }
    for (index, row) in results.rows.iter().enumerate() {
        let y = top + (index as f64 + 0.5) * LINE;
        text(svg, "", (left - 8.0, y + 4.0), "end", row.workload);
        for (measure, class) in [(Measure::Time, "time"), (Measure::Peak, "rss")] {
            if let Some(ratio) = results.ratio_to_best(row, measure) {
                element(
                    svg,
                    &format!(
                        "<circle class=\"{class}\" cx=\"{:.1}\" cy=\"{y}\" r=\"5\"/>",
                        place(ratio)
                    ),
                );
            }
        }
    }
}

fn text(svg: &mut String, class: &str, (x, y): (f64, f64), anchor: &str, words: &str) {
    element(
        svg,
        &format!(
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>"
        ),
    );
}

fn element(svg: &mut String, element: &str) {
    writeln!(svg, "{element}").expect("memory");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::results;

    #[test]
    fn there_is_a_bar_for_each_allocator_and_a_line_for_each_workload() {
        let svg = write(&results()).unwrap();
        assert_eq!(svg.matches("class=\"ours\"").count(), 2);
        assert_eq!(svg.matches("class=\"bar\"").count(), 4);
        assert_eq!(svg.matches("<circle").count(), 4);
        assert!(svg.contains(">json</text>") && svg.contains("prefers-color-scheme: dark"));
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    }

    #[test]
    fn without_ours_there_is_no_picture() {
        let mut results = results();
        results.allocators[0] = "rpmalloc";
        assert!(write(&results).is_none());
    }
}
