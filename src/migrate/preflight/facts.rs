//! Description of this host: the facts that a preamble carries.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::migrate::wire::facts::{CgroupMode, Facts};

/// Error of a file that describes the host and cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}")]
pub struct FactsError {
    /// Path of the file.
    pub path: PathBuf,
    /// The cause.
    #[source]
    pub source: io::Error,
}

/// Describes this host. CRIU's version and features come from the caller, who has asked CRIU.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn gather(criu_version: u32, criu_features: BTreeSet<String>) -> Result<Facts, FactsError> {
    let path = Path::new("/proc/cpuinfo");
    let cpuinfo = fs::read_to_string(path).map_err(|source| FactsError {
        path: path.to_path_buf(),
        source,
    })?;
    let uname = nix::sys::utsname::uname().map_err(|errno| FactsError {
        path: "/proc/sys/kernel/osrelease".into(),
        source: errno.into(),
    })?;
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    Ok(Facts {
        rcm_version: env!("CARGO_PKG_VERSION").to_owned(),
        architecture: uname.machine().to_string_lossy().into_owned(),
        cpu_features: cpu_features(&cpuinfo),
        kernel_release: uname.release().to_string_lossy().into_owned(),
        criu_version,
        criu_features,
        cgroup_mode: if unified {
            CgroupMode::Unified
        } else {
            CgroupMode::Legacy
        },
        cgroup_controllers: controllers(unified),
    })
}

/// Returns the control group controllers. If they cannot be read, the set is empty, and none is
/// reported as missing.
fn controllers(unified: bool) -> BTreeSet<String> {
    if unified {
        let names = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
        return names.split_whitespace().map(String::from).collect();
    }
    mounted_controllers(&fs::read_to_string("/proc/cgroups").unwrap_or_default())
}

/// Returns the controllers of `/proc/cgroups` that are enabled and in a hierarchy (cgroups(7)).
fn mounted_controllers(table: &str) -> BTreeSet<String> {
    let in_use = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        match fields[..] {
            [name, hierarchy, _, "1"] if hierarchy != "0" => Some(name.to_owned()),
            _ => None,
        }
    };
    table.lines().filter_map(in_use).collect()
}

/// Returns the features that all processors have. On a host with different kinds of cores a task
/// may move to the one with the fewest.
fn cpu_features(cpuinfo: &str) -> BTreeSet<String> {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        // x86 says "flags", arm64 "Features".
        .filter(|(key, _)| matches!(key.trim(), "flags" | "Features"))
        .map(|(_, names)| names.split_whitespace().map(String::from).collect())
        .reduce(|all: BTreeSet<String>, one| &all & &one)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_features_of_all_processors_count() {
        let x86 = "processor\t: 0\nflags\t\t: fpu sse avx2\n\nprocessor\t: 1\nflags\t\t: fpu sse\n";
        assert_eq!(cpu_features(x86), ["fpu", "sse"].map(String::from).into());
        let arm = "processor\t: 0\nFeatures\t: fp asimd\nCPU part\t: 0xd0c\n";
        assert_eq!(cpu_features(arm), ["asimd", "fp"].map(String::from).into());
        assert_eq!(cpu_features(""), BTreeSet::new());
    }

    #[test]
    fn controllers_in_a_hierarchy_count() {
        let table = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t3\t1\t1\nmemory\t4\t9\t0\npids\t0\t1\t1\n";
        assert_eq!(mounted_controllers(table), ["cpu"].map(String::from).into());
    }

    #[test]
    fn this_host_can_be_described() {
        let facts = gather(40_201, BTreeSet::new()).unwrap();
        assert!(!facts.architecture.is_empty());
        assert!(!facts.kernel_release.is_empty());
    }
}
