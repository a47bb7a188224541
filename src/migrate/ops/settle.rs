//! Settling a migration that was left open, and telling its source.

use std::path::PathBuf;
use std::time::Duration;

use super::resolve::resolve as settle;
use super::{Means, Resolution, ResolveError};
use crate::migrate::ops::answer;
use crate::migrate::ops::answer::AnsweringError;
use crate::migrate::record::error::JournalError;
use crate::migrate::record::journal;
use crate::migrate::record::journal::JournalRecord;
use crate::migrate::record::ledger::Known;
use crate::migrate::record::lock::Lock;
use crate::sys::interrupt::Interrupt;
use crate::sys::process::become_subreaper;

/// A migration to be settled.
#[derive(Debug, Clone)]
pub struct ResolveRequest {
    /// State directory of rcm.
    pub root: PathBuf,
    /// Id of the container.
    pub container: String,
    /// Options of the resolution.
    pub means: Means,
}

/// A migration that is settled.
#[derive(Debug)]
pub struct Resolved {
    /// How the migration ended.
    pub resolution: Resolution,
    root: PathBuf,
    /// Record of a receiver whose source may still ask.
    unanswered: Option<JournalRecord>,
    _lock: Lock,
}

/// The source was not told how its migration ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AnswerError {
    /// The source did not ask in time.
    #[error("it has not asked")]
    NotAsked,
    /// The receiver's port, certificate or secret cannot be used again.
    #[error(transparent)]
    Answering(#[from] AnsweringError),
    /// The answer cannot be noted.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Finishes the last migration of the container or rolls it back, on either end.
///
/// The process becomes the reaper of orphans (`PR_SET_CHILD_SUBREAPER`), because the container may
/// be restored.
///
/// # Errors
/// [`ResolveError`].
pub fn resolve(request: &ResolveRequest) -> Result<Resolved, ResolveError> {
    let (root, container) = (&request.root, &request.container);
    if let Err(errno) = become_subreaper() {
        tracing::warn!("cannot become a subreaper: {errno}");
    }
    let lock = Lock::take(root, container)?;
    let resolution = settle(root, container, &request.means, &lock)?;
    // A record that cannot be read leaves nobody to answer.
    let known = Known::open(root, container, &lock).ok();
    let record = known.as_ref().and_then(Known::destination).cloned();
    Ok(Resolved {
        resolution,
        root: root.clone(),
        unanswered: record.filter(|record| record.unanswered.is_some()),
        _lock: lock,
    })
}

impl Resolved {
    /// Whether the source can learn the end from this host alone: the ends share no store, and it
    /// has not confirmed that it knows.
    #[must_use]
    pub fn is_unanswered(&self) -> bool {
        self.unanswered.is_some()
    }

    /// Answers the source in the receiver's place, for at most `limit_dur`. Returns at once if no
    /// source has to be answered.
    ///
    /// # Errors
    /// [`AnswerError`]: resolving once more answers once more.
    pub fn answer_source(
        self,
        limit_dur: Duration,
        interrupt: Option<&Interrupt>,
    ) -> Result<(), AnswerError> {
        let Some(record) = &self.unanswered else {
            return Ok(());
        };
        match answer::answer(&self.root, record, limit_dur, interrupt)? {
            Some(true) => {
                journal::forget_receiver(&self.root, record.migration, &record.container)?;
                Ok(())
            }
            _ => Err(AnswerError::NotAsked),
        }
    }
}
