//! `nearheap`: the command. Runs programs on the heap, prints the options, reads dumps.
//! Owns: the command line and its errors. Called by: people and scripts.
//!
//! M1: an error is one line on standard error that says what to do; the status is 2 for usage, 1 for what was asked but
//!     couldn't be done, and as a shell's (126, 127) where the program can't be started.
//!
//! | file | noun |
//! |---|---|
//! | `run` | a program with the library loaded |
//! | `table` | the options, from the allocator's one table |
//! | `dump`, `text`, `html` | a dump in JSON, and how it is shown |

mod dump;
mod html;
mod run;
mod table;
mod text;

// The allocator's own files, of which a part is used: links, which are files in a package.
#[allow(dead_code, unreachable_pub)]
mod nodes;
#[allow(dead_code, unreachable_pub, unused_imports)]
mod options;
#[allow(dead_code, unreachable_pub)]
mod policy;
#[allow(dead_code, unreachable_pub)]
mod value;

use lexopt::prelude::*;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

const USAGE: &str = "\
usage: nearheap run [OPTIONS] [--] PROGRAM [ARGUMENTS...]
       nearheap options
       nearheap report FILE.json [FILE.json] [--html OUT]

run: starts a program, in any language, on the heap of nearheap. Its exit status and signals are the program's own.
    --stats FORMAT      writes the statistics when it ends: text, json or openmetrics
    --stats-file FILE   writes them there instead of to standard error; %p becomes the process id
    --numa POLICY       where memory lies, such as local, interleave or preferred:1
    --limit SIZE        memory beyond which an allocation fails, such as 2G or 80%
    --headers           a header before every block, which finds misuse at once; with --headers=leaks, what is live when
                        the program ends is listed too
    --set NAME=VALUE    any other option that `nearheap options` lists
    --library FILE      the shared library, where it isn't found by itself
options: prints every option with its values, its default and its meaning.
report: prints a dump (--stats json) as a table with bars; of two dumps, what changed; or a page with charts.
";

/// Why the command ends without having done it: the line, and the status.
#[derive(Debug)]
pub(crate) struct Failure {
    line: String,
    status: u8,
}

impl Failure {
    /// What was typed can't be meant.
    pub(crate) fn usage(line: impl Display) -> Self {
        Self { line: line.to_string(), status: 2 }
    }

    /// What was asked couldn't be done.
    pub(crate) fn because(line: impl Display) -> Self {
        Self::with_status(1, line)
    }

    pub(crate) fn with_status(status: u8, line: impl Display) -> Self {
        Self { line: line.to_string(), status }
    }
}

impl From<lexopt::Error> for Failure {
    fn from(error: lexopt::Error) -> Self {
        Self::usage(format_args!("{error}; `nearheap --help` shows what there is"))
    }
}

fn main() -> ExitCode {
    let failure = match command() {
        Ok(()) => return ExitCode::SUCCESS,
        Err(failure) => failure,
    };
    // Where standard error is closed there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "nearheap: {}", failure.line);
    ExitCode::from(failure.status)
}

fn command() -> Result<(), Failure> {
    let mut parser = lexopt::Parser::from_env();
    match parser.next()? {
        Some(Value(command)) => match command.to_str() {
            Some("run") => run::run(&mut parser),
            Some("options") => options_command(&mut parser),
            Some("report") => report(&mut parser),
            Some("help") => print(USAGE),
            _ => Err(Failure::usage(format_args!(
                "there is no command {command:?}; the commands are run, options and report"
            ))),
        },
        Some(Short('h') | Long("help")) => print(USAGE),
        Some(Short('V') | Long("version")) => {
            print(concat!("nearheap ", env!("CARGO_PKG_VERSION"), "\n"))
        }
        Some(other) => Err(other.unexpected().into()),
        None => Err(Failure::usage(
            "say what to do: run, options or report; `nearheap --help` has more",
        )),
    }
}

/// Prints to standard output; that nobody reads it to its end is no error.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::because(format_args!("standard output can't be written: {error}")))
        }
        _ => Ok(()),
    }
}

fn options_command(parser: &mut lexopt::Parser) -> Result<(), Failure> {
    match parser.next()? {
        None => print(&table::text()),
        Some(other) => Err(other.unexpected().into()),
    }
}

fn report(parser: &mut lexopt::Parser) -> Result<(), Failure> {
    let mut files: Vec<OsString> = Vec::new();
    let mut page = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Long("html") => page = Some(parser.value()?),
            Value(file) => files.push(file),
            other => return Err(other.unexpected().into()),
        }
    }
    let dumps = files.iter().map(|file| dump::read(file)).collect::<Result<Vec<_>, _>>()?;
    let shown = match dumps.as_slice() {
        [] => {
            return Err(Failure::usage(
                "report: name a dump, which `nearheap run --stats json --stats-file FILE` writes",
            ));
        }
        [one] if page.is_none() => text::one(one),
        [before, after] if page.is_none() => text::two(before, after),
        [one] => html::page(one, None),
        [before, after] => html::page(after, Some(before)),
        _ => return Err(Failure::usage("report: one dump, or two to compare")),
    };
    match page {
        None => print(&shown),
        Some(file) => std::fs::write(&file, shown).map_err(|error| {
            Failure::because(format_args!("{}: can't be written: {error}", file.display()))
        }),
    }
}
