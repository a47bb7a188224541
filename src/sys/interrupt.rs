//! A request to stop as a descriptor that can be waited for: from SIGINT, SIGTERM and SIGHUP, or
//! from another thread.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::fcntl::OFlag;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static NOTIFY: AtomicI32 = AtomicI32::new(-1);
static RECEIVED: AtomicI32 = AtomicI32::new(0);

/// The signals that ask a command to stop.
const SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// A request to stop: a descriptor that becomes readable, and the signal that stands for it.
///
/// [`Self::install`] turns the signals into such a request, until [`Self::restore_defaults`].
/// It installs handlers instead of blocking the signals. execve(2) removes a handler, so the
/// programs that rcm starts are not affected. A blocked signal would stay blocked in them.
#[derive(Debug)]
pub struct Interrupt {
    readable: OwnedFd,
    /// The signal of a [`Trigger`]; `None` for the process's own signals.
    pulled: Option<Arc<AtomicI32>>,
}

/// Lets another thread interrupt an operation, of which one process may have several.
#[derive(Debug)]
pub struct Trigger {
    writable: OwnedFd,
    pulled: Arc<AtomicI32>,
}

impl Trigger {
    /// Asks the operation to stop, as SIGTERM asks a process.
    pub fn pull(&self) {
        self.pulled.store(Signal::SIGTERM as i32, Ordering::Relaxed);
        // If the pipe is full it is readable, too.
        let _ = nix::unistd::write(&self.writable, &[0]);
    }
}

extern "C" fn note(signal: libc::c_int) {
    RECEIVED.store(signal, Ordering::Relaxed);
    let fd = NOTIFY.load(Ordering::Relaxed);
    let errno = nix::errno::Errno::last();
    // SAFETY: write is async-signal-safe (signal-safety(7)); the byte outlives the call; the
    // descriptor is never closed.
    unsafe { libc::write(fd, [0_u8].as_ptr().cast(), 1) };
    errno.set();
}

impl Interrupt {
    /// Installs the handlers.
    ///
    /// # Errors
    /// As pipe2(2) and sigaction(2).
    pub fn install() -> nix::Result<Self> {
        let (readable, writable) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // A handler may run at any time until the process ends, so the write end is never closed.
        NOTIFY.store(writable.into_raw_fd(), Ordering::Relaxed);
        let action = SigAction::new(
            SigHandler::Handler(note),
            SaFlags::SA_RESTART,
            SigSet::empty(),
        );
        for signal in SIGNALS {
            // SAFETY: the handler only stores to an atomic and calls write, which are
            // async-signal-safe.
            unsafe { sigaction(signal, &action)? };
        }
        Ok(Self {
            readable,
            pulled: None,
        })
    }

    /// Makes an interrupt without signals, and the trigger for it.
    ///
    /// # Errors
    /// As pipe2(2).
    pub fn manual() -> nix::Result<(Self, Trigger)> {
        let (readable, writable) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let pulled = Arc::new(AtomicI32::new(0));
        let interrupt = Self {
            readable,
            pulled: Some(Arc::clone(&pulled)),
        };
        Ok((interrupt, Trigger { writable, pulled }))
    }

    /// Returns the last signal that was received, if any.
    #[must_use]
    pub fn received(&self) -> Option<Signal> {
        let signal = self.pulled.as_deref().unwrap_or(&RECEIVED);
        Signal::try_from(signal.load(Ordering::Relaxed)).ok()
    }

    /// Gives the signals their default action again, once there is nothing left to roll back.
    ///
    /// # Errors
    /// As sigaction(2).
    pub fn restore_defaults(self) -> nix::Result<()> {
        if self.pulled.is_some() {
            return Ok(());
        }
        let action = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        for signal in SIGNALS {
            // SAFETY: the default action runs no code of ours.
            unsafe { sigaction(signal, &action)? };
        }
        Ok(())
    }
}

impl AsFd for Interrupt {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    #[test]
    fn a_signal_becomes_readable() {
        let interrupt = Interrupt::install().unwrap();
        let mut fds = [PollFd::new(interrupt.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::ZERO), Ok(0));
        assert_eq!(interrupt.received(), None);
        nix::sys::signal::raise(Signal::SIGHUP).unwrap();
        let mut fds = [PollFd::new(interrupt.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(1000_u16)), Ok(1));
        assert_eq!(interrupt.received(), Some(Signal::SIGHUP));
        interrupt.restore_defaults().unwrap();
    }

    #[test]
    fn a_trigger_is_for_one_operation() {
        let (interrupt, trigger) = Interrupt::manual().unwrap();
        let (other, _trigger) = Interrupt::manual().unwrap();
        assert_eq!(interrupt.received(), None);
        trigger.pull();
        let mut fds = [PollFd::new(interrupt.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::ZERO), Ok(1));
        assert_eq!(interrupt.received(), Some(Signal::SIGTERM));
        assert_eq!(other.received(), None);
    }
}
