//! What the states of a destination before the commit carry.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::settlement::answer;
use super::{ANSWER_LIMIT_DUR, DestinationError, Held, Host, Result, Settlement, Setup};
use crate::image;
use crate::image::manifest::Manifest;
use crate::image::rounds;
use crate::migrate::bulk;
use crate::migrate::journal::Journal;
use crate::migrate::lobby::Lobby;
use crate::migrate::preamble::Preamble;
use crate::migrate::progress::Progress;
use crate::migrate::protocol::{Commit, Kind, Message, Phase, Ready, RoundVerified, Verdict};
use crate::migrate::rendezvous::Rendezvous;
use crate::migrate::transport::{Channel, Patience, TransportError};
use crate::migrate::{Cause, chain};
use crate::sys::interrupt::Interrupt;

/// How often the connections for the images are looked at while nothing is said.
const LOOK_DUR: Duration = Duration::from_millis(100);

/// What the states before the commit carry.
#[derive(Debug)]
pub(super) struct Session<H> {
    pub(super) setup: Setup,
    pub(super) host: H,
    pub(super) lobby: Lobby,
    pub(super) channel: Channel,
    pub(super) journal: Journal,
    pub(super) preamble: Preamble,
    /// Takes the images where the ends share no store. Before `images`: it must be gone when those are removed.
    pub(super) bulk: Option<bulk::Receiver>,
    /// The migration's directory in the store.
    pub(super) images: Images,
    /// How many rounds of pre-copy are here and verified.
    pub(super) rounds: u32,
    /// What the final dump consists of.
    pub(super) last: Manifest,
    /// Keeps the secret's file until the migration has ended, for a source that asks again.
    pub(super) rendezvous: Rendezvous,
}

/// A migration's directory in the store; one that is this end's own is removed when dropped, unless kept.
#[derive(Debug)]
pub(super) struct Images {
    pub(super) path: PathBuf,
    pub(super) owned: bool,
    pub(super) keep: bool,
}

impl Drop for Images {
    fn drop(&mut self) {
        if self.owned
            && !self.keep
            && let Err(error) = image::remove_dir(&self.path)
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

impl<H: Host> Session<H> {
    pub(super) fn patience<'a>(&self, interrupt: Option<&'a Interrupt>) -> Patience<'a> {
        Patience::within(self.setup.limit_dur).or_interrupt(interrupt)
    }

    /// The images of the final dump.
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
                    self.journal.enter(Phase::Shipped)?;
                    patience.check()?;
                    return Ok(verify_dur);
                }
                _ => unreachable!("only rounds and shipped were allowed"),
            }
        }
    }

    /// Waits for word that images are complete. That they do not get here is noticed meanwhile, so that the source hears why.
    fn next_images(&mut self, patience: Patience) -> Result<Message> {
        let expected = [Kind::Round, Kind::Shipped];
        loop {
            let Some(bulk) = &self.bulk else {
                return Ok(self.channel.receive(&expected, patience)?);
            };
            if let Some(failure) = bulk.failure() {
                return Err(failure.into());
            }
            // What has come of a message is kept.
            let look = Patience::within(LOOK_DUR).or_interrupt(patience.interrupt);
            match self.channel.receive(&expected, look) {
                Err(TransportError::Late { .. }) if !patience.is_over() => {}
                received => return Ok(received?),
            }
        }
    }

    /// Compares the next images of the chain with what the source wrote.
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

    /// Where the ends share no store: makes a directory and waits for the connections that carry the images.
    fn open_streams(&mut self, patience: Patience) -> Result<()> {
        if !self.images.owned {
            return Ok(());
        }
        let path = &self.images.path;
        DirBuilder::new()
            .mode(0o700)
            .create(path)
            .map_err(|source| DestinationError::Store {
                path: path.clone(),
                source,
            })?;
        let mut channels = Vec::new();
        let patience = patience.at_most(ANSWER_LIMIT_DUR);
        while channels.len() < self.preamble.streams as usize {
            let mut channel = self.lobby.admit(patience)?;
            match channel.receive(&[Kind::Join, Kind::Inquiry, Kind::Preamble], patience) {
                Ok(Message::Join(join)) if join.migration == self.preamble.migration => {
                    channels.push(channel);
                }
                Ok(Message::Inquiry(inquiry)) => {
                    answer(&mut channel, inquiry.migration, Verdict::Unknown);
                }
                Ok(_) => channel.abort("this receiver is busy with another migration"),
                Err(error @ TransportError::Interrupted { .. }) => return Err(error.into()),
                // Whoever it was has gone; the source would say so on its first connection.
                Err(_) => {}
            }
        }
        self.bulk = Some(bulk::Receiver::start(channels, path)?);
        Ok(())
    }

    /// Restores the container and holds it, and tells the source. On failure nothing of it is left.
    pub(super) fn hold(
        &mut self,
        verify_dur: Duration,
        progress: &mut Progress,
    ) -> Result<H::Held> {
        progress.lap_of("verify", verify_dur);
        progress.begin("restore");
        let began = Instant::now();
        let dump = self.dump();
        let (restored, synced) = std::thread::scope(|scope| {
            let sync = self.images.owned.then(|| {
                let (last, dump) = (&self.last, &dump);
                scope.spawn(move || last.sync(dump))
            });
            let restored = self.host.restore(&self.preamble, &dump);
            let synced = sync.map_or(Ok(()), |sync| sync.join().unwrap_or(Ok(())));
            (restored, synced)
        });
        let held = match restored {
            Ok(held) => held,
            Err(source) => {
                let container = self.preamble.container.clone();
                let error = DestinationError::Restore { container, source };
                return Err(self.was_aborted().unwrap_or(error));
            }
        };
        // Nowhere else are they kept: a crash of this host after the commit must not take them.
        let told = synced
            .map_err(|source| DestinationError::Images { source })
            .and_then(|()| {
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

    /// From the arrival of "ready" on the source may commit.
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

    /// Returns when the commit came. It is in the journal then.
    pub(super) fn await_commit(&mut self, patience: Patience) -> Result<Instant> {
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
    pub(super) fn was_aborted(&mut self) -> Option<DestinationError> {
        let now = Patience::within(Duration::ZERO);
        match self.channel.receive(&[], now) {
            Err(error @ TransportError::Aborted { .. }) => Some(error.into()),
            _ => None,
        }
    }

    /// Ends the migration: destroys what was restored and tells the source.
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

    pub(super) fn settlement(self, verdict: Verdict) -> Settlement {
        Settlement {
            lobby: self.lobby,
            channel: Some(self.channel),
            images: self.images.path.clone(),
            migration: self.preamble.migration,
            verdict,
            _rendezvous: self.rendezvous,
        }
    }
}
