//! Replacing the process.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::path::Path;

use nix::unistd::{AccessFlags, access, execve};

/// Replaces this process by `path` with the given arguments and environment. Returns only on failure.
///
/// # Errors
/// As execve(2).
pub fn replace_process(path: &CStr, args: &[CString], env: &[CString]) -> nix::Result<Infallible> {
    execve(path, args, env)
}

/// Whether this process, with the user it has now, may execute the file: what faccessat(2) says, so that user,
/// groups and capabilities count.
#[must_use]
pub fn may_execute(path: &Path) -> bool {
    access(path, AccessFlags::X_OK).is_ok()
}
