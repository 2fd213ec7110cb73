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

/// A Rust program with the C library `peer` in it, linked with nearheap's library.
pub(crate) fn two_languages() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("two-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (object, archive, program) =
        (folder.join("peer.o"), folder.join("libpeer.a"), folder.join("two_languages"));
    let library = library();
    let libraries = library.parent().unwrap();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c_interface/programs");
    let done = |command: &mut Command| {
        let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    done(
        Command::new("cc").arg("-O1").arg("-c").arg(sources.join("peer.c")).arg("-o").arg(&object),
    );
    done(Command::new("ar").arg("rcs").arg(&archive).arg(&object));
    let mut compiler = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    compiler.args(["--edition", "2024", "-O", "-L"]).arg(&folder).arg("-L").arg(libraries);
    compiler.arg("-C").arg(format!("link-arg=-Wl,-rpath,{}", libraries.display()));
    done(
        compiler
            .args(["-C", "link-arg=-Wl,--no-as-needed", "-o"])
            .arg(&program)
            .arg(sources.join("two_languages.rs")),
    );
    program
}

/// The example of this name, which cargo builds where the library of this test is. Where only a part of the tests is asked for,
/// it has not yet.
pub(crate) fn example(name: &str) -> PathBuf {
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--package", "nearheap-preload", "--example", name]);
    build.args(["--message-format", "json", "--manifest-path"]);
    build.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
    let built = run(build.args((!cfg!(debug_assertions)).then_some("--release")));
    assert_eq!(built.end, "exit 0", "{}", built.stderr);
    let path =
        built.stdout.rsplit("\"executable\":\"").next().and_then(|rest| rest.split('"').next());
    PathBuf::from(path.expect("cargo names what it built"))
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
