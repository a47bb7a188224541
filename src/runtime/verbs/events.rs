//! Watching a container for out-of-memory kills and for its end.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::runtime::container::Container;
use crate::runtime::error::{Error, Result};
use crate::runtime::linux::cgroup::{Cgroup, CgroupError};
use crate::sys::file::Failed;
use crate::sys::process::pidfd_open;

/// Event in a container, or the end of the wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occurrence {
    /// The kernel killed a process of the container because memory ran out.
    OutOfMemory,
    /// The container's first process has ended.
    Ended,
    /// The deadline has passed.
    Deadline,
}

/// Watch over a container.
#[derive(Debug)]
pub struct Watch {
    id: String,
    /// pidfd of the first process, readable when it has ended.
    init: std::os::fd::OwnedFd,
    memory: Option<MemoryWatch>,
    ended: bool,
}

impl Watch {
    /// Begins to watch. Without a memory controller, only the end is noticed.
    ///
    /// # Errors
    /// [`Error::NotRunning`], or [`Error::Cgroup`] if the kernel refuses the watch.
    pub fn start(container: &Container) -> Result<Self> {
        let pid = container.live_init()?;
        let init = match pidfd_open(pid) {
            Ok(init) => init,
            Err(Errno::ESRCH) => return Err(Error::NotRunning),
            Err(errno) => return Err(Error::system("watch the container's first process")(errno)),
        };
        let memory = MemoryWatch::start(&container.cgroup())
            .map_err(Error::cgroup("watch", container.id()))?;
        Ok(Self {
            id: container.id().to_owned(),
            init,
            memory,
            ended: false,
        })
    }

    /// Waits for the next event until `deadline`. [`Occurrence::Ended`] comes last: kills before
    /// the end are reported before it.
    ///
    /// # Errors
    /// Those of poll(2), or of reading the kernel's counters.
    pub fn next(&mut self, deadline: Instant) -> Result<Occurrence> {
        loop {
            if let Some(memory) = &mut self.memory
                && memory
                    .take_kill()
                    .map_err(Error::cgroup("watch", &self.id))?
            {
                return Ok(Occurrence::OutOfMemory);
            }
            if self.ended {
                return Ok(Occurrence::Ended);
            }
            let left_dur = deadline.saturating_duration_since(Instant::now());
            if left_dur.is_zero() {
                return Ok(Occurrence::Deadline);
            }
            self.ended = self
                .wait(left_dur)
                .map_err(Error::system("wait for events"))?;
        }
    }

    /// Waits until there may be an event. Returns whether the first process has ended.
    fn wait(&self, limit_dur: Duration) -> nix::Result<bool> {
        // Round up: a wait of 0 ms would turn the rest of a millisecond into a busy loop.
        let millis =
            i32::try_from(limit_dur.as_millis()).map_or(i32::MAX, |ms| ms.saturating_add(1));
        let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
        let mut fds = vec![PollFd::new(self.init.as_fd(), PollFlags::POLLIN)];
        if let Some(memory) = &self.memory {
            fds.push(PollFd::new(memory.fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(fds[0].any().unwrap_or(false)),
            Err(errno) => Err(errno),
        }
    }
}

/// Source of out-of-memory events in each version of cgroups.
#[derive(Debug)]
enum MemoryWatch {
    /// v1: an eventfd that is bound to `memory.oom_control`.
    V1 {
        dir: PathBuf,
        eventfd: EventFd,
        /// Control file; the registration lives as long as it is open.
        _control: File,
    },
    /// v2: a counter in `memory.events`, with an inotify watch on the file.
    V2 {
        events: PathBuf,
        inotify: Inotify,
        told: u64,
    },
}

impl MemoryWatch {
    fn start(cgroup: &Cgroup) -> std::result::Result<Option<Self>, CgroupError> {
        let Some(dir) = cgroup.dir("memory") else {
            return Ok(None);
        };
        if cgroup.is_v2() {
            Self::start_v2(dir)
        } else {
            Self::start_v1(dir).map(Some)
        }
    }

    /// Registers an eventfd (Documentation/admin-guide/cgroup-v1/memory.rst, "OOM Control").
    fn start_v1(dir: &Path) -> std::result::Result<Self, CgroupError> {
        let path = dir.join("memory.oom_control");
        let control = File::open(&path).map_err(Failed::to("read", &path))?;
        let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| Failed::to("watch", &path)(errno.into()))?;
        let registration = format!("{} {}", eventfd.as_fd().as_raw_fd(), control.as_raw_fd());
        let path = dir.join("cgroup.event_control");
        fs::write(&path, registration).map_err(Failed::to("write", &path))?;
        Ok(Self::V1 {
            dir: dir.to_path_buf(),
            eventfd,
            _control: control,
        })
    }

    fn start_v2(dir: &Path) -> std::result::Result<Option<Self>, CgroupError> {
        let events = dir.join("memory.events");
        let watch = || -> nix::Result<Inotify> {
            let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
            inotify.add_watch(&events, AddWatchFlags::IN_MODIFY)?;
            Ok(inotify)
        };
        match watch() {
            Ok(inotify) => {
                // Earlier kills are not reported.
                let told = kills(&events)?;
                Ok(Some(Self::V2 {
                    events,
                    inotify,
                    told,
                }))
            }
            // The memory controller is not enabled for this group.
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(Failed::to("watch", &events)(errno.into()).into()),
        }
    }

    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Self::V1 { eventfd, .. } => eventfd.as_fd(),
            Self::V2 { inotify, .. } => inotify.as_fd(),
        }
    }

    /// Returns whether there was a kill that has not been reported yet.
    fn take_kill(&mut self) -> std::result::Result<bool, CgroupError> {
        match self {
            Self::V1 { dir, eventfd, .. } => match eventfd.read() {
                // The removal of the group is an event, too.
                Ok(_) => Ok(dir.join("cgroup.event_control").exists()),
                Err(_) => Ok(false),
            },
            Self::V2 {
                events,
                inotify,
                told,
            } => {
                // Read the counter and not the events: changes in quick succession are one event.
                while inotify.read_events().is_ok_and(|read| !read.is_empty()) {}
                if kills(events)? > *told {
                    *told += 1;
                    return Ok(true);
                }
                Ok(false)
            }
        }
    }
}

/// Reads the counter `oom_kill` of `memory.events`; 0 if the group is gone.
fn kills(events: &Path) -> std::result::Result<u64, CgroupError> {
    match fs::read_to_string(events) {
        Ok(text) => Ok(text
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill "))
            .and_then(|count| count.parse().ok())
            .unwrap_or_default()),
        Err(error)
            if error.kind() == ErrorKind::NotFound
                || error.raw_os_error() == Some(Errno::ENODEV as i32) =>
        {
            Ok(0)
        }
        Err(error) => Err(Failed::to("read", events)(error).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn kills_of_a_v2_group_are_told_one_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let events = dir.path().join("memory.events");
        fs::write(&events, "low 0\noom 1\noom_kill 1\n").unwrap();
        let cgroup = Cgroup::new(BTreeMap::from([(String::new(), dir.path().into())]));
        let mut watch = MemoryWatch::start(&cgroup).unwrap().unwrap();
        assert!(!watch.take_kill().unwrap());
        fs::write(&events, "low 0\noom 4\noom_kill 3\n").unwrap();
        assert!(watch.take_kill().unwrap());
        assert!(watch.take_kill().unwrap());
        assert!(!watch.take_kill().unwrap());
        fs::remove_file(&events).unwrap();
        assert!(!watch.take_kill().unwrap());
    }

    #[test]
    fn without_the_controller_nothing_is_watched() {
        let dir = tempfile::tempdir().unwrap();
        let v2 = Cgroup::new(BTreeMap::from([(String::new(), dir.path().into())]));
        assert!(MemoryWatch::start(&v2).unwrap().is_none());
        let v1 = Cgroup::new(BTreeMap::from([("pids".to_owned(), dir.path().into())]));
        assert!(MemoryWatch::start(&v1).unwrap().is_none());
    }
}
