//! Two processes that differ by exactly N allocations differ by exactly N in their dumps.

use super::{SIZE, counted, dump_of, given, make_blocks};
use crate::common::child;
use rstest::rstest;
use serde_json::Value;
use std::cell::Cell;
use std::os::unix::process::CommandExt;
use std::sync::{Arc, Barrier};
use std::thread;

/// Makes as many blocks as it was told on each of its threads, and ends as it was told.
pub(crate) fn allocates() {
    let (threads, count) = (given("TEST_THREADS"), given("TEST_COUNT"));
    let leave = given("TEST_LEAVE") == 1;
    if given("TEST_CLOSE_STDERR") == 1 {
        // SAFETY: nothing of this process keeps its own copy of the number.
        unsafe { libc::close(2) };
    }
    if threads == 1 {
        make_blocks(count, leave);
    } else {
        // Joined, and not scoped: a scope lets its threads go while they still free what they were started with.
        let all_here = Arc::new(Barrier::new(threads));
        let spawn = |_| {
            let all_here = Arc::clone(&all_here);
            thread::spawn(move || {
                all_here.wait();
                make_blocks(count / threads, leave);
            })
        };
        let spawned: Vec<_> = (0..threads).map(spawn).collect();
        spawned.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

/// The paths of the numbers in which two dumps differ, and by how much; arrays must be of the same length.
fn differences(path: &str, a: &Value, b: &Value, found: &mut Vec<(String, i64)>) {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            assert!(a.keys().eq(b.keys()), "{path}");
            for (key, value) in a {
                differences(&format!("{path}.{key}"), value, &b[key], found);
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len(), "{path}");
            for (a, b) in a.iter().zip(b) {
                let row = a.get("size").map_or(String::new(), |size| format!("[{size}]"));
                differences(&format!("{path}{row}"), a, b, found);
            }
        }
        _ => {
            let (a, b) = (a.as_u64().unwrap(), b.as_u64().unwrap());
            if a != b {
                found.push((path.to_owned(), b.wrapping_sub(a).cast_signed()));
            }
        }
    }
}

/// What two dumps may differ in by chance: the process's number, its threads' (the rows of which are added up), what
/// waits in caches and magazines, and the pages behind all that.
fn without_chance(mut dump: Value) -> Value {
    let mut sums = [0; 4];
    for row in dump["threads"].as_array().unwrap() {
        for (sum, key) in sums.iter_mut().zip(["allocs", "frees", "allocated_bytes", "freed_bytes"])
        {
            *sum += row[key].as_u64().unwrap();
        }
    }
    let object = dump.as_object_mut().unwrap();
    object["pid"] = 0.into();
    object["system"] = 0.into();
    object["threads"] = serde_json::json!({
        "allocs": sums[0], "frees": sums[1], "allocated_bytes": sums[2], "freed_bytes": sums[3]
    });
    for rows in ["classes", "nodes"] {
        for row in object[rows].as_array_mut().unwrap() {
            for key in ["cached_blocks", "cached_bytes", "retained_bytes", "segments", "shards"] {
                row.as_object_mut().unwrap().remove(key);
            }
        }
    }
    // A class from which nobody has allocated may be listed for what it caches.
    object["classes"].as_array_mut().unwrap().retain(|row| row["allocs"] != 0);
    dump
}

#[rstest]
fn n_allocations_more_are_exactly_n_more_in_the_dump(
    #[values(1, 4)] threads: usize,
    #[values(false, true)] leave: bool,
    #[values("exit", "return", "stderr closed", "stderr never open")] end: &str,
    #[values("0", "1")] headers: &str,
) {
    // As many digits in both, so that their environments take the same room.
    let [few, many] = ["1200", "5680"].map(|count| {
        let run = child("allocates")
            .env("NEARHEAP_HEADERS", headers)
            .env("TEST_COUNT", count)
            .env("TEST_THREADS", &threads.to_string())
            .env("TEST_LEAVE", &u8::from(leave).to_string())
            .env("TEST_CLOSE_STDERR", &u8::from(end == "stderr closed").to_string());
        let mut run = if end == "return" { run.returning() } else { run };
        if end == "stderr never open" {
            // SAFETY: between fork and exec, a system call.
            unsafe {
                run.command.pre_exec(|| {
                    libc::close(2);
                    Ok(())
                });
            }
        }
        dump_of(run, 0)
    });
    assert_eq!((counted(&few, "allocs"), counted(&many, "allocs")), (1200, 5680));
    let mut found = Vec::new();
    differences("", &without_chance(few), &without_chance(many), &mut found);
    let (n, bytes) = (5680 - 1200, (5680 - 1200) * SIZE as i64);
    let (blocks, freed) = if leave { (n, 0) } else { (0, n) };
    let class = format!(".classes[{SIZE}]");
    let expected = [
        (format!("{class}.allocs"), n),
        (format!("{class}.frees"), freed),
        (format!("{class}.in_use_blocks"), blocks),
        (format!("{class}.in_use_bytes"), blocks * SIZE as i64),
        (".nodes.allocs".to_owned(), n),
        (".nodes.frees".to_owned(), freed),
        (".nodes.local_frees".to_owned(), freed),
        (".nodes.in_use_bytes".to_owned(), blocks * SIZE as i64),
        (".threads.allocs".to_owned(), n),
        (".threads.frees".to_owned(), freed),
        (".threads.allocated_bytes".to_owned(), bytes),
        (".threads.freed_bytes".to_owned(), freed * SIZE as i64),
        (".totals.allocs".to_owned(), n),
        (".totals.frees".to_owned(), freed),
        (".totals.allocated_bytes".to_owned(), bytes),
        (".totals.freed_bytes".to_owned(), freed * SIZE as i64),
        (".totals.in_use_blocks".to_owned(), blocks),
        (".totals.in_use_bytes".to_owned(), blocks * SIZE as i64),
    ];
    let mut expected: Vec<_> = expected.into_iter().filter(|(_, by)| *by != 0).collect();
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
}

/// Leaves a block behind when it is dropped.
struct Late;

impl Drop for Late {
    fn drop(&mut self) {
        make_blocks(1, true);
    }
}

/// Allocates in a destructor of the exiting thread, and in a handler that the C library calls at exit.
pub(crate) fn allocates_late() {
    extern "C" fn at_exit() {
        make_blocks(10, true);
    }
    thread_local! {
        static LATE: Cell<Option<Late>> = const { Cell::new(None) };
    }
    LATE.set(Some(Late));
    // SAFETY: the handler is a function that lives as long as the process.
    assert_eq!(unsafe { libc::atexit(at_exit) }, 0);
}

#[rstest]
fn what_is_allocated_at_the_very_end_counts(#[values(false, true)] returning: bool) {
    let run = child("allocates_late");
    let dump = dump_of(if returning { run.returning() } else { run }, 0);
    assert_eq!(counted(&dump, "in_use_blocks"), 11);
}

/// Exits while four threads allocate at full speed.
pub(crate) fn exits_amid_threads() {
    let all_here = Barrier::new(5);
    thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                all_here.wait();
                loop {
                    make_blocks(100, false);
                }
            });
        }
        all_here.wait();
        thread::sleep(std::time::Duration::from_millis(20));
        std::process::exit(7);
    });
}

#[test]
fn a_process_may_exit_while_its_threads_are_at_work() {
    for _ in 0..10 {
        let dump = dump_of(child("exits_amid_threads"), 7);
        let (allocs, frees) = (counted(&dump, "allocs"), counted(&dump, "frees"));
        assert!(allocs > 0 && allocs - frees <= 4, "{allocs} and {frees}: a block for each thread");
    }
}

pub(crate) fn panics() {
    make_blocks(3, true);
    std::panic::set_hook(Box::new(|_| ()));
    panic!("on purpose");
}

#[test]
fn a_program_that_panics_leaves_its_dump_and_its_status() {
    assert_eq!(counted(&dump_of(child("panics"), 101), "in_use_blocks"), 3);
}
