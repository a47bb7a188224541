//! Notifications of CRIU and the answers to them.

use std::os::fd::OwnedFd;

use nix::unistd::Pid;

use super::error::CallbackError;
use super::options::External;

/// A stage that CRIU reports and at which it waits for an answer.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// Nothing is stopped yet, start-up is over: the time to freeze the cgroup.
    PreDump,
    /// All tasks are stopped. The answer may name further [`External`] resources.
    QueryExternalFiles,
    /// The tasks of a network namespace of their own are about to be cut off.
    NetworkLock,
    /// They are about to be reachable again.
    NetworkUnlock,
    /// Nothing was restored yet.
    PreRestore,
    /// The namespaces exist; `pid` is the first process.
    SetupNamespaces {
        /// The first process, its id as rcm sees it.
        pid: i32,
    },
    /// The namespaces are set up.
    PostSetupNamespaces,
    /// The tasks will execute. Too late to refuse: CRIU only logs a refusal.
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

/// The answer "yes" to an [`Event`].
#[derive(Debug, Default)]
pub struct Reply {
    /// After [`Event::QueryExternalFiles`]: what is not to be saved.
    pub external: Vec<External>,
}

/// Gets CRIU's notifications.
pub trait Notify {
    /// CRIU was started as process `pid` and told nothing yet. It ends by itself when the conversation does.
    ///
    /// # Errors
    /// An error ends the conversation and comes out as [`Error::Refused`](super::Error::Refused).
    fn started(&mut self, _pid: Pid) -> Result<(), CallbackError> {
        Ok(())
    }

    /// Is called at each stage except `post-dump` and `post-restore`, at which the conversation is held instead.
    ///
    /// # Errors
    /// An error is a "no": CRIU rolls back, and the error comes out as [`Error::Refused`](super::Error::Refused).
    fn on(&mut self, event: Event) -> Result<Reply, CallbackError>;
}

/// Agrees to everything.
impl Notify for () {
    fn on(&mut self, _event: Event) -> Result<Reply, CallbackError> {
        Ok(Reply::default())
    }
}
