//! Where and with what the numbers were measured.
//! Owns: `Header`. Called by: `main`.

use crate::programs::{Program, root};
use std::process::Command;
use std::{env, fs, thread};

/// Prefixes of the variables that allocators read.
const VARIABLES: [&str; 7] =
    ["NEARHEAP_", "MALLOC_", "GLIBC_TUNABLES", "MIMALLOC_", "_RJEM_", "SNMALLOC_", "TCMALLOC_"];

/// Names and values, in their order.
pub(crate) struct Header(pub(crate) Vec<(String, String)>);

impl Header {
    /// Asks the machine, the tools and the programs.
    pub(crate) fn gather(programs: &[Program]) -> Self {
        let mut header = Self(Vec::new());
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        let model = field(&read("/proc/cpuinfo"), "model name").unwrap_or("unknown".into());
        let memory = field(&read("/proc/meminfo"), "MemTotal").unwrap_or("unknown".into());
        header.add("machine", format!("{cpus} CPUs ({model}), {memory} of memory"));
        header.add("kernel", format!("Linux {}", read("/proc/sys/kernel/osrelease")));
        header.add("huge pages", chosen(&read("/sys/kernel/mm/transparent_hugepage/enabled")));
        header.add("rustc", said("rustc", &["--version"]));
        header.add("date", said("date", &["-u", "+%Y-%m-%d"]));
        header.add("load", load());
        header.add("command", command());
        let locked = read(&root().join("Cargo.lock").to_string_lossy());
        for program in programs {
            header.add(program.allocator, version(program, &locked));
        }
        for (name, value) in env::vars() {
            if VARIABLES.iter().any(|prefix| name.starts_with(prefix)) {
                header.add(&name, value);
            }
        }
        header
    }

    fn add(&mut self, name: &str, value: impl Into<String>) {
        self.0.push((name.to_owned(), value.into()));
    }

    /// One line for each.
    pub(crate) fn to_text(&self) -> String {
        self.0.iter().map(|(name, value)| format!("{name:<12} {value}\n")).collect()
    }
}

/// The crate that brings an allocator, and the version of its engine where that is another.
fn version(program: &Program, locked: &str) -> String {
    let name = match program.allocator {
        "glibc" => "",
        "jemalloc" => "tikv-jemallocator",
        "mimalloc2" | "mimalloc3" => "mimalloc",
        "rusty_alloc" => "rusty_alloc-api",
        "snmalloc" => "snmalloc-rs",
        "tcmalloc" => "tcmalloc-better",
        other => other,
    };
    let locked = locked_version(locked, name).map(|version| format!("{name} {version}"));
    let engine = program.engine().map(|engine| format!("engine {engine}"));
    let commit = (name == "nearheap").then(commit);
    let parts: Vec<String> = [locked, engine, commit].into_iter().flatten().collect();
    parts.join(", ")
}

/// The commit that is checked out, and whether the allocator differs from it.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let root = root().to_string_lossy();
        said("git", &[&["-C", &root], arguments].concat())
    };
    let changes = git(&["status", "--porcelain", "--", "allocator", "numa", "stats", "build.rs"]);
    let changed = if changes.is_empty() { "" } else { " with changes" };
    format!("commit {}{changed}", git(&["rev-parse", "--short", "HEAD"]))
}

fn command() -> String {
    let arguments: Vec<String> = env::args().skip(1).collect();
    format!("cargo run --release -p nearheap-compare --bin compare -- {}", arguments.join(" "))
}

fn locked_version<'l>(locked: &'l str, name: &str) -> Option<&'l str> {
    let (_, rest) = locked.split_once(&format!("name = \"{name}\"\nversion = \""))?;
    rest.split('"').next()
}

/// How many threads ran or waited to, over the last minutes: above nothing, others took part of the machine.
fn load() -> String {
    let averages = read("/proc/loadavg");
    let averages: Vec<&str> = averages.split_whitespace().take(3).collect();
    format!("{} before the first run", averages.join(" "))
}

/// The word in brackets.
fn chosen(text: &str) -> String {
    let inside = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    inside.map_or("none", |(word, _)| word).to_owned()
}

fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map(|text| text.trim_end().to_owned()).unwrap_or_default()
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[test]
    fn the_lock_file_tells_versions() {
        let locked = "[[package]]\nname = \"mimalloc\"\nversion = \"0.1.52\"\nsource = \"x\"\n";
        assert_eq!(locked_version(locked, "mimalloc"), Some("0.1.52"));
        assert_eq!(locked_version(locked, "malloc"), None);
    }

    #[rstest]
    #[case("always [madvise] never", "madvise")]
    #[case("", "none")]
    fn the_setting_is_the_word_in_brackets(#[case] text: &str, #[case] word: &str) {
        assert_eq!(chosen(text), word);
    }

    #[test]
    fn a_field_is_what_follows_the_colon() {
        assert_eq!(field("a: 1\nmodel name\t: fast one\n", "model name"), Some("fast one".into()));
    }
}
