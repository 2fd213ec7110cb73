//! NUMA: machines on which each part of the memory is near to some of the CPUs.
//!
//! [`Policy`] is what [`Config::numa`](crate::Config::numa) and `NEARHEAP_NUMA` take: on which nodes memory lies.
//! [`topology`] tells what nodes there are.

pub use nearheap_numa::os::Errno;
pub use nearheap_numa::topology::{CPUS_MOST, Standing, Topology};
pub use nearheap_numa::{NodeSet, Policy, Weights};

/// The NUMA nodes of this machine: their CPUs, the bytes of their memory, their distances (10 for a node's own memory, 20
/// for memory that takes twice as long), and which of them the process may use. Nodes have numbers from 0 to 63, possibly
/// with holes; some have no memory, others no CPUs.
///
/// Asks the kernel anew each time, since memory comes and goes and a cpuset changes: 6 system calls, and 11 for each node,
/// together some tens of microseconds. Allocates nothing. The value is 7 KiB, so small stacks should hold it elsewhere.
///
/// What can't be asked or read does not fail: the result has one node then, and [`Topology::standing`] says why.
///
/// ```
/// let topology = nearheap::numa::topology();
/// for node in topology.online().iter() {
///     let cpus = topology.cpus(node).count();
///     println!("node {node}: {cpus} CPUs, {} bytes", topology.memory_bytes(node));
/// }
/// ```
#[cfg(not(loom))]
pub fn topology() -> Topology {
    let mut topology = Topology::new();
    topology.survey(&nearheap_numa::os::Linux);
    topology
}
