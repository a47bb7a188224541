//! How a migration fails at the destination.

use std::io;
use std::path::PathBuf;

use crate::error::Cause;
use crate::image::manifest::ManifestError;
use crate::image::rounds::ChainError;
use crate::migrate::fate::{Fate, Fated};
use crate::migrate::link::channel::TransportError;
use crate::migrate::record::error::JournalError;
use crate::migrate::transfer::images::BulkError;
use crate::migrate::transfer::rootfs::RootfsError;
use crate::migrate::wire::id::MigrationId;

/// Why a container did not come.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DestinationError {
    /// The other end cannot be talked to.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The journal cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The images are not those of the source.
    #[error("the images did not arrive")]
    Images {
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// The images do not get here.
    #[error(transparent)]
    Bulk(#[from] BulkError),
    /// The root file system does not get here.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// There is no place for them.
    #[error("cannot create the image directory {path}")]
    Store {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The images do not build on those that came before.
    #[error("the images cannot be restored")]
    Chain {
        /// Why.
        #[source]
        source: ChainError,
    },
    /// Images out of turn.
    #[error("the source sent images number {number} when it was the turn of number {expected}")]
    WrongRound {
        /// Which came.
        number: u32,
        /// Which should have.
        expected: u32,
    },
    /// The thread that syncs the images or the root file system to the disk has panicked.
    #[error(
        "cannot tell whether the images and the root file system are on the disk here: the thread that syncs them panicked, which is a bug of rcm"
    )]
    Sync,
    /// The restore failed.
    #[error("container \"{container}\" cannot be restored here")]
    Restore {
        /// Which.
        container: String,
        /// Why.
        #[source]
        source: Cause,
    },
    /// A commit for another migration.
    #[error("the source committed migration {migration}, which is not this one")]
    WrongMigration {
        /// Which it named.
        migration: MigrationId,
    },
    /// The container is this host's and does not run.
    #[error(
        "container \"{container}\" belongs to this host now but could not be started; its images are kept in {}: `rcm live-migrate {container} --resolve` tries again",
        images.display()
    )]
    NotStarted {
        /// Which.
        container: String,
        /// Where they are.
        images: PathBuf,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The container was about to run when CRIU failed. It is gone, and may have executed.
    #[error(
        "container \"{container}\" belongs to this host now and may have run here, but does not run now; rcm does not start it again by itself, and its images are kept in {}: `{command}` restores it by hand",
        images.display()
    )]
    MayHaveRun {
        /// Id of the container.
        container: String,
        /// Directory of the final dump.
        images: PathBuf,
        /// Command that restores the container from it.
        command: String,
        /// CRIU's failure.
        #[source]
        source: Cause,
    },
}

impl Fated for DestinationError {
    fn fate(&self) -> Fate {
        match self {
            Self::NotStarted { .. } | Self::MayHaveRun { .. } => Fate::Stands,
            // Every other failure ends the migration before the commit.
            _ => Fate::RunsThere,
        }
    }
}
