//! rcm runs containers like `runc` and moves them, running, between hosts.
//!
//! The crate is one binary with a library behind it. Imports run downward only:
//!
//! ```text
//! main -> cli -> migrate -> engines -> runtime -> criu, image -> sys
//! ```
//!
//! * [`cli`]: one file per verb; turns arguments into a request and prints the answer.
//! * [`migrate`]: the migration protocol, its two ends and its journal.
//! * [`engines`]: Docker, containerd and Podman as users of this runtime.
//! * [`runtime`]: containers on this host, on top of `libcontainer`.
//! * [`criu`]: CRIU's RPC protocol.
//! * [`image`]: the files of an image store.
//! * [`sys`]: system calls; every `unsafe` block of the crate.
//! * [`error`], [`text`]: the wording of errors and quantities; they depend on nothing else.
#![deny(unsafe_code)]

pub mod cli;
pub mod criu;
pub mod engines;
pub mod error;
pub mod image;
pub mod logging;
pub mod migrate;
pub mod runtime;
pub mod sys;
pub mod text;
