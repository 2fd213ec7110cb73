//! A dump as one page that needs nothing else: no script, no other file, no network.
//! Called by: `nearheap report --html`.

use crate::dump::{Class, Dump, bytes, pairs};
use std::fmt::Write;

const STYLE: &str = "body{font:14px/1.4 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#222;background:#fff}\
table{border-collapse:collapse;width:100%}td,th{padding:2px 8px;text-align:right;white-space:nowrap}\
th{border-bottom:1px solid #999;font-weight:600}td:last-child,th:last-child{text-align:left;width:35%}\
.b{display:inline-block;height:.8em;background:#3b7dd8}.o{background:#c9c9c9}h2{margin-top:1.6em}\
svg text{font:11px system-ui,sans-serif;fill:#444}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}.o{background:#555}svg text{fill:#bbb}}";

/// Text that can't be taken for markup.
fn plain(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn share(n: u64, most: u64) -> f64 {
    if most == 0 { 0.0 } else { n as f64 / most as f64 * 100.0 }
}

/// Columns, one a class: what it has of `of`, on a scale of its own, and what it had before.
fn chart(
    title: &str,
    rows: &[(Class, Class)],
    compared: bool,
    of: impl Fn(&Class) -> u64,
) -> String {
    const HEIGHT: f64 = 160.0;
    let most = rows.iter().map(|(b, a)| of(b).max(of(a))).max().unwrap_or(0);
    let step = (1000.0 / rows.len().max(1) as f64).min(40.0);
    let mut out = format!(
        "<h2>{title}</h2><svg viewBox=\"0 0 1010 {}\" width=\"100%\" role=\"img\" aria-label=\"{title}\">",
        HEIGHT + 60.0
    );
    for (i, (before, after)) in rows.iter().enumerate() {
        let x = i as f64 * step + 5.0;
        let mut column = |n: u64, x: f64, width: f64, color: &str| {
            let height = share(n, most) / 100.0 * HEIGHT;
            // A `String` takes whatever is written.
            let _ = write!(
                out,
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{color}\"><title>{}: {n}</title></rect>",
                HEIGHT - height + 5.0,
                after.name(),
            );
        };
        let width = step * 0.8;
        if compared {
            column(of(before), x, width / 2.0, "#999");
            column(of(after), x + width / 2.0, width / 2.0, "#3b7dd8");
        } else {
            column(of(after), x, width, "#3b7dd8");
        }
        let _ = write!(
            out,
            "<text transform=\"translate({:.1} {}) rotate(-60)\" text-anchor=\"end\">{}</text>",
            x + width * 0.7,
            HEIGHT + 16.0,
            after.name()
        );
    }
    out.push_str("</svg>");
    out
}

/// The page of a dump, beside an earlier one.
pub(crate) fn page(dump: &Dump, before: Option<&Dump>) -> String {
    let nothing = Dump::default();
    let compared = before.is_some();
    let rows = pairs(before.unwrap_or(&nothing), dump);
    let name = plain(&dump.name);
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>nearheap: {name}</title><style>{STYLE}</style>\
         <h1>{name}</h1><p>Process {}, {} threads. In use: {} in {} blocks. In all {} allocations of {}, {} frees.</p>",
        dump.pid,
        dump.threads,
        bytes(dump.totals.in_use_bytes),
        dump.totals.in_use_blocks,
        dump.totals.allocs,
        bytes(dump.allocated_bytes),
        dump.totals.frees,
    );
    if let Some(before) = before {
        let _ = write!(
            out,
            "<p>Gray is {}: in use {} in {} blocks, {} allocations.</p>",
            plain(&before.name),
            bytes(before.totals.in_use_bytes),
            before.totals.in_use_blocks,
            before.totals.allocs
        );
    }
    out.push_str(&chart("Bytes in use, by size class", &rows, compared, |c| c.in_use_bytes));
    out.push_str(&chart("Allocations, by size class", &rows, compared, |c| c.allocs));
    system(&mut out, dump, before);
    classes(&mut out, &rows, compared);
    out.push_str("</html>\n");
    out
}

fn system(out: &mut String, dump: &Dump, before: Option<&Dump>) {
    out.push_str("<h2>System</h2><table><tr><th>what<th>value<th></tr>");
    let most =
        dump.system.iter().filter(|(name, _)| name.ends_with("bytes")).map(|(_, n)| *n).max();
    for (name, n) in &dump.system {
        let is_bytes = name.ends_with("bytes");
        let shown = |n: u64| if is_bytes { bytes(n) } else { n.to_string() };
        let was = before.and_then(|b| b.system.iter().find(|(other, _)| other == name));
        let was = was.map_or(String::new(), |(_, n)| format!(" (was {})", shown(*n)));
        let width = if is_bytes { share(*n, most.unwrap_or(0)) } else { 0.0 };
        let _ = write!(
            out,
            "<tr><td>{}<td>{}{was}<td><span class=\"b\" style=\"width:{width:.1}%\"></span></tr>",
            plain(name),
            shown(*n)
        );
    }
    out.push_str("</table>");
}

fn classes(out: &mut String, rows: &[(Class, Class)], compared: bool) {
    out.push_str("<h2>Size classes</h2><table><tr><th>class<th>allocations<th>frees<th>in use<th>blocks<th>cached<th>in use</tr>");
    let most = rows.iter().map(|(b, a)| a.in_use_bytes.max(b.in_use_bytes)).max().unwrap_or(0);
    for (b, a) in rows {
        let old = if compared {
            format!(
                "<span class=\"b o\" style=\"width:{:.1}%\"></span><br>",
                share(b.in_use_bytes, most)
            )
        } else {
            String::new()
        };
        let _ = write!(
            out,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{old}<span class=\"b\" style=\"width:{:.1}%\"></span></tr>",
            a.name(),
            a.allocs,
            a.frees,
            bytes(a.in_use_bytes),
            a.in_use_blocks,
            a.cached_blocks,
            share(a.in_use_bytes, most)
        );
    }
    out.push_str("</table>");
}
