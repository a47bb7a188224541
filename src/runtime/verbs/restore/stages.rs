//! What rcm does while CRIU restores a container.

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

/// What rcm does at the stages of a restore.
#[derive(Debug)]
pub(super) struct Stages {
    pub(super) container: Container,
    pub(super) console_socket: Option<UnixStream>,
    pub(super) wants_terminal: bool,
    pub(super) terminal: Option<Master>,
    pub(super) arrival: Arrival,
    /// Whether the network namespace is the container's own and was made for it now.
    pub(super) own_network: bool,
}

impl Stages {
    /// The first process exists, its namespaces too; nothing is in them yet. The hooks that runc
    /// runs on a restore run here.
    fn set_up(&mut self, pid: i32) -> Result<(), CallbackError> {
        if self.own_network {
            sys::network::bring_loopback_up(Pid::from_raw(pid))?;
        }
        // Before the hooks, which may connect it.
        self.arrival.bar(Pid::from_raw(pid))?;
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

impl Notify for Stages {
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
