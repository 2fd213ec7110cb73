//! Refuses build-time defaults that the crate could not use. Compiles nothing and reads nothing but one variable.
//! The crate reads the same variable with the same function, `bake`, so what passes here is what holds there.

// The crate uses the rest of these files, and gets the first two from `nearheap-numa`, into which the links lead; in a
// published package, where there is no such folder, they are copies.
#[allow(dead_code, unreachable_pub)]
#[path = "allocator/nodes.rs"]
mod nodes;
#[allow(dead_code, unreachable_pub, unused_imports)]
#[path = "allocator/options.rs"]
mod options;
#[allow(dead_code, unreachable_pub)]
#[path = "allocator/policy.rs"]
mod policy;
#[allow(dead_code, unreachable_pub)]
#[path = "allocator/value.rs"]
mod value;

use options::{BUILD_VARIABLE, bake};
use std::env::{VarError, var};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for file in ["nodes", "options", "policy", "value"] {
        println!("cargo::rerun-if-changed=allocator/{file}.rs");
    }
    println!("cargo::rerun-if-env-changed={BUILD_VARIABLE}");
    let refusal = match var(BUILD_VARIABLE) {
        Err(VarError::NotPresent) => return,
        Err(VarError::NotUnicode(_)) => format!("{BUILD_VARIABLE}: not UTF-8"),
        // The text lives as long as this program, like the one that is baked into the crate.
        Ok(text) => match bake(text.leak()) {
            Ok(_) => return,
            Err(refusal) => refusal.to_string(),
        },
    };
    // Cargo fails the build and shows this alone, not the output of a failed script.
    println!("cargo::error={refusal}");
}
