//! Host mounts of a container that is restored.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};
use procfs::process::MountInfo;

use super::{HostMount, MASK_DIR, Source, text};
use crate::criu::External;
use crate::runtime::error::{Error, Result};
use crate::runtime::linux::mounts::{is_bind, place};
use crate::sys::rooted::{FileKind, Root};
use crate::sys::tree::Tree;

/// Makes an empty directory for each mask among the mounts, below the container's own directory.
///
/// # Errors
/// Errors of the file system.
pub fn make_masks(mounts: &[HostMount], container_dir: &Path) -> Result<Vec<PathBuf>> {
    mounts
        .iter()
        .filter(|mount| mount.source == Source::Mask)
        .enumerate()
        .map(|(index, _)| {
            let path = container_dir.join(MASK_DIR).join(index.to_string());
            fs::create_dir_all(&path).map_err(Error::file("create", &path))?;
            Ok(path)
        })
        .collect()
}

/// Bind mount of a spec.
#[derive(Debug)]
pub(in crate::runtime) struct Bind<'a> {
    /// Path in the container, symbolic links resolved.
    pub path: PathBuf,
    /// Path on the host.
    pub source: PathBuf,
    /// The mount as the spec declares it.
    pub mount: &'a Mount,
}

/// Returns the bind mounts of a spec.
pub(in crate::runtime) fn declared_binds<'a>(
    spec: &'a Spec,
    bundle: &Path,
    rootfs: &Root,
) -> Vec<Bind<'a>> {
    spec.mounts()
        .iter()
        .flatten()
        .filter(|mount| is_bind(mount))
        .map(|mount| {
            let path = Path::new("/").join(mount.destination());
            Bind {
                path: rootfs.resolve(&path).unwrap_or(path),
                source: bundle.join(mount.source().clone().unwrap_or_default()),
                mount,
            }
        })
        .collect()
}

/// Inputs that decide where the host mounts of a restored container come from.
#[derive(Debug, Clone, Copy)]
pub struct RestoredHost<'a> {
    /// The mounts that the checkpoint found.
    pub found: &'a [HostMount],
    /// The spec that is restored; its sources take precedence over those of the checkpoint.
    pub spec: &'a Spec,
    /// Directory to which sources of the spec are relative.
    pub bundle: &'a Path,
    /// The container's root file system.
    pub rootfs: &'a Root,
    /// The directories that [`make_masks`] made.
    pub masks: &'a [PathBuf],
}

impl RestoredHost<'_> {
    /// Returns the sources on the host by their paths in the container: those of the checkpoint,
    /// those of the spec, and those that runc's images name. `host` is the mount table of this
    /// process, `cgroups` has the directories of the container's cgroup.
    #[must_use]
    pub fn sources(
        &self,
        host: &[MountInfo],
        cgroups: &BTreeMap<String, PathBuf>,
    ) -> BTreeMap<PathBuf, PathBuf> {
        let mut sources: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
        let mut masks = self.masks.iter();
        for mount in self.found {
            let source = match &mount.source {
                Source::Path(path) => Some(path.clone()),
                Source::Mask => masks.next().cloned(),
                Source::Cgroup { controller, below } => {
                    cgroups.get(controller).map(|dir| dir.join(below))
                }
                Source::Tmpfs(_) => None,
            };
            sources.extend(source.map(|source| (mount.path.clone(), source)));
        }
        sources.extend(
            declared_binds(self.spec, self.bundle, self.rootfs)
                .into_iter()
                .map(|bind| (bind.path, bind.source)),
        );
        let linux = self.spec.linux().as_ref();
        let masked = linux.is_some_and(|linux| linux.masked_paths().is_some());
        // runc's images have masked files as binds of `/dev/null`, and devices as binds of
        // themselves.
        let runc = masked
            .then(|| PathBuf::from("/dev/null"))
            .into_iter()
            .chain(
                linux
                    .and_then(|linux| linux.devices().as_ref())
                    .into_iter()
                    .flatten()
                    .map(|device| device.path().clone()),
            );
        for path in runc {
            sources.entry(path.clone()).or_insert(path);
        }
        for (path, source) in runc_cgroup_mounts(self.spec, host, cgroups) {
            sources.entry(path).or_insert(source);
        }
        sources
    }
}

/// Returns CRIU's options for host mounts at a restore, from their paths and sources.
#[must_use]
pub fn restored_mounts(sources: BTreeMap<PathBuf, PathBuf>) -> Vec<External> {
    sources
        .into_iter()
        .map(|(path, source)| External::Mount {
            path: text(&path),
            // CRIU does not follow a symbolic link at the end of the path.
            name: text(&source.canonicalize().unwrap_or(source)),
        })
        .collect()
}

/// Returns the binds that runc makes on cgroup v1 for a mount of type `cgroup`: a directory for
/// each hierarchy, with its name on the host.
fn runc_cgroup_mounts(
    spec: &Spec,
    host: &[MountInfo],
    cgroups: &BTreeMap<String, PathBuf>,
) -> Vec<(PathBuf, PathBuf)> {
    let destination = spec
        .mounts()
        .iter()
        .flatten()
        .find(|mount| mount.typ().as_deref() == Some("cgroup"))
        .map(|mount| Path::new("/").join(mount.destination()));
    let Some(destination) = destination else {
        return Vec::new();
    };
    host.iter()
        .filter(|mount| mount.fs_type == "cgroup")
        .filter_map(|mount| {
            let path = destination.join(mount.mount_point.file_name()?);
            let own = cgroups
                .values()
                .find(|dir| dir.starts_with(&mount.mount_point));
            Some((path, own.unwrap_or(&mount.mount_point).clone()))
        })
        .collect()
}

/// Makes the mount points that the root file system lacks (or the source of a bind, for mounts
/// below it). Creating a container makes them, so restoring one into a fresh copy must, too.
///
/// # Errors
/// Errors of the file system.
pub fn make_mount_points(spec: &Spec, bundle: &Path, rootfs: &Path) -> Result<()> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    for (index, mount) in mounts.iter().enumerate() {
        if mount.typ().as_deref() == Some("cgroup") {
            // These mount points are in sysfs, or in a tmpfs whose contents are in the images.
            continue;
        }
        let kind = if is_bind(mount)
            && let Some(source) = mount.source()
            && !bundle.join(source).is_dir()
        {
            FileKind::File
        } else {
            FileKind::Directory
        };
        // No mount points are made in a tmpfs, whose contents are in the images, nor in other file
        // systems, which have their own.
        let Some((base, below)) = place(mounts, index, bundle, rootfs) else {
            continue;
        };
        Root::open(&base)
            .and_then(|root| root.make(&below, kind))
            .map_err(Error::file("make the mount point", base.join(&below)))?;
    }
    Ok(())
}

/// Makes each tmpfs whose contents were saved among the `images`, by its path in the container.
/// None of them is mounted yet.
///
/// # Errors
/// [`Error::Tmpfs`], or if a tmpfs cannot be made.
pub fn make_tmpfs(mounts: &[HostMount], images: &Path) -> Result<Vec<(PathBuf, Tree)>> {
    mounts
        .iter()
        .filter_map(|mount| match &mount.source {
            Source::Tmpfs(tmpfs) => Some((&mount.path, tmpfs)),
            _ => None,
        })
        .map(|(path, tmpfs)| Ok((path.clone(), tmpfs.make(path, images)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_mount_points_are_made_where_they_belong() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path();
        for name in ["rootfs/etc", "data"] {
            fs::create_dir_all(bundle.join(name)).unwrap();
        }
        fs::write(bundle.join("hosts"), "").unwrap();
        let spec: Spec = serde_json::from_value(serde_json::json!({
            "ociVersion": "1.0.2",
            "mounts": [
                {"destination": "/etc/hosts", "source": "hosts", "options": ["bind"]},
                {"destination": "/a/b", "source": "data", "options": ["bind"]},
                {"destination": "/a/b/inner", "type": "tmpfs"},
                {"destination": "/run", "type": "tmpfs"},
                {"destination": "/run/in-tmpfs", "type": "tmpfs"},
                {"destination": "/sys/fs/cgroup", "type": "cgroup"}
            ]
        }))
        .unwrap();
        let rootfs = bundle.join("rootfs");
        make_mount_points(&spec, bundle, &rootfs).unwrap();
        assert!(rootfs.join("etc/hosts").is_file());
        assert!(rootfs.join("a/b").is_dir() && rootfs.join("run").is_dir());
        assert!(
            bundle.join("data/inner").is_dir(),
            "below the bind, not under it"
        );
        assert!(!rootfs.join("a/b/inner").exists());
        assert!(!rootfs.join("run/in-tmpfs").exists());
        assert!(!rootfs.join("sys").exists());
    }
}
