//! Commit and rollback of a dumped container.

use std::time::Instant;

use nix::unistd::Pid;

use super::stages::{DumpStages, thaw_after};
use crate::criu::PausedDump;
use crate::runtime::container::Container;
use crate::runtime::error::Result;
use crate::sys::process::is_traced;

/// Dumped container that is frozen. Dropping this lets it run on.
#[derive(Debug)]
#[must_use = "dropping a held checkpoint lets the container run on"]
pub struct HeldCheckpoint {
    pub(super) container: Container,
    pub(super) init: Pid,
    /// `None` after the commit or the rollback.
    pub(super) held: Option<PausedDump<DumpStages>>,
    /// Whether tasks may execute after a commit: with `leave_running`, or if a lazy dump fails
    /// while its pages are fetched.
    pub(super) may_run_on: bool,
    pub(super) stopped_at: Instant,
    pub(super) frozen_at: Instant,
}

impl HeldCheckpoint {
    /// Returns the container.
    #[must_use]
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// Returns the time at which the container stopped. It is slightly too early if there is no
    /// freezer and CRIU stops the tasks one by one.
    #[must_use]
    pub fn stopped_at(&self) -> Instant {
        self.stopped_at
    }

    /// Returns the time at which all tasks were frozen; about the same as [`Self::stopped_at`] if
    /// CRIU stops the tasks.
    #[must_use]
    pub fn frozen_at(&self) -> Instant {
        self.frozen_at
    }

    /// Returns whether CRIU still holds the container. If CRIU was killed, the container has
    /// resumed and differs from the images.
    #[must_use]
    pub fn holds(&self) -> bool {
        // Do not ask whether CRIU lives: a dying process looks alive until the end of its exit, and
        // has released its tracees before.
        is_traced(self.init)
    }

    /// Completes the dump. CRIU kills the processes, or lets them run on with
    /// [`leave_running`](super::CheckpointOptions::leave_running). The container is not deleted;
    /// [`destroy`](crate::runtime::verbs::delete::destroy) does that.
    ///
    /// If the cgroup was frozen meanwhile (a fence), its tasks must have been killed before
    /// ([`kill_all`](crate::runtime::Cgroup::kill_all)). Frozen tasks of cgroup v1 do not die, and
    /// CRIU would wait for them.
    ///
    /// # Errors
    /// CRIU's error if it fails or dies.
    pub fn commit(mut self) -> Result<()> {
        let Some(mut held) = self.held.take() else {
            return Ok(());
        };
        // Before CRIU gets its answer: with the descriptor closed, it cannot freeze the cgroup
        // again when it resumes the tasks.
        if self.may_run_on {
            release_freezer(held.notify_mut());
        }
        held.commit()?;
        Ok(())
    }

    /// Rolls back: lets the container run on, or stay paused if it was. Returns when CRIU has
    /// released it.
    pub fn refuse(mut self) {
        self.roll_back();
    }

    /// Leaves the network lock, if there is one, until
    /// [`lift`](crate::runtime::linux::network::lift), even if this process dies.
    ///
    /// # Errors
    /// [`Error::Network`](crate::runtime::Error::Network).
    pub fn leave_lock(&mut self) -> Result<()> {
        let held = self.held.as_mut();
        match held.and_then(|held| held.notify_mut().departure.as_ref()) {
            Some(departure) => departure.leave(&self.container),
            None => Ok(()),
        }
    }

    fn roll_back(&mut self) {
        if let Some(mut held) = self.held.take() {
            release_freezer(held.notify_mut());
            // Unlock before CRIU releases the sockets: each one then asks its peer for the packets
            // that it has missed, and these must pass.
            if let Some(departure) = held.notify_mut().departure.take() {
                departure.unlock();
            }
            let stages = held.refuse();
            // Last, after CRIU has released the tasks: they may still be in a frozen cgroup.
            thaw_after(&stages.cgroup, stages.paused, self.container.id());
        }
    }
}

impl Drop for HeldCheckpoint {
    fn drop(&mut self) {
        self.roll_back();
    }
}

/// Keeps CRIU from freezing the container again, unless it was paused before the dump.
fn release_freezer(stages: &mut DumpStages) {
    if !stages.paused {
        stages.freezer = None;
    }
}
