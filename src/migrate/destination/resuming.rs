//! After the commit: the container is resumed, and the journal says whether it may have run.

use super::session::DestinationSession;
use super::{DestinationError, Host, RestoredContainer};
use crate::criu::NotResumed;
use crate::error::{Cause, chain};
use crate::migrate::wire::state::{Phase, Verdict};

type Running<H> = <<H as Host>::Held as RestoredContainer>::Running;

impl<H: Host> DestinationSession<H> {
    /// Resumes the held container.
    ///
    /// The phase `resuming` is on the disk before CRIU gets its yes at `post-restore`, which is its
    /// last question that counts. Later ones do not keep it: if this process dies, CRIU ignores
    /// that nobody answers `pre-resume`; if CRIU dies, the kernel releases the tasks that it traces
    /// (criu/cr-restore.c, CRIU 4.2). Whoever finds `committed` knows that nothing has executed,
    /// and whoever finds `resuming` does not know it.
    pub(super) fn resume(&mut self, held: H::Held) -> Result<Running<H>, NotResumed<Cause>> {
        let journal = &mut self.journal;
        let resumed = held.resume(|| Ok(journal.enter(Phase::Resuming)?));
        if let Err(NotResumed {
            may_have_run: false,
            ..
        }) = &resumed
            && self.journal.record().phase == Phase::Resuming
            && let Err(error) = self.journal.enter(Phase::Committed)
        {
            // If this process dies now, somebody has to find out by hand that it has not run.
            tracing::warn!("{}", chain(&error));
        }
        resumed
    }

    /// Restores the container from its images once more, and resumes it.
    pub(super) fn restore_again(&mut self) -> Result<Running<H>, NotResumed<Cause>> {
        let dump = self.dump();
        let restored = self.host.restore(&self.preamble, &dump);
        self.resume(restored.map_err(NotResumed::before)?)
    }

    /// Keeps everything from which the container can be restored, and tells a source that asks.
    pub(super) fn not_running(mut self, failed: NotResumed<Cause>) -> DestinationError {
        self.images.keep = true;
        self.keep_tree();
        let (container, images) = (self.preamble.container.clone(), self.dump());
        let source = failed.source;
        let error = if failed.may_have_run {
            let restore_spec = self
                .journal
                .record()
                .restore_spec
                .clone()
                .unwrap_or_default();
            DestinationError::MayHaveRun {
                command: restore_spec.command(&self.setup.root, &container, &images),
                container,
                images,
                source,
            }
        } else {
            DestinationError::NotStarted {
                container,
                images,
                source,
            }
        };
        let linger_dur = self.setup.linger_dur;
        // Not "running", upon which the source would remove the images: they may be needed.
        self.settlement(Verdict::Committed).answer(linger_dur, None);
        error
    }
}
