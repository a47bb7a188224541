//! Processes: identity that survives reuse of process ids, descriptors, waiting.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::Pid;
use procfs::ProcError;
use procfs::process::{ProcState, Process};

/// Identity of one process until the machine goes down. A pid alone may be used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessId {
    /// The process id in the initial pid namespace.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: the start in clock ticks after boot (proc_pid_stat(5)).
    pub start_time: u64,
}

/// Whether a process still executes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// It exists and is no zombie.
    Alive,
    /// It is gone, a zombie, or its pid belongs to another process now.
    Gone,
}

impl ProcessId {
    /// Reads the identity of the process with the id `pid`.
    ///
    /// # Errors
    /// [`ProcError::NotFound`] if there is no such process, other errors if `/proc` cannot be read.
    pub fn of(pid: Pid) -> Result<Self, ProcError> {
        let stat = Process::new(pid.as_raw())?.stat()?;
        Ok(Self {
            pid: pid.as_raw(),
            start_time: stat.starttime,
        })
    }

    /// Tells whether exactly this process still executes.
    #[must_use]
    pub fn liveness(self) -> Liveness {
        let stat = Process::new(self.pid).and_then(|process| process.stat());
        match stat {
            Ok(stat) if stat.starttime == self.start_time => match stat.state() {
                Ok(ProcState::Zombie | ProcState::Dead) => Liveness::Gone,
                _ => Liveness::Alive,
            },
            _ => Liveness::Gone,
        }
    }

    /// Waits until this process has ended. Returns whether it has within `limit_dur`.
    #[must_use]
    pub fn wait_until_gone(self, limit_dur: Duration) -> bool {
        let deadline = Instant::now() + limit_dur;
        let mut pause_dur = Duration::from_micros(200);
        while self.liveness() == Liveness::Alive {
            if Instant::now() > deadline {
                return false;
            }
            thread::sleep(pause_dur);
            pause_dur = (pause_dur * 2).min(Duration::from_millis(20));
        }
        true
    }

    /// Returns the pid in the type of `nix`.
    #[must_use]
    pub fn pid(self) -> Pid {
        Pid::from_raw(self.pid)
    }
}

/// Returns the id of a process in its own pid namespace.
///
/// # Errors
/// [`ProcError::NotFound`] if there is no such process, other errors if `/proc` cannot be read.
pub fn innermost_pid(pid: Pid) -> Result<Pid, ProcError> {
    let status = Process::new(pid.as_raw())?.status()?;
    // The list goes from the outermost namespace to the innermost (proc_pid_status(5)).
    let innermost = status.nspid.unwrap_or_default().last().copied();
    Ok(Pid::from_raw(innermost.unwrap_or(pid.as_raw())))
}

/// Returns the C library's text for a signal in lower case, as Go prints it: "killed", "bad system
/// call".
#[must_use]
pub fn signal_text(signal: i32) -> String {
    // SAFETY: strsignal(3) returns null or a NUL-terminated text that stays until its next call in
    // this thread.
    let text = unsafe {
        let text = libc::strsignal(signal);
        (!text.is_null()).then(|| {
            std::ffi::CStr::from_ptr(text)
                .to_string_lossy()
                .to_lowercase()
        })
    };
    text.unwrap_or_else(|| signal.to_string())
}

/// Whether this process is in a user namespace other than the first. Root there is not root of the
/// host.
#[must_use]
pub fn in_user_namespace() -> bool {
    // The first namespace maps all ids to themselves (user_namespaces(7)).
    const ALL_IDS: [&str; 3] = ["0", "0", "4294967295"];
    std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| !map.split_whitespace().eq(ALL_IDS))
}

/// Whether another process traces `pid` (`TracerPid`, proc_pid_status(5)). False if `pid` is gone.
#[must_use]
pub fn is_traced(pid: Pid) -> bool {
    Process::new(pid.as_raw())
        .and_then(|process| process.status())
        .is_ok_and(|status| status.tracerpid != 0)
}

/// Opens a descriptor that refers to the process and becomes readable when it ends (pidfd_open(2),
/// Linux 5.3).
///
/// # Errors
/// `ESRCH` if there is no such process.
pub fn pidfd_open(pid: Pid) -> nix::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just given this descriptor to us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Copies a descriptor of another process (pidfd_getfd(2), Linux 5.6). `process` is from
/// [`pidfd_open`].
///
/// # Errors
/// `EBADF` if the process does not have it, `EPERM` without the right to trace the process.
pub fn copy_descriptor(process: &OwnedFd, number: RawFd) -> nix::Result<OwnedFd> {
    // SAFETY: three integers go to the kernel; no memory of ours is touched.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Sends a signal through a descriptor of [`pidfd_open`], so that it cannot reach another process
/// with the same id. `None` only checks that the process exists.
///
/// # Errors
/// `ESRCH` if the process has ended and was waited for.
pub fn pidfd_send_signal(pidfd: &OwnedFd, signal: Option<i32>) -> nix::Result<()> {
    // SAFETY: the siginfo pointer may be null (pidfd_send_signal(2)); no memory is touched.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal.unwrap_or(0),
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    Errno::result(result).map(drop)
}

/// Sends any signal number, including the real-time ones that [`Signal`] has no name for. 0 only
/// checks that the process exists.
///
/// # Errors
/// As kill(2).
pub fn kill(pid: Pid, signal: i32) -> nix::Result<()> {
    // SAFETY: kill takes two integers.
    Errno::result(unsafe { libc::kill(pid.as_raw(), signal) }).map(drop)
}

/// Waits until the child has ended and takes its exit status.
///
/// `nix` knows no real-time signals: its waitpid fails with `EINVAL` on a child that one of them
/// ended.
///
/// # Errors
/// `ECHILD` if it is no child of this process.
pub fn wait(child: Pid) -> nix::Result<ExitStatus> {
    let mut status = 0;
    loop {
        // SAFETY: the kernel writes one integer into `status`, which outlives the call.
        match Errno::result(unsafe { libc::waitpid(child.as_raw(), &mut status, 0) }) {
            Ok(_) => return Ok(ExitStatus::from_raw(status)),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Takes children that have ended off the process table, until it meets `kept`, whose exit status
/// the caller still needs.
pub fn reap_others(kept: Pid) {
    loop {
        // SAFETY: siginfo_t is plain data, for which zeros are a value.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: the kernel writes one siginfo_t into `info`, which outlives the call.
        let looked = Errno::result(unsafe { libc::waitid(libc::P_ALL, 0, &mut info, options) });
        // SAFETY: waitid fills in the member, or leaves its zero if no child has ended (waitid(2)).
        let pid = unsafe { info.si_pid() };
        if looked.is_err() || pid == 0 || pid == kept.as_raw() {
            return;
        }
        // SAFETY: a null pointer is allowed for a status that nobody wants (waitpid(2)).
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) };
    }
}

/// Returns the living processes that have the file at `path` open, except this one and those that
/// this one may not inspect.
///
/// # Errors
/// If the file or `/proc` does not exist.
pub fn holders(path: &Path) -> io::Result<Vec<Pid>> {
    let path = path.canonicalize()?;
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let pid = Pid::from_raw(pid);
        if pid != Pid::this() && holds(pid, &path) {
            pids.push(pid);
        }
    }
    Ok(pids)
}

/// Whether the process has the file at `path` open. `path` has no symbolic links. False if this
/// process may not inspect the other.
#[must_use]
pub fn holds(pid: Pid, path: &Path) -> bool {
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    descriptors
        .flatten()
        .any(|fd| std::fs::read_link(fd.path()).is_ok_and(|target| target == path))
}

/// Makes orphaned descendants children of this process instead of init's (PR_SET_CHILD_SUBREAPER,
/// prctl(2)).
///
/// # Errors
/// As prctl(2).
pub fn become_subreaper() -> nix::Result<()> {
    nix::sys::prctl::set_child_subreaper(true)
}

/// Unblocks every signal and gives those that the runtime caught their default action again. A
/// container's first process must start so.
///
/// # Errors
/// As sigprocmask(2).
pub fn reset_signals() -> io::Result<()> {
    SigSet::all().thread_unblock()?;
    for signal in [Signal::SIGPIPE, Signal::SIGCHLD] {
        // SAFETY: the default action runs no code of ours.
        unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl)? };
    }
    Ok(())
}

/// Lets the signals that ask a process to end do so, too, if this is the first process of a pid
/// namespace. The kernel would otherwise not deliver them to it (pid_namespaces(7)). The next
/// executed program has their default action again. Ignored signals stay ignored.
///
/// # Errors
/// As sigaction(2).
pub fn end_on_signals() -> nix::Result<()> {
    extern "C" fn end(signal: libc::c_int) {
        // SAFETY: _exit(2) is safe in a signal handler.
        unsafe { libc::_exit(128 + signal) }
    }
    let action = |handler| SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    for signal in [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
    ] {
        // SAFETY: the handler calls nothing but _exit(2).
        let former = unsafe { sigaction(signal, &action(SigHandler::Handler(end)))? };
        if former.handler() == SigHandler::SigIgn {
            // SAFETY: no code of ours runs.
            unsafe { sigaction(signal, &action(SigHandler::SigIgn))? };
        }
    }
    Ok(())
}

/// Lets this process end when it writes to a pipe without a reader, as programs in a pipeline do.
/// Rust programs start with SIGPIPE ignored and panic in `println!` instead.
///
/// # Errors
/// As signal(2).
pub fn end_on_broken_pipe() -> nix::Result<()> {
    // SAFETY: the default action runs no code of ours.
    unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigDfl) }.map(drop)
}

/// Marks every descriptor from `first` on close-on-exec, so that the next executed program inherits
/// none of them (close_range(2), Linux 5.11).
///
/// # Errors
/// As close_range(2).
pub fn close_on_exec_from(first: RawFd) -> nix::Result<()> {
    // SAFETY: only flags of descriptors change; no descriptor is closed behind its owner's back.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first as libc::c_uint,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_tells_a_reused_pid_apart() {
        let me = ProcessId::of(Pid::this()).unwrap();
        assert_eq!(me.liveness(), Liveness::Alive);
        let another = ProcessId {
            start_time: me.start_time + 1,
            ..me
        };
        assert_eq!(another.liveness(), Liveness::Gone);
    }

    #[test]
    fn a_real_time_signal_is_an_exit_status() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "kill -34 $$"])
            .spawn()
            .unwrap();
        let status = wait(Pid::from_raw(child.id() as i32)).unwrap();
        assert_eq!(status.signal(), Some(34));
        assert!(child.wait().is_err(), "nothing is left to wait for");
    }

    #[test]
    fn who_holds_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .stdin(file.reopen().unwrap())
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(child.id() as i32);
        assert_eq!(holders(file.path()).unwrap(), [pid]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(holders(file.path()).unwrap(), []);
    }

    #[test]
    fn zombie_is_gone() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = Pid::from_raw(child.id() as i32);
        let id = ProcessId::of(pid).unwrap();
        let pidfd = pidfd_open(pid).unwrap();
        let mut wait = [nix::poll::PollFd::new(
            std::os::fd::AsFd::as_fd(&pidfd),
            nix::poll::PollFlags::POLLIN,
        )];
        nix::poll::poll(&mut wait, nix::poll::PollTimeout::NONE).unwrap();
        assert_eq!(id.liveness(), Liveness::Gone);
        child.wait().unwrap();
        assert_eq!(pidfd_send_signal(&pidfd, None), Err(Errno::ESRCH));
    }
}
