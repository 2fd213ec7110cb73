//! What the tests run: the shared library, programs compiled from the sources beside this file, and what a run showed.

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// What can be seen of a process that has ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// `exit N` or `signal N`.
    pub(crate) end: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

pub(crate) fn run(command: &mut Command) -> Run {
    let output = command.stdin(Stdio::null()).output().expect("a program");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let end = match output.status.signal() {
        Some(signal) => format!("signal {signal}"),
        None => format!("exit {}", output.status.code().unwrap()),
    };
    Run { end, stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

/// The library of this build: in the folder above that of this test.
pub(crate) fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().unwrap();
    ["libnearheap_preload.so", "../libnearheap_preload.so"]
        .map(|name| folder.join(name))
        .into_iter()
        .find(|path| path.exists())
        .expect("cargo builds the library before its tests")
        .canonicalize()
        .unwrap()
}

/// The program of this name, compiled once.
pub(crate) fn program(name: &str) -> PathBuf {
    built(name, "c", "cc", &["-pthread", "-ldl"])
}

/// The C++ program of this name.
pub(crate) fn cxx_program(name: &str) -> PathBuf {
    built(name, "cc", "c++", &["-std=c++17"])
}

/// The C library of this name, for `dlopen`.
pub(crate) fn plugin(name: &str) -> PathBuf {
    built(name, "c", "cc", &["-shared", "-fPIC"])
}

/// The program of this name, linked with nearheap's library.
pub(crate) fn linked_program(name: &str) -> PathBuf {
    let library = library();
    let folder = library.parent().unwrap().to_str().unwrap();
    let (search, rpath) = (format!("-L{folder}"), format!("-Wl,-rpath,{folder}"));
    built(name, "c", "cc", &["-Wl,--no-as-needed", &search, &rpath, "-lnearheap_preload"])
}

fn built(name: &str, suffix: &str, compiler: &str, flags: &[&str]) -> PathBuf {
    static BUILT: Mutex<Option<HashMap<String, PathBuf>>> = Mutex::new(None);
    let mut built = BUILT.lock().unwrap();
    let key = format!("{name} {}", flags.join(" "));
    let count = built.as_ref().map_or(0, HashMap::len);
    built
        .get_or_insert_default()
        .entry(key)
        .or_insert_with(|| compile(name, suffix, compiler, flags, count))
        .clone()
}

fn compile(name: &str, suffix: &str, compiler: &str, flags: &[&str], count: usize) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(format!("tests/c_interface/programs/{name}.{suffix}"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let to = folder.join(format!("{name}-{}-{count}", std::process::id()));
    // `-fno-builtin`: the compiler may not do without the calls.
    let output = Command::new(compiler)
        .args(["-O1", "-g", "-w", "-fno-builtin", "-o"])
        .arg(&to)
        .arg(source)
        .args(flags)
        .output()
        .unwrap_or_else(|error| panic!("{compiler}, which these tests need: {error}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    to
}
