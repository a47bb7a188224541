//! The end that takes the container over.
//!
//! Each state is a type, and a transition consumes it: [`Receiving`], [`Verified`], [`Restored`] can be given up; [`Committed`] cannot. A receiver
//! that has given up says so in its journal and answers it to whoever asks, because the source may have sent a commit that never arrived: it may let
//! its container run again only on this word.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::Cause;
use super::chain;
use super::journal::{Journal, Start};
use super::lobby::Lobby;
use super::preamble::{Finding, Preamble, Severity, judge};
use super::progress::{Progress, milliseconds};
use super::protocol::{
    Commit, Findings, Kind, Message, Phase, Ready, RoundVerified, Running, Side, Verdict,
};
use super::rendezvous::Rendezvous;
use super::transport::{Channel, Patience, TransportError};
use crate::image::manifest::Manifest;
use crate::image::rounds;
use crate::sys::interrupt::Interrupt;

mod error;
mod host;
mod settlement;

pub use error::DestinationError;
pub use host::{Held, Host};
pub use settlement::Settlement;

use settlement::answer;

/// How long a message that needs no work at the other end may take.
const ANSWER_LIMIT_DUR: Duration = Duration::from_secs(30);
/// How often a restore is tried once the container is this host's.
const RESUME_ATTEMPTS: u32 = 3;

/// What a receiver was told.
#[derive(Debug)]
pub struct Setup {
    /// rcm's state directory.
    pub root: PathBuf,
    /// Which container.
    pub container: String,
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

/// What the states before the commit carry.
#[derive(Debug)]
struct Session<H> {
    setup: Setup,
    host: H,
    lobby: Lobby,
    channel: Channel,
    journal: Journal,
    preamble: Preamble,
    /// The migration's directory in the store.
    images: PathBuf,
    /// How many rounds of pre-copy are here and verified.
    rounds: u32,
    /// Keeps the secret's file until the migration has ended, for a source that asks again.
    _rendezvous: Rendezvous,
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
/// [`DestinationError::NotStarted`] after the commit; all others mean that the container is not here.
pub fn receive<H: Host, O: Write>(
    prepared: Prepared<H>,
    progress: &mut Progress<O>,
    interrupt: Option<&Interrupt>,
) -> Result<Arrived<<H::Held as Held>::Running>> {
    prepared
        .agree(progress, interrupt)?
        .verify(interrupt)?
        .restore(progress)?
        .await_commit(interrupt)?
        .resume(progress)
}

impl<H: Host> Prepared<H> {
    /// A receiver whose secret is in the store and whose port is open.
    #[must_use]
    pub fn new(setup: Setup, host: H, rendezvous: Rendezvous, lobby: Lobby) -> Self {
        Self {
            setup,
            host,
            lobby,
            rendezvous,
        }
    }

    /// Waits for a source with which nothing speaks against the migration. One that is refused may come again.
    ///
    /// # Errors
    /// [`TransportError::Interrupted`], errors of the journal.
    pub fn agree<O: Write>(
        mut self,
        progress: &mut Progress<O>,
        interrupt: Option<&Interrupt>,
    ) -> Result<Receiving<H>> {
        let patience = Patience::default().or_interrupt(interrupt);
        loop {
            let mut channel = self.lobby.admit(patience)?;
            let asked = channel.receive(
                &[Kind::Preamble, Kind::Inquiry],
                patience.at_most(ANSWER_LIMIT_DUR),
            );
            let preamble = match asked {
                Ok(Message::Preamble(preamble)) => *preamble,
                Ok(Message::Inquiry(inquiry)) => {
                    // Whoever has the secret of this receiver asks about a migration that it has not seen.
                    answer(&mut channel, inquiry.migration, Verdict::Unknown);
                    continue;
                }
                Err(error @ TransportError::Interrupted { .. }) => return Err(error.into()),
                Ok(_) => continue,
                Err(error) => {
                    progress.say(&chain(&error));
                    continue;
                }
            };
            match self.answer_preamble(&mut channel, &preamble, progress, patience) {
                Ok(true) => return self.begin(channel, preamble, progress),
                Ok(false) => {}
                Err(error @ TransportError::Interrupted { .. }) => return Err(error.into()),
                Err(error) => progress.say(&chain(&error)),
            }
        }
    }

    /// Returns whether the migration may begin.
    fn answer_preamble<O: Write>(
        &self,
        channel: &mut Channel,
        preamble: &Preamble,
        progress: &mut Progress<O>,
        patience: Patience,
    ) -> Result<bool, TransportError> {
        let findings = judge(preamble, &self.host.facts(), &self.host.inspect(preamble));
        for finding in &findings {
            progress.say(&format!("{}: {finding}", weight(finding)));
        }
        let refused = findings
            .iter()
            .any(|finding| finding.severity == Severity::Error);
        channel.send(
            &Message::Findings(Findings { findings }),
            patience.at_most(ANSWER_LIMIT_DUR),
        )?;
        if preamble.asks_only {
            progress.say(&format!(
                "{} only asked; waiting for the container",
                channel.peer()
            ));
        } else if refused {
            progress.say(&format!(
                "refused {}; waiting for the next attempt",
                channel.peer()
            ));
        }
        Ok(!refused && !preamble.asks_only)
    }

    fn begin<O: Write>(
        self,
        channel: Channel,
        preamble: Preamble,
        progress: &mut Progress<O>,
    ) -> Result<Receiving<H>> {
        progress.say(&format!("coming from {}", channel.peer()));
        let images = self.setup.image_path.join(preamble.migration.to_string());
        let journal = Journal::begin(
            &self.setup.root,
            Start {
                migration: preamble.migration,
                container: self.setup.container.clone(),
                side: Side::Destination,
                peer: channel.peer().to_owned(),
                images: images.clone(),
                acquaintance: Some(self.rendezvous.acquaintance()),
            },
        );
        let (journal, channel) = match journal {
            Ok(journal) => (journal, channel),
            Err(error) => {
                let mut channel = channel;
                channel.abort(&chain(&error));
                return Err(error.into());
            }
        };
        Ok(Receiving {
            session: Session {
                setup: self.setup,
                host: self.host,
                lobby: self.lobby,
                channel,
                journal,
                preamble,
                images,
                rounds: 0,
                _rendezvous: self.rendezvous,
            },
        })
    }
}

fn weight(finding: &Finding) -> &'static str {
    match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
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
                let error = self.session.was_aborted().unwrap_or(error);
                Err(self.session.give_up(error, || Ok(())))
            }
        }
    }
}

impl<H: Host> Verified<H> {
    /// Restores the container and holds it.
    ///
    /// # Errors
    /// The source is told and lets the container run on.
    pub fn restore<O: Write>(self, progress: &mut Progress<O>) -> Result<Restored<H>> {
        let Self {
            mut session,
            verify_dur,
        } = self;
        let began = Instant::now();
        let held = match session.host.restore(&session.preamble, &session.dump()) {
            Ok(held) => held,
            Err(source) => {
                let container = session.setup.container.clone();
                let error = DestinationError::Restore { container, source };
                let error = session.was_aborted().unwrap_or(error);
                return Err(session.give_up(error, || Ok(())));
            }
        };
        let restore_dur = began.elapsed();
        progress.lap_of("verify", verify_dur);
        progress.lap_of("restore", restore_dur);
        // Before "ready" leaves: from its arrival on the source may commit.
        let ready = Message::Ready(Ready {
            verify_us: micros(verify_dur),
            restore_us: micros(restore_dur),
        });
        let told = session
            .journal
            .enter(Phase::PeerReady)
            .map_err(DestinationError::from)
            .and_then(|()| {
                Ok(session
                    .channel
                    .send(&ready, Patience::within(ANSWER_LIMIT_DUR))?)
            });
        match told {
            Ok(()) => Ok(Restored { session, held }),
            Err(error) => Err(session.give_up(error, || held.discard())),
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
                let (error, mut settlement) = session.give_up_but_answer(error, || held.discard());
                if asks {
                    settlement.answer(linger_dur, interrupt);
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
    /// [`DestinationError::NotStarted`].
    pub fn resume<O: Write>(
        self,
        progress: &mut Progress<O>,
    ) -> Result<Arrived<<H::Held as Held>::Running>> {
        let Self {
            mut session,
            held,
            committed_at,
        } = self;
        let mut resumed = held.resume();
        for _ in 1..RESUME_ATTEMPTS {
            let Err(error) = &resumed else { break };
            progress.say(&format!(
                "could not be resumed ({}), restoring again",
                chain(&**error)
            ));
            resumed = session
                .host
                .restore(&session.preamble, &session.dump())
                .and_then(Held::resume);
        }
        let running = match resumed {
            Ok(running) => running,
            Err(source) => {
                let error = DestinationError::NotStarted {
                    container: session.setup.container.clone(),
                    images: session.dump(),
                    bundle: session.host.inspect(&session.preamble).bundle,
                    source,
                };
                let linger_dur = session.setup.linger_dur;
                session
                    .settlement(Verdict::Committed)
                    .answer(linger_dur, None);
                return Err(error);
            }
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

fn micros(dur: Duration) -> u64 {
    u64::try_from(dur.as_micros()).unwrap_or(u64::MAX)
}

impl<H: Host> Session<H> {
    fn patience<'a>(&self, interrupt: Option<&'a Interrupt>) -> Patience<'a> {
        Patience::within(self.setup.limit_dur).or_interrupt(interrupt)
    }

    /// The images of the final dump.
    fn dump(&self) -> PathBuf {
        rounds::directory(&self.images, self.rounds)
    }

    fn verify(&mut self, patience: Patience) -> Result<Duration> {
        loop {
            match self
                .channel
                .receive(&[Kind::Round, Kind::Shipped], patience)?
            {
                Message::Round(round) => {
                    let verify_dur = self.verify_images(round.number, &round.manifest)?;
                    self.rounds += 1;
                    let verified = Message::RoundVerified(RoundVerified {
                        verify_us: micros(verify_dur),
                    });
                    self.channel
                        .send(&verified, patience.at_most(ANSWER_LIMIT_DUR))?;
                }
                Message::Shipped(shipped) => {
                    let verify_dur = self.verify_images(shipped.number, &shipped.manifest)?;
                    self.journal.enter(Phase::Shipped)?;
                    patience.check()?;
                    return Ok(verify_dur);
                }
                _ => unreachable!("only rounds and shipped were allowed"),
            }
        }
    }

    /// Compares the next images of the chain with what the source wrote.
    fn verify_images(&self, number: u32, manifest: &Manifest) -> Result<Duration> {
        if number != self.rounds {
            return Err(DestinationError::WrongRound {
                number,
                expected: self.rounds,
            });
        }
        let began = Instant::now();
        rounds::check_link(&self.images, number)
            .map_err(|source| DestinationError::Chain { source })?;
        manifest
            .verify(&rounds::directory(&self.images, number))
            .map_err(|source| DestinationError::Images { source })?;
        Ok(began.elapsed())
    }

    /// Returns when the commit came. It is in the journal then.
    fn await_commit(&mut self, patience: Patience) -> Result<Instant> {
        let commit: Commit = self.channel.expect(patience)?;
        let committed_at = Instant::now();
        if commit.migration != self.preamble.migration {
            return Err(DestinationError::WrongMigration {
                migration: commit.migration,
            });
        }
        self.journal.enter(Phase::Committed)?;
        Ok(committed_at)
    }

    /// The source's reason, if it has ended the migration meanwhile: it removes the images then, and that they are missing explains nothing.
    fn was_aborted(&mut self) -> Option<DestinationError> {
        let now = Patience::within(Duration::ZERO);
        match self.channel.receive(&[], now) {
            Err(error @ TransportError::Aborted { .. }) => Some(error.into()),
            _ => None,
        }
    }

    /// Ends the migration: destroys what was restored and tells the source.
    fn give_up(
        self,
        error: DestinationError,
        discard: impl FnOnce() -> Result<(), Cause>,
    ) -> DestinationError {
        self.give_up_but_answer(error, discard).0
    }

    fn give_up_but_answer(
        mut self,
        error: DestinationError,
        discard: impl FnOnce() -> Result<(), Cause>,
    ) -> (DestinationError, Settlement) {
        let reason = chain(&error);
        // Destroyed first: "rolled back" must be true when it is said.
        if let Err(error) = discard() {
            tracing::warn!("{}", chain(&*error));
        }
        let recorded = self.journal.roll_back(&reason);
        if let Err(error) = &recorded {
            tracing::warn!("{}", chain(error));
        }
        self.channel.abort(&reason);
        (error, self.settlement(Verdict::RolledBack))
    }

    fn settlement(self, verdict: Verdict) -> Settlement {
        Settlement {
            lobby: self.lobby,
            channel: Some(self.channel),
            images: self.images,
            migration: self.preamble.migration,
            verdict,
            _rendezvous: self._rendezvous,
        }
    }
}
