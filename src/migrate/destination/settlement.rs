//! Answers to a source that does not know how its migration has ended.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::chain;
use crate::migrate::limits::ANSWER_LIMIT_DUR;
use crate::migrate::link::channel::{Channel, Patience};
use crate::migrate::link::listener::Listener;
use crate::migrate::record::journal::JournalRecord;
use crate::migrate::record::verdict;
use crate::migrate::trust::rendezvous::Rendezvous;
use crate::migrate::wire::id::MigrationId;
use crate::migrate::wire::payload::{Answer, Inquiry, Settled};
use crate::migrate::wire::protocol::Message;
use crate::migrate::wire::state::Verdict;
use crate::sys::interrupt::Interrupt;

/// Answers a source that does not know how its migration ended.
#[derive(Debug)]
pub struct Settlement {
    pub(super) listener: Listener,
    pub(super) channel: Option<Channel>,
    pub(super) images: PathBuf,
    pub(super) migration: MigrationId,
    pub(super) verdict: Verdict,
    pub(super) _rendezvous: Rendezvous,
}

impl Settlement {
    /// Returns the settlement of a receiver that has died, for the process that replaces it.
    #[must_use]
    pub fn new(
        listener: Listener,
        record: &JournalRecord,
        verdict: Verdict,
        rendezvous: Rendezvous,
    ) -> Self {
        Self {
            listener,
            channel: None,
            images: record.images.clone(),
            migration: record.migration,
            verdict,
            _rendezvous: rendezvous,
        }
    }

    /// Returns the id of the migration.
    #[must_use]
    pub const fn migration(&self) -> MigrationId {
        self.migration
    }

    /// Waits until the source has confirmed that it knows the verdict, for at most `limit_dur`.
    /// Returns whether it has.
    pub fn answer(&mut self, limit_dur: Duration, interrupt: Option<&Interrupt>) -> bool {
        let patience = Patience::within(limit_dur).or_interrupt(interrupt);
        if self.verdict == Verdict::Running
            && let Some(channel) = &mut self.channel
            && channel.expect::<Settled>(patience).is_ok()
        {
            return true;
        }
        // From here on the source asks on a new connection or, if no process listens here any more,
        // looks into the store.
        self.channel = None;
        if self.images.is_dir()
            && let Err(error) = verdict::write(&self.images, self.migration, self.verdict)
        {
            tracing::debug!("{}", chain(&error));
        }
        loop {
            match self.listener.admit(patience) {
                Ok(mut channel) => {
                    if self.answer_one(&mut channel, patience) {
                        return true;
                    }
                }
                Err(_) => return false,
            }
        }
    }

    fn answer_one(&mut self, channel: &mut Channel, patience: Patience) -> bool {
        let patience = patience.at_most(ANSWER_LIMIT_DUR);
        match channel.expect::<Inquiry>(patience) {
            Ok(inquiry) if inquiry.migration == self.migration => {
                answer(channel, self.migration, self.verdict);
                match self.verdict {
                    Verdict::Running => channel.expect::<Settled>(patience).is_ok(),
                    // The source acts on this answer without confirming it.
                    Verdict::RolledBack => true,
                    Verdict::Committed | Verdict::Unknown => false,
                }
            }
            Ok(inquiry) => {
                answer(channel, inquiry.migration, Verdict::Unknown);
                false
            }
            Err(_) => false,
        }
    }
}

pub(super) fn answer(channel: &mut Channel, migration: MigrationId, verdict: Verdict) {
    let message = Message::Answer(Answer { migration, verdict });
    // If the answer is lost, the source asks again.
    let _ = channel.send(&message, Patience::within(ANSWER_LIMIT_DUR));
}
