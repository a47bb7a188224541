//! A container's control group: its processes, the freezer, killing and removing it.
//!
//! Limits are left to `libcgroups`. rcm itself does the parts that must be exact and fast: the
//! freezer, which fences a container and freezes it for a checkpoint, and removal.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::Pid;

use hierarchy::{hierarchies, membership, places, resolve};

use crate::sys::file::Failed;

mod hierarchy;
mod join;

pub(crate) use hierarchy::delegated_path;
pub use join::SubCgroups;
pub(crate) use join::{Entry, Making};

/// Interval at which the freezer's state is read. A group is frozen within 0.2 ms as a rule, and a
/// longer interval would add to the downtime.
const POLL_INTERVAL_DUR: Duration = Duration::from_micros(100);
/// Limit of [`Cgroup::freeze`]. Tasks in uninterruptible sleep (a dead NFS server) freeze only when
/// they wake.
const FREEZE_LIMIT_DUR: Duration = Duration::from_secs(10);
/// Limit of [`Cgroup::remove`] for killed tasks to leave the group.
const REMOVE_LIMIT_DUR: Duration = Duration::from_secs(10);

/// Failure of an operation on a control group.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CgroupError {
    /// Reading or writing one of its files failed.
    #[error(transparent)]
    File(#[from] Failed),
    /// The group has no freezer: neither cgroup v2 nor the v1 controller.
    #[error(
        "the cgroup has no freezer: neither cgroup v2 nor the v1 freezer controller is mounted"
    )]
    NoFreezer,
    /// The group's tasks did not freeze in time.
    #[error(
        "{path} was not frozen within {limit_dur:?}: a task may sleep in the kernel, see /proc/PID/stack of those in cgroup.procs"
    )]
    NotFrozen {
        /// Directory of the freezer.
        path: PathBuf,
        /// How long rcm waited.
        limit_dur: Duration,
    },
    /// A process could not be moved into a group; the beginning of the sentence is runc's.
    #[error("error adding pid {pid} to cgroups: cannot write {path}")]
    Join {
        /// Id of the process.
        pid: Pid,
        /// File of the group that takes processes.
        path: PathBuf,
        /// Error of the write.
        #[source]
        source: io::Error,
    },
    /// A path below the container's group leads out of it.
    #[error("bad sub cgroup path: {}", path.display())]
    BadSubCgroup {
        /// The path.
        path: PathBuf,
    },
    /// A group was requested in a hierarchy that the container is not in.
    #[error(
        "unknown controller {controller} in --cgroup: {}",
        if known.is_empty() {
            "on cgroup v2 one path for all controllers can be given, without a prefix".to_owned()
        } else {
            format!("the container's are {known}")
        }
    )]
    UnknownController {
        /// Name of the controller.
        controller: String,
        /// The container's controllers, separated by commas; empty on cgroup v2.
        known: String,
    },
    /// The manager of `libcgroups` failed.
    #[error("{reason}")]
    Manager {
        /// Error chain of the manager.
        reason: String,
    },
}

type Result<T> = std::result::Result<T, CgroupError>;

/// Directories of one control group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    paths: BTreeMap<String, PathBuf>,
}

impl Cgroup {
    /// Creates a group from its directories by controller: `memory` and so on, `name=systemd` for a
    /// named hierarchy of cgroup v1, `unified` for cgroup v2 beside v1, an empty key for cgroup v2
    /// alone.
    #[must_use]
    pub fn new(paths: BTreeMap<String, PathBuf>) -> Self {
        Self { paths }
    }

    /// Returns the group of the container's process `pid`, from `/proc/PID/cgroup` and the mounts
    /// of the cgroup file systems.
    ///
    /// Hierarchies in which it is in the same group as this process are left out. Such a group was
    /// only inherited: it belongs to the caller's session, and must never be killed or removed with
    /// the container.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn of_process(pid: Pid) -> Result<Self> {
        let hierarchies = hierarchies()?;
        let mut paths = resolve(&membership(&pid.to_string())?, &hierarchies);
        let own = resolve(&membership("self")?, &hierarchies);
        paths.retain(|controller, path| own.get(controller) != Some(path));
        Ok(Self::new(paths))
    }

    /// Returns the group `path`, absolute in every hierarchy, whether it exists or not.
    ///
    /// # Errors
    /// If the mount table cannot be read.
    pub fn at(path: &Path) -> Result<Self> {
        Ok(Self::new(places(path, hierarchies()?)))
    }

    /// Returns the directories by controller.
    #[must_use]
    pub fn paths(&self) -> &BTreeMap<String, PathBuf> {
        &self.paths
    }

    /// Returns whether this is a group of cgroup v2.
    #[must_use]
    pub fn is_v2(&self) -> bool {
        self.paths.keys().all(String::is_empty) && !self.paths.is_empty()
    }

    /// Returns the directory of a v1 controller, or the v2 directory.
    #[must_use]
    pub fn dir(&self, controller: &str) -> Option<&Path> {
        let key = if self.is_v2() { "" } else { controller };
        self.paths.get(key).map(PathBuf::as_path)
    }

    /// Returns the directory that has the freezer's files.
    ///
    /// # Errors
    /// [`CgroupError::NoFreezer`].
    pub fn freezer_dir(&self) -> Result<&Path> {
        self.dir("freezer").ok_or(CgroupError::NoFreezer)
    }

    /// Returns whether any of its directories exists.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.paths.values().any(|path| path.exists())
    }

    /// Returns the processes in the group and below it. A group that does not exist has none.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn pids(&self) -> Result<Vec<Pid>> {
        // All controllers have the same processes. Prefer the freezer's list, because a fence
        // covers exactly these.
        let dir = match self.dir("freezer").or_else(|| self.dir("devices")) {
            Some(dir) => dir,
            None => match self.paths.values().next() {
                Some(dir) => dir,
                None => return Ok(Vec::new()),
            },
        };
        let mut pids = BTreeSet::new();
        for dir in subtree(dir) {
            read_procs(&dir, &mut pids)?;
        }
        Ok(pids.into_iter().map(Pid::from_raw).collect())
    }

    /// Freezes every task of the group, and waits until all are frozen.
    ///
    /// # Errors
    /// [`CgroupError::NotFrozen`] after ten seconds; the group is thawed again in that case.
    pub fn freeze(&self) -> Result<()> {
        self.set_frozen(true)?;
        let deadline = Instant::now() + FREEZE_LIMIT_DUR;
        while !self.is_frozen() {
            if Instant::now() > deadline {
                self.thaw()?;
                return Err(CgroupError::NotFrozen {
                    path: self.freezer_dir()?.to_path_buf(),
                    limit_dur: FREEZE_LIMIT_DUR,
                });
            }
            if !self.is_v2() {
                // The v1 freezer may stay in FREEZING if a task was forked meanwhile. Writing
                // FROZEN again completes it
                // (Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst).
                self.set_frozen(true)?;
            }
            thread::sleep(POLL_INTERVAL_DUR);
        }
        Ok(())
    }

    /// Lets the tasks run again.
    ///
    /// # Errors
    /// If the freezer's file cannot be written.
    pub fn thaw(&self) -> Result<()> {
        self.set_frozen(false)
    }

    fn set_frozen(&self, frozen: bool) -> Result<()> {
        let dir = self.freezer_dir()?;
        let (name, value) = match (self.is_v2(), frozen) {
            (true, true) => ("cgroup.freeze", "1"),
            (true, false) => ("cgroup.freeze", "0"),
            (false, true) => ("freezer.state", "FROZEN"),
            (false, false) => ("freezer.state", "THAWED"),
        };
        write(&dir.join(name), value)
    }

    /// Returns whether all tasks are frozen by this group's own freezer.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        let Ok(dir) = self.freezer_dir() else {
            return false;
        };
        if self.is_v2() {
            fs::read_to_string(dir.join("cgroup.events"))
                .is_ok_and(|events| events.lines().any(|line| line == "frozen 1"))
        } else {
            fs::read_to_string(dir.join("freezer.state"))
                .is_ok_and(|state| state.trim() == "FROZEN")
        }
    }

    /// Sends SIGKILL to every process of the group. Frozen processes of cgroup v1 die when they are
    /// thawed, so this thaws the group at the end.
    ///
    /// # Errors
    /// If the group's files cannot be read.
    pub fn kill_all(&self) -> Result<()> {
        if !self.exists() {
            return Ok(());
        }
        if self.is_v2()
            && let Some(dir) = self.dir("")
            // Exists since Linux 5.14.
            && fs::write(dir.join("cgroup.kill"), "1").is_ok()
        {
            return Ok(());
        }
        // Freezing stops processes from forking faster than they are killed. A group that cannot be
        // frozen is killed all the same.
        let _ = self.set_frozen(true);
        let mut pids = BTreeSet::new();
        // A creation that was interrupted may have moved its process into some of the hierarchies
        // only.
        for top in self.distinct_dirs() {
            for dir in subtree(top) {
                read_procs(&dir, &mut pids)?;
            }
        }
        for pid in pids {
            // `ESRCH` is fine: the process is gone.
            let _ = nix::sys::signal::kill(Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        let _ = self.set_frozen(false);
        Ok(())
    }

    /// Returns the directories without duplicates: controllers that are mounted together share one.
    fn distinct_dirs(&self) -> BTreeSet<&PathBuf> {
        self.paths.values().collect()
    }

    /// Removes the group if it has no processes and no groups below it. This needs one system call
    /// per hierarchy. Returns whether nothing of the group is left.
    #[must_use]
    pub fn remove_unused(&self) -> bool {
        self.distinct_dirs()
            .into_iter()
            .all(|dir| match fs::remove_dir(dir) {
                Ok(()) => true,
                Err(error) => error.kind() == io::ErrorKind::NotFound,
            })
    }

    /// Removes the group with all groups below it, and waits up to ten seconds for killed processes
    /// to leave.
    ///
    /// # Errors
    /// If a directory cannot be removed; `EBUSY` if processes are left.
    pub fn remove(&self) -> Result<()> {
        let deadline = Instant::now() + REMOVE_LIMIT_DUR;
        for top in self.distinct_dirs() {
            for dir in subtree(top).into_iter().rev() {
                remove_dir_until(&dir, deadline)?;
            }
        }
        Ok(())
    }
}

fn remove_dir_until(dir: &Path, deadline: Instant) -> Result<()> {
    let mut pause_dur = Duration::from_micros(200);
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error)
                if error.raw_os_error() == Some(Errno::EBUSY as i32)
                    && Instant::now() < deadline =>
            {
                thread::sleep(pause_dur);
                pause_dur = (pause_dur * 2).min(Duration::from_millis(50));
            }
            Err(error) => return Err(Failed::to("remove", dir)(error).into()),
        }
    }
}

/// Returns the directory and all directories below it, parents before children. Unreadable ones are
/// left out.
fn subtree(top: &Path) -> Vec<PathBuf> {
    walkdir::WalkDir::new(top)
        .into_iter()
        .filter_map(std::result::Result::ok)
        .filter(|entry| entry.file_type().is_dir())
        .map(walkdir::DirEntry::into_path)
        .collect()
}

fn read_procs(dir: &Path, pids: &mut BTreeSet<i32>) -> Result<()> {
    let path = dir.join("cgroup.procs");
    match fs::read_to_string(&path) {
        Ok(text) => {
            pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
            Ok(())
        }
        // The group is gone, or it is a threaded group of cgroup v2, whose processes its domain
        // lists.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(Errno::ENODEV as i32)
                || error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) =>
        {
            Ok(())
        }
        Err(error) => Err(Failed::to("read", &path)(error).into()),
    }
}

fn write(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value).map_err(|error| Failed::to("write", path)(error).into())
}
