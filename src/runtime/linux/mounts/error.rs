//! What can go wrong while mounts are prepared.

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::mount::MsFlags;
use oci_spec::runtime::Mount;

use crate::image::tree::TreeError;
use crate::sys::namespace::NamespaceError;

/// A mount of a spec is invalid. The sentences are runc's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidMount {
    /// Only a path can be mounted again with other ids.
    #[error("id-mapped mounts are only supported for bind-mounts")]
    MappedFileSystem,
    /// The kernel wants the rights of the one who mounted the file system.
    #[error("id-mapped mounts are not supported for rootless containers")]
    MappedRootless,
    /// User ids without group ids, or none and no user namespace whose ids could be meant.
    #[error("id-mapped mounts must have both uid and gid mappings specified")]
    IncompleteMapping,
    /// The mount would have to be made on the host.
    #[error("id-mapped mounts need a mount namespace of the container")]
    MappedOnHost,
    /// The kernel would ignore it.
    #[error("bind mounts cannot have any filesystem-specific options applied")]
    BindData,
}

/// A mount could not be prepared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StageError {
    /// A step on the way to a mount failed.
    #[error("error mounting {source_path} to rootfs at {destination}: cannot {action}")]
    Mount {
        /// What shall be mounted.
        source_path: PathBuf,
        /// Where.
        destination: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The file system, or the kernel for it, does not have idmapped mounts.
    #[error(
        "failed to set MOUNT_ATTR_IDMAP on {source_path}: its file system does not support idmapped mounts on this kernel, or it is idmapped already"
    )]
    NotMappable {
        /// What shall be mounted.
        source_path: PathBuf,
        /// Why it failed.
        #[source]
        source: Errno,
    },
    /// The kernel does not take the ids of an idmapped mount.
    #[error("failed to create userns for {source_path} id-mapping")]
    Mapping {
        /// What shall be mounted.
        source_path: PathBuf,
        /// Why it failed.
        #[source]
        source: NamespaceError,
    },
    /// The host has these flags on the mount, and a user namespace cannot take them away.
    #[error(
        "error mounting {source_path} to rootfs at {destination}: cannot clear locked flags {flags:?}: operation not permitted"
    )]
    Locked {
        /// What shall be mounted.
        source_path: PathBuf,
        /// Where it shall be mounted.
        destination: PathBuf,
        /// Which.
        flags: MsFlags,
    },
    /// A tmpfs could not be filled.
    #[error("tmpcopyup: failed to copy {source_path} to {destination}")]
    CopyUp {
        /// What was copied.
        source_path: PathBuf,
        /// Where the tmpfs shall be mounted.
        destination: PathBuf,
        /// Why it failed.
        #[source]
        source: TreeError,
    },
    /// A mount lies where only the kernel's own files may be. The end of the sentence is runc's.
    #[error("{destination:?} cannot be mounted because it is inside /proc")]
    InsideProc {
        /// Where.
        destination: PathBuf,
    },
    /// Another file system than proc is mounted on `/proc`. The end of the sentence is runc's.
    #[error("\"/proc\" cannot be mounted because it is not of type proc")]
    NotProc,
    /// The mounts of a process that is being set up cannot be read.
    #[error("cannot check the container's mounts: {reason}")]
    Unchecked {
        /// Why.
        reason: String,
    },
    /// What is set when everything is mounted could not be.
    #[error("cannot set the propagation or the attributes of the mount {destination}")]
    Finish {
        /// Where it is.
        destination: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A restored mount could not be completed.
    #[error("cannot set the options of the restored mount {destination}")]
    Restored {
        /// Where it is.
        destination: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A namespace that the spec names cannot be used.
    #[error("cannot use the namespace {path}")]
    Namespace {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A namespace could not be made, or not filled.
    #[error(transparent)]
    Made(#[from] NamespaceError),
    /// The place for the mounts cannot be had.
    #[error("cannot use the directory {path}, where mounts are prepared")]
    Place {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

pub(super) type Result<T> = std::result::Result<T, StageError>;

/// For `map_err` on a step of preparing a mount.
pub(super) fn failed<E: Into<io::Error>>(
    mount: &Mount,
    action: &'static str,
) -> impl FnOnce(E) -> StageError {
    let source_path = mount.source().clone().unwrap_or_default();
    let destination = mount.destination().clone();
    move |source| StageError::Mount {
        source_path,
        destination,
        action,
        source: source.into(),
    }
}
