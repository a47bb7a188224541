//! The end that gives the container away.
//!
//! Each state is a type, and a transition consumes it. `roll_back` exists on [`Stopped`], which the states that CRIU alone holds share, and
//! on [`Fenced`]; [`Committing`] has none. The one way back from there takes a [`Returned`], and only the destination's word that it will
//! never run the container makes one.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::address::Destination;
use super::handshake::connect;
use super::journal::{Journal, Start};
use super::preamble::{Finding, Preamble, Severity};
use super::precopy::Limits;
use super::progress::{Progress, bytes, milliseconds};
use super::protocol::{Commit, Findings, Message, Phase, Running, Settled, Side, Verdict};
use super::rendezvous::Acquaintance;
use super::transport::{Channel, Patience, TransportError};
use super::trust::Trust;
use super::{Cause, chain, preflight, rendezvous};
use crate::image::manifest::Manifest;
use crate::sys::interrupt::Interrupt;

mod copying;
mod error;
mod session;
mod workload;

pub use copying::PreCopying;
pub use error::{Failure, SourceError};
pub use session::ask;
pub use workload::{Fence, Held, Workload};

use copying::PreCopied;
use session::{Images, Session, images_path};

/// How long a message that needs no work at the other end may take.
const ANSWER_LIMIT_DUR: Duration = Duration::from_secs(30);
/// The pause between two questions after a commit without an answer.
const ASK_AGAIN_DUR: Duration = Duration::from_millis(500);

/// What is to be done.
#[derive(Debug)]
pub struct Plan {
    /// rcm's state directory.
    pub root: PathBuf,
    /// Where to.
    pub destination: Destination,
    /// Whom to take for the destination.
    pub trust: Trust,
    /// The image store.
    pub image_path: PathBuf,
    /// What the destination is told.
    pub preamble: Preamble,
    /// What this end has found itself.
    pub findings: Vec<Finding>,
    /// Whether memory is copied while the container runs, and for how long.
    pub pre_copy: Option<Limits>,
    /// How long the container may stand still before it is let go again.
    pub freeze_limit_dur: Duration,
    /// How long an unanswered commit is asked about.
    pub settle_limit_dur: Duration,
}

/// How a migration went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// From the container's last instruction here to the arrival of the destination's word that it runs there.
    pub downtime_dur: Duration,
    /// From the command to the end.
    pub total_dur: Duration,
    /// The downtime that was predicted just before the freeze, by pre-copy.
    pub predicted_dur: Option<Duration>,
    /// How many rounds of memory were copied before the freeze.
    pub rounds: u32,
    /// The size of their images.
    pub rounds_bytes: u64,
    /// The size of the images that were written after the freeze.
    pub images_bytes: u64,
}

impl Report {
    fn summary(&self, plan: &Plan) -> String {
        let predicted = self.predicted_dur.map_or(String::new(), |predicted_dur| {
            format!(" (predicted {})", milliseconds(predicted_dur))
        });
        let before = match self.rounds {
            0 => String::new(),
            rounds => format!(
                " after {} in {rounds} rounds while it ran",
                bytes(self.rounds_bytes)
            ),
        };
        format!(
            "moved to {}: downtime {}{predicted}, total {}, images {}{before}",
            plan.destination,
            milliseconds(self.downtime_dur),
            milliseconds(self.total_dur),
            bytes(self.images_bytes)
        )
    }
}

/// Moves the container.
///
/// `interrupt` is heeded until the commit.
///
/// # Errors
/// [`Failure`] says what became of the container.
pub fn migrate<W: Workload, O: Write>(
    plan: &Plan,
    workload: W,
    progress: &mut Progress<O>,
    interrupt: Option<&Interrupt>,
) -> Result<Report, Failure> {
    let negotiated = match Negotiated::negotiate(plan, workload, progress, interrupt) {
        Ok(negotiated) => negotiated,
        Err(source) => {
            return Err(Failure::RunsOn {
                container: plan.preamble.container.clone(),
                source: Box::new(source),
            });
        }
    };
    let committing = negotiated
        .pre_copy()?
        .freeze()?
        .ship()?
        .await_peer()?
        .fence()?
        .commit()?;
    committing.settle()?.finish()
}

/// Everything that speaks against the migration, of both ends; nothing is begun.
///
/// # Errors
/// Where the destination cannot be asked.
pub fn preflight(plan: &Plan, interrupt: Option<&Interrupt>) -> Result<Vec<Finding>, SourceError> {
    let patience = Patience::default().or_interrupt(interrupt);
    // Its name is how the destination finds out whether the store is the same.
    let images = Images::create(&plan.image_path, plan.preamble.migration)?;
    let (mut channel, _) = meet(plan, &images, patience)?;
    ask_findings(plan, &mut channel, true, patience)
}

fn meet(
    plan: &Plan,
    images: &Images,
    patience: Patience,
) -> Result<(Channel, Acquaintance), SourceError> {
    Ok(connect(
        &plan.destination,
        &plan.trust,
        |receiver| {
            rendezvous::find(
                &plan.image_path,
                &plan.preamble.container,
                receiver,
                images.owner,
            )
            .map(|left| left.acquaintance(*receiver, &plan.trust))
        },
        patience.at_most(ANSWER_LIMIT_DUR),
    )?)
}

/// This end's findings, then the destination's.
fn ask_findings(
    plan: &Plan,
    channel: &mut Channel,
    asks_only: bool,
    patience: Patience,
) -> Result<Vec<Finding>, SourceError> {
    let patience = patience.at_most(ANSWER_LIMIT_DUR);
    let preamble = Preamble {
        clock_ms: Some(preflight::clock_ms()),
        asks_only,
        ..plan.preamble.clone()
    };
    channel.send(&Message::Preamble(Box::new(preamble)), patience)?;
    let answer: Findings = channel.expect(patience)?;
    let own = plan.findings.iter().cloned();
    Ok(own.chain(answer.findings).collect())
}

fn speaks_against(finding: &Finding) -> bool {
    finding.severity == Severity::Error
}

/// Both ends agreed; the container runs.
#[derive(Debug)]
pub struct Negotiated<'a, W, O> {
    session: Session<'a, O>,
    workload: W,
}

/// A state in which the container stands still and is this host's.
#[derive(Debug)]
pub struct Stopped<'a, H, O, S> {
    session: Session<'a, O>,
    held: H,
    stopped_at: Instant,
    state: S,
}

/// Marks [`Stopped`]: the images are written.
#[derive(Debug)]
pub struct Frozen;
/// Marks [`Stopped`]: the destination knows the images.
#[derive(Debug)]
pub struct ShippedImages {
    manifest: Manifest,
}
/// Marks [`Stopped`]: the destination holds the restored container.
#[derive(Debug)]
pub struct PeerReady {
    images_bytes: u64,
}

/// The container is fenced and still this host's.
#[derive(Debug)]
pub struct Fenced<'a, F, O> {
    session: Session<'a, O>,
    fenced: F,
    stopped_at: Instant,
    images_bytes: u64,
}

/// The commit is on its way. The container is the destination's unless that says otherwise.
#[derive(Debug)]
#[must_use = "the container stands still until it is known whose it is"]
pub struct Committing<'a, F, O> {
    fenced: Fenced<'a, F, O>,
    sent: Result<(), TransportError>,
}

/// The destination's word that it will never run the container.
#[derive(Debug)]
pub struct Returned(());

/// The container runs at the destination.
#[derive(Debug)]
pub struct HandedOff<'a, F, O> {
    fenced: Fenced<'a, F, O>,
    downtime_dur: Duration,
}

impl<'a, W: Workload, O: Write> Negotiated<'a, W, O> {
    fn negotiate(
        plan: &'a Plan,
        workload: W,
        progress: &'a mut Progress<O>,
        interrupt: Option<&'a Interrupt>,
    ) -> Result<Self, SourceError> {
        let patience = Patience {
            deadline: None,
            interrupt,
        };
        let began = Instant::now();
        let preamble = &plan.preamble;
        // Before anything is made in the store: who is killed now leaves a record of it.
        let mut journal = Journal::begin(
            &plan.root,
            Start {
                migration: preamble.migration,
                container: preamble.container.clone(),
                side: Side::Source,
                peer: plan.destination.to_string(),
                images: images_path(&plan.image_path, preamble.migration),
                acquaintance: None,
            },
        )?;
        let met = Self::meet(plan, progress, patience).and_then(|met| {
            journal.acquaint(met.2, plan.trust.files())?;
            Ok(met)
        });
        match met {
            Ok((images, channel, acquaintance)) => {
                progress.lap("negotiate", began);
                Ok(Self {
                    session: Session {
                        plan,
                        channel,
                        acquaintance,
                        journal,
                        images,
                        progress,
                        patience,
                        pre_copied: PreCopied::default(),
                    },
                    workload,
                })
            }
            Err(error) => {
                if let Err(error) = journal.roll_back(&chain(&error)) {
                    tracing::warn!("{}", chain(&error));
                }
                Err(error)
            }
        }
    }

    fn meet(
        plan: &Plan,
        progress: &mut Progress<O>,
        patience: Patience,
    ) -> Result<(Images, Channel, Acquaintance), SourceError> {
        let images = Images::create(&plan.image_path, plan.preamble.migration)?;
        let (mut channel, acquaintance) = meet(plan, &images, patience)?;
        Self::agree(plan, &mut channel, progress, patience)
            .inspect_err(|error| channel.abort(&chain(error)))?;
        Ok((images, channel, acquaintance))
    }

    fn agree(
        plan: &Plan,
        channel: &mut Channel,
        progress: &mut Progress<O>,
        patience: Patience,
    ) -> Result<(), SourceError> {
        // With an error of this end the destination is only asked for its own, so that all are known, and goes on waiting.
        let asks_only = plan.findings.iter().any(speaks_against);
        let findings = ask_findings(plan, channel, asks_only, patience)?;
        let (errors, warnings): (Vec<Finding>, Vec<Finding>) =
            findings.into_iter().partition(speaks_against);
        for finding in &warnings {
            progress.say(&format!("warning: {finding}"));
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(SourceError::Refused { findings: errors })
        }
    }
}

impl<'a, H: Held, O: Write, S> Stopped<'a, H, O, S> {
    /// Lets the container run on and tells the destination.
    #[must_use]
    pub fn roll_back(self, cause: SourceError) -> Failure {
        let held = self.held;
        self.session.rolled_back(cause, || held.release())
    }

    fn advance<T>(self, state: T) -> Stopped<'a, H, O, T> {
        Stopped {
            session: self.session,
            held: self.held,
            stopped_at: self.stopped_at,
            state,
        }
    }
}

impl<'a, H: Held, O: Write> Stopped<'a, H, O, Frozen> {
    /// Tells the destination what lies in the image store.
    ///
    /// # Errors
    /// [`Failure::RunsOn`].
    pub fn ship(mut self) -> Result<Stopped<'a, H, O, ShippedImages>, Failure> {
        let began = Instant::now();
        match self.session.ship() {
            Ok(manifest) => {
                self.session.progress.lap("ship", began);
                Ok(self.advance(ShippedImages { manifest }))
            }
            Err(cause) => Err(self.roll_back(cause)),
        }
    }
}

impl<'a, H: Held, O: Write> Stopped<'a, H, O, ShippedImages> {
    /// Waits until the destination has restored the container and holds it.
    ///
    /// # Errors
    /// [`Failure::RunsOn`].
    pub fn await_peer(mut self) -> Result<Stopped<'a, H, O, PeerReady>, Failure> {
        match self.session.await_ready(&self.state.manifest) {
            Ok(()) => {
                let images_bytes = self.state.manifest.total_bytes();
                Ok(self.advance(PeerReady { images_bytes }))
            }
            Err(cause) => Err(self.roll_back(cause)),
        }
    }
}

impl<'a, H: Held, O: Write> Stopped<'a, H, O, PeerReady> {
    /// Makes the container stand still by its cgroup too; [`Fenced::commit`] then makes that last.
    ///
    /// # Errors
    /// [`Failure::RunsOn`].
    pub fn fence(mut self) -> Result<Fenced<'a, H::Fenced, O>, Failure> {
        // "Fenced" is entered before the freezer is: a crash in between leaves a record that says to look at the freezer.
        if let Err(error) = self.session.journal.enter(Phase::Fenced) {
            return Err(self.roll_back(error.into()));
        }
        let began = Instant::now();
        match self.held.fence() {
            Ok(fenced) => {
                self.session.progress.lap("fence", began);
                Ok(Fenced {
                    session: self.session,
                    fenced,
                    stopped_at: self.stopped_at,
                    images_bytes: self.state.images_bytes,
                })
            }
            Err((held, source)) => Err(self
                .session
                .rolled_back(SourceError::Fence { source }, || held.release())),
        }
    }
}

impl<'a, F: Fence, O: Write> Fenced<'a, F, O> {
    /// Lets the container run on and tells the destination.
    #[must_use]
    pub fn roll_back(self, cause: SourceError) -> Failure {
        let fenced = self.fenced;
        self.session.rolled_back(cause, || fenced.release())
    }

    /// Gives the container away: from here on only the destination's word lets it run here again.
    ///
    /// # Errors
    /// [`Failure::RunsOn`] as long as nothing was sent.
    pub fn commit(mut self) -> Result<Committing<'a, F, O>, Failure> {
        let session = &mut self.session;
        if session.patience.is_over() {
            let limit_dur = session.plan.freeze_limit_dur;
            return Err(self.roll_back(SourceError::TooLong { limit_dur }));
        }
        if let Err(error) = session.patience.check() {
            return Err(self.roll_back(error.into()));
        }
        // On the disk before the first byte of the commit leaves: see `journal`.
        if let Err(error) = session.journal.enter(Phase::Committing) {
            return Err(self.roll_back(error.into()));
        }
        if let Err(source) = self.fenced.seal() {
            return Err(self.roll_back(SourceError::Fence { source }));
        }
        let session = &mut self.session;
        // What follows cannot be undone: neither a signal nor the freeze's budget ends a wait from here on.
        session.images.keep = true;
        let commit = Message::Commit(Commit {
            migration: session.plan.preamble.migration,
        });
        let sent = session
            .channel
            .send(&commit, Patience::within(ANSWER_LIMIT_DUR));
        Ok(Committing { fenced: self, sent })
    }
}

impl<'a, F: Fence, O: Write> Committing<'a, F, O> {
    /// Waits for the destination's word, asking again when the connection is lost.
    ///
    /// # Errors
    /// [`Failure::NotSettled`] when there is none in time, [`Failure::RunsOn`] when the destination gives the container back.
    pub fn settle(mut self) -> Result<HandedOff<'a, F, O>, Failure> {
        let deadline = Instant::now() + self.fenced.session.plan.settle_limit_dur;
        let began = Instant::now();
        let mut last = match self.first_answer() {
            Ok(()) => return Ok(self.handed_off(began)),
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
                Ok(Verdict::Running) => return Ok(self.handed_off(began)),
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
            container: session.plan.preamble.container.clone(),
            peer: session.plan.destination.to_string(),
            source: Box::new(last.into()),
        };
        self.fenced.fenced.leave();
        Err(failure)
    }

    fn first_answer(&mut self) -> Result<(), TransportError> {
        std::mem::replace(&mut self.sent, Ok(()))?;
        let session = &mut self.fenced.session;
        session
            .channel
            .expect::<Running>(Patience::within(ANSWER_LIMIT_DUR))
            .map(drop)
    }

    fn handed_off(self, began: Instant) -> HandedOff<'a, F, O> {
        let downtime_dur = self.fenced.stopped_at.elapsed();
        let fenced = self.fenced;
        fenced.session.progress.lap("commit", began);
        HandedOff {
            fenced,
            downtime_dur,
        }
    }

    /// The one way back: the destination has said that it will never run the container.
    fn returned(self, _proof: Returned, cause: SourceError) -> Failure {
        let mut fenced = self.fenced;
        fenced.session.images.keep = false;
        fenced.roll_back(cause)
    }
}

impl<F: Fence, O: Write> HandedOff<'_, F, O> {
    /// Removes the container from this host and tells the destination.
    ///
    /// # Errors
    /// [`Failure::Remains`].
    pub fn finish(self) -> Result<Report, Failure> {
        let Fenced {
            mut session,
            fenced,
            images_bytes,
            ..
        } = self.fenced;
        let began = Instant::now();
        let plan = session.plan;
        let recorded = session.journal.enter(Phase::Committed);
        let finished = fenced.finish();
        session.images.keep = false;
        let settled = Message::Settled(Settled {
            migration: plan.preamble.migration,
        });
        // The destination stops waiting for it after a while.
        let _ = session
            .channel
            .send(&settled, Patience::within(ANSWER_LIMIT_DUR));
        let remains = |source: Cause| Failure::Remains {
            container: plan.preamble.container.clone(),
            peer: plan.destination.to_string(),
            source,
        };
        finished.map_err(remains)?;
        recorded
            .and_then(|()| session.journal.keep(&plan.root))
            .map_err(|error| remains(error.into()))?;
        drop(session.images);
        session.progress.lap("clean up", began);
        let report = Report {
            downtime_dur: self.downtime_dur,
            total_dur: session.progress.total_dur(),
            predicted_dur: session.pre_copied.predicted_dur,
            rounds: session.pre_copied.rounds,
            rounds_bytes: session.pre_copied.images_bytes,
            images_bytes,
        };
        session.progress.say(&report.summary(plan));
        Ok(report)
    }
}
