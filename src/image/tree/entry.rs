use std::ffi::{CStr, CString};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use nix::sys::stat::FileStat;

use super::path::TreePath;

/// What stands at one path of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) path: TreePath,
    pub(super) kind: Kind,
    /// Of a [`Kind::Link`] and a [`Kind::Whiteout`] nothing: they have no attributes of their own.
    pub(super) attributes: Attributes,
    /// Other names may lead to the same object. They follow as [`Kind::Link`].
    pub(super) linked: bool,
    /// Where it can tell whether the contents changed; never sent to another host.
    pub(super) stamp: Option<Stamp>,
}

/// The kind of an entry, with what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Directory {
        /// Hides what the lower layers of the overlay have in this place.
        opaque: bool,
    },
    File {
        size_bytes: u64,
    },
    Symlink {
        target: Vec<u8>,
    },
    Character {
        device: u64,
    },
    Block {
        device: u64,
    },
    Fifo,
    Socket,
    /// Another name for an entry that came before.
    Link {
        to: TreePath,
    },
    /// Hides what the lower layers of the overlay have in this place.
    Whiteout,
}

impl Kind {
    pub(super) fn is_directory(&self) -> bool {
        matches!(self, Self::Directory { .. })
    }
}

/// What chmod(2), chown(2), utimensat(2) and setxattr(2) change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    /// The permission bits with set-user-ID, set-group-ID and sticky.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds since the epoch.
    pub(super) modified_seconds: i64,
    /// Below 1e9.
    pub(super) modified_nanoseconds: u32,
    /// In the order of their names.
    pub(super) extended: Vec<(CString, Vec<u8>)>,
}

impl Attributes {
    pub(super) fn new(metadata: &Metadata, extended: Vec<(CString, Vec<u8>)>) -> Self {
        Self {
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            modified_seconds: metadata.mtime(),
            modified_nanoseconds: metadata.mtime_nsec() as u32,
            extended,
        }
    }
}

/// As long as it stays the same, the contents of a file did.
///
/// The change time is the kernel's: unlike the modification time, no program sets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) size_bytes: u64,
    pub(super) changed_seconds: i64,
    pub(super) changed_nanoseconds: u32,
}

impl Stamp {
    /// From what fstatat(2) tells of a file.
    pub(super) fn of(status: &FileStat) -> Self {
        Self {
            device: status.st_dev,
            inode: status.st_ino,
            size_bytes: status.st_size as u64,
            changed_seconds: status.st_ctime,
            changed_nanoseconds: status.st_ctime_nsec as u32,
        }
    }

    pub(super) fn new(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.size(),
            changed_seconds: metadata.ctime(),
            changed_nanoseconds: metadata.ctime_nsec() as u32,
        }
    }
}

/// Attributes of the tree itself. The others belong to the host and its file system: the label that its SELinux policy gives
/// (`security.selinux`), a keyed hash that no other host can check (`security.evm`), properties of Btrfs, NFS, Ceph, ...
pub(super) fn is_carried(name: &CStr) -> bool {
    let name = name.to_bytes();
    name.starts_with(b"user.")
        || name.starts_with(b"trusted.")
        || matches!(
            name,
            b"security.capability"
                | b"security.ima"
                | b"system.posix_acl_access"
                | b"system.posix_acl_default"
        )
}

/// The part of an attribute's name after the prefix of the overlay file system, of both kinds of its mounts.
pub(super) fn overlay_suffix(name: &CStr) -> Option<&[u8]> {
    let name = name.to_bytes();
    name.strip_prefix(b"trusted.overlay.")
        .or_else(|| name.strip_prefix(b"user.overlay."))
}
