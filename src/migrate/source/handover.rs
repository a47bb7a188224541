//! After the commit: whose is the container?

use std::time::{Duration, Instant};

use super::{ANSWER_LIMIT_DUR, Committing, Failure, Fence, Fenced, HandedOff, SourceError};
use crate::error::{Cause, chain};
use crate::migrate::link::channel::{Patience, TransportError};
use crate::migrate::unix_sockets;
use crate::migrate::wire::payload::{Running, Settled};
use crate::migrate::wire::protocol::Message;
use crate::migrate::wire::state::{Phase, Verdict};

/// The pause between two questions after a commit without an answer.
const ASK_AGAIN_DUR: Duration = Duration::from_millis(500);

/// The destination's word that it will never run the container.
#[derive(Debug)]
pub struct Returned(());

impl<'a, F: Fence> Committing<'a, F> {
    /// Waits for the destination's word, asking again when the connection is lost.
    ///
    /// # Errors
    /// [`Failure::NotSettled`] when there is none in time, [`Failure::RunsOn`] when the destination gives the container back.
    pub fn settle(mut self) -> Result<HandedOff<'a, F>, Failure> {
        let deadline = Instant::now() + self.fenced.session.plan.settle_limit_dur;
        let mut last = match self.first_answer() {
            Ok(()) => return Ok(self.handed_off()),
            // Only a destination that has not committed, and therefore never will, aborts.
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
                    "not {error}: the container was given away, and where it runs must be settled"
                ));
            }
            match self.fenced.session.ask() {
                Ok(Verdict::Running) => return Ok(self.handed_off()),
                Ok(Verdict::RolledBack) => {
                    return Err(self.returned(Returned(()), SourceError::Returned));
                }
                // It has the container and works on it, or is not the receiver that would know.
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

    /// The one way back: the destination has said that it will never run the container.
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
        let recorded = (session.journal.enter(Phase::Committed))
            .and_then(|()| session.journal.keep(&plan.root));
        let finished = fenced.finish();
        unix_sockets::forget(session.names.list());
        session.images.keep = false;
        let settled = Message::Settled(Settled {
            migration: plan.offer.migration,
        });
        // The destination stops waiting for it after a while.
        let _ = session
            .channel
            .send(&settled, Patience::within(ANSWER_LIMIT_DUR));
        let remains = |source: Cause| Failure::Remains {
            container: plan.offer.container.clone(),
            peer: plan.destination.to_string(),
            source,
        };
        finished.map_err(remains)?;
        // Before the last word: who is killed now leaves a record by which `--resolve` removes them.
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
