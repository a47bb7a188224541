//! The decision about a restored container.

use std::path::PathBuf;

use chrono::Utc;
use nix::unistd::Pid;

use super::stages::Stages;
use crate::criu::{self, NotResumed};
use crate::error::chain;
use crate::runtime::container::Container;
use crate::runtime::error::{Error, Result};
use crate::runtime::linux::cgroup::Cgroup;
use crate::runtime::process::delivery::write_pid_file;
use crate::runtime::process::stdio;
use crate::runtime::process::terminal::Master;
use crate::runtime::verbs::delete;
use crate::sys::announce::Announcement;
use crate::sys::process::ProcessId;

/// A restored container that executes.
#[derive(Debug)]
pub struct Restored {
    /// The container.
    pub container: Container,
    /// Its first process, a child of this one.
    pub pid: Pid,
    /// The terminal, if it has one and nobody else got it.
    pub terminal: Option<Master>,
    /// What tells its link where its addresses are now, if it came from another host.
    pub announcement: Option<Announcement>,
}

/// A restored container of which nothing has executed. Dropping this takes it away.
#[derive(Debug)]
#[must_use = "dropping a held restore kills what was restored"]
pub struct HeldRestore {
    pub(super) container: Container,
    /// Taken by the decision.
    pub(super) held: Option<criu::PausedRestore<Stages>>,
    pub(super) pid_file: Option<PathBuf>,
}

impl HeldRestore {
    /// The container.
    #[must_use]
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// The restored first process, a child of this one.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.held
            .as_ref()
            .map_or(Pid::from_raw(-1), criu::PausedRestore::pid)
    }

    /// Lets the container execute and registers it as one that was created and started.
    ///
    /// # Errors
    /// Where the record cannot be written or CRIU fails; nothing is left of the container then.
    pub fn resume(self) -> Result<Restored> {
        (self.resume_after(|| Ok(()))).map_err(|failed: NotResumed<Error>| failed.source)
    }

    /// As [`Self::resume`]. `announce` is called when nothing but CRIU's yes is missing: it has its
    /// last chance to refuse.
    ///
    /// # Errors
    /// As [`Self::resume`], and the error of `announce`.
    pub fn resume_after<E: From<Error>>(
        mut self,
        announce: impl FnOnce() -> Result<(), E>,
    ) -> Result<Restored, NotResumed<E>> {
        let result = self.try_resume(announce);
        if result.is_err() {
            discard(&self.container);
        }
        result
    }

    fn try_resume<E: From<Error>>(
        &mut self,
        announce: impl FnOnce() -> Result<(), E>,
    ) -> Result<Restored, NotResumed<E>> {
        let Some(mut held) = self.held.take() else {
            return Err(NotResumed::before(Error::NotRunning.into()));
        };
        let pid = held.pid();
        // Before anything executes: were rcm killed now, the container would be known for what it is; and what fails may be tried again.
        self.register(pid)
            .and_then(|()| write_pid_file(self.pid_file.as_deref(), pid))
            .map_err(|error| NotResumed::before(error.into()))?;
        // Before the network is unlocked: a container that is not announced has to go.
        announce().map_err(NotResumed::before)?;
        // Before CRIU lets the sockets go: each then asks its peer what it has missed.
        let announcement = held.notify_mut().arrival.complete(pid);
        let resumed = held.resume();
        let stages = resumed.map_err(|failed| failed.map(|error| Error::from(error).into()))?;
        let cgroup = self.container.cgroup();
        if cgroup.freezer_dir().is_ok() {
            // CRIU restores the freezer of cgroup v1 as it found it: frozen, by rcm for the dump or by an engine that pauses before it. As with runc, a
            // container that is restored runs.
            if let Err(error) = cgroup.thaw() {
                // It executes or has executed: no reason to take it away.
                let id = self.container.id();
                tracing::error!(
                    "cannot resume the restored container {id}: {}",
                    chain(&error)
                );
            }
        }
        if let Some(announcement) = &announcement {
            // The source unlocks its end when it hears that the container runs here.
            announcement.begun();
        }
        Ok(Restored {
            container: self.container.clone(),
            pid,
            terminal: stages.terminal.filter(|_| stages.wants_terminal),
            announcement,
        })
    }

    fn register(&mut self, pid: Pid) -> Result<()> {
        let init = ProcessId::of(pid)
            .map_err(std::io::Error::other)
            .map_err(Error::file("read", format!("/proc/{pid}/stat")))?;
        let cgroup = Cgroup::of_process(pid).map_err(Error::cgroup("find", self.container.id()))?;
        let record = self.container.record_mut();
        record.init = Some(init);
        record.created = Utc::now();
        record.cgroup_paths = cgroup.paths().clone();
        record.descriptors = stdio::descriptors(pid);
        self.container.save()
    }

    /// Takes away what was restored. Returns when it is gone.
    pub fn refuse(mut self) {
        self.roll_back();
    }

    fn roll_back(&mut self) {
        if let Some(held) = self.held.take() {
            held.refuse();
            discard(&self.container);
        }
    }
}

impl Drop for HeldRestore {
    fn drop(&mut self) {
        self.roll_back();
    }
}

pub(super) fn discard(container: &Container) {
    if let Err(left) = delete::discard(container) {
        tracing::warn!("cleaning up container {}: {}", container.id(), chain(&left));
    }
}
