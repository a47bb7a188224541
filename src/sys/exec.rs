//! Replacing the process.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::path::Path;

use nix::fcntl::AtFlags;
use nix::unistd::{AccessFlags, execve, faccessat};

/// Replaces this process by `path` with the given arguments and environment. Returns only on failure.
///
/// # Errors
/// As execve(2).
pub fn replace_process(path: &CStr, args: &[CString], env: &[CString]) -> nix::Result<Infallible> {
    execve(path, args, env)
}

/// Whether this process, with the user it has now, may execute the file: what faccessat(2) says of the effective user, so that user,
/// groups and capabilities count. access(2) leaves out the capabilities of all but root.
#[must_use]
pub fn may_execute(path: &Path) -> bool {
    faccessat(None, path, AccessFlags::X_OK, AtFlags::AT_EACCESS).is_ok()
}
