//! A program with the library loaded.
//! Owns: the search for the library, and the program's environment. Called by: `nearheap run`.
//!
//! The program takes the place of the command, so its status and its signals are nobody else's.

use crate::Failure;
use crate::table::Row;
use lexopt::prelude::*;
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const LIBRARY: &str = "libnearheap_preload.so";
const PRELOAD: &str = "LD_PRELOAD";

/// What the options of `run` set: the option and its value.
#[derive(Debug, Default)]
struct Wanted {
    settings: Vec<(&'static Row, OsString)>,
    library: Option<PathBuf>,
    program: Vec<OsString>,
}

pub(crate) fn run(parser: &mut lexopt::Parser) -> Result<(), Failure> {
    let wanted = parse(parser)?;
    let Some((program, arguments)) = wanted.program.split_first() else {
        return Err(Failure::usage(
            "run: name the program, such as `nearheap run --stats text ls`",
        ));
    };
    let library = match wanted.library {
        Some(library) if library.is_file() => library,
        Some(library) => {
            return Err(Failure::because(format_args!(
                "run: --library {}: there is no such file",
                library.display()
            )));
        }
        None => find_library()?,
    };
    let mut command = Command::new(program);
    command.args(arguments).env(PRELOAD, preload(&library)?);
    for (row, value) in &wanted.settings {
        command.env(row.variable(), value);
    }
    let error = command.exec();
    let (status, hint) = match error.kind() {
        ErrorKind::NotFound => {
            (127, "there is no such program; name one on the PATH or by its path")
        }
        ErrorKind::PermissionDenied => (126, "it can't be executed; look at its permissions"),
        _ => (126, "it can't be started"),
    };
    let program = program.display();
    Err(Failure::with_status(status, format_args!("run: {program}: {hint} ({error})")))
}

fn parse(parser: &mut lexopt::Parser) -> Result<Wanted, Failure> {
    let mut wanted = Wanted::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("stats") => wanted.set("--stats", "stats", parser.value()?)?,
            Long("stats-file") => wanted.set("--stats-file", "stats_file", parser.value()?)?,
            Long("numa") => wanted.set("--numa", "numa", parser.value()?)?,
            Long("limit") => wanted.set("--limit", "limit_hard", parser.value()?)?,
            Long("headers") => {
                let value = parser.optional_value().unwrap_or_else(|| "on".into());
                wanted.set("--headers", "headers", value)?;
            }
            Long("set") => {
                let assignment = parser.value()?;
                let text = assignment.to_string_lossy();
                let Some((name, value)) = text.split_once('=') else {
                    return Err(Failure::usage("run: --set wants NAME=VALUE"));
                };
                wanted.set("--set", name, value.into())?;
            }
            Long("library") => wanted.library = Some(parser.value()?.into()),
            // The rest is the program's own.
            Value(program) => {
                wanted.program.push(program);
                wanted.program.extend(parser.raw_args()?);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(wanted)
}

impl Wanted {
    fn set(&mut self, flag: &str, name: &str, value: OsString) -> Result<(), Failure> {
        let Some(row) = Row::find(name) else {
            return Err(Failure::usage(format_args!(
                "run: {flag}: this version has no option {name}; `nearheap options` lists those it has"
            )));
        };
        if !row.accepts(value.as_bytes()) {
            let value = value.display();
            return Err(Failure::usage(format_args!(
                "run: {flag} {value}: expected {}",
                row.accepted
            )));
        }
        self.settings.push((row, value));
        Ok(())
    }
}

/// The library: beside the command, as cargo leaves them, or where systems have libraries.
fn find_library() -> Result<PathBuf, Failure> {
    let mut folders = Vec::new();
    if let Some(beside) =
        std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_owned()))
    {
        folders.extend([beside.join("../lib"), beside.join("deps")]);
        folders.insert(0, beside);
    }
    folders.extend(["/usr/local/lib", "/usr/lib"].map(PathBuf::from));
    let found = folders.iter().map(|folder| folder.join(LIBRARY)).find(|path| path.is_file());
    let found = found.and_then(|path| path.canonicalize().ok());
    found.ok_or_else(|| {
        Failure::because(format_args!(
            "run: {LIBRARY} isn't beside the command nor in ../lib, /usr/local/lib or /usr/lib; build it with `cargo build \
             --release --package nearheap-preload` in the sources of nearheap, and put it there or name it with --library"
        ))
    })
}

/// What to load: the library before whatever is loaded already.
fn preload(library: &Path) -> Result<OsString, Failure> {
    let library = library.canonicalize().unwrap_or_else(|_| library.to_owned());
    let separates = |&byte: &u8| byte == b':' || byte == b' ';
    if library.as_os_str().as_bytes().iter().any(separates) {
        return Err(Failure::because(format_args!(
            "run: {}: the dynamic linker takes no path with a space or a colon; put the library elsewhere",
            library.display()
        )));
    }
    let mut all = library.into_os_string();
    if let Some(others) = std::env::var_os(PRELOAD).filter(|others| others != OsStr::new("")) {
        all.push(":");
        all.push(others);
    }
    Ok(all)
}
