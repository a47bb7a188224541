//! Errors of CRIU and of talking to it.

use std::fmt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use nix::errno::Errno;

use super::version::Version;

/// A request to CRIU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Dump, and keep the tasks stopped until the answer to `post-dump`.
    Dump,
    /// Copy the memory of running tasks.
    PreDump,
    /// Restore from images.
    Restore,
    /// Tell the version.
    Version,
    /// Tell the features of CRIU and the kernel.
    FeatureCheck,
    /// Describe the processor.
    CpuinfoDump,
    /// Compare the processor with a description.
    CpuinfoCheck,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dump => "dump",
            Self::PreDump => "pre-dump",
            Self::Restore => "restore",
            Self::Version => "version query",
            Self::FeatureCheck => "feature check",
            Self::CpuinfoDump => "processor description",
            Self::CpuinfoCheck => "processor check",
        })
    }
}

/// The error of a callback, from the layer above.
pub type CallbackError = Box<dyn std::error::Error + Send + Sync>;

/// CRIU is missing, unfit, or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No CRIU was found.
    #[error(
        "no criu found in PATH: install the package criu, or name one with --criu or RCM_CRIU (`make deps` in rcm's source tree \
         installs one that suits the kernel)"
    )]
    NotFound,
    /// The named CRIU does not exist.
    #[error(
        "{origin} names {path}, which is not an executable file: install CRIU there or name another"
    )]
    NotThere {
        /// `--criu` or `RCM_CRIU`.
        origin: &'static str,
        /// The path that it names.
        path: PathBuf,
    },
    /// The CRIU that was found cannot be used.
    #[error(
        "{path} is CRIU {found}, but {needed_for} needs {needed} or newer: install a newer package criu or name another with --criu"
    )]
    TooOld {
        /// Path of CRIU.
        path: PathBuf,
        /// Version of that CRIU.
        found: Version,
        /// The oldest version that would do.
        needed: Version,
        /// The feature that needs it.
        needed_for: &'static str,
    },
    /// CRIU or the kernel lacks a feature.
    #[error("{path} (CRIU {version}) cannot {feature} on this kernel: {remedy}")]
    Lacks {
        /// Path of CRIU.
        path: PathBuf,
        /// Its version.
        version: Version,
        /// The missing feature.
        feature: &'static str,
        /// Advice for the operator.
        remedy: &'static str,
    },
    /// The kernel refuses the pipe that the page server of a lazy dump needs.
    #[error(
        "a lazy dump needs a pipe of {needed_bytes} bytes, and the kernel refuses it: raise the limit (`sysctl -w fs.pipe-max-size={limit_bytes}`) or \
         give rcm CAP_SYS_RESOURCE"
    )]
    Pipe {
        /// Size of the pipe, in bytes.
        needed_bytes: usize,
        /// Value that `/proc/sys/fs/pipe-max-size` needs.
        limit_bytes: usize,
        /// The system's error.
        #[source]
        source: Errno,
    },
    /// CRIU could not be started.
    #[error("cannot start {path}")]
    Start {
        /// Path of CRIU.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A directory for images or logs cannot be opened.
    #[error("cannot open the {what} {path}")]
    Directory {
        /// "image directory", "work directory".
        what: &'static str,
        /// Path of the directory.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The root file system cannot be mounted for CRIU.
    #[error("cannot bind the root file system {path} for CRIU")]
    Rootfs {
        /// The root file system.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The socket to CRIU failed.
    #[error("cannot {action} CRIU")]
    Socket {
        /// "send to", "receive from", "wait for".
        action: &'static str,
        /// The system's error.
        #[source]
        source: Errno,
    },
    /// CRIU sent a message that its protocol does not have.
    #[error("CRIU answered a {action} with a message that cannot be understood: {what}")]
    Protocol {
        /// The request.
        action: Action,
        /// The defect of the message.
        what: &'static str,
    },
    /// CRIU failed. The sentence contains CRIU's first error.
    #[error("criu {action} of {subject} failed: {failure}")]
    Failed {
        /// The request.
        action: Action,
        /// The dumped or restored object: `container "web"`.
        subject: String,
        /// CRIU's error.
        failure: Box<super::log::Failure>,
    },
    /// CRIU ended before the request was done.
    #[error("criu {action} of {subject}: CRIU ended unexpectedly ({status}): {failure}")]
    Died {
        /// The request.
        action: Action,
        /// The dumped or restored object.
        subject: String,
        /// Exit status of CRIU.
        status: ExitStatus,
        /// CRIU's error before it ended.
        failure: Box<super::log::Failure>,
    },
    /// CRIU did not answer in time. The connection is closed, so that it rolls back.
    #[error(
        "criu {action} of {subject}: no answer within {waited_dur:?}; the connection was closed, so that CRIU rolls back"
    )]
    Timeout {
        /// The request.
        action: Action,
        /// The dumped or restored object.
        subject: String,
        /// Time since the last message.
        waited_dur: Duration,
    },
    /// rcm itself refused at a stage that CRIU reported.
    #[error("{action} of {subject} stopped at {stage}")]
    Refused {
        /// The request.
        action: Action,
        /// The dumped or restored object.
        subject: String,
        /// CRIU's name of the stage.
        stage: String,
        /// The caller's error.
        #[source]
        source: CallbackError,
    },
    /// A stats file cannot be read.
    #[error("cannot read CRIU's statistics {path}")]
    Stats {
        /// Path of the statistics file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}
