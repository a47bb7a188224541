//! Makes user and mount namespaces before any process lives in them.
//!
//! The process that makes a namespace is in it, and no process can leave a user namespace. So a
//! child makes the namespace. This process takes a descriptor, which keeps the namespace when the
//! child has ended.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{ForkResult, Gid, Pid, Uid, fork, setresgid, setresuid};

use super::process;

/// A namespace could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NamespaceError {
    /// This process could not do its part.
    #[error("cannot {action}")]
    System {
        /// The operation.
        action: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The child failed.
    #[error("{reason}")]
    Child {
        /// The child's error sentence.
        reason: String,
    },
}

fn system<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> NamespaceError {
    move |source| NamespaceError::System {
        action,
        source: source.into(),
    }
}

/// Ids inside a user namespace and the ids outside that they stand for: a line of
/// `/proc/PID/uid_map` (user_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// First id inside.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// Number of ids.
    pub count: u32,
}

/// Makes a user namespace with these ids and no process in it.
///
/// # Errors
/// If the kernel refuses a namespace or the ids, e.g. because they overlap.
pub fn user_namespace(uids: &[IdRange], gids: &[IdRange]) -> Result<OwnedFd, NamespaceError> {
    let child = Paused::fork(|| {
        unshare(CloneFlags::CLONE_NEWUSER)
            .map_err(|errno| format!("cannot make a user namespace: {errno}"))
    })?;
    let write = |file: &str, ranges: &[IdRange]| {
        let lines: String = ranges
            .iter()
            .map(|range| format!("{} {} {}\n", range.inside, range.outside, range.count))
            .collect();
        fs::write(format!("/proc/{}/{file}", child.pid), lines)
    };
    write("uid_map", uids).map_err(system("map the user ids"))?;
    write("gid_map", gids).map_err(system("map the group ids"))?;
    child.namespace("user")
}

/// Lets `work` prepare a mount namespace in which no process stays. It is the existing namespace
/// `mount`, or a new copy of this process's. `work` runs in a child of this process. If `user` is
/// given, the child is root of that user namespace, and a new mount namespace belongs to it.
///
/// # Errors
/// If a namespace cannot be entered or made, and the error of `work`.
pub fn mount_namespace(
    user: Option<BorrowedFd>,
    mount: Option<BorrowedFd>,
    work: impl FnOnce() -> Result<(), String>,
) -> Result<OwnedFd, NamespaceError> {
    let child = Paused::fork(|| {
        let enter = || -> nix::Result<()> {
            if let Some(user) = user {
                setns(user, CloneFlags::CLONE_NEWUSER)?;
                let (gid, uid) = (Gid::from_raw(0), Uid::from_raw(0));
                setresgid(gid, gid, gid)?;
                setresuid(uid, uid, uid)?;
            }
            match mount {
                Some(mount) => setns(mount, CloneFlags::CLONE_NEWNS),
                None => unshare(CloneFlags::CLONE_NEWNS),
            }
        };
        enter().map_err(|errno| format!("cannot make a mount namespace: {errno}"))?;
        work()
    })?;
    child.namespace("mnt")
}

/// A child that has done its work. It ends when this process drops it or ends.
#[derive(Debug)]
struct Paused {
    pid: Pid,
    stream: UnixStream,
}

impl Paused {
    /// Forks a child for `work`. Returns when the work is done.
    fn fork(work: impl FnOnce() -> Result<(), String>) -> Result<Self, NamespaceError> {
        let (stream, childs) = UnixStream::pair().map_err(system("make a socket pair"))?;
        // SAFETY: the child never returns from this block. It calls `work`, which touches nothing
        // that the parent waits for, and _exit(2), which runs no destructor of values that both
        // processes have.
        let pid = match unsafe { fork() }.map_err(system("fork"))? {
            ForkResult::Parent { child } => child,
            ForkResult::Child => {
                drop(stream);
                let result = catch_unwind(AssertUnwindSafe(work))
                    .unwrap_or_else(|_| Err("the child panicked".into()));
                report(childs, result);
                // SAFETY: ends this process only.
                unsafe { libc::_exit(0) }
            }
        };
        drop(childs);
        let mut child = Self { pid, stream };
        let mut done = [0];
        let mut reason = String::new();
        let read = child.stream.read_exact(&mut done).and_then(|()| {
            if done == DONE {
                return Ok(0);
            }
            child.stream.read_to_string(&mut reason)
        });
        match read {
            Ok(_) if done == DONE => Ok(child),
            Ok(_) => Err(NamespaceError::Child { reason }),
            Err(source) => Err(system("hear from a child")(source)),
        }
    }

    fn namespace(&self, kind: &str) -> Result<OwnedFd, NamespaceError> {
        File::open(format!("/proc/{}/ns/{kind}", self.pid))
            .map(OwnedFd::from)
            .map_err(system("open the namespace of a child"))
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
        let _ = process::wait(self.pid);
    }
}

const DONE: [u8; 1] = [b'+'];
const FAILED: [u8; 1] = [b'-'];

/// The child's side: sends the result. After success it waits until the parent drops it.
fn report(mut stream: UnixStream, result: Result<(), String>) {
    match result {
        Ok(()) => {
            let _ = stream.write_all(&DONE);
            let _ = stream.read(&mut [0]);
        }
        Err(reason) => {
            let _ = stream.write_all(&FAILED);
            let _ = stream.write_all(reason.as_bytes());
        }
    }
}

/// Calls `work` on a thread in the mount namespace and root directory of a process. The other
/// threads stay in theirs.
///
/// # Errors
/// If the namespace cannot be entered, and the error of `work`.
pub fn within_mounts_of<T: Send>(
    pid: Pid,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let namespace = File::open(format!("/proc/{pid}/ns/mnt"))?;
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .spawn_scoped(scope, || {
                // Threads share their root and working directory, and setns(2) changes these, too.
                unshare(CloneFlags::CLONE_FS)?;
                setns(namespace.as_fd(), CloneFlags::CLONE_NEWNS)?;
                work()
            })?
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: IdRange = IdRange {
        inside: 0,
        outside: 100_000,
        count: 10,
    };

    #[test]
    fn a_refusal_is_told() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        user_namespace(&[RANGE], &[RANGE]).unwrap();
        let error = user_namespace(&[RANGE, RANGE], &[RANGE]).unwrap_err();
        assert_eq!(error.to_string(), "cannot map the user ids");
        let error = mount_namespace(None, None, || Err("no".into())).unwrap_err();
        assert_eq!(error.to_string(), "no");
    }

    #[test]
    fn the_work_is_done_in_another_namespace() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let user = user_namespace(&[RANGE], &[RANGE]).unwrap();
        mount_namespace(Some(user.as_fd()), None, || {
            let here = fs::read_link("/proc/self/ns/mnt").map_err(|error| error.to_string())?;
            let there = format!("/proc/{}/ns/mnt", nix::unistd::getppid());
            match fs::read_link(there) {
                Ok(there) if there == here => Err("the same namespace".into()),
                // From a user namespace the parent's files in `/proc` are not readable.
                _ => Ok(()),
            }
        })
        .unwrap();
    }
}
