//! Errors of the records.

use std::io;
use std::path::{Path, PathBuf};

/// A journal cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// A file operation failed.
    #[error("cannot {action} the migration record {path}")]
    File {
        /// Failed operation: "read", "write", ...
        action: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The record cannot be understood.
    #[error(
        "the migration record {path} is damaged; if the container runs on neither host, restore it from its images and remove the record"
    )]
    Damaged {
        /// Path of the file.
        path: PathBuf,
        /// Error of the parser.
        #[source]
        source: serde_json::Error,
    },
    /// A newer release has written the record.
    #[error(
        "the migration record {path} is of a newer rcm (its format is {version}, this one knows up to {known}): settle the migration with that release"
    )]
    Newer {
        /// Path of the file.
        path: PathBuf,
        /// Version of the record's format.
        version: u32,
        /// Newest version that this release knows.
        known: u32,
    },
    /// Another rcm migrates this container.
    #[error("another rcm is migrating container \"{container}\" on this host (it holds {path})")]
    Busy {
        /// Name of the container.
        container: String,
        /// Path of the lock.
        path: PathBuf,
    },
    /// The writer's own process cannot be identified.
    #[error("cannot read this process's start time")]
    Myself {
        /// Cause.
        #[source]
        source: procfs::ProcError,
    },
}

pub(crate) type Result<T, E = JournalError> = std::result::Result<T, E>;

pub(super) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_path_buf();
    move |source| JournalError::File {
        action,
        path,
        source,
    }
}
