//! Is the malloc family what C programs expect, for every caller there is?
//! Method: C programs, compiled when the test runs, and programs of the system, each run without and with the library
//! loaded. What is compared is the exit status or signal and all output, with glibc's own or with an exact text.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod build;
mod callers;
mod programs;

use build::{library, program, run};
use rstest::rstest;
use std::process::Command;

const TOO_LARGE: &str = "0x7fffffffffffffff";
const PTRDIFF: &str = "0x8000000000000000";
const ALL: &str = "0xffffffffffffffff";

/// With glibc's own allocator and with nearheap, a call returns, refuses, and writes to `errno` the same.
#[rstest]
fn one_size(
    #[values("malloc", "realloc_null", "valloc", "pvalloc")] call: &str,
    #[values(
        "0",
        "1",
        "16",
        "17",
        "1024",
        "1025",
        "4096",
        "32768",
        "32769",
        "300000",
        "1048576",
        "1048577",
        "5000000",
        TOO_LARGE,
        PTRDIFF,
        "0xfffffffffffff000",
        "0xfffffffffffff001",
        ALL
    )]
    size: &str,
) {
    same(&[call, size]);
}

#[rstest]
fn products(
    #[values("calloc", "reallocarray")] call: &str,
    #[values(
        ("0", "0"), ("0", "5"), ("5", "0"), ("1", "1"), ("10", "10"), ("100", "100"), ("1000", "1000"),
        ("7", "300000"), ("0x100000000", "0x100000000"), ("2", PTRDIFF), (ALL, ALL), ("1", TOO_LARGE)
    )]
    (count, size): (&str, &str),
) {
    same(&[call, count, size]);
}

#[rstest]
fn resizes(
    #[values("1", "24", "1000", "5000", "40000", "500000", "3000000")] from: &str,
    #[values(
        "0", "1", "24", "700", "1000", "3000", "5000", "45000", "600000", "2000000", "9000000",
        TOO_LARGE, ALL
    )]
    to: &str,
) {
    same(&["realloc", from, to]);
}

#[rstest]
fn alignments(
    #[values("posix_memalign", "aligned_alloc", "memalign")] call: &str,
    #[values(
        "0",
        "1",
        "4",
        "8",
        "16",
        "32",
        "64",
        "256",
        "4096",
        "65536",
        "2097152",
        "1073741824",
        PTRDIFF
    )]
    align: &str,
    #[values("0", "1", "64", "5000", "100000", "3000000", TOO_LARGE, ALL)] size: &str,
) {
    same(&[call, align, size]);
}

/// What is no power of two is refused by the one and rounded up by the other.
#[rstest]
fn odd_alignments(
    #[values("posix_memalign", "memalign_up")] call: &str,
    #[values("33", "48", "40", "63")] align: &str,
) {
    same(&[call, align, "100"]);
}

#[rstest]
#[case(&["usable_null"])]
#[case(&["free", "100"])]
#[case(&["free", "100000"])]
#[case(&["free", "10000000"])]
#[case(&["free_many", "100"])]
#[case(&["free_many", "5000"])]
#[case(&["free_many", "50000"])]
#[case(&["mallopt"])]
#[case(&["malloc_trim"])]
#[case(&["mallinfo2"])]
fn others(#[case] arguments: &[&str]) {
    same(arguments);
}

/// With block sizes of the program's own, aligned blocks still find their way back.
#[rstest]
fn aligned_with_classes(
    #[values("16,32,64,128", "48,96,192", "64", "64,80,112")] classes: &str,
    #[values("1", "33", "100", "2000")] size: &str,
    #[values("16", "32", "64", "128", "1024", "4096", "65536")] align: &str,
) {
    let arguments = ["posix_memalign", align, size];
    let expected = run(Command::new(program("calls")).args(arguments));
    let nearheap = run(Command::new(program("calls"))
        .args(arguments)
        .env("LD_PRELOAD", library())
        .env("NEARHEAP_CLASSES", classes));
    assert_eq!(nearheap, expected);
}

fn same(arguments: &[&str]) {
    let glibc = run(Command::new(program("calls")).args(arguments));
    let nearheap = run(Command::new(program("calls")).args(arguments).env("LD_PRELOAD", library()));
    assert_eq!(glibc.end, "exit 0", "{}", glibc.stderr);
    assert_eq!(nearheap, glibc);
}

const FOREIGN: &str = "not a block of this heap";
const INSIDE: &str = "not a block start";
const TWICE: &str = "double free";

/// What is no block ends the process with one line that says so, before anything at the address is looked at.
#[rstest]
#[case("stack", FOREIGN)]
#[case("static", FOREIGN)]
#[case("small_integer", FOREIGN)]
#[case("odd_integer", FOREIGN)]
#[case("far", FOREIGN)]
#[case("minus_one", FOREIGN)]
#[case("mapping", FOREIGN)]
#[case("unaligned", INSIDE)]
#[case("inside_small", INSIDE)]
#[case("inside_large", INSIDE)]
#[case("inside_span", INSIDE)]
#[case("inside_huge", INSIDE)]
#[case("span_twice", TWICE)]
#[case("huge_twice", TWICE)]
#[case("small_twice", TWICE)]
fn misuse(
    #[case] what: &str,
    #[case] words: &str,
    #[values("free", "realloc", "usable")] how: &str,
) {
    let run = run(Command::new(program("misuse")).args([what, how]).env("LD_PRELOAD", library()));
    let line = format!("nearheap: fatal: {words}: ptr={} node=0\n", run.stdout.trim_end());
    assert_eq!((run.end.as_str(), run.stderr.as_str()), ("signal 6", line.as_str()));
}

#[test]
fn no_misuse() {
    let run = run(Command::new(program("misuse")).arg("nothing").env("LD_PRELOAD", library()));
    assert_eq!((run.end.as_str(), run.stderr.as_str()), ("exit 0", ""));
}

#[test]
fn what_a_program_leaks_is_listed() {
    let list = "nearheap: live at exit: 7344 bytes in 7 blocks\n\
        nearheap: live: class=3072 align=16 blocks=2 bytes=6144\n\
        nearheap: live: class=240 align=16 blocks=5 bytes=1200\n";
    let mut command = Command::new(program("leaks"));
    let command = command.env("LD_PRELOAD", library()).env("NEARHEAP_HEADERS", "leaks");
    assert_eq!(run(command).stderr, list);
}
