//! CRIU: finding it, asking it what it can, and dumping and restoring through its RPC protocol.
//!
//! rcm starts `criu swrk FD`, a worker for one request that speaks protobuf messages over a `SOCK_SEQPACKET` socket, one message per
//! packet (criu/cr-service.c). It reports stages of its work as notifications and waits for an answer to each, which is what makes a migration
//! possible without a patched CRIU:
//!
//! ```text
//!  rcm                                   criu swrk
//!   | -------- DUMP, options -------------> |
//!   | <------- pre-dump ------------------- |   start-up is over, nothing is stopped yet: the cgroup is frozen here
//!   | <------- network-lock, query-ext-files|   tasks stopped
//!   | <------- post-dump ------------------ |   images complete; tasks stopped
//!   |          HeldDump                     |
//!   | -------- yes: commit() -------------> |   kills the tasks (or lets them run, leave_running)
//!   | -------- no:  refuse() -------------> |   lets the tasks run on
//!
//!   | -------- RESTORE, options ----------> |
//!   | <------- pre-restore, setup-namespaces, orphan-pts-master, ...
//!   | <------- post-restore --------------- |   everything is restored, nothing has executed
//!   |          HeldRestore                  |
//!   | -------- yes: resume() -------------> |   unlocks the network and lets the tasks run
//!   | -------- no:  refuse() -------------> |   kills them
//! ```
//!
//! If rcm dies, CRIU finds the socket closed and does what a refusal makes it do. CRIU itself is never killed by rcm: its code would stay in the
//! tasks that it holds.
//!
//! No protobuf type leaves this module.

pub mod binary;
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
pub use error::{Action, Error};
pub use held::{HeldDump, HeldRestore, has_resumed};
pub use notify::{Event, Notify, Reply};
pub use options::{
    CgroupMode, CgroupRoot, Common, DumpOptions, External, InheritedFd, JoinNamespace, NetworkLock,
    PageServer, PreDumpMode, RestoreOptions, Trees,
};
pub use version::{Features, Version};
