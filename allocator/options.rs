//! The table of options: one row is the builder's method, the build-time default, the variable and the README's line.
//! Owns: the rows, `Key`, `Values`. Called by: `config`, `settings`, and `build.rs`, which compiles this file
//! too; so it uses core and `value` alone.
//!
//! To add an option, add a row; a new kind of value is a variant of `Kind` and `Value`.
//!
//! O1: every default parses, or the crate does not compile.
//! O2: `NEARHEAP_DEFAULTS` is read by one function, by `build.rs` for its message and by the crate for its values.

use super::value::{
    Classes, FixedPath, Headers, HugePages, Kind, Limit, Millis, Policy, StatsFormat, Value, cut,
    nth, parse, place_of,
};
use core::fmt;

/// The environment variable of an option is this and its name in capitals.
pub(crate) const PREFIX: &str = "NEARHEAP_";
/// The one variable that is read while the crate is built.
pub(crate) const BUILD_VARIABLE: &str = "NEARHEAP_DEFAULTS";
/// The longest name of an option, so that a guess at a misspelt one needs a small array.
const NAME_MOST: usize = 24;

/// Hands the table to the macro `$then`. A row: name, type, kind; default; what is accepted; what it means and costs.
macro_rules! options {
    ($then:ident) => {
        $then! {
            classes: Classes = Classes {}; "none";
                "none or ascending multiples of 16 up to 32768, from at most 64, each at most double the one before";
                "The block sizes, up to 64 of them, in place of the built-in ones: a request is rounded up to the next listed size, and above the last the built-in sizes apply. Fewer sizes share blocks better and waste more of each; the speed is the same.";
            cache_bytes: usize = Size { most: 64 << 20 }; "256K";
                "a size from 0 to 64M such as 256K";
                "Bytes of free blocks that the cache of one thread may hold. More means fewer locks and a larger resident set per thread.";
            slot_blocks: usize = Count { least: 1, most: 63 }; "63";
                "a number from 1 to 63";
                "Free blocks of one size class that the cache of one thread may hold; half as many move at a time. Fewer means a smaller cache and more locks.";
            retain: usize = Size { most: usize::MAX }; "8M";
                "a size such as 8M";
                "Bytes of free pages that are kept before any is given back to the system, and of freed blocks that wait for the next use of their size. Less means a smaller resident set and more page faults.";
            purge_delay: Millis = Time { most: Millis(3_600_000) }; "100ms";
                "a time from 0 to 1h such as 100ms";
                "How long a chunk that still holds blocks must be left alone before its free pages are given back one by one. Shorter means a smaller resident set and more system calls.";
            huge_pages: HugePages = HugePages {}; "auto";
                "auto, on or off";
                "Whether the heap asks for huge pages: once it is large (auto), from the start, or never. They make fresh memory several times faster and can make the resident set larger.";
            numa: Policy = Numa {}; "local";
                "local, off, preferred:N, interleave, interleave:LIST, weighted, weighted:N=W,N=W or pinned:LIST, with nodes from 0 to 63";
                "On which NUMA nodes memory lies: on that of the thread that allocates it, on one, on several in turn (LIST is such as 0-2,5) or by weight, on several and no other, so that an allocation fails when they are full, or wherever the kernel puts it (off). A machine with one node ignores it.";
            limit_soft: Limit = Limit {}; "none";
                "none, a size such as 2G, or a share such as 80% of the cgroup's memory.max";
                "Memory of the heap beyond which it gives back all that is free and calls the registered callback, once per crossing.";
            limit_hard: Limit = Limit {}; "none";
                "none, a size such as 2G, or a share such as 80% of the cgroup's memory.max";
                "Memory of the heap beyond which an allocation that needs more returns null, which most programs do not survive.";
            headers: Headers = Headers {}; "auto";
                "auto, on, off or leaks";
                "Whether blocks have headers, which find misuse at the free itself and cost time and 32 bytes a block: in builds with debug assertions (auto), or as said. With leaks they have, and what is live when the program exits is listed on standard error, by class.";
            headers_quarantine: usize = Size { most: 1 << 30 }; "1M";
                "a size from 0 to 1G such as 1M";
                "Bytes of freed blocks that wait, with headers, before they are used again: writes to them are found when they leave. More finds later ones and takes as much memory.";
            stats: StatsFormat = Stats {}; "off";
                "text (or on), json, openmetrics or off";
                "The format in which the statistics are written when the program exits. The counters are kept in any case.";
            stats_file: FixedPath = Path {}; "none";
                "none or a path of up to 1023 bytes, in which %p is the process id and %% a percent sign";
                "The file that the statistics are written to; standard error when there is none.";
            verbose: bool = Flag {}; "off";
                "on or off";
                "Writes every option, its value and where it came from to standard error at the start.";
            quiet: bool = Flag {}; "off";
                "on or off";
                "Writes nothing about options to standard error, not even that a value is wrong.";
        }
    };
}
pub(crate) use options;

macro_rules! define {
    ($($name:ident: $type:ty = $kind:ident $range:tt; $default:literal; $accepted:literal; $meaning:literal;)*) => {
        /// One option of the table.
        #[allow(non_camel_case_types)] // So that a row needs its name once.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) enum Key { $($name),* }

        impl Key {
            pub(crate) const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Follows "expected".
            pub(crate) const fn accepted(self) -> &'static str {
                nth(concat!($($accepted, "\n"),*), b'\n', self as usize)
            }

            pub(crate) const fn kind(self) -> Kind {
                match self {
                    $(Self::$name => Kind::$kind $range),*
                }
            }

            /// For the table in the README; programs should not carry them.
            #[cfg(test)]
            fn default_and_meaning(self) -> (&'static str, &'static str) {
                match self {
                    $(Self::$name => ($default, $meaning)),*
                }
            }
        }

        /// As one text, which takes a fraction of the room that a table of pointers does.
        const NAMES: &str = concat!($(stringify!($name), " "),*);

        /// A value for every option.
        #[derive(Clone, Copy, Debug)]
        pub(crate) struct Values { $(#[doc = $meaning] pub(crate) $name: $type),* }

        impl Values {
            /// What holds when nobody says anything.
            pub(crate) const DEFAULT: Self = Self {
                $($name: match parse(Kind::$kind $range, $default.as_bytes()) {
                    Some(Value::$kind(value)) => value,
                    #[allow(clippy::panic)] // Evaluated by the compiler alone (O1).
                    _ => panic!(concat!("the default of ", stringify!($name), " is not accepted")),
                }),*
            };

            #[inline(never)]
            pub(crate) const fn get(&self, key: Key) -> Value {
                match key { $(Key::$name => Value::$kind(self.$name)),* }
            }

            /// Changes one option; a value of another kind changes nothing.
            #[inline(never)]
            pub(crate) const fn put(&mut self, key: Key, value: Value) {
                match (key, value) {
                    $((Key::$name, Value::$kind(value)) => self.$name = value,)*
                    _ => {}
                }
            }
        }
    };
}
options!(define);

const _: () = {
    let mut keys = Key::ALL;
    while let [key, rest @ ..] = keys {
        assert!(key.name().len() <= NAME_MOST);
        keys = rest;
    }
};

impl Key {
    pub(crate) const fn name(self) -> &'static str {
        nth(NAMES, b' ', self as usize)
    }

    /// The option of this name, in any case of letters.
    pub(crate) const fn find(name: &[u8]) -> Option<Self> {
        match place_of(name, NAMES) {
            Some(place) => Self::at(place),
            None => None,
        }
    }

    const fn at(place: usize) -> Option<Self> {
        match Self::ALL.split_at_checked(place) {
            Some((_, [key, ..])) => Some(*key),
            _ => None,
        }
    }

    /// The option that somebody who wrote `name` may have meant.
    pub(crate) fn closest(name: &[u8]) -> Option<Self> {
        let mut most = if name.len() > NAME_MOST { 0 } else { (1 + name.len() / 4).min(3) };
        let mut found = None;
        let (mut place, mut rest) = (0, NAMES.as_bytes());
        while let (word, Some(after)) = cut(rest, b' ') {
            let letters = distance(word, name);
            if letters <= most {
                (most, found) = (letters.saturating_sub(1), Self::at(place));
            }
            (place, rest) = (place + 1, after);
        }
        found
    }
}

/// How many letters must be added, removed or changed; `right` is at most `NAME_MOST` long.
fn distance(left: &[u8], right: &[u8]) -> usize {
    // cells[j]: the distance of the part of `left` read so far to the first j letters of `right`.
    let mut cells: [usize; NAME_MOST + 1] = core::array::from_fn(|at| at);
    for (at, l) in left.iter().enumerate() {
        let mut diagonal = at;
        let mut before = at + 1;
        if let Some(cell) = cells.first_mut() {
            *cell = before;
        }
        for (r, cell) in right.iter().zip(cells.iter_mut().skip(1)) {
            let changed = diagonal + usize::from(!l.eq_ignore_ascii_case(r));
            diagonal = *cell;
            before = changed.min(before + 1).min(diagonal + 1);
            *cell = before;
        }
    }
    cells.get(right.len()).copied().unwrap_or(usize::MAX)
}

/// A set of options.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Keys(u32);

const _: () = assert!(Key::ALL.len() <= u32::BITS as usize);

impl Keys {
    pub(crate) const NONE: Self = Self(0);

    pub(crate) const fn has(self, key: Key) -> bool {
        self.0 & (1 << key as u32) != 0
    }

    /// Adds one; whether it was absent.
    pub(crate) const fn add(&mut self, key: Key) -> bool {
        let absent = !self.has(key);
        self.0 |= 1 << key as u32;
        absent
    }
}

/// The defaults after the build has had its say, and which of them it changed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Baked {
    pub(crate) values: Values,
    pub(crate) keys: Keys,
}

/// Why one word of the build-time defaults is refused; `Display` is the sentence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refusal {
    word: &'static [u8],
    key: Option<Key>,
    twice: bool,
}

/// Reads the build-time defaults: `name=value` words between white space, each option once.
pub(crate) const fn bake(text: &'static str) -> Result<Baked, Refusal> {
    let mut baked = Baked { values: Values::DEFAULT, keys: Keys::NONE };
    let mut rest = text.as_bytes().trim_ascii_start();
    while !rest.is_empty() {
        let (word, after) = split_word(rest);
        rest = after.trim_ascii_start();
        let (name, value) = cut(word, b'=');
        let Some(key) = Key::find(name) else {
            return Err(Refusal { word, key: None, twice: false });
        };
        let value = match value {
            Some(value) => parse(key.kind(), value),
            None => None,
        };
        let Some(value) = value else { return Err(Refusal { word, key: Some(key), twice: false }) };
        if !baked.keys.add(key) {
            return Err(Refusal { word, key: Some(key), twice: true });
        }
        baked.values.put(key, value);
    }
    Ok(baked)
}

/// The text up to the first white space, and the rest.
const fn split_word(text: &[u8]) -> (&[u8], &[u8]) {
    let mut rest = text;
    while let [byte, after @ ..] = rest {
        if byte.is_ascii_whitespace() {
            break;
        }
        rest = after;
    }
    text.split_at(text.len() - rest.len())
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, value) = cut(self.word, b'=');
        write!(out, "{BUILD_VARIABLE}: {}", name.escape_ascii())?;
        if let Some(value) = value {
            write!(out, "=\"{}\"", value.escape_ascii())?;
        }
        match (self.key, Key::closest(name)) {
            (Some(_), _) if self.twice => out.write_str(": given twice"),
            (Some(key), _) => write!(out, ": expected {}", key.accepted()),
            (None, Some(guess)) => {
                write!(out, ": unknown option; did you mean {}?", guess.name())
            }
            (None, None) => {
                out.write_str(": unknown option; the options are")?;
                Key::ALL.iter().try_for_each(|key| write!(out, " {}", key.name()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use std::format;
    use std::string::{String, ToString};

    const BEGIN: &str = "<!-- options -->";
    const END: &str = "<!-- /options -->";

    #[test]
    fn what_a_row_accepts_names_its_range() {
        for key in Key::ALL {
            let (name, accepted, (default, _)) =
                (key.name(), key.accepted(), key.default_and_meaning());
            let range = match key.kind() {
                Kind::Size { most: usize::MAX } => format!("a size such as {default}"),
                Kind::Size { most } => {
                    format!("a size from 0 to {} such as {default}", Value::Size(most))
                }
                Kind::Count { least, most } => format!("a number from {least} to {most}"),
                Kind::Time { most } => {
                    format!("a time from 0 to {} such as {default}", Value::Time(most))
                }
                _ => continue,
            };
            assert_eq!(accepted, range, "{name}");
        }
    }

    #[rstest]
    #[case("cashe_bytes", Some(Key::cache_bytes))]
    #[case("CACHE_BYTE", Some(Key::cache_bytes))]
    #[case("Quiet", Some(Key::quiet))]
    #[case("stat", Some(Key::stats))]
    #[case("limit_sotf", Some(Key::limit_soft))]
    #[case("", None)]
    #[case("foo", None)]
    #[case("a_name_longer_than_every_option", None)]
    fn the_closest_option(#[case] name: &str, #[case] meant: Option<Key>) {
        assert_eq!(Key::closest(name.as_bytes()), meant);
    }

    #[rstest]
    #[case("", "kitten", 6)]
    #[case("kitten", "", 6)]
    #[case("kitten", "sitting", 3)]
    #[case("SUNDAY", "saturday", 3)]
    fn the_distance_of_two_words(#[case] left: &str, #[case] right: &str, #[case] letters: usize) {
        assert_eq!(distance(left.as_bytes(), right.as_bytes()), letters);
    }

    #[test]
    fn the_build_changes_what_it_names() {
        let baked = bake(" cache_bytes=32K\n stats=text stats_file=/tmp/%p ").unwrap();
        assert_eq!((baked.values.cache_bytes, baked.values.stats), (32 << 10, StatsFormat::Text));
        assert_eq!(baked.values.stats_file, FixedPath(Some(b"/tmp/%p")));
        assert_eq!(baked.values.retain, Values::DEFAULT.retain);
        assert!(baked.keys.has(Key::cache_bytes) && !baked.keys.has(Key::retain));
        assert_eq!(bake("  ").unwrap().keys, Keys::NONE);
    }

    #[rstest]
    #[case("cache_bytes=nope", "cache_bytes=\"nope\": expected a size from 0 to 64M such as 256K")]
    #[case("retain=1M cache_bytes", "cache_bytes: expected a size from 0 to 64M such as 256K")]
    #[case("quiet=", "quiet=\"\": expected on or off")]
    #[case("cashe_bytes=1M", "cashe_bytes=\"1M\": unknown option; did you mean cache_bytes?")]
    #[case("quiet=1 quiet=1", "quiet=\"1\": given twice")]
    fn the_build_is_told_what_is_wrong(#[case] text: &'static str, #[case] sentence: &str) {
        assert_eq!(bake(text).unwrap_err().to_string(), format!("NEARHEAP_DEFAULTS: {sentence}"));
    }

    #[test]
    fn the_build_is_told_every_name() {
        let sentence = bake("gibberish=1").unwrap_err().to_string();
        assert!(Key::ALL.iter().all(|key| sentence.contains(key.name())), "{sentence}");
    }

    #[test]
    fn the_readme_has_the_table() {
        // Cargo runs tests in the package's folder. A path from compile time could be that of another checkout, when
        // both build into one target folder.
        let file = "README.md";
        let readme = std::fs::read_to_string(file).unwrap_or_default();
        let part = readme
            .split_once(BEGIN)
            .and_then(|(before, rest)| Some((before, rest.split_once(END)?)));
        let Some((before, (table, after))) = part else {
            panic!(
                "README.md has no table of options: give it the lines {BEGIN} and {END}, then run this test with UPDATE=1"
            )
        };
        let wanted = format!("\n{}", rows());
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(file, format!("{before}{BEGIN}{wanted}{END}{after}")).unwrap();
        } else {
            assert!(
                table == wanted,
                "README.md is not as the table of options: run this test with UPDATE=1\n{wanted}"
            );
        }
    }

    fn rows() -> String {
        let mut rows = String::from("| option | values | default | meaning |\n|---|---|---|---|\n");
        for key in Key::ALL {
            let (name, accepted, (default, meaning)) =
                (key.name(), key.accepted(), key.default_and_meaning());
            rows += &format!("| `{name}` | {accepted} | `{default}` | {meaning} |\n");
        }
        rows
    }
}
