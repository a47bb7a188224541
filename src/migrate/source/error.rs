//! Errors of a migration at the source.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::Cause;
use crate::image::manifest::ManifestError;
use crate::image::rounds::ChainError;
use crate::migrate::fate::{Fate, Fated};
use crate::migrate::link::channel::TransportError;
use crate::migrate::record::error::JournalError;
use crate::migrate::transfer::images::BulkError;
use crate::migrate::transfer::rootfs::RootfsError;
use crate::migrate::wire::finding::Finding;

/// A reason for which a migration ended before the commit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The connection to the destination failed.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The image store cannot be used.
    #[error("cannot {action} the image directory {path}")]
    Images {
        /// "create", "look at", ...
        action: &'static str,
        /// Path of the directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Findings of either end forbid the migration.
    #[error("the container cannot be moved: {}", list(findings))]
    Refused {
        /// The findings with the severity of an error.
        findings: Vec<Finding>,
    },
    /// A round of pre-copy failed.
    #[error("the memory of the running container cannot be copied (round {number})")]
    PreDump {
        /// Number of the round, from 0.
        number: u32,
        /// The cause.
        #[source]
        source: Cause,
    },
    /// A round does not refer to the one before it.
    #[error("the images cannot be restored")]
    Chain {
        /// The cause.
        #[source]
        source: ChainError,
    },
    /// The dump failed.
    #[error("the container cannot be dumped")]
    Dump {
        /// The cause.
        #[source]
        source: Cause,
    },
    /// The images cannot be read back.
    #[error("the images cannot be handed over")]
    Manifest {
        /// The cause.
        #[source]
        source: ManifestError,
    },
    /// The images cannot be sent to a destination that has its own store.
    #[error(transparent)]
    Bulk {
        /// The cause.
        source: BulkError,
    },
    /// The root file system cannot be sent.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// The container cannot be fenced.
    #[error("the container cannot be fenced, so the commit would not be safe")]
    Fence {
        /// The cause.
        #[source]
        source: Cause,
    },
    /// The journal cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The container was frozen for longer than the budget.
    #[error("the container was frozen for {limit_dur:?} (--timeout)")]
    TooLong {
        /// The budget (`--timeout`).
        limit_dur: Duration,
    },
    /// After the commit was sent, the destination answered that it will never run the container.
    #[error("the destination has rolled back and will never run the container")]
    Returned,
}

fn list(findings: &[Finding]) -> String {
    let texts: Vec<String> = findings.iter().map(Finding::to_string).collect();
    texts.join("; ")
}

/// A failed migration, by where the container is now.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The container runs here as if nothing had happened.
    #[error("container \"{container}\" was not moved and runs on here")]
    RunsOn {
        /// Id of the container.
        container: String,
        /// The reason for which it was not moved.
        #[source]
        source: Box<SourceError>,
    },
    /// The container should run here, but it could not be resumed.
    #[error(
        "container \"{container}\" was not moved ({reason}), but it is frozen here and cannot be resumed: remove the cause, then run `rcm resume {container}`"
    )]
    Stands {
        /// Id of the container.
        container: String,
        /// The reason for which it was not moved.
        reason: String,
        /// The error of the resume.
        #[source]
        source: Cause,
    },
    /// The dump was given up, and CRIU still holds the container.
    #[error(
        "container \"{container}\" was not moved, and is frozen here until CRIU lets go of it, which resumes it; `rcm live-migrate {container} --resolve` waits for that and removes the rest"
    )]
    Held {
        /// Id of the container.
        container: String,
        /// The cause.
        #[source]
        source: Box<SourceError>,
    },
    /// The commit was sent, and it is unknown whether it arrived.
    #[error(
        "container \"{container}\" was given to {peer}, which does not answer: it stays frozen here until `rcm live-migrate {container} --resolve` settles where it runs"
    )]
    NotSettled {
        /// Id of the container.
        container: String,
        /// Address of the destination.
        peer: String,
        /// The error of the last attempt to ask.
        #[source]
        source: Box<SourceError>,
    },
    /// The container runs at the destination; a part of it, which does not run, is left here.
    #[error(
        "container \"{container}\" runs at {peer}, but not everything of it could be removed here; `rcm live-migrate {container} --resolve` removes the rest"
    )]
    Remains {
        /// Id of the container.
        container: String,
        /// Address of the destination.
        peer: String,
        /// The error of the removal.
        #[source]
        source: Cause,
    },
}

impl Fated for Failure {
    fn fate(&self) -> Fate {
        match self {
            Self::RunsOn { .. } => Fate::RunsHere,
            Self::Stands { .. } | Self::Held { .. } => Fate::Stands,
            Self::NotSettled { .. } => Fate::Unknown,
            Self::Remains { .. } => Fate::RunsThere,
        }
    }
}
