//! Rehearsal: a migration that ends before the commit.

use super::{Failure, Fence, Fenced, Plan, Workload, up_to_the_commit};
use crate::error::chain;
use crate::migrate::progress::Progress;
use crate::sys::interrupt::Interrupt;
use crate::text::milliseconds;

/// Does everything up to the commit, then resumes the container. The plan's preamble has announced
/// the rehearsal to the destination.
///
/// # Errors
/// As [`migrate`](super::migrate) before the commit.
pub fn rehearse<W: Workload>(
    plan: &Plan,
    workload: W,
    progress: &mut Progress,
    interrupt: Option<&Interrupt>,
) -> Result<(), Failure> {
    up_to_the_commit(plan, workload, progress, interrupt)?.end_rehearsal()
}

impl<F: Fence> Fenced<'_, F> {
    /// Resumes the container and prints the predicted downtime: the time until now, plus a round
    /// trip for the commit and its answer.
    fn end_rehearsal(self) -> Result<(), Failure> {
        let Self {
            mut session,
            fenced,
            stopped_at,
        } = self;
        let predicted_dur = stopped_at.elapsed() + session.round_trip_dur;
        // The files of the sockets come back before the container runs: it may connect to them.
        session.names.put_back();
        let released = fenced.release();
        let frozen_dur = stopped_at.elapsed();
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
        report.downtime_dur = Some(frozen_dur);
        report.predicted_dur = Some(predicted_dur);
        session.progress.say(&format!(
            "rehearsed with {}: predicted downtime {}; it was frozen for {} and runs on here",
            plan.destination,
            milliseconds(predicted_dur),
            milliseconds(frozen_dur)
        ));
        Ok(())
    }
}
