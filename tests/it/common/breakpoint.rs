//! Stops a process exactly where a test wants it.
//!
//! It is traced from one system call to the next, and a condition is looked at in between: what the process has just done, such as a phase that it
//! has entered in its journal, is true then, and what it does next has not begun. It notices nothing of it, whatever it is.

use std::time::{Duration, Instant};

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// A process that stands still between two system calls. Dropped, it goes on. For the thread that has made it.
pub struct Breakpoint {
    pid: Pid,
}

const LIMIT_DUR: Duration = Duration::from_secs(60);

/// Lets the process run until `condition` holds after one of its system calls (those of its first thread). Returns `None` if it ended before.
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

/// Kills it when the time is over: nothing else ends the wait for a process that is traced.
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
        // It may have been killed where it stood.
        let _ = ptrace::detach(self.pid, None);
    }
}
