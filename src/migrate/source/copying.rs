//! Rounds of pre-copy, and the freeze that follows them.

use std::fs::DirBuilder;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::session::SourceSession;
use super::{Failure, Frozen, FrozenContainer, Negotiated, SourceError, Stopped, Target, Workload};
use crate::criu::stats::PAGE_BYTES;
use crate::image::rounds;
use crate::migrate::limits::ANSWER_LIMIT_DUR;
use crate::migrate::method::precopy::{self, Decision, Forecast, RoundCost};
use crate::migrate::progress::{self, Event};
use crate::migrate::transfer::images;
use crate::migrate::wire::payload::RoundVerified;
use crate::migrate::wire::protocol::Message;
use crate::migrate::wire::state::Phase;
use crate::runtime::Error;

/// State: the container runs, and rounds of its memory may be in the store. A rollback removes
/// them.
#[derive(Debug)]
pub struct PreCopying<'a, W> {
    session: SourceSession<'a>,
    workload: W,
    rounds: Vec<RoundCost>,
    /// Start of the last round.
    began_at: Option<Instant>,
}

impl<'a, W: Workload> Negotiated<'a, W> {
    /// Copies the root file system and the memory while the container runs, as far as the plan says
    /// so.
    ///
    /// # Errors
    /// [`Failure::RunsOn`].
    pub fn pre_copy(self) -> Result<PreCopying<'a, W>, Failure> {
        let limits = self.session.plan.pre_copy;
        let mut copying = PreCopying {
            session: self.session,
            workload: self.workload,
            rounds: Vec::new(),
            began_at: None,
        };
        // The tree comes first: copying it takes long, and memory that was copied before it would
        // have changed again.
        if let Err(error) = copying.session.copy_tree() {
            return Err(copying.roll_back(error));
        }
        let Some(limits) = limits else {
            return Ok(copying);
        };
        if let Err(error) = copying.session.journal.enter(Phase::PreCopying) {
            return Err(copying.roll_back(error.into()));
        }
        loop {
            if let Err(cause) = copying.round() {
                return Err(copying.roll_back(cause));
            }
            if let Decision::Freeze(reason) = precopy::decide(&copying.rounds, &limits) {
                let (rounds, forecast) = (copying.number(), copying.forecast());
                let event = Event::freezing(rounds, forecast, &limits, reason);
                copying.session.progress.tell(event);
                return Ok(copying);
            }
        }
    }
}

impl<'a, W: Workload> PreCopying<'a, W> {
    /// Removes the rounds and tells the destination. The container does not notice.
    #[must_use]
    pub fn roll_back(self, cause: SourceError) -> Failure {
        self.session.rolled_back(cause, || Ok(()))
    }

    fn number(&self) -> u32 {
        self.session.rounds
    }

    fn forecast(&self) -> Option<Forecast> {
        precopy::forecast(&self.rounds)
    }

    /// Copies the memory that has changed since the last round, and waits until the destination has
    /// verified it.
    fn round(&mut self) -> Result<(), SourceError> {
        let number = self.number();
        let expected_bytes = self.expected_bytes();
        let session = &mut self.session;
        session.patience.check()?;
        let dir = session.make_dir()?;
        let meter = session.progress.begin("round");
        meter.watch(&dir);
        meter.follow(session.progress.sent());
        meter.expect(expected_bytes);
        let began_at = Instant::now();
        let parent = rounds::parent(number);
        let target = Target {
            images: &dir,
            parent: parent.as_deref(),
            pages: session.take_pages(&dir)?,
        };
        let stats = self
            .workload
            .pre_dump(target)
            .map_err(|source| session.explain_dump(SourceError::PreDump { number, source }))?;
        rounds::check_link(&session.images.path, number)
            .map_err(|source| SourceError::Chain { source })?;
        let manifest = session.hand_over(session.patience)?;
        let waited_dur = session.bulk.as_ref().map(images::ImageSender::take_waited);
        let images_bytes = manifest.total_bytes();
        session.channel.send(
            &Message::Round(crate::migrate::wire::payload::Round {
                number,
                manifest: manifest.clone(),
            }),
            session.patience.at_most(ANSWER_LIMIT_DUR),
        )?;
        // The images are synced while the destination verifies them, and not in the freeze: before
        // the commit the whole chain must survive a crash.
        if session.bulk.is_none() {
            manifest
                .sync(&dir)
                .map_err(|source| SourceError::Manifest { source })?;
        }
        // No time limit: the destination verifies for as long as the round is large. If it dies,
        // the connection ends.
        let _: RoundVerified = session.channel.expect(session.patience)?;
        let round = RoundCost {
            since_previous_dur: self
                .began_at
                .map_or(Duration::ZERO, |previous| began_at - previous),
            took_dur: began_at.elapsed(),
            memory_dur: (stats.memdump_dur + stats.memwrite_dur)
                .saturating_sub(waited_dur.unwrap_or_default()),
            written_bytes: stats.written_bytes,
            unchanged_bytes: stats.skipped_parent_bytes,
        };
        self.began_at = Some(began_at);
        self.rounds.push(round);
        session.rounds += 1;
        let forecast = self.forecast();
        self.session.progress.tell(Event::Round(progress::RoundLap {
            number,
            took_dur: round.took_dur,
            stopped_dur: stats.frozen_dur,
            pages: round.written_bytes / PAGE_BYTES,
            written_bytes: round.written_bytes,
            unchanged_bytes: round.unchanged_bytes,
            images_bytes,
            remaining_bytes: forecast.map(|forecast| forecast.remaining_bytes),
            predicted_dur: forecast.map(|forecast| forecast.downtime_dur()),
        }));
        Ok(())
    }

    /// Returns the expected size of the next images: all memory at first, later the memory that has
    /// changed.
    fn expected_bytes(&self) -> u64 {
        match (self.forecast(), self.rounds.last()) {
            (Some(forecast), _) => forecast.remaining_bytes,
            (None, Some(first)) => first.written_bytes,
            (None, None) => self.session.plan.offer.observed.memory_bytes,
        }
    }

    /// Freezes and dumps the container.
    ///
    /// # Errors
    /// [`Failure::RunsOn`].
    pub fn freeze(self) -> Result<Stopped<'a, W::Held, Frozen>, Failure> {
        let expected_bytes = self.expected_bytes();
        let Self {
            mut session,
            workload,
            ..
        } = self;
        // The record comes first: a source that dies in the dump leaves one that says "frozen". The
        // tree's worker pauses before CRIU freezes the tasks, so that no pass is under way then.
        let ready = session
            .journal
            .enter(Phase::Frozen)
            .map_err(SourceError::from)
            .and_then(|()| Ok(session.patience.check()?))
            .and_then(|()| session.tell_tree(|tree, patience| tree.hold(patience)))
            .and_then(|()| session.make_dir());
        let began = Instant::now();
        let meter = session.progress.begin("dump");
        meter.follow(session.progress.sent());
        meter.expect(expected_bytes);
        let dumped = ready.and_then(|dir| {
            meter.watch(&dir);
            let parent = rounds::parent(session.rounds);
            let target = Target {
                images: &dir,
                parent: parent.as_deref(),
                pages: session.take_pages(&dir)?,
            };
            workload
                .dump(target)
                .map_err(|source| session.explain_dump(SourceError::Dump { source }))
        });
        match dumped {
            Ok(held) => {
                session.progress.lap("dump", began);
                let (stopped_at, frozen_at) = (held.stopped_at(), held.frozen_at());
                let freeze = &mut session.progress.report_mut().freeze;
                freeze.freeze_dur = Some(frozen_at.saturating_duration_since(stopped_at));
                freeze.dump_dur = Some(frozen_at.elapsed());
                // The budget of the freeze counts from the moment at which the first task stopped.
                session.patience.deadline = Some(stopped_at + session.plan.freeze_limit_dur);
                Ok(Stopped {
                    session,
                    held,
                    stopped_at,
                    state: Frozen,
                })
            }
            Err(cause) if is_held(&cause) => Err(session.left_held(cause)),
            Err(cause) => Err(session.rolled_back(cause, || Ok(()))),
        }
    }
}

/// Returns whether CRIU still holds the container although the dump was given up.
fn is_held(cause: &SourceError) -> bool {
    let SourceError::Dump { source } = cause else {
        return false;
    };
    matches!(source.downcast_ref(), Some(Error::CriuHolds { .. }))
}

impl SourceSession<'_> {
    /// Waits until the destination has the root file system except for the latest changes.
    fn copy_tree(&mut self) -> Result<(), SourceError> {
        let Some(tree) = &self.tree else {
            return Ok(());
        };
        let meter = self.progress.begin("tree");
        meter.follow(tree.sent());
        self.tell_tree(|tree, patience| tree.follow(patience))
    }

    /// Returns the directory of the next images of the chain: those of a round, or of the final
    /// dump.
    pub(super) fn next_dir(&self) -> PathBuf {
        rounds::directory(&self.images.path, self.rounds)
    }

    /// Prepares for a dump into `dir`. Returns the connection that takes the memory instead, if the
    /// destination does not see this store.
    fn take_pages(&self, dir: &Path) -> Result<Option<OwnedFd>, SourceError> {
        let Some(bulk) = &self.bulk else {
            return Ok(None);
        };
        let parent = self.rounds.checked_sub(1);
        let parent = parent.map(|number| rounds::directory(&self.images.path, number));
        bulk.begin(self.rounds, dir, parent.as_deref())
            .map(Some)
            .map_err(|source| SourceError::Bulk { source })
    }

    /// Replaces the error of a dump by that of the connections if they failed first: CRIU cannot
    /// know that cause.
    fn explain_dump(&mut self, error: SourceError) -> SourceError {
        match self.bulk.as_ref().and_then(images::ImageSender::failure) {
            Some(failure) if !is_held(&error) => self.explain(failure),
            _ => error,
        }
    }

    fn make_dir(&self) -> Result<PathBuf, SourceError> {
        let path = self.next_dir();
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => Ok(path),
            Err(source) => Err(SourceError::Images {
                action: "create",
                path,
                source,
            }),
        }
    }
}
