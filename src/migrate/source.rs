//! The end that gives the container away.
//!
//! Each state is a type, and a transition consumes it. `roll_back` exists on [`Stopped`], which all states before the commit share, and
//! on [`Negotiated`]; [`Committing`] has none. The one way back from there takes a [`Returned`], and only the destination's word that it will never
//! run the container makes one.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::journal::{Journal, JournalError, Start};
use super::preamble::{Finding, Preamble, Severity};
use super::progress::{Progress, bytes, milliseconds};
use super::protocol::{
    Commit, Inquiry, Kind, Message, MigrationId, Phase, Settled, Shipped, Side, Verdict,
};
use super::rendezvous::{self, RendezvousError};
use super::transport::{Acquaintance, Channel, Destination, Patience, TransportError, connect};
use super::{Cause, chain, verdict};
use crate::image::manifest::{Manifest, ManifestError};
use crate::sys::interrupt::Interrupt;

/// How long a message that needs no work at the other end may take.
const ANSWER_LIMIT_DUR: Duration = Duration::from_secs(30);
/// The pause between two questions after a commit without an answer.
const ASK_AGAIN_DUR: Duration = Duration::from_millis(500);

/// A container that can be stopped and dumped.
pub trait Workload {
    /// See [`Held`].
    type Held: Held;

    /// Stops the container and writes its images into `images`. What was done is undone on failure: the container runs on.
    ///
    /// # Errors
    /// Whatever prevents the dump.
    fn dump(self, images: &Path) -> Result<Self::Held, Cause>;
}

/// A dumped container that stands still until it is told what to do.
///
/// Dropping it, or the death of this process, lets the container go on.
pub trait Held: Sized {
    /// See [`Fenced`].
    type Fenced: Fence;

    /// When the container stopped.
    fn stopped_at(&self) -> Instant;

    /// Makes it stand still by its cgroup, too.
    ///
    /// # Errors
    /// Where that cannot be made sure: the container runs on then, or will once `self` is gone.
    fn fence(self) -> Result<Self::Fenced, (Self, Cause)>;

    /// Lets it go on.
    ///
    /// # Errors
    /// Where it still stands.
    fn release(self) -> Result<(), Cause>;
}

/// A dumped container that stands still whatever happens to CRIU and, once it is sealed, to this process.
pub trait Fence: Sized {
    /// From here on it stands still even if this process dies. Before that, a death lets it go on: the commit was not announced
    /// in the journal yet.
    ///
    /// # Errors
    /// Where that cannot be made sure.
    fn seal(&mut self) -> Result<(), Cause>;

    /// Lets it go on.
    ///
    /// # Errors
    /// Where it still stands.
    fn release(self) -> Result<(), Cause>;

    /// Kills it and removes what it was from this host.
    ///
    /// # Errors
    /// What could not be removed; it does not execute in any case.
    fn finish(self) -> Result<(), Cause>;

    /// Leaves it standing: nobody knows yet whose it is.
    fn leave(self);
}

/// What is to be done.
#[derive(Debug)]
pub struct Plan {
    /// rcm's state directory.
    pub root: PathBuf,
    /// Where to.
    pub destination: Destination,
    /// The image store.
    pub image_path: PathBuf,
    /// What the destination is told.
    pub preamble: Preamble,
    /// How long the container may stand still before it is let go again.
    pub freeze_limit_dur: Duration,
    /// How long an unanswered commit is asked about.
    pub settle_limit_dur: Duration,
}

/// Why a migration stopped before the commit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The other end cannot be talked to.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The image store cannot be used.
    #[error("cannot {action} the image directory {path}")]
    Images {
        /// "create", "look at", ...
        action: &'static str,
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The destination objects.
    #[error("the destination cannot take the container: {}", list(findings))]
    Refused {
        /// Those with the severity of an error.
        findings: Vec<Finding>,
    },
    /// The dump failed.
    #[error("the container cannot be dumped")]
    Dump {
        /// Why.
        #[source]
        source: Cause,
    },
    /// The images cannot be read back.
    #[error("the images cannot be handed over")]
    Manifest {
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// The container cannot be fenced.
    #[error("the container cannot be fenced, so the commit would not be safe")]
    Fence {
        /// Why.
        #[source]
        source: Cause,
    },
    /// The journal cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// It took too long.
    #[error("the container stood still for {limit_dur:?} (--timeout)")]
    TooLong {
        /// The budget.
        limit_dur: Duration,
    },
    /// After the commit, the destination said that it will never run the container.
    #[error("the destination gave the container back")]
    Returned,
}

fn list(findings: &[Finding]) -> String {
    let texts: Vec<String> = findings.iter().map(Finding::to_string).collect();
    texts.join("; ")
}

/// How a migration can fail, by what became of the container.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// It runs here as if nothing had happened.
    #[error("container \"{container}\" was not moved and runs on here")]
    RunsOn {
        /// Which.
        container: String,
        /// Why it was not moved.
        #[source]
        source: Box<SourceError>,
    },
    /// It should run here, but letting it go on failed.
    #[error(
        "container \"{container}\" was not moved ({reason}), and letting it run on failed; `rcm resume {container}` lets it"
    )]
    Stands {
        /// Which.
        container: String,
        /// Why it was not moved.
        reason: String,
        /// Why it stands still.
        #[source]
        source: Cause,
    },
    /// The commit was sent and nobody knows whether it arrived.
    #[error(
        "container \"{container}\" was given to {peer}, which does not answer: it stands still here until `rcm live-migrate {container} --resolve` settles where it runs"
    )]
    NotSettled {
        /// Which.
        container: String,
        /// The destination.
        peer: String,
        /// The last attempt to ask.
        #[source]
        source: Box<SourceError>,
    },
    /// It runs at the destination; something of it is left here, not running.
    #[error(
        "container \"{container}\" runs at {peer}, but not everything of it could be removed here; `rcm delete --force {container}` removes the rest"
    )]
    Remains {
        /// Which.
        container: String,
        /// The destination.
        peer: String,
        /// What could not be removed.
        #[source]
        source: Cause,
    },
}

/// How a migration went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// From the container's last instruction here to the arrival of the destination's word that it runs there.
    pub downtime_dur: Duration,
    /// From the command to the end.
    pub total_dur: Duration,
    /// The size of the images.
    pub images_bytes: u64,
}

/// This migration's directory in the image store; removed when dropped, unless kept.
#[derive(Debug)]
struct Images {
    path: PathBuf,
    owner: u32,
    keep: bool,
}

impl Images {
    fn create(store: &Path, migration: MigrationId) -> Result<Self, SourceError> {
        let path = store.join(migration.to_string());
        let error = |action| {
            let path = path.clone();
            move |source| SourceError::Images {
                action,
                path,
                source,
            }
        };
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(error("create"))?;
        let mut images = Self {
            path: path.clone(),
            owner: 0,
            keep: false,
        };
        images.owner = fs::metadata(&path).map_err(error("look at"))?.uid();
        Ok(images)
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(
                "cannot remove the images in {}: {error}",
                self.path.display()
            );
        }
    }
}

/// What all states carry.
#[derive(Debug)]
struct Session<'a, O> {
    plan: &'a Plan,
    channel: Channel,
    acquaintance: Acquaintance,
    journal: Journal,
    images: Images,
    progress: &'a mut Progress<O>,
    /// Until the freeze: only signals end a wait. Then the freeze's budget.
    patience: Patience<'a>,
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
        .freeze()?
        .ship()?
        .await_peer()?
        .fence()?
        .commit()?;
    committing.settle()?.finish()
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
    images_bytes: u64,
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
        let images = Images::create(&plan.image_path, preamble.migration)?;
        let (mut channel, acquaintance) = connect(
            &plan.destination,
            |receiver| {
                rendezvous::find(
                    &plan.image_path,
                    &preamble.container,
                    receiver,
                    images.owner,
                )
            },
            patience.at_most(ANSWER_LIMIT_DUR),
        )?;
        let agreed = Self::agree(plan, &mut channel, progress, patience);
        agreed.inspect_err(|error| channel.abort(&chain(error)))?;
        let journal = Journal::begin(
            &plan.root,
            Start {
                migration: preamble.migration,
                container: preamble.container.clone(),
                side: Side::Source,
                peer: plan.destination.to_string(),
                images: images.path.clone(),
                secret: Some(acquaintance.secret),
                receiver: Some(acquaintance.receiver),
            },
        )?;
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
            },
            workload,
        })
    }

    fn agree(
        plan: &Plan,
        channel: &mut Channel,
        progress: &mut Progress<O>,
        patience: Patience,
    ) -> Result<(), SourceError> {
        let patience = patience.at_most(ANSWER_LIMIT_DUR);
        channel.send(
            &Message::Preamble(Box::new(plan.preamble.clone())),
            patience,
        )?;
        let Message::Findings(answer) = channel.receive(&[Kind::Findings], patience)? else {
            unreachable!("only findings were allowed")
        };
        let (errors, warnings): (Vec<Finding>, Vec<Finding>) = answer
            .findings
            .into_iter()
            .partition(|finding| finding.severity == Severity::Error);
        for finding in &warnings {
            progress.say(&format!("warning: {finding}"));
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(SourceError::Refused { findings: errors })
        }
    }

    /// Stops and dumps the container.
    ///
    /// # Errors
    /// [`Failure::RunsOn`].
    pub fn freeze(self) -> Result<Stopped<'a, W::Held, O, Frozen>, Failure> {
        let Self {
            mut session,
            workload,
        } = self;
        let ready = session
            .journal
            .enter(Phase::Frozen)
            .map_err(SourceError::from);
        let ready = ready.and_then(|()| Ok(session.patience.check()?));
        let began = Instant::now();
        let dumped = ready.and_then(|()| {
            workload
                .dump(&session.images.path)
                .map_err(|source| SourceError::Dump { source })
        });
        match dumped {
            Ok(held) => {
                session.progress.lap("dump", began);
                let stopped_at = held.stopped_at();
                session.patience.deadline = Some(stopped_at + session.plan.freeze_limit_dur);
                Ok(Stopped {
                    session,
                    held,
                    stopped_at,
                    state: Frozen,
                })
            }
            Err(cause) => Err(session.rolled_back(cause, || Ok(()))),
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
            Ok(images_bytes) => {
                self.session.progress.lap("ship", began);
                Ok(self.advance(ShippedImages { images_bytes }))
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
        match self.session.await_ready() {
            Ok(()) => {
                let images_bytes = self.state.images_bytes;
                Ok(self.advance(PeerReady { images_bytes }))
            }
            Err(cause) => Err(self.roll_back(cause)),
        }
    }
}

impl<'a, H: Held, O: Write> Stopped<'a, H, O, PeerReady> {
    /// Makes sure that the container stands still even without this process.
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
        // What follows cannot be undone, so neither a signal nor the freeze's budget ends it.
        session.patience = Patience::default();
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
        while Instant::now() < deadline {
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
            .receive(&[Kind::Running], Patience::within(ANSWER_LIMIT_DUR))
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
            images_bytes,
        };
        session.progress.say(&format!(
            "moved to {}: downtime {}, total {}, images {}",
            plan.destination,
            milliseconds(report.downtime_dur),
            milliseconds(report.total_dur),
            bytes(report.images_bytes)
        ));
        Ok(report)
    }
}

impl<O: Write> Session<'_, O> {
    fn ship(&mut self) -> Result<u64, SourceError> {
        self.patience.check()?;
        let manifest = Manifest::of_directory(&self.images.path)
            .map_err(|source| SourceError::Manifest { source })?;
        let images_bytes = manifest.total_bytes();
        self.channel.send(
            &Message::Shipped(Shipped { manifest }),
            self.patience.at_most(ANSWER_LIMIT_DUR),
        )?;
        self.journal.enter(Phase::Shipped)?;
        Ok(images_bytes)
    }

    fn await_ready(&mut self) -> Result<(), SourceError> {
        let ready = match self.channel.receive(&[Kind::Ready], self.patience) {
            Ok(Message::Ready(ready)) => ready,
            Ok(_) => unreachable!("only a ready was allowed"),
            Err(TransportError::Late { .. }) => {
                return Err(SourceError::TooLong {
                    limit_dur: self.plan.freeze_limit_dur,
                });
            }
            Err(error) => return Err(error.into()),
        };
        self.progress
            .lap_of("verify", Duration::from_micros(ready.verify_us));
        self.progress
            .lap_of("restore", Duration::from_micros(ready.restore_us));
        Ok(self.journal.enter(Phase::PeerReady)?)
    }

    /// Asks the destination, on a new connection or through the store, what became of the migration.
    fn ask(&mut self) -> Result<Verdict, TransportError> {
        let migration = self.plan.preamble.migration;
        match ask(&self.plan.destination, self.acquaintance, migration) {
            Ok((channel, verdict)) => {
                // The last word to the destination goes where it answered.
                self.channel = channel;
                Ok(verdict)
            }
            Err(error) => verdict::find(&self.images.path, migration).ok_or(error),
        }
    }

    fn rolled_back(
        mut self,
        cause: SourceError,
        release: impl FnOnce() -> Result<(), Cause>,
    ) -> Failure {
        let reason = chain(&cause);
        // The container first: it stands still.
        let released = release();
        self.channel.abort(&reason);
        if let Err(error) = self.journal.roll_back(&reason) {
            tracing::warn!("{}", chain(&error));
        }
        let container = self.plan.preamble.container.clone();
        match released {
            Ok(()) => Failure::RunsOn {
                container,
                source: Box::new(cause),
            },
            Err(source) => Failure::Stands {
                container,
                reason,
                source,
            },
        }
    }
}

/// Asks a destination what became of a migration; also returns the connection, for [`Settled`].
///
/// # Errors
/// All of [`TransportError`].
pub fn ask(
    destination: &Destination,
    acquaintance: Acquaintance,
    migration: MigrationId,
) -> Result<(Channel, Verdict), TransportError> {
    let patience = Patience::within(ANSWER_LIMIT_DUR);
    let (mut channel, _) = connect(
        destination,
        |receiver| {
            if *receiver == acquaintance.receiver {
                Ok(acquaintance.secret)
            } else {
                Err(RendezvousError::WrongProof)
            }
        },
        patience,
    )?;
    channel.send(&Message::Inquiry(Inquiry { migration }), patience)?;
    match channel.receive(&[Kind::Answer], patience)? {
        Message::Answer(answer) if answer.migration == migration => Ok((channel, answer.verdict)),
        _ => Ok((channel, Verdict::Unknown)),
    }
}
