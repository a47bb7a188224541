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
    /// Nothing is known.
    #[error(
        "no migration of container \"{container}\" is known on this host; if it was started again since, name its image store: --image-path=DIR"
    )]
    Unknown {
        /// Which.
        container: String,
    },
    /// It must be settled before the container can come again.
    #[error(
        "the last migration of container \"{container}\" to this host is not settled: `rcm live-migrate {container} --resolve` settles it"
    )]
    Open {
        /// Which.
        container: String,
    },
    /// The records cannot be used, or a migration is under way.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The destination cannot be asked: the certificates of the migration are not usable any more.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The record does not say whom to ask, or how the ends recognize each other.
    #[error("the migration record names no peer to ask")]
    Peer {
        /// The parser's error, if the address makes no sense.
        #[source]
        source: Option<InvalidDestination>,
    },
    /// Nobody knows.
    #[error(
        "{peer} does not answer and left no verdict in {images}: run `rcm live-migrate {container} --resolve` there first; the container stands still here meanwhile (if that host is lost for good, --resolve --peer-lost takes the container back)"
    )]
    NoAnswer {
        /// Which.
        container: String,
        /// The destination.
        peer: String,
        /// Where it would leave its verdict.
        images: String,
        /// Why it cannot be asked.
        #[source]
        source: Box<TransportError>,
    },
    /// The destination answers, but it is not settled there.
    #[error(
        "{peer} answers that the migration is {verdict:?} there: settle it with `rcm live-migrate {container} --resolve` there first"
    )]
    NotYet {
        /// Which.
        container: String,
        /// The destination.
        peer: String,
        /// Its word.
        verdict: Verdict,
    },
    /// It is this host's and does not run.
    #[error(
        "container \"{container}\" belongs to this host, but cannot be restored from its images in {images}; they are kept: remove the cause, then `rcm live-migrate {container} --resolve` again"
    )]
    NotRestored {
        /// Which.
        container: String,
        /// Where they are.
        images: String,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The freezer does not obey.
    #[error("cannot thaw or kill container \"{container}\"")]
    Cgroup {
        /// Which.
        container: String,
        /// Why.
        #[source]
        source: CgroupError,
    },
    /// The container cannot be loaded or removed.
    #[error(transparent)]
    Runtime(#[from] crate::runtime::Error),
    /// The verdict cannot be left.
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
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Fated for ResolveError {
    fn fate(&self) -> Fate {
        match self {
            // At a source, which cannot find out whether the container runs at the destination.
            Self::NoAnswer { .. } | Self::Trust(_) | Self::NotYet { .. } => Fate::Stands,
            Self::NotRestored { .. } => Fate::Stands,
            Self::Runtime(crate::runtime::Error::CriuAtWork { .. }) => Fate::Unknown,
            _ => Fate::AsBefore,
        }
    }
}
