//! Reasons why a migration cannot be settled.

use std::io;

use crate::error::Cause;
use crate::migrate::fate::{Fate, Fated};
use crate::migrate::link::address::InvalidDestination;
use crate::migrate::link::channel::TransportError;
use crate::migrate::record::error::JournalError;
use crate::migrate::record::verdict::VerdictError;
use crate::migrate::transfer::rootfs::RootfsError;
use crate::migrate::trust::TrustError;
use crate::migrate::wire::state::Verdict;
use crate::runtime::linux::cgroup::CgroupError;

/// A migration cannot be settled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// This host has no record of a migration.
    #[error(
        "no migration of container \"{container}\" is known on this host; if this host was rebooted since, name the image store: --image-path=DIR"
    )]
    Unknown {
        /// Id of the container.
        container: String,
    },
    /// A migration of the container must be settled before another one.
    #[error(
        "the last migration of container \"{container}\" to this host is not settled: `rcm live-migrate {container} --resolve` settles it"
    )]
    Open {
        /// Id of the container.
        container: String,
    },
    /// The records cannot be used, or a migration is under way.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The destination cannot be asked: the certificates of the migration are not usable any more.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The record has no address of the peer, or no secret to recognize it by.
    #[error("the migration record names no peer to ask")]
    Peer {
        /// The parser's error, if the address makes no sense.
        #[source]
        source: Option<InvalidDestination>,
    },
    /// The destination does not answer, and the store has no verdict.
    #[error(
        "{peer} does not answer and left no verdict in {images}: run `rcm live-migrate {container} --resolve` there first; the container stays frozen here until then (if that host is lost for good, --resolve --peer-lost takes the container back)"
    )]
    NoAnswer {
        /// Id of the container.
        container: String,
        /// The destination.
        peer: String,
        /// Directory in which it would write its verdict.
        images: String,
        /// The error of the attempt to ask.
        #[source]
        source: Box<TransportError>,
    },
    /// The destination answers, but has not settled the migration.
    #[error(
        "{peer} answers that the migration is {verdict:?} there: settle it with `rcm live-migrate {container} --resolve` there first"
    )]
    NotYet {
        /// Id of the container.
        container: String,
        /// The destination.
        peer: String,
        /// Its answer.
        verdict: Verdict,
    },
    /// The container belongs to this host and does not run.
    #[error(
        "container \"{container}\" belongs to this host, but cannot be restored from its images in {images}; they are kept: remove the cause, then `rcm live-migrate {container} --resolve` again"
    )]
    NotRestored {
        /// Id of the container.
        container: String,
        /// Directory of its images.
        images: String,
        /// The cause.
        #[source]
        source: Cause,
    },
    /// The cgroup cannot be thawed or killed.
    #[error("cannot thaw or kill container \"{container}\"")]
    Cgroup {
        /// Id of the container.
        container: String,
        /// The cause.
        #[source]
        source: CgroupError,
    },
    /// The container cannot be loaded or removed.
    #[error(transparent)]
    Runtime(#[from] crate::runtime::Error),
    /// The verdict cannot be written.
    #[error(transparent)]
    Verdict(#[from] VerdictError),
    /// The root file system cannot be put back, or remains of it cannot be removed.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// Images are left.
    #[error("cannot remove the images {path}")]
    Images {
        /// Their directory.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl Fated for ResolveError {
    fn fate(&self) -> Fate {
        match self {
            // These occur at a source, which cannot know whether the container runs there.
            Self::NoAnswer { .. } | Self::Trust(_) | Self::NotYet { .. } => Fate::Stands,
            Self::NotRestored { .. } => Fate::Stands,
            Self::Runtime(crate::runtime::Error::CriuAtWork { .. }) => Fate::Unknown,
            // Only the record says whose the container is.
            Self::Journal(JournalError::Damaged { .. } | JournalError::Newer { .. }) => {
                Fate::Unknown
            }
            _ => Fate::AsBefore,
        }
    }
}
