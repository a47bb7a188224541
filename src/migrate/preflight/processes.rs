//! Probes of a container's processes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use oci_spec::runtime::Spec;
use procfs::process::{MMapPath, Process};

use super::error;
use crate::migrate::wire::finding::Finding;
use crate::migrate::wire::id::Side;
use crate::migrate::wire::observed::NeededFile;

/// Kinds that CRIU dumps once for the whole tree. Mount and network namespaces may be nested
/// (criu/namespaces.c, `generate_ns_id`, CRIU 4.2).
const SINGLE_NAMESPACES: [&str; 5] = ["pid", "user", "ipc", "uts", "time"];
/// Number of files that are compared. More would cost more than they prove.
const MAPPED_FILES: usize = 512;

/// Returns whether CRIU dumps the process. It dumps the first process and its descendants. A
/// process that `exec` has started is a child of a process outside and does not move.
pub(super) fn moves(init: Pid, pid: Pid) -> bool {
    let mut ancestor = pid.as_raw();
    while ancestor > 1 {
        if ancestor == init.as_raw() {
            return true;
        }
        match Process::new(ancestor).and_then(|process| process.stat()) {
            Ok(stat) => ancestor = stat.ppid,
            // The process has ended meanwhile.
            Err(_) => return true,
        }
    }
    false
}

/// Returns the pid and the name, such as "12 (sleep)".
pub(super) fn name(pid: Pid) -> String {
    let comm = Process::new(pid.as_raw())
        .and_then(|process| process.stat())
        .map_or_else(|_| "?".to_owned(), |stat| stat.comm);
    format!("{pid} ({comm})")
}

/// Returns a warning for each process that does not move.
pub(super) fn brought_in(pids: &[Pid]) -> Vec<Finding> {
    let finding = |pid: &Pid| {
        Finding::warning(
            Side::Source,
            format!(
                "process {} was started by `exec` and does not move",
                name(*pid)
            ),
            "it ends here when the container is gone",
        )
    };
    pids.iter().map(finding).collect()
}

/// Returns a finding for each kind of namespace of which a process has its own.
pub(super) fn nested(init: Pid, moving: &[Pid]) -> Vec<Finding> {
    let namespace = |pid: Pid, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
    let mut findings = Vec::new();
    for kind in SINGLE_NAMESPACES {
        let own = namespace(init, kind);
        let stranger = moving.iter().find(|pid| {
            let theirs = namespace(**pid, kind);
            own.is_some() && theirs.is_some() && theirs != own
        });
        if let Some(pid) = stranger {
            findings.push(error(
                format!(
                    "process {} has its own {kind} namespace inside the container's, which CRIU cannot dump",
                    name(*pid)
                ),
                "end it before the migration",
            ));
        }
    }
    findings
}

/// Returns the mapped files of the root file system. Files below a mount of the spec are judged as
/// mounts.
pub(super) fn mapped_files(moving: &[Pid], spec: &Spec) -> Vec<NeededFile> {
    let mounts: Vec<&PathBuf> = spec
        .mounts()
        .iter()
        .flatten()
        .map(|mount| mount.destination())
        .collect();
    let mut files = BTreeSet::new();
    for pid in moving {
        let Ok(maps) = Process::new(pid.as_raw()).and_then(|process| process.maps()) else {
            continue;
        };
        for map in maps {
            let MMapPath::Path(path) = map.pathname else {
                continue;
            };
            if mounts.iter().any(|mount| path.starts_with(mount)) {
                continue;
            }
            if let Some(file) = mapped_file(*pid, &path, map.inode) {
                files.insert(file);
            }
        }
    }
    files.into_iter().take(MAPPED_FILES).collect()
}

/// Returns `None` for a file without its name: another file may have that name now.
fn mapped_file(pid: Pid, path: &Path, inode: u64) -> Option<NeededFile> {
    use std::os::unix::fs::MetadataExt;
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let meta = fs::symlink_metadata(root.join(path.strip_prefix("/").ok()?)).ok()?;
    (meta.is_file() && meta.ino() == inode).then(|| NeededFile {
        path: path.to_path_buf(),
        size_bytes: meta.len(),
    })
}
