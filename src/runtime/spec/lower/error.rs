//! Reasons for refusing a spec.

use std::path::PathBuf;

use oci_spec::runtime::LinuxNamespaceType;

use crate::runtime::linux::mounts::InvalidMount;
use crate::runtime::linux::seccomp::InvalidSeccomp;

/// Reason why a spec is refused: no runtime can run it, or this host cannot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSpec {
    /// The spec has another major version.
    #[error(
        "ociVersion {version:?} is not supported: rcm implements version 1 of the OCI runtime specification"
    )]
    Version {
        /// The version in the spec.
        version: String,
    },
    /// A required property is missing.
    #[error("{property} property must not be empty")]
    Missing {
        /// Name of the property.
        property: &'static str,
    },
    /// The working directory is relative.
    #[error("Cwd must be an absolute path")]
    RelativeCwd,
    /// The root file system is missing.
    #[error("invalid rootfs {path}: it is the `root.path` of config.json, relative to the bundle")]
    Rootfs {
        /// Path of the root file system.
        path: PathBuf,
        /// Error of the file system.
        #[source]
        source: std::io::Error,
    },
    /// The root file system is a file.
    #[error("invalid rootfs {path}: not a directory")]
    RootfsNotDirectory {
        /// Path of the root file system.
        path: PathBuf,
    },
    /// `/dev` of the root file system is a link.
    #[error(
        "invalid rootfs {path}: its /dev is a symbolic link, and devices would be made outside of the root file system: make /dev a directory"
    )]
    DevIsLink {
        /// Path of the root file system.
        path: PathBuf,
    },
    /// The spec has an AppArmor profile, and the host has no AppArmor.
    #[error(
        "apparmor profile {profile:?} is specified in config, but apparmor is disabled or not supported"
    )]
    AppArmor {
        /// Name of the profile.
        profile: String,
    },
    /// The spec has an SELinux label, and the host has no SELinux.
    #[error("selinux label is specified in config, but selinux is disabled or not supported")]
    SeLinux,
    /// A namespace occurs twice.
    #[error("malformed spec file: duplicated ns {kind:?}")]
    DuplicateNamespace {
        /// Kind of the namespace.
        kind: LinuxNamespaceType,
    },
    /// A mount is invalid.
    #[error("invalid mount {destination}")]
    Mount {
        /// Destination in the container.
        destination: PathBuf,
        /// Reason why the mount is invalid.
        #[source]
        source: InvalidMount,
    },
    /// A seccomp filter is invalid.
    #[error(transparent)]
    Seccomp(#[from] InvalidSeccomp),
    /// Deadline scheduling requires that the process may use all processors (sched_setattr(2),
    /// EPERM). The sentence is runc's.
    #[error("process scheduler can't be used together with AllowedCPUs")]
    DeadlineOnSomeProcessors,
    /// `unified` names files of cgroup v2; libcontainer would ignore it.
    #[error("invalid configuration: cannot use unified on cgroup v1")]
    UnifiedOnV1,
    /// libcontainer's own validation refused the spec.
    #[error("{reason}")]
    Libcontainer {
        /// Error chain of libcontainer.
        reason: String,
    },
}

pub(super) type Result<T> = std::result::Result<T, InvalidSpec>;
