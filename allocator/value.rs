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
    /// `auto`, or a boolean word.
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

    /// Appends a size in bytes; `None` when that would break K1.
    pub(crate) const fn and(mut self, bytes: usize) -> Option<Self> {
        let (used, free) = some!(self.sizes.split_at_mut_checked(self.len as usize));
        let (above, most) = match used {
            [.., last] => (*last as usize * GRANULE_BYTES, *last as usize * GRANULE_BYTES * 2),
            [] => (0, CLASS_BYTES_FIRST),
        };
        if bytes <= above
            || bytes > most
            || bytes > CLASS_BYTES_MOST
            || !bytes.is_multiple_of(GRANULE_BYTES)
        {
            return None;
        }
        let [next, ..] = free else { return None };
        *next = (bytes / GRANULE_BYTES) as u16;
        self.len += 1;
        Some(self)
    }

    const fn parse(text: &[u8]) -> Option<Self> {
        if same(text, b"none") {
            return Some(Self::NONE);
        }
        let mut classes = Self::NONE;
        let mut rest = Some(text);
        while let Some(list) = rest {
            let (item, after) = cut(list, b',');
            classes = some!(classes.and(some!(size(item))));
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
pub(crate) const fn fits(kind: Kind, value: Value) -> bool {
    match (kind, value) {
        (Kind::Size { most }, Value::Size(bytes)) => bytes <= most,
        (Kind::Count { least, most }, Value::Count(count)) => least <= count && count <= most,
        (Kind::Time { most }, Value::Time(time)) => time.0 <= most.0,
        (Kind::Limit {}, Value::Limit(limit)) => match limit {
            Limit::None => true,
            Limit::Bytes(bytes) => bytes > 0,
            Limit::Percent(share) => 0 < share && share <= 100,
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
        Kind::HugePages {} if same(text, b"auto") => Value::HugePages(HugePages::Auto),
        Kind::HugePages {} if some!(flag(text)) => Value::HugePages(HugePages::On),
        Kind::HugePages {} => Value::HugePages(HugePages::Off),
        Kind::Numa {} => Value::Numa(some!(Policy::parse(text))),
        Kind::Limit {} => Value::Limit(some!(limit(text))),
        Kind::Stats {} => Value::Stats(some!(stats(text))),
        Kind::Headers {} if same(text, b"auto") => Value::Headers(Headers::Auto),
        Kind::Headers {} if some!(flag(text)) => Value::Headers(Headers::On),
        Kind::Headers {} => Value::Headers(Headers::Off),
        Kind::Flag {} => Value::Flag(some!(flag(text))),
        Kind::Path {} => return None,
    };
    if fits(kind, value) { Some(value) } else { None }
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

#[inline(never)]
const fn flag(text: &[u8]) -> Option<bool> {
    if same(text, b"1") || same(text, b"true") || same(text, b"yes") || same(text, b"on") {
        Some(true)
    } else if same(text, b"0") || same(text, b"false") || same(text, b"no") || same(text, b"off") {
        Some(false)
    } else {
        None
    }
}

const fn stats(text: &[u8]) -> Option<StatsFormat> {
    if same(text, b"text") {
        Some(StatsFormat::Text)
    } else if same(text, b"json") {
        Some(StatsFormat::Json)
    } else if same(text, b"openmetrics") {
        Some(StatsFormat::OpenMetrics)
    } else if some!(flag(text)) {
        Some(StatsFormat::Text)
    } else {
        Some(StatsFormat::Off)
    }
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
        match self {
            Self::Classes(classes) => write_classes(out, classes),
            Self::Size(bytes) | Self::Limit(Limit::Bytes(bytes)) => write_size(out, *bytes),
            Self::Count(count) => write!(out, "{count}"),
            Self::Time(time) => write_time(out, time.0),
            Self::HugePages(HugePages::Auto) | Self::Headers(Headers::Auto) => {
                out.write_str("auto")
            }
            Self::HugePages(HugePages::On) | Self::Headers(Headers::On) | Self::Flag(true) => {
                out.write_str("on")
            }
            Self::HugePages(HugePages::Off)
            | Self::Headers(Headers::Off)
            | Self::Flag(false)
            | Self::Stats(StatsFormat::Off) => out.write_str("off"),
            Self::Numa(policy) => policy.fmt(out),
            Self::Limit(Limit::None) | Self::Path(FixedPath(None)) => out.write_str("none"),
            Self::Limit(Limit::Percent(share)) => write!(out, "{share}%"),
            Self::Stats(StatsFormat::Text) => out.write_str("text"),
            Self::Stats(StatsFormat::Json) => out.write_str("json"),
            Self::Stats(StatsFormat::OpenMetrics) => out.write_str("openmetrics"),
            Self::Path(FixedPath(Some(path))) => write!(out, "{}", path.escape_ascii()),
        }
    }
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
fn write_size(out: &mut fmt::Formatter<'_>, bytes: usize) -> fmt::Result {
    match bytes.trailing_zeros() {
        _ if bytes == 0 => out.write_str("0"),
        40.. => write!(out, "{}T", bytes >> 40),
        30.. => write!(out, "{}G", bytes >> 30),
        20.. => write!(out, "{}M", bytes >> 20),
        10.. => write!(out, "{}K", bytes >> 10),
        _ => write!(out, "{bytes}"),
    }
}

fn write_time(out: &mut fmt::Formatter<'_>, millis: u32) -> fmt::Result {
    match millis {
        0 => out.write_str("0ms"),
        _ if millis.is_multiple_of(3_600_000) => write!(out, "{}h", millis / 3_600_000),
        _ if millis.is_multiple_of(60_000) => write!(out, "{}m", millis / 60_000),
        _ if millis.is_multiple_of(1000) => write!(out, "{}s", millis / 1000),
        _ => write!(out, "{millis}ms"),
    }
}

// Named, because `build.rs` includes this file under a path of its own, and rustfmt follows it there.
#[cfg(test)]
#[path = "value/tests.rs"]
mod tests;
