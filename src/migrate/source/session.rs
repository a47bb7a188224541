//! The data that every state of the source carries.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Failure, Plan, SourceError};
use crate::error::{Cause, chain};
use crate::image;
use crate::image::manifest::Manifest;
use crate::migrate::limits::{
    ANSWER_LIMIT_DUR, DISCARD_LIMIT_DUR, FAREWELL_LIMIT_DUR, ORPHAN_LIMIT_DUR,
    SOCKET_NAME_PAUSE_DUR,
};
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
use crate::migrate::unix_sockets::SocketNames;
use crate::migrate::wire::id::MigrationId;
use crate::migrate::wire::payload::{Answer, Inquiry, Ready, Shipped};
use crate::migrate::wire::protocol::{Kind, Message};
use crate::migrate::wire::state::{Phase, Verdict};

/// This migration's directory in the image store. It is removed on drop unless `keep` is set.
#[derive(Debug)]
pub(super) struct SourceImages {
    pub(super) path: PathBuf,
    pub(super) owner: u32,
    pub(super) keep: bool,
}

/// Returns the directory of a migration's images.
pub(super) fn images_path(store: &Path, migration: MigrationId) -> PathBuf {
    store.join(migration.to_string())
}

impl SourceImages {
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

impl Drop for SourceImages {
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

/// The data that every state carries.
#[derive(Debug)]
pub(super) struct SourceSession<'a> {
    pub(super) plan: &'a Plan,
    pub(super) channel: Channel,
    pub(super) acquaintance: Acquaintance,
    pub(super) journal: Journal,
    /// Sends the root file system, if it is copied. It stands before `images` to be dropped first:
    /// its lists are in that directory.
    pub(super) tree: Option<rootfs::TreeSender>,
    pub(super) images: SourceImages,
    pub(super) progress: &'a mut Progress,
    /// Limit of every wait: only signals until the freeze, then the budget of the freeze, too.
    pub(super) patience: Patience<'a>,
    /// Number of rounds in the store. It is also the number of the final dump's directory.
    pub(super) rounds: u32,
    /// Approximate time that an answer takes if it needs no work at the other end.
    pub(super) round_trip_dur: Duration,
    /// Sends the images to a destination that does not share the store.
    pub(super) bulk: Option<images::ImageSender>,
    /// Files of the container's Unix sockets that the restore may replace.
    pub(super) names: SocketNames,
}

impl SourceSession<'_> {
    pub(super) fn ship(&mut self, names: SocketNames) -> Result<Manifest, SourceError> {
        self.patience.check()?;
        if let Some(tree) = &self.tree {
            tree.finish();
        }
        let manifest = self.hand_over(self.patience)?;
        self.tell_tree(|tree, patience| tree.await_finish(patience))?;
        // The socket files move aside before "shipped" is sent: on a shared file system the
        // restore, which begins with that message, replaces them.
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

    /// Waits for a stage of the root file system, and reports the passes.
    pub(super) fn tell_tree(
        &mut self,
        wait: impl FnOnce(&rootfs::TreeSender, Patience) -> Result<Vec<TreePass>, RootfsError>,
    ) -> Result<(), SourceError> {
        let Some(tree) = &self.tree else {
            return Ok(());
        };
        for pass in wait(tree, self.patience)? {
            self.progress.tell(Event::Tree(pass));
        }
        Ok(())
    }

    /// Moves the files of the container's sockets aside. The record of them comes first, so that
    /// `--resolve` can put them back.
    fn keep(&mut self, names: SocketNames) -> Result<(), SourceError> {
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

    /// Puts the socket files back again and again until the destination has destroyed its restored
    /// container: it says so (`ended`), or its connection is gone. The container runs meanwhile.
    pub(super) fn settle_names(&mut self, ended: bool) {
        let mut names = std::mem::take(&mut self.names);
        if names.list().is_empty() {
            return;
        }
        let deadline = Instant::now() + DISCARD_LIMIT_DUR;
        let mut limit_dur = Duration::ZERO;
        while !ended && Instant::now() < deadline {
            // "Ready" may arrive before the destination hears of the end.
            let patience = Patience::within(SOCKET_NAME_PAUSE_DUR);
            match self.channel.receive(&[Kind::Ready], patience) {
                Ok(_) | Err(TransportError::Late { .. }) => names.put_back(),
                Err(TransportError::Aborted { .. }) => break,
                Err(_) => {
                    limit_dur = ORPHAN_LIMIT_DUR;
                    break;
                }
            }
        }
        names.settle(limit_dur);
    }

    /// Hands over the next images of the chain, which are complete. If the destination does not see
    /// the store, they are sent.
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

    /// Returns the destination's reason if there is one. A destination that gives up closes the
    /// connections for the images, and says why on the main connection.
    pub(super) fn explain(&mut self, error: BulkError) -> SourceError {
        match self
            .channel
            .receive(&[], Patience::within(FAREWELL_LIMIT_DUR))
        {
            Err(aborted @ TransportError::Aborted { .. }) => aborted.into(),
            _ => SourceError::Bulk { source: error },
        }
    }

    /// Waits until the destination holds the restored container. Meanwhile this end syncs the
    /// images: they must survive a crash before the commit, but the destination can read them
    /// already. A destination with its own store syncs its own images.
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

    /// Asks the destination, on a new connection or through the store, for the verdict on the
    /// migration.
    pub(super) fn ask(&mut self) -> Result<Verdict, TransportError> {
        let migration = self.plan.offer.migration;
        let Plan {
            destination, trust, ..
        } = self.plan;
        let container = &self.plan.offer.container;
        match ask(destination, container, trust, self.acquaintance, migration) {
            Ok((channel, verdict)) => {
                // The final message goes to the connection on which the destination has answered.
                self.channel = channel;
                Ok(verdict)
            }
            Err(error) => verdict::read(&self.images.path, migration).ok_or(error),
        }
    }

    /// Tells the destination that this end has given up. The images and the record stay for
    /// `--resolve`: CRIU still holds the container and writes images.
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
        // In both cases the destination has already destroyed its container, or never had one.
        let ended = matches!(
            cause,
            SourceError::Transport(TransportError::Aborted { .. }) | SourceError::Returned
        );
        // Before the container runs: it may connect to its own sockets at once.
        self.names.put_back();
        // The container is resumed before the peer is told: every message would add to its
        // downtime.
        let released = release();
        self.channel.abort(&reason);
        self.settle_names(ended);
        // The images go before the record says "rolled back": if rcm is killed in between,
        // `--resolve` finds the record and removes the images.
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

/// Asks a destination for its verdict on a migration. Also returns the connection, for
/// [`crate::migrate::wire::payload::Settled`].
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
    let verdict = if answer.migration == migration {
        answer.verdict
    } else {
        Verdict::Unknown
    };
    Ok((channel, verdict))
}
