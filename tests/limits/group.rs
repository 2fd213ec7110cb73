//! Limits in per cent of what the control group allows.
//! Method: the child sees, in a mount namespace of its own, a tree of control groups that the test wrote, and
//! the line of `/proc/self/cgroup` that says where in it the process is. That needs the right to mount: of root, or in a
//! user namespace; where neither is to be had the test says so and asks nothing.

use super::{Blocks, MIB, stats};
use crate::common::{Run, child};
use rstest::rstest;
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::ptr::null;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Prints how many MiB the heap could commit.
pub(crate) fn fills_its_group() {
    let most = 200 * MIB;
    let mut blocks = Blocks::new(MIB + 1);
    while blocks.bytes() < most && blocks.add() {}
    let (refused, peak) =
        (stats().system.hard_limit_refusals > 0, stats().system.peak_committed_bytes);
    drop(blocks);
    // Of the limit, less than a block and what its page table needs may be left.
    eprint!("{}", if refused { peak.next_multiple_of(2 << 20) >> 20 } else { 0 });
}

fn mount(from: &CString, onto: &CString) -> io::Result<()> {
    let (from, onto) = (from.as_ptr(), onto.as_ptr());
    // SAFETY: two terminated paths; a bind mount needs no more.
    done(unsafe { libc::mount(from, onto, null(), libc::MS_BIND, null()) })
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets the process see `root` as `/sys/fs/cgroup` and `line` as `/proc/self/cgroup`.
fn in_group(run: &mut Run, root: &Path, line: &Path) {
    let path = |p: &Path| CString::new(p.as_os_str().to_owned().into_vec()).unwrap();
    let (root, line) = (path(root), path(line));
    let (groups, own) = (c"/sys/fs/cgroup".to_owned(), c"/proc/self/cgroup".to_owned());
    let enter = move || {
        let all = libc::MS_REC | libc::MS_PRIVATE;
        // SAFETY: these change what this process sees, and none of its memory.
        unsafe {
            done(libc::unshare(libc::CLONE_NEWNS))
                .or_else(|_| done(libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS)))?;
            done(libc::mount(null(), c"/".as_ptr(), null(), all, null()))?;
        }
        mount(&root, &groups)?;
        mount(&line, &own)
    };
    // SAFETY: `enter` makes system calls only, on what was made before the fork.
    unsafe { run.command.pre_exec(enter) };
}

/// Whether this machine lets a process have mounts of its own.
fn may_mount() -> bool {
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let mut run = child("none of the scenarios");
    run.command = std::process::Command::new("/bin/true");
    in_group(&mut run, scratch, Path::new("/proc/self/cgroup"));
    match run.command.status() {
        Ok(status) => status.success(),
        Err(error) => {
            eprintln!("SKIPPED: no mount namespace for a tree of control groups: {error}");
            false
        }
    }
}

#[rstest]
#[case::of_the_own_group("0::/a/b\n", &[("a/b", "134217728\n")], "50%", "64")]
#[case::of_the_smallest_around_it("0::/a/b\n", &[("a/b", "134217728\n"), ("a", "83886080\n")], "50%", "40")]
#[case::of_the_root("0::/\n", &[("", "134217728\n")], "75%", "96")]
#[case::of_none("0::/a\n", &[("a", "max\n")], "50%", "0")]
#[case::of_another_group("0::/a\n", &[("a", "max\n"), ("b", "83886080\n")], "50%", "0")]
#[case::in_the_first_version("4:memory:/\n", &[("memory", "134217728\n")], "25%", "32")]
fn a_share_is_of_the_groups_memory_max(
    #[case] line: &str,
    #[case] limits: &[(&str, &str)],
    #[case] share: &str,
    #[case] mib: &str,
) {
    if !may_mount() {
        return;
    }
    static TREES: AtomicUsize = AtomicUsize::new(0);
    let name = format!("groups-{}-{}", std::process::id(), TREES.fetch_add(1, Ordering::Relaxed));
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let root = scratch.join("root");
    std::fs::create_dir_all(&root).unwrap();
    for (group, limit) in limits {
        let group = root.join(group);
        std::fs::create_dir_all(&group).unwrap();
        let file = if group.ends_with("memory") { "memory.limit_in_bytes" } else { "memory.max" };
        std::fs::write(group.join(file), limit).unwrap();
    }
    let own = scratch.join("cgroup");
    std::fs::write(&own, line).unwrap();
    let mut run = child("fills_its_group").env("NEARHEAP_LIMIT_HARD", share);
    in_group(&mut run, &root, &own);
    run.run().succeeds_with(mib);
    std::fs::remove_dir_all(scratch).unwrap();
}
