//! Errors of preparing mounts.

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::mount::MsFlags;
use oci_spec::runtime::Mount;

use crate::image::tree::TreeError;
use crate::sys::namespace::NamespaceError;

/// Reason why a mount of a spec is invalid. The sentences are runc's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidMount {
    /// The mount is no bind: only a path can be mounted again with other ids.
    #[error("id-mapped mounts are only supported for bind-mounts")]
    MappedFileSystem,
    /// The kernel requires privileges over the file system's owner.
    #[error("id-mapped mounts are not supported for rootless containers")]
    MappedRootless,
    /// There are user ids without group ids, or neither, and no user namespace of which they could
    /// be taken.
    #[error("id-mapped mounts must have both uid and gid mappings specified")]
    IncompleteMapping,
    /// The mount would have to be made in the host's mount namespace.
    #[error("id-mapped mounts need a mount namespace of the container")]
    MappedOnHost,
    /// The kernel would ignore the options.
    #[error("bind mounts cannot have any filesystem-specific options applied")]
    BindData,
}

/// Failure to prepare a mount.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StageError {
    /// A step of preparing a mount failed.
    #[error("error mounting {source_path} to rootfs at {destination}: cannot {action}")]
    Mount {
        /// Source of the mount.
        source_path: PathBuf,
        /// Destination in the container.
        destination: PathBuf,
        /// The failed action.
        action: &'static str,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// The file system, or the kernel for it, does not support idmapped mounts.
    #[error(
        "failed to set MOUNT_ATTR_IDMAP on {source_path}: its file system does not support idmapped mounts on this kernel, or it is idmapped already"
    )]
    NotMappable {
        /// Source of the mount.
        source_path: PathBuf,
        /// Error of mount_setattr(2).
        #[source]
        source: Errno,
    },
    /// The kernel refuses the ids of an idmapped mount.
    #[error("failed to create userns for {source_path} id-mapping")]
    Mapping {
        /// Source of the mount.
        source_path: PathBuf,
        /// Failure of the user namespace.
        #[source]
        source: NamespaceError,
    },
    /// The host has these flags on the mount, and a user namespace cannot clear them.
    #[error(
        "error mounting {source_path} to rootfs at {destination}: cannot clear locked flags {flags:?}: operation not permitted"
    )]
    Locked {
        /// Source of the mount.
        source_path: PathBuf,
        /// Destination in the container.
        destination: PathBuf,
        /// The locked flags.
        flags: MsFlags,
    },
    /// A tmpfs could not be filled (`tmpcopyup`).
    #[error("tmpcopyup: failed to copy {source_path} to {destination}")]
    CopyUp {
        /// Directory that was to be copied.
        source_path: PathBuf,
        /// Destination of the tmpfs.
        destination: PathBuf,
        /// Failure of the copy.
        #[source]
        source: TreeError,
    },
    /// A mount lies in a place where only the kernel's own files may be. The end of the sentence is
    /// runc's.
    #[error("{destination:?} cannot be mounted because it is inside /proc")]
    InsideProc {
        /// Destination in the container.
        destination: PathBuf,
    },
    /// Another file system than proc is mounted on `/proc`. The end of the sentence is runc's.
    #[error("\"/proc\" cannot be mounted because it is not of type proc")]
    NotProc,
    /// The mounts of a process that is being set up cannot be read.
    #[error("cannot check the container's mounts: {reason}")]
    Unchecked {
        /// Error chain of reading them.
        reason: String,
    },
    /// Propagation or attributes, which are set after all mounts are made, could not be set.
    #[error("cannot set the propagation or the attributes of the mount {destination}")]
    Finish {
        /// Destination in the container.
        destination: PathBuf,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// Attributes of a restored mount could not be set.
    #[error("cannot set the options of the restored mount {destination}")]
    Restored {
        /// Destination in the container.
        destination: PathBuf,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// A namespace that the spec names cannot be used.
    #[error("cannot use the namespace {path}")]
    Namespace {
        /// Path of the namespace.
        path: PathBuf,
        /// Error of opening it.
        #[source]
        source: io::Error,
    },
    /// A namespace could not be made, or the mounts in it could not.
    #[error(transparent)]
    Made(#[from] NamespaceError),
    /// The directory for prepared mounts could not be made.
    #[error("cannot use the directory {path}, where mounts are prepared")]
    Place {
        /// Path of the directory.
        path: PathBuf,
        /// Error of the file system.
        #[source]
        source: io::Error,
    },
}

pub(super) type Result<T> = std::result::Result<T, StageError>;

/// Converts the error of a step of preparing a mount, for `map_err`.
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
