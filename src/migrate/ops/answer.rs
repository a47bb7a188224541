//! Answers a source in place of a receiver that has died.
//!
//! A source that has sent its commit and got no answer asks the receiver, and looks for a verdict
//! in the store. If the ends share no store, only the receiver can answer. If the receiver is dead,
//! `--resolve` at the destination settles the migration. Then it listens for a while at the
//! receiver's address, with the certificate that the source has pinned. So the journal of such a
//! migration holds the receiver's address, certificate and key.

use std::path::Path;
use std::time::Duration;

use crate::migrate::destination::Settlement;
use crate::migrate::link::channel::TransportError;
use crate::migrate::link::listener::{self, Listener};
use crate::migrate::record::error::JournalError;
use crate::migrate::record::journal::JournalRecord;
use crate::migrate::trust::rendezvous::{Rendezvous, RendezvousError};
use crate::migrate::trust::{Trust, TrustError};
use crate::migrate::wire::state::{Phase, Verdict};
use crate::sys::interrupt::Interrupt;

/// The source cannot be answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AnsweringError {
    /// The receiver's certificate cannot be used any more.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The receiver's port cannot be used.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The rendezvous file cannot be written.
    #[error(transparent)]
    Rendezvous(#[from] RendezvousError),
    /// The ssh helpers cannot be told.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Answers the source of `record`, for at most `limit_dur`. Returns whether the source has
/// confirmed the answer; `None` if no source has to be answered this way.
///
/// # Errors
/// [`AnsweringError`].
pub fn answer(
    root: &Path,
    record: &JournalRecord,
    limit_dur: Duration,
    interrupt: Option<&Interrupt>,
) -> Result<Option<bool>, AnsweringError> {
    let verdict = match record.phase {
        Phase::Done => Verdict::Running,
        // The source must never run it, and must not remove the images either.
        Phase::Resuming => Verdict::Committed,
        Phase::RolledBack => Verdict::RolledBack,
        _ => return Ok(None),
    };
    let (Some(receiver), Some(acquaintance)) = (&record.unanswered, record.acquaintance) else {
        return Ok(None);
    };
    let trust = Trust::stored(receiver.identity.as_ref(), record.tls.as_ref())?;
    let socket = listener::listen(Some(receiver.listen))?;
    let mut listener = Listener::new(socket, acquaintance, trust);
    listener.admit_without_store(receiver.key_without_store);
    let rendezvous = Rendezvous::recreate(&receiver.store, &record.container, acquaintance)?;
    let place = rendezvous.path();
    listener.announce(root, &record.container, receiver.listen, place, None)?;
    let mut settlement = Settlement::new(listener, record, verdict, rendezvous);
    Ok(Some(settlement.answer(limit_dur, interrupt)))
}
