//! Replacing the process.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::fs;
use std::os::fd::RawFd;
use std::path::Path;

use nix::fcntl::{AtFlags, FcntlArg, FdFlag, fcntl};
use nix::unistd::{AccessFlags, close, execve, faccessat};

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

/// The highest descriptor that this process has open.
#[must_use]
pub fn highest_descriptor() -> RawFd {
    let names = fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten();
    let numbers = names.filter_map(|name| name.file_name().to_str()?.parse().ok());
    numbers.max().unwrap_or(2)
}

/// Closes now what execve(2) would close: all up to `last` from the first on that is not inherited, but for `kept`. Until then the program's own path could
/// lead through them, `/proc/self/fd/N/bin/sh`. Does without system calls that a seccomp filter might not expect.
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
