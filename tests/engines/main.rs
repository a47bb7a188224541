//! Engines with rcm as their runtime: the real daemons and clients, each with directories, sockets, a control group and a network of the test's own.

#[path = "../common/mod.rs"]
mod common;
mod containerd;
mod docker;
mod dockerd;
mod engine;
mod podman;
