//! Thin, safe wrappers around system calls. Every `unsafe` block of the crate lives here.

pub mod announce;
pub mod bell;
pub mod beneath;
pub mod error_capture;
pub mod exec;
pub mod file;
pub mod fork;
pub mod fs_context;
pub mod interrupt;
pub mod keyring;
#[cfg(test)]
pub mod mapping;
pub mod mount;
pub mod namespace;
pub mod network;
pub mod network_lock;
pub mod pipe;
pub mod process;
pub mod rooted;
pub mod seal;
pub mod socket;
pub mod spawn;
pub mod terminal;
pub mod thaw_guard;
pub mod tree;
pub mod unix_file;
pub mod xattr;
