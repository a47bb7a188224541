//! The data that the states of the destination carry before the commit.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use super::settlement::answer;
use super::{DestinationError, Host, RestoredContainer, Result, Settlement, Setup};
use crate::error::{Cause, chain};
use crate::image;
use crate::image::manifest::Manifest;
use crate::image::rounds;
use crate::migrate::agreement::Local;
use crate::migrate::limits::ANSWER_LIMIT_DUR;
use crate::migrate::link::channel::{Channel, Patience, TransportError};
use crate::migrate::link::listener::Listener;
use crate::migrate::progress::Progress;
use crate::migrate::record::boot_stamp::{self, Boot};
use crate::migrate::record::journal::Journal;
use crate::migrate::transfer::images;
use crate::migrate::transfer::rootfs::{self, TreeSwap};
use crate::migrate::trust::rendezvous::Rendezvous;
use crate::migrate::wire::payload::{Commit, Purpose, Ready, RoundVerified};
use crate::migrate::wire::preamble::Preamble;
use crate::migrate::wire::protocol::{Kind, Message};
use crate::migrate::wire::state::{Phase, Verdict};
use crate::sys::interrupt::Interrupt;

/// The data that the states before the commit carry.
#[derive(Debug)]
pub(super) struct DestinationSession<H> {
    pub(super) setup: Setup,
    pub(super) host: H,
    pub(super) listener: Listener,
    pub(super) channel: Channel,
    pub(super) journal: Journal,
    pub(super) preamble: Preamble,
    /// Observations about this host for this preamble.
    pub(super) local: Local,
    /// Receives the root file system, if it is copied. On drop it restores the old tree.
    pub(super) tree: Option<rootfs::TreeReceiver>,
    /// Receives the images if the ends share no store. It stands before `images` to be dropped
    /// first: it must not write any more when they are removed.
    pub(super) bulk: Option<images::ImageReceiver>,
    /// The migration's directory in the store.
    pub(super) images: DestinationImages,
    /// Number of rounds that are here and verified.
    pub(super) rounds: u32,
    /// Manifest of the final dump.
    pub(super) last: Manifest,
    /// Keeps the file with the secret until the migration has ended, for a source that asks again.
    pub(super) rendezvous: Rendezvous,
}

/// A migration's directory in the store. It is removed on drop if this end owns it, unless `keep`
/// is set.
#[derive(Debug)]
pub(super) struct DestinationImages {
    pub(super) path: PathBuf,
    pub(super) owned: bool,
    pub(super) keep: bool,
}

impl Drop for DestinationImages {
    fn drop(&mut self) {
        if self.owned
            && !self.keep
            && let Err(error) = image::remove_dir_for_good(&self.path)
        {
            tracing::warn!(
                "cannot remove the images in {}: {error}",
                self.path.display()
            );
        }
    }
}

pub(super) fn micros(dur: Duration) -> u64 {
    u64::try_from(dur.as_micros()).unwrap_or(u64::MAX)
}

/// Waits for a thread that syncs something to the disk. One that has panicked has synced nothing
/// for sure.
fn join_sync(sync: ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    sync.join().unwrap_or(Err(DestinationError::Sync))
}

impl<H: Host> DestinationSession<H> {
    pub(super) fn patience<'a>(&self, interrupt: Option<&'a Interrupt>) -> Patience<'a> {
        Patience::within(self.setup.limit_dur).or_interrupt(interrupt)
    }

    /// Returns the directory of the final dump.
    pub(super) fn dump(&self) -> PathBuf {
        rounds::directory(&self.images.path, self.rounds)
    }

    pub(super) fn verify(&mut self, patience: Patience) -> Result<Duration> {
        self.open_streams(patience)?;
        loop {
            match self.next_images(patience)? {
                Message::Round(round) => {
                    let verify_dur = self.verify_images(round.number, &round.manifest, patience)?;
                    self.rounds += 1;
                    if let Some(bulk) = &self.bulk {
                        bulk.go_on()?;
                    }
                    let verified = Message::RoundVerified(RoundVerified {
                        verify_us: micros(verify_dur),
                    });
                    self.channel
                        .send(&verified, patience.at_most(ANSWER_LIMIT_DUR))?;
                }
                Message::Shipped(shipped) => {
                    let verify_dur =
                        self.verify_images(shipped.number, &shipped.manifest, patience)?;
                    self.last = shipped.manifest;
                    self.bulk = None;
                    if let Some(tree) = &mut self.tree {
                        tree.finish(patience.at_most(self.setup.limit_dur))?;
                    }
                    self.journal.enter(Phase::Shipped)?;
                    patience.check()?;
                    return Ok(verify_dur);
                }
                _ => unreachable!("only rounds and shipped were allowed"),
            }
        }
    }

    /// Waits for the message that images are complete. A failed connection for the images ends the
    /// wait, so that the source is told the reason.
    fn next_images(&mut self, patience: Patience) -> Result<Message> {
        let expected = [Kind::Round, Kind::Shipped];
        let Some(bulk) = &self.bulk else {
            return Ok(self.channel.receive(&expected, patience)?);
        };
        // A failed connection rings the bell and ends the wait.
        let received = self
            .channel
            .receive(&expected, patience.or_bell(Some(bulk.failed())));
        match (received, bulk.failure()) {
            (_, Some(failure)) => Err(failure.into()),
            (received, None) => Ok(received?),
        }
    }

    /// Compares the next images of the chain with the source's.
    pub(super) fn verify_images(
        &self,
        number: u32,
        manifest: &Manifest,
        patience: Patience,
    ) -> Result<Duration> {
        if number != self.rounds {
            return Err(DestinationError::WrongRound {
                number,
                expected: self.rounds,
            });
        }
        let began = Instant::now();
        rounds::check_link(&self.images.path, number)
            .map_err(|source| DestinationError::Chain { source })?;
        match &self.bulk {
            Some(bulk) => bulk.verify(number, manifest, patience.at_most(ANSWER_LIMIT_DUR))?,
            None => manifest
                .verify(&rounds::directory(&self.images.path, number))
                .map_err(|source| DestinationError::Images { source })?,
        }
        Ok(began.elapsed())
    }

    /// Waits for the connections that carry the images, if the ends share no store, and the root
    /// file system, if it is copied. Creates the directories for them.
    fn open_streams(&mut self, patience: Patience) -> Result<()> {
        let copies_tree = self.local.rootfs_plan.way.copies();
        let (mut images, mut tree) = (Vec::new(), None);
        let patience = patience.at_most(ANSWER_LIMIT_DUR);
        while images.len() < self.preamble.streams as usize || tree.is_none() && copies_tree {
            let mut channel = self.listener.admit(patience)?;
            match channel.receive(&[Kind::Join, Kind::Inquiry, Kind::Preamble], patience) {
                Ok(Message::Join(join)) if join.migration == self.preamble.migration => {
                    match join.purpose {
                        Purpose::Images => images.push(channel),
                        Purpose::Tree => tree = Some(channel),
                    }
                }
                Ok(Message::Inquiry(inquiry)) => {
                    answer(&mut channel, inquiry.migration, Verdict::Unknown);
                }
                Ok(_) => channel.abort("this receiver is busy with another migration"),
                Err(error @ TransportError::Interrupted { .. }) => return Err(error.into()),
                // This peer is gone. The source would report a failure on its first connection.
                Err(_) => {}
            }
        }
        if self.images.owned {
            let path = &self.images.path;
            DirBuilder::new()
                .mode(0o700)
                .create(path)
                .map_err(|source| DestinationError::Store {
                    path: path.clone(),
                    source,
                })?;
            self.bulk = Some(images::ImageReceiver::start(images, path)?);
        }
        if let Some(channel) = tree.filter(|_| copies_tree) {
            let swap = TreeSwap::prepare(
                &self.setup.root,
                &self.preamble.container,
                self.preamble.migration,
                self.local.rootfs_plan.way,
                &self.local.bundle,
                &self.local.rootfs,
                &self.preamble.carried,
            )?;
            let limit_bytes = self.local.rootfs_found.free_bytes.unwrap_or(u64::MAX);
            self.tree = Some(rootfs::TreeReceiver::start(channel, swap, limit_bytes)?);
        }
        if let Some(boot) = Boot::current()
            && let Err(error) = boot_stamp::write(&self.setup.root, self.journal.record(), boot)
        {
            tracing::debug!(
                "cannot write the boot stamp in {}: {error}",
                self.images.path.display()
            );
        }
        Ok(())
    }

    /// Restores the container, holds it and tells the source. On failure nothing of it is left.
    pub(super) fn hold(
        &mut self,
        verify_dur: Duration,
        progress: &mut Progress,
    ) -> Result<H::Held> {
        progress.lap_of("verify", verify_dur);
        progress.begin("restore");
        let began = Instant::now();
        let dump = self.dump();
        // The images and the tree are synced while CRIU restores, which does not need them synced.
        let (restored, synced, tree_synced) = std::thread::scope(|scope| {
            let sync = self.images.owned.then(|| {
                let (last, dump) = (&self.last, &dump);
                scope.spawn(move || {
                    let synced = last.sync(dump);
                    synced.map_err(|source| DestinationError::Images { source })
                })
            });
            let tree = self.tree.as_ref().map(rootfs::TreeReceiver::swap);
            let tree_sync = tree.map(|swap| scope.spawn(|| Ok(swap.sync()?)));
            let restored = self.host.restore(&self.preamble, &dump);
            let synced = sync.map_or(Ok(()), join_sync);
            let tree_synced = tree_sync.map_or(Ok(()), join_sync);
            (restored, synced, tree_synced)
        });
        let held = match restored {
            Ok(held) => held,
            Err(source) => {
                let container = self.preamble.container.clone();
                let error = DestinationError::Restore { container, source };
                return Err(self.was_aborted().unwrap_or(error));
            }
        };
        // The images and the tree must be on the disk before "ready" is sent. A shared store is
        // synced by the source, but these copies exist only here: a crash of this host after the
        // commit must not lose them.
        let told = synced.and(tree_synced).and_then(|()| {
            let restore_dur = began.elapsed();
            progress.lap_of("restore", restore_dur);
            self.tell_ready(verify_dur, restore_dur)
        });
        match told {
            Ok(()) => Ok(held),
            Err(error) => {
                if let Err(error) = held.discard() {
                    tracing::warn!("{}", chain(&*error));
                }
                Err(error)
            }
        }
    }

    /// Tells the source that the container is held. From the arrival of this message on the source
    /// may commit, so the journal says so first.
    fn tell_ready(&mut self, verify_dur: Duration, restore_dur: Duration) -> Result<()> {
        self.journal.enter(Phase::PeerReady)?;
        let ready = Message::Ready(Ready {
            verify_us: micros(verify_dur),
            restore_us: micros(restore_dur),
        });
        Ok(self
            .channel
            .send(&ready, Patience::within(ANSWER_LIMIT_DUR))?)
    }

    /// Waits for the commit. Returns the time at which it arrived; it is in the journal then.
    pub(super) fn await_commit(&mut self, patience: Patience) -> Result<Instant> {
        let commit: Commit = self.channel.expect(patience)?;
        let committed_at = Instant::now();
        if commit.migration != self.preamble.migration {
            return Err(DestinationError::WrongMigration {
                migration: commit.migration,
            });
        }
        // On the disk before the container runs: after a crash `--resolve` then knows that it may
        // run here, and answers the source so.
        self.journal.enter(Phase::Committed)?;
        Ok(committed_at)
    }

    /// Returns the source's reason if it has ended the migration meanwhile. It also removes the
    /// images then, and their absence would hide the cause.
    pub(super) fn was_aborted(&mut self) -> Option<DestinationError> {
        let now = Patience::within(Duration::ZERO);
        match self.channel.receive(&[], now) {
            Err(error @ TransportError::Aborted { .. }) => Some(error.into()),
            _ => None,
        }
    }

    /// Returns the error that ended the transfer of the tree at this end. The source would only
    /// repeat the reason that this end has given.
    pub(super) fn tree_failure(&self) -> Option<DestinationError> {
        let failure = self.tree.as_ref()?.failure()?;
        Some(failure.into())
    }

    /// Keeps the new root file system, since the container belongs to this host, and removes the
    /// old one.
    pub(super) fn keep_tree(&mut self) {
        if let Some(tree) = self.tree.take()
            && let Err(error) = tree.keep()
        {
            tracing::warn!("{}", chain(&error));
        }
    }

    /// Rolls back: destroys the restored container and tells the source.
    pub(super) fn give_up(
        self,
        error: DestinationError,
        discard: impl FnOnce() -> Result<(), Cause>,
    ) -> DestinationError {
        self.give_up_but_answer(error, discard).0
    }

    pub(super) fn give_up_but_answer(
        mut self,
        error: DestinationError,
        discard: impl FnOnce() -> Result<(), Cause>,
    ) -> (DestinationError, Settlement) {
        let reason = chain(&error);
        // The container is destroyed first: "rolled back" must be true before the journal or a
        // message says it.
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

    pub(super) fn settlement(self, verdict: Verdict) -> Settlement {
        Settlement {
            listener: self.listener,
            channel: Some(self.channel),
            images: self.images.path.clone(),
            migration: self.preamble.migration,
            verdict,
            _rendezvous: self.rendezvous,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The source commits on *ready*: everything must be on the disk then.
    #[test]
    fn a_sync_that_panics_is_no_success() {
        std::thread::scope(|scope| {
            assert!(join_sync(scope.spawn(|| Ok(()))).is_ok());
            assert!(join_sync(scope.spawn(|| panic!("played: the sync panics"))).is_err());
        });
    }
}
