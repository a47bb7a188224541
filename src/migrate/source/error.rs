//! How a migration fails at the source.

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

/// Why a migration stopped before the commit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The other end cannot be talked to.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The image store cannot be used.
    #[error("cannot {action} the image directory {path}")]
    Images {
        /// "create", "look at", ...
        action: &'static str,
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something speaks against it, at either end.
    #[error("the container cannot be moved: {}", list(findings))]
    Refused {
        /// Those with the severity of an error.
        findings: Vec<Finding>,
    },
    /// A round of pre-copy failed.
    #[error("the memory of the running container cannot be copied (round {number})")]
    PreDump {
        /// Which round, from 0.
        number: u32,
        /// Why.
        #[source]
        source: Cause,
    },
    /// A round does not build on the one before it.
    #[error("the images cannot be restored")]
    Chain {
        /// Why.
        #[source]
        source: ChainError,
    },
    /// The dump failed.
    #[error("the container cannot be dumped")]
    Dump {
        /// Why.
        #[source]
        source: Cause,
    },
    /// The images cannot be read back.
    #[error("the images cannot be handed over")]
    Manifest {
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// The images do not get to a destination with a store of its own.
    #[error(transparent)]
    Bulk {
        /// Why.
        source: BulkError,
    },
    /// The root file system does not get to the destination.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// The container cannot be fenced.
    #[error("the container cannot be fenced, so the commit would not be safe")]
    Fence {
        /// Why.
        #[source]
        source: Cause,
    },
    /// The journal cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// It took too long.
    #[error("the container stood still for {limit_dur:?} (--timeout)")]
    TooLong {
        /// The budget.
        limit_dur: Duration,
    },
    /// After the commit, the destination said that it will never run the container.
    #[error("the destination gave the container back")]
    Returned,
}

fn list(findings: &[Finding]) -> String {
    let texts: Vec<String> = findings.iter().map(Finding::to_string).collect();
    texts.join("; ")
}

/// How a migration can fail, by what became of the container.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// It runs here as if nothing had happened.
    #[error("container \"{container}\" was not moved and runs on here")]
    RunsOn {
        /// Which.
        container: String,
        /// Why it was not moved.
        #[source]
        source: Box<SourceError>,
    },
    /// It should run here, but letting it go on failed.
    #[error(
        "container \"{container}\" was not moved ({reason}), and letting it run on failed; `rcm resume {container}` lets it"
    )]
    Stands {
        /// Which.
        container: String,
        /// Why it was not moved.
        reason: String,
        /// Why it stands still.
        #[source]
        source: Cause,
    },
    /// The dump was given up, and CRIU has not let go of the container yet.
    #[error(
        "container \"{container}\" was not moved, and stands still here until CRIU lets go of it; then it runs on, and `rcm live-migrate {container} --resolve`, which waits for that, removes what is left"
    )]
    Held {
        /// Which.
        container: String,
        /// Why.
        #[source]
        source: Box<SourceError>,
    },
    /// The commit was sent and nobody knows whether it arrived.
    #[error(
        "container \"{container}\" was given to {peer}, which does not answer: it stands still here until `rcm live-migrate {container} --resolve` settles where it runs"
    )]
    NotSettled {
        /// Which.
        container: String,
        /// The destination.
        peer: String,
        /// The last attempt to ask.
        #[source]
        source: Box<SourceError>,
    },
    /// It runs at the destination; something of it is left here, not running.
    #[error(
        "container \"{container}\" runs at {peer}, but not everything of it could be removed here; `rcm live-migrate {container} --resolve` removes the rest"
    )]
    Remains {
        /// Which.
        container: String,
        /// The destination.
        peer: String,
        /// What could not be removed.
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
