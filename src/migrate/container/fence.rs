//! The fence at the source: it keeps the container frozen if every other process has died.
//!
//! While CRIU holds a dump in `post-dump`, the tasks are stopped because CRIU traces them. If CRIU
//! or rcm dies, they continue. Before the commit that is right; after it, it would be a second
//! copy. So the tasks are also frozen by their cgroup before the commit leaves. A frozen cgroup
//! outlives every process: its tasks run only after a thaw.
//!
//! Between this freeze and the commit's entry in the journal the death of rcm must still resume the
//! container, so a [`ThawGuard`] thaws it in that time. [`CgroupFence::seal`] ends the guard. From
//! then on only [`CgroupFence::lift`] thaws the cgroup.
//!
//! Fenced tasks are killed differently by version. On cgroup v2 `cgroup.kill` kills frozen tasks.
//! On v1 a signal is delivered only after a thaw, and CRIU's own SIGKILL would wait for ever. There
//! rcm queues SIGKILL for every task while the group is frozen, then thaws it, and each task dies
//! before it executes anything else.

use std::io;
use std::path::PathBuf;

use crate::runtime::linux::cgroup::{Cgroup, CgroupError};
use crate::sys::thaw_guard::ThawGuard;

/// The container cannot be fenced.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FenceError {
    /// The freezer cannot be used.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The guard that thaws the cgroup if rcm dies cannot be started.
    #[error("cannot start the guard that thaws {path} if rcm dies")]
    Guard {
        /// Path of the freezer's control file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// CRIU died before the container was fenced, which resumed it.
    #[error(
        "CRIU died while it held the container, which has run since: the images are out of date"
    )]
    NotHeld,
}

/// A frozen cgroup that only [`Self::lift`] thaws once it is sealed.
#[derive(Debug)]
#[must_use = "a sealed fence stays until it is lifted"]
pub struct CgroupFence {
    cgroup: Cgroup,
    guard: Option<ThawGuard>,
}

impl CgroupFence {
    /// Freezes the group and waits until it is frozen, usually 0.2 ms. This also works for tasks
    /// that are traced.
    ///
    /// # Errors
    /// If the group has no freezer or does not freeze. It is thawed then.
    pub fn set(cgroup: Cgroup) -> Result<Self, FenceError> {
        let dir = cgroup.freezer_dir()?;
        let (path, word): (_, &[u8]) = if cgroup.is_v2() {
            (dir.join("cgroup.freeze"), b"0")
        } else {
            (dir.join("freezer.state"), b"THAWED")
        };
        // The guard first: a death of rcm right after the freeze must not leave the group frozen.
        let guard =
            ThawGuard::start(&path, word).map_err(|source| FenceError::Guard { path, source })?;
        cgroup.freeze()?;
        Ok(Self {
            cgroup,
            guard: Some(guard),
        })
    }

    /// Returns the fence that an earlier process has set and sealed.
    pub fn adopt(cgroup: Cgroup) -> Self {
        Self {
            cgroup,
            guard: None,
        }
    }

    /// Makes the group stay frozen even if this process dies.
    pub fn seal(&mut self) {
        self.guard = None;
    }

    /// Returns whether the tasks are still frozen.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.cgroup.is_frozen()
    }

    /// Thaws the tasks after a migration without a commit.
    ///
    /// # Errors
    /// If the freezer's file cannot be written.
    pub fn lift(self) -> Result<(), CgroupError> {
        self.cgroup.thaw()
    }

    /// Kills the tasks before they execute another instruction: the container runs elsewhere.
    ///
    /// # Errors
    /// If the group's files cannot be used.
    pub fn kill(self) -> Result<(), CgroupError> {
        self.cgroup.kill_all()
    }
}
