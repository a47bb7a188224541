//! Containers as an engine or a person uses them: every verb but those of CRIU, and every part of
//! the specification.

mod crash;
mod devices;
mod errors;
mod exec;
mod hooks;
mod information;
mod lifecycle;
mod limits;
mod mounts;
mod parity;
mod process;
mod propagation;
mod rootless;
mod scheduling;
mod security;
mod terminal;
mod thousand;
mod update;
