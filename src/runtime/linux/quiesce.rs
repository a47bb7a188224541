//! Freezing a container at a moment when it can be dumped.
//!
//! A process that has called vfork(2) sleeps in the kernel until its child has executed a program
//! or ended; posix_spawn(3) and many shells call it for every command. If the freezer stops the
//! child in between, CRIU waits for the parent to stop. The parent cannot stop, and CRIU gives up
//! after ten seconds. So rcm checks, while everything is frozen, whether a process waits like that.
//! If so, rcm thaws the container for a moment and tries again.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::cgroup::{Cgroup, CgroupError};

/// How long the container runs between two attempts: as long as a child needs from vfork to execve.
const GRACE_DUR: Duration = Duration::from_micros(500);
/// Limit on all attempts. A child that blocks its parent for longer does so for good.
const LIMIT_DUR: Duration = Duration::from_secs(5);

/// Error of [`freeze`]: the container could not be frozen at a moment when it can be dumped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuiesceError {
    /// The freezer failed.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A process waited in vfork at every attempt.
    #[error(
        "process {pid} waits for a child that it made with vfork and that neither executes a program nor ends: CRIU cannot dump it; try again later"
    )]
    Vfork {
        /// Id of the waiting process on the host.
        pid: i32,
    },
}

/// Freezes the group at a moment when none of its processes waits for a child of vfork. Returns the
/// time of the freeze.
///
/// # Errors
/// [`QuiesceError`]; the group is thawed in that case.
pub fn freeze(cgroup: &Cgroup) -> Result<Instant, QuiesceError> {
    let deadline = Instant::now() + LIMIT_DUR;
    loop {
        let stopped_at = Instant::now();
        cgroup.freeze()?;
        let waiting = match cgroup.pids() {
            Ok(pids) => pids.into_iter().find(|pid| waits_for_vfork(*pid)),
            Err(error) => {
                cgroup.thaw()?;
                return Err(error.into());
            }
        };
        let Some(pid) = waiting else {
            return Ok(stopped_at);
        };
        cgroup.thaw()?;
        // Thaw first: while the group is frozen, the child cannot get to its execve.
        if Instant::now() > deadline {
            return Err(QuiesceError::Vfork { pid: pid.as_raw() });
        }
        tracing::debug!(%pid, "a process waits in vfork: freezing again");
        thread::sleep(GRACE_DUR);
    }
}

/// Returns whether a thread of the process waits for a child of vfork.
fn waits_for_vfork(pid: Pid) -> bool {
    // A process that is gone does not wait.
    fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
        .any(|thread| thread_waits(&thread.path()))
}

fn thread_waits(thread: &Path) -> bool {
    let read = |name| fs::read_to_string(thread.join(name)).unwrap_or_default();
    is_vfork_wait(&read("wchan"), || read("syscall"))
}

/// Judges by the function in which a thread sleeps (`/proc/PID/wchan`). If the kernel hides it,
/// judges by the thread's system call (`/proc/PID/syscall`, proc(5)): clone(2) has no other reason
/// to sleep.
fn is_vfork_wait(sleeps_in: &str, syscall: impl FnOnce() -> String) -> bool {
    // Functions of kernel/fork.c (`_do_fork` before Linux 5.10). The topmost one depends on the
    // version and on the compiler's inlining.
    const VFORK_WAITS: [&str; 3] = ["kernel_clone", "wait_for_vfork_done", "_do_fork"];
    match sleeps_in.trim() {
        "" | "0" => {
            let syscall = syscall();
            let number = syscall.split(' ').next().unwrap_or_default();
            number.parse().is_ok_and(|number: libc::c_long| {
                #[cfg(target_arch = "x86_64")]
                if number == libc::SYS_vfork {
                    return true;
                }
                number == libc::SYS_clone || number == libc::SYS_clone3
            })
        }
        function => VFORK_WAITS.contains(&function),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn judged_by_where_it_sleeps() {
        let unused = || panic!("the system call is not needed");
        assert!(is_vfork_wait("kernel_clone", unused));
        assert!(!is_vfork_wait("__refrigerator", unused));
        assert!(!is_vfork_wait("hrtimer_nanosleep", unused));
    }

    #[test]
    fn judged_by_the_system_call_where_the_kernel_is_silent() {
        let clone = format!("{} 0x4111 0x0 0x0", libc::SYS_clone);
        assert!(is_vfork_wait("0", || clone));
        assert!(!is_vfork_wait("0", || format!("{} 0x0", libc::SYS_read)));
        assert!(!is_vfork_wait("0", || "running".into()));
        assert!(!is_vfork_wait("", String::new));
    }

    #[test]
    fn a_thread_that_reads_does_not_wait_for_vfork() {
        let (reader, writer) = std::io::pipe().unwrap();
        let thread = std::thread::spawn(move || {
            use std::io::Read;
            let mut reader = reader;
            reader.read_to_end(&mut Vec::new()).unwrap();
        });
        assert!(!waits_for_vfork(Pid::this()));
        drop(writer);
        thread.join().unwrap();
    }
}
