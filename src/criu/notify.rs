//! The stages that CRIU reports, and the answers to them.

use std::os::fd::OwnedFd;

use nix::unistd::Pid;

use super::error::CallbackError;
use super::options::External;

/// A stage that CRIU reports. CRIU waits for an answer to each.
#[derive(Debug)]
#[non_exhaustive]
pub enum Notification {
    /// The start-up is over and nothing is stopped yet. Now the cgroup has to be frozen.
    PreDump,
    /// All tasks are stopped. The answer may name further [`External`] resources.
    QueryExternalFiles,
    /// CRIU is about to lock the network of tasks in a network namespace of their own.
    NetworkLock,
    /// CRIU is about to unlock it again.
    NetworkUnlock,
    /// Nothing was restored yet.
    PreRestore,
    /// The namespaces exist; `pid` is the first process.
    SetupNamespaces {
        /// The first process, by its id in rcm's pid namespace.
        pid: i32,
    },
    /// The namespaces are set up.
    PostSetupNamespaces,
    /// The tasks are about to execute. It is too late to refuse: CRIU only logs a refusal.
    PreResume,
    /// The tasks execute.
    PostResume,
    /// The master of a restored terminal.
    OrphanPtsMaster(OwnedFd),
    /// The page server of a lazy dump listens.
    StatusReady,
    /// A stage that this version of rcm does not know.
    Other(String),
}

impl Notification {
    /// Reads the notification `stage`. Some stages come with a process or a descriptor.
    ///
    /// # Errors
    /// The defect of the message, if its process or descriptor is missing.
    pub(super) fn parse(
        stage: &str,
        pid: Option<i32>,
        fd: Option<OwnedFd>,
    ) -> Result<Self, &'static str> {
        Ok(match stage {
            "pre-dump" => Self::PreDump,
            "query-ext-files" => Self::QueryExternalFiles,
            "network-lock" => Self::NetworkLock,
            "network-unlock" => Self::NetworkUnlock,
            "pre-restore" => Self::PreRestore,
            "setup-namespaces" => Self::SetupNamespaces {
                pid: pid.ok_or("setup-namespaces without a process")?,
            },
            "post-setup-namespaces" => Self::PostSetupNamespaces,
            "pre-resume" => Self::PreResume,
            "post-resume" => Self::PostResume,
            "orphan-pts-master" => {
                Self::OrphanPtsMaster(fd.ok_or("orphan-pts-master without a descriptor")?)
            }
            "status-ready" => Self::StatusReady,
            other => Self::Other(other.to_owned()),
        })
    }
}

/// The answer "yes" to a [`Notification`].
#[derive(Debug, Default)]
pub struct Reply {
    /// Resources that CRIU must not save, after [`Notification::QueryExternalFiles`].
    pub external: Vec<External>,
}

/// Receives CRIU's notifications.
pub trait Notify {
    /// CRIU was started as process `pid` and has no request yet. It ends by itself when the
    /// conversation ends.
    ///
    /// # Errors
    /// An error ends the conversation and is returned as [`Error::Refused`](super::Error::Refused).
    fn started(&mut self, _pid: Pid) -> Result<(), CallbackError> {
        Ok(())
    }

    /// Answers a notification. It is called at each stage except `post-dump` and `post-restore`, at
    /// which the conversation pauses instead.
    ///
    /// # Errors
    /// An error is a "no": CRIU rolls back, and the error is returned as
    /// [`Error::Refused`](super::Error::Refused).
    fn on(&mut self, notification: Notification) -> Result<Reply, CallbackError>;
}

/// Agrees to everything.
impl Notify for () {
    fn on(&mut self, _notification: Notification) -> Result<Reply, CallbackError> {
        Ok(Reply::default())
    }
}
