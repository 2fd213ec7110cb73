//! The options as a table, from the allocator's own rows.
//! Owns: the rows and their text. Called by: `nearheap options`, and `run` for what it passes on.

use crate::options::{Key, PREFIX, options};
use crate::value::{Kind, parse_path, parse_plain};
use std::fmt::Write;

/// One option.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    kind: &'static str,
    default: &'static str,
    pub(crate) accepted: &'static str,
    meaning: &'static str,
}

macro_rules! rows {
    ($($name:ident: $type:ty = $kind:ident $range:tt; $default:literal; $accepted:literal; $meaning:literal;)*) => {
        const ROWS: &[Row] = &[$(Row {
            name: stringify!($name),
            kind: stringify!($kind),
            default: $default,
            accepted: $accepted,
            meaning: $meaning,
        }),*];
    };
}
options!(rows);

impl Row {
    /// The option of this name, if this version has it.
    pub(crate) fn find(name: &str) -> Option<&'static Self> {
        ROWS.iter().find(|row| row.name.eq_ignore_ascii_case(name))
    }

    /// Its variable in the environment.
    pub(crate) fn variable(&self) -> String {
        format!("{PREFIX}{}", self.name.to_ascii_uppercase())
    }

    /// Whether the allocator will accept a text.
    pub(crate) fn accepts(&self, text: &[u8]) -> bool {
        match Key::find(self.name.as_bytes()).map(|key| key.kind()) {
            Some(Kind::Path {}) => parse_path(text).is_some(),
            Some(kind) => parse_plain(kind, text).is_some(),
            None => false,
        }
    }

    /// The kind of value, in a word.
    fn type_name(&self) -> &'static str {
        match self.kind {
            "Size" => "size",
            "Count" => "number",
            "Time" => "time",
            "Flag" => "flag",
            "Limit" => "size or share",
            "Path" => "path",
            "Classes" => "list of sizes",
            "Numa" => "policy",
            _ => "word",
        }
    }
}

/// A text in lines of at most `width` characters.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_string()),
        }
    }
    lines
}

/// Every option, for people.
pub(crate) fn text() -> String {
    let mut out = String::new();
    for row in ROWS {
        let Row { name, default, accepted, meaning, .. } = row;
        // A `String` takes whatever is written.
        let _ =
            writeln!(out, "{name}  ({}, default {default})  {}", row.type_name(), row.variable());
        for line in wrapped(&format!("{meaning} Values: {accepted}."), 96) {
            let _ = writeln!(out, "    {line}");
        }
    }
    out
}
