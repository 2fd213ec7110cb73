//! What was asked for on the command line.
//! Owns: `Options`. Called by: `main`. A mistake is one sentence.

use crate::catalog::{ALLOCATORS, WORKLOADS, Workload, workload};
use std::path::PathBuf;

pub(crate) const USAGE: &str = "\
usage: compare [--quick] [--workloads A,B] [--allocators A,B] [--rounds N] [--json FILE] [--svg FILE] [--list]

  --quick            a tenth of the work and 3 rounds: under 3 minutes once everything is built
  --workloads A,B    only these; all of them otherwise
  --allocators A,B   only these; all of them otherwise
  --rounds N         so many runs of each, in turn; 5 otherwise
  --json FILE        writes every run and every result to a file as well
  --svg FILE         draws a chart as well
  --list             names the allocators and the workloads, and does nothing else
";

const FULL_ROUNDS: usize = 5;
const QUICK_ROUNDS: usize = 3;
const MOST_ROUNDS: usize = 1000;

/// What is to be run, and where the results go.
pub(crate) struct Options {
    pub(crate) allocators: Vec<&'static str>,
    pub(crate) workloads: Vec<&'static Workload>,
    pub(crate) rounds: usize,
    pub(crate) quick: bool,
    pub(crate) json: Option<PathBuf>,
    pub(crate) svg: Option<PathBuf>,
    pub(crate) list: bool,
    pub(crate) help: bool,
}

impl Options {
    /// Reads the arguments that follow the program's name.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut arguments = arguments.into_iter();
        let (mut allocators, mut workloads, mut rounds) = (None, None, None);
        let mut options = Self {
            allocators: ALLOCATORS.to_vec(),
            workloads: Vec::new(),
            rounds: 0,
            quick: false,
            json: None,
            svg: None,
            list: false,
            help: false,
        };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument}: a value is missing"));
            match argument.as_str() {
                "--quick" => options.quick = true,
                "--list" => options.list = true,
                "--help" | "-h" => options.help = true,
                "--json" => options.json = Some(value()?.into()),
                "--svg" => options.svg = Some(value()?.into()),
                "--rounds" => rounds = Some(parse_rounds(&value()?)?),
                "--allocators" => allocators = Some(chosen(&value()?, find_allocator)?),
                "--workloads" => workloads = Some(chosen(&value()?, find_workload)?),
                _ => return Err(format!("{argument}: no such option; --help names them")),
            }
        }
        options.rounds = rounds.unwrap_or(if options.quick { QUICK_ROUNDS } else { FULL_ROUNDS });
        options.allocators = allocators.unwrap_or(options.allocators);
        let all = WORKLOADS.iter().filter(|workload| !(options.quick && workload.full_only));
        options.workloads = workloads.unwrap_or_else(|| all.collect());
        Ok(options)
    }
}

fn parse_rounds(text: &str) -> Result<usize, String> {
    let rounds = text.parse().ok().filter(|rounds| (1..=MOST_ROUNDS).contains(rounds));
    rounds.ok_or(format!("--rounds {text}: a number from 1 to {MOST_ROUNDS} is needed"))
}

fn find_allocator(name: &str) -> Result<&'static str, String> {
    let found = ALLOCATORS.iter().find(|allocator| **allocator == name);
    found.copied().ok_or(format!("{name}: no such allocator; there are {}", ALLOCATORS.join(", ")))
}

fn find_workload(name: &str) -> Result<&'static Workload, String> {
    workload(name).ok_or(format!("{name}: no such workload; --list names them"))
}

/// What the names in `list` stand for, each once.
fn chosen<T>(list: &str, find: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    let mut names: Vec<&str> = Vec::new();
    for name in list.split(',').map(str::trim) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.into_iter().map(find).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn everything_runs_when_nothing_is_asked_for() {
        let options = parse("").unwrap();
        assert_eq!((options.allocators.len(), options.workloads.len()), (10, WORKLOADS.len()));
        assert_eq!((options.rounds, options.quick), (FULL_ROUNDS, false));
    }

    #[test]
    fn a_quick_run_leaves_out_what_is_long_unless_it_is_named() {
        let options = parse("--quick").unwrap();
        assert!(options.workloads.iter().all(|workload| !workload.full_only));
        assert_eq!(options.rounds, QUICK_ROUNDS);
        assert_eq!(parse("--quick --workloads vec-1g").unwrap().workloads[0].name, "vec-1g");
    }

    #[test]
    fn names_are_taken_in_their_order_and_once() {
        let options = parse("--allocators glibc,nearheap,glibc --workloads json,tiny --rounds 7");
        let options = options.unwrap();
        assert_eq!(options.allocators, ["glibc", "nearheap"]);
        let names: Vec<&str> = options.workloads.iter().map(|workload| workload.name).collect();
        assert_eq!((names, options.rounds), (vec!["json", "tiny"], 7));
    }

    #[rstest]
    #[case(
        "--allocators hoard",
        "hoard: no such allocator; there are nearheap, glibc, mimalloc3, "
    )]
    #[case("--workloads json,jsno", "jsno: no such workload; --list names them")]
    #[case("--workloads", "--workloads: a value is missing")]
    #[case("--rounds 0", "--rounds 0: a number from 1 to 1000 is needed")]
    #[case("--rounds many", "--rounds many: a number from 1 to 1000 is needed")]
    #[case("--fast", "--fast: no such option; --help names them")]
    fn a_mistake_is_one_sentence(#[case] line: &str, #[case] sentence: &str) {
        let error = parse(line).err().unwrap();
        assert!(error.starts_with(sentence) && !error.contains('\n'), "{error}");
    }
}
