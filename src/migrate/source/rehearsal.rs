//! A migration that is only rehearsed: everything but the commit.

use super::{Failure, Fence, Fenced, Plan, Workload, up_to_the_commit};
use crate::error::chain;
use crate::migrate::progress::Progress;
use crate::sys::interrupt::Interrupt;
use crate::text::milliseconds;

/// Does everything up to the commit, and lets the container run on. The plan's preamble has told the destination.
///
/// # Errors
/// As a migration's before the commit.
pub fn rehearse<W: Workload>(
    plan: &Plan,
    workload: W,
    progress: &mut Progress,
    interrupt: Option<&Interrupt>,
) -> Result<(), Failure> {
    up_to_the_commit(plan, workload, progress, interrupt)?.end_rehearsal()
}

impl<F: Fence> Fenced<'_, F> {
    /// Lets the container run on, and says how long a migration would have stopped it: until now, and for the commit to get there and its
    /// answer to come back.
    fn end_rehearsal(self) -> Result<(), Failure> {
        let Self {
            mut session,
            fenced,
            stopped_at,
        } = self;
        let predicted_dur = stopped_at.elapsed() + session.round_trip_dur;
        session.names.put_back();
        let released = fenced.release();
        let stood_still_dur = stopped_at.elapsed();
        let plan = session.plan;
        session.channel.abort("the rehearsal is over");
        session.settle_names(false);
        if let Err(error) = session.journal.roll_back("it was a rehearsal") {
            tracing::warn!("{}", chain(&error));
        }
        released.map_err(|source| Failure::Stands {
            container: plan.offer.container.clone(),
            reason: "it was a rehearsal".into(),
            source,
        })?;
        drop(session.images);
        let report = session.progress.report_mut();
        report.downtime_dur = Some(stood_still_dur);
        report.predicted_dur = Some(predicted_dur);
        session.progress.say(&format!(
            "rehearsed with {}: predicted downtime {}; it stood still for {} and runs on here",
            plan.destination,
            milliseconds(predicted_dur),
            milliseconds(stood_still_dur)
        ));
        Ok(())
    }
}
