//! CRIU: finds it, asks for its features, and dumps and restores through its RPC protocol.
//!
//! rcm starts `criu swrk FD`, a worker for one request. It speaks protobuf messages over a
//! `SOCK_SEQPACKET` socket, one message per packet (criu/cr-service.c, CRIU 4.2). CRIU reports
//! stages of its work as notifications and waits for an answer to each. This makes a migration
//! possible without a patched CRIU:
//!
//! ```text
//!  rcm                                   criu swrk
//!   | -------- DUMP, options -------------> |
//!   | <------- pre-dump ------------------- |   start-up is over, nothing is stopped yet: rcm freezes the cgroup here
//!   | <------- network-lock, query-ext-files|   tasks stopped
//!   | <------- post-dump ------------------ |   images complete; tasks stopped
//!   |          PausedDump                   |
//!   | -------- yes: commit() -------------> |   kills the tasks (or lets them run, leave_running)
//!   | -------- no:  refuse() -------------> |   resumes the tasks
//!
//!   | -------- RESTORE, options ----------> |
//!   | <------- pre-restore, setup-namespaces, orphan-pts-master, ...
//!   | <------- post-restore --------------- |   everything is restored, nothing has executed
//!   |          PausedRestore                |
//!   | -------- yes: resume() -------------> |   unlocks the network and lets the tasks run
//!   | -------- no:  refuse() -------------> |   kills them
//! ```
//!
//! If rcm dies, CRIU finds the socket closed and acts as after a refusal. rcm never kills the CRIU
//! of a dump: CRIU's parasite code would stay in the tasks.
//!
//! No protobuf type leaves this module.

pub mod binary;
mod choices;
pub mod error;
pub mod feature;
pub mod held;
mod kerndat;
pub mod log;
pub mod notify;
pub mod options;
pub mod page_server;
pub mod processor;
mod rpc;
pub mod session;
pub mod stats;
pub mod version;

pub use binary::Criu;
pub use choices::{CriuChoices, ManageCgroups};
pub use error::{Action, Error};
pub use held::{NotResumed, PausedDump, PausedRestore, has_resumed};
pub use notify::{Notification, Notify, Reply};
pub use options::{
    CgroupRoot, Common, DumpOptions, External, InheritedFd, JoinNamespace, NetworkLockMethod,
    PageServer, PreDumpMode, RestoreOptions, Trees,
};
pub use version::{Features, Version};
