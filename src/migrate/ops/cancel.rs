//! Ends a migration from another process, before the commit.
//!
//! `--cancel` sends SIGTERM to the rcm that drives the migration, which then rolls back. The
//! journal has its pid; the lock proves that the pid is still that process. A receiver may
//! meanwhile have become the parent of the restored container, and would pass the signal on to it.
//! [`Gate`] prevents that. A receiver that still waits for a source has no record; its doorbell has
//! its pid.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::Signal;

use crate::migrate::fate::{Fate, Fated};
use crate::migrate::limits::{CANCEL_LIMIT_DUR, RECORD_LOOK_DUR};
use crate::migrate::link::channel::{Patience, TransportError};
use crate::migrate::record::doorbell;
use crate::migrate::record::error::JournalError;
use crate::migrate::record::journal::JournalRecord;
use crate::migrate::record::ledger::{self, Known};
use crate::migrate::record::lock;
use crate::migrate::record::paths;
use crate::migrate::record::watch::Watch;
use crate::migrate::wire::id::Side;
use crate::migrate::wire::state::Phase;
use crate::sys::process::{self, Liveness, ProcessId};

/// A migration cannot be ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CancelError {
    /// No migration is under way.
    #[error(
        "no migration of container \"{container}\" is under way on this host, and no receiver waits for it"
    )]
    Nothing {
        /// Id of the container.
        container: String,
    },
    /// It was committed before.
    #[error("too late: container \"{container}\" was given to {peer} and runs there")]
    Moved {
        /// Id of the container.
        container: String,
        /// The destination.
        peer: String,
    },
    /// It was committed before, and this is the destination.
    #[error("too late: container \"{container}\" has come from {peer} and runs here")]
    Arrived {
        /// Id of the container.
        container: String,
        /// The source.
        peer: String,
    },
    /// Nobody drives it, and it is open.
    #[error(
        "the migration of container \"{container}\" ({peer}) is not settled, and nobody works on it: `rcm live-migrate {container} --resolve` settles it"
    )]
    NotSettled {
        /// Id of the container.
        container: String,
        /// The other end.
        peer: String,
    },
    /// The records cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The driver's end cannot be waited for.
    #[error(transparent)]
    Wait(#[from] TransportError),
    /// The driver cannot be signalled.
    #[error("cannot signal the rcm that migrates container \"{container}\" (process {pid})")]
    Signal {
        /// Id of the container.
        container: String,
        /// The driver.
        pid: i32,
        /// The system's error.
        #[source]
        source: Errno,
    },
}

impl Fated for CancelError {
    fn fate(&self) -> Fate {
        match self {
            Self::Moved { .. } => Fate::RunsThere,
            Self::Arrived { .. } => Fate::RunsHere,
            Self::NotSettled { .. } => Fate::Unknown,
            Self::Nothing { .. } | Self::Journal(_) | Self::Wait(_) | Self::Signal { .. } => {
                Fate::AsBefore
            }
        }
    }
}

type Result<T, E = CancelError> = std::result::Result<T, E>;

/// Lock between a process that sends the signal and a driver that is about to pass signals on to
/// its container.
#[derive(Debug)]
pub struct Gate {
    _held: Flock<File>,
}

impl Gate {
    /// Waits until no other process has the lock, which takes moments. flock(2) has no descriptor
    /// to poll. Returns `None` if no migration was ever recorded.
    ///
    /// # Errors
    /// [`JournalError::File`].
    pub fn hold(root: &Path) -> Result<Option<Self>, JournalError> {
        let Some(dir) = paths::open_dir(root)? else {
            return Ok(None);
        };
        match Flock::lock(dir, FlockArg::LockExclusive) {
            Ok(held) => Ok(Some(Self { _held: held })),
            Err((_, errno)) => Err(paths::dir_error(root, "lock", errno)),
        }
    }
}

/// Operation that was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// A migration, of which this is that end; the container runs on at the source.
    Migration(Side),
    /// A receiver to which no source had come.
    Receiver,
}

/// Ends the migration of `container` that is under way on this host, at either end, or the receiver
/// that waits for it, and waits until it has ended.
///
/// # Errors
/// [`CancelError`]: it was not ended.
pub fn cancel(root: &Path, container: &str) -> Result<Ended> {
    let nothing = || CancelError::Nothing {
        container: container.to_owned(),
    };
    let gate = Gate::hold(root)?.ok_or_else(nothing)?;
    let known = Known::read(root, container)?;
    let Some(record) = known.under_way().cloned() else {
        let keeper = doorbell::keeper(root, container).ok_or_else(nothing)?;
        let pidfd = reach(root, container, keeper)?.ok_or_else(nothing)?;
        return end_receiver(root, container, keeper, &pidfd, gate);
    };
    let writer = record.writer;
    let unsettled = || CancelError::NotSettled {
        container: container.to_owned(),
        peer: record.peer.clone(),
    };
    let pidfd = reach(root, container, writer)?.ok_or_else(unsettled)?;
    if record.phase.may_roll_back() {
        terminate(container, writer, &pidfd)?;
    }
    drop(gate);
    let watch = Watch::of(root, container);
    let mut has_ended = false;
    loop {
        let now = ledger::latest(root, container)?
            .filter(|now| now.migration == record.migration)
            .filter(|now| now.phase.is_final());
        match now.map(|now| (now.phase, now.side)) {
            Some((Phase::RolledBack, side)) => {
                // The driver removes the images, or the restored container, after that.
                let _ = Patience::within(CANCEL_LIMIT_DUR).readable(&pidfd);
                return Ok(Ended::Migration(side));
            }
            Some((_, Side::Source)) => {
                return Err(CancelError::Moved {
                    container: container.to_owned(),
                    peer: record.peer,
                });
            }
            Some((_, Side::Destination)) => {
                return Err(CancelError::Arrived {
                    container: container.to_owned(),
                    peer: record.peer,
                });
            }
            None if has_ended => return Err(unsettled()),
            None => has_ended = next_change(&pidfd, watch.as_ref(), Patience::default())?,
        }
    }
}

/// Returns a descriptor of the process that holds the lock of `container`; `None` if no process
/// holds it any more.
fn reach(root: &Path, container: &str, driver: ProcessId) -> Result<Option<OwnedFd>> {
    let pidfd = match process::pidfd_open(driver.pid()) {
        Ok(pidfd) => pidfd,
        Err(Errno::ESRCH) => return Ok(None),
        Err(source) => return Err(signal_error(container, driver, source)),
    };
    // This check comes after the open, so the descriptor is the driver's, or the driver is gone.
    let lock = lock::lock_path(root, container);
    let drives = driver.liveness() == Liveness::Alive && process::holds(driver.pid(), &lock);
    Ok(drives.then_some(pidfd))
}

fn terminate(container: &str, driver: ProcessId, pidfd: &OwnedFd) -> Result<()> {
    match process::pidfd_send_signal(pidfd, Some(Signal::SIGTERM as i32)) {
        // It has ended meanwhile; the record says how.
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(source) => Err(signal_error(container, driver, source)),
    }
}

fn signal_error(container: &str, driver: ProcessId, source: Errno) -> CancelError {
    CancelError::Signal {
        container: container.to_owned(),
        pid: driver.pid,
        source,
    }
}

fn end_receiver(
    root: &Path,
    container: &str,
    keeper: ProcessId,
    pidfd: &OwnedFd,
    gate: Gate,
) -> Result<Ended> {
    let arrived = || -> Result<Option<JournalRecord>> {
        let known = Known::read(root, container)?;
        let record = known.destination().cloned();
        Ok(record.filter(|record| record.writer == keeper && !record.phase.may_roll_back()))
    };
    if arrived()?.is_some() {
        return Err(CancelError::Nothing {
            container: container.to_owned(),
        });
    }
    terminate(container, keeper, pidfd)?;
    drop(gate);
    let watch = Watch::of(root, container);
    let patience = Patience::within(CANCEL_LIMIT_DUR);
    let mut has_ended = false;
    loop {
        // It may have come before the signal.
        if let Some(record) = arrived()? {
            return Err(CancelError::Arrived {
                container: container.to_owned(),
                peer: record.peer,
            });
        }
        if has_ended || patience.is_over() {
            return Ok(Ended::Receiver);
        }
        has_ended = next_change(pidfd, watch.as_ref(), patience)?;
    }
}

/// Waits until a record has changed or the driver has ended. Returns whether it has ended; its last
/// record has to be read after that.
fn next_change(pidfd: &OwnedFd, watch: Option<&Watch>, patience: Patience) -> Result<bool> {
    let mut waited = vec![PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    let patience = match watch {
        Some(watch) => {
            waited.push(PollFd::new(watch.as_fd(), PollFlags::POLLIN));
            patience
        }
        None => patience.at_most(RECORD_LOOK_DUR),
    };
    patience.poll(&mut waited)?;
    let has_ended = waited[0].any() == Some(true);
    if let Some(watch) = watch {
        watch.clear();
    }
    Ok(has_ended)
}
