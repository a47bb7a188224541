//! The end that takes the container over.
//!
//! Each state is a type, and a transition consumes it: [`Receiving`], [`Verified`], [`Restored`] can be given up; [`Committed`] cannot. A receiver
//! that has given up says so in its journal and answers it to whoever asks, because the source may have sent a commit that never arrived: it may let
//! its container run again only on this word.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::link::channel::{Patience, TransportError};
use super::link::listener::Lobby;
use super::progress::Progress;
use super::record::journal;
use super::trust::rendezvous::Rendezvous;
use super::wire::payload::Running;
use super::wire::protocol::Message;
use super::wire::state::{Phase, Verdict};
use crate::criu::NotResumed;
use crate::error::chain;
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
pub use host::{Held, Host};
pub use settlement::Settlement;

use session::{Session, micros};

/// How long a message that needs no work at the other end may take.
const ANSWER_LIMIT_DUR: Duration = Duration::from_secs(30);
/// How often a restore is tried once the container is this host's.
const RESUME_ATTEMPTS: u32 = 3;

/// What a receiver was told.
#[derive(Debug)]
pub struct Setup {
    /// rcm's state directory.
    pub root: PathBuf,
    /// The image store.
    pub image_path: PathBuf,
    /// How long the source may take from the last images to the commit; rounds before them take as long as they take.
    pub limit_dur: Duration,
    /// How long a receiver that gave up with a commit possibly on the way stays to say so.
    pub linger_dur: Duration,
}

type Result<T, E = DestinationError> = std::result::Result<T, E>;

/// A receiver that nobody has come to yet.
#[derive(Debug)]
pub struct Prepared<H> {
    setup: Setup,
    host: H,
    lobby: Lobby,
    rendezvous: Rendezvous,
}

/// The ends agreed; the source stops and dumps.
#[derive(Debug)]
pub struct Receiving<H> {
    session: Session<H>,
}

/// The images are those that the source wrote.
#[derive(Debug)]
pub struct Verified<H> {
    session: Session<H>,
    verify_dur: Duration,
}

/// The container is restored and held.
#[derive(Debug)]
pub struct Restored<H: Host> {
    session: Session<H>,
    held: H::Held,
}

/// The container is this host's.
#[derive(Debug)]
#[must_use = "nobody else will let the container run"]
pub struct Committed<H: Host> {
    session: Session<H>,
    held: H::Held,
    committed_at: Instant,
}

/// The container runs here.
#[derive(Debug)]
pub struct Arrived<R> {
    /// What the host made of it.
    pub running: R,
    /// For a source that has not heard it yet.
    pub settlement: Settlement,
}

/// Waits for the container and takes it.
///
/// `interrupt` is heeded until the commit.
///
/// # Errors
/// [`DestinationError::NotStarted`] and [`DestinationError::MayHaveRun`] after the commit; all others mean that the container is not here.
pub fn receive<H: Host>(
    prepared: Prepared<H>,
    progress: &mut Progress,
    interrupt: Option<&Interrupt>,
) -> Result<Arrived<<H::Held as Held>::Running>> {
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
    /// Waits for the images, those of any rounds first, and compares them with what the source wrote.
    ///
    /// # Errors
    /// The source is told and lets the container run on.
    pub fn verify(mut self, interrupt: Option<&Interrupt>) -> Result<Verified<H>> {
        // Rounds take as long as the memory is large. A source that is gone is noticed without a deadline, too.
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
    /// Restores the container and holds it.
    ///
    /// # Errors
    /// The source is told and lets the container run on.
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
    /// The restored container is destroyed. A source that did commit learns it when it asks.
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
                // A source that says itself that it does not commit will not ask.
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
    /// Lets the container run, from its images once more if the held one fails, and tells the source.
    ///
    /// # Errors
    /// [`DestinationError::NotStarted`], [`DestinationError::MayHaveRun`].
    pub fn resume(self, progress: &mut Progress) -> Result<Arrived<<H::Held as Held>::Running>> {
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
        // A source that does not hear it asks; the settlement answers.
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
