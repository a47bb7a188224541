//! What keeps the container still at the source when nothing else does.
//!
//! While CRIU holds a dump in `post-dump`, the tasks stand still because CRIU traces them; if CRIU or rcm dies they go on.
//! Before the commit that is exactly right, after it it would be the second copy. So before the commit leaves, the tasks are
//! also frozen by their cgroup, which outlives every process: they go on only when somebody thaws them.
//!
//! Between the freeze and the commit's entry in the journal the death of rcm must still let the container go on, so a [`ThawGuard`] watches
//! over that time. [`Fence::seal`] sends it home. From then on a fence is not lifted by anything but [`Fence::lift`].
//!
//! Getting rid of fenced tasks differs. On cgroup v2 `cgroup.kill` kills frozen tasks. On v1 a signal is delivered only
//! after a thaw, and CRIU's own SIGKILL would wait for ever: SIGKILL is queued to every task while the group is frozen, then it is thawed,
//! and the first thing that each task does is to die.

use std::io;
use std::path::PathBuf;

use crate::runtime::linux::cgroup::{Cgroup, CgroupError};
use crate::sys::thaw_guard::ThawGuard;

/// The container cannot be fenced.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FenceError {
    /// The freezer does not obey.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Nobody would thaw the group if rcm died now.
    #[error("cannot watch over {path}")]
    Guard {
        /// The freezer's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What held the container has let it go before it was fenced.
    #[error(
        "CRIU has died while it held the container, which has gone on since and is not what the images are"
    )]
    NotHeld,
}

/// A frozen cgroup whose tasks never run again by accident.
#[derive(Debug)]
#[must_use = "a sealed fence that nobody lifts stays"]
pub struct Fence {
    cgroup: Cgroup,
    guard: Option<ThawGuard>,
}

impl Fence {
    /// Freezes the group and waits until it is frozen; that works on tasks that a tracer holds, too (0.2 ms as a rule).
    ///
    /// # Errors
    /// Where the group has no freezer or does not freeze; it is thawed then.
    pub fn set(cgroup: Cgroup) -> Result<Self, FenceError> {
        let dir = cgroup.freezer_dir()?;
        let (path, word): (_, &[u8]) = if cgroup.is_v2() {
            (dir.join("cgroup.freeze"), b"0")
        } else {
            (dir.join("freezer.state"), b"THAWED")
        };
        let guard =
            ThawGuard::start(&path, word).map_err(|source| FenceError::Guard { path, source })?;
        cgroup.freeze()?;
        Ok(Self {
            cgroup,
            guard: Some(guard),
        })
    }

    /// A fence that an earlier process has set and sealed.
    pub fn adopt(cgroup: Cgroup) -> Self {
        Self {
            cgroup,
            guard: None,
        }
    }

    /// From here on the group stays frozen even if this process dies.
    pub fn seal(&mut self) {
        self.guard = None;
    }

    /// Whether the tasks are still frozen.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.cgroup.is_frozen()
    }

    /// Lets the tasks go on: the migration ended without a commit.
    ///
    /// # Errors
    /// Where the freezer's file cannot be written.
    pub fn lift(self) -> Result<(), CgroupError> {
        self.cgroup.thaw()
    }

    /// Kills the tasks without letting them execute another instruction: the container runs elsewhere.
    ///
    /// # Errors
    /// Where the group's files cannot be used.
    pub fn kill(self) -> Result<(), CgroupError> {
        self.cgroup.kill_all()
    }
}
