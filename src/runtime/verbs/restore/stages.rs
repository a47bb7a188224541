//! rcm's part while CRIU restores a container.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use nix::unistd::Pid;

use crate::criu::error::CallbackError;
use crate::criu::{Notification, Notify, Reply};
use crate::runtime::container::Container;
use crate::runtime::linux::network::Arrival;
use crate::runtime::process::criu_process;
use crate::runtime::process::terminal::Master;
use crate::runtime::status::Status;
use crate::runtime::verbs::start;
use crate::sys;
use crate::sys::process::ProcessId;

/// State of a restore, and its reactions to CRIU's notifications.
#[derive(Debug)]
pub(super) struct RestoreStages {
    pub(super) container: Container,
    pub(super) console_socket: Option<UnixStream>,
    pub(super) wants_terminal: bool,
    pub(super) terminal: Option<Master>,
    pub(super) arrival: Arrival,
    /// Whether the network namespace was made for the container now.
    pub(super) own_network: bool,
}

impl RestoreStages {
    /// Prepares the namespaces. The first process and its namespaces exist, and nothing is restored
    /// in them yet. Also runs the hooks that runc runs at a restore.
    fn set_up(&mut self, pid: i32) -> Result<(), CallbackError> {
        if self.own_network {
            sys::network::bring_loopback_up(Pid::from_raw(pid))?;
        }
        // Lock before the hooks run, which may connect the namespace to the network.
        self.arrival.lock(Pid::from_raw(pid))?;
        let mut container = self.container.clone();
        container.record_mut().init = Some(ProcessId::of(Pid::from_raw(pid))?);
        for kind in ["prestart", "createRuntime"] {
            start::run_hooks(&container, kind, Status::Creating)?;
        }
        Ok(())
    }

    fn take_terminal(&mut self, master: OwnedFd) -> Result<(), CallbackError> {
        let master = Master::new(master);
        match self.console_socket.take() {
            Some(socket) if self.wants_terminal => master.send(&socket)?,
            _ if self.terminal.is_none() => self.terminal = Some(master),
            _ => {}
        }
        Ok(())
    }
}

impl Notify for RestoreStages {
    fn started(&mut self, pid: Pid) -> Result<(), CallbackError> {
        criu_process::record(&self.container, pid)
    }

    fn on(&mut self, notification: Notification) -> Result<Reply, CallbackError> {
        match notification {
            Notification::SetupNamespaces { pid } => self.set_up(pid)?,
            Notification::OrphanPtsMaster(master) => self.take_terminal(master)?,
            _ => {}
        }
        Ok(Reply::default())
    }
}
