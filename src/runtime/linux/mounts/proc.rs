//! Check that a container's `/proc` has only the kernel's files.
//!
//! libcontainer writes labels and kernel parameters to files there, and masks and read-only paths
//! protect them. A mount of the spec below `/proc` would defeat both. It can get there by a link of
//! the image, or by a link that appears while the container is created (CVE-2019-16884,
//! CVE-2025-52881). So rcm checks the finished mount table, and not the spec.

use std::path::Path;

use nix::unistd::Pid;
use oci_spec::runtime::Spec;
use procfs::process::MountInfo;

use super::error::{Result, StageError};
use super::options::is_bind;
use super::table::mount_table;
use crate::error::chain;

/// Files of `/proc` that another file system may provide, as with runc: lxcfs does.
const REPLACED: [&str; 10] = [
    "cpuinfo",
    "diskstats",
    "meminfo",
    "stat",
    "swaps",
    "uptime",
    "loadavg",
    "slabinfo",
    "sys/kernel/ns_last_pid",
    "sys/crypto/fips_enabled",
];

/// Checks the mounts of the process that sets the container up. At that time all mounts of the spec
/// are made, none of its masks is, and the root is still the host's.
///
/// # Errors
/// [`StageError::InsideProc`], [`StageError::NotProc`].
pub fn check_proc(init: Pid, spec: &Spec, rootfs: &Path) -> Result<()> {
    let mounts = mount_table(Some(init)).map_err(|error| StageError::Unchecked {
        reason: chain(&error),
    })?;
    // If the host's /proc is bound, the mounts below it are bound, too.
    let is_hosts = spec
        .mounts()
        .iter()
        .flatten()
        .any(|mount| is_bind(mount) && mount.destination() == Path::new("/proc"));
    mounts
        .iter()
        .try_for_each(|mount| check(mount, &rootfs.join("proc"), is_hosts))
}

fn check(mount: &MountInfo, proc: &Path, is_hosts: bool) -> Result<()> {
    let Ok(below) = mount.mount_point.strip_prefix(proc) else {
        return Ok(());
    };
    if below.as_os_str().is_empty() {
        return match &*mount.fs_type {
            "proc" => Ok(()),
            _ => Err(StageError::NotProc),
        };
    }
    if is_hosts || REPLACED.iter().any(|name| below == Path::new(name)) {
        Ok(())
    } else {
        Err(StageError::InsideProc {
            destination: Path::new("/proc").join(below),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_refused(point: &str, fs_type: &str, is_hosts: bool) -> bool {
        let line = format!("30 20 0:40 / {point} rw,relatime - {fs_type} none rw");
        let mount = MountInfo::from_line(&line).unwrap();
        check(&mount, Path::new("/b/rootfs/proc"), is_hosts).is_err()
    }

    #[test]
    fn only_the_kernel_s_files_are_in_proc() {
        assert!(!is_refused("/b/rootfs/proc", "proc", false));
        assert!(!is_refused("/b/rootfs/process", "tmpfs", false));
        assert!(!is_refused("/proc", "proc", false));
        assert!(!is_refused("/b/rootfs/proc/uptime", "fuse.lxcfs", false));
        assert!(!is_refused(
            "/b/rootfs/proc/sys/fs/binfmt_misc",
            "binfmt_misc",
            true
        ));
        assert!(is_refused("/b/rootfs/proc", "tmpfs", false));
        assert!(is_refused("/b/rootfs/proc/self/attr", "tmpfs", false));
        assert!(is_refused("/b/rootfs/proc/uptime/x", "tmpfs", false));
    }
}
