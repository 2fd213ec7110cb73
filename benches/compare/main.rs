//! Compares allocators: runs the same workloads over each of them, in turn, and reports time and resident memory.
//!
//! `cargo run --release -p nearheap-compare --bin compare -- --quick`. README.md says what the numbers mean.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "text is only written to memory, and what a JSON value lacks is null"
)]

mod catalog;
mod chart;
mod header;
mod json;
#[allow(dead_code, reason = "the driver needs only a part of it")]
mod kernel;
mod options;
mod programs;
mod results;
mod table;

use crate::header::Header;
use crate::options::{Options, USAGE};
use crate::programs::{COUNT, Program};
use crate::results::{Cell, OURS, Results, Row};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;
use std::{env, fs};

fn main() -> ExitCode {
    let options = match Options::parse(env::args().skip(1)) {
        Ok(options) => options,
        Err(mistake) => {
            eprintln!("compare: {mistake}");
            return ExitCode::from(2);
        }
    };
    if options.help {
        print!("{USAGE}");
    } else if options.list {
        print!("{}", list());
    } else if let Err(error) = compare(&options) {
        eprintln!("compare: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn list() -> String {
    let mut text = format!("allocators: {}\nworkloads:\n", catalog::ALLOCATORS.join(" "));
    for workload in &catalog::WORKLOADS {
        let when = if workload.full_only { " (not in quick runs)" } else { "" };
        text.push_str(&format!("  {:<17} {}{when}\n", workload.name, workload.about));
    }
    text
}

fn compare(options: &Options) -> Result<(), String> {
    let count = build(COUNT).ok_or("the workloads do not build")?;
    let programs: Vec<Program> =
        options.allocators.iter().filter_map(|allocator| build(allocator)).collect();
    if programs.is_empty() {
        return Err("none of the allocators builds".into());
    }
    let header = Header::gather(&programs);
    print!("{}", header.to_text());
    println!("runs         {} rounds in turn, medians\n", options.rounds);
    let results = run(options, &count, &programs);
    print!("{}", table::write(&results));
    if let Some(path) = &options.json {
        write(path, &format!("{:#}\n", json::write(&header, &results)))?;
    }
    if let Some(path) = &options.svg {
        write(path, &chart::write(&results).ok_or("there is nothing to draw without nearheap")?)?;
    }
    verdict(&results)
}

/// The program for an allocator; one that doesn't build is reported and left out.
fn build(allocator: &'static str) -> Option<Program> {
    let start = Instant::now();
    match Program::build(allocator) {
        Ok(program) => {
            eprintln!("built {allocator} in {:.0} s", start.elapsed().as_secs_f64());
            Some(program)
        }
        Err(output) => {
            eprintln!("{allocator} does not build and is left out:\n{output}");
            None
        }
    }
}

/// Every workload over every program, so many rounds: within a round, each program once.
fn run(options: &Options, count: &Program, programs: &[Program]) -> Results {
    let start = Instant::now();
    let scale = if options.quick { "quick" } else { "full" };
    let mut results = Results {
        allocators: programs.iter().map(|program| program.allocator).collect(),
        rows: Vec::new(),
    };
    for workload in &options.workloads {
        let cells = programs.iter().map(|_| Cell::default()).collect();
        let mut row = Row { workload: workload.name, counted: Cell::default(), cells };
        count.run(workload.name, scale, &mut row.counted);
        let n = programs.len();
        for round in 0..options.rounds {
            // Another one begins in each round, so that nobody always runs after the same neighbour.
            for i in (0..n).map(|i| (round + i) % n) {
                count.warm(scale);
                programs[i].run(workload.name, scale, &mut row.cells[i]);
            }
        }
        results.rows.push(row);
        eprintln!("{:>5.0} s  {}", start.elapsed().as_secs_f64(), workload.name);
    }
    results
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

/// An error where the runs can't be compared, or where ours failed.
fn verdict(results: &Results) -> Result<(), String> {
    let mut errors = results.disagreements();
    if let Some(ours) = results.ours() {
        for row in &results.rows {
            if let Some(failure) = row.cells.get(ours).and_then(|cell| cell.failure.as_ref()) {
                errors.push(format!("{}: {OURS} failed: {failure}", row.workload));
            }
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors.join("\ncompare: ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::{cell, results};

    #[test]
    fn the_list_names_everything() {
        let list = list();
        for name in catalog::ALLOCATORS {
            assert!(list.contains(name), "{name}");
        }
        assert_eq!(list.lines().count(), catalog::WORKLOADS.len() + 2);
    }

    #[test]
    fn a_peer_may_fail_but_ours_may_not() {
        let mut results = results();
        assert_eq!(verdict(&results), Ok(()));
        results.rows[0].cells[0] = Cell { failure: Some("signal 6".into()), ..cell(&[], 1) };
        assert_eq!(verdict(&results), Err("json: nearheap failed: signal 6".into()));
    }
}
