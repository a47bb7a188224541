use std::ffi::{CStr, CString};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use nix::sys::stat::FileStat;

use super::path::TreePath;

/// A file of any kind in a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TreeEntry {
    pub(super) path: TreePath,
    pub(super) kind: EntryKind,
    /// Empty for an [`EntryKind::Link`] and an [`EntryKind::Whiteout`], which have no attributes of
    /// their own.
    pub(super) attributes: Attributes,
    /// Other names may lead to the same file. They follow as [`EntryKind::Link`].
    pub(super) linked: bool,
    /// Shows later whether the contents have changed; `None` if it could not. It is never sent to
    /// another host.
    pub(super) stamp: Option<Stamp>,
}

/// The kind of an entry, with its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EntryKind {
    Directory {
        /// Hides the contents of this directory in the lower layers of the overlay.
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
    /// Another name for an earlier entry.
    Link {
        to: TreePath,
    },
    /// Hides this name in the lower layers of the overlay.
    Whiteout,
}

impl EntryKind {
    pub(super) fn is_directory(&self) -> bool {
        matches!(self, Self::Directory { .. })
    }
}

/// Extended attributes: name and value, in the order of the names.
pub(super) type Extended = Vec<(CString, Vec<u8>)>;

/// The attributes that chmod(2), chown(2), utimensat(2) and setxattr(2) change.
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
    /// Those that are carried.
    pub(super) extended: Extended,
}

impl Attributes {
    pub(super) fn new(metadata: &Metadata, extended: Extended) -> Self {
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

/// Proof that a file is unchanged: as long as the stamp stays the same, so do the contents.
///
/// The kernel sets the change time. Unlike the modification time, no program can set it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) size_bytes: u64,
    pub(super) changed_seconds: i64,
    pub(super) changed_nanoseconds: u32,
}

impl Stamp {
    /// Takes the stamp from the result of fstatat(2).
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

/// Whether an attribute belongs to the tree itself. The others belong to the host and its file
/// system: the label of its SELinux policy (`security.selinux`), a keyed hash that no other host
/// can check (`security.evm`), properties of Btrfs, NFS, Ceph, ...
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

/// Returns the part of an attribute's name after the prefix of the overlay file system. The prefix
/// depends on how the overlay is mounted.
pub(super) fn overlay_suffix(name: &CStr) -> Option<&[u8]> {
    let name = name.to_bytes();
    name.strip_prefix(b"trusted.overlay.")
        .or_else(|| name.strip_prefix(b"user.overlay."))
}
