//! Engines with rcm as their runtime: the real daemons and clients, each with directories, sockets,
//! a control group and a network of the test's own.

#[path = "../it/common/mod.rs"]
mod common;
mod containerd;
mod docker;
mod dockerd;
mod engine;
mod migrate;
#[allow(dead_code, reason = "only its receiver is used here")]
mod podman;
