//! What every state of a source carries.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{ANSWER_LIMIT_DUR, Failure, Plan, SourceError};
use crate::error::{Cause, chain};
use crate::image;
use crate::image::manifest::Manifest;
use crate::migrate::link::address::Destination;
use crate::migrate::link::channel::{Channel, Patience, TransportError};
use crate::migrate::link::connect::reconnect;
use crate::migrate::progress::{Event, Progress, TreePass};
use crate::migrate::record::journal::Journal;
use crate::migrate::record::verdict;
use crate::migrate::transfer::images::{self, BulkError};
use crate::migrate::transfer::rootfs::{self, RootfsError};
use crate::migrate::trust::Trust;
use crate::migrate::trust::rendezvous::Acquaintance;
use crate::migrate::unix_sockets::{self, Names};
use crate::migrate::wire::id::MigrationId;
use crate::migrate::wire::payload::{Answer, Inquiry, Ready, Shipped};
use crate::migrate::wire::protocol::{Kind, Message};
use crate::migrate::wire::state::{Phase, Verdict};

/// How long a destination that has given up takes to say so.
const FAREWELL_LIMIT_DUR: Duration = Duration::from_secs(5);

/// How long a destination may take to destroy what it restores; it first finishes the restore.
const DISCARD_LIMIT_DUR: Duration = Duration::from_secs(60);

/// This migration's directory in the image store; removed when dropped, unless kept.
#[derive(Debug)]
pub(super) struct Images {
    pub(super) path: PathBuf,
    pub(super) owner: u32,
    pub(super) keep: bool,
}

/// Where the images of a migration lie.
pub(super) fn images_path(store: &Path, migration: MigrationId) -> PathBuf {
    store.join(migration.to_string())
}

impl Images {
    pub(super) fn create(store: &Path, migration: MigrationId) -> Result<Self, SourceError> {
        let path = images_path(store, migration);
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
            && let Err(error) = image::remove_dir(&self.path)
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
pub(super) struct Session<'a> {
    pub(super) plan: &'a Plan,
    pub(super) channel: Channel,
    pub(super) acquaintance: Acquaintance,
    pub(super) journal: Journal,
    /// Carries the root file system, where it is copied. Before `images`, where its lists are.
    pub(super) tree: Option<rootfs::Sender>,
    pub(super) images: Images,
    pub(super) progress: &'a mut Progress,
    /// Until the freeze: only signals end a wait. Then the freeze's budget.
    pub(super) patience: Patience<'a>,
    /// How many rounds of pre-copy are in the store; also the number of the directory of the final dump.
    pub(super) rounds: u32,
    /// How long an answer takes that needs no work at the other end, about.
    pub(super) round_trip_dur: Duration,
    /// Carries the images to a destination that does not share the store.
    pub(super) bulk: Option<images::Sender>,
    /// What the restore may take from the container.
    pub(super) names: Names,
}

impl Session<'_> {
    pub(super) fn ship(&mut self, names: Names) -> Result<Manifest, SourceError> {
        self.patience.check()?;
        if let Some(tree) = &self.tree {
            tree.finish();
        }
        let manifest = self.hand_over(self.patience)?;
        self.tell_tree(|tree, patience| tree.await_finish(patience))?;
        // A restore begins when "shipped" arrives.
        self.keep(names)?;
        let shipped = Message::Shipped(Shipped {
            number: self.rounds,
            manifest: manifest.clone(),
        });
        self.channel
            .send(&shipped, self.patience.at_most(ANSWER_LIMIT_DUR))?;
        self.journal.enter(Phase::Shipped)?;
        Ok(manifest)
    }

    /// Waits for a part of the root file system, and tells what has been sent.
    pub(super) fn tell_tree(
        &mut self,
        wait: impl FnOnce(&rootfs::Sender, Patience) -> Result<Vec<TreePass>, RootfsError>,
    ) -> Result<(), SourceError> {
        let Some(tree) = &self.tree else {
            return Ok(());
        };
        for pass in wait(tree, self.patience)? {
            self.progress.tell(Event::Tree(pass));
        }
        Ok(())
    }

    /// Keeps the names of the container's sockets.
    fn keep(&mut self, names: Names) -> Result<(), SourceError> {
        if names.list().is_empty() {
            return Ok(());
        }
        self.journal.note_names(names.list())?;
        for unkept in names.keep() {
            self.progress.warn(&unkept.finding());
        }
        self.names = names;
        Ok(())
    }

    /// Puts back what the restore takes from the container, until the destination has destroyed what it has restored: `ended`, or it says so or is gone. The
    /// container runs on meanwhile.
    pub(super) fn settle_names(&mut self, ended: bool) {
        let mut names = std::mem::take(&mut self.names);
        if names.list().is_empty() {
            return;
        }
        let deadline = Instant::now() + DISCARD_LIMIT_DUR;
        let mut limit_dur = Duration::ZERO;
        while !ended && Instant::now() < deadline {
            // It may have said that it is ready before it heard of the end.
            let patience = Patience::within(unix_sockets::PAUSE_DUR);
            match self.channel.receive(&[Kind::Ready], patience) {
                Ok(_) | Err(TransportError::Late { .. }) => names.put_back(),
                Err(TransportError::Aborted { .. }) => break,
                Err(_) => {
                    limit_dur = unix_sockets::ORPHAN_LIMIT_DUR;
                    break;
                }
            }
        }
        names.settle(limit_dur);
    }

    /// The next images of the chain are complete: they are sent to a destination that does not see them.
    pub(super) fn hand_over(&mut self, patience: Patience) -> Result<Manifest, SourceError> {
        match &self.bulk {
            None => Manifest::of_directory(&self.next_dir())
                .map_err(|source| SourceError::Manifest { source }),
            Some(bulk) => match bulk.finish(patience) {
                Ok(manifest) => Ok(manifest),
                Err(error) => Err(self.explain(error)),
            },
        }
    }

    /// A destination that gives up ends the connections of the images; why, it says on this one.
    pub(super) fn explain(&mut self, error: BulkError) -> SourceError {
        match self
            .channel
            .receive(&[], Patience::within(FAREWELL_LIMIT_DUR))
        {
            Err(aborted @ TransportError::Aborted { .. }) => aborted.into(),
            _ => SourceError::Bulk { source: error },
        }
    }

    /// Meanwhile the images are synced: before the commit they must survive a crash, but the destination can read them now. It syncs its own where it
    /// has its own.
    pub(super) fn await_ready(&mut self, manifest: &Manifest) -> Result<(), SourceError> {
        self.progress.begin("restore");
        let began = Instant::now();
        if self.bulk.is_none() {
            manifest
                .sync(&self.next_dir())
                .map_err(|source| SourceError::Manifest { source })?;
        }
        let ready: Ready = match self.channel.expect(self.patience) {
            Ok(ready) => ready,
            Err(TransportError::Late { .. }) => {
                return Err(SourceError::TooLong {
                    limit_dur: self.plan.freeze_limit_dur,
                });
            }
            Err(error) => return Err(error.into()),
        };
        let verify_dur = Duration::from_micros(ready.verify_us);
        let restore_dur = Duration::from_micros(ready.restore_us);
        self.round_trip_dur = began.elapsed().saturating_sub(verify_dur + restore_dur);
        self.progress.lap_of("verify", verify_dur);
        self.progress.lap_of("restore", restore_dur);
        Ok(self.journal.enter(Phase::PeerReady)?)
    }

    /// Asks the destination, on a new connection or through the store, what became of the migration.
    pub(super) fn ask(&mut self) -> Result<Verdict, TransportError> {
        let migration = self.plan.offer.migration;
        let Plan {
            destination, trust, ..
        } = self.plan;
        let container = &self.plan.offer.container;
        match ask(destination, container, trust, self.acquaintance, migration) {
            Ok((channel, verdict)) => {
                // The last word to the destination goes where it answered.
                self.channel = channel;
                Ok(verdict)
            }
            Err(error) => verdict::find(&self.images.path, migration).ok_or(error),
        }
    }

    /// Tells the destination. CRIU still writes images, and the record stays as it is: both are for `--resolve`.
    pub(super) fn left_held(mut self, cause: SourceError) -> Failure {
        self.channel.abort(&chain(&cause));
        self.images.keep = true;
        Failure::Held {
            container: self.plan.offer.container.clone(),
            source: Box::new(cause),
        }
    }

    pub(super) fn rolled_back(
        mut self,
        cause: SourceError,
        release: impl FnOnce() -> Result<(), Cause>,
    ) -> Failure {
        let reason = chain(&cause);
        let ended = matches!(
            cause,
            SourceError::Transport(TransportError::Aborted { .. }) | SourceError::Returned
        );
        self.names.put_back();
        // The container first: it stands still.
        let released = release();
        self.channel.abort(&reason);
        self.settle_names(ended);
        // Before the last word: who is killed now leaves a record by which `--resolve` removes them.
        drop(self.images);
        if let Err(error) = self.journal.roll_back(&reason) {
            tracing::warn!("{}", chain(&error));
        }
        let container = self.plan.offer.container.clone();
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

/// Asks a destination what became of a migration; also returns the connection, for [`crate::migrate::wire::payload::Settled`].
///
/// # Errors
/// All of [`TransportError`].
pub fn ask(
    destination: &Destination,
    container: &str,
    trust: &Trust,
    acquaintance: Acquaintance,
    migration: MigrationId,
) -> Result<(Channel, Verdict), TransportError> {
    let patience = Patience::within(ANSWER_LIMIT_DUR);
    let mut channel = reconnect(destination, container, trust, acquaintance, patience)?;
    channel.send(&Message::Inquiry(Inquiry { migration }), patience)?;
    let answer: Answer = channel.expect(patience)?;
    match answer.migration == migration {
        true => Ok((channel, answer.verdict)),
        false => Ok((channel, Verdict::Unknown)),
    }
}
