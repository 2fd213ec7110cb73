//! May a signal handler allocate, wherever its thread is?
//! Method: the program interrupts itself after every single instruction of its operations (the trap flag of the CPU), and
//! the handler uses the heap each time; contents, counts and addresses are checked. What a handler has left is used in
//! every other state of a thread.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;
mod states;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod steps;

use common::child;
use rstest::rstest;

#[global_allocator]
static GLOBAL: nearheap::NearHeap = nearheap::NearHeap::new();

#[test]
fn scenario() {
    common::play(&[
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        ("every_instruction", steps::every_instruction),
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        ("unwrapped", steps::unwrapped),
        ("any_thread", states::any_thread),
        ("kept", states::kept),
        ("exact", states::exact),
        ("steady", states::steady),
        ("questions", states::questions),
        ("forked", states::forked),
        ("frees_twice", states::frees_twice),
        ("frees_twice_at_once", states::frees_twice_at_once),
        ("writes_behind", states::writes_behind),
    ]);
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[rstest]
fn a_handler_may_come_after_every_instruction(#[values("0", "1")] headers: &str) {
    eprintln!("{}", child("every_instruction").env("NEARHEAP_HEADERS", headers).run().succeeds());
}

/// The test above can fail: the same, as handlers must not do it.
#[cfg(all(target_arch = "x86_64", target_os = "linux", not(feature = "signals")))]
#[test]
fn otherwise_two_get_the_same_block() {
    let end = child("unwrapped").env("NEARHEAP_HEADERS", "0").run();
    assert_eq!(end.status.code(), Some(0), "{end}");
    assert!(end.stderr.contains("the same block twice"), "{end}");
}

#[rstest]
#[case("any_thread")]
#[case("kept")]
#[case("steady")]
#[case("questions")]
#[case("exact")]
#[case("forked")]
fn what_a_handler_allocates_is_like_any_other_block(
    #[case] scenario: &str,
    #[values("0", "1")] headers: &str,
) {
    eprintln!("{}", child(scenario).env("NEARHEAP_HEADERS", headers).run().succeeds());
}

#[test]
fn misuse_of_such_a_block_is_found() {
    let run =
        |scenario: &str, headers: &str| child(scenario).env("NEARHEAP_HEADERS", headers).run();
    run("frees_twice", "1")
        .aborts_with("nearheap: fatal: double free: ptr=0x... size=100 class=144 node=0\n");
    run("frees_twice_at_once", "0")
        .aborts_with("nearheap: fatal: double free: ptr=0x... class=112 node=0\n");
    run("writes_behind", "1").aborts_with(
        "nearheap: fatal: overrun: written behind the end: ptr=0x... size=100 class=144 node=0\n",
    );
}
