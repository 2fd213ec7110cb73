//! Does the command run programs as they would run alone, and say in one line what is wrong otherwise?

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use rstest::rstest;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

fn nearheap(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nearheap"));
    command.args(arguments).stdin(Stdio::null()).env_remove("LD_PRELOAD").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A file for the test of this name, which isn't there yet.
fn file(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_file(&path);
    path
}

/// A library that is loaded and does nothing: what `run` does is the same with every library.
fn library() -> String {
    static PATH: OnceLock<String> = OnceLock::new();
    let make = || {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("nothing.so");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-x", "c", "/dev/null", "-o"]).arg(&path);
        assert!(compiler.status().expect("cc, which these tests need").success());
        path.to_str().unwrap().to_owned()
    };
    PATH.get_or_init(make).clone()
}

#[rstest]
#[case(&[], "say what to do")]
#[case(&["walk"], "there is no command \"walk\"; the commands are run, options and report")]
#[case(&["run"], "run: name the program")]
#[case(&["run", "--walk", "ls"], "--walk")]
#[case(&["run", "--stats"], "--stats")]
#[case(&["run", "--stats", "xml", "ls"], "run: --stats xml: expected text (or on), json, openmetrics or off")]
#[case(&["run", "--limit", "much", "ls"], "run: --limit much: expected none, a size such as 2G")]
#[case(&["run", "--numa", "moon", "ls"], "run: --numa moon: expected local, off")]
#[case(&["run", "--stats-file", "%d", "ls"], "run: --stats-file %d: expected none or a path")]
#[case(&["run", "--headers=maybe", "ls"], "run: --headers maybe: expected auto, on, off or leaks")]
#[case(&["run", "--set", "retain", "ls"], "run: --set wants NAME=VALUE")]
#[case(&["run", "--set", "speed=9", "ls"], "this version has no option speed")]
#[case(&["report"], "report: name a dump")]
#[case(&["report", "--pdf"], "--pdf")]
#[case(&["options", "all"], "all")]
fn usage(#[case] arguments: &[&str], #[case] words: &str) {
    failed(arguments, 2, words);
}

#[rstest]
#[case(&["run", "--library", "/nowhere.so", "ls"], 1, "run: --library /nowhere.so: there is no such file")]
#[case(&["report", "/nowhere.json"], 1, "/nowhere.json: can't be read")]
#[case(&["report", "/etc/passwd"], 1, "/etc/passwd: no dump in JSON")]
fn refusals(#[case] arguments: &[&str], #[case] status: i32, #[case] words: &str) {
    failed(arguments, status, words);
}

#[test]
fn programs_that_do_not_start() {
    let library = library();
    failed(
        &["run", "--library", &library, "/nowhere"],
        127,
        "run: /nowhere: there is no such program",
    );
    failed(
        &["run", "--library", &library, "/etc/passwd"],
        126,
        "run: /etc/passwd: it can't be executed",
    );
}

fn failed(arguments: &[&str], status: i32, words: &str) {
    let output = nearheap(arguments);
    let line = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{line}");
    assert!(line.starts_with("nearheap: ") && line.contains(words), "{line}");
    assert_eq!((line.matches('\n').count(), output.stdout.len()), (1, 0), "{line}");
}

/// Status, signal, output, and every argument after the program's name are the program's.
#[test]
fn a_program_runs_as_it_would_alone() {
    let library = library();
    let run = |script: &str| {
        nearheap(&["run", "--library", &library, "--", "sh", "-c", script, "--stats", "--", "x y"])
    };
    let output = run("echo \"$0|$1|$2\"; echo e >&2; exit 7");
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(
        (text(&output.stdout), text(&output.stderr)),
        ("--stats|--|x y\n".into(), "e\n".into())
    );
    assert_eq!(run("kill -9 $$").status.signal(), Some(9));
}

#[rstest]
#[case("--headers", "on")]
#[case("--headers=leaks", "leaks")]
fn headers_take_a_value(#[case] argument: &str, #[case] value: &str) {
    let output = nearheap(&["run", "--library", &library(), argument, "env"]);
    let line = format!("NEARHEAP_HEADERS={value}");
    assert!(text(&output.stdout).lines().any(|l| l == line), "{}", text(&output.stdout));
}

#[test]
fn options_reach_the_environment() {
    let library = library();
    let arguments = [
        "run",
        "--library",
        &library,
        "--stats",
        "json",
        "--stats-file",
        "/tmp/%p",
        "--numa",
        "interleave",
        "--limit",
        "80%",
        "--set",
        "cache_bytes=64K",
        "env",
    ];
    let output = text(&nearheap(&arguments).stdout);
    for line in [
        "NEARHEAP_STATS=json",
        "NEARHEAP_STATS_FILE=/tmp/%p",
        "NEARHEAP_NUMA=interleave",
        "NEARHEAP_LIMIT_HARD=80%",
        "NEARHEAP_CACHE_BYTES=64K",
    ] {
        assert!(output.lines().any(|l| l == line), "{line} in {output}");
    }
    assert!(output.lines().any(|l| l.starts_with("LD_PRELOAD=") && l.ends_with("nothing.so")));
}

/// As `cargo install` leaves it, alone in a folder, the command says what to do; and it finds the library in the folder
/// `lib` beside its own.
#[test]
fn an_installed_command_finds_the_library_or_says_what_to_do() {
    let prefix = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("prefix");
    let _ = fs::remove_dir_all(&prefix);
    fs::create_dir_all(prefix.join("bin")).unwrap();
    fs::create_dir_all(prefix.join("lib")).unwrap();
    let command = prefix.join("bin/nearheap");
    fs::copy(env!("CARGO_BIN_EXE_nearheap"), &command).unwrap();
    let run = || Command::new(&command).args(["run", "env"]).output().unwrap();
    let alone = run();
    let line = text(&alone.stderr);
    let says = "nearheap: run: libnearheap_preload.so isn't beside the command nor in ../lib, /usr/local/lib or /usr/lib; \
                build it with `cargo build --release --package nearheap-preload` in the sources of nearheap, and put it \
                there or name it with --library\n";
    assert_eq!((alone.status.code(), line.as_str()), (Some(1), says));
    let there = prefix.join("lib/libnearheap_preload.so");
    fs::copy(library(), &there).unwrap();
    let output = text(&run().stdout);
    let expected = format!("LD_PRELOAD={}", there.canonicalize().unwrap().display());
    assert!(output.lines().any(|line| line == expected), "{output}");
}

/// The library goes before whatever is loaded already.
#[test]
fn other_libraries_stay() {
    let library = library();
    let mut command = Command::new(env!("CARGO_BIN_EXE_nearheap"));
    command.args(["run", "--library", &library, "env"]).env("LD_PRELOAD", &library);
    let output = text(&command.output().unwrap().stdout);
    let line = output.lines().find_map(|l| l.strip_prefix("LD_PRELOAD=")).unwrap();
    let (first, rest) = line.split_once(':').unwrap();
    assert_eq!((first.ends_with("nothing.so"), rest), (true, library.as_str()));
}

/// Every row of the README's table is there, with its default.
#[test]
fn options_are_those_of_the_readme() {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    let output = text(&nearheap(&["options"]).stdout);
    let table = readme.split("<!-- options -->").nth(1).unwrap();
    let table = table.split("<!-- /options -->").next().unwrap();
    let mut rows = 0;
    for row in table.lines().filter_map(|line| line.strip_prefix("| `")) {
        let name = row.split('`').next().unwrap();
        let default = row.split('`').nth(2).unwrap();
        let found = output.lines().any(|line| {
            line.starts_with(&format!("{name}  (")) && line.contains(&format!("default {default})"))
        });
        assert!(found, "{name} {default}");
        rows += 1;
    }
    assert_eq!(output.lines().filter(|line| !line.starts_with(' ')).count(), rows);
}

const BEFORE: &str = r#"{"version":1,"pid":7,"totals":{"allocs":12,"frees":8,"allocated_bytes":5000,"freed_bytes":4000,
"in_use_bytes":1056,"in_use_blocks":4},"classes":[{"size":64,"align":16,"allocs":8,"frees":6,"in_use_blocks":2,
"in_use_bytes":128,"cached_blocks":3},{"size":64,"align":64,"allocs":4,"frees":2,"in_use_blocks":2,"in_use_bytes":928,
"cached_blocks":0}],"unlisted":{},"huge":{"allocs":0},"nodes":[],"live_threads":2,"threads":[],
"system":{"mapped_bytes":4194304,"maps":3}}"#;

fn dumps(name: &str) -> (PathBuf, PathBuf) {
    let (before, after) = (file(&format!("{name}-1.json")), file(&format!("{name}-<2>.json")));
    fs::write(&before, BEFORE).unwrap();
    let grown = BEFORE
        .replace(
            "\"in_use_blocks\":2,\n\"in_use_bytes\":128",
            "\"in_use_blocks\":5,\n\"in_use_bytes\":320",
        )
        .replace(
            "\"huge\":{\"allocs\":0}",
            "\"huge\":{\"allocs\":1,\"in_use_blocks\":1,\"in_use_bytes\":4194304}",
        );
    assert!(grown.contains("320"));
    fs::write(&after, grown).unwrap();
    (before, after)
}

#[test]
fn a_dump_is_a_table() {
    let (before, _) = dumps("table");
    let output = nearheap(&["report", before.to_str().unwrap()]);
    let lines: Vec<_> = text(&output.stdout).lines().map(str::to_owned).collect();
    assert_eq!(lines[0], format!("{}: process 7, 2 threads", before.display()));
    assert_eq!(lines[1], "in use: 1.0 KiB in 4 blocks; in all 12 allocations of 4.9 KiB, 8 frees");
    assert_eq!(lines[2..4], ["mapped: 4.0 MiB", "maps: 3"]);
    let full = "█".repeat(24);
    assert_eq!(
        lines[6],
        format!("        64             8         128 B           2           3  {full}  ███▎")
    );
    assert_eq!(
        lines[7],
        format!(
            "     64/64             4         928 B           2           0  {}{}  {full}",
            "█".repeat(12),
            " ".repeat(12)
        )
    );
    assert_eq!((lines.len(), output.status.code()), (8, Some(0)));
}

#[test]
fn two_dumps_are_compared() {
    let (before, after) = dumps("compared");
    let output = nearheap(&["report", before.to_str().unwrap(), after.to_str().unwrap()]);
    let text = text(&output.stdout);
    let rows: Vec<Vec<_>> =
        text.lines().skip(6).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0][..4], ["64", "+0", "+192", "+3"]);
    assert_eq!(rows[1][..4], ["huge", "+1", "+4194304", "+1"]);
    assert_eq!(rows.len(), 2, "{text}");
}

/// The page names nothing outside of itself, and a file's name is no markup.
#[rstest]
fn a_page_is_all_there_is(#[values(false, true)] compared: bool) {
    let (before, after) = dumps(if compared { "page-of-two" } else { "page" });
    let page = file(if compared { "two.html" } else { "one.html" });
    let mut arguments = vec!["report", "--html", page.to_str().unwrap()];
    if compared {
        arguments.push(before.to_str().unwrap());
    }
    arguments.push(after.to_str().unwrap());
    assert_eq!(nearheap(&arguments).status.code(), Some(0));
    let html = fs::read_to_string(page).unwrap();
    assert!(html.starts_with("<!doctype html>") && html.ends_with("</html>\n"));
    assert!(html.contains("&lt;2&gt;.json") && !html.contains("<2>"));
    for outside in ["http", "src=", "href=", "<script", "@import", "url("] {
        assert!(!html.contains(outside), "{outside}");
    }
    assert_eq!(html.matches("<rect").count(), if compared { 12 } else { 6 });
    for tag in ["svg", "table", "h2", "style"] {
        let open =
            html.matches(&format!("<{tag} ")).count() + html.matches(&format!("<{tag}>")).count();
        assert_eq!(open, html.matches(&format!("</{tag}>")).count(), "{tag}");
    }
}

#[test]
fn a_dump_of_another_version_is_refused() {
    let other = file("other.json");
    fs::write(&other, BEFORE.replace("\"version\":1", "\"version\":9")).unwrap();
    failed(
        &["report", other.to_str().unwrap()],
        1,
        "a dump of version 9, and this command reads 1",
    );
}
