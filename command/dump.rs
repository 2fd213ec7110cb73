//! A dump, as the allocator writes it in JSON.
//! Owns: `Dump`. Called by: `text` and `html`.

use crate::Failure;
use serde_json::Value;
use std::ffi::OsStr;

/// The schema that is read here.
const VERSION: u64 = 1;

/// What happened in one size class, or among the huge blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Class {
    /// Bytes of a block, and its alignment; of huge blocks 0.
    pub(crate) key: (u64, u64),
    pub(crate) allocs: u64,
    pub(crate) frees: u64,
    pub(crate) in_use_blocks: u64,
    pub(crate) in_use_bytes: u64,
    pub(crate) cached_blocks: u64,
}

impl Class {
    /// Its name in a table.
    pub(crate) fn name(&self) -> String {
        match self.key {
            (0, _) => "huge".to_owned(),
            (size, 0..=16) => size.to_string(),
            (size, align) => format!("{size}/{align}"),
        }
    }
}

/// A dump.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dump {
    /// The file, for headings.
    pub(crate) name: String,
    pub(crate) pid: u64,
    pub(crate) totals: Class,
    pub(crate) allocated_bytes: u64,
    pub(crate) threads: u64,
    pub(crate) classes: Vec<Class>,
    /// What concerns the system, by name, as the dump has it.
    pub(crate) system: Vec<(String, u64)>,
}

pub(crate) fn read(file: &OsStr) -> Result<Dump, Failure> {
    let name = file.display();
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::because(format_args!("{name}: can't be read: {error}")))?;
    let json: Value = serde_json::from_str(&text).map_err(|error| {
        Failure::because(format_args!(
            "{name}: no dump in JSON ({error}); `nearheap run --stats json --stats-file FILE` writes one"
        ))
    })?;
    match json.get("version").and_then(Value::as_u64) {
        Some(VERSION) => Ok(Dump { name: name.to_string(), ..parse(&json) }),
        Some(other) => Err(Failure::because(format_args!(
            "{name}: a dump of version {other}, and this command reads {VERSION}; use the command of that version"
        ))),
        None => Err(Failure::because(format_args!("{name}: JSON, but no dump of nearheap's"))),
    }
}

fn number(of: &Value, key: &str) -> u64 {
    of.get(key).and_then(Value::as_u64).unwrap_or_default()
}

fn class(of: &Value) -> Class {
    Class {
        key: (number(of, "size"), number(of, "align")),
        allocs: number(of, "allocs"),
        frees: number(of, "frees"),
        in_use_blocks: number(of, "in_use_blocks"),
        in_use_bytes: number(of, "in_use_bytes"),
        cached_blocks: number(of, "cached_blocks"),
    }
}

fn parse(json: &Value) -> Dump {
    let nothing = Value::Null;
    let part = |key: &str| json.get(key).unwrap_or(&nothing);
    let mut classes: Vec<_> = part("classes").as_array().into_iter().flatten().map(class).collect();
    classes.sort_by_key(|class| class.key);
    let huge = class(part("huge"));
    if huge.allocs > 0 {
        classes.push(huge);
    }
    let system = part("system").as_object().into_iter().flatten();
    Dump {
        name: String::new(),
        pid: number(json, "pid"),
        totals: class(part("totals")),
        allocated_bytes: number(part("totals"), "allocated_bytes"),
        threads: number(json, "live_threads"),
        classes,
        system: system.filter_map(|(key, n)| Some((key.replace('_', " "), n.as_u64()?))).collect(),
    }
}

/// The classes of two dumps, by name: before and after.
pub(crate) fn pairs(before: &Dump, after: &Dump) -> Vec<(Class, Class)> {
    let mut keys: Vec<_> = before.classes.iter().chain(&after.classes).map(|c| c.key).collect();
    // Huge blocks, of no size, come last.
    keys.sort_by_key(|&(size, align)| (size.wrapping_sub(1), align));
    keys.dedup();
    let of = |dump: &Dump, key| {
        let none = Class { key, ..Class::default() };
        dump.classes.iter().find(|c| c.key == key).copied().unwrap_or(none)
    };
    keys.into_iter().map(|key| (of(before, key), of(after, key))).collect()
}

/// Bytes as people read them.
pub(crate) fn bytes(n: u64) -> String {
    let mut value = n as f64;
    let mut units = ["KiB", "MiB", "GiB", "TiB"].iter();
    let mut unit = "B";
    while value >= 1024.0 {
        let Some(next) = units.next() else { break };
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{n} B") } else { format!("{value:.1} {unit}") }
}
