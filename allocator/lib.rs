//! nearheap: a memory allocator for Rust programs on Linux.
//!
//! One line makes it a program's allocator:
//!
//! ```
//! #[global_allocator]
//! static GLOBAL: nearheap::NearHeap = nearheap::NearHeap::new();
//! # fn main() {}
//! ```
//!
//! Options come from [`Config`], from `NEARHEAP_DEFAULTS` at build time, and from the environment; the README has the
//! table. [`stats`] says what is allocated, [`purge`] gives free memory back now, [`pressure`] and [`on_soft_limit`] tell
//! of limits. `docs/DESIGN.md` in the repository explains the inside; the layers, from the program to the kernel:
//!
//! | file | noun |
//! |---|---|
//! | `global` | the allocator's four operations and their fast paths |
//! | `class`, `cache`, `version`, `tls` | slots, a thread's free blocks, and where the thread finds them |
//! | `heap`, `purge` | the cold paths, and what goes back to the system when |
//! | `magazine` | free blocks between the threads |
//! | `granule`, `shard`, `segment`, `chunk`, `scan` | the granule heap, from the whole to the bit |
//! | `huge` | blocks with a mapping of their own |
//! | `headed`, `header`, `quarantine`, `walk` | headers mode: blocks whose misuse is found |
//! | `map`, `meta` | from addresses to segments; memory for all of these |
//! | `foreign`, `extents` | the same heap for those who free without a size (feature `c-interface`, internal) |
//! | `stacks`, `maps` | who allocated what is live at exit (feature `leak-stacks`) |
//! | `hardened` | guards, random places, and verification at the free (feature `hardened`) |
//! | `valgrind` | what memcheck is told of blocks (feature `valgrind`) |
//! | `start`, `fork`, `exit`, `registry` | the life of the process and of its threads |
//! | `options`, `value`, `config`, `settings`, `cgroup` | what can be set, and what is in force |
//! | `numa` | what a program asks about NUMA nodes |
//! | `nested` | what serves a signal handler in the middle of an operation |
//! | `testing` | what a program's tests ask: how much some code allocates |
//! | `snapshot`, `report`, `fault` | what the heap says |
//!
//! On Unix systems other than Linux the heap is the same, on plain mappings: no NUMA, no `mremap`, no huge pages. Elsewhere
//! (Windows) `NearHeap` passes everything on to the system's allocator, and of the rest there are `Config`, whose options
//! have no effect, `stats`, which counts nothing, `purge` and `flush_thread`, which do nothing.
//!
//! Under `--cfg loom`, whose atomics can't be in statics, there is no heap of the process, only those that models make.

#![warn(clippy::cast_lossless)]
#![cfg_attr(
    any(loom, not(unix)),
    allow(
        dead_code,
        unused_imports,
        unused_macros,
        reason = "what serves the process's heap is left out"
    )
)]

/// An array of values of the same expression; under loom, whose atomics are not made in constants, one by one.
#[cfg(not(loom))]
macro_rules! repeat {
    ($value:expr) => {
        [const { $value }; _]
    };
}
#[cfg(loom)]
macro_rules! repeat {
    ($value:expr) => {
        core::array::from_fn(|_| $value)
    };
}
use repeat;

#[cfg(unix)]
mod cache;
#[cfg(all(unix, not(loom)))]
mod cgroup;
#[cfg(unix)]
mod chunk;
#[cfg(unix)]
mod class;
mod config;
#[cfg(all(unix, not(loom)))]
mod exit;
// Two files, so that what asks for it needs no conditions.
#[cfg(unix)]
#[cfg_attr(
    not(all(any(feature = "c-interface", feature = "hardened"), not(loom))),
    path = "no_extents.rs"
)]
mod extents;
#[cfg(unix)]
mod fault;
#[cfg(all(unix, feature = "c-interface", not(loom)))]
#[doc(hidden)]
pub mod foreign;
#[cfg(all(unix, not(loom)))]
mod fork;
#[cfg(all(unix, not(loom), any(test, fuzzing)))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(all(unix, not(loom)))]
mod global;
#[cfg(unix)]
mod granule;
#[cfg(unix)]
#[cfg_attr(not(feature = "hardened"), path = "not_hardened.rs")]
mod hardened;
#[cfg(all(unix, not(loom)))]
mod headed;
#[cfg(all(unix, not(loom)))]
mod header;
#[cfg(unix)]
mod heap;
#[cfg(unix)]
mod homes;
#[cfg(unix)]
mod huge;
#[cfg(unix)]
mod magazine;
#[cfg(unix)]
mod map;
#[cfg(all(unix, feature = "leak-stacks", not(loom)))]
mod maps;
#[cfg(unix)]
mod meta;
#[cfg(all(unix, test, loom))]
mod model;
#[cfg(unix)]
#[cfg_attr(loom, path = "no_nested.rs")]
mod nested;
#[cfg(unix)]
pub mod numa;
#[cfg(all(unix, not(loom)))]
mod on_node;
mod options;
#[cfg(unix)]
mod part;
#[cfg(all(unix, not(loom)))]
mod process;
#[cfg(unix)]
mod purge;
#[cfg(all(unix, not(loom)))]
mod quarantine;
#[cfg(unix)]
mod registry;
#[cfg(unix)]
mod report;
#[cfg(unix)]
mod scan;
#[cfg(unix)]
mod segment;
#[cfg(all(unix, not(loom)))]
mod settings;
#[cfg(unix)]
mod shard;
#[cfg(unix)]
mod snapshot;
#[cfg(all(unix, not(loom)))]
#[cfg_attr(not(feature = "leak-stacks"), path = "no_stacks.rs")]
mod stacks;
#[cfg(all(unix, not(loom)))]
mod start;
#[cfg(all(unix, not(loom)))]
pub mod testing;
#[cfg(all(unix, not(loom)))]
mod tls;
#[cfg(all(unix, feature = "valgrind", not(loom)))]
mod valgrind;
mod value;
#[cfg(unix)]
mod version;
#[cfg(all(unix, not(loom)))]
mod walk;

#[cfg(not(unix))]
mod elsewhere;

pub use config::{Config, HugePages, Limit, StatsFormat};
#[cfg(not(unix))]
pub use elsewhere::{NearHeap, flush_thread, purge, stats};
#[cfg(all(unix, not(loom)))]
pub use global::NearHeap;
#[cfg(all(unix, not(loom)))]
pub use nested::in_signal_handler;
#[cfg(all(unix, not(loom)))]
pub use on_node::NodeHeap;
// The options' files name it as `build.rs` must.
use nearheap_numa::policy;
#[cfg(unix)]
pub use nearheap_numa::source::Pressure;
pub use nearheap_stats::{
    ClassStats, DEFAULT_PREFIX, EachThread, HugeStats, NodeStats, Snapshot, SystemStats,
    ThreadStats, Totals, is_prefix, no_threads,
};
#[cfg(all(unix, not(loom)))]
pub use process::{flush_thread, on_soft_limit, pressure, purge, stats, threads};
#[cfg(all(unix, not(loom)))]
pub use walk::{LiveBlock, walk};
