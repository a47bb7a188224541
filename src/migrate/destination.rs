//! The destination: the host that takes the container over.
//!
//! Each state is a type, and a transition consumes it. [`Receiving`], [`Verified`] and [`Restored`]
//! can roll back; [`Committed`] cannot. A receiver that has rolled back writes that to its journal
//! and answers it to a source that asks. The source may have sent a commit that never arrived, and
//! only this answer lets it run its container again.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::link::channel::{Patience, TransportError};
use super::link::listener::Listener;
use super::progress::Progress;
use super::record::journal;
use super::trust::rendezvous::Rendezvous;
use super::wire::payload::Running;
use super::wire::protocol::Message;
use super::wire::state::{Phase, Verdict};
use crate::criu::NotResumed;
use crate::error::chain;
use crate::migrate::limits::{ANSWER_LIMIT_DUR, RESUME_ATTEMPTS};
use crate::sys::interrupt::Interrupt;
use crate::text::milliseconds;

mod agree;
mod error;
mod host;
mod rehearsal;
mod resuming;
mod session;
mod settlement;

pub use error::DestinationError;
pub use host::{Host, RestoredContainer};
pub use settlement::Settlement;

use session::{DestinationSession, micros};

/// Parameters of a receiver.
#[derive(Debug)]
pub struct Setup {
    /// rcm's state directory.
    pub root: PathBuf,
    /// Path of the image store.
    pub image_path: PathBuf,
    /// Time that the source may take from the last images to the commit. Rounds before them have no
    /// limit.
    pub limit_dur: Duration,
    /// Time for which a receiver that rolled back stays to answer a source whose commit may be on
    /// the way.
    pub linger_dur: Duration,
}

type Result<T, E = DestinationError> = std::result::Result<T, E>;

/// State: the receiver waits for a source.
#[derive(Debug)]
pub struct Prepared<H> {
    setup: Setup,
    host: H,
    listener: Listener,
    rendezvous: Rendezvous,
}

/// State: both ends agreed; the source copies and dumps the container.
#[derive(Debug)]
pub struct Receiving<H> {
    session: DestinationSession<H>,
}

/// State: the images are complete and equal to the source's.
#[derive(Debug)]
pub struct Verified<H> {
    session: DestinationSession<H>,
    verify_dur: Duration,
}

/// State: the container is restored and held; it has not executed.
#[derive(Debug)]
pub struct Restored<H: Host> {
    session: DestinationSession<H>,
    held: H::Held,
}

/// State: the commit has arrived, and the container belongs to this host.
#[derive(Debug)]
#[must_use = "only this end may resume the container"]
pub struct Committed<H: Host> {
    session: DestinationSession<H>,
    held: H::Held,
    committed_at: Instant,
}

/// State: the container runs here.
#[derive(Debug)]
pub struct Arrived<R> {
    /// The running container.
    pub running: R,
    /// Answers a source that does not know it yet.
    pub settlement: Settlement,
}

/// Waits for the container, restores it and resumes it.
///
/// A signal in `interrupt` ends the migration until the commit.
///
/// # Errors
/// [`DestinationError::NotStarted`] and [`DestinationError::MayHaveRun`] after the commit. After
/// every other error the container is not here.
pub fn receive<H: Host>(
    prepared: Prepared<H>,
    progress: &mut Progress,
    interrupt: Option<&Interrupt>,
) -> Result<Arrived<<H::Held as RestoredContainer>::Running>> {
    let mut receiving = prepared.agree(progress, interrupt)?;
    while receiving.is_rehearsal() {
        receiving = receiving
            .rehearse(progress, interrupt)?
            .agree(progress, interrupt)?;
    }
    receiving
        .verify(interrupt)?
        .restore(progress)?
        .await_commit(interrupt)?
        .resume(progress)
}

impl<H: Host> Receiving<H> {
    /// Waits for the images of all rounds and of the final dump, and compares them with the
    /// source's.
    ///
    /// # Errors
    /// The source is told, and resumes the container.
    pub fn verify(mut self, interrupt: Option<&Interrupt>) -> Result<Verified<H>> {
        // No deadline: a round takes as long as the memory is large. If the source dies, the
        // connection ends.
        let patience = Patience::default().or_interrupt(interrupt);
        match self.session.verify(patience) {
            Ok(verify_dur) => Ok(Verified {
                session: self.session,
                verify_dur,
            }),
            Err(error) => {
                let failed = self.session.tree_failure();
                let aborted = failed.or_else(|| self.session.was_aborted());
                Err(self.session.give_up(aborted.unwrap_or(error), || Ok(())))
            }
        }
    }
}

impl<H: Host> Verified<H> {
    /// Restores the container and holds it before its first instruction.
    ///
    /// # Errors
    /// The source is told, and resumes the container.
    pub fn restore(self, progress: &mut Progress) -> Result<Restored<H>> {
        let Self {
            mut session,
            verify_dur,
        } = self;
        match session.hold(verify_dur, progress) {
            Ok(held) => Ok(Restored { session, held }),
            Err(error) => Err(session.give_up(error, || Ok(()))),
        }
    }
}

impl<H: Host> Restored<H> {
    /// Waits for the commit.
    ///
    /// # Errors
    /// The restored container is destroyed. A source that has committed learns this when it asks.
    pub fn await_commit(self, interrupt: Option<&Interrupt>) -> Result<Committed<H>> {
        let Self { mut session, held } = self;
        let patience = session.patience(interrupt);
        let received = session.await_commit(patience);
        match received {
            Ok(committed_at) => Ok(Committed {
                session,
                held,
                committed_at,
            }),
            Err(error) => {
                // A source that has aborted has not sent a commit and will not ask.
                let asks = !matches!(
                    error,
                    DestinationError::Transport(TransportError::Aborted { .. })
                );
                let linger_dur = session.setup.linger_dur;
                let (root, container) = (
                    session.setup.root.clone(),
                    session.preamble.container.clone(),
                );
                let (error, mut settlement) = session.give_up_but_answer(error, || held.discard());
                if !asks || settlement.answer(linger_dur, interrupt) {
                    let migration = settlement.migration();
                    if let Err(error) = journal::forget_receiver(&root, migration, &container) {
                        tracing::warn!("{}", chain(&error));
                    }
                }
                Err(error)
            }
        }
    }
}

impl<H: Host> Committed<H> {
    /// Resumes the container and tells the source. If the held container fails, it is restored from
    /// its images again.
    ///
    /// # Errors
    /// [`DestinationError::NotStarted`], [`DestinationError::MayHaveRun`].
    pub fn resume(
        self,
        progress: &mut Progress,
    ) -> Result<Arrived<<H::Held as RestoredContainer>::Running>> {
        let Self {
            mut session,
            held,
            committed_at,
        } = self;
        let mut resumed = session.resume(held);
        for _ in 1..RESUME_ATTEMPTS {
            // What may have run would do the same work twice.
            let Err(NotResumed {
                may_have_run: false,
                source,
            }) = &resumed
            else {
                break;
            };
            progress.say(&format!(
                "could not be resumed ({}), restoring again",
                chain(&**source)
            ));
            resumed = session.restore_again();
        }
        let running = match resumed {
            Ok(running) => running,
            Err(failed) => return Err(session.not_running(failed)),
        };
        let resume_dur = committed_at.elapsed();
        let message = Message::Running(Running {
            resume_us: micros(resume_dur),
        });
        // A source that misses this message asks, and the settlement answers.
        let told = session
            .channel
            .send(&message, Patience::within(ANSWER_LIMIT_DUR));
        progress.lap_of("resume", resume_dur);
        if let Err(error) = told {
            progress.say(&format!(
                "the source does not know yet that it runs here: {}",
                chain(&error)
            ));
        }
        // Removing the old tree may take long, so the container runs and the source knows it first.
        session.keep_tree();
        if let Err(error) = session.journal.enter(Phase::Done) {
            tracing::warn!("{}", chain(&error));
        }
        progress.say(&format!(
            "runs here, total {}",
            milliseconds(progress.total_dur())
        ));
        Ok(Arrived {
            running,
            settlement: session.settlement(Verdict::Running),
        })
    }
}
