//! What is in force, and what is said about it, for environments written as `NAME=value` lists.

use super::*;
use crate::config::StatsFormat;
use crate::report::LINE_BYTES;
use rstest::rstest;
use std::boxed::Box;
use std::string::String;
use std::vec::Vec;

type Pairs<'e> = &'e [(&'e [u8], &'e [u8])];

fn resolved(config: &Config, environment: Pairs<'_>) -> (Box<Settings>, String) {
    let mut out = Box::new(Settings::of(config));
    let mut said = Vec::new();
    resolve(config, environment.iter().copied(), &mut out, &mut |line| {
        assert!(line.len() <= LINE_BYTES && line.ends_with(b"\n"), "{}", line.escape_ascii());
        assert!(
            line.iter().filter(|byte| !(b' '..=b'~').contains(byte)).count() == 1,
            "{}",
            line.escape_ascii()
        );
        said.extend_from_slice(line);
    });
    (out, String::from_utf8(said).unwrap())
}

fn said(environment: Pairs<'_>) -> String {
    resolved(&Config::new(), environment).1
}

#[test]
fn the_defaults_are_silent() {
    let (settings, said) =
        resolved(&Config::new(), &[(b"HOME", b"/root"), (b"nearheap_quiet", b"maybe")]);
    assert_eq!(said, "");
    assert_eq!((settings.values.cache_bytes, settings.stats_file()), (256 << 10, None));
}

#[test]
fn later_wins() {
    let mut config = Config::new();
    config.values.put(Key::retain, Value::Size(1));
    config.values.put(Key::slot_blocks, Value::Count(1));
    config.values.put(Key::cache_bytes, Value::Size(1));
    for key in [Key::retain, Key::slot_blocks, Key::cache_bytes] {
        config.built.add(key);
    }
    let config = config.slot_blocks(2).cache_bytes(2);
    let (settings, _) = resolved(&config, &[(b"NEARHEAP_CACHE_BYTES", b"3")]);
    let found = [Key::verbose, Key::retain, Key::slot_blocks, Key::cache_bytes]
        .map(|key| settings.source(key));
    assert_eq!(found, ["default", "build", "builder", "environment"]);
    assert_eq!(
        (settings.values.retain, settings.values.slot_blocks, settings.values.cache_bytes),
        (1, 2, 3)
    );
}

#[test]
fn the_environment_reaches_every_kind() {
    let (settings, said) = resolved(
        &Config::new(),
        &[
            (b"NEARHEAP_CLASSES", b"16,32"),
            (b"NEARHEAP_PURGE_DELAY", b"2s"),
            (b"NEARHEAP_NUMA", b"pinned:0-1"),
            (b"NEARHEAP_LIMIT_HARD", b"80%"),
            (b"NEARHEAP_STATS", b"1"),
            (b"NEARHEAP_STATS_FILE", b"/tmp/\xff%p"),
        ],
    );
    assert_eq!(said, "");
    assert_eq!(settings.values.classes.sizes(), [1, 2]);
    assert_eq!(settings.values.purge_delay.0, 2000);
    let nodes = nearheap_numa::NodeSet::of(&[0, 1]);
    assert_eq!(settings.values.numa, nearheap_numa::Policy::Pinned(nodes));
    assert_eq!(settings.values.limit_hard, crate::config::Limit::Percent(80));
    assert_eq!(settings.values.stats, StatsFormat::Text);
    assert_eq!(settings.stats_file(), Some(&b"/tmp/\xff%p"[..]));
}

#[rstest]
#[case::builder("NEARHEAP_DEFAULTS", "", Some("built"))]
#[case::environment("NEARHEAP_STATS_FILE", "env", Some("env"))]
#[case::none("NEARHEAP_STATS_FILE", "none", None)]
#[case::bad("NEARHEAP_STATS_FILE", "%x", Some("built"))]
fn the_path_that_stands(#[case] name: &str, #[case] text: &str, #[case] path: Option<&str>) {
    let environment: Pairs<'_> = &[(name.as_bytes(), text.as_bytes())];
    let (settings, _) = resolved(&Config::new().stats_file("built"), environment);
    assert_eq!(settings.stats_file(), path.map(str::as_bytes));
}

#[rstest]
#[case::size(
    "CACHE_BYTES",
    b"lots",
    "=\"lots\": expected a size from 0 to 64M such as 256K; using 256K"
)]
#[case::empty("RETAIN", b"", "=\"\": expected a size such as 8M; using 8M")]
#[case::bytes("QUIET", b"\xff\"\n", "=\"\\xff\\\"\\n\": expected on or off; using off")]
#[case::long(
    "CLASSES",
    &[b'1'; 5000],
    "=\"111111111111111111111111111111111111111111111...\": expected none or ascending multiples of 16 up to 32768, from at most 64, each at most double the one before; using none"
)]
#[case::misspelt("CASHE_BYTES", b"1", ": unknown option; did you mean NEARHEAP_CACHE_BYTES?")]
#[case::small_letters("quiet", b"1", ": unknown option; did you mean NEARHEAP_QUIET?")]
#[case::strange("FROB", b"1", ": unknown option; run with NEARHEAP_VERBOSE=1 to see the options")]
#[case::nameless("", b"1", ": unknown option; run with NEARHEAP_VERBOSE=1 to see the options")]
fn what_is_wrong_is_told_in_one_line(
    #[case] name: &str,
    #[case] value: &[u8],
    #[case] said_of_it: &str,
) {
    let variable = std::format!("NEARHEAP_{name}");
    let line = said(&[(variable.as_bytes(), value)]);
    assert_eq!(line, std::format!("nearheap: {variable}{said_of_it}\n"));
}

#[test]
fn the_value_that_stands_may_be_the_programs() {
    let (settings, said) =
        resolved(&Config::new().slot_blocks(8), &[(b"NEARHEAP_SLOT_BLOCKS", b"64")]);
    assert_eq!(
        said,
        "nearheap: NEARHEAP_SLOT_BLOCKS=\"64\": expected a number from 1 to 63; using 8\n"
    );
    assert_eq!(settings.values.slot_blocks, 8);
}

#[test]
fn a_long_unknown_name_is_cut() {
    let mut name = b"NEARHEAP_".to_vec();
    name.resize(100_000, b'\x01');
    assert!(said(&[(&name, b"")]).contains("...: unknown option; "));
}

#[test]
fn the_first_of_two_counts() {
    let (settings, said) =
        resolved(&Config::new(), &[(b"NEARHEAP_RETAIN", b"1M"), (b"NEARHEAP_RETAIN", b"bad")]);
    assert_eq!((settings.values.retain, said.as_str()), (1 << 20, ""));
    let (settings, said) =
        resolved(&Config::new(), &[(b"NEARHEAP_RETAIN", b"bad"), (b"NEARHEAP_RETAIN", b"1M")]);
    assert_eq!((settings.values.retain, said.lines().count()), (8 << 20, 1));
}

#[test]
fn the_variable_of_the_build_is_no_mistake() {
    assert_eq!(said(&[(b"NEARHEAP_DEFAULTS", b"cache_bytes=1M")]), "");
}

#[test]
fn quiet_silences_what_came_before_it() {
    let environment: Pairs<'_> =
        &[(b"NEARHEAP_FROB", b""), (b"NEARHEAP_VERBOSE", b"1"), (b"NEARHEAP_QUIET", b"1")];
    assert_eq!(said(environment), "");
    let loud =
        resolved(&Config::new().quiet(true), &[(b"NEARHEAP_FROB", b""), (b"NEARHEAP_QUIET", b"0")])
            .1;
    assert_eq!(loud.lines().count(), 1);
}

#[test]
fn a_lock_ignores_the_environment() {
    let environment: Pairs<'_> = &[
        (b"NEARHEAP_RETAIN", b"1M"),
        (b"NEARHEAP_FROB", b""),
        (b"NEARHEAP_VERBOSE", b"1"),
        (b"NEARHEAP_DEFAULTS", b""),
        (b"PATH", b""),
    ];
    let (settings, said) = resolved(&Config::new().lock(), environment);
    assert_eq!((settings.values.retain, said.as_str()), (8 << 20, ""));
    let (settings, said) = resolved(&Config::new().verbose(true).lock(), environment);
    assert_eq!(settings.values.retain, 8 << 20);
    let ignored = "nearheap: NEARHEAP_RETAIN: ignored, as the program locks its options\n\
                   nearheap: NEARHEAP_FROB: ignored, as the program locks its options\n\
                   nearheap: NEARHEAP_VERBOSE: ignored, as the program locks its options\n\
                   nearheap: classes = none (default)\n";
    assert!(said.starts_with(ignored), "{said}");
}

#[test]
fn verbose_lists_every_option() {
    let config = Config::new().slot_blocks(8);
    let (_, said) = resolved(
        &config,
        &[(b"NEARHEAP_VERBOSE", b"1"), (b"NEARHEAP_STATS_FILE", b"/tmp/a b\xff")],
    );
    let wanted = "nearheap: classes = none (default)\n\
                  nearheap: cache_bytes = 256K (default)\n\
                  nearheap: slot_blocks = 8 (builder)\n\
                  nearheap: retain = 8M (default)\n\
                  nearheap: purge_delay = 100ms (default)\n\
                  nearheap: huge_pages = auto (default)\n\
                  nearheap: numa = local (default)\n\
                  nearheap: limit_soft = none (default)\n\
                  nearheap: limit_hard = none (default)\n\
                  nearheap: headers = auto (default)\n\
                  nearheap: headers_quarantine = 1M (default)\n\
                  nearheap: stats = off (default)\n\
                  nearheap: stats_file = /tmp/a b\\xff (environment)\n\
                  nearheap: verbose = on (environment)\n\
                  nearheap: quiet = off (default)\n";
    assert_eq!(said, wanted);
}

#[test]
fn a_long_value_leaves_room_for_its_source() {
    let path = [b'a'; PATH_MOST];
    let (settings, said) =
        resolved(&Config::new().verbose(true), &[(b"NEARHEAP_STATS_FILE", &path)]);
    assert!(said.contains("aaa... (environment)\n"), "{said}");
    assert_eq!(settings.stats_file(), Some(&path[..]));
}

/// Bytes that look like options more often than chance would have it.
fn scramble(random: &mut impl FnMut() -> usize, out: &mut Vec<u8>) {
    const PARTS: &[&[u8]] = &[
        b"1",
        b"K",
        b"%",
        b"%p",
        b",16",
        b"ms",
        b"none",
        b"on",
        b"99999999",
        b"\xff",
        b"\0",
        b"_",
        b"LIMIT",
        b"S",
    ];
    out.clear();
    for _ in 0..random() % 12 {
        match random() % 3 {
            0 => out.push(random() as u8),
            1 => out.extend_from_slice(PARTS[random() % PARTS.len()]),
            _ => out.extend(std::iter::repeat_n(random() as u8, random() % 40)),
        }
    }
}

#[test]
fn no_bytes_surprise_it() {
    let rounds = if cfg!(miri) { 200 } else { 100_000 };
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as usize
    };
    let (mut name, mut value) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        scramble(&mut random, &mut value);
        scramble(&mut random, &mut name);
        let key = Key::ALL.get(random() % (Key::ALL.len() + 2));
        if let Some(key) = key {
            name = key.name().to_ascii_uppercase().into_bytes();
        }
        let variable = [PREFIX.as_bytes(), &name].concat();
        // `resolved` asserts the length and the letters of every line.
        let (settings, said) = resolved(&Config::new(), &[(&variable, &value)]);
        let taken = key.is_some_and(|key| settings.environment.has(*key));
        assert!(
            taken || said.lines().count() == 1 || settings.values.quiet,
            "{}",
            variable.escape_ascii()
        );
    }
}
