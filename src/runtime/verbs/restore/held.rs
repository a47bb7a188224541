//! Resume and rollback of a restored container.

use std::path::PathBuf;

use chrono::Utc;
use nix::unistd::Pid;

use super::stages::RestoreStages;
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

/// Restored container that executes.
#[derive(Debug)]
pub struct Restored {
    /// The container.
    pub container: Container,
    /// First process, a child of this process.
    pub pid: Pid,
    /// Master of the terminal, if there is one and no socket got it.
    pub terminal: Option<Master>,
    /// Announcement of its addresses on the link, if it came from another host.
    pub announcement: Option<Announcement>,
}

/// Restored container of which nothing has executed. Dropping this removes it.
#[derive(Debug)]
#[must_use = "dropping a held restore kills what was restored"]
pub struct HeldRestore {
    pub(super) container: Container,
    /// `None` after the resume or the rollback.
    pub(super) held: Option<criu::PausedRestore<RestoreStages>>,
    pub(super) pid_file: Option<PathBuf>,
}

impl HeldRestore {
    /// Returns the container.
    #[must_use]
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// Returns the restored first process, a child of this process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.held
            .as_ref()
            .map_or(Pid::from_raw(-1), criu::PausedRestore::pid)
    }

    /// Lets the container execute, and registers it like one that was created and started.
    ///
    /// # Errors
    /// If the record cannot be written or CRIU fails. Nothing is left of the container in these
    /// cases.
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
        // Register before anything executes. If rcm is killed after this, the record already names
        // the container's process. If registering fails, nothing has executed, and the restore may
        // be tried again.
        self.register(pid)
            .and_then(|()| write_pid_file(self.pid_file.as_deref(), pid))
            .map_err(|error| NotResumed::before(error.into()))?;
        // Announce before the network is unlocked: a container that is not announced has to go.
        announce().map_err(NotResumed::before)?;
        // Unlock before CRIU releases the sockets: each one then asks its peer for the packets that
        // it has missed, and these must pass.
        let announcement = held.notify_mut().arrival.complete(pid);
        let resumed = held.resume();
        let stages = resumed.map_err(|failed| failed.map(|error| Error::from(error).into()))?;
        let cgroup = self.container.cgroup();
        if cgroup.freezer_dir().is_ok() {
            // CRIU restores the freezer of cgroup v1 with the state that it had in the dump:
            // frozen, by rcm or by an engine that pauses first. As with runc, a restored container
            // runs.
            if let Err(error) = cgroup.thaw() {
                // The container executes or has executed, so it must not be removed any more.
                let id = self.container.id();
                tracing::error!(
                    "cannot resume the restored container {id}: {}",
                    chain(&error)
                );
            }
        }
        if let Some(announcement) = &announcement {
            // The source removes its network lock when it hears that the container runs here.
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

    /// Rolls back: removes the restored container. Returns when it is gone.
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
