//! A container's pseudoterminal.
//!
//! The engine makes the pair inside the container, on its own devpts, and sends the master over a socket. rcm always receives it
//! itself: it sets the size, then keeps it (foreground) or passes it on to the `--console-socket`.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use crate::runtime::error::{Error, Result};
use crate::sys;
use crate::sys::terminal::WindowSize;

/// The most that a terminal's name takes; containerd's and conmon's receivers use 4,096 bytes.
const NAME_CAPACITY: usize = 4096;

/// Where the engine's terminal arrives.
#[derive(Debug)]
pub struct Console {
    ours: OwnedFd,
    engine: OwnedFd,
}

impl Console {
    /// A fresh socket pair.
    ///
    /// # Errors
    /// As socketpair(2).
    pub fn new() -> Result<Self> {
        let (ours, engine) = sys::socket::pair().map_err(Error::system("make a console socket"))?;
        Ok(Self { ours, engine })
    }

    /// The end for the engine (or CRIU) to send to.
    #[must_use]
    pub fn engine_end(&self) -> &OwnedFd {
        &self.engine
    }

    /// Takes the terminal that was sent.
    ///
    /// # Errors
    /// Where none was.
    pub fn receive(self) -> Result<Master> {
        // Without our copy of its end, a sender that died ends the wait.
        drop(self.engine);
        let (name, fd) = sys::socket::recv_fd(self.ours.as_fd(), NAME_CAPACITY)
            .map_err(Error::system("receive the container's terminal"))?;
        fd.map(|fd| Master { fd, name }).ok_or(Error::System {
            action: "receive the container's terminal: its first process sent none",
            source: nix::errno::Errno::EPIPE,
        })
    }
}

/// The master side of a container's terminal.
#[derive(Debug)]
pub struct Master {
    fd: OwnedFd,
    name: Vec<u8>,
}

impl Master {
    /// Wraps a master that came another way, under the name that receivers of a console socket get.
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
    /// As ioctl(2).
    pub fn resize(&self, size: WindowSize) -> Result<()> {
        sys::terminal::set_window_size(self.fd.as_fd(), size)
            .map_err(Error::system("set the size of the container's terminal"))
    }

    /// Hands the terminal to whoever listens at a console socket.
    ///
    /// # Errors
    /// As sendmsg(2).
    pub fn send(self, socket: &UnixStream) -> Result<()> {
        sys::socket::send_fd(socket.as_fd(), &self.name, self.fd.as_fd()).map_err(Error::system(
            "send the container's terminal to the console socket",
        ))
    }

    /// The descriptor.
    #[must_use]
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }
}
