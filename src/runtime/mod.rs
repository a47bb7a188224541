//! Containers on this host: the facade over `libcontainer`, completed where it lacks a feature of
//! runc.
//!
//! Five places complete libcontainer, and none of them is a fork of it:
//!
//! * **before it**, [`spec::lower`]: an OCI spec is validated as runc does and turned into an
//!   equivalent one that libcontainer runs;
//! * **beside it**, [`linux::mounts`]: prepares the mounts that libcontainer cannot make, for it to
//!   bind;
//! * **outside the container**, `process::launch`: the processes that join the cgroup, run hooks
//!   and fork the one in which libcontainer sets up a container;
//! * **inside the container**, [`process::executor`]: rcm's code just before `execve`;
//! * **around it**: state, cgroups, terminals, and the texts of hooks and errors.
//!
//! * [`verbs`]: one module for each command of runc.
//! * [`spec`]: reading, normalising and lowering OCI specs.
//! * [`linux`]: cgroups, mounts, networks and other kernel objects of a container.
//! * [`process`]: starting and accompanying a container's processes.

pub mod container;
pub mod criu_flags;
pub mod error;
pub mod image_extras;
pub mod linux;
pub mod process;
pub mod spec;
pub mod status;
pub mod verbs;

pub use container::{Container, Record};
pub use error::{Error, Result};
pub use linux::cgroup::Cgroup;
pub use status::Status;
