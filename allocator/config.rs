//! What a program says about its own allocator, in the `static` that declares it.
//! Owns: `Config`. Called by: the user's `static`, through `NearHeap::with`; read by `settings`.
//!
//! F1: a `Config` holds accepted values only: each method asserts it, while the program is compiled when it is const.

use crate::options::{Baked, Key, Keys, Values, bake, options};
use crate::value::{Classes, FixedPath, Headers, Millis, Policy, Value, fits, same};
pub use crate::value::{HugePages, Limit, StatsFormat};
use core::time::Duration;

/// The built-in defaults with those of the build. `build.rs` has refused, with a better message, what is refused here.
const BAKED: Baked = match option_env!("NEARHEAP_DEFAULTS") {
    None => Baked { values: Values::DEFAULT, keys: Keys::NONE },
    Some(text) => match bake(text) {
        Ok(baked) => baked,
        #[allow(clippy::panic)] // Evaluated by the compiler alone.
        Err(_) => panic!("NEARHEAP_DEFAULTS is invalid"),
    },
};

/// The options of an allocator, for `NearHeap::with`; the README has them all in a table.
///
/// A value given here replaces the build-time default (`NEARHEAP_DEFAULTS`), and is itself replaced by the variable
/// `NEARHEAP_<OPTION>` of the environment, unless the options are [locked](Config::lock). A value that is not accepted
/// does not compile.
///
/// ```
/// # use nearheap::{Config, StatsFormat};
/// const CONFIG: Config = Config::new().cache_bytes(64 << 10).stats(StatsFormat::Text);
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Config {
    pub(crate) values: Values,
    pub(crate) built: Keys,
    pub(crate) given: Keys,
    pub(crate) locked: bool,
}

impl Config {
    /// The defaults.
    pub const fn new() -> Self {
        Self { values: BAKED.values, built: BAKED.keys, given: Keys::NONE, locked: false }
    }

    /// Ignores the environment, `NEARHEAP_QUIET` and `NEARHEAP_VERBOSE` included. Variables that are set all the same
    /// are told of only if the program or its build asks for `verbose`.
    pub const fn lock(mut self) -> Self {
        self.locked = true;
        self
    }

    /// Headers, as with [`Config::headers`], and a list of the blocks that are live when the program exits, by class, on
    /// standard error. As text: `headers=leaks`.
    pub const fn leaks(self) -> Self {
        self.with(Key::headers, Value::Headers(Headers::Leaks))
    }

    const fn with(mut self, key: Key, value: Value) -> Self {
        assert!(
            fits(key.kind(), &value),
            "this option does not accept this value; see the options of nearheap"
        );
        self.values.put(key, value);
        self.given.add(key);
        self
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}

/// What the builder takes for a kind of option.
macro_rules! argument {
    (Classes) => { &'static [u32] };
    (Size) => { usize };
    (Count) => { usize };
    (Time) => { Duration };
    (HugePages) => { HugePages };
    (Numa) => { Policy };
    (Limit) => { Limit };
    (Stats) => { StatsFormat };
    (Headers) => { bool };
    (Path) => { &'static str };
    (Flag) => { bool };
}

/// What the builder's argument becomes.
macro_rules! value {
    (Classes, $sizes:expr) => {
        classes_of($sizes)
    };
    (Time, $duration:expr) => {
        Millis::from_duration($duration)
    };
    (Headers, $on:expr) => {
        if $on { Headers::On } else { Headers::Off }
    };
    (Path, $path:expr) => {
        FixedPath(if same($path.as_bytes(), b"none") { None } else { Some($path.as_bytes()) })
    };
    ($kind:ident, $value:expr) => {
        $value
    };
}

macro_rules! builder {
    ($($name:ident: $type:ty = $kind:ident $range:tt; $default:literal; $accepted:literal; $meaning:literal;)*) => {
        impl Config {
            $(
                #[doc = $meaning]
                #[doc = ""]
                #[doc = concat!("As text: ", $accepted, ". Default: `", $default, "`.")]
                pub const fn $name(self, value: argument!($kind)) -> Self {
                    self.with(Key::$name, Value::$kind(value!($kind, value)))
                }
            )*
        }
    };
}
options!(builder);

const fn classes_of(sizes: &[u32]) -> Classes {
    let mut classes = Classes::NONE;
    let mut rest = sizes;
    while let [bytes, after @ ..] = rest {
        assert!(
            classes.add(*bytes as usize),
            "block sizes: at most 64 ascending multiples of 16 up to 32768, from at most 64, each at most double the one before"
        );
        rest = after;
    }
    classes
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const EVERYTHING: Config = Config::new()
        .classes(&[16, 32, 64])
        .cache_bytes(0)
        .slot_blocks(63)
        .retain(1 << 30)
        .purge_delay(Duration::from_secs(2))
        .huge_pages(HugePages::Off)
        .numa(Policy::Preferred(63))
        .limit_soft(Limit::Percent(80))
        .limit_hard(Limit::Bytes(1))
        .headers(true)
        .headers_quarantine(1 << 20)
        .stats(StatsFormat::Json)
        .stats_file("/tmp/%p")
        .verbose(true)
        .quiet(false);

    #[test]
    fn every_option_has_its_method() {
        assert!(Key::ALL.iter().all(|key| EVERYTHING.given.has(*key)));
        assert_eq!(EVERYTHING.values.classes.sizes(), [1, 2, 4]);
        assert_eq!(EVERYTHING.values.purge_delay, Millis(2000));
        assert_eq!(EVERYTHING.values.stats_file, FixedPath(Some(b"/tmp/%p")));
        assert_eq!(EVERYTHING.values.limit_soft, Limit::Percent(80));
        assert_eq!(EVERYTHING.values.numa, Policy::Preferred(63));
        assert_eq!(Config::new().stats_file("none").values.stats_file, FixedPath(None));
        assert_eq!(Config::new().given, Keys::NONE);
    }

    #[rstest]
    #[case::cache(|| Config::new().cache_bytes((64 << 20) + 1))]
    #[case::slot(|| Config::new().slot_blocks(0))]
    #[case::delay(|| Config::new().purge_delay(Duration::MAX))]
    #[case::share(|| Config::new().limit_hard(Limit::Percent(101)))]
    #[case::node(|| Config::new().numa(Policy::Preferred(64)))]
    #[case::path(|| Config::new().stats_file("%d"))]
    #[case::classes(|| Config::new().classes(&[16, 48]))]
    fn what_is_out_of_range_is_refused(#[case] build: fn() -> Config) {
        assert!(std::panic::catch_unwind(build).is_err());
    }
}
