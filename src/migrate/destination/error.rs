//! Errors of a migration at the destination.

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

/// A reason for which a container is not running here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DestinationError {
    /// The connection to the source failed.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The journal cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The images differ from the source's.
    #[error("the images did not arrive")]
    Images {
        /// The cause.
        #[source]
        source: ManifestError,
    },
    /// The images cannot be received.
    #[error(transparent)]
    Bulk(#[from] BulkError),
    /// The root file system cannot be received.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// The directory for the images cannot be created.
    #[error("cannot create the image directory {path}")]
    Store {
        /// Path of the directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The images do not refer to those of the round before.
    #[error("the images cannot be restored")]
    Chain {
        /// The cause.
        #[source]
        source: ChainError,
    },
    /// Images arrived out of order.
    #[error("the source sent images number {number}, but number {expected} was expected")]
    WrongRound {
        /// Number of the images that arrived.
        number: u32,
        /// Number of the images that were expected.
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
        /// Id of the container.
        container: String,
        /// The cause.
        #[source]
        source: Cause,
    },
    /// The commit is for another migration.
    #[error("the source committed migration {migration}, which is not this one")]
    WrongMigration {
        /// Id of the migration that the commit names.
        migration: MigrationId,
    },
    /// The container belongs to this host and does not run.
    #[error(
        "container \"{container}\" belongs to this host now but could not be started; its images are kept in {}: `rcm live-migrate {container} --resolve` tries again",
        images.display()
    )]
    NotStarted {
        /// Id of the container.
        container: String,
        /// Path of the images.
        images: PathBuf,
        /// The cause.
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
