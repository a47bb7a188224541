//! Containers on this host: the facade over `libcontainer`, completed where it lacks what runc does.
//!
//! Five places complete the engine, none of them a fork of it:
//!
//! * **before it**, [`lower`]: the OCI spec is validated as runc does and turned into an equivalent that the engine runs;
//! * **beside it**, [`mounts`]: mounts that it cannot make are made for it to bind;
//! * **outside the container**, `launch`: the processes that join the cgroup, run hooks and fork the one in which the engine sets up a container;
//! * **inside the container**, [`executor`]: rcm's code just before `execve`;
//! * **around it**: state, cgroups, terminals, hooks' and error texts in the other modules.

pub mod cgroup;
pub mod checkpoint;
pub mod container;
pub mod create;
pub mod criu_flags;
pub mod delete;
mod delivery;
pub mod engine;
pub mod engines;
pub mod error;
pub mod events;
pub mod example;
pub mod exec;
pub mod executor;
pub mod external;
pub mod features;
pub mod foreground;
mod go_json;
pub mod hooks;
pub mod host_file;
pub mod kill;
mod launch;
pub mod lower;
pub mod mounts;
pub mod namespaces;
pub mod network;
pub mod notify;
pub mod pause;
pub mod quiesce;
pub mod resctrl;
pub mod restore;
pub mod seccomp;
pub mod snapshot;
pub mod spec;
pub mod start;
pub mod stats;
pub mod status;
mod stdio;
pub mod terminal;
pub mod update;
mod wording;
pub mod worker;

pub use cgroup::Cgroup;
pub use container::{Container, Record};
pub use error::{Error, Result};
pub use status::Status;
