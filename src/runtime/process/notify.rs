//! Telling a service manager that a container is ready, as the container reports it with
//! sd_notify(3).
//!
//! If rcm is started with `NOTIFY_SOCKET`, the container gets a socket of rcm's below
//! `/run/notify`. As with runc, rcm forwards only that the container is ready, with the process id
//! that the manager is to watch.

use std::fs::{self, Permissions};
use std::io::{self, PipeReader};
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use crate::runtime::container::Container;
use crate::runtime::error::{Error, Result};
use crate::sys;

/// Variable with the path of the service manager's socket, and of the container's.
const VARIABLE: &str = "NOTIFY_SOCKET";
/// Directory of the socket in the container, as with runc.
const DIR_IN_CONTAINER: &str = "/run/notify";
const SOCKET_NAME: &str = "notify.sock";
/// Name of the directory below the container's own directory on the host.
const DIR_NAME: &str = "notify";
/// Limit for the manager's answer, as with runc. A manager that does not know sd_notify_barrier(3)
/// never answers.
const BARRIER_LIMIT_DUR: Duration = Duration::from_secs(30);
/// Size of the buffer, larger than any notification.
const DATAGRAM_BYTES: usize = 4096;

/// Service manager that waits for the container to be ready.
#[derive(Debug, Clone)]
pub struct Manager {
    address: SocketAddr,
}

/// Socket of a container.
#[derive(Debug)]
pub struct Listener {
    socket: UnixDatagram,
    manager: Manager,
}

impl Manager {
    /// Returns the manager of this process's environment, if there is one.
    #[must_use]
    pub fn of_environment() -> Option<Self> {
        let name = std::env::var(VARIABLE)
            .ok()
            .filter(|name| !name.is_empty())?;
        let address = match name.strip_prefix('@') {
            Some(abstract_name) => SocketAddr::from_abstract_name(abstract_name),
            None => SocketAddr::from_pathname(&name),
        };
        match address {
            Ok(address) => Some(Self { address }),
            Err(error) => {
                tracing::warn!("{VARIABLE}={name} cannot be used: {error}");
                None
            }
        }
    }

    /// Listens at the container's socket; `None` if the container was created without one.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn listen(&self, container: &Container) -> Result<Option<Listener>> {
        let dir = container.dir().join(DIR_NAME);
        if !dir.is_dir() {
            return Ok(None);
        }
        let path = dir.join(SOCKET_NAME);
        let bound = UnixDatagram::bind(&path).and_then(|socket| {
            // Any user of the container may send.
            fs::set_permissions(&path, Permissions::from_mode(0o777))?;
            Ok(socket)
        });
        let socket = bound.map_err(Error::file("listen at", &path))?;
        Ok(Some(Listener {
            socket,
            manager: self.clone(),
        }))
    }
}

/// Adds the mount of the socket's directory to the text of a spec, so that every reader of the
/// container's spec finds it.
pub(crate) fn add_mount(text: &mut Vec<u8>, container_dir: &Path) {
    let Ok(mut config) = serde_json::from_slice::<Value>(text) else {
        // The next parser reports the syntax error.
        return;
    };
    let mount = json!({
        "destination": DIR_IN_CONTAINER, "type": "bind", "source": container_dir.join(DIR_NAME),
        "options": ["bind", "nosuid", "noexec", "nodev", "ro"]
    });
    let Some(members) = config.as_object_mut() else {
        return;
    };
    match members.get_mut("mounts").and_then(Value::as_array_mut) {
        Some(mounts) => mounts.push(mount),
        None => drop(members.insert("mounts".to_owned(), json!([mount]))),
    }
    *text = config.to_string().into_bytes();
}

/// Sets the variable for the container's first process. Processes that join the container later do
/// not get it, as with runc.
pub(crate) fn add_variable(spec: &mut Spec) {
    if let Some(process) = spec.process_mut() {
        let mut env = process.env().clone().unwrap_or_default();
        env.push(format!("{VARIABLE}={DIR_IN_CONTAINER}/{SOCKET_NAME}"));
        process.set_env(Some(env));
    }
}

/// Makes the directory of the socket.
pub(crate) fn make_dir(container: &Container) -> Result<()> {
    let path: PathBuf = container.dir().join(DIR_NAME);
    fs::DirBuilder::new()
        .mode(0o755)
        .create(&path)
        .map_err(Error::file("create", path))
}

impl Listener {
    /// Waits until the container is ready or its first process `init` has ended, and forwards that
    /// it is ready. The manager is told to watch the process `main`.
    pub fn forward(&self, init: Pid, main: Pid) {
        if let Err(error) = self.try_forward(init, main) {
            tracing::warn!("cannot tell the service manager that the container is ready: {error}");
        }
    }

    /// Receives notifications and drops them, so that no sender finds the socket closed. Returns
    /// when the socket is.
    pub fn drain(&self) {
        let mut datagram = [0; DATAGRAM_BYTES];
        while self.socket.recv(&mut datagram).is_ok() {}
    }

    fn try_forward(&self, init: Pid, main: Pid) -> io::Result<()> {
        let Some(ready) = self.wait_for_ready(init)? else {
            return Ok(());
        };
        let manager = UnixDatagram::unbound()?;
        manager.connect_addr(&self.manager.address)?;
        manager.send(format!("{ready}\n").as_bytes())?;
        manager.send(format!("MAINPID={main}\n").as_bytes())?;
        // When the manager has read everything that was sent before, it closes the other end of
        // this pipe.
        let (reader, writer) = io::pipe()?;
        sys::socket::send_fd(manager.as_fd(), b"BARRIER=1", writer.as_raw_fd())?;
        drop(writer);
        wait_for_end(&reader)
    }

    /// Returns the `READY=` line of the first notification that has one; `None` if the process has
    /// ended.
    fn wait_for_ready(&self, init: Pid) -> io::Result<Option<String>> {
        let pidfd = match sys::process::pidfd_open(init) {
            Err(Errno::ESRCH) => return Ok(None),
            opened => opened?,
        };
        let mut datagram = [0; DATAGRAM_BYTES];
        loop {
            let mut fds = [
                PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
                PollFd::new(pidfd.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                polled => polled?,
            };
            let arrived = |fd: &PollFd| fd.revents().is_some_and(|events| !events.is_empty());
            if arrived(&fds[0]) {
                let length = self.socket.recv(&mut datagram)?;
                let text = String::from_utf8_lossy(&datagram[..length]);
                if let Some(line) = text.lines().find(|line| line.starts_with("READY=")) {
                    return Ok(Some(line.to_owned()));
                }
            } else if arrived(&fds[1]) {
                return Ok(None);
            }
        }
    }
}

fn wait_for_end(reader: &PipeReader) -> io::Result<()> {
    let timeout = PollTimeout::try_from(BARRIER_LIMIT_DUR).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
    if poll(&mut fds, timeout)? == 0 {
        tracing::warn!(
            "Timeout after waiting {}s for barrier. Ignored.",
            BARRIER_LIMIT_DUR.as_secs()
        );
    }
    Ok(())
}
