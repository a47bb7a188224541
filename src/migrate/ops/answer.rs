//! Answering a source in the place of a receiver that has died.
//!
//! A source that gave its container away and got no answer asks the receiver, and looks for its verdict in the store. Where the ends share no store there
//! is only the receiver; when that is dead too, `--resolve` at the destination settles what is there and then listens for a while, where the
//! receiver did and with its certificate, which the source has pinned. So the journal of such a migration holds what makes the receiver.

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

/// Nobody can be answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AnsweringError {
    /// The receiver's certificate cannot be used any more.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// Its port cannot.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// Its file cannot be left.
    #[error(transparent)]
    Rendezvous(#[from] RendezvousError),
    /// The ssh helpers cannot be told.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Answers the source of `record`, at most for `limit_dur`. Returns whether the source has taken note, or `None` where nobody needs to be answered so.
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
