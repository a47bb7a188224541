//! Protects rcm's binary from the containers that it enters.
//!
//! While rcm's code executes inside a container, a process there can reach the binary through
//! `/proc/PID/exe`. As root, that process could overwrite the binary for the host's next use
//! (CVE-2019-5736). So rcm first executes itself again from a place that nobody can write to: a
//! private, read-only overlay file system that is mounted nowhere. If the overlay cannot be made,
//! rcm uses a sealed copy in memory. The overlay copies nothing and takes a tenth of the copy's
//! time, which counts in every `run`.
#![allow(unsafe_code)]

use std::env;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::fs_context::FsContext;

/// Marks the second execution. The value is the process id, which execve(2) keeps and no child
/// shares, so a caller's environment cannot pass the mark on.
const MARK: &str = "RCM_SEALED";

/// `MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV` of `<linux/mount.h>`.
const READ_ONLY: libc::c_uint = 1 | 2 | 4;

/// Makes sure that this process executes from a place that a container cannot write to. Returns if
/// it does. Otherwise the process starts anew with the same arguments.
///
/// `lower` is a directory for the overlay's second, meaningless layer: an overlay of a single layer
/// would be writable.
///
/// # Errors
/// If neither the overlay nor the copy works.
pub fn ensure_sealed(lower: &Path) -> io::Result<()> {
    if env::var(MARK).is_ok_and(|mark| mark == std::process::id().to_string()) {
        return Ok(());
    }
    match overlay(lower) {
        Ok(binary) => Err(execute(&binary)),
        // The privilege is missing, or the file system cannot be a layer of an overlay.
        Err(_) => pentacle::ensure_sealed(),
    }
}

/// Whether this process executes from a copy in memory (memfd_create(2)).
#[must_use]
pub fn is_copied() -> bool {
    std::fs::read_link("/proc/self/exe")
        .is_ok_and(|binary| binary.as_os_str().as_bytes().starts_with(b"/memfd:"))
}

/// Opens the running binary through a new overlay.
fn overlay(lower: &Path) -> io::Result<OwnedFd> {
    let binary = env::current_exe()?;
    let (Some(dir), Some(name)) = (binary.parent(), binary.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::NotFound));
    };
    let mut layers = escape(dir.as_os_str());
    layers.push(b':');
    layers.extend(escape(lower.as_os_str()));
    let layers = CString::new(layers)?;

    let context = FsContext::open(c"overlay")?;
    context.set(c"lowerdir", &layers)?;
    // Only avoids a line in the kernel's log if the layers are on different file systems.
    let _ = context.set(c"xino", c"off");
    let mount = context.mount(READ_ONLY)?;
    let fd = openat(
        Some(mount.as_raw_fd()),
        name,
        OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    // SAFETY: the kernel has just given this descriptor to us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Escapes the separators of layers with a backslash (Documentation/filesystems/overlayfs.rst).
fn escape(path: &OsStr) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(path.len() + 1);
    for byte in path.as_bytes() {
        if matches!(byte, b':' | b'\\' | b',') {
            escaped.push(b'\\');
        }
        escaped.push(*byte);
    }
    escaped
}

/// Executes the binary with this process's arguments and environment. Returns only on failure.
fn execute(binary: &OwnedFd) -> io::Error {
    let text = |bytes: Vec<u8>| CString::new(bytes).unwrap_or_default();
    let args: Vec<CString> = env::args_os().map(|arg| text(arg.into_vec())).collect();
    let mut variables: Vec<CString> = env::vars_os()
        .filter(|(name, _)| name != MARK)
        .map(|(name, value)| text([name.as_bytes(), b"=", value.as_bytes()].concat()))
        .collect();
    variables.push(text(format!("{MARK}={}", std::process::id()).into_bytes()));
    match nix::unistd::fexecve(binary.as_raw_fd(), &args, &variables) {
        Ok(never) => match never {},
        Err(errno) => errno.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_in_paths_are_escaped() {
        assert_eq!(escape(OsStr::new("/a:b\\c,d")), b"/a\\:b\\\\c\\,d");
    }
}
