//! The time after the commit was sent: the source learns where the container runs.

use std::time::{Duration, Instant};

use super::{Committing, Failure, Fence, Fenced, HandedOff, SourceError};
use crate::error::{Cause, chain};
use crate::migrate::limits::{ANSWER_LIMIT_DUR, ASK_AGAIN_DUR};
use crate::migrate::link::channel::{Patience, TransportError};
use crate::migrate::unix_sockets;
use crate::migrate::wire::payload::{Running, Settled};
use crate::migrate::wire::protocol::Message;
use crate::migrate::wire::state::{Phase, Verdict};

/// Proof that the destination has answered that it will never run the container.
#[derive(Debug)]
pub struct Returned(());

impl<'a, F: Fence> Committing<'a, F> {
    /// Waits for the destination's answer, and asks again if the connection is lost.
    ///
    /// # Errors
    /// [`Failure::NotSettled`] if there is no answer in time, [`Failure::RunsOn`] if the
    /// destination has rolled back.
    pub fn settle(mut self) -> Result<HandedOff<'a, F>, Failure> {
        let deadline = Instant::now() + self.fenced.session.plan.settle_limit_dur;
        let mut last = match self.first_answer() {
            Ok(()) => return Ok(self.handed_off()),
            // Only a destination that has not committed aborts, and it has written "rolled back" to
            // its journal first: so it never will commit, and the container may run here.
            Err(error @ TransportError::Aborted { .. }) => {
                return Err(self.returned(Returned(()), error.into()));
            }
            Err(error) => error,
        };
        self.fenced.session.progress.say(&format!(
            "the commit was not answered ({}); asking again",
            chain(&last)
        ));
        let mut signalled = false;
        while Instant::now() < deadline {
            if !signalled && let Err(error) = self.fenced.session.patience.check() {
                signalled = true;
                self.fenced.session.progress.say(&format!(
                    "not {error}: the commit was sent, and it must be settled where the container runs"
                ));
            }
            match self.fenced.session.ask() {
                Ok(Verdict::Running) => return Ok(self.handed_off()),
                Ok(Verdict::RolledBack) => {
                    return Err(self.returned(Returned(()), SourceError::Returned));
                }
                // "Committed": the destination has the container and is about to run it. "Unknown":
                // this receiver is not the one that would know. Neither allows a rollback.
                Ok(Verdict::Committed | Verdict::Unknown) => {}
                Err(error) => last = error,
            }
            std::thread::sleep(ASK_AGAIN_DUR);
        }
        let session = &self.fenced.session;
        let failure = Failure::NotSettled {
            container: session.plan.offer.container.clone(),
            peer: session.plan.destination.to_string(),
            source: Box::new(last.into()),
        };
        // Without an answer the container stays frozen: resuming it could make a second running
        // copy.
        self.fenced.fenced.leave();
        Err(failure)
    }

    fn first_answer(&mut self) -> Result<(), TransportError> {
        std::mem::replace(&mut self.sent, Ok(()))?;
        let session = &mut self.fenced.session;
        let running: Running = session.channel.expect(Patience::within(ANSWER_LIMIT_DUR))?;
        session.progress.report_mut().freeze.resume_dur =
            Some(Duration::from_micros(running.resume_us));
        Ok(())
    }

    fn handed_off(self) -> HandedOff<'a, F> {
        let downtime_dur = self.fenced.stopped_at.elapsed();
        let fenced = self.fenced;
        fenced.session.progress.lap("commit", self.sent_at);
        fenced.session.progress.report_mut().downtime_dur = Some(downtime_dur);
        HandedOff { fenced }
    }

    /// Rolls back. This is the only way back after the commit; `_proof` shows that the destination
    /// allows it.
    fn returned(self, _proof: Returned, cause: SourceError) -> Failure {
        let mut fenced = self.fenced;
        fenced.session.images.keep = false;
        fenced.roll_back(cause)
    }
}

impl<F: Fence> HandedOff<'_, F> {
    /// Removes the container from this host and tells the destination.
    ///
    /// # Errors
    /// [`Failure::Remains`].
    pub fn finish(self) -> Result<(), Failure> {
        let Fenced {
            mut session,
            fenced,
            ..
        } = self.fenced;
        let began = Instant::now();
        session.progress.begin("clean up");
        let plan = session.plan;
        // The record says that the container has moved before the tasks are killed: after a crash
        // `--resolve` removes the rest and does not ask the destination again. It is kept outside
        // of the container's own directory, which `finish` removes.
        let recorded = (session.journal.enter(Phase::Committed))
            .and_then(|()| session.journal.move_to_kept(&plan.root));
        let finished = fenced.finish();
        unix_sockets::forget(session.names.list());
        session.images.keep = false;
        let settled = Message::Settled(Settled {
            migration: plan.offer.migration,
        });
        // An error does not matter: the destination stops waiting for this message after a while.
        let _ = session
            .channel
            .send(&settled, Patience::within(ANSWER_LIMIT_DUR));
        let remains = |source: Cause| Failure::Remains {
            container: plan.offer.container.clone(),
            peer: plan.destination.to_string(),
            source,
        };
        finished.map_err(remains)?;
        // The images go before the record says "done": if rcm is killed in between, `--resolve`
        // finds the record and removes the images.
        drop(session.images);
        recorded
            .and_then(|()| session.journal.enter(Phase::Done))
            .map_err(|error| remains(error.into()))?;
        session.progress.lap("clean up", began);
        let total_dur = session.progress.total_dur();
        let summary = session.progress.report().summary(total_dur);
        session.progress.say(&summary);
        Ok(())
    }
}
