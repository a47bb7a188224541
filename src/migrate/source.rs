//! The end that gives the container away.
//!
//! Each state is a type, and a transition consumes it. `roll_back` exists on [`Stopped`], which the states that CRIU alone holds share, and
//! on [`Fenced`]; [`Committing`] has none. The one way back from there takes a [`Returned`], and only the destination's word that it will
//! never run the container makes one.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::link::address::Destination;
use super::link::channel::{Patience, TransportError};
use super::method::precopy::Limits;
use super::progress::Progress;
use super::transfer::images;
use super::trust::Trust;
use super::wire::finding::Finding;
use super::wire::payload::Commit;
use super::wire::protocol::Message;
use super::wire::state::Phase;
use crate::image::manifest::Manifest;
use crate::sys::interrupt::Interrupt;

mod copying;
mod error;
mod handover;
mod negotiate;
pub mod offer;
mod rehearsal;
mod session;
mod workload;

pub use copying::PreCopying;
pub use error::{Failure, SourceError};
pub use handover::Returned;
pub use negotiate::{preflight, refusal};
pub use rehearsal::rehearse;
pub use session::ask;
pub use workload::{Fence, Held, Target, Workload};

use offer::Offer;
use session::Session;

/// How long a message that needs no work at the other end may take.
const ANSWER_LIMIT_DUR: Duration = Duration::from_secs(30);

/// What is to be done.
#[derive(Debug)]
pub struct Plan {
    /// rcm's state directory.
    pub root: PathBuf,
    /// Where to.
    pub destination: Destination,
    /// Whom to take for the destination.
    pub trust: Trust,
    /// What the destination is told.
    pub offer: Offer,
    /// The root file system here.
    pub rootfs: PathBuf,
    /// The `config.json` that the destination gets; `None` for the bundle's.
    pub config: Option<Vec<u8>>,
    /// What this end has found itself.
    pub findings: Vec<Finding>,
    /// Whether memory is copied while the container runs, and for how long.
    pub pre_copy: Option<Limits>,
    /// How many connections carry the images where the ends share no store.
    pub streams: u32,
    /// How they are sent over them.
    pub sending: images::Settings,
    /// How long the container may stand still before it is let go again.
    pub freeze_limit_dur: Duration,
    /// How long an unanswered commit is asked about.
    pub settle_limit_dur: Duration,
}

/// Moves the container.
///
/// `interrupt` is heeded until the commit.
///
/// # Errors
/// [`Failure`] says what became of the container.
pub fn migrate<W: Workload>(
    plan: &Plan,
    workload: W,
    progress: &mut Progress,
    interrupt: Option<&Interrupt>,
) -> Result<(), Failure> {
    let fenced = up_to_the_commit(plan, workload, progress, interrupt)?;
    fenced.commit()?.settle()?.finish()
}

fn up_to_the_commit<'a, W: Workload>(
    plan: &'a Plan,
    workload: W,
    progress: &'a mut Progress,
    interrupt: Option<&'a Interrupt>,
) -> Result<Fenced<'a, <W::Held as Held>::Fenced>, Failure> {
    match Negotiated::negotiate(plan, workload, progress, interrupt) {
        Ok(negotiated) => negotiated
            .pre_copy()?
            .freeze()?
            .ship()?
            .await_peer()?
            .fence(),
        Err(source) => Err(Failure::RunsOn {
            container: plan.offer.container.clone(),
            source: Box::new(source),
        }),
    }
}

/// Both ends agreed; the container runs.
#[derive(Debug)]
pub struct Negotiated<'a, W> {
    session: Session<'a>,
    workload: W,
}

/// A state in which the container stands still and is this host's.
#[derive(Debug)]
pub struct Stopped<'a, H, S> {
    session: Session<'a>,
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
pub struct PeerReady;

/// The container is fenced and still this host's.
#[derive(Debug)]
pub struct Fenced<'a, F> {
    session: Session<'a>,
    fenced: F,
    stopped_at: Instant,
}

/// The commit is on its way. The container is the destination's unless that says otherwise.
#[derive(Debug)]
#[must_use = "the container stands still until it is known whose it is"]
pub struct Committing<'a, F> {
    fenced: Fenced<'a, F>,
    sent_at: Instant,
    sent: Result<(), TransportError>,
}

/// The container runs at the destination.
#[derive(Debug)]
pub struct HandedOff<'a, F> {
    fenced: Fenced<'a, F>,
}

impl<'a, H: Held, S> Stopped<'a, H, S> {
    /// Lets the container run on and tells the destination.
    #[must_use]
    pub fn roll_back(self, cause: SourceError) -> Failure {
        let held = self.held;
        self.session.rolled_back(cause, || held.release())
    }

    fn advance<T>(self, state: T) -> Stopped<'a, H, T> {
        Stopped {
            session: self.session,
            held: self.held,
            stopped_at: self.stopped_at,
            state,
        }
    }
}

impl<'a, H: Held> Stopped<'a, H, Frozen> {
    /// Tells the destination what lies in the image store.
    ///
    /// # Errors
    /// [`Failure::RunsOn`].
    pub fn ship(mut self) -> Result<Stopped<'a, H, ShippedImages>, Failure> {
        let began = Instant::now();
        let meter = self.session.progress.begin("ship");
        meter.follow(self.session.progress.sent());
        // The survey has said which cannot be kept.
        let (names, _) = self.held.names(self.session.plan.offer.migration);
        match self.session.ship(names) {
            Ok(manifest) => {
                self.session.progress.lap("ship", began);
                self.session.progress.report_mut().images_bytes = Some(manifest.total_bytes());
                Ok(self.advance(ShippedImages { manifest }))
            }
            Err(cause) => Err(self.roll_back(cause)),
        }
    }
}

impl<'a, H: Held> Stopped<'a, H, ShippedImages> {
    /// Waits until the destination has restored the container and holds it.
    ///
    /// # Errors
    /// [`Failure::RunsOn`].
    pub fn await_peer(mut self) -> Result<Stopped<'a, H, PeerReady>, Failure> {
        match self.session.await_ready(&self.state.manifest) {
            Ok(()) => Ok(self.advance(PeerReady)),
            Err(cause) => Err(self.roll_back(cause)),
        }
    }
}

impl<'a, H: Held> Stopped<'a, H, PeerReady> {
    /// Makes the container stand still by its cgroup too; [`Fenced::commit`] then makes that last.
    ///
    /// # Errors
    /// [`Failure::RunsOn`].
    pub fn fence(mut self) -> Result<Fenced<'a, H::Fenced>, Failure> {
        // "Fenced" is entered before the freezer is: a crash in between leaves a record that says to look at the freezer.
        if let Err(error) = self.session.journal.enter(Phase::Fenced) {
            return Err(self.roll_back(error.into()));
        }
        let began = Instant::now();
        self.session.progress.begin("fence");
        match self.held.fence() {
            Ok(fenced) => {
                self.session.progress.lap("fence", began);
                Ok(Fenced {
                    session: self.session,
                    fenced,
                    stopped_at: self.stopped_at,
                })
            }
            Err((held, source)) => Err(self
                .session
                .rolled_back(SourceError::Fence { source }, || held.release())),
        }
    }
}

impl<'a, F: Fence> Fenced<'a, F> {
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
    pub fn commit(mut self) -> Result<Committing<'a, F>, Failure> {
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
        session.progress.begin("commit");
        let commit = Message::Commit(Commit {
            migration: session.plan.offer.migration,
        });
        let sent_at = Instant::now();
        let sent = session
            .channel
            .send(&commit, Patience::within(ANSWER_LIMIT_DUR));
        Ok(Committing {
            fenced: self,
            sent_at,
            sent,
        })
    }
}
