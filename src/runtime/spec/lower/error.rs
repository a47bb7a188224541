//! Why a spec is refused.

use std::path::PathBuf;

use oci_spec::runtime::LinuxNamespaceType;

use crate::runtime::linux::mounts::InvalidMount;
use crate::runtime::linux::seccomp::InvalidSeccomp;

/// A spec asks for what no runtime can do, or for what this host cannot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSpec {
    /// Another major version.
    #[error(
        "ociVersion {version:?} is not supported: rcm implements version 1 of the OCI runtime specification"
    )]
    Version {
        /// The version in the spec.
        version: String,
    },
    /// Something is not there.
    #[error("{property} property must not be empty")]
    Missing {
        /// What.
        property: &'static str,
    },
    /// The working directory is relative.
    #[error("Cwd must be an absolute path")]
    RelativeCwd,
    /// The root file system is not there.
    #[error("invalid rootfs {path}: it is the `root.path` of config.json, relative to the bundle")]
    Rootfs {
        /// The path.
        path: PathBuf,
        /// Why it cannot be used.
        #[source]
        source: std::io::Error,
    },
    /// The root file system is a file.
    #[error("invalid rootfs {path}: not a directory")]
    RootfsNotDirectory {
        /// The path.
        path: PathBuf,
    },
    /// The root file system has a link where devices are made.
    #[error(
        "invalid rootfs {path}: its /dev is a symbolic link, through which devices would be made outside of it: make it a directory"
    )]
    DevIsLink {
        /// The path.
        path: PathBuf,
    },
    /// AppArmor is asked for and not there.
    #[error(
        "apparmor profile {profile:?} is specified in config, but apparmor is disabled or not supported"
    )]
    AppArmor {
        /// The profile.
        profile: String,
    },
    /// SELinux is asked for and not there.
    #[error("selinux label is specified in config, but selinux is disabled or not supported")]
    SeLinux,
    /// A namespace occurs twice.
    #[error("malformed spec file: duplicated ns {kind:?}")]
    DuplicateNamespace {
        /// Which.
        kind: LinuxNamespaceType,
    },
    /// A mount that cannot be made.
    #[error("invalid mount {destination}")]
    Mount {
        /// Where it would be mounted.
        destination: PathBuf,
        /// What is wrong with it.
        #[source]
        source: InvalidMount,
    },
    /// A seccomp filter that cannot work.
    #[error(transparent)]
    Seccomp(#[from] InvalidSeccomp),
    /// A deadline is kept only where all processors may be used (sched_setattr(2), EPERM). runc's sentence.
    #[error("process scheduler can't be used together with AllowedCPUs")]
    DeadlineOnSomeProcessors,
    /// `unified` names files of cgroup v2; the engine would ignore it.
    #[error("invalid configuration: cannot use unified on cgroup v1")]
    UnifiedOnV1,
    /// The engine's own validation refused.
    #[error("{reason}")]
    Engine {
        /// Its sentence.
        reason: String,
    },
}

pub(super) type Result<T> = std::result::Result<T, InvalidSpec>;
