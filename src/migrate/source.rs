//! The source: the host that the container leaves.
//!
//! Each state is a type, and a transition consumes it. Two types have `roll_back`: [`Stopped`],
//! which the states share in which CRIU alone holds the container, and [`Fenced`]. [`Committing`]
//! has none. The only way back from there takes a [`Returned`], and only an answer of the
//! destination that it will never run the container makes one.

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
use crate::migrate::limits::ANSWER_LIMIT_DUR;
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
pub use workload::{Fence, FrozenContainer, Target, Workload};

use offer::Offer;
use session::SourceSession;

/// Parameters of one migration.
#[derive(Debug)]
pub struct Plan {
    /// rcm's state directory.
    pub root: PathBuf,
    /// Address of the destination.
    pub destination: Destination,
    /// Trust settings that authenticate the destination.
    pub trust: Trust,
    /// Data that the preamble for the destination is made of.
    pub offer: Offer,
    /// Path of the root file system on this host.
    pub rootfs: PathBuf,
    /// Contents of the `config.json` for the destination; `None` for that of the bundle.
    pub config: Option<Vec<u8>>,
    /// Findings of this host.
    pub findings: Vec<Finding>,
    /// Limits of pre-copy; `None` for stop-and-copy.
    pub pre_copy: Option<Limits>,
    /// Number of connections for the images if the ends share no store.
    pub streams: u32,
    /// Compression and rate limit of these connections.
    pub sending: images::ImageSettings,
    /// Time that the container may be frozen before it is rolled back.
    pub freeze_limit_dur: Duration,
    /// Time for which the source asks about an unanswered commit.
    pub settle_limit_dur: Duration,
}

/// Migrates the container.
///
/// A signal in `interrupt` ends the migration until the commit; after it, it only prints a line.
///
/// # Errors
/// [`Failure`] says where the container is now.
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
) -> Result<Fenced<'a, <W::Held as FrozenContainer>::Fenced>, Failure> {
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

/// State: both ends agreed, and the container runs.
#[derive(Debug)]
pub struct Negotiated<'a, W> {
    session: SourceSession<'a>,
    workload: W,
}

/// State: the container is frozen and still belongs to this host.
#[derive(Debug)]
pub struct Stopped<'a, H, S> {
    session: SourceSession<'a>,
    held: H,
    stopped_at: Instant,
    state: S,
}

/// Marks [`Stopped`]: CRIU has written the images.
#[derive(Debug)]
pub struct Frozen;
/// Marks [`Stopped`]: the destination has the manifest of the images.
#[derive(Debug)]
pub struct ShippedImages {
    manifest: Manifest,
}
/// Marks [`Stopped`]: the destination holds the restored container.
#[derive(Debug)]
pub struct PeerReady;

/// State: the container is fenced and still belongs to this host.
#[derive(Debug)]
pub struct Fenced<'a, F> {
    session: SourceSession<'a>,
    fenced: F,
    stopped_at: Instant,
}

/// State: the commit was sent. The container belongs to the destination unless the destination
/// answers that it does not.
#[derive(Debug)]
#[must_use = "the container stays frozen until the commit is settled"]
pub struct Committing<'a, F> {
    fenced: Fenced<'a, F>,
    sent_at: Instant,
    sent: Result<(), TransportError>,
}

/// State: the container runs at the destination.
#[derive(Debug)]
pub struct HandedOff<'a, F> {
    fenced: Fenced<'a, F>,
}

impl<'a, H: FrozenContainer, S> Stopped<'a, H, S> {
    /// Resumes the container and tells the destination why.
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

impl<'a, H: FrozenContainer> Stopped<'a, H, Frozen> {
    /// Sends the manifest of the images to the destination.
    ///
    /// # Errors
    /// [`Failure::RunsOn`].
    pub fn ship(mut self) -> Result<Stopped<'a, H, ShippedImages>, Failure> {
        let began = Instant::now();
        let meter = self.session.progress.begin("ship");
        meter.follow(self.session.progress.sent());
        // The survey has already reported the sockets that cannot be kept.
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

impl<'a, H: FrozenContainer> Stopped<'a, H, ShippedImages> {
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

impl<'a, H: FrozenContainer> Stopped<'a, H, PeerReady> {
    /// Freezes the container by its cgroup, too. [`Fenced::commit`] then makes that permanent.
    ///
    /// # Errors
    /// [`Failure::RunsOn`].
    pub fn fence(mut self) -> Result<Fenced<'a, H::Fenced>, Failure> {
        // The journal says "fenced" before the cgroup is frozen. After a crash in between,
        // `--resolve` finds this record and looks at the freezer. In the other order a frozen
        // cgroup could be left that no record mentions.
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
    /// Resumes the container and tells the destination why.
    #[must_use]
    pub fn roll_back(self, cause: SourceError) -> Failure {
        let fenced = self.fenced;
        self.session.rolled_back(cause, || fenced.release())
    }

    /// Sends the commit. From here on only an answer of the destination lets the container run here
    /// again.
    ///
    /// # Errors
    /// [`Failure::RunsOn`] if nothing was sent.
    pub fn commit(mut self) -> Result<Committing<'a, F>, Failure> {
        let session = &mut self.session;
        if session.patience.is_over() {
            let limit_dur = session.plan.freeze_limit_dur;
            return Err(self.roll_back(SourceError::TooLong { limit_dur }));
        }
        if let Err(error) = session.patience.check() {
            return Err(self.roll_back(error.into()));
        }
        // The record is on the disk before the first byte of the commit leaves. A source that
        // crashes after sending then knows that the destination may run the container.
        if let Err(error) = session.journal.enter(Phase::Committing) {
            return Err(self.roll_back(error.into()));
        }
        // Only now: until the record is written, the death of rcm must still thaw the container.
        if let Err(source) = self.fenced.seal() {
            return Err(self.roll_back(SourceError::Fence { source }));
        }
        let session = &mut self.session;
        // From here on nothing can be undone, so neither a signal nor the budget of the freeze ends
        // a wait. The images stay for a destination that has to restore again.
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
