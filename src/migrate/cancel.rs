//! Ending a migration from another process, before the commit.
//!
//! The one who drives it gets a signal, as from Ctrl-C, and rolls back by itself. Which process that is the record in the journal says, and its lock shows
//! that it lives: a process id alone may belong to another process by now, or to a receiver that has become a container's parent and would pass the
//! signal on to the container. Against the latter stands [`Gate`].

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::journal::{self, JournalError, JournalRecord};
use super::protocol::{Phase, Side};
use crate::sys::process::{self, Liveness};

/// How often the record is looked at.
const LOOK_DUR: Duration = Duration::from_millis(50);
/// How long a driver may take to clean up after it has rolled back.
const END_LIMIT_DUR: Duration = Duration::from_secs(30);

/// A migration cannot be ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CancelError {
    /// There is none.
    #[error("no migration of container \"{container}\" is under way on this host")]
    Nothing {
        /// Which.
        container: String,
    },
    /// It was committed before.
    #[error("too late: container \"{container}\" was given to {peer} and runs there")]
    Moved {
        /// Which.
        container: String,
        /// The destination.
        peer: String,
    },
    /// It was committed before, and this is the destination.
    #[error("too late: container \"{container}\" has come from {peer} and runs here")]
    Arrived {
        /// Which.
        container: String,
        /// The source.
        peer: String,
    },
    /// Nobody drives it, and it is open.
    #[error(
        "the migration of container \"{container}\" ({peer}) is not settled, and nobody works on it: `rcm live-migrate {container} --resolve` settles it"
    )]
    NotSettled {
        /// Which.
        container: String,
        /// The other end.
        peer: String,
    },
    /// The records cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The driver cannot be told.
    #[error("cannot signal the rcm that migrates container \"{container}\" (process {pid})")]
    Signal {
        /// Which.
        container: String,
        /// The driver.
        pid: i32,
        /// Why.
        #[source]
        source: Errno,
    },
}

type Result<T, E = CancelError> = std::result::Result<T, E>;

/// Keeps apart who sends a signal to a driver, and a driver for which signals are about to mean something else.
#[derive(Debug)]
pub struct Gate {
    _held: Flock<File>,
}

impl Gate {
    /// Waits until nobody else has it: moments. `None` where no migration has ever been recorded.
    ///
    /// # Errors
    /// [`JournalError::File`].
    pub fn hold(root: &Path) -> Result<Option<Self>, JournalError> {
        let Some(dir) = journal::open_dir(root)? else {
            return Ok(None);
        };
        match Flock::lock(dir, FlockArg::LockExclusive) {
            Ok(held) => Ok(Some(Self { _held: held })),
            Err((_, errno)) => Err(journal::dir_error(root, "lock", errno)),
        }
    }
}

/// Ends the migration of `container` that is under way on this host, at either end, and waits until it has ended. Returns which end this is; the container
/// runs on at the source.
///
/// # Errors
/// [`CancelError`]: it was not ended.
pub fn cancel(root: &Path, container: &str) -> Result<Side> {
    let nothing = || CancelError::Nothing {
        container: container.to_owned(),
    };
    let gate = Gate::hold(root)?.ok_or_else(nothing)?;
    let record = under_way(root, container)?.ok_or_else(nothing)?;
    let writer = record.writer;
    let unsettled = || CancelError::NotSettled {
        container: container.to_owned(),
        peer: record.peer.clone(),
    };
    let pidfd = match process::pidfd_open(writer.pid()) {
        Ok(pidfd) => pidfd,
        Err(Errno::ESRCH) => return Err(unsettled()),
        Err(source) => {
            return Err(CancelError::Signal {
                container: container.to_owned(),
                pid: writer.pid,
                source,
            });
        }
    };
    // After the descriptor was opened: what it refers to is the writer, or the writer is gone.
    let lock = journal::lock_path(root, container);
    if writer.liveness() == Liveness::Gone || !process::holds(writer.pid(), &lock) {
        return Err(unsettled());
    }
    if record.phase.may_roll_back() {
        match process::pidfd_send_signal(&pidfd, Some(Signal::SIGTERM as i32)) {
            // It has ended meanwhile; the record says how.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(source) => {
                return Err(CancelError::Signal {
                    container: container.to_owned(),
                    pid: writer.pid,
                    source,
                });
            }
        }
    }
    drop(gate);
    loop {
        let has_ended = ends_within(&pidfd, LOOK_DUR);
        let now = journal::read(root, container)?
            .filter(|now| now.migration == record.migration)
            .filter(|now| now.phase.is_final());
        match now.map(|now| (now.phase, now.side)) {
            Some((Phase::RolledBack, side)) => {
                // The images and what was restored go after that.
                let deadline = Instant::now() + END_LIMIT_DUR;
                while !ends_within(&pidfd, LOOK_DUR) && Instant::now() < deadline {}
                return Ok(side);
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
            None => {}
        }
    }
}

/// The record of this host that is not final; a container that is sent on has two.
fn under_way(root: &Path, container: &str) -> Result<Option<JournalRecord>> {
    for side in [Side::Source, Side::Destination] {
        let record = journal::read_side(root, container, side)?;
        if let Some(record) = record.filter(|record| !record.phase.is_final()) {
            return Ok(Some(record));
        }
    }
    Ok(None)
}

fn ends_within(pidfd: &impl AsFd, limit_dur: Duration) -> bool {
    let mut waited = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(limit_dur).unwrap_or(PollTimeout::MAX);
    poll(&mut waited, timeout).is_ok_and(|ready| ready > 0)
}
