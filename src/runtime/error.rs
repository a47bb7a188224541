//! What can go wrong with a container.
//!
//! Engines match some of these sentences: containerd, Docker and Podman look for them in the error record of the log. They are
//! runc's, letter by letter, and tests hold them.

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;

use super::linux::cgroup::CgroupError;
use super::status::Status;
use crate::sys::file::Failed;

/// runc's sentence for an id that no container has.
pub const NOT_EXIST: &str = "container does not exist";
/// runc's sentence for a container whose first process is gone.
pub const NOT_RUNNING: &str = "container not running";
/// runc's sentence for an id in use.
pub const EXIST: &str = "container with given ID already exists";
/// runc's sentence for an id that could be a path or an option.
pub const INVALID_ID: &str = "invalid container ID format";
/// runc's sentence for `resume` of a container that is not paused.
pub const NOT_PAUSED: &str = "container not paused";

/// The result of an operation on a container.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An operation on a container failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No container has this id.
    #[error("{NOT_EXIST}")]
    NotExist,
    /// The id is in use.
    #[error("{EXIST}")]
    Exist,
    /// The id is empty.
    #[error("container id cannot be empty")]
    EmptyId,
    /// The id has characters that runc does not accept.
    #[error("{INVALID_ID}")]
    InvalidId,
    /// The container has no process.
    #[error("{NOT_RUNNING}")]
    NotRunning,
    /// `pause` needs a running or created container.
    #[error("container not running or created: {0}")]
    NotPausable(Status),
    /// `resume` needs a paused container.
    #[error("{NOT_PAUSED}")]
    NotPaused,
    /// `start` of a container that has ended.
    #[error("cannot start a container that has stopped")]
    StartStopped,
    /// `start` of a container that runs.
    #[error("cannot start an already running container")]
    StartRunning,
    /// `exec` into a container that has ended.
    #[error("cannot exec in a stopped container")]
    ExecStopped,
    /// `exec` into a paused container without `--ignore-paused`.
    #[error("cannot exec in a paused container (use --ignore-paused to override)")]
    ExecPaused,
    /// `delete` without `--force` of a container that is not stopped.
    #[error("cannot delete container {id} that is not stopped: {status}")]
    NotStopped {
        /// The container.
        id: String,
        /// What it is.
        status: Status,
    },
    /// The first process survived SIGKILL for ten seconds.
    #[error(
        "container init still running (pid {pid}): it may hang in the kernel, see /proc/{pid}/stack"
    )]
    StillRunning {
        /// Its process id.
        pid: i32,
    },
    /// The state file is damaged.
    #[error("container {id} has a damaged state file {path}; `delete --force {id}` removes it")]
    DamagedState {
        /// The container.
        id: String,
        /// The state file.
        path: PathBuf,
        /// What the parser found.
        #[source]
        source: serde_json::Error,
    },
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] Failed),
    /// The barrier of a container that moves.
    #[error(
        "cannot {action} the network of container {id:?}; the kernel needs nf_tables with owners (CONFIG_NF_TABLES_INET, CONFIG_NF_TABLES_ARP, Linux 5.12)"
    )]
    Network {
        /// "lock" or "unlock".
        action: &'static str,
        /// Which container.
        id: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A system call failed.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: Errno,
    },
    /// The bundle has no `config.json`: runc's sentence.
    #[error(
        "JSON specification file {path} not found: {path} is the `config.json` of a bundle; `rcm spec` writes one"
    )]
    NoConfig {
        /// Where it was expected.
        path: PathBuf,
    },
    /// `config.json` is no OCI spec.
    #[error("{path} is not a valid OCI runtime specification")]
    InvalidConfig {
        /// The file.
        path: PathBuf,
        /// What the parser found, with line and column.
        #[source]
        source: serde_json::Error,
    },
    /// The spec asks for what no runtime can do.
    #[error(transparent)]
    Invalid(#[from] super::spec::lower::InvalidSpec),
    /// A mount could not be made again for a restore.
    #[error(transparent)]
    Mount(#[from] super::linux::mounts::StageError),
    /// `--console-socket` is missing.
    #[error("cannot allocate tty if rcm will detach without setting console socket")]
    ConsoleSocketNeeded,
    /// `--console-socket` without need.
    #[error("cannot use console socket if rcm will not detach or allocate tty")]
    ConsoleSocketUseless,
    /// `--systemd-cgroup` on a host that cannot have it.
    #[error(
        "systemd cgroup flag passed, but systemd support for managing cgroups is not available: {reason}; leave out --systemd-cgroup"
    )]
    NoSystemd {
        /// Why.
        reason: &'static str,
    },
    /// A descriptor that `--preserve-fds` names is not open.
    #[error("unable to stat preserved-fd {index} (of {count})")]
    PreservedDescriptor {
        /// Which one, from 0.
        index: i32,
        /// How many were announced.
        count: i32,
    },
    /// A socket for descriptors cannot be reached.
    #[error("cannot connect to the {what} socket {path}")]
    Socket {
        /// "console" or "pidfd".
        what: &'static str,
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The container's first process could not be started.
    #[error("unable to start container process: {reason}")]
    Start {
        /// The deepest cause that is known.
        reason: String,
    },
    /// A process could not be executed in the container.
    #[error("{reason}")]
    Exec {
        /// The deepest cause that is known.
        reason: String,
    },
    /// The control groups refused.
    #[error("cannot {action} the cgroup of container {id}")]
    Cgroup {
        /// What was tried.
        action: &'static str,
        /// The container.
        id: String,
        /// Why.
        #[source]
        source: CgroupError,
    },
    /// Somebody else's processes are in the cgroup; the first half is runc's sentence.
    #[error(
        "container's cgroup is not empty: {processes} process(es) found in {path}; `linux.cgroupsPath` must be the container's alone"
    )]
    CgroupNotEmpty {
        /// The cgroup.
        path: PathBuf,
        /// How many.
        processes: usize,
    },
    /// The cgroup is frozen; runc's sentence.
    #[error(
        "container's cgroup unexpectedly frozen: thaw {path} or choose another `linux.cgroupsPath`"
    )]
    CgroupFrozen {
        /// The cgroup.
        path: PathBuf,
    },
    /// A user may not make groups for a container that asks for limits; runc's sentence.
    #[error(
        "cannot set {limit} limit: container could not join or create cgroup; a user needs rights over one, or must leave limits out"
    )]
    LimitWithoutCgroup {
        /// The member of `linux.resources`.
        limit: String,
    },
    /// A hook failed.
    #[error(transparent)]
    Hook(#[from] super::linux::hooks::HookError),
    /// CRIU is missing, unfit, or failed.
    #[error(transparent)]
    Criu(#[from] crate::criu::Error),
    /// `checkpoint` of a container that does not execute.
    #[error("container {id} cannot be checkpointed in {status} state")]
    NotCheckpointable {
        /// The container.
        id: String,
        /// What it is.
        status: Status,
    },
    /// `--parent-path` is absolute; CRIU needs it relative to the images.
    #[error("--parent-path must be relative to --image-path, and {path} is absolute")]
    AbsoluteParent {
        /// What was given.
        path: PathBuf,
    },
    /// CRIU made a full dump although there is a parent.
    #[error(
        "the images in {path} do not refer to their parent: they are complete, not incremental"
    )]
    NotIncremental {
        /// The image directory.
        path: PathBuf,
    },
    /// The CRIU of a killed rcm does not end.
    #[error(
        "CRIU (process {pid}), left at work on container \"{id}\" by an earlier rcm, has not ended yet: try again when it has"
    )]
    CriuAtWork {
        /// The container.
        id: String,
        /// CRIU's process id.
        pid: i32,
    },
    /// A dump was given up, and CRIU has not noticed yet.
    #[error(
        "CRIU (process {pid}) does not get on, and holds container \"{id}\" until it does or is brought to"
    )]
    CriuHolds {
        /// The container.
        id: String,
        /// CRIU's process id.
        pid: i32,
        /// How that was found out.
        #[source]
        source: crate::criu::Error,
    },
    /// A file beside the images is damaged.
    #[error("the images are damaged: {path} cannot be understood")]
    DamagedImages {
        /// The file.
        path: PathBuf,
        /// What the parser found.
        #[source]
        source: serde_json::Error,
    },
    /// What is in a tmpfs of the container does not come along.
    #[error("cannot {action} the tmpfs at {path} in the container")]
    Tmpfs {
        /// "save" or "fill".
        action: &'static str,
        /// Where it is in the container.
        path: PathBuf,
        /// Why.
        #[source]
        source: crate::image::tree::TreeError,
    },
    /// A file of the host that the container had open has no name any longer.
    #[error(
        "{path}, which the container had open outside its mounts, was deleted: if it was its standard output, redirect that of `restore` to a \
         regular file"
    )]
    DeletedFile {
        /// Its last name.
        path: PathBuf,
    },
    /// CRIU cannot join a namespace of this kind.
    #[error("cannot restore into an existing {kind} namespace: CRIU cannot join one")]
    UnsupportedNamespace {
        /// Which kind.
        kind: oci_spec::runtime::LinuxNamespaceType,
    },
    /// The container's limits could not be changed.
    #[error(transparent)]
    Update(#[from] super::verbs::update::UpdateError),
    /// The state directory cannot be used.
    #[error("cannot use the state directory {path} (--root)")]
    Root {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// For `map_err` on a file operation.
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let failed = Failed::to(action, path);
        move |source| Self::File(failed(source))
    }

    /// For `map_err` on an operation on a container's cgroup.
    pub(crate) fn cgroup(action: &'static str, id: &str) -> impl FnOnce(CgroupError) -> Self {
        let id = id.to_owned();
        move |source| Self::Cgroup { action, id, source }
    }

    /// For `map_err` on a system call.
    pub(crate) fn system(action: &'static str) -> impl FnOnce(Errno) -> Self {
        move |source| Self::System { action, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// containerd (`runtime/v2/runc`) and Podman (`libpod/oci_conmon`) match these.
    #[test]
    fn sentences_that_engines_match() {
        assert_eq!(Error::NotExist.to_string(), "container does not exist");
        assert_eq!(Error::NotRunning.to_string(), "container not running");
        assert_eq!(
            Error::Exist.to_string(),
            "container with given ID already exists"
        );
        assert_eq!(Error::NotPaused.to_string(), "container not paused");
        assert_eq!(Error::InvalidId.to_string(), "invalid container ID format");
    }
}
