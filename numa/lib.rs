//! The page source of nearheap: everything that the heap asks of the kernel.
//!
//! | file | noun |
//! |---|---|
//! | `os` | the kernel, as a trait (`Os`) and as the real thing (`Linux`): the only system calls in nearheap |
//! | `nodes`, `policy` | a set of NUMA nodes; on which nodes memory shall lie, as a value and as text |
//! | `topology` | the nodes of this machine: their CPUs, memory and distances |
//! | `placement` | what a policy asks of the kernel on a machine |
//! | `lock` | a mutual exclusion that neither allocates nor poisons and can be held across `fork` |
//! | `source` | reserve, commit, purge, and the limits, with the accounts of each |
//! | `sync` | atomics, the model checker's under `--cfg loom` |
//! | `fake` | a kernel that refuses on command, for tests (feature `fake`) |
//!
//! Where there is no Unix, `nodes` and `policy` are all of it.
//!
//! This crate is a part of nearheap and follows its version; its interface is not stable by itself.
#![no_std]

#[cfg(any(test, feature = "fake", loom))]
extern crate std;

#[cfg(all(unix, any(test, feature = "fake")))]
pub mod fake;
#[cfg(unix)]
pub mod lock;
#[cfg(test)]
#[cfg(loom)]
mod model;
pub mod nodes;
#[cfg(unix)]
pub mod os;
#[cfg(unix)]
pub mod placement;
pub mod policy;
#[cfg(unix)]
pub mod source;
#[cfg(unix)]
pub mod sync;
#[cfg(unix)]
pub mod topology;

pub use nodes::NodeSet;
#[cfg(unix)]
pub use os::{Errno, Os};
pub use policy::{Policy, Weights};
#[cfg(unix)]
pub use source::PageSource;
#[cfg(unix)]
pub use topology::Topology;
