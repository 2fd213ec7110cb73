//! The options that are in force: what the program, its build and the environment say, in one place.
//! Owns: `Settings`, `resolve`. Called by: the heap, once, during its first allocation; so nothing here allocates,
//! unwinds, prints or asks `std::env`.
//!
//! S1: later wins: built-in default, `NEARHEAP_DEFAULTS` at build, the builder, the environment.
//! S2: of two variables of one name the first counts, as for `getenv`.
//! S3: a variable that is not used as it stands is told of in one line, unless `quiet` is in force or the options are
//! locked.
//! S4: a path is always read from `Settings`' own copy, whoever gave it; `values` has only the program's.

use crate::config::Config;
use crate::options::{BUILD_VARIABLE, Key, Keys, PREFIX, Values};
use crate::report::Line;
use crate::value::{FixedPath, Kind, PATH_MOST, Value, parse_path, parse_plain};
use core::fmt::{self, Display};
use nearheap_numa::NodeSet;
use nearheap_numa::placement::Misfit;

/// Bytes of a text that a message about it may show.
const SHOWN_BYTES: usize = 48;
/// Bytes of a value that the list of options may show.
const LISTED_BYTES: usize = 200;

/// The options in force, and where each came from.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) values: Values,
    stats_file: Path,
    built: Keys,
    given: Keys,
    environment: Keys,
}

/// The copy of a path: the environment's own text may change under us.
#[derive(Debug)]
struct Path {
    /// 0 when there is none.
    len: usize,
    bytes: [u8; PATH_MOST],
}

impl Path {
    const NONE: Self = Self { len: 0, bytes: [0; PATH_MOST] };

    fn copy(&mut self, path: Option<&[u8]>) {
        let path = path.unwrap_or(&[]);
        if let Some(to) = self.bytes.get_mut(..path.len()) {
            to.copy_from_slice(path);
            self.len = path.len();
        }
    }

    fn get(&self) -> Option<&[u8]> {
        self.bytes.get(..self.len).filter(|path| !path.is_empty())
    }
}

// Whoever adds a second path gives it a copy in `Settings`, and `set` and `Standing` the choice.
const _: () = {
    let mut paths = 0;
    let mut keys = Key::ALL;
    while let [key, rest @ ..] = keys {
        if let Kind::Path {} = key.kind() {
            paths += 1;
        }
        keys = rest;
    }
    assert!(paths == 1);
};

/// What a variable of the environment is about.
enum Subject<'e> {
    /// Not nearheap's, or read elsewhere.
    Other,
    Option(Key),
    /// The name after the prefix.
    Unknown(&'e [u8]),
}

/// Makes `out`, [`Settings::of`] the program, the options in force and tells `report` what a user should know, in whole lines of at most
/// `LINE_BYTES`, newline included.
///
/// `environment` is walked twice: whether to speak at all may be said in its last entry.
pub(crate) fn resolve<'e>(
    config: &Config,
    environment: impl Iterator<Item = (&'e [u8], &'e [u8])> + Clone,
    out: &mut Settings,
    report: &mut dyn FnMut(&[u8]),
) {
    if !config.locked {
        out.read(environment.clone());
    }
    if out.values.quiet {
        return;
    }
    if !config.locked {
        out.review(environment, report);
    } else if out.values.verbose {
        list_ignored(environment, report);
    }
    if out.values.verbose {
        out.list(report);
    }
}

impl Settings {
    /// What the program says.
    #[inline(never)] // Once in the program, and in place.
    pub(crate) fn of(config: &Config) -> Self {
        let mut settings = Self {
            values: config.values,
            stats_file: Path::NONE,
            built: config.built,
            given: config.given,
            environment: Keys::NONE,
        };
        settings.stats_file.copy(config.values.stats_file.0);
        settings
    }

    /// The file for the statistics, before `%p` and `%%` are replaced; none: standard error.
    pub(crate) fn stats_file(&self) -> Option<&[u8]> {
        self.stats_file.get()
    }

    /// Takes over what the environment says rightly.
    #[inline(never)]
    fn read<'e>(&mut self, environment: impl Iterator<Item = (&'e [u8], &'e [u8])>) {
        let mut seen = Keys::NONE;
        for (name, text) in environment {
            if let Subject::Option(key) = subject(name)
                && seen.add(key)
                && self.set(key, text)
            {
                self.environment.add(key);
            }
        }
    }

    /// Tells of what `read` left out.
    #[inline(never)]
    fn review<'e>(
        &self,
        environment: impl Iterator<Item = (&'e [u8], &'e [u8])>,
        report: &mut dyn FnMut(&[u8]),
    ) {
        let mut seen = Keys::NONE;
        for (name, text) in environment {
            match subject(name) {
                Subject::Option(key) if seen.add(key) && !self.environment.has(key) => {
                    self.tell_refused(key, text, report);
                }
                Subject::Unknown(name) => tell_unknown(name, report),
                _ => {}
            }
        }
    }

    /// Sets an option from text; whether the text is accepted.
    fn set(&mut self, key: Key, text: &[u8]) -> bool {
        let kind = key.kind();
        if let Kind::Path {} = kind {
            let path = parse_path(text);
            if let Some(path) = path {
                self.stats_file.copy(path);
            }
            return path.is_some();
        }
        let value = parse_plain(kind, text);
        if let Some(value) = value {
            self.values.put(key, value);
        }
        value.is_some()
    }

    fn source(&self, key: Key) -> &'static str {
        if self.environment.has(key) {
            "environment"
        } else if self.given.has(key) {
            "builder"
        } else if self.built.has(key) {
            "build"
        } else {
            "default"
        }
    }

    #[inline(never)]
    fn tell_refused(&self, key: Key, text: &[u8], report: &mut dyn FnMut(&[u8])) {
        let mut line = Line::new();
        push_assignment(&mut line, key.name(), text);
        line.push(format_args!(": expected {}; using ", key.accepted()));
        line.push_at_most(SHOWN_BYTES, format_args!("{}", Standing(self, key)));
        report(line.finish());
    }

    /// Tells that the machine has not the nodes that `numa` names, but these.
    #[cold]
    pub(crate) fn tell_misfit(&self, why: Misfit, nodes: NodeSet, report: &mut dyn FnMut(&[u8])) {
        if self.values.quiet {
            return;
        }
        let mut line = Line::new();
        line.push(format_args!("nearheap: "));
        if self.environment.has(Key::numa) {
            push_variable(&mut line, Key::numa.name());
        } else {
            line.push(format_args!("the {}'s numa", self.source(Key::numa)));
        }
        line.push(format_args!("=\""));
        line.push_at_most(SHOWN_BYTES, format_args!("{}", self.values.numa));
        line.push(format_args!("\": {why}; expected nodes of {nodes}; using local"));
        report(line.finish());
    }

    #[inline(never)]
    fn list(&self, report: &mut dyn FnMut(&[u8])) {
        for &key in Key::ALL {
            let mut line = Line::new();
            line.push(format_args!("nearheap: {} = ", key.name()));
            line.push_at_most(LISTED_BYTES, format_args!("{}", Standing(self, key)));
            line.push(format_args!(" ({})", self.source(key)));
            report(line.finish());
        }
    }
}

/// The value that stands, as text.
struct Standing<'s>(&'s Settings, Key);

impl Display for Standing<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(settings, key) = self;
        match (settings.values.get(*key), settings.stats_file()) {
            (Value::Path(_), Some(path)) => write!(out, "{}", path.escape_ascii()),
            (Value::Path(_), None) => Value::Path(FixedPath(None)).fmt(out),
            (value, _) => value.fmt(out),
        }
    }
}

#[inline(never)]
fn subject(name: &[u8]) -> Subject<'_> {
    let Some(rest) = name.strip_prefix(PREFIX.as_bytes()) else { return Subject::Other };
    if name == BUILD_VARIABLE.as_bytes() {
        return Subject::Other;
    }
    match Key::find(rest) {
        Some(key) if !rest.iter().any(u8::is_ascii_lowercase) => Subject::Option(key),
        _ => Subject::Unknown(rest),
    }
}

/// Appends the name of an option's variable.
#[inline(never)]
fn push_variable(line: &mut Line, name: &str) {
    line.push(format_args!("{PREFIX}"));
    for letter in name.bytes() {
        line.push(format_args!("{}", char::from(letter.to_ascii_uppercase())));
    }
}

/// Appends a whole assignment, with the text as somebody could have typed it.
#[inline(never)]
fn push_assignment(line: &mut Line, name: &str, text: &[u8]) {
    line.push(format_args!("nearheap: "));
    push_variable(line, name);
    line.push(format_args!("=\""));
    line.push_at_most(SHOWN_BYTES, format_args!("{}", text.escape_ascii()));
    line.push(format_args!("\""));
}

#[inline(never)]
fn tell_unknown(name: &[u8], report: &mut dyn FnMut(&[u8])) {
    let mut line = Line::new();
    line.push(format_args!("nearheap: {PREFIX}"));
    line.push_at_most(SHOWN_BYTES, format_args!("{}", name.escape_ascii()));
    line.push(format_args!(": unknown option; "));
    if let Some(key) = Key::closest(name) {
        line.push(format_args!("did you mean "));
        push_variable(&mut line, key.name());
        line.push(format_args!("?"));
    } else {
        line.push(format_args!("run with {PREFIX}VERBOSE=1 to see the options"));
    }
    report(line.finish());
}

/// Tells of every variable that a lock makes void.
#[inline(never)]
fn list_ignored<'e>(
    environment: impl Iterator<Item = (&'e [u8], &'e [u8])>,
    report: &mut dyn FnMut(&[u8]),
) {
    for (name, _) in environment {
        let (Subject::Option(_) | Subject::Unknown(_)) = subject(name) else { continue };
        let mut line = Line::new();
        line.push(format_args!("nearheap: "));
        line.push_at_most(SHOWN_BYTES, format_args!("{}", name.escape_ascii()));
        line.push(format_args!(": ignored, as the program locks its options"));
        report(line.finish());
    }
}

#[cfg(test)]
mod tests;
