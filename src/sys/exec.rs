//! Replaces the process.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::fs;
use std::os::fd::RawFd;
use std::path::Path;

use nix::fcntl::{AtFlags, FcntlArg, FdFlag, fcntl};
use nix::unistd::{AccessFlags, close, execve, faccessat};

/// Replaces this process by `path` with the given arguments and environment. Returns only on
/// failure.
///
/// # Errors
/// As execve(2).
pub fn replace_process(path: &CStr, args: &[CString], env: &[CString]) -> nix::Result<Infallible> {
    execve(path, args, env)
}

/// Whether this process may execute the file as the user that it is now. faccessat(2) with
/// `AT_EACCESS` regards the effective user, its groups and its capabilities; access(2) regards only
/// root's capabilities.
#[must_use]
pub fn may_execute(path: &Path) -> bool {
    faccessat(None, path, AccessFlags::X_OK, AtFlags::AT_EACCESS).is_ok()
}

/// Returns the highest descriptor that this process has open.
#[must_use]
pub fn highest_descriptor() -> RawFd {
    let names = fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten();
    let numbers = names.filter_map(|name| name.file_name().to_str()?.parse().ok());
    numbers.max().unwrap_or(2)
}

/// Closes the descriptors that execve(2) would close, up to `last`, except `kept`. Otherwise the
/// program's own path could lead through them, such as `/proc/self/fd/N/bin/sh`. Descriptors that
/// the program inherits form the lower range and stay open. The function uses no system call that a
/// seccomp filter might not expect.
pub fn close_private(last: RawFd, kept: Option<RawFd>) {
    let is_inherited = |fd: RawFd| {
        fcntl(fd, FcntlArg::F_GETFD)
            .is_ok_and(|flags| !FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC))
    };
    for fd in (3..=last).skip_while(|fd| is_inherited(*fd)) {
        if Some(fd) != kept {
            let _ = close(fd);
        }
    }
}
