//! Whoever calls: threads, forks, loaded libraries, C++, privileged programs, programs linked with the library.

use crate::build::{
    cxx_program, example, library, linked_program, plugin, program, run, two_languages,
};
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

fn good(command: &mut Command) {
    let run = run(command.env("LD_PRELOAD", library()));
    assert_eq!(
        (run.end.as_str(), run.stdout.as_str(), run.stderr.as_str()),
        ("exit 0", "good\n", "")
    );
}

#[test]
fn threads_and_forks() {
    good(&mut Command::new(program("threads")));
}

#[test]
fn threads_and_forks_with_small_caches() {
    good(
        Command::new(program("threads"))
            // In headers mode, what is freed passes by the caches.
            .env("NEARHEAP_HEADERS", "0")
            .env("NEARHEAP_CACHE_BYTES", "0")
            .env("NEARHEAP_RETAIN", "0"),
    );
}

/// Blocks cross between a program and what it loads, and constructors are served; `dlclose` doesn't unload the allocator,
/// whoever loaded it.
#[test]
fn loaded_libraries() {
    good(Command::new(program("load")).arg(plugin("plugin")).arg(library()));
}

#[test]
fn loaded_by_nobody_before() {
    let run = run(Command::new(program("load")).arg(plugin("plugin")).arg(library()));
    assert_eq!(
        (run.end.as_str(), run.stdout.as_str(), run.stderr.as_str()),
        ("exit 0", "good\n", "")
    );
}

#[test]
fn new_and_delete() {
    good(&mut Command::new(cxx_program("forms")));
}

/// A program that is linked with the library needs no `LD_PRELOAD`.
#[test]
fn linked() {
    let run = run(Command::new(linked_program("hello")).env("NEARHEAP_STATS", "1"));
    assert_eq!((run.end.as_str(), run.stdout.as_str()), ("exit 5", "hello\n"));
    assert!(run.stderr.contains("nearheap: total heap usage: "), "{}", run.stderr);
}

/// Frees with sizes, which take the same blocks; glibc's own names for the family; the report.
#[test]
fn what_glibc_has_under_other_names_or_not() {
    let good = run(&mut Command::new(linked_program("extras")));
    assert_eq!(
        (good.end.as_str(), good.stdout.as_str(), good.stderr.as_str()),
        ("exit 0", "good\n", "")
    );
    let report = run(Command::new(linked_program("extras")).arg("report"));
    assert!(report.stderr.starts_with("nearheap: heap of process "), "{}", report.stderr);
    assert!(report.stderr.contains("\nnearheap: total heap usage: "), "{}", report.stderr);
}

/// Every format at the end of a program in C, on standard error or in a file.
#[test]
fn a_program_in_c_writes_every_format() {
    let file = std::env::temp_dir().join(format!("nearheap-c-{}.json", std::process::id()));
    for (format, begins, contains) in [
        ("text", "nearheap: heap of process ", "total heap usage: "),
        ("json", "{\"version\":1,", "\"totals\":{"),
        ("openmetrics", "# ", "\n# EOF\n"),
    ] {
        let mut hello = Command::new(program("hello"));
        hello.env("LD_PRELOAD", library()).env("NEARHEAP_STATS", format);
        let told = run(&mut hello);
        assert_eq!((told.end.as_str(), told.stdout.as_str()), ("exit 5", "hello\n"));
        let good = |text: &str| text.starts_with(begins) && text.contains(contains);
        assert!(good(&told.stderr), "{}", told.stderr);
        let written = run(hello.env("NEARHEAP_STATS_FILE", &file));
        assert_eq!((written.end.as_str(), written.stderr.as_str()), ("exit 5", ""));
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(good(&text), "{text}");
    }
    let _ = std::fs::remove_file(file);
}

/// A Rust program that has the malloc family in itself, and nearheap as Rust's allocator: each language frees what the other
/// made, and one statistic counts both.
#[test]
fn one_heap_in_the_program() {
    let run = run(Command::new(example("one_heap")).arg(plugin("peer")));
    assert_eq!(
        (run.end.as_str(), run.stdout.as_str(), run.stderr.as_str()),
        ("exit 0", "good\n", "")
    );
}

/// The same with a Rust program that is linked with the shared library, and with C code in it.
#[test]
fn one_heap_in_the_library() {
    let run = run(Command::new(two_languages()).env("NEARHEAP_STATS", "text"));
    assert_eq!((run.end.as_str(), run.stdout.as_str()), ("exit 0", "good\n"), "{}", run.stderr);
    let total =
        run.stderr.lines().find_map(|line| line.strip_prefix("nearheap: total heap usage: "));
    let allocs = total.and_then(|total| total.split(' ').next()?.parse::<u64>().ok());
    // Seven sizes a thousand times, one block made in each language, and some of which grow and move.
    assert!(allocs.is_some_and(|n| (14_000..22_000).contains(&n)), "{}", run.stderr);
}

/// A program with more privileges than its caller ignores every variable. Only root can make one that isn't root's.
#[test]
fn set_user() {
    const NOBODY: u32 = 65534;
    // SAFETY: asks for the user.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("not run: needs root");
        return;
    }
    let hello = linked_program("hello");
    let privileged = hello.with_extension("privileged");
    std::fs::copy(&hello, &privileged).unwrap();
    let mut command = Command::new(&privileged);
    command.env("NEARHEAP_STATS", "1").env("NEARHEAP_NONSENSE", "1");
    let before = run(&mut command);
    assert!(before.stderr.contains("NEARHEAP_NONSENSE"), "{}", before.stderr);

    chown(&privileged, Some(NOBODY), Some(NOBODY)).unwrap();
    std::fs::set_permissions(&privileged, std::fs::Permissions::from_mode(0o4755)).unwrap();
    let after = run(&mut command);
    assert_eq!(
        (after.end.as_str(), after.stdout.as_str(), after.stderr.as_str()),
        ("exit 5", "hello\n", "")
    );
}
