//! What is fuzzed and lies inside the crate: the reader of options.
//! Called by: `fuzz/fuzz_targets/options.rs`, in builds with `--cfg fuzzing`; the test below, which replays what was found.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a failed expectation is a panic here"
)]

extern crate std;

use crate::config::Config;
use crate::options::{Key, bake};
use crate::report::LINE_BYTES;
use crate::settings::{Settings, resolve};
use crate::value::{Kind, parse_path, parse_plain};
use std::string::ToString;
use std::vec::Vec;

/// A value that was read is written as text that is read as the same value.
fn read_back(kind: Kind, text: &[u8]) {
    if let Kind::Path {} = kind {
        assert!(parse_path(text).flatten().is_none_or(|path| path == text));
        return;
    }
    let Some(value) = parse_plain(kind, text) else { return };
    let written = value.to_string();
    assert_eq!(parse_plain(kind, written.as_bytes()), Some(value), "{written:?}");
}

/// Whether the settings have for every option what an environment says first, or what stood before.
fn check_in_force(settings: &Settings, entries: &[(&[u8], &[u8])]) {
    for &key in Key::ALL {
        let (name, kind) = (key.name(), key.kind());
        let name = std::format!("NEARHEAP_{}", name.to_ascii_uppercase());
        let first = entries.iter().find(|(n, _)| *n == name.as_bytes()).map(|&(_, text)| text);
        if let Kind::Path {} = kind {
            let file = first.and_then(parse_path).flatten();
            assert_eq!(settings.stats_file(), file);
            continue;
        }
        let said = first.and_then(|text| parse_plain(kind, text));
        let stood = Config::new().values.get(key);
        assert_eq!(settings.values.get(key), said.unwrap_or(stood), "{name}");
    }
}

/// Reads the input as the text of one value of any kind, as an environment (entries end with a zero), and as the
/// defaults of a build.
pub fn options(input: &[u8]) {
    for &key in Key::ALL {
        read_back(key.kind(), input);
        let _ = Key::closest(input);
    }
    let entries: Vec<(&[u8], &[u8])> = input
        .split(|&byte| byte == 0)
        .filter_map(|entry| {
            let at = entry.iter().position(|&byte| byte == b'=')?;
            Some((&entry[..at], &entry[at + 1..]))
        })
        .collect();
    let mut settings = Settings::of(&Config::new());
    resolve(&Config::new(), entries.iter().copied(), &mut settings, &mut |line| {
        assert!(line.len() <= LINE_BYTES && line.ends_with(b"\n"), "{}", line.escape_ascii());
        let text = &line[..line.len() - 1];
        assert!(text.iter().all(|byte| matches!(byte, b' '..=b'~')), "{}", line.escape_ascii());
        assert!(text.starts_with(b"nearheap: "), "{}", line.escape_ascii());
    });
    check_in_force(&settings, &entries);
    let Ok(text) = str::from_utf8(input) else { return };
    // SAFETY: what is baked and what refuses it are gone at the end of this function, before the text is.
    let text: &'static str = unsafe { core::mem::transmute(text) };
    if let Err(refusal) = bake(text) {
        assert!(refusal.to_string().starts_with("NEARHEAP_DEFAULTS: "));
    }
}

#[cfg(test)]
#[test]
fn what_the_fuzzer_found_is_read_as_it_should_be() {
    let mut inputs = 0;
    for entry in std::fs::read_dir("fuzz/corpus/options").unwrap() {
        options(&std::fs::read(entry.unwrap().path()).unwrap());
        inputs += 1;
    }
    assert!(inputs > 20, "{inputs} inputs only");
}
