//! Results for the creator of a process: the terminal, a pidfd and the pid file.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::unistd::Pid;
use oci_spec::runtime::Process;

use super::stdio;
use super::terminal::{Console, Master};
use crate::runtime::error::{Error, Result};
use crate::sys;
use crate::sys::terminal::WindowSize;

/// Requests of the creator, as the command line has them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Requested<'a> {
    /// Socket that gets the master side of the terminal.
    pub console_socket: Option<&'a Path>,
    /// Socket that gets a pidfd of the process.
    pub pidfd_socket: Option<&'a Path>,
    /// File that gets the process id.
    pub pid_file: Option<&'a Path>,
}

/// The creator's ends, opened before the process exists. If one is missing, nothing has to be
/// undone.
#[derive(Debug)]
pub(crate) struct Delivery<'a> {
    console: Option<Console>,
    console_size: Option<WindowSize>,
    console_socket: Option<UnixStream>,
    pidfd_socket: Option<UnixStream>,
    pid_file: Option<&'a Path>,
    /// User of the process, within its container; `None` for a spec without a process.
    uid: Option<u32>,
}

impl<'a> Delivery<'a> {
    /// Makes the terminal's channel and connects to the sockets.
    ///
    /// # Errors
    /// [`Error::Socket`], [`Error::System`].
    pub(crate) fn prepare(process: Option<&Process>, requested: Requested<'a>) -> Result<Self> {
        let wants_terminal = process.and_then(Process::terminal).unwrap_or(false);
        let connect_to =
            |kind, path: Option<&Path>| path.map(|path| connect(kind, path)).transpose();
        Ok(Self {
            console: wants_terminal.then(Console::new).transpose()?,
            console_size: process.and_then(console_size),
            console_socket: connect_to("console", requested.console_socket)?,
            pidfd_socket: connect_to("pidfd", requested.pidfd_socket)?,
            pid_file: requested.pid_file,
            uid: process.map(|process| process.user().uid()),
        })
    }

    /// Returns the end to which libcontainer sends the terminal.
    pub(crate) fn libcontainer_end(&self) -> Option<&OwnedFd> {
        self.console.as_ref().map(Console::libcontainer_end)
    }

    /// Delivers everything that was requested of the process `pid`. Returns the terminal if no
    /// socket gets it.
    ///
    /// # Errors
    /// The first end that could not be delivered.
    pub(crate) fn complete(self, pid: Pid, subject: PidfdOf) -> Result<Option<Master>> {
        let mut terminal = None;
        if let Some(console) = self.console {
            let master = console.receive()?;
            // Set the size before the master is sent: the receiver may read it at once.
            if let Some(size) = self.console_size {
                master.resize(size)?;
            }
            match self.console_socket {
                Some(socket) => master.send(&socket)?,
                None => terminal = Some(master),
            }
        }
        if let Some(uid) = self.uid {
            stdio::give_to_user(pid, uid)?;
        }
        if let Some(socket) = self.pidfd_socket {
            let pidfd =
                sys::process::pidfd_open(pid).map_err(Error::system(subject.open_action()))?;
            sys::socket::send_fd(socket.as_fd(), b"pidfd", pidfd.as_fd())
                .map_err(Error::system("send the pidfd"))?;
        }
        // The pid file comes last: containerd and Podman take it as the sign that everything is set
        // up.
        write_pid_file(self.pid_file, pid)?;
        Ok(terminal)
    }
}

/// Process whose pidfd is opened, for messages.
#[derive(Debug, Clone, Copy)]
pub(crate) enum PidfdOf {
    /// First process of a container.
    Init,
    /// Process that joined a container.
    Joined,
}

impl PidfdOf {
    fn open_action(self) -> &'static str {
        match self {
            Self::Init => "open a pidfd of the container's first process",
            Self::Joined => "open a pidfd of the process",
        }
    }
}

/// Connects to a socket that takes descriptors; `kind` is "console" or "pidfd".
///
/// # Errors
/// [`Error::Socket`].
pub(crate) fn connect(kind: &'static str, path: &Path) -> Result<UnixStream> {
    sys::socket::connect(path).map_err(|source| Error::Socket {
        what: kind,
        path: path.to_path_buf(),
        source,
    })
}

/// Writes a process id, atomically, to the file that the caller requested.
///
/// # Errors
/// Errors of the file system.
pub(crate) fn write_pid_file(path: Option<&Path>, pid: Pid) -> Result<()> {
    match path {
        Some(path) => sys::file::replace_atomic(path, pid.to_string().as_bytes(), 0o644)
            .map_err(Error::file("write the pid file", path)),
        None => Ok(()),
    }
}

/// Returns the size that the spec wants a terminal to have.
fn console_size(process: &Process) -> Option<WindowSize> {
    let size = process.console_size()?;
    Some(WindowSize {
        rows: u16::try_from(size.height()).unwrap_or(u16::MAX),
        columns: u16::try_from(size.width()).unwrap_or(u16::MAX),
    })
}
