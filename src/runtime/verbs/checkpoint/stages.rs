//! rcm's part while CRIU dumps a container.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Instant;

use nix::unistd::Pid;

use crate::criu::error::CallbackError;
use crate::criu::{Notification, Notify, Reply};
use crate::runtime::container::Container;
use crate::runtime::image_extras::Details;
use crate::runtime::linux::cgroup::Cgroup;
use crate::runtime::linux::network::Departure;
use crate::runtime::linux::{host_file, quiesce};
use crate::runtime::process::criu_process;
use crate::sys::thaw_guard::ThawGuard;

/// State of a dump, and its reactions to CRIU's notifications.
#[derive(Debug)]
pub(super) struct DumpStages {
    pub(super) container: Container,
    pub(super) init: Pid,
    pub(super) images: PathBuf,
    pub(super) cgroup: Cgroup,
    /// Whether the container was paused before the dump.
    pub(super) paused: bool,
    pub(super) details: Details,
    /// Whether CRIU asks for files that are not to be saved. Older versions do not, and fail on
    /// files outside the container's mounts.
    pub(super) asks_for_files: bool,
    /// Freezer's directory. CRIU finds it only as long as this is open.
    pub(super) freezer: Option<File>,
    pub(super) guard: Option<ThawGuard>,
    /// Network lock, which drops packets from the freeze on.
    pub(super) departure: Option<Departure>,
    /// Time just before the first task is frozen, if rcm freezes them.
    pub(super) stopped_at: Instant,
    /// Time at which rcm had frozen all of them.
    pub(super) frozen_at: Instant,
    pub(super) status_fd: Option<OwnedFd>,
}

impl DumpStages {
    fn freeze(&mut self) -> Result<(), CallbackError> {
        if self.freezer.is_none() || self.paused {
            return Ok(());
        }
        let dir = self.cgroup.freezer_dir()?;
        // The guard comes before the freeze, so that rcm's death cannot leave the cgroup frozen.
        self.guard = Some(if self.cgroup.is_v2() {
            ThawGuard::start(&dir.join("cgroup.freeze"), b"0")?
        } else {
            ThawGuard::start(&dir.join("freezer.state"), b"THAWED")?
        });
        self.stopped_at = quiesce::freeze(&self.cgroup)?;
        self.frozen_at = Instant::now();
        Ok(())
    }

    fn find_files(&mut self) -> Result<Reply, CallbackError> {
        // CRIU has stopped the tasks itself and thawed the cgroup, so the guard has no purpose any
        // more.
        self.guard = None;
        // The tasks are stopped: their sockets can be locked, and their open files do not change.
        let processes = self.lock_ends()?;
        let (external, files) = host_file::find(self.init, &processes)?;
        self.details.files = files;
        self.details.write(&self.images)?;
        Ok(Reply { external })
    }

    /// Locks the processes' sockets in the host's network. Returns the processes, which are
    /// stopped.
    fn lock_ends(&mut self) -> Result<Vec<Pid>, CallbackError> {
        let processes = match self.cgroup.pids()? {
            none if none.is_empty() => vec![self.init],
            processes => processes,
        };
        if let Some(departure) = &mut self.departure {
            self.details.tcp_ends = departure.lock_ends(&processes)?;
        }
        Ok(processes)
    }
}

/// Reactions to the notifications of a pre-dump: rcm only records CRIU's process.
pub(super) struct Recorded<'a>(pub(super) &'a Container);

impl Notify for Recorded<'_> {
    fn started(&mut self, pid: Pid) -> Result<(), CallbackError> {
        criu_process::record(self.0, pid)
    }

    fn on(&mut self, _: Notification) -> Result<Reply, CallbackError> {
        Ok(Reply::default())
    }
}

impl Notify for DumpStages {
    fn started(&mut self, pid: Pid) -> Result<(), CallbackError> {
        criu_process::record(&self.container, pid)
    }

    fn on(&mut self, notification: Notification) -> Result<Reply, CallbackError> {
        match notification {
            Notification::PreDump => {
                // Lock, then freeze. A connection that arrives in a frozen container is not
                // accepted, and CRIU would fail on it.
                if let Some(departure) = &self.departure {
                    departure.lock()?;
                }
                self.freeze()?;
                if !self.asks_for_files {
                    self.lock_ends()?;
                    self.details.write(&self.images)?;
                }
            }
            Notification::QueryExternalFiles => return self.find_files(),
            Notification::StatusReady => {
                if let Some(fd) = self.status_fd.take() {
                    File::from(fd).write_all(&[0])?;
                }
            }
            _ => {}
        }
        Ok(Reply::default())
    }
}

/// Thaws a cgroup that a failed or rolled-back dump may have left frozen.
pub(super) fn thaw_after(cgroup: &Cgroup, paused: bool, id: &str) {
    if paused || cgroup.freezer_dir().is_err() {
        return;
    }
    if let Err(error) = cgroup.thaw() {
        tracing::error!(
            "container {id} may still be frozen: {}; `rcm resume {id}` thaws it",
            crate::error::chain(&error)
        );
    }
}
