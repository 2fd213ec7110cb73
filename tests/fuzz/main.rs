//! Does everything that the fuzzers found pass?
//! Method: the inputs of `fuzz/corpus` once more, those of `options` by a test inside the crate. The heap is not this
//! program's global allocator, so what is counted is what the inputs do.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../../fuzz/subjects/operations.rs"]
mod operations;
#[path = "../../fuzz/subjects/topology.rs"]
mod topology;

fn replay(target: &str, try_input: fn(&[u8])) {
    let mut inputs: Vec<_> = std::fs::read_dir(format!("fuzz/corpus/{target}"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    inputs.sort();
    assert!(inputs.len() > 10, "{} inputs only", inputs.len());
    for input in inputs {
        eprintln!("{}", input.display());
        try_input(&std::fs::read(input).unwrap());
    }
}

#[test]
fn operations() {
    replay("operations", operations::try_input);
}

#[test]
fn topologies() {
    replay("topology", topology::try_input);
}
