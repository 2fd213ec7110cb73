//! The workloads: each a function that does its work, names its fullest moment, frees everything, and returns a sum
//! that is the same on every allocator, whatever the threads did first.
//! Owns: the table of names. Called by: `main`. `catalog` says what each stands for.

use crate::probe::Probe;

mod aligned;
mod batch;
mod buffers;
mod growth;
mod json;
mod maps;
mod pairs;
mod phases;
mod replace;
mod tasks;
mod threads;
pub(crate) mod tiny;
mod tree;
mod zeroed;

/// A workload's work.
pub(crate) type Run = fn(&mut Probe) -> u64;

const TABLE: [(&str, Run); 32] = [
    ("pair-constant", pairs::constant),
    ("pair-random", pairs::random),
    ("replace-small", replace::small),
    ("replace-wide", replace::wide),
    ("batch-in-order", batch::in_order),
    ("batch-reverse", batch::reverse),
    ("batch-shuffled", batch::shuffled),
    ("mass-free", batch::mass_free),
    ("server", threads::server),
    ("produce-one", threads::produce_one),
    ("produce-many", threads::produce_many),
    ("free-remote", threads::free_remote),
    ("thread-churn", threads::churn),
    ("vec-64m", growth::vec_64m),
    ("string-64m", growth::string_64m),
    ("vec-many", growth::vec_many),
    ("vec-1g", growth::vec_1g),
    ("string-1g", growth::string_1g),
    ("zeroed-touched", zeroed::touched),
    ("zeroed-untouched", zeroed::untouched),
    ("aligned", aligned::aligned),
    ("buffers", buffers::buffers),
    ("btreemap", maps::btreemap),
    ("hashmap", maps::hashmap),
    ("json", json::json),
    ("expression", tree::expression),
    ("tokio", tasks::tokio),
    ("phase-up", phases::up),
    ("phase-down", phases::down),
    ("drift", phases::drift),
    ("tiny", tiny::tiny),
    ("idle-burst", phases::idle_burst),
];

/// The workload called `name`.
pub(crate) fn find(name: &str) -> Option<Run> {
    TABLE.iter().find(|row| row.0 == name).map(|row| row.1)
}

#[cfg(test)]
mod tests {
    use super::TABLE;
    use crate::catalog::WORKLOADS;

    #[test]
    fn the_table_and_the_catalog_name_the_same_workloads() {
        assert!(TABLE.iter().map(|row| row.0).eq(WORKLOADS.iter().map(|workload| workload.name)));
    }
}
