#![no_main]

#[path = "../subjects/topology.rs"]
mod subject;

libfuzzer_sys::fuzz_target!(|input: &[u8]| subject::try_input(input));
