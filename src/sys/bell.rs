//! A bell: a descriptor by which one thread wakes another that polls.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// An eventfd(2) that is readable from the first ring until it is hushed.
#[derive(Debug)]
pub struct Bell {
    event: EventFd,
}

impl Bell {
    /// Makes a bell that has not rung.
    ///
    /// # Errors
    /// As eventfd(2).
    pub fn new() -> nix::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let event = EventFd::from_value_and_flags(0, flags)?;
        Ok(Self { event })
    }

    /// Rings.
    pub fn ring(&self) {
        // It fails only if the counter is full, and then the descriptor is readable.
        let _ = self.event.write(1);
    }

    /// Takes back all rings up to now. Look at the state that they announce after this, not before.
    pub fn hush(&self) {
        // Without a ring there is nothing to read.
        let _ = self.event.read();
    }

    /// Whether the bell has rung since the last [`Self::hush`].
    #[must_use]
    pub fn is_rung(&self) -> bool {
        let mut waited = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut waited, PollTimeout::ZERO) {
                Err(Errno::EINTR) => {}
                polled => return polled.is_ok_and(|ready| ready > 0),
            }
        }
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rings_until_it_is_hushed() {
        let bell = Bell::new().unwrap();
        bell.hush();
        assert!(!bell.is_rung());
        bell.ring();
        bell.ring();
        assert!(bell.is_rung() && bell.is_rung());
        bell.hush();
        assert!(!bell.is_rung());
    }
}
