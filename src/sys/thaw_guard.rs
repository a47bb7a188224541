//! A process that thaws a cgroup if this one dies while the cgroup is frozen.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};

/// Watches over a frozen cgroup as long as it lives.
///
/// A frozen cgroup stays frozen if the process that froze it is killed. The guard is a forked child
/// that reads from a pipe. If the pipe closes and nothing was sent, the parent is gone, and the
/// guard thaws the cgroup. Dropping the guard sends a byte, and the child ends without doing
/// anything.
#[derive(Debug)]
pub struct ThawGuard {
    child: Pid,
    /// The write end of the pipe; `None` after the byte was sent.
    leash: Option<OwnedFd>,
}

impl ThawGuard {
    /// Starts the guard. Writing `word` to the control file `path` (`freezer.state` or
    /// `cgroup.freeze`) thaws the cgroup.
    ///
    /// # Errors
    /// If the file cannot be opened for writing or no process can be started.
    pub fn start(path: &Path, word: &'static [u8]) -> io::Result<Self> {
        let control = OpenOptions::new().write(true).open(path)?;
        let (watched, leash) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        // SAFETY: between fork and _exit the child makes async-signal-safe system calls only and
        // allocates nothing, so it is sound even if another thread of this process holds a lock.
        match unsafe { fork()? } {
            ForkResult::Parent { child } => Ok(Self {
                child,
                leash: Some(leash),
            }),
            ForkResult::Child => guard(watched.as_raw_fd(), control.as_raw_fd(), word),
        }
    }
}

impl Drop for ThawGuard {
    fn drop(&mut self) {
        if let Some(leash) = self.leash.take() {
            // If the guard is gone already, it cannot act any more.
            let _ = nix::unistd::write(&leash, b".");
        }
        while waitpid(self.child, None) == Err(Errno::EINTR) {}
    }
}

/// The child's code. It never returns and never unwinds.
fn guard(watched: RawFd, control: RawFd, word: &'static [u8]) -> ! {
    let (low, high) = (watched.min(control), watched.max(control));
    // SAFETY: only integers, and a buffer that outlives the call, go to the kernel. Every
    // descriptor but the two is closed: a copy of a socket here would hide from its other end that
    // the parent has died. Nobody in this process uses them again.
    unsafe {
        // Ctrl-C must reach the parent only: the guard has to survive it.
        libc::setsid();
        close_range(0, low - 1);
        close_range(low + 1, high - 1);
        close_range(high + 1, c_int::MAX);
        let mut byte = 0_u8;
        let called_off = loop {
            match libc::read(watched, (&raw mut byte).cast(), 1) {
                -1 if Errno::last() == Errno::EINTR => {}
                read_bytes => break read_bytes == 1,
            }
        };
        if !called_off {
            libc::write(control, word.as_ptr().cast(), word.len());
        }
        libc::_exit(0)
    }
}

/// Closes the descriptors `first..=last`. Does nothing if the range is empty.
///
/// # Safety
/// Nobody may use them afterwards.
unsafe fn close_range(first: c_int, last: c_int) {
    if first <= last {
        // SAFETY: the caller has promised that the descriptors are not used.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn called_off_it_does_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        drop(ThawGuard::start(file.path(), b"THAWED").unwrap());
        assert_eq!(std::fs::read(file.path()).unwrap(), b"");
    }

    #[test]
    fn it_thaws_when_the_leash_breaks() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut guard = ThawGuard::start(file.path(), b"THAWED").unwrap();
        drop(guard.leash.take());
        drop(guard);
        assert_eq!(std::fs::read(file.path()).unwrap(), b"THAWED");
    }
}
