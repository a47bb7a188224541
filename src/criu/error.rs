//! What can go wrong with CRIU.

use std::fmt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use nix::errno::Errno;

use super::version::Version;

/// What CRIU was asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Dump and keep stopped until the answer to `post-dump`.
    Dump,
    /// Copy the memory of running tasks.
    PreDump,
    /// Restore from images.
    Restore,
    /// Tell its version.
    Version,
    /// Tell what it and the kernel can do.
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
        /// What it names.
        path: PathBuf,
    },
    /// The CRIU that was found cannot be used.
    #[error(
        "{path} is CRIU {found}, but {needed_for} needs {needed} or newer: install a newer package criu or name another with --criu"
    )]
    TooOld {
        /// Which was found.
        path: PathBuf,
        /// What it is.
        found: Version,
        /// What is asked for.
        needed: Version,
        /// By what.
        needed_for: &'static str,
    },
    /// CRIU or the kernel lacks a feature.
    #[error("{path} (CRIU {version}) cannot {feature} on this kernel: {remedy}")]
    Lacks {
        /// Which CRIU.
        path: PathBuf,
        /// Its version.
        version: Version,
        /// What it cannot do.
        feature: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// The page server of a lazy dump would not get its pipe.
    #[error(
        "a lazy dump needs a pipe of {needed_bytes} bytes, and the kernel refuses it: raise the limit (`sysctl -w fs.pipe-max-size={limit_bytes}`) or \
         give rcm CAP_SYS_RESOURCE"
    )]
    Pipe {
        /// What it needs.
        needed_bytes: usize,
        /// What `/proc/sys/fs/pipe-max-size` must have.
        limit_bytes: usize,
        /// What the kernel says.
        #[source]
        source: Errno,
    },
    /// CRIU could not be started.
    #[error("cannot start {path}")]
    Start {
        /// Which CRIU.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A directory for images or logs cannot be opened.
    #[error("cannot open the {what} {path}")]
    Directory {
        /// "image directory", "work directory".
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The root file system cannot be mounted for CRIU.
    #[error("cannot bind the root file system {path} for CRIU")]
    Rootfs {
        /// The root file system.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The socket to CRIU failed.
    #[error("cannot {action} CRIU")]
    Socket {
        /// "send to", "receive from", "wait for".
        action: &'static str,
        /// Why.
        #[source]
        source: Errno,
    },
    /// CRIU sent what its protocol does not have.
    #[error("CRIU answered a {action} with a message that cannot be understood: {what}")]
    Protocol {
        /// What was asked for.
        action: Action,
        /// What is wrong with it.
        what: &'static str,
    },
    /// CRIU failed. Its first error is in the sentence.
    #[error("criu {action} of {subject} failed: {failure}")]
    Failed {
        /// What was asked for.
        action: Action,
        /// Of what: `container "web"`.
        subject: String,
        /// What CRIU said.
        failure: Box<super::log::Failure>,
    },
    /// CRIU ended in the middle.
    #[error("criu {action} of {subject}: CRIU ended unexpectedly ({status}): {failure}")]
    Died {
        /// What was asked for.
        action: Action,
        /// Of what.
        subject: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said before.
        failure: Box<super::log::Failure>,
    },
    /// CRIU did not answer in time. The connection is closed, so that it rolls back.
    #[error(
        "criu {action} of {subject}: no answer within {waited_dur:?}; the connection was closed, so that CRIU rolls back"
    )]
    Timeout {
        /// What was asked for.
        action: Action,
        /// Of what.
        subject: String,
        /// How long was waited.
        waited_dur: Duration,
    },
    /// rcm itself refused at a stage that CRIU reported.
    #[error("{action} of {subject} stopped at {stage}")]
    Refused {
        /// What was asked for.
        action: Action,
        /// Of what.
        subject: String,
        /// CRIU's name of the stage.
        stage: String,
        /// Why.
        #[source]
        source: CallbackError,
    },
    /// A stats file cannot be read.
    #[error("cannot read CRIU's statistics {path}")]
    Stats {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}
