//! The records of one container, read once.

use std::path::Path;

use super::error::Result;
use super::journal::{JournalRecord, read_file};
use super::lock::Lock;
use super::paths::{kept_path, source_path};
use crate::migrate::wire::id::Side;
use crate::migrate::wire::state::Phase;

/// Records of this host about the last migrations of one container.
#[derive(Debug)]
pub struct Known {
    /// The record in the container's own directory: of a migration from here.
    own: Option<JournalRecord>,
    /// The record that outlives the container: of a migration to here, or from here after its end.
    kept: Option<JournalRecord>,
}

impl Known {
    /// Reads the records. They stay true as long as the caller has the lock.
    ///
    /// # Errors
    /// [`JournalError::File`](super::error::JournalError::File),
    /// [`JournalError::Damaged`](super::error::JournalError::Damaged),
    /// [`JournalError::Newer`](super::error::JournalError::Newer).
    pub fn open(root: &Path, container: &str, _lock: &Lock) -> Result<Self> {
        Self::read(root, container)
    }

    /// Reads the records without the lock: another process may change them at any moment.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn read(root: &Path, container: &str) -> Result<Self> {
        Ok(Self {
            own: read_file(&source_path(root, container))?,
            kept: read_file(&kept_path(root, container))?,
        })
    }

    /// Returns the record of this host as the source of the container that is here.
    #[must_use]
    pub fn source(&self) -> Option<&JournalRecord> {
        self.own
            .as_ref()
            .filter(|record| record.side == Side::Source)
    }

    /// Returns the record of this host as a destination.
    #[must_use]
    pub fn destination(&self) -> Option<&JournalRecord> {
        self.kept
            .as_ref()
            .filter(|record| record.side == Side::Destination)
    }

    /// Returns the most relevant record: the source's as long as the container is here, else the
    /// one that was kept.
    #[must_use]
    pub fn into_latest(self) -> Option<JournalRecord> {
        match self.own {
            // A migration that was rolled back says less than the one that brought the container
            // here.
            Some(record) if record.phase != Phase::RolledBack => Some(record),
            rolled_back => newer(rolled_back, self.kept),
        }
    }

    /// Returns the record of a migration that is not final. A container that is sent on has two
    /// records.
    #[must_use]
    pub fn under_way(&self) -> Option<&JournalRecord> {
        [self.source(), self.destination()]
            .into_iter()
            .flatten()
            .find(|record| !record.phase.is_final())
    }
}

/// Returns the most relevant record of a container, see [`Known::into_latest`].
///
/// # Errors
/// As [`Known::read`].
pub fn latest(root: &Path, container: &str) -> Result<Option<JournalRecord>> {
    Ok(Known::read(root, container)?.into_latest())
}

fn newer(one: Option<JournalRecord>, other: Option<JournalRecord>) -> Option<JournalRecord> {
    [one, other]
        .into_iter()
        .flatten()
        .max_by_key(|record| record.updated)
}
