//! Rehearsal: a migration that ends before the commit.

use super::session::DestinationSession;
use super::{DestinationError, Host, Prepared, Receiving, RestoredContainer, Result};
use crate::error::chain;
use crate::migrate::link::channel::{Patience, TransportError};
use crate::migrate::progress::Progress;
use crate::sys::interrupt::Interrupt;

impl<H: Host> Receiving<H> {
    /// Returns whether the source has announced a rehearsal. Then no commit is accepted.
    #[must_use]
    pub fn is_rehearsal(&self) -> bool {
        self.session.preamble.rehearses
    }

    /// Restores the container, holds it until the source ends the rehearsal, and destroys it. The
    /// source reports the result.
    ///
    /// # Errors
    /// Only [`TransportError::Interrupted`] ends the receiver.
    pub fn rehearse(
        self,
        progress: &mut Progress,
        interrupt: Option<&Interrupt>,
    ) -> Result<Prepared<H>> {
        let mut session = self.session;
        let patience = Patience::default().or_interrupt(interrupt);
        let held = session
            .verify(patience)
            .and_then(|verify_dur| session.hold(verify_dur, progress));
        let ended = held.and_then(|held| {
            let patience = session.patience(interrupt);
            let ended = session.await_end(patience);
            held.discard()
                .map_err(|source| DestinationError::Restore {
                    container: session.preamble.container.clone(),
                    source,
                })
                .and(ended)
        });
        match ended {
            Ok(()) => {
                // The source waits for this message: after it, no part of the container is left
                // here.
                session.channel.abort("the rehearsal is over");
                progress.say("rehearsed; waiting for the container");
                Ok(session.end_rehearsal("it was a rehearsal"))
            }
            Err(error @ DestinationError::Transport(TransportError::Interrupted { .. })) => {
                Err(session.give_up(error, || Ok(())))
            }
            Err(error) => {
                let failed = session.tree_failure().or_else(|| session.was_aborted());
                let reason = chain(&failed.unwrap_or(error));
                progress.say(&format!(
                    "the rehearsal failed: {reason}; waiting for the container"
                ));
                session.channel.abort(&reason);
                Ok(session.end_rehearsal(&reason))
            }
        }
    }
}

impl<H: Host> DestinationSession<H> {
    /// Waits for the source to end the rehearsal.
    fn await_end(&mut self, patience: Patience) -> Result<()> {
        match self.channel.receive(&[], patience) {
            Err(TransportError::Aborted { .. }) | Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn end_rehearsal(mut self, reason: &str) -> Prepared<H> {
        if let Err(error) = self.journal.roll_back(reason) {
            tracing::warn!("{}", chain(&error));
        }
        Prepared {
            setup: self.setup,
            host: self.host,
            listener: self.listener,
            rendezvous: self.rendezvous,
        }
    }
}
