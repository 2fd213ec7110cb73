//! A tiny program: it reads its arguments, fills a map and a list, and ends. What is measured is that it starts and ends.
//! Parameters: 500 processes, one after another. Their resident memory is reported, not that of the process that starts them.

use crate::kernel;
use crate::probe::Probe;
use std::collections::BTreeMap;
use std::env::current_exe;
use std::process::{Command, Stdio};

/// The first argument of the program that plays the tiny one.
pub(crate) const CHILD: &str = "--tiny";
/// Of so many, one tells its resident memory, outside of the measured time.
const REPORTING: usize = 50;

pub(crate) fn tiny(probe: &mut Probe) -> u64 {
    let processes = probe.pick(500, 60, 2);
    let (mut sum, mut peak, mut end) = (0, 0, 0);
    for number in 0..processes {
        sum += 1 + run("quiet").len() as u64;
        if number % REPORTING == 0 {
            let text = probe.untimed(|_| run("report"));
            let numbers: Vec<u64> =
                text.split_whitespace().map(|word| word.parse().expect("a number")).collect();
            peak = numbers[0].max(peak);
            end = numbers[1].max(end);
        }
    }
    probe.peak();
    probe.children(peak, end);
    sum
}

/// Plays the tiny program.
pub(crate) fn child(report: &str) {
    let mut words: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (place, word) in include_str!("tiny.rs").split_whitespace().enumerate() {
        words.entry(word.to_owned()).or_default().push(place);
    }
    assert!(words.contains_key("Parameters:"));
    drop(words);
    if report == "report" {
        println!("{} {}", kernel::peak_resident_bytes(), kernel::resident_bytes());
    }
}

fn run(report: &str) -> String {
    let program = current_exe().expect("the program's path");
    let output = Command::new(program)
        .args([CHILD, report])
        .stderr(Stdio::inherit())
        .output()
        .expect("a process");
    assert!(output.status.success(), "the tiny program ended with {}", output.status);
    String::from_utf8(output.stdout).expect("numbers")
}
