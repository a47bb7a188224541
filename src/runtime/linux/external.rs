//! Mounts and namespaces of a container that belong to the host: a checkpoint leaves them out and a
//! restore finds them again.

mod namespaces;
mod restored;
mod tmpfs;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};
use procfs::process::MountInfo;
use serde::{Deserialize, Serialize};

use super::mounts::{is_bind, mount_table};
use crate::criu::External;
use crate::runtime::error::{Error, Result};
use crate::runtime::spec::namespaces::Namespaces;
use crate::sys::rooted::Root;

pub use namespaces::{OUTER_NETWORK, RestoredNamespaces, dumped_namespaces, restored_namespaces};
pub(in crate::runtime) use restored::{Bind, declared_binds};
pub use restored::{RestoredHost, make_masks, make_mount_points, make_tmpfs, restored_mounts};
pub use tmpfs::{Opened, Tmpfs, open_tmpfs, save_tmpfs};

/// Directory, within a restored container's own, that has an empty directory for each mask. With
/// one directory for all, CRIU would take the masks for binds of each other at the next dump.
const MASK_DIR: &str = "masks";

/// Mount that comes from the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostMount {
    /// Path in the container, which is also the mount's name in CRIU's images.
    pub path: PathBuf,
    /// Source of the mount.
    pub source: Source,
}

/// Source of a mount that comes from the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// A path on the host.
    Path(PathBuf),
    /// An empty directory, as masks use it. It needs no saving, and packing its tmpfs takes CRIU
    /// some milliseconds of the freeze.
    Mask,
    /// The container's own control group in the hierarchy of this controller, or a directory below
    /// the group.
    Cgroup {
        /// Name of the controller: `memory`, `name=systemd`, ...
        controller: String,
        /// Relative to the container's group.
        below: PathBuf,
    },
    /// A tmpfs that rcm saves itself, because the container goes to another host.
    Tmpfs(Tmpfs),
}

/// Returns the mounts of a running container that come from the host. If the container `moves`,
/// they include the tmpfs mounts that rcm makes at the destination.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn host_mounts(
    init: Pid,
    spec: &Spec,
    namespaces: &Namespaces,
    bundle: &Path,
    cgroups: &BTreeMap<String, PathBuf>,
    moves: bool,
) -> Result<Vec<HostMount>> {
    let container = mount_table(Some(init))?;
    let host = mount_table(None)?;
    let root = Root::open(Path::new(&format!("/proc/{init}/root")))
        .map_err(Error::file("open", format!("/proc/{init}/root")))?;
    // A destination may lead through symbolic links of the image; the kernel's list has the
    // resolved path.
    let declared: Vec<(PathBuf, &Mount)> = spec
        .mounts()
        .iter()
        .flatten()
        .map(|mount| {
            let destination = Path::new("/").join(mount.destination());
            (root.resolve(&destination).unwrap_or(destination), mount)
        })
        .collect();
    let own_cgroup_namespace = namespaces.has(LinuxNamespaceType::Cgroup);
    Ok(select(&Surroundings {
        container: &container,
        host: &host,
        declared: &declared,
        masked: &masked_paths(spec, namespaces),
        bundle,
        cgroups,
        own_cgroup_namespace,
        // A tmpfs that belongs to a user namespace has to be mounted within it, which CRIU does.
        saves_tmpfs: moves && !namespaces.has(LinuxNamespaceType::User),
    }))
}

struct Surroundings<'a> {
    container: &'a [MountInfo],
    host: &'a [MountInfo],
    declared: &'a [(PathBuf, &'a Mount)],
    /// Paths whose masks are left out of the dump.
    masked: &'a [PathBuf],
    bundle: &'a Path,
    cgroups: &'a BTreeMap<String, PathBuf>,
    own_cgroup_namespace: bool,
    saves_tmpfs: bool,
}

/// Returns the masked paths whose masks rcm makes again at a restore. There are none in a user
/// namespace, because its root may not be able to reach a directory of the host.
fn masked_paths(spec: &Spec, namespaces: &Namespaces) -> Vec<PathBuf> {
    if namespaces.has(LinuxNamespaceType::User) {
        return Vec::new();
    }
    let linux = spec.linux().as_ref();
    linux
        .and_then(|linux| linux.masked_paths().as_ref())
        .into_iter()
        .flatten()
        .map(PathBuf::from)
        .collect()
}

/// Returns whether the mount is a mask over a directory: the read-only tmpfs that libcontainer
/// mounts, or the directory that a restore binds.
fn is_mask(masked: &[PathBuf], mount: &MountInfo) -> bool {
    let mask = match mount.fs_type.as_str() {
        "tmpfs" if mount.root == "/" => true,
        _ => Path::new(&mount.root)
            .parent()
            .is_some_and(|dir| dir.ends_with(MASK_DIR)),
    };
    mask && mount.mount_options.contains_key("ro") && masked.contains(&mount.mount_point)
}

fn select(around: &Surroundings) -> Vec<HostMount> {
    let at_root = |mount: &&MountInfo| mount.mount_point == Path::new("/");
    let Some(root) = around.container.iter().rfind(at_root) else {
        return Vec::new();
    };
    let host_devices: HashSet<&str> = around
        .host
        .iter()
        .map(|mount| mount.majmin.as_str())
        .collect();
    let mut found = Vec::new();
    for mount in around.container.iter().filter(|mount| !at_root(mount)) {
        let declaration = around
            .declared
            .iter()
            .rfind(|(path, _)| *path == mount.mount_point)
            .map(|(_, mount)| *mount);
        let source = match declaration {
            Some(declaration) if is_bind(declaration) => {
                let source = declaration.source().clone().unwrap_or_default();
                Some(Source::Path(around.bundle.join(source)))
            }
            Some(_) if around.saves_tmpfs => Tmpfs::of(mount, around.container).map(Source::Tmpfs),
            // A file system of the container's own, even if the host has the same one, such as
            // sysfs without a network namespace.
            Some(_) => None,
            None if is_mask(around.masked, mount) => Some(Source::Mask),
            None if !host_devices.contains(mount.majmin.as_str()) => None,
            // Read-only paths and the like: CRIU handles a bind of a directory that the container
            // has anyway.
            None if mount.majmin == root.majmin
                && Path::new(&mount.root).starts_with(&root.root) =>
            {
                None
            }
            None if mount.fs_type.starts_with("cgroup") => cgroup_source(around, mount),
            None => host_path(around.host, mount).map(Source::Path),
        };
        if let Some(source) = source {
            found.push(HostMount {
                path: mount.mount_point.clone(),
                source,
            });
        }
    }
    found
}

/// Returns the source of a cgroup mount. Version 1 is bound controller by controller. In a cgroup
/// namespace, and on version 2, CRIU restores the real mounts.
fn cgroup_source(around: &Surroundings, mount: &MountInfo) -> Option<Source> {
    if around.own_cgroup_namespace || mount.fs_type != "cgroup" {
        return None;
    }
    let path = host_path(around.host, mount)?;
    let own = around.cgroups.iter().find_map(|(controller, dir)| {
        let below = path.strip_prefix(dir).ok()?;
        Some(Source::Cgroup {
            controller: controller.clone(),
            below: below.to_path_buf(),
        })
    });
    Some(own.unwrap_or(Source::Path(path)))
}

/// Returns the path at which the host has the mounted directory.
fn host_path(host: &[MountInfo], mount: &MountInfo) -> Option<PathBuf> {
    host.iter()
        .filter(|one| one.majmin == mount.majmin)
        .filter_map(|one| {
            let below = Path::new(&mount.root).strip_prefix(&one.root).ok()?;
            Some(one.mount_point.join(below))
        })
        .find(|path| path.exists())
}

/// Returns CRIU's options for host mounts at a dump: each has its path as its name, as with runc.
#[must_use]
pub fn dumped_mounts(mounts: &[HostMount]) -> Vec<External> {
    mounts
        .iter()
        .map(|mount| External::Mount {
            path: text(&mount.path),
            name: text(&mount.path),
        })
        .collect()
}

/// Converts the path for CRIU's protocol, which takes UTF-8 only.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(majmin: &str, root: &str, point: &str, fs_type: &str) -> MountInfo {
        let line = format!("1 1 {majmin} {root} {point} rw - {fs_type} none rw");
        MountInfo::from_line(&line).unwrap()
    }

    fn spec_mount(json: serde_json::Value) -> Mount {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn what_comes_from_the_host_is_found() {
        let bind = spec_mount(serde_json::json!(
            {"destination": "/data", "source": "data", "options": ["bind"]}
        ));
        let sysfs = spec_mount(serde_json::json!({"destination": "/sys", "type": "sysfs"}));
        let cgroups = BTreeMap::from([("memory".into(), "/sys/fs/cgroup/memory/web".into())]);
        let found = select(&Surroundings {
            container: &[
                mount("8:1", "/b/rootfs", "/", "ext4"),
                mount("8:1", "/b/data", "/data", "ext4"),
                mount("8:1", "/b/rootfs/etc", "/etc", "ext4"),
                mount("8:1", "/opt/hooked", "/hooked", "ext4"),
                mount("0:50", "/", "/tmp", "tmpfs"),
                mount("0:20", "/", "/sys", "sysfs"),
                mount("0:30", "/web", "/sys/fs/cgroup/memory", "cgroup"),
            ],
            host: &[
                mount("8:1", "/", "/", "ext4"),
                mount("8:1", "/opt/hooked", "/proc/self", "ext4"),
                mount("0:20", "/", "/sys", "sysfs"),
                mount("0:30", "/", "/sys/fs/cgroup/memory", "cgroup"),
            ],
            declared: &[("/data".into(), &bind), ("/sys".into(), &sysfs)],
            masked: &[],
            bundle: Path::new("/b"),
            cgroups: &cgroups,
            own_cgroup_namespace: true,
            saves_tmpfs: false,
        });
        let paths: Vec<_> = found.iter().map(|mount| mount.path.as_path()).collect();
        assert_eq!(paths, [Path::new("/data"), Path::new("/hooked")]);
        assert_eq!(found[0].source, Source::Path("/b/data".into()));
        // The first path on the host that exists.
        assert_eq!(found[1].source, Source::Path("/proc/self".into()));
    }

    #[test]
    fn only_masks_over_directories_are_made_again() {
        let masked = ["/proc/acpi".into(), "/proc/keys".into(), "/secret".into()];
        let mask = |line: &str| is_mask(&masked, &MountInfo::from_line(line).unwrap());
        assert!(mask("1 1 0:50 / /proc/acpi ro - tmpfs tmpfs ro"));
        assert!(mask(
            "1 1 0:22 /rcm/web/masks/0 /proc/acpi ro - tmpfs tmpfs rw"
        ));
        assert!(!mask("1 1 0:6 /null /proc/keys rw - devtmpfs dev rw"));
        // It was made writable, so it may have files.
        assert!(!mask("1 1 0:50 / /secret rw - tmpfs tmpfs rw"));
        assert!(!mask("1 1 0:50 / /data ro - tmpfs tmpfs ro"));
    }
}
