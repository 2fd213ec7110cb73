//! Do options from the environment take effect, and is every mistake told in one line?
//! Method: child processes with variables set, their standard error compared to the letter.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;
mod effects;

use common::child;
use nearheap::NearHeap;
use rstest::rstest;
use std::alloc::{Layout, alloc, dealloc};
use std::fs;
use std::hint::black_box;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

#[global_allocator]
static GLOBAL: NearHeap = NearHeap::new();

const NOBODY: u32 = 65534;

#[test]
fn scenario() {
    common::play(&[
        ("counts_70_bytes", counts_70_bytes),
        ("does_nothing", || {}),
        ("frees_and_looks", effects::frees_and_looks),
    ]);
}

/// Prints for which size of class a block of 70 bytes is counted, its header included.
fn counts_70_bytes() {
    let layout = Layout::from_size_align(70 - common::overhead(), 8).unwrap();
    let before = nearheap::stats();
    // SAFETY: the layout has a size; every block is freed once, by its layout.
    let blocks: Vec<_> = (0..1000).map(|_| black_box(unsafe { alloc(layout) })).collect();
    let after = nearheap::stats();
    for block in blocks {
        // SAFETY: as above.
        unsafe { dealloc(block, layout) };
    }
    let grew = |size| {
        let count = |s: &nearheap::Snapshot| {
            s.classes().iter().find(|c| c.size == size).map_or(0, |c| c.allocs)
        };
        count(&after) - count(&before) >= 1000
    };
    let size = after.classes().iter().map(|c| c.size).find(|&size| grew(size)).unwrap();
    assert!(size == 80 || !grew(80));
    eprintln!("class {size}");
}

#[rstest]
#[case::built_in(None, "class 80\n")]
#[case::of_the_environment(Some("16,32,48,64,96,128,256"), "class 96\n")]
#[case::coarse(Some("64,128,256"), "class 128\n")]
fn classes_are_those_of_the_environment(#[case] classes: Option<&str>, #[case] expected: &str) {
    let run = child("counts_70_bytes");
    let run = match classes {
        Some(classes) => run.env("NEARHEAP_CLASSES", classes),
        None => run,
    };
    run.run().succeeds_with(expected);
}

#[rstest]
#[case(
    "CLASSES",
    "15",
    "\"15\": expected none or ascending multiples of 16 up to 32768, from at most 64, each at most double the one before; using none"
)]
#[case("PURGE_DELAY", "5", "\"5\": expected a time from 0 to 1h such as 100ms; using 100ms")]
#[case(
    "NUMA",
    "pinned:0-",
    "\"pinned:0-\": expected local, off, preferred:N, interleave, interleave:LIST, weighted, weighted:N=W,N=W or pinned:LIST, with nodes from 0 to 63; using local"
)]
#[case(
    "LIMIT_SOFT",
    "101%",
    "\"101%\": expected none, a size such as 2G, or a share such as 80% of the cgroup's memory.max; using none"
)]
#[case(
    "LIMIT_HARD",
    "0",
    "\"0\": expected none, a size such as 2G, or a share such as 80% of the cgroup's memory.max; using none"
)]
#[case(
    "STATS_FILE",
    "%d",
    "\"%d\": expected none or a path of up to 1023 bytes, in which %p is the process id and %% a percent sign; using none"
)]
#[case("QUIET", "si", "\"si\": expected on or off; using off")]
#[case("CACHE_BYTES", "lots", "\"lots\": expected a size from 0 to 64M such as 256K; using 256K")]
#[case("SLOT_BLOCKS", "64", "\"64\": expected a number from 1 to 63; using 63")]
#[case("RETAIN", "", "\"\": expected a size such as 8M; using 8M")]
#[case("HUGE_PAGES", "maybe", "\"maybe\": expected auto, on or off; using auto")]
#[case("VERBOSE", "2", "\"2\": expected on or off; using off")]
#[case("STATS", "xml", "\"xml\": expected text (or on), json, openmetrics or off; using off")]
fn a_bad_value_is_one_line_and_the_default_stands(
    #[case] option: &str,
    #[case] value: &str,
    #[case] expected: &str,
) {
    let name = format!("NEARHEAP_{option}");
    let ended = child("does_nothing").env(&name, value).run();
    ended.succeeds_with(&format!("nearheap: {name}={expected}\n"));
    if option != "QUIET" {
        let quiet = child("does_nothing").env(&name, value).env("NEARHEAP_QUIET", "1").run();
        quiet.succeeds_with("");
    }
}

#[test]
fn classes_that_are_none_are_refused_in_one_line() {
    for bad in ["16,8", "15", "16,48", "96", "16,,32", "16,65536"] {
        let text = child("counts_70_bytes").env("NEARHEAP_CLASSES", bad).run().succeeds();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].starts_with(&format!("nearheap: NEARHEAP_CLASSES=\"{bad}\": expected ")));
        assert_eq!(lines[1], "class 80");
    }
}

#[test]
fn an_unknown_name_is_one_line_with_the_nearest() {
    let ended = child("does_nothing").env("NEARHEAP_CASHE_BYTES", "1M").run();
    ended.succeeds_with(
        "nearheap: NEARHEAP_CASHE_BYTES: unknown option; did you mean NEARHEAP_CACHE_BYTES?\n",
    );
}

#[test]
fn a_name_in_small_letters_is_no_option() {
    let ended = child("does_nothing").env("NEARHEAP_retain", "1M").run();
    ended.succeeds_with(
        "nearheap: NEARHEAP_retain: unknown option; did you mean NEARHEAP_RETAIN?\n",
    );
}

#[test]
fn a_name_like_no_other_leads_to_the_list() {
    let ended = child("does_nothing").env("NEARHEAP_BACKGROUND_THREAD", "1").run();
    ended.succeeds_with(
        "nearheap: NEARHEAP_BACKGROUND_THREAD: unknown option; \
         run with NEARHEAP_VERBOSE=1 to see the options\n",
    );
}

#[test]
fn each_mistake_is_a_line_of_its_own_whatever_is_in_it() {
    let run = child("does_nothing")
        .env("NEARHEAP_RETAIN", "new\nline")
        .env("NEARHEAP_SLOT_BLOCKS", &"9".repeat(5000))
        .env(&format!("NEARHEAP_{}", "X".repeat(5000)), "1");
    let text = run.run().succeeds();
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    let nines = "9".repeat(45);
    assert_eq!(lines.len(), 3, "{text}");
    assert_eq!(
        lines[0],
        "nearheap: NEARHEAP_RETAIN=\"new\\nline\": expected a size such as 8M; using 8M"
    );
    assert_eq!(
        lines[1],
        format!(
            "nearheap: NEARHEAP_SLOT_BLOCKS=\"{nines}...\": expected a number from 1 to 63; using 63"
        )
    );
    assert!(lines[2].starts_with("nearheap: NEARHEAP_XXX") && lines[2].len() < 256, "{text}");
}

/// Every option, what it is given, and how it is listed.
const GIVEN: [(&str, &str, &str); 15] = [
    ("classes", "16,32,64,128", "16,32,64,128"),
    ("cache_bytes", "65536", "64K"),
    ("slot_blocks", "7", "7"),
    ("retain", "2GiB", "2G"),
    ("purge_delay", "2000ms", "2s"),
    ("huge_pages", "no", "off"),
    ("numa", "Weighted:1=2,0=1", "weighted:0=1,1=2"),
    ("limit_soft", "80%", "80%"),
    ("limit_hard", "3g", "3G"),
    ("headers", "Yes", "on"),
    ("headers_quarantine", "65536", "64K"),
    ("stats", "JSON", "json"),
    ("stats_file", "/dev/null", "/dev/null"),
    ("verbose", "yes", "on"),
    ("quiet", "False", "off"),
];

#[test]
fn verbose_lists_every_option_as_the_environment_has_it() {
    let mut run = child("does_nothing");
    let mut expected = String::new();
    for (name, given, listed) in GIVEN {
        run = run.env(&format!("NEARHEAP_{}", name.to_uppercase()), given);
        expected += &format!("nearheap: {name} = {listed} (environment)\n");
    }
    run.run().succeeds_with(&expected);
    let given =
        format!("{:?}", child("does_nothing").env("NEARHEAP_VERBOSE", "1").run().succeeds());
    assert_eq!(given.matches("(default)").count(), GIVEN.len() - 1, "{given}");
}

#[test]
fn quiet_goes_before_verbose() {
    let run = child("does_nothing").env("NEARHEAP_VERBOSE", "1").env("NEARHEAP_QUIET", "1");
    run.run().succeeds_with("");
}

#[test]
fn verbose_lists_every_option_with_its_source() {
    let run = child("does_nothing").env("NEARHEAP_VERBOSE", "1").env("NEARHEAP_RETAIN", "3M");
    let text = run.run().succeeds();
    for line in [
        "nearheap: cache_bytes = 256K (default)",
        "nearheap: retain = 3M (environment)",
        "nearheap: verbose = on (environment)",
        "nearheap: classes = none (default)",
        "nearheap: limit_hard = none (default)",
        "nearheap: headers = auto (default)",
        "nearheap: headers_quarantine = 1M (default)",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in:\n{text}");
    }
    assert_eq!(text.lines().count(), GIVEN.len(), "a line for each option:\n{text}");
}

#[test]
fn a_program_with_more_rights_than_its_user_reads_no_variable() {
    // SAFETY: `geteuid` has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("not run: it takes root to make a set-uid program");
        return;
    }
    let copy = Path::new("/tmp").join(format!("nearheap-setuid.{}", std::process::id()));
    fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    chown(&copy, Some(0), Some(0)).unwrap();
    let play = |mode: u32| {
        fs::set_permissions(&copy, fs::Permissions::from_mode(mode)).unwrap();
        let mut command = Command::new(&copy);
        command.args(["scenario", "--exact", "--nocapture", "--test-threads=1"]);
        command.env("TEST_SCENARIO", "does_nothing").env("NEARHEAP_CACHE_BYTES", "lots");
        command.env("NEARHEAP_STATS", "json").env("NEARHEAP_VERBOSE", "1").current_dir("/");
        // SAFETY: both calls may be made between fork and exec.
        unsafe {
            std::os::unix::process::CommandExt::pre_exec(&mut command, || {
                assert_eq!(libc::setgid(NOBODY) | libc::setuid(NOBODY), 0);
                Ok(())
            });
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let (plain, raised) = (play(0o755), play(0o4755));
    fs::remove_file(&copy).unwrap();
    let lines = GIVEN.len() + 2;
    assert_eq!(plain.lines().count(), lines, "a mistake, every option and the dump: {plain}");
    assert_eq!(raised, "", "a set-uid program ignores it all");
}
