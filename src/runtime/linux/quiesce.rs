//! Freezing a container at a moment when it can be dumped.
//!
//! A process that has called vfork(2) (posix_spawn(3) and many shells do for every command) sleeps in the kernel until its child has executed a program
//! or ended. If the freezer stops the child in between, CRIU waits for the parent to stop, which it cannot, and gives up after ten seconds. So rcm
//! looks, while everything is frozen, whether a process waits like that, and if so lets the container go on for a moment and tries again.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::cgroup::{Cgroup, CgroupError};

/// How long the container runs between two attempts: the way of a child from vfork to execve.
const GRACE_DUR: Duration = Duration::from_micros(500);
/// For how long it is tried. A child that holds its parent up for longer does so for good.
const LIMIT_DUR: Duration = Duration::from_secs(5);

/// The container could not be frozen at such a moment.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuiesceError {
    /// The freezer failed.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// There is no such moment.
    #[error(
        "process {pid} waits for a child that it made with vfork and that neither executes a program nor ends: CRIU cannot dump it; try again later"
    )]
    Vfork {
        /// The waiting process, its id as the host has it.
        pid: i32,
    },
}

/// Freezes the group while none of its processes waits for a child of vfork. Returns when it stopped for good.
///
/// # Errors
/// [`QuiesceError`]; the group is thawed then.
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
        if Instant::now() > deadline {
            return Err(QuiesceError::Vfork { pid: pid.as_raw() });
        }
        tracing::debug!(%pid, "a process waits in vfork: freezing again");
        thread::sleep(GRACE_DUR);
    }
}

/// Whether a thread of the process waits for a child of vfork.
fn waits_for_vfork(pid: Pid) -> bool {
    // A process that is gone waits for nothing.
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

/// Judges by where a thread sleeps (`/proc/PID/wchan`), or, on a kernel that does not tell, by the system call that it is in
/// (`/proc/PID/syscall`, proc(5)): clone(2) sleeps for nothing else.
fn is_vfork_wait(sleeps_in: &str, syscall: impl FnOnce() -> String) -> bool {
    // kernel/fork.c; which of them is on top depends on what the compiler inlined and on the version.
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
