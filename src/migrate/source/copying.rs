//! Rounds of pre-copy, and the freeze after them.

use std::fs::DirBuilder;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::session::Session;
use super::{ANSWER_LIMIT_DUR, Failure, Frozen, Held, Negotiated, SourceError, Stopped, Workload};
use crate::image::rounds;
use crate::migrate::precopy::{self, Decision, Forecast, Limits, Reason, Round};
use crate::migrate::progress::{bytes, milliseconds};
use crate::migrate::protocol::{self, Message, Phase, RoundVerified};

/// What was copied while the container ran.
#[derive(Debug, Default)]
pub(super) struct PreCopied {
    /// How many rounds; also the number of the directory of the final dump.
    pub(super) rounds: u32,
    /// The size of their images.
    pub(super) images_bytes: u64,
    /// The downtime that was expected just before the freeze.
    pub(super) predicted_dur: Option<Duration>,
}

/// The container runs, and rounds of its memory may be in the store. Rolling back removes them.
#[derive(Debug)]
pub struct PreCopying<'a, W, O> {
    session: Session<'a, O>,
    workload: W,
    rounds: Vec<Round>,
    /// When the last one began.
    began_at: Option<Instant>,
}

impl<'a, W: Workload, O: Write> Negotiated<'a, W, O> {
    /// Copies the memory while the container runs, if that is part of the plan.
    ///
    /// # Errors
    /// [`Failure::RunsOn`].
    pub fn pre_copy(self) -> Result<PreCopying<'a, W, O>, Failure> {
        let limits = self.session.plan.pre_copy;
        let mut copying = PreCopying {
            session: self.session,
            workload: self.workload,
            rounds: Vec::new(),
            began_at: None,
        };
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
                copying.say_why(reason, &limits);
                return Ok(copying);
            }
        }
    }
}

impl<'a, W: Workload, O: Write> PreCopying<'a, W, O> {
    /// Removes the rounds, which the container does not notice, and tells the destination.
    #[must_use]
    pub fn roll_back(self, cause: SourceError) -> Failure {
        self.session.rolled_back(cause, || Ok(()))
    }

    fn number(&self) -> u32 {
        self.session.pre_copied.rounds
    }

    fn forecast(&self) -> Option<Forecast> {
        precopy::forecast(&self.rounds)
    }

    /// Copies what has changed since the last round, and waits until the destination has seen it.
    fn round(&mut self) -> Result<(), SourceError> {
        let number = self.number();
        let session = &mut self.session;
        session.patience.check()?;
        let dir = session.make_dir()?;
        let began_at = Instant::now();
        session.begin_images(&dir);
        let stats = self
            .workload
            .pre_dump(&dir, rounds::parent(number).as_deref())
            .map_err(|source| SourceError::PreDump { number, source })?;
        rounds::check_link(&session.images.path, number)
            .map_err(|source| SourceError::Chain { source })?;
        let manifest = session.hand_over(session.patience)?;
        let images_bytes = manifest.total_bytes();
        session.channel.send(
            &Message::Round(protocol::Round {
                number,
                manifest: manifest.clone(),
            }),
            session.patience.at_most(ANSWER_LIMIT_DUR),
        )?;
        // Meanwhile, and not in the freeze: the whole chain must survive a crash before the commit.
        if session.bulk.is_none() {
            manifest
                .sync(&dir)
                .map_err(|source| SourceError::Manifest { source })?;
        }
        // The destination reads as long as there is something to read; that it lives, the connection shows.
        let _: RoundVerified = session.channel.expect(session.patience)?;
        let round = Round {
            since_previous_dur: self
                .began_at
                .map_or(Duration::ZERO, |previous| began_at - previous),
            took_dur: began_at.elapsed(),
            memory_dur: stats.memdump_dur + stats.memwrite_dur,
            written_bytes: stats.written_bytes,
            unchanged_bytes: stats.skipped_parent_bytes,
        };
        self.began_at = Some(began_at);
        self.rounds.push(round);
        session.pre_copied.rounds += 1;
        session.pre_copied.images_bytes += images_bytes;
        self.say_round(number, &round, stats.frozen_dur);
        Ok(())
    }

    fn say_round(&mut self, number: u32, round: &Round, frozen_dur: Duration) {
        let predicted = self.forecast().map_or(String::new(), |forecast| {
            format!(
                "; {} left, a freeze now would take {}",
                bytes(forecast.remaining_bytes),
                milliseconds(forecast.downtime_dur())
            )
        });
        self.session.progress.say(&format!(
            "{:<10} {:>12}  {} copied, {} unchanged, stopped for {}{predicted}",
            format!("round {number}"),
            milliseconds(round.took_dur),
            bytes(round.written_bytes),
            bytes(round.unchanged_bytes),
            milliseconds(frozen_dur),
        ));
    }

    fn say_why(&mut self, reason: Reason, limits: &Limits) {
        let predicted_dur = self.forecast().map(|forecast| forecast.downtime_dur());
        self.session.pre_copied.predicted_dur = predicted_dur;
        let why = match reason {
            Reason::LimitMet => "that is within the limit",
            Reason::NotShrinking => "the rounds no longer shrink",
            Reason::FixedCosts => "more rounds would not shorten it",
            Reason::MaxRounds => "no more rounds are allowed",
        };
        let predicted = predicted_dur.map_or_else(|| "unknown".into(), milliseconds);
        self.session.progress.say(&format!(
            "freezing after {} rounds: predicted downtime {predicted}, limit {}; {why}",
            self.number(),
            milliseconds(limits.downtime_limit_dur),
        ));
    }

    /// Stops and dumps the container.
    ///
    /// # Errors
    /// [`Failure::RunsOn`].
    pub fn freeze(self) -> Result<Stopped<'a, W::Held, O, Frozen>, Failure> {
        let Self {
            mut session,
            workload,
            ..
        } = self;
        let ready = session
            .journal
            .enter(Phase::Frozen)
            .map_err(SourceError::from)
            .and_then(|()| Ok(session.patience.check()?))
            .and_then(|()| session.make_dir());
        let began = Instant::now();
        let dumped = ready.and_then(|dir| {
            let parent = rounds::parent(session.pre_copied.rounds);
            session.begin_images(&dir);
            workload
                .dump(&dir, parent.as_deref())
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

impl<O: Write> Session<'_, O> {
    /// The directory of the next images of the chain: a round's, or the final dump's.
    pub(super) fn next_dir(&self) -> PathBuf {
        rounds::directory(&self.images.path, self.pre_copied.rounds)
    }

    /// CRIU is about to write images into `dir`.
    fn begin_images(&self, dir: &Path) {
        if let Some(bulk) = &self.bulk {
            bulk.begin(self.pre_copied.rounds, dir);
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
