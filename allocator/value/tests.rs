//! Which text is a value of which kind, and how that value is written.

use super::*;
use rstest::rstest;
use std::string::ToString;

const COUNT: Kind = Kind::Count { least: 1, most: 63 };
const SIZE: Kind = Kind::Size { most: usize::MAX };
const SMALL: Kind = Kind::Size { most: 64 << 20 };
const TIME: Kind = Kind::Time { most: Millis(3_600_000) };

#[rstest]
#[case::plain(SIZE, "4096", "4K")]
#[case::odd(SIZE, "4097B", "4097")]
#[case::kilo(SIZE, "64k", "64K")]
#[case::kilobytes(SIZE, "64KB", "64K")]
#[case::mebibytes(SIZE, "16MiB", "16M")]
#[case::giga(SIZE, "1G", "1G")]
#[case::large(SIZE, "2tib", "2T")]
#[case::zero(SIZE, "0", "0")]
#[case::most(SMALL, "65536K", "64M")]
#[case::leading_zeros(COUNT, "007", "7")]
#[case::least_count(COUNT, "1", "1")]
#[case::most_count(COUNT, "63", "63")]
#[case::millis(TIME, "250ms", "250ms")]
#[case::seconds(TIME, "2s", "2s")]
#[case::minutes(TIME, "5M", "5m")]
#[case::hour(TIME, "3600s", "1h")]
#[case::no_time(TIME, "0", "0ms")]
#[case::flag_digit(Kind::Flag {}, "1", "on")]
#[case::flag_true(Kind::Flag {}, "True", "on")]
#[case::flag_yes(Kind::Flag {}, "YES", "on")]
#[case::flag_on(Kind::Flag {}, "on", "on")]
#[case::flag_zero(Kind::Flag {}, "0", "off")]
#[case::flag_false(Kind::Flag {}, "FALSE", "off")]
#[case::flag_no(Kind::Flag {}, "no", "off")]
#[case::flag_off(Kind::Flag {}, "Off", "off")]
#[case::huge_auto(Kind::HugePages {}, "AUTO", "auto")]
#[case::huge_on(Kind::HugePages {}, "yes", "on")]
#[case::huge_off(Kind::HugePages {}, "0", "off")]
#[case::local(Kind::Numa {}, "Local", "local")]
#[case::preferred(Kind::Numa {}, "preferred:01", "preferred:1")]
#[case::interleave(Kind::Numa {}, "interleave:5,0,1,2", "interleave:0-2,5")]
#[case::weighted(Kind::Numa {}, "weighted:1=1,0=3", "weighted:0=3,1=1")]
#[case::pinned(Kind::Numa {}, "pinned:0-1", "pinned:0-1")]
#[case::no_limit(Kind::Limit {}, "None", "none")]
#[case::limit(Kind::Limit {}, "2G", "2G")]
#[case::share(Kind::Limit {}, "80%", "80%")]
#[case::whole_share(Kind::Limit {}, "100%", "100%")]
#[case::stats_on(Kind::Stats {}, "1", "text")]
#[case::stats_text(Kind::Stats {}, "text", "text")]
#[case::stats_json(Kind::Stats {}, "JSON", "json")]
#[case::stats_openmetrics(Kind::Stats {}, "OpenMetrics", "openmetrics")]
#[case::stats_off(Kind::Stats {}, "no", "off")]
#[case::path(Kind::Path {}, "/tmp/%p-%%.json", "/tmp/%p-%%.json")]
#[case::no_path(Kind::Path {}, "none", "none")]
#[case::classes(Kind::Classes {}, "16,32,64,96", "16,32,64,96")]
#[case::classes_units(Kind::Classes {}, "64,128,256,512,1K,2K", "64,128,256,512,1024,2048")]
#[case::no_classes(Kind::Classes {}, "none", "none")]
fn accepted_text_reads_back(
    #[case] kind: Kind,
    #[case] text: &'static str,
    #[case] shown: &'static str,
) {
    let value = parse(kind, text.as_bytes()).unwrap();
    assert_eq!(value.to_string(), shown);
    assert_eq!(parse(kind, shown.as_bytes()), Some(value));
}

#[rstest]
fn refused_text(
    #[values(
        SMALL, COUNT, TIME, Kind::Flag {}, Kind::HugePages {}, Kind::Numa {}, Kind::Limit {}, Kind::Stats {}, Kind::Classes {}
    )]
    kind: Kind,
    #[values(
        "",
        " ",
        "lots",
        "-1",
        "+1",
        "1.5",
        "1 ",
        " 1",
        "0x10",
        "1,",
        "K",
        "%",
        "18446744073709551616",
        "\0"
    )]
    text: &'static str,
) {
    assert_eq!(parse(kind, text.as_bytes()), None);
}

#[rstest]
#[case::too_large(SMALL, "67108865")]
#[case::overflow(SIZE, "16777216T")]
#[case::wrong_unit(SIZE, "1ms")]
#[case::half_unit(SIZE, "1Ki")]
#[case::zero_count(COUNT, "0")]
#[case::large_count(COUNT, "64")]
#[case::count_unit(COUNT, "1K")]
#[case::no_unit(TIME, "100")]
#[case::long_time(TIME, "3600001ms")]
#[case::time_overflow(TIME, "18446744073709551615h")]
#[case::flag_number(Kind::Flag {}, "2")]
#[case::no_node(Kind::Numa {}, "preferred")]
#[case::large_node(Kind::Numa {}, "pinned:64")]
#[case::no_memory(Kind::Limit {}, "0")]
#[case::no_share(Kind::Limit {}, "0%")]
#[case::large_share(Kind::Limit {}, "101%")]
#[case::share_overflow(Kind::Limit {}, "336%")]
#[case::stats_word(Kind::Stats {}, "xml")]
#[case::no_text(Kind::Path {}, "")]
#[case::percent(Kind::Path {}, "a%d")]
#[case::percent_last(Kind::Path {}, "a%")]
#[case::nul(Kind::Path {}, "a\0b")]
#[case::classes_order(Kind::Classes {}, "32,16")]
#[case::classes_twice(Kind::Classes {}, "16,16")]
#[case::classes_odd(Kind::Classes {}, "16,24")]
#[case::classes_zero(Kind::Classes {}, "0,16")]
#[case::classes_gap(Kind::Classes {}, "16,48")]
#[case::classes_first(Kind::Classes {}, "80")]
#[case::classes_large(Kind::Classes {}, "64,128,256,512,1K,2K,4K,8K,16K,32K,64K")]
#[case::classes_comma(Kind::Classes {}, "16,,32")]
#[case::classes_space(Kind::Classes {}, "16, 32")]
fn refused_value(#[case] kind: Kind, #[case] text: &'static str) {
    assert_eq!(parse(kind, text.as_bytes()), None);
}

#[test]
fn a_path_may_be_as_long_as_its_copy() {
    let path = [b'a'; PATH_MOST + 1];
    assert_eq!(parse_path(&path[1..]), Some(Some(&path[1..])));
    assert_eq!(parse_path(&path), None);
}

#[test]
fn a_list_holds_64_sizes() {
    let mut list = Classes::NONE;
    assert!((1..=CLASSES_MOST).all(|at| list.add(at * GRANULE_BYTES)));
    assert_eq!(list.sizes().len(), 64);
    assert!(!list.add((CLASSES_MOST + 1) * GRANULE_BYTES));
}

#[test]
fn every_size_rounds_up_to_the_next_listed_one() {
    let Some(Value::Classes(classes)) = parse_plain(Kind::Classes {}, b"32,48,96,192") else {
        panic!()
    };
    let granules = [(0, 2), (1, 2), (2, 2), (3, 3), (4, 6), (6, 6), (7, 12), (12, 12)];
    for (asked, got) in granules {
        assert_eq!(classes.round_up(asked), Some(got), "{asked} granules");
    }
    assert_eq!(classes.round_up(13), None);
    assert_eq!(Classes::NONE.round_up(1), None);
}

#[test]
fn texts_have_their_places() {
    let all = "one two  four ";
    assert_eq!(["one", "two", "", "four", ""], [0, 1, 2, 3, 4].map(|place| nth(all, b' ', place)));
    assert_eq!(place_of(b"FOUR", all), Some(3));
    assert_eq!(place_of(b"five", all), None);
    assert_eq!(place_of(b"on", all), None);
    for (word, place) in [("off", OFF), ("on", ON), ("auto", AUTO), ("openmetrics", OPEN_METRICS)] {
        assert_eq!(nth(WORDS, b' ', place), word);
    }
}
