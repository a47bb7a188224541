//! How the last migration of a container went.

use std::path::Path;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::migrate::fate::{Fate, Fated};
use crate::migrate::record::error::JournalError;
use crate::migrate::record::ledger;
use crate::migrate::wire::id::MigrationId;
use crate::migrate::wire::id::Side;
use crate::migrate::wire::state::Phase;
use crate::runtime::{Container, Status};

/// The last migration of a container, as far as this host knows.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MigrationStatus {
    /// Id of the container.
    pub container: String,
    /// The end that this host was.
    pub side: Side,
    /// Id of the migration.
    pub migration: MigrationId,
    /// Address of the other end.
    pub peer: String,
    /// The phase that was reached.
    pub phase: Phase,
    /// Beginning of the migration.
    pub started: DateTime<Utc>,
    /// Beginning of the phase.
    pub updated: DateTime<Utc>,
    /// Whether an rcm works on it.
    pub in_progress: bool,
    /// Whether nothing is left to do.
    pub settled: bool,
    /// At a destination: whether the container may have run here, although nobody has seen it run.
    pub may_have_run: bool,
    /// Reason of a rollback, one line.
    pub reason: Option<String>,
    /// Status of the container on this host, if it is known here.
    pub status: Option<Status>,
}

/// The status of a migration cannot be told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StatusError {
    /// This host has no record of a migration.
    #[error("no migration of container \"{container}\" is known on this host")]
    Unknown {
        /// Id of the container.
        container: String,
    },
    /// The record cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl Fated for StatusError {
    fn fate(&self) -> Fate {
        Fate::AsBefore
    }
}

/// Returns the last migration of `container`, as far as this host knows.
///
/// # Errors
/// [`StatusError`].
pub fn status(root: &Path, container: &str) -> Result<MigrationStatus, StatusError> {
    let Some(record) = ledger::latest(root, container)? else {
        return Err(StatusError::Unknown {
            container: container.to_owned(),
        });
    };
    let loaded = Container::load(root, container).ok();
    Ok(MigrationStatus {
        in_progress: record.is_driven(),
        settled: record.phase.is_final(),
        may_have_run: record.phase == Phase::Resuming,
        container: record.container,
        side: record.side,
        migration: record.migration,
        peer: record.peer,
        phase: record.phase,
        started: record.started,
        updated: record.updated,
        reason: record.reason,
        status: loaded.map(|container| container.status()),
    })
}
