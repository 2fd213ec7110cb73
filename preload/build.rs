//! Says how the shared library is linked. Compiles nothing.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Blocks outlive every handle on the library, so `dlclose` must not unload it.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,initfirst");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libnearheap_preload.so");
}
