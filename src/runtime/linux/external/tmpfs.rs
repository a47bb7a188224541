//! tmpfs mounts of a container that goes to another host.
//!
//! CRIU starts tar for each of them while the tasks are frozen. That takes 5 ms of the dump and 4
//! ms of the restore, and most containers have three (`/dev`, `/dev/shm` and `/sys/fs/cgroup`). So
//! rcm saves and restores them itself. To CRIU they are mounts of the host, as bind mounts are.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use nix::unistd::Pid;
use procfs::process::MountInfo;
use serde::{Deserialize, Serialize};

use super::{HostMount, Source};
use crate::image::tree::{Base, Compression, Limits, TreeError, apply, pack};
use crate::runtime::error::{Error, Result};
use crate::runtime::linux::mounts::mount_table;
use crate::sys::file::Failed;
use crate::sys::namespace::within_mounts_of;
use crate::sys::tree::{Scope, Tree};

/// Options that the new tmpfs is mounted with (tmpfs(5)).
const GIVEN: [&str; 6] = ["gid", "huge", "mode", "nr_inodes", "size", "uid"];
/// Options that the new tmpfs has by default.
const PLAIN: [&str; 3] = ["inode32", "inode64", "rw"];

/// A tmpfs that rcm saves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Name in the mount table's column for the device, such as `shm`.
    pub name: String,
    /// Options that the tmpfs is mounted with (tmpfs(5)).
    pub options: BTreeMap<String, String>,
    /// Name of the file among the images that has the contents.
    pub image: String,
}

/// tmpfs of a container that is about to be dumped, without the mounts below it.
#[derive(Debug)]
pub struct Opened {
    path: PathBuf,
    tree: Tree,
    image: String,
}

impl Tmpfs {
    /// Describes `mount`, which is one of the mounts `all`. Returns `None` if CRIU has to dump it:
    /// it is no tmpfs, or an unusual one (with labels, covered by another mount, or shared with
    /// other namespaces).
    ///
    /// A directory of it may be bound to elsewhere, such as its `/dev/null` over a masked file.
    /// CRIU can bind from a mount of the host, too (criu/mount.c, `mnt_get_external_bind`, CRIU
    /// 4.2).
    pub(super) fn of(mount: &MountInfo, all: &[MountInfo]) -> Option<Self> {
        let is_known =
            |option: &String| GIVEN.contains(&option.as_str()) || PLAIN.contains(&option.as_str());
        let is_usual = mount.fs_type == "tmpfs"
            && mount.root == "/"
            && mount.opt_fields.is_empty()
            && mount.super_options.keys().all(is_known);
        let here = |one: &&MountInfo| one.mount_point == mount.mount_point;
        if !is_usual || all.iter().filter(here).count() > 1 {
            return None;
        }
        let option = |name: &str| {
            let value = mount.super_options.get(name)?.clone()?;
            Some((name.to_owned(), value))
        };
        Some(Self {
            name: mount.mount_source.clone().unwrap_or_default(),
            options: GIVEN.into_iter().filter_map(option).collect(),
            image: format!("mount-{}.tree", mount.mnt_id),
        })
    }

    /// Makes a new tmpfs, and fills it from the file among the `images`.
    ///
    /// # Errors
    /// [`Error::Tmpfs`], or if the tmpfs cannot be made.
    pub(super) fn make(&self, path: &Path, images: &Path) -> Result<Tree> {
        let options = (self.options.iter())
            .filter(|(name, _)| GIVEN.contains(&name.as_str()))
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let tree = Tree::tmpfs(&self.name, options)
            .map_err(|errno| Error::file("make a tmpfs for", path)(errno.into()))?;
        // The tmpfs's own options limit its contents.
        let limits = Limits {
            entries: u64::MAX,
            content_bytes: u64::MAX,
        };
        let image = images.join(&self.image);
        let file = File::open(&image).map_err(Error::file("open", &image))?;
        apply(&tree.path(), BufReader::new(file), limits).map_err(|source| Error::Tmpfs {
            action: "fill",
            path: path.to_path_buf(),
            source,
        })?;
        Ok(tree)
    }
}

/// Opens each tmpfs among the mounts of a running container. A tmpfs that cannot be opened is
/// removed from `mounts`, so that CRIU dumps it.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn open_tmpfs(init: Pid, mounts: &mut Vec<HostMount>) -> Result<Vec<Opened>> {
    let found = mount_table(Some(init))?;
    let wanted: Vec<(PathBuf, String)> = mounts
        .iter()
        .filter_map(|mount| match &mount.source {
            Source::Tmpfs(tmpfs) => Some((mount.path.clone(), tmpfs.image.clone())),
            _ => None,
        })
        .collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let open = |(path, image): (PathBuf, String)| {
        let tree = Tree::copy(&path, Scope::Top).ok()?;
        let device = tree.device().ok()?;
        let device = format!("{}:{}", major(device), minor(device));
        // If a directory above it is covered, the path leads elsewhere.
        let is_it = |mount: &&MountInfo| mount.mount_point == path && mount.majmin == device;
        found.iter().find(is_it)?;
        Some(Opened { path, tree, image })
    };
    let opened: Vec<Opened> =
        within_mounts_of(init, || Ok(wanted.into_iter().filter_map(open).collect())).map_err(
            Error::file("enter the namespace", format!("/proc/{init}/ns/mnt")),
        )?;
    mounts.retain(|mount| {
        !matches!(mount.source, Source::Tmpfs(_))
            || opened.iter().any(|opened| opened.path == mount.path)
    });
    Ok(opened)
}

/// Saves the contents among the `images`. Call it after CRIU's dump, because CRIU may give names to
/// deleted files in the tmpfs.
///
/// # Errors
/// [`Error::Tmpfs`].
pub fn save_tmpfs(opened: &[Opened], images: &Path) -> Result<()> {
    for Opened { path, tree, image } in opened {
        let image = images.join(image);
        let save = || {
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&image)
                .map_err(|source| {
                    TreeError::File(Failed {
                        action: "create",
                        path: image.clone(),
                        source,
                    })
                })?;
            pack(
                &tree.path(),
                Base::<io::Empty>::Nothing,
                BufWriter::new(file),
                None::<io::Sink>,
                Compression::None,
            )
        };
        save().map_err(|source| Error::Tmpfs {
            action: "save",
            path: path.clone(),
            source,
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(line: &str) -> MountInfo {
        MountInfo::from_line(line).unwrap()
    }

    #[test]
    fn usual_ones_are_rcms() {
        let dev =
            mount("60 50 0:50 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755,inode64");
        let found = Tmpfs::of(&dev, std::slice::from_ref(&dev)).unwrap();
        assert_eq!(found.name, "tmpfs");
        assert_eq!(found.image, "mount-60.tree");
        let options = [("mode", "755"), ("size", "65536k")];
        let options = options.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(found.options, BTreeMap::from(options));
    }

    #[test]
    fn unusual_ones_are_crius() {
        let usual = mount("60 50 0:50 / /dev rw - tmpfs tmpfs rw");
        for (unusual, other) in [
            ("60 50 0:50 / /dev rw - ext4 tmpfs rw", None),
            ("60 50 0:50 /a /dev rw - tmpfs tmpfs rw", None),
            ("60 50 0:50 / /dev rw shared:7 - tmpfs tmpfs rw", None),
            ("60 50 0:50 / /dev rw - tmpfs tmpfs ro", None),
            ("60 50 0:50 / /dev rw - tmpfs tmpfs rw,seclabel", None),
            ("60 50 0:51 / /dev rw - tmpfs tmpfs rw", Some(usual.clone())),
        ] {
            let unusual = mount(unusual);
            let all: Vec<MountInfo> = other.into_iter().chain([unusual.clone()]).collect();
            assert_eq!(Tmpfs::of(&unusual, &all), None, "{unusual:?}");
        }
    }
}
