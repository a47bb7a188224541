//! Stops a process at an exact point.
//!
//! The process is traced from one system call to the next, with a check of a condition in between.
//! When the condition becomes true, such as a new phase in the journal, the process has not begun
//! its next step. Any program can be stopped so, and it does not notice.

use std::time::{Duration, Instant};

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// A process that is stopped between two system calls. It continues when this is dropped. Only for
/// the thread that has made it (ptrace).
pub struct Breakpoint {
    pid: Pid,
}

const LIMIT_DUR: Duration = Duration::from_secs(60);

/// Lets the process run until `condition` holds after one of its system calls (those of its first
/// thread). Returns `None` if it ended before.
pub fn stop_when(pid: i32, condition: impl Fn() -> bool) -> Option<Breakpoint> {
    let pid = Pid::from_raw(pid);
    ptrace::seize(pid, Options::PTRACE_O_TRACESYSGOOD).unwrap();
    ptrace::interrupt(pid).unwrap();
    let deadline = Instant::now() + LIMIT_DUR;
    loop {
        let signal = match wait(pid, deadline) {
            WaitStatus::PtraceSyscall(_) | WaitStatus::PtraceEvent(..) => None,
            WaitStatus::Stopped(_, signal) => Some(signal),
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => return None,
            other => panic!("{other:?}"),
        };
        if signal.is_none() && condition() {
            return Some(Breakpoint { pid });
        }
        ptrace::syscall(pid, signal).unwrap();
    }
}

/// Kills the process after a time limit: nothing else ends the wait for a traced process.
fn wait(pid: Pid, deadline: Instant) -> WaitStatus {
    let mut pause_dur = Duration::from_micros(10);
    loop {
        match waitpid(pid, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)).unwrap() {
            WaitStatus::StillAlive => {}
            status => return status,
        }
        if Instant::now() > deadline {
            kill(pid, Signal::SIGKILL).unwrap();
        }
        std::thread::sleep(pause_dur);
        pause_dur = (pause_dur * 2).min(Duration::from_millis(2));
    }
}

impl Drop for Breakpoint {
    fn drop(&mut self) {
        // It may have been killed while it was stopped.
        let _ = ptrace::detach(self.pid, None);
    }
}
