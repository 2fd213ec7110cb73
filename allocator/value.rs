//! What the value of one option is, and how it is read from and written as text.
//! Owns: `Kind`, `Value` and the types inside. Called by: `options` (the table), `config`, `settings`, and `build.rs`,
//! which compiles this file too; so it uses core and `policy` alone and nothing else of this crate.
//!
//! V1: reading is `const`, so a default that does not parse is a compile error.
//! V2: `parse` and the builder accept the same values, because both end in `fits`.
//! V3: what `Display` writes, `parse` reads back as the same value, except a path with bytes that need an escape.

pub(crate) use super::policy::{Policy, same};
use core::fmt;
use core::time::Duration;

/// How large a list of block sizes may be.
pub(crate) const CLASSES_MOST: usize = 64;
/// The largest block size that may be listed, in bytes.
pub(crate) const CLASS_BYTES_MOST: usize = 32 * 1024;
/// The largest first block size: beyond it, one-byte objects would waste too much to be anyone's intention.
pub(crate) const CLASS_BYTES_FIRST: usize = 64;
/// The longest path, in bytes, before `%p` is replaced.
pub(crate) const PATH_MOST: usize = 1023;
const GRANULE_BYTES: usize = 16;

/// Leaves a `const fn` with `None`; `?` does the same where it is allowed.
macro_rules! some {
    ($option:expr) => {
        match $option {
            Some(value) => value,
            None => return None,
        }
    };
}

/// What an option accepts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// A list of block sizes, or `none`.
    Classes {},
    /// Bytes, from 0.
    Size { most: usize },
    /// A number without a unit.
    Count { least: usize, most: usize },
    /// A time, from 0.
    Time { most: Millis },
    /// `auto`, or a boolean word.
    HugePages {},
    /// A NUMA policy.
    Numa {},
    /// `none`, bytes, or a percentage.
    Limit {},
    /// A format of the statistics, or a boolean word.
    Stats {},
    /// `auto`, `leaks`, or a boolean word.
    Headers {},
    /// A path, or `none`.
    Path {},
    /// A boolean word.
    Flag {},
}

/// The value of one option, whichever it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Value {
    Classes(Classes),
    Size(usize),
    Count(usize),
    Time(Millis),
    HugePages(HugePages),
    Numa(Policy),
    Limit(Limit),
    Stats(StatsFormat),
    Headers(Headers),
    Path(FixedPath),
    Flag(bool),
}

/// A time in whole milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Millis(pub(crate) u32);

/// A path that is part of the program; one from the environment lives in `Settings`, which is where to ask.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FixedPath(pub(crate) Option<&'static [u8]>);

/// When the heap asks for huge pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HugePages {
    /// Once the heap is large enough that they save more time than they waste memory.
    Auto,
    /// From the first segment.
    On,
    /// Never.
    Off,
}

/// Whether blocks have headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Headers {
    /// In builds with debug assertions.
    Auto,
    Off,
    On,
    /// And what is live at exit is listed.
    Leaks,
}

/// A bound on the memory that the heap holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// No bound.
    None,
    /// This many bytes, at least 1.
    Bytes(usize),
    /// This share, 1 to 100, of the memory that the process's cgroup may use (`memory.max`).
    Percent(u8),
}

/// How the statistics are written when the program exits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StatsFormat {
    /// Not at all.
    Off,
    /// As lines for people.
    Text,
    /// As one JSON object.
    Json,
    /// As OpenMetrics text.
    OpenMetrics,
}

/// A list of block sizes that replaces the built-in ones up to its last.
///
/// K1: ascending; the first is at most `CLASS_BYTES_FIRST`, each next at most twice the one before, the last at most
/// `CLASS_BYTES_MOST`. So a request wastes less than half of its block, as in the coarsest table anyone uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Classes {
    len: u8,
    /// In granules of 16 bytes; 0 from `len` on.
    sizes: [u16; CLASSES_MOST],
}

const _: () = assert!(
    CLASS_BYTES_MOST / GRANULE_BYTES <= u16::MAX as usize && CLASSES_MOST <= u8::MAX as usize
);

impl Classes {
    /// No list: the built-in classes apply throughout.
    pub(crate) const NONE: Self = Self { len: 0, sizes: [0; CLASSES_MOST] };

    /// The smallest listed size of at least `granules`, in granules; `None` above the last.
    pub(crate) fn round_up(&self, granules: u16) -> Option<u16> {
        self.sizes().iter().copied().find(|&size| size >= granules)
    }

    /// The listed sizes in granules, ascending.
    pub(crate) fn sizes(&self) -> &[u16] {
        self.sizes.get(..usize::from(self.len)).unwrap_or(&[])
    }

    /// Appends a size in bytes; whether that keeps K1.
    pub(crate) const fn add(&mut self, bytes: usize) -> bool {
        let Some((used, free)) = self.sizes.split_at_mut_checked(self.len as usize) else {
            return false;
        };
        let (above, most) = match used {
            [.., last] => (*last as usize * GRANULE_BYTES, *last as usize * GRANULE_BYTES * 2),
            [] => (0, CLASS_BYTES_FIRST),
        };
        if bytes <= above
            || bytes > most
            || bytes > CLASS_BYTES_MOST
            || !bytes.is_multiple_of(GRANULE_BYTES)
        {
            return false;
        }
        let [next, ..] = free else { return false };
        *next = (bytes / GRANULE_BYTES) as u16;
        self.len += 1;
        true
    }

    const fn parse(text: &[u8]) -> Option<Self> {
        let mut classes = Self::NONE;
        let mut rest = if same(text, b"none") { None } else { Some(text) };
        while let Some(list) = rest {
            let (item, after) = cut(list, b',');
            if !classes.add(some!(size(item))) {
                return None;
            }
            rest = after;
        }
        Some(classes)
    }
}

impl Millis {
    /// Rounds a duration down to milliseconds; the longest that can be told, when it is longer.
    pub(crate) const fn from_duration(duration: Duration) -> Self {
        let millis = duration.as_millis();
        Self(if millis > u32::MAX as u128 { u32::MAX } else { millis as u32 })
    }
}

/// Whether `value` is one that an option of this kind may have.
pub(crate) const fn fits(kind: Kind, value: &Value) -> bool {
    match (kind, value) {
        (Kind::Size { most }, Value::Size(bytes)) => *bytes <= most,
        (Kind::Count { least, most }, Value::Count(count)) => least <= *count && *count <= most,
        (Kind::Time { most }, Value::Time(time)) => time.0 <= most.0,
        (Kind::Limit {}, Value::Limit(limit)) => match limit {
            Limit::None => true,
            Limit::Bytes(bytes) => *bytes > 0,
            Limit::Percent(share) => 0 < *share && *share <= 100,
        },
        (Kind::Numa {}, Value::Numa(policy)) => policy.is_sound(),
        (Kind::Path {}, Value::Path(FixedPath(path))) => match path {
            Some(path) => path_fits(path),
            None => true,
        },
        (Kind::Classes {}, Value::Classes(_))
        | (Kind::HugePages {}, Value::HugePages(_))
        | (Kind::Stats {}, Value::Stats(_))
        | (Kind::Headers {}, Value::Headers(_))
        | (Kind::Flag {}, Value::Flag(_)) => true,
        _ => false,
    }
}

/// Reads a value of any kind from text that lives as long as the program.
pub(crate) const fn parse(kind: Kind, text: &'static [u8]) -> Option<Value> {
    match kind {
        Kind::Path {} => match parse_path(text) {
            Some(path) => Some(Value::Path(FixedPath(path))),
            None => None,
        },
        _ => parse_plain(kind, text),
    }
}

/// Reads a value of any kind but a path, which would have to keep the text.
pub(crate) const fn parse_plain(kind: Kind, text: &[u8]) -> Option<Value> {
    let value = match kind {
        Kind::Classes {} => Value::Classes(some!(Classes::parse(text))),
        Kind::Size { .. } => Value::Size(some!(size(text))),
        Kind::Count { .. } => match some!(number(text)) {
            (count, []) => Value::Count(count),
            _ => return None,
        },
        Kind::Time { .. } => Value::Time(some!(time(text))),
        Kind::Numa {} => Value::Numa(some!(Policy::parse(text))),
        Kind::Limit {} => Value::Limit(some!(limit(text))),
        Kind::Path {} => return None,
        Kind::HugePages {} | Kind::Stats {} | Kind::Headers {} | Kind::Flag {} => {
            some!(choice(kind, some!(word(text))))
        }
    };
    if fits(kind, &value) { Some(value) } else { None }
}

/// Reads a path: `Some(None)` for the word `none`, `None` for what cannot be one.
pub(crate) const fn parse_path(text: &[u8]) -> Option<Option<&[u8]>> {
    if same(text, b"none") {
        Some(None)
    } else if path_fits(text) {
        Some(Some(text))
    } else {
        None
    }
}

/// Of a length that a path may have, without a NUL, and `%` only as `%p` or `%%`.
const fn path_fits(path: &[u8]) -> bool {
    let mut rest = path;
    while let [byte, after @ ..] = rest {
        rest = match (*byte, after) {
            (b'%', [b'p' | b'%', after @ ..]) => after,
            (b'%' | 0, _) => return false,
            _ => after,
        };
    }
    !path.is_empty() && path.len() <= PATH_MOST
}

/// The words of all the kinds whose values have names: those for off, those for on, and what they are written as.
const WORDS: &str = "0 false no off 1 true yes on auto text json openmetrics leaks ";
const OFF: usize = 3;
const ON: usize = 7;
const AUTO: usize = 8;
const TEXT: usize = 9;
const JSON: usize = 10;
const OPEN_METRICS: usize = 11;
const LEAKS: usize = 12;

/// The number of a word, one for all that mean the same.
const fn word(text: &[u8]) -> Option<usize> {
    let place = some!(place_of(text, WORDS));
    Some(if place <= OFF {
        OFF
    } else if place <= ON {
        ON
    } else {
        place
    })
}

/// The value of a kind that a word stands for.
const fn choice(kind: Kind, word: usize) -> Option<Value> {
    Some(match (kind, word) {
        (Kind::Flag {}, OFF | ON) => Value::Flag(word == ON),
        (Kind::HugePages {}, OFF) => Value::HugePages(HugePages::Off),
        (Kind::HugePages {}, ON) => Value::HugePages(HugePages::On),
        (Kind::HugePages {}, AUTO) => Value::HugePages(HugePages::Auto),
        (Kind::Headers {}, OFF) => Value::Headers(Headers::Off),
        (Kind::Headers {}, ON) => Value::Headers(Headers::On),
        (Kind::Headers {}, AUTO) => Value::Headers(Headers::Auto),
        (Kind::Headers {}, LEAKS) => Value::Headers(Headers::Leaks),
        (Kind::Stats {}, OFF) => Value::Stats(StatsFormat::Off),
        (Kind::Stats {}, ON | TEXT) => Value::Stats(StatsFormat::Text),
        (Kind::Stats {}, JSON) => Value::Stats(StatsFormat::Json),
        (Kind::Stats {}, OPEN_METRICS) => Value::Stats(StatsFormat::OpenMetrics),
        _ => return None,
    })
}

/// The place of a text among words of which each ends in a space.
#[inline(never)]
pub(crate) const fn place_of(text: &[u8], words: &str) -> Option<usize> {
    let (mut place, mut rest) = (0, words.as_bytes());
    while let (word, Some(after)) = cut(rest, b' ') {
        if same(word, text) {
            return Some(place);
        }
        (place, rest) = (place + 1, after);
    }
    None
}

/// One of several texts of which each ends in `mark`; empty behind the last.
#[inline(never)]
pub(crate) const fn nth(texts: &'static str, mark: u8, place: usize) -> &'static str {
    let (mut left, mut rest) = (place, texts);
    while let (text, Some(after)) = cut(rest.as_bytes(), mark) {
        let Some((text, _)) = rest.split_at_checked(text.len()) else { break };
        if left == 0 {
            return text;
        }
        left -= 1;
        let Some((_, after)) = rest.split_at_checked(rest.len() - after.len()) else { break };
        rest = after;
    }
    ""
}

const fn limit(text: &[u8]) -> Option<Limit> {
    if same(text, b"none") {
        return Some(Limit::None);
    }
    match some!(number(text)) {
        (share @ 0..=100, [b'%']) => Some(Limit::Percent(share as u8)),
        _ => Some(Limit::Bytes(some!(size(text)))),
    }
}

/// A number and one of the units K, M, G, T, each of which may be followed by B or iB: they all count in 1024.
const fn size(text: &[u8]) -> Option<usize> {
    let (count, unit) = some!(number(text));
    let shift = match unit {
        [] | [b'b' | b'B'] => 0,
        [letter] | [letter, b'b' | b'B'] | [letter, b'i' | b'I', b'b' | b'B'] => match *letter {
            b'k' | b'K' => 10,
            b'm' | b'M' => 20,
            b'g' | b'G' => 30,
            b't' | b'T' => 40,
            _ => return None,
        },
        _ => return None,
    };
    count.checked_mul(some!(1_usize.checked_shl(shift)))
}

/// A number and one of the units ms, s, m and h; only 0 needs none.
const fn time(text: &[u8]) -> Option<Millis> {
    let (count, unit) = some!(number(text));
    let scale = if same(unit, b"ms") || (unit.is_empty() && count == 0) {
        1
    } else if same(unit, b"s") {
        1000
    } else if same(unit, b"m") {
        60 * 1000
    } else if same(unit, b"h") {
        60 * 60 * 1000
    } else {
        return None;
    };
    let millis = some!(count.checked_mul(scale));
    if millis > u32::MAX as usize { None } else { Some(Millis(millis as u32)) }
}

/// The decimal number that `text` begins with, and what follows it.
#[inline(never)]
const fn number(text: &[u8]) -> Option<(usize, &[u8])> {
    let mut count = 0_usize;
    let mut rest = text;
    while let [digit @ b'0'..=b'9', after @ ..] = rest {
        count = some!(some!(count.checked_mul(10)).checked_add((*digit - b'0') as usize));
        rest = after;
    }
    if rest.len() == text.len() { None } else { Some((count, rest)) }
}

/// The text before the first `mark`, and the text after it if there is one.
#[inline(never)]
pub(crate) const fn cut(text: &[u8], mark: u8) -> (&[u8], Option<&[u8]>) {
    let mut rest = text;
    while let [byte, after @ ..] = rest {
        if *byte == mark {
            let (before, _) = text.split_at(text.len() - rest.len());
            return (before, Some(after));
        }
        rest = after;
    }
    (text, None)
}

impl fmt::Display for Value {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, unit) = match self {
            Self::Classes(classes) => return write_classes(out, classes),
            Self::Numa(policy) => return policy.fmt(out),
            Self::Path(FixedPath(Some(path))) => return path.escape_ascii().fmt(out),
            Self::Size(bytes) | Self::Limit(Limit::Bytes(bytes)) => size_in_unit(*bytes),
            Self::Count(count) => (*count, ""),
            Self::Time(time) => time_in_unit(time.0 as usize),
            Self::Limit(Limit::Percent(share)) => (usize::from(*share), "%"),
            Self::Limit(Limit::None) | Self::Path(FixedPath(None)) => return out.write_str("none"),
            Self::Flag(on) => return write_word(out, if *on { ON } else { OFF }),
            Self::HugePages(HugePages::Auto) | Self::Headers(Headers::Auto) => {
                return write_word(out, AUTO);
            }
            Self::HugePages(HugePages::On) | Self::Headers(Headers::On) => {
                return write_word(out, ON);
            }
            Self::HugePages(HugePages::Off)
            | Self::Headers(Headers::Off)
            | Self::Stats(StatsFormat::Off) => return write_word(out, OFF),
            Self::Headers(Headers::Leaks) => return write_word(out, LEAKS),
            Self::Stats(StatsFormat::Text) => return write_word(out, TEXT),
            Self::Stats(StatsFormat::Json) => return write_word(out, JSON),
            Self::Stats(StatsFormat::OpenMetrics) => return write_word(out, OPEN_METRICS),
        };
        write!(out, "{count}{unit}")
    }
}

fn write_word(out: &mut fmt::Formatter<'_>, word: usize) -> fmt::Result {
    out.write_str(nth(WORDS, b' ', word))
}

fn write_classes(out: &mut fmt::Formatter<'_>, classes: &Classes) -> fmt::Result {
    if classes.sizes().is_empty() {
        return out.write_str("none");
    }
    let mut comma = "";
    for &granules in classes.sizes() {
        write!(out, "{comma}{}", usize::from(granules) * GRANULE_BYTES)?;
        comma = ",";
    }
    Ok(())
}

/// In the largest unit that leaves no remainder, as `parse` reads it.
fn size_in_unit(bytes: usize) -> (usize, &'static str) {
    let unit = if bytes == 0 { 0 } else { (bytes.trailing_zeros() / 10).min(4) };
    (bytes >> (10 * unit), nth(" K M G T ", b' ', unit as usize))
}

fn time_in_unit(millis: usize) -> (usize, &'static str) {
    match millis {
        _ if millis == 0 || !millis.is_multiple_of(1000) => (millis, "ms"),
        _ if millis.is_multiple_of(3_600_000) => (millis / 3_600_000, "h"),
        _ if millis.is_multiple_of(60_000) => (millis / 60_000, "m"),
        _ => (millis / 1000, "s"),
    }
}

// Named, because `build.rs` includes this file under a path of its own, and rustfmt follows it there.
#[cfg(test)]
#[path = "value/tests.rs"]
mod tests;
