//! Counts the words of a folder of text, with one thread a core, and prints the most frequent.
//!
//! `wordcount [FOLDER]`. Without a folder it reads the documentation that ships with the Rust toolchain, or, where that
//! is not installed, the sources of this project. The counts go to stdout and depend on the text alone; the time, which
//! does not, goes to stderr. Built with `--cfg system_alloc`, it runs on the system's allocator instead.

use std::collections::HashMap;
use std::error::Error;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

#[cfg(not(system_alloc))]
#[global_allocator]
static GLOBAL: nearheap::NearHeap = nearheap::NearHeap::new();

/// File names that end like this are read as text.
const TEXT_EXTENSIONS: [&str; 5] = ["html", "md", "rs", "toml", "txt"];
/// How many of the most frequent words are printed.
const TOP_WORDS: usize = 20;

/// What one thread, and at last the whole program, has counted.
#[derive(Default)]
struct Tally {
    files: u64,
    bytes: u64,
    words: HashMap<String, u64>,
}

impl Tally {
    fn add_text(&mut self, text: &str) {
        for word in text.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty()) {
            *self.words.entry(word.to_lowercase()).or_default() += 1;
        }
    }

    fn merge(&mut self, other: Tally) {
        self.files += other.files;
        self.bytes += other.bytes;
        for (word, count) in other.words {
            *self.words.entry(word).or_default() += count;
        }
    }

    /// The most frequent words first; words of equal count in alphabetical order.
    fn ranking(&self) -> Vec<(&str, u64)> {
        let mut ranking: Vec<_> =
            self.words.iter().map(|(word, count)| (word.as_str(), *count)).collect();
        ranking.sort_unstable_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
        ranking
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wordcount: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let folder = match std::env::args_os().nth(1) {
        Some(folder) => PathBuf::from(folder),
        None => default_folder(),
    };
    let threads = thread::available_parallelism()?.get();
    let start = Instant::now();
    let tally = count_folder(&folder, threads)?;
    let elapsed = start.elapsed();
    print_tally(&tally)?;
    eprintln!("{} with {threads} threads in {:.2} s", folder.display(), elapsed.as_secs_f64());
    Ok(())
}

/// The HTML pages of the Rust documentation if they are installed, else the sources of this project.
fn default_folder() -> PathBuf {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let documentation = Command::new(rustc)
        .args(["--print", "sysroot"])
        .output()
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map(|sysroot| Path::new(sysroot.trim()).join("share/doc/rust/html"));
    match documentation {
        Some(folder) if folder.is_dir() => folder,
        _ => PathBuf::from(env!("CARGO_MANIFEST_DIR")),
    }
}

fn count_folder(folder: &Path, threads: usize) -> Result<Tally, Box<dyn Error>> {
    let mut files = Vec::new();
    find_text_files(folder, &mut files)?;
    if files.is_empty() {
        return Err(format!("{}: no text files in this folder", folder.display()).into());
    }
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        let workers: Vec<_> =
            (0..threads).map(|_| scope.spawn(|| count_files(&files, &next))).collect();
        let mut total = Tally::default();
        for worker in workers {
            total.merge(worker.join().map_err(|_| "a counting thread panicked")??);
        }
        Ok(total)
    })
}

/// Collects the text files under `folder`. Links and hidden folders are left alone, as is a `target` folder of builds.
fn find_text_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), String> {
    let named = |error: io::Error| format!("{}: {error}", folder.display());
    for entry in fs::read_dir(folder).map_err(named)? {
        let entry = entry.map_err(named)?;
        let kind = entry.file_type().map_err(named)?;
        let name = entry.file_name();
        let skipped = name == "target" || name.as_encoded_bytes().starts_with(b".");
        let path = entry.path();
        if kind.is_dir() && !skipped {
            find_text_files(&path, files)?;
        } else if kind.is_file() && has_text_extension(&path) {
            files.push(path);
        }
    }
    Ok(())
}

fn has_text_extension(path: &Path) -> bool {
    path.extension()
        .and_then(OsStr::to_str)
        .is_some_and(|extension| TEXT_EXTENSIONS.contains(&extension))
}

/// Counts files until none is left. The threads share `next`, so a thread with small files takes more of them.
fn count_files(files: &[PathBuf], next: &AtomicUsize) -> Result<Tally, String> {
    let mut tally = Tally::default();
    while let Some(path) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
        let bytes = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let text = String::from_utf8_lossy(&bytes);
        if path.extension() == Some(OsStr::new("html")) {
            tally.add_text(&html_to_text(&text));
        } else {
            tally.add_text(&text);
        }
        tally.files += 1;
        tally.bytes += bytes.len() as u64;
    }
    Ok(tally)
}

/// The text between the tags, without scripts and styles; entities become spaces. Enough to count words, not a parser.
fn html_to_text(html: &str) -> String {
    let mut text = String::new();
    let mut hidden = false;
    for piece in html.split('<') {
        let Some((tag, content)) = piece.split_once('>') else { continue };
        hidden = tag.starts_with("script")
            || tag.starts_with("style")
            || hidden && !tag.starts_with('/');
        if !hidden {
            push_without_entities(&mut text, content);
        }
    }
    text
}

fn push_without_entities(text: &mut String, content: &str) {
    let mut pieces = content.split('&');
    text.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        text.push(' ');
        text.push_str(piece.split_once(';').map_or(piece, |(_entity, rest)| rest));
    }
    text.push(' ');
}

fn print_tally(tally: &Tally) -> io::Result<()> {
    let ranking = tally.ranking();
    let total: u64 = ranking.iter().map(|(_, count)| count).sum();
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{} files, {} bytes, {total} words, {} of them different",
        tally.files,
        tally.bytes,
        ranking.len()
    )?;
    for (word, count) in ranking.iter().take(TOP_WORDS) {
        writeln!(out, "{count:>9} {word}")?;
    }
    Ok(())
}
