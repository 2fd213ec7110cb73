//! What there is to run: the names of the allocators and of the workloads, in the order in which they are reported.
//! Owns: the two lists. Called by: both programs. `workloads` has the code of each workload, under the same names.

#![allow(dead_code, reason = "each program needs its own part of it")]

/// A workload, as both programs need to know it.
pub(crate) struct Workload {
    /// What it is called on the command line and in the tables.
    pub(crate) name: &'static str,
    /// Whether all of its work is on one thread, which is then kept on one CPU.
    pub(crate) pinned: bool,
    /// Whether it is left out of quick runs.
    pub(crate) full_only: bool,
    /// Whether its live bytes are the same in every run; where queues fill by chance, they are not.
    pub(crate) steady: bool,
    /// What it stands for.
    pub(crate) about: &'static str,
}

/// The features that choose an allocator. The first is the one that the others are compared with.
pub(crate) const ALLOCATORS: [&str; 10] = [
    "nearheap",
    "glibc",
    "mimalloc3",
    "mimalloc2",
    "jemalloc",
    "snmalloc",
    "rpmalloc",
    "rusty_alloc",
    "numalloc",
    "tcmalloc",
];

/// Every workload.
pub(crate) const WORKLOADS: [Workload; 32] = [
    one("pair-constant", "a block of 48 bytes is allocated and freed, beside a hundred that live"),
    one("pair-random", "the same with 1 to 1024 bytes, in random order"),
    one("replace-small", "a million objects of 16 to 256 bytes, replaced at random"),
    one("replace-wide", "a hundred thousand objects of 16 bytes to 8 KiB, replaced at random"),
    one("batch-in-order", "batches of small blocks, freed in the order of their allocation"),
    one("batch-reverse", "the same, freed last to first"),
    one("batch-shuffled", "the same, freed in random order"),
    one("mass-free", "a large heap of small objects, freed in random order"),
    steady(many("server", "threads that come and go, and replace each other's sessions")),
    many("produce-one", "one thread allocates messages, another frees them"),
    many("produce-many", "four threads allocate messages, four others free them"),
    many("free-remote", "large batches, all freed by a thread that never allocates"),
    many("thread-churn", "thousands of short threads that leave half of their blocks to another"),
    one("vec-64m", "a Vec grows by push to 64 MiB"),
    one("string-64m", "a String grows by push_str to 64 MiB"),
    one("vec-many", "64 Vecs grow in turn, to 1 MiB each"),
    full(one("vec-1g", "a Vec grows by push to 1 GiB")),
    full(one("string-1g", "a String grows by push_str to 1 GiB")),
    one("zeroed-touched", "zeroed buffers of 4 KiB to 4 MiB, every page written"),
    one("zeroed-untouched", "the same, one page written"),
    one("aligned", "blocks aligned to 32 bytes up to 4 KiB, replaced at random"),
    one("buffers", "64 buffers of 64 KiB to 8 MiB, replaced at random"),
    one("btreemap", "a BTreeMap of strings: filled, searched, halved, filled again"),
    one("hashmap", "the same with a HashMap"),
    one("json", "a JSON document is parsed, read, and dropped"),
    one("expression", "expression trees are grown, rewritten, evaluated, and dropped"),
    many("tokio", "tasks on two workers that steal, and pass what they allocated on"),
    one("phase-up", "90 % of a heap of 128-byte blocks freed at random, then 1000-byte blocks"),
    one("phase-down", "90 % of a heap of 1000-byte blocks freed at random, then 128-byte blocks"),
    one("drift", "a long run under a fixed number of live bytes, whose sizes drift"),
    one("tiny", "the start and the end of a program that does next to nothing"),
    steady(many("idle-burst", "two threads fill and empty a heap; then the program is idle")),
];

/// The workload called `name`.
pub(crate) fn workload(name: &str) -> Option<&'static Workload> {
    WORKLOADS.iter().find(|workload| workload.name == name)
}

const fn one(name: &'static str, about: &'static str) -> Workload {
    Workload { name, pinned: true, full_only: false, steady: true, about }
}

const fn many(name: &'static str, about: &'static str) -> Workload {
    Workload { name, pinned: false, full_only: false, steady: false, about }
}

const fn steady(workload: Workload) -> Workload {
    Workload { steady: true, ..workload }
}

const fn full(workload: Workload) -> Workload {
    Workload { full_only: true, ..workload }
}
