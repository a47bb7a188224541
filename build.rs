//! Tells `rcm --version` which commit it is built from, if that is known.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Packagers who build from an archive set this.
const VARIABLE: &str = "RCM_COMMIT";

fn main() {
    println!("cargo:rerun-if-env-changed={VARIABLE}");
    println!("cargo:rerun-if-changed=build.rs");
    let named = std::env::var(VARIABLE).ok();
    let commit = named.filter(|commit| !commit.is_empty()).or_else(described);
    if let Some(commit) = commit {
        println!("cargo:rustc-env={VARIABLE}={commit}");
    }
}

/// Returns the commit as git describes it; `None` outside of a repository.
fn described() -> Option<String> {
    // The sources may lie inside of another repository, such as a distribution's.
    if !Path::new(".git").exists() {
        return None;
    }
    // Every commit, checkout and reset writes a line to this log, in a linked work tree, too.
    let log = PathBuf::from(git(&["rev-parse", "--git-path", "logs/HEAD"])?);
    if log.exists() {
        println!("cargo:rerun-if-changed={}", log.display());
    }
    // Uncommitted changes count, too.
    for sources in ["src", "Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={sources}");
    }
    git(&["describe", "--always", "--dirty", "--long"])
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}
