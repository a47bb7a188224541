//! Errors of operations on a container.
//!
//! Engines match some of these sentences: containerd, Docker and Podman search the log's error
//! record for them. They are runc's, letter by letter, and tests check them.

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

/// Result of an operation on a container.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Failure of an operation on a container.
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
    /// `pause` of a container that is neither running nor created.
    #[error("container not running or created: {0}")]
    NotPausable(Status),
    /// `resume` of a container that is not paused.
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
        /// Name of the container.
        id: String,
        /// State of the container.
        status: Status,
    },
    /// The first process survived SIGKILL for ten seconds.
    #[error(
        "container init still running (pid {pid}): it may hang in the kernel, see /proc/{pid}/stack"
    )]
    StillRunning {
        /// Id of the first process.
        pid: i32,
    },
    /// The state file is damaged.
    #[error("container {id} has a damaged state file {path}; `delete --force {id}` removes it")]
    DamagedState {
        /// Name of the container.
        id: String,
        /// Path of the state file.
        path: PathBuf,
        /// Error of the parser.
        #[source]
        source: serde_json::Error,
    },
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] Failed),
    /// The network of a container that moves could not be locked or unlocked.
    #[error(
        "cannot {action} the network of container {id:?}; the kernel needs nf_tables with owners (CONFIG_NF_TABLES_INET, CONFIG_NF_TABLES_ARP, Linux 5.12)"
    )]
    Network {
        /// "lock" or "unlock".
        action: &'static str,
        /// Name of the container.
        id: String,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// A system call failed.
    #[error("cannot {action}")]
    System {
        /// The failed action.
        action: &'static str,
        /// Error of the system call.
        #[source]
        source: Errno,
    },
    /// The bundle has no `config.json`: runc's sentence.
    #[error(
        "JSON specification file {path} not found: {path} is the `config.json` of a bundle; `rcm spec` writes one"
    )]
    NoConfig {
        /// Path at which it was expected.
        path: PathBuf,
    },
    /// `config.json` is no OCI spec.
    #[error("{path} is not a valid OCI runtime specification")]
    InvalidConfig {
        /// Path of the file.
        path: PathBuf,
        /// Error of the parser, with line and column.
        #[source]
        source: serde_json::Error,
    },
    /// The spec is invalid, or asks for something that this host cannot do.
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
        /// The missing condition.
        reason: &'static str,
    },
    /// A descriptor that `--preserve-fds` names is not open.
    #[error("unable to stat preserved-fd {index} (of {count})")]
    PreservedDescriptor {
        /// Index of the descriptor, from 0.
        index: i32,
        /// Number of descriptors that were announced.
        count: i32,
    },
    /// A socket for descriptors cannot be reached.
    #[error("cannot connect to the {what} socket {path}")]
    Socket {
        /// "console" or "pidfd".
        what: &'static str,
        /// Path of the socket.
        path: PathBuf,
        /// Error of the connection.
        #[source]
        source: io::Error,
    },
    /// The container's first process could not be started.
    #[error("unable to start container process: {reason}")]
    Start {
        /// The deepest known cause.
        reason: String,
    },
    /// A process could not be executed in the container.
    #[error("{reason}")]
    Exec {
        /// The deepest known cause.
        reason: String,
    },
    /// An operation on the container's control groups failed.
    #[error("cannot {action} the cgroup of container {id}")]
    Cgroup {
        /// The failed action.
        action: &'static str,
        /// Name of the container.
        id: String,
        /// Failure of the operation.
        #[source]
        source: CgroupError,
    },
    /// The cgroup has processes of others; the first half of the sentence is runc's.
    #[error(
        "container's cgroup is not empty: {processes} process(es) found in {path}; `linux.cgroupsPath` must be the container's alone"
    )]
    CgroupNotEmpty {
        /// Path of the cgroup.
        path: PathBuf,
        /// Number of the processes.
        processes: usize,
    },
    /// The cgroup is frozen; runc's sentence.
    #[error(
        "container's cgroup unexpectedly frozen: thaw {path} or choose another `linux.cgroupsPath`"
    )]
    CgroupFrozen {
        /// Path of the cgroup.
        path: PathBuf,
    },
    /// A user may not make groups for a container whose spec has limits; the first half of the
    /// sentence is runc's.
    #[error(
        "cannot set {limit} limit: container could not join or create cgroup; allow the user to write to one, or remove the limits"
    )]
    LimitWithoutCgroup {
        /// Name of the limit in `linux.resources`.
        limit: String,
    },
    /// A hook failed.
    #[error(transparent)]
    Hook(#[from] super::linux::hooks::HookError),
    /// CRIU is missing, unusable, or failed.
    #[error(transparent)]
    Criu(#[from] crate::criu::Error),
    /// `checkpoint` of a container that does not execute.
    #[error("container {id} cannot be checkpointed in {status} state")]
    NotCheckpointable {
        /// Name of the container.
        id: String,
        /// State of the container.
        status: Status,
    },
    /// `--parent-path` is absolute; CRIU needs it relative to the images.
    #[error("--parent-path must be relative to --image-path, and {path} is absolute")]
    AbsoluteParent {
        /// The given path.
        path: PathBuf,
    },
    /// CRIU made a full dump although there is a parent.
    #[error(
        "the images in {path} do not refer to their parent: they are complete, not incremental"
    )]
    NotIncremental {
        /// Path of the image directory.
        path: PathBuf,
    },
    /// The CRIU of a killed rcm has not ended.
    #[error(
        "CRIU (process {pid}) still works on container \"{id}\" for an rcm that was killed: try again when it has ended"
    )]
    CriuAtWork {
        /// Name of the container.
        id: String,
        /// Id of CRIU's process.
        pid: i32,
    },
    /// A dump was given up, and CRIU has not noticed yet.
    #[error(
        "CRIU (process {pid}) makes no progress and holds container \"{id}\" frozen: CRIU resumes it at its next step"
    )]
    CriuHolds {
        /// Name of the container.
        id: String,
        /// Id of CRIU's process.
        pid: i32,
        /// Failure of the dump.
        #[source]
        source: crate::criu::Error,
    },
    /// A file beside the images is damaged.
    #[error("the images are damaged: {path} cannot be parsed")]
    DamagedImages {
        /// Path of the file.
        path: PathBuf,
        /// Error of the parser.
        #[source]
        source: serde_json::Error,
    },
    /// The contents of a container's tmpfs could not be saved or restored.
    #[error("cannot {action} the tmpfs at {path} in the container")]
    Tmpfs {
        /// "save" or "fill".
        action: &'static str,
        /// Path in the container.
        path: PathBuf,
        /// Failure of packing or unpacking.
        #[source]
        source: crate::image::tree::TreeError,
    },
    /// The container had a file of the host open that has been deleted.
    #[error(
        "the file {path}, which the container had open outside its mounts, was deleted: if it was the standard output, redirect the output of \
         `restore` to a regular file"
    )]
    DeletedFile {
        /// Last path of the file.
        path: PathBuf,
    },
    /// CRIU cannot join a namespace of this kind.
    #[error(
        "cannot restore into an existing {kind} namespace: CRIU cannot join namespaces of this kind"
    )]
    UnsupportedNamespace {
        /// Kind of the namespace.
        kind: oci_spec::runtime::LinuxNamespaceType,
    },
    /// The container's limits could not be changed.
    #[error(transparent)]
    Update(#[from] super::verbs::update::UpdateError),
    /// The state directory cannot be used.
    #[error("cannot use the state directory {path} (--root)")]
    Root {
        /// Path of the directory.
        path: PathBuf,
        /// Error of the file system.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Converts the error of a file operation, for `map_err`.
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let failed = Failed::to(action, path);
        move |source| Self::File(failed(source))
    }

    /// Converts the error of an operation on a container's cgroup, for `map_err`.
    pub(crate) fn cgroup(action: &'static str, id: &str) -> impl FnOnce(CgroupError) -> Self {
        let id = id.to_owned();
        move |source| Self::Cgroup { action, id, source }
    }

    /// Converts the error of a system call, for `map_err`.
    pub(crate) fn system(action: &'static str) -> impl FnOnce(Errno) -> Self {
        move |source| Self::System { action, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// containerd (`runtime/v2/runc`) and Podman (`libpod/oci_conmon`) match these sentences.
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
