//! The program `workload`, built once for each allocator, and its runs.
//! Owns: `Program`. Called by: `main`.

use crate::results::Cell;
use serde_json::Value;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::{env, fs};

/// The name under which the build without an allocator counts bytes.
pub(crate) const COUNT: &str = "count";

/// `workload` with one allocator.
pub(crate) struct Program {
    pub(crate) allocator: &'static str,
    path: PathBuf,
}

impl Program {
    /// Builds it; or the last lines of what cargo said.
    ///
    /// All builds share their folder, so that nothing but the allocator and the program itself is built again.
    pub(crate) fn build(allocator: &'static str) -> Result<Self, String> {
        let target = target_directory();
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
        cargo.current_dir(root()).args(["build", "--quiet", "--release", "--locked"]);
        cargo.args(["--package", "nearheap-compare", "--bin", "workload"]);
        cargo.arg("--target-dir").arg(&target);
        if allocator != COUNT {
            cargo.args(["--features", allocator]);
        }
        // With debug information asked for, the build script of mimalloc would leave C's assertions in.
        cargo.env("CARGO_PROFILE_RELEASE_DEBUG", "false");
        let output = cargo.output().map_err(|error| format!("cargo does not start: {error}"))?;
        if !output.status.success() {
            return Err(last_lines(&output.stderr, 20));
        }
        let path = target.join(format!("workload-{allocator}"));
        fs::copy(target.join("release/workload"), &path)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { allocator, path })
    }

    /// Brings the machine's memory into the same state before every run.
    pub(crate) fn warm(&self, scale: &str) {
        // A run that is not warmed is only slower.
        let _ = Command::new(&self.path).args([crate::kernel::WARM, scale]).status();
    }

    /// Runs one workload and adds its report to `cell`. After a failure nothing is run for that cell.
    pub(crate) fn run(&self, workload: &str, scale: &str, cell: &mut Cell) {
        if cell.failure.is_some() {
            return;
        }
        let output = match Command::new(&self.path).args([workload, scale]).output() {
            Ok(output) => output,
            Err(error) => {
                cell.failure = Some(error.to_string());
                return;
            }
        };
        match serde_json::from_slice::<Value>(&output.stdout) {
            Ok(run) if output.status.success() => cell.runs.push(run),
            _ => {
                let said = last_lines(&output.stderr, 1);
                let comma = if said.is_empty() { "" } else { ": " };
                cell.failure = Some(format!("{}{comma}{said}", describe(output.status)));
            }
        }
    }

    /// The version of the allocator's engine, where it tells.
    pub(crate) fn engine(&self) -> Option<String> {
        let output = Command::new(&self.path).arg("--engine").output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        text.split_whitespace().nth(1).map(str::to_owned)
    }
}

/// The folder of the whole project.
pub(crate) fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here)
}

fn target_directory() -> PathBuf {
    let chosen = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    root().join(chosen.unwrap_or("target".into())).join("compare")
}

fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(libc::SIGALRM), _) => "it did not end within two minutes".to_owned(),
        (Some(signal), _) => format!("signal {signal}"),
        (None, Some(code)) => format!("exit status {code}"),
        (None, None) => "no exit status".to_owned(),
    }
}

fn last_lines(text: &[u8], count: usize) -> String {
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(0, "exit status 0")]
    #[case(101 << 8, "exit status 101")]
    #[case(11, "signal 11")]
    #[case(libc::SIGALRM, "it did not end within two minutes")]
    fn the_end_of_a_run_is_described(#[case] status: i32, #[case] text: &str) {
        assert_eq!(describe(ExitStatus::from_raw(status)), text);
    }

    #[rstest]
    #[case("", "")]
    #[case("one\ntwo\nthree\n", "two\nthree")]
    #[case("one", "one")]
    fn the_last_lines_are_kept(#[case] text: &str, #[case] kept: &str) {
        assert_eq!(last_lines(text.as_bytes(), 2), kept);
    }
}
