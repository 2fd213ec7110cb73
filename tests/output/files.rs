//! The file of the dump: its name, its rights, what stands in its way, and forked processes.

use super::{Folder, SIZE, counted, make_blocks};
use crate::common::{Run, child};
use rstest::rstest;
use serde_json::Value;
use std::ffi::CString;
use std::os::unix::fs::{PermissionsExt, symlink};

pub(crate) fn exits_with_7() {
    std::process::exit(7);
}

fn to_file(path: &str) -> Run {
    child("exits_with_7").env("NEARHEAP_STATS", "json").env("NEARHEAP_STATS_FILE", path)
}

fn ends_with_7_and(run: Run, stderr: &str) {
    let end = run.run();
    assert_eq!((end.status.code(), end.stderr.as_str()), (Some(7), stderr));
}

#[rstest]
#[case::no_such_folder("/proc/none/dump", 2)]
#[case::a_folder("/", 21)]
#[case::as_it_was_given("/proc/none/%%.%p", 2)]
fn a_file_that_cannot_be_written_is_one_line_and_nothing_else(
    #[case] path: &str,
    #[case] error: i32,
) {
    let line = format!("nearheap: NEARHEAP_STATS_FILE: {path}: cannot be written, error {error}\n");
    ends_with_7_and(to_file(path), &line);
    ends_with_7_and(to_file(path).env("NEARHEAP_QUIET", "1"), "");
}

#[test]
fn a_full_disk_changes_nothing() {
    ends_with_7_and(to_file("/dev/full"), "");
}

#[test]
fn a_link_is_not_followed() {
    let folder = Folder::new();
    std::fs::write(folder.path("target"), "precious").unwrap();
    symlink(folder.path("target"), folder.path("link")).unwrap();
    let link = folder.path("link");
    let line = format!("nearheap: NEARHEAP_STATS_FILE: {link}: cannot be written, error 40\n");
    ends_with_7_and(to_file(&link), &line);
    assert_eq!(std::fs::read_to_string(folder.path("target")).unwrap(), "precious");
}

#[test]
fn a_file_that_was_there_is_replaced_and_a_new_one_is_its_owners_alone() {
    let folder = Folder::new();
    std::fs::write(folder.path("old"), "x".repeat(1 << 20)).unwrap();
    ends_with_7_and(to_file(&folder.path("old")), "");
    ends_with_7_and(to_file(&folder.path("new %% of %p")), "");
    let [(name, new), (_, old)] = &folder.files()[..] else { panic!("{:?}", folder.files()) };
    let [new, old] = [new, old].map(|text| serde_json::from_str::<Value>(text).unwrap());
    assert_eq!(*name, format!("new % of {}", new["pid"]));
    assert!(old.is_object());
    let mode = std::fs::metadata(folder.path(name)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// Forks a child that allocates a little more than its parent and exits with 3; or leaves by `_exit`.
pub(crate) fn forks() {
    make_blocks(100, true);
    // SAFETY: the child allocates, which nearheap allows after a fork, and exits.
    let status = unsafe {
        let child = libc::fork();
        if child == 0 {
            make_blocks(5, true);
            if std::env::var_os("TEST_LEAVES_QUIETLY").is_some() {
                libc::_exit(3);
            }
            std::process::exit(3);
        }
        let mut status = 0;
        libc::waitpid(child, &mut status, 0);
        status
    };
    assert_eq!(libc::WEXITSTATUS(status), 3);
}

#[test]
fn a_forked_child_that_exits_leaves_a_dump_of_its_own() {
    let folder = Folder::new();
    let run = child("forks").env("NEARHEAP_STATS", "json");
    run.env("NEARHEAP_STATS_FILE", &folder.path("%p")).run().succeeds_with("");
    let files = folder.files();
    let mut counts: Vec<_> = files
        .iter()
        .map(|(name, text)| {
            let dump: Value = serde_json::from_str(text).unwrap();
            assert_eq!(*name, dump["pid"].to_string());
            (counted(&dump, "in_use_blocks"), dump["live_threads"].as_u64().unwrap())
        })
        .collect();
    counts.sort_unstable();
    let [(parent, _), (child, threads)] = counts[..] else { panic!("{} files", files.len()) };
    assert_eq!((parent, child), (100, 105), "blocks of {SIZE} bytes");
    assert_eq!(threads, 1, "the child has no other thread");
}

#[test]
fn without_the_process_in_its_name_the_file_is_that_of_the_last_to_exit() {
    let folder = Folder::new();
    let run = child("forks").env("NEARHEAP_STATS", "json");
    run.env("NEARHEAP_STATS_FILE", &folder.path("dump")).run().succeeds_with("");
    let [(_, text)] = &folder.files()[..] else { panic!("{:?}", folder.files()) };
    assert_eq!(counted(&serde_json::from_str(text).unwrap(), "in_use_blocks"), 100);
}

#[test]
fn a_forked_child_that_leaves_by_exit_without_handlers_leaves_no_dump() {
    let run = child("forks").env("NEARHEAP_STATS", "json").env("TEST_LEAVES_QUIETLY", "1");
    let stderr = run.run().succeeds();
    assert_eq!(stderr.lines().count(), 1);
    assert_eq!(counted(&serde_json::from_str(&stderr).unwrap(), "in_use_blocks"), 100);
}

/// Ends while another thread reads the dump from a pipe: as soon as the pipe is full, so that the dump waits in its
/// middle, the thread forks a child that allocates, asks for statistics, and exits with 3.
pub(crate) fn forks_amid_the_dump() {
    let pipe = CString::new(std::env::var("NEARHEAP_STATS_FILE").unwrap()).unwrap();
    std::thread::spawn(move || {
        let fail = |what: &str| -> ! {
            eprintln!("{what}");
            // SAFETY: ends the process, which is at its exit already.
            unsafe { libc::_exit(9) }
        };
        // SAFETY: system calls on a pipe of this process's own; the child uses the heap only, and exits.
        unsafe {
            let reader = libc::open(pipe.as_ptr(), libc::O_RDONLY);
            let room = libc::fcntl(reader, libc::F_SETPIPE_SZ, 4096);
            let mut waiting = 0;
            // A piece of the dump, up to 1 KiB, is written whole or waits.
            while waiting <= room - 1024 {
                libc::usleep(1000);
                libc::ioctl(reader, libc::FIONREAD, &mut waiting);
            }
            let child = libc::fork();
            if child == 0 {
                libc::alarm(20);
                make_blocks(1000, false);
                let enough = nearheap::stats().totals.frees > 1000;
                libc::exit(if enough { 3 } else { 4 });
            }
            let mut status = 0;
            libc::waitpid(child, &mut status, 0);
            if status != 3 << 8 {
                fail(&format!("the child ended with wait status {status:#x}"));
            }
            let mut bytes = [0_u8; 4096];
            while libc::read(reader, bytes.as_mut_ptr().cast(), bytes.len()) > 0 {}
        }
    });
}

#[test]
fn a_child_forked_in_the_middle_of_the_dump_ends_without_one() {
    let folder = Folder::new();
    let pipe = folder.path("pipe");
    let name = CString::new(pipe.as_str()).unwrap();
    // SAFETY: a terminated name.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    // In this format the dump is written while no lock is held that a fork has to wait for.
    let run = child("forks_amid_the_dump").env("NEARHEAP_STATS", "openmetrics");
    run.env("NEARHEAP_STATS_FILE", &pipe).run().succeeds_with("");
}
