//! What becomes of a dumped container.

use std::time::Instant;

use nix::unistd::Pid;

use super::stages::{Stages, thaw_after};
use crate::criu::PausedDump;
use crate::runtime::container::Container;
use crate::runtime::error::Result;
use crate::sys::process::is_traced;

/// A dumped container that is stopped. Dropping this lets it run on.
#[derive(Debug)]
#[must_use = "dropping a held checkpoint lets the container run on"]
pub struct HeldCheckpoint {
    pub(super) container: Container,
    pub(super) init: Pid,
    /// Taken by the decision.
    pub(super) held: Option<PausedDump<Stages>>,
    /// Whether the tasks may live after a commit: they shall, or a lazy dump fails while its pages
    /// are fetched.
    pub(super) may_run_on: bool,
    pub(super) stopped_at: Instant,
    pub(super) frozen_at: Instant,
}

impl HeldCheckpoint {
    /// The container.
    #[must_use]
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// When the container stopped; slightly too early where it has no freezer and CRIU stops its
    /// tasks one by one.
    #[must_use]
    pub fn stopped_at(&self) -> Instant {
        self.stopped_at
    }

    /// When all of it stood still; about the same as [`Self::stopped_at`] where CRIU stops the
    /// tasks.
    #[must_use]
    pub fn frozen_at(&self) -> Instant {
        self.frozen_at
    }

    /// Whether CRIU still holds the container. If it was killed, the container has gone on, and is
    /// not what the images are any more.
    #[must_use]
    pub fn holds(&self) -> bool {
        // Not whether CRIU lives: the last that a dying process does is to say that it is dead.
        is_traced(self.init)
    }

    /// Completes the dump: CRIU kills the processes, or lets them run on with
    /// [`leave_running`](super::CheckpointOptions::leave_running). The container is not deleted;
    /// that is [`crate::runtime::verbs::delete::destroy`].
    ///
    /// Where the cgroup was frozen meanwhile (a fence), its tasks must have been killed before
    /// ([`kill_all`](crate::runtime::Cgroup::kill_all)): frozen tasks of cgroup v1 do not die, and
    /// CRIU would wait for them.
    ///
    /// # Errors
    /// CRIU's, where it fails or dies.
    pub fn commit(mut self) -> Result<()> {
        let Some(mut held) = self.held.take() else {
            return Ok(());
        };
        if self.may_run_on {
            release_freezer(held.notify_mut());
        }
        held.commit()?;
        Ok(())
    }

    /// Lets the container run on, or stay paused if it was. Returns when CRIU has let go of it.
    pub fn refuse(mut self) {
        self.roll_back();
    }

    /// Keeps every packet from the container's sockets, if this does, until
    /// [`lift`](crate::runtime::linux::network::lift), whatever becomes of this process.
    ///
    /// # Errors
    /// [`Error::Network`](crate::runtime::Error::Network).
    pub fn leave_barrier(&mut self) -> Result<()> {
        let held = self.held.as_mut();
        match held.and_then(|held| held.notify_mut().departure.as_ref()) {
            Some(departure) => departure.leave(&self.container),
            None => Ok(()),
        }
    }

    fn roll_back(&mut self) {
        if let Some(mut held) = self.held.take() {
            release_freezer(held.notify_mut());
            // Before CRIU lets the sockets go: each then asks its peer what it has missed.
            if let Some(departure) = held.notify_mut().departure.take() {
                departure.open();
            }
            let stages = held.refuse();
            thaw_after(&stages.cgroup, stages.paused, self.container.id());
        }
    }
}

impl Drop for HeldCheckpoint {
    fn drop(&mut self) {
        self.roll_back();
    }
}

/// Keeps CRIU from freezing the container again; one that was paused shall be.
fn release_freezer(stages: &mut Stages) {
    if !stages.paused {
        stages.freezer = None;
    }
}
