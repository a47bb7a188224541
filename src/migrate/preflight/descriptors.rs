//! Open files of a container's processes.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{NFS_SUPER_MAGIC, statfs};
use nix::unistd::Pid;
use procfs::process::Process;

use super::{error, processes};
use crate::criu::CriuChoices;
use crate::migrate::wire::finding::Finding;

/// CRIU's own limit for deleted files (criu/include/cr_options.h, `DEFAULT_GHOST_LIMIT`, CRIU 4.2).
const GHOST_LIMIT_BYTES: u64 = 1 << 20;
/// The unit of `st_blocks` (inode(7)).
const BLOCK_BYTES: u64 = 512;
/// Anonymous inodes that CRIU cannot dump (criu/files.c, CRIU 4.2), and their names in messages.
const UNSUPPORTED: [(&str, &str); 6] = [
    ("anon_inode:[io_uring]", "an io_uring"),
    ("anon_inode:[perf_event]", "a performance counter"),
    ("anon_inode:[userfaultfd]", "a userfaultfd"),
    ("anon_inode:bpf-prog", "a BPF program"),
    ("anon_inode:bpf_link", "a BPF link"),
    ("anon_inode:seccomp notify", "a seccomp listener"),
];

/// Result of the probe.
#[derive(Debug, Default)]
pub(super) struct Open {
    pub(super) findings: Vec<Finding>,
    /// Inodes of sockets.
    pub(super) sockets: HashSet<u64>,
    pub(super) ghost_limit_bytes: Option<u32>,
}

pub(super) fn look(init: Pid, moving: &[Pid], choices: &CriuChoices, terminal: bool) -> Open {
    let mounts: Option<HashSet<i32>> = Process::new(init.as_raw())
        .and_then(|process| process.mountinfo())
        .map(|mounts| mounts.0.iter().map(|mount| mount.mnt_id).collect())
        .ok();
    let mut open = Open::default();
    // One finding for each file, not one for each descriptor.
    let mut findings = BTreeMap::new();
    let mut largest_bytes = 0;
    for pid in moving {
        for link in links(*pid) {
            let (Ok(target), Ok(meta)) = (fs::read_link(&link), fs::metadata(&link)) else {
                continue;
            };
            if meta.file_type().is_socket() {
                open.sockets.insert(meta.ino());
            } else if let Some(what) = unsupported(&target) {
                let finding = error(
                    format!(
                        "process {} has {what} open, which CRIU cannot dump",
                        processes::name(*pid)
                    ),
                    "configure the program not to use it",
                );
                findings
                    .entry((pid.as_raw(), what.to_owned()))
                    .or_insert(finding);
            } else if is_ghost(&meta) {
                let size_bytes = meta.blocks().saturating_mul(BLOCK_BYTES);
                if u32::try_from(size_bytes).is_err() {
                    let what = format!(
                        "process {} has the deleted file {} open, of 4 GiB or more",
                        processes::name(*pid),
                        target.display()
                    );
                    let key = (pid.as_raw(), target.display().to_string());
                    findings.insert(key, error(what, "have the program close it"));
                }
                largest_bytes = largest_bytes.max(size_bytes);
            } else if !choices.link_remap && is_unnamed(&target, &meta) {
                let what = format!(
                    "process {} has {} open under a removed name, and the file has other names",
                    processes::name(*pid),
                    target.display()
                );
                let remedy = "use --link-remap, or have the program close it";
                // Children inherit such a descriptor, so the process id is not part of the key.
                let key = (0, target.display().to_string());
                findings.entry(key).or_insert_with(|| error(what, remedy));
            } else if !choices.link_remap && is_silly_renamed(&target, &link) {
                let what = format!(
                    "process {} has {} open, a deleted file on NFS",
                    processes::name(*pid),
                    target.display()
                );
                let key = (pid.as_raw(), target.display().to_string());
                findings.insert(
                    key,
                    error(what, "use --link-remap, or have the program close it"),
                );
            } else if !terminal
                && !choices.shell_job
                && is_terminal(&meta)
                && is_outside(&link, mounts.as_ref())
            {
                let key = (0, target.display().to_string());
                let what = format!(
                    "the container uses the terminal {} of this host",
                    target.display()
                );
                let remedy = "use --shell-job, or run it detached or with a terminal of its own";
                findings.insert(key, error(what, remedy));
            }
        }
    }
    open.findings = findings.into_values().collect();
    open.ghost_limit_bytes = ghost_limit(largest_bytes);
    open
}

fn links(pid: Pid) -> impl Iterator<Item = PathBuf> {
    // A process that has ended has no links.
    fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
}

fn unsupported(target: &Path) -> Option<&'static str> {
    UNSUPPORTED
        .iter()
        .find(|(link, _)| target == Path::new(link))
        .map(|(_, what)| *what)
}

fn is_ghost(meta: &Metadata) -> bool {
    meta.file_type().is_file() && meta.nlink() == 0
}

/// Returns whether the name by which the file was opened was removed while the file has another
/// name. CRIU must create a link to it (criu/files-reg.c, `check_path_remap`, CRIU 4.2). The kernel
/// appends " (deleted)" to the path (fs/d_path.c, Linux 6.18).
fn is_unnamed(target: &Path, meta: &Metadata) -> bool {
    let is_deleted = target.as_os_str().as_bytes().ends_with(b" (deleted)");
    is_deleted && meta.file_type().is_file() && meta.nlink() > 0
}

/// Returns whether an NFS client has renamed the file because it was deleted while it was open.
fn is_silly_renamed(target: &Path, link: &Path) -> bool {
    let named = target
        .file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| name.starts_with(".nfs"));
    named && statfs(link).is_ok_and(|stats| stats.filesystem_type() == NFS_SUPER_MAGIC)
}

/// Returns whether it is a side of a pseudoterminal or a console
/// (Documentation/admin-guide/devices.txt, Linux 6.18).
fn is_terminal(meta: &Metadata) -> bool {
    meta.file_type().is_char_device()
        && matches!(nix::sys::stat::major(meta.rdev()), 4 | 5 | 128..=143)
}

/// Returns whether an open file lies on a mount that the container does not have.
fn is_outside(link: &Path, mounts: Option<&HashSet<i32>>) -> bool {
    let info = link.to_string_lossy().replace("/fd/", "/fdinfo/");
    let mount_id = fs::read_to_string(info).ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("mnt_id:"))?;
        line.trim().parse().ok()
    });
    matches!((mount_id, mounts), (Some(id), Some(mounts)) if !mounts.contains(&id))
}

/// Returns twice the present size: the file may grow until the freeze.
fn ghost_limit(largest_bytes: u64) -> Option<u32> {
    (largest_bytes > GHOST_LIMIT_BYTES / 2)
        .then(|| u32::try_from(largest_bytes.saturating_mul(2)).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_leaves_space_to_grow() {
        assert_eq!(ghost_limit(0), None);
        assert_eq!(ghost_limit(GHOST_LIMIT_BYTES / 2), None);
        assert_eq!(ghost_limit(3 << 20), Some(6 << 20));
        assert_eq!(ghost_limit(3 << 30), Some(u32::MAX));
    }

    #[test]
    fn deleted_files_of_this_process_are_found() {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &vec![1; 3 << 20]).unwrap();
        let own = Pid::this();
        let open = look(own, &[own], &CriuChoices::default(), false);
        assert!(open.ghost_limit_bytes.unwrap() >= 6 << 20, "{open:?}");
    }

    #[test]
    fn sockets_of_this_process_are_found() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&socket));
        let inode = fs::metadata(link).unwrap().ino();
        let own = Pid::this();
        let open = look(own, &[own], &CriuChoices::default(), false);
        assert!(open.sockets.contains(&inode));
    }

    #[test]
    fn an_io_uring_is_known_by_its_link() {
        assert_eq!(
            unsupported(Path::new("anon_inode:[io_uring]")),
            Some("an io_uring")
        );
        assert_eq!(unsupported(Path::new("anon_inode:[eventfd]")), None);
    }
}
