//! Pseudoterminal of a container.
//!
//! libcontainer makes the pair in the container, on the container's own devpts, and sends the
//! master over a socket. rcm always receives it itself: it sets the size, then keeps the master
//! (foreground) or passes it on to the `--console-socket`.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use crate::runtime::error::{Error, Result};
use crate::sys;
use crate::sys::terminal::WindowSize;

/// Limit on the length of a terminal's name; containerd's and conmon's receivers use 4,096 bytes.
const NAME_CAPACITY: usize = 4096;

/// Socket pair at which the terminal arrives.
#[derive(Debug)]
pub struct Console {
    ours: OwnedFd,
    libcontainer: OwnedFd,
}

impl Console {
    /// Creates a socket pair.
    ///
    /// # Errors
    /// Those of socketpair(2).
    pub fn new() -> Result<Self> {
        let (ours, libcontainer) =
            sys::socket::pair().map_err(Error::system("make a console socket"))?;
        Ok(Self { ours, libcontainer })
    }

    /// Returns the end to which libcontainer (or CRIU) sends.
    #[must_use]
    pub fn libcontainer_end(&self) -> &OwnedFd {
        &self.libcontainer
    }

    /// Receives the terminal.
    ///
    /// # Errors
    /// If the sender died or sent no descriptor.
    pub fn receive(self) -> Result<Master> {
        // Close rcm's copy of the sending end: then the death of the sender ends the wait.
        drop(self.libcontainer);
        let (name, fd) = sys::socket::recv_fd(self.ours.as_fd(), NAME_CAPACITY)
            .map_err(Error::system("receive the container's terminal"))?;
        fd.map(|fd| Master { fd, name }).ok_or(Error::System {
            action: "receive the container's terminal: its first process sent none",
            source: nix::errno::Errno::EPIPE,
        })
    }
}

/// Master side of a container's terminal.
#[derive(Debug)]
pub struct Master {
    fd: OwnedFd,
    name: Vec<u8>,
}

impl Master {
    /// Wraps a master that did not come through a [`Console`], with the name that receivers of a
    /// console socket get.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            name: b"/dev/ptmx".to_vec(),
        }
    }

    /// Sets the size that programs in the container see.
    ///
    /// # Errors
    /// Those of ioctl(2).
    pub fn resize(&self, size: WindowSize) -> Result<()> {
        sys::terminal::set_window_size(self.fd.as_fd(), size)
            .map_err(Error::system("set the size of the container's terminal"))
    }

    /// Sends the terminal to the receiver at a console socket.
    ///
    /// # Errors
    /// Those of sendmsg(2).
    pub fn send(self, socket: &UnixStream) -> Result<()> {
        sys::socket::send_fd(socket.as_fd(), &self.name, self.fd.as_fd()).map_err(Error::system(
            "send the container's terminal to the console socket",
        ))
    }

    /// Returns the descriptor.
    #[must_use]
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }
}
