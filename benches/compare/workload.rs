//! Runs one workload on the allocator that it was built with, and prints one line of JSON: `workload NAME [SCALE]`.
//!
//! SCALE is `full` (the default), `quick` or `tiny`. `workload --engine` prints the allocator's name and, where it tells,
//! the version of its engine. The program `compare` builds and runs this one; README.md says what the numbers mean.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a workload that fails should end with the place where it did"
)]

mod allocator;
mod block;
mod catalog;
mod kernel;
mod probe;
mod workloads;

use crate::probe::{Probe, Scale};
use std::process::ExitCode;

/// No workload takes a tenth of this on an allocator that works.
const LIMIT_SECONDS: u32 = 120;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    allocator::start();
    kernel::end_after(LIMIT_SECONDS);
    match arguments[..] {
        ["--engine"] => {
            println!("{} {}", allocator::name(), allocator::engine().unwrap_or_default())
        }
        [kernel::WARM, scale] => kernel::warm(if scale == "quick" { 192 << 20 } else { 512 << 20 }),
        [workloads::tiny::CHILD, report] => workloads::tiny::child(report),
        [name] => return run(name, "full"),
        [name, scale] => return run(name, scale),
        _ => {
            eprintln!("usage: workload NAME [full|quick|tiny]");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

fn run(name: &str, scale: &str) -> ExitCode {
    let Some(run) = workloads::find(name) else {
        eprintln!("workload: {name}: no such workload");
        return ExitCode::from(2);
    };
    let Some(scale) = Scale::parse(scale) else {
        eprintln!("workload: {scale}: no such scale; there are full, quick and tiny");
        return ExitCode::from(2);
    };
    if catalog::workload(name).is_some_and(|workload| workload.pinned) {
        kernel::pin();
    }
    println!("{}", Probe::run(run, scale).to_json(name));
    ExitCode::SUCCESS
}
