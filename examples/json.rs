//! Reads a JSON document, says what is in it, and writes it again.
//!
//! `json [FILE]`. Without a file it makes a document of orders, the same one on every run. The summary and the checksum
//! of the rewritten document go to stdout; the time that each step took goes to stderr. Built with
//! `--cfg system_alloc`, it runs on the system's allocator instead.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

#[cfg(not(system_alloc))]
#[global_allocator]
static GLOBAL: nearheap::NearHeap = nearheap::NearHeap::new();

/// Orders in the document that is made when no file is named: some 60 MB of JSON.
const ORDERS: u64 = 100_000;
/// How many of the most used keys are printed.
const TOP_KEYS: usize = 10;

/// What a document holds, counted over all of its values.
#[derive(Default)]
struct Summary {
    objects: u64,
    arrays: u64,
    strings: u64,
    string_bytes: u64,
    numbers: u64,
    other: u64,
    depth: usize,
    keys: BTreeMap<String, KeySummary>,
}

/// How often a key occurs, and the sum of the whole numbers that stand under it.
#[derive(Default)]
struct KeySummary {
    count: u64,
    sum: i128,
}

impl Summary {
    /// The recursion is bounded: the parser refuses documents that are nested deeper than 128 levels.
    fn add(&mut self, value: &Value, depth: usize) {
        self.depth = self.depth.max(depth);
        match value {
            Value::Object(members) => {
                self.objects += 1;
                for (key, member) in members {
                    let seen = self.keys.entry(key.clone()).or_default();
                    seen.count += 1;
                    seen.sum += i128::from(member.as_i64().unwrap_or(0));
                    self.add(member, depth + 1);
                }
            }
            Value::Array(items) => {
                self.arrays += 1;
                items.iter().for_each(|item| self.add(item, depth + 1));
            }
            Value::String(text) => {
                self.strings += 1;
                self.string_bytes += text.len() as u64;
            }
            Value::Number(_) => self.numbers += 1,
            Value::Bool(_) | Value::Null => self.other += 1,
        }
    }

    fn print(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(
            out,
            "{} objects, {} arrays, {} numbers, {} others",
            self.objects, self.arrays, self.numbers, self.other
        )?;
        writeln!(out, "{} strings of {} bytes", self.strings, self.string_bytes)?;
        writeln!(out, "{} levels deep, {} different keys", self.depth, self.keys.len())?;
        let mut keys: Vec<_> = self.keys.iter().collect();
        keys.sort_by_key(|(_, seen)| std::cmp::Reverse(seen.count));
        for (key, seen) in keys.iter().take(TOP_KEYS) {
            writeln!(out, "{:>9} {key}, sum {}", seen.count, seen.sum)?;
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("json: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let document = match std::env::args_os().nth(1) {
        Some(file) => read(Path::new(&file))?,
        None => timed("make", || serde_json::to_string_pretty(&orders(ORDERS)))?,
    };
    let value: Value = timed("parse", || serde_json::from_str(&document))?;
    let mut summary = Summary::default();
    timed("summarise", || summary.add(&value, 1));
    let rewritten = timed("write", || serde_json::to_string(&value))?;
    let again: Value = timed("parse again", || serde_json::from_str(&rewritten))?;
    if again != value {
        return Err("the rewritten document differs from the one that was read".into());
    }
    summary.print()?;
    let sum = checksum(rewritten.as_bytes());
    writeln!(
        io::stdout(),
        "{} bytes read, {} written, checksum {sum:016x}",
        document.len(),
        rewritten.len()
    )?;
    Ok(())
}

fn read(file: &Path) -> Result<String, String> {
    fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))
}

/// Runs one step and says on stderr how long it took.
fn timed<T>(step: &str, run: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = run();
    eprintln!("{step:>11}: {:.3} s", start.elapsed().as_secs_f64());
    result
}

/// Orders with lines, texts and missing values, all derived from the order's number.
fn orders(count: u64) -> Value {
    let orders = (0..count).map(|number| {
        let random = scramble(number);
        let lines: Vec<Value> = (0..random % 5).map(|line| order_line(number, line)).collect();
        json!({
            "number": number,
            "customer": format!("customer {}", random % 5_000),
            "city": (!random.is_multiple_of(7)).then(|| ["Oslo", "Turin", "Kraków", "Lyon"].get(random as usize % 4)),
            "paid": random.is_multiple_of(3),
            "lines": lines,
            "note": "Leave it \"at the door\"; ".repeat(random as usize % 6),
        })
    });
    json!({ "orders": orders.collect::<Vec<Value>>(), "currency": "EUR" })
}

fn order_line(order: u64, line: u64) -> Value {
    let random = scramble(order * 8 + line);
    json!({
        "article": format!("A-{:05}", random % 20_000),
        "pieces": random % 9 + 1,
        "price_cents": random % 100_000,
        "discount": (random % 4) as f64 / 8.0,
        "tags": (0..random % 3).map(|tag| format!("tag{}", tag + random % 40)).collect::<Vec<_>>(),
    })
}

/// Spreads consecutive numbers over all of `u64` (the finaliser of SplitMix64).
fn scramble(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// FNV-1a, 64 bits.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
