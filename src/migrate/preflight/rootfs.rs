//! Probes of the root file system at both ends.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::statfs::{
    BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC,
    XFS_SUPER_MAGIC, statfs,
};
use procfs::process::{Process, all_processes};

use super::space::free_space;
use crate::image::tree::size_bytes;
use crate::migrate::agreement::RootfsFound;
use crate::migrate::wire::rootfs::{RootfsOffer, RootfsWish};

/// Returns the source's offer of its tree, without the probe file. The tree is measured only on a
/// local file system: over a network that may take minutes.
#[must_use]
pub fn offer(wish: RootfsWish, rootfs: &Path) -> RootfsOffer {
    let is_local = statfs(rootfs).is_ok_and(|found| {
        [
            BTRFS_SUPER_MAGIC,
            EXT4_SUPER_MAGIC,
            F2FS_SUPER_MAGIC,
            OVERLAYFS_SUPER_MAGIC,
            TMPFS_MAGIC,
            XFS_SUPER_MAGIC,
        ]
        .contains(&found.filesystem_type())
    });
    let is_measured = is_local && !matches!(wish, RootfsWish::None | RootfsWish::Shared);
    RootfsOffer {
        wish,
        nonce: None,
        size_bytes: is_measured.then(|| size_bytes(rootfs)),
    }
}

/// Returns whether the directory `path` has entries.
#[must_use]
pub fn has_entries(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some())
}

/// Returns the state of the path at which the tree belongs.
#[must_use]
pub fn rootfs_found(place: &Path, offer: &RootfsOffer) -> RootfsFound {
    let probe = offer.nonce.as_deref().filter(|name| !name.contains('/'));
    let sees_probe = probe.is_some_and(|name| fs::symlink_metadata(place.join(name)).is_ok());
    if sees_probe || matches!(offer.wish, RootfsWish::None | RootfsWish::Shared) {
        return RootfsFound {
            sees_probe,
            ..RootfsFound::default()
        };
    }
    RootfsFound {
        sees_probe,
        is_mount_point: is_mount_point(place),
        used_by: used_by(place),
        free_bytes: place
            .ancestors()
            .find(|dir| dir.is_dir())
            .and_then(|dir| free_space(dir).free_bytes),
        size_bytes: match offer.wish {
            RootfsWish::Full => 0,
            _ => size_bytes(place),
        },
    }
}

fn is_mount_point(path: &Path) -> bool {
    Process::myself()
        .and_then(|process| process.mountinfo())
        .is_ok_and(|mounts| mounts.into_iter().any(|mount| mount.mount_point == path))
}

/// Returns a process whose root directory it is, in any mount namespace.
fn used_by(path: &Path) -> Option<i32> {
    let wanted = fs::metadata(path).ok()?;
    all_processes().ok()?.find_map(|process| {
        let pid = process.ok()?.pid();
        let found = fs::metadata(format!("/proc/{pid}/root")).ok()?;
        ((found.dev(), found.ino()) == (wanted.dev(), wanted.ino())).then_some(pid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_recognized_by_the_probe_and_the_host_by_its_root() {
        let dir = tempfile::tempdir().unwrap();
        let mut offer = offer(RootfsWish::Auto, dir.path());
        assert!(!has_entries(dir.path()));
        offer.nonce = Some(".rcm-1".into());
        assert!(!rootfs_found(dir.path(), &offer).sees_probe);
        fs::write(dir.path().join(".rcm-1"), "").unwrap();
        assert!(rootfs_found(dir.path(), &offer).sees_probe);
        assert!(has_entries(dir.path()));
        offer.nonce = None;
        let found = rootfs_found(&dir.path().join("not/yet"), &offer);
        assert!(!found.is_mount_point && found.used_by.is_none());
        assert!(found.free_bytes.is_some());
        let found = rootfs_found(Path::new("/proc"), &offer);
        assert!(found.is_mount_point);
        assert!(used_by(Path::new("/")).is_some());
    }
}
