//! Makes file systems without mounting them anywhere (fsopen(2), fsconfig(2), fsmount(2); Linux
//! 5.2).
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;

/// `FSCONFIG_SET_STRING` and `FSCONFIG_CMD_CREATE` of `<linux/mount.h>`.
const SET_STRING: libc::c_uint = 1;
const CMD_CREATE: libc::c_uint = 6;

/// A file system that is being configured.
#[derive(Debug)]
pub struct FsContext(OwnedFd);

impl FsContext {
    /// Begins a file system of the type `kind`, such as `tmpfs`.
    ///
    /// # Errors
    /// As fsopen(2).
    pub fn open(kind: &CStr) -> nix::Result<Self> {
        // SAFETY: the name is NUL-terminated and only read.
        let fd = unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), libc::FSOPEN_CLOEXEC) };
        owned(fd).map(Self)
    }

    /// Gives an option a value.
    ///
    /// # Errors
    /// As fsconfig(2); `EINVAL` if the file system does not have that option or value.
    pub fn set(&self, key: &CStr, value: &CStr) -> nix::Result<()> {
        self.configure(SET_STRING, key.as_ptr(), value.as_ptr())
    }

    /// Makes the file system, and a mount of it with these `MOUNT_ATTR_*` (mount_setattr(2)).
    ///
    /// # Errors
    /// As fsconfig(2) and fsmount(2).
    pub fn mount(self, attributes: libc::c_uint) -> nix::Result<OwnedFd> {
        self.configure(CMD_CREATE, ptr::null(), ptr::null())?;
        // SAFETY: fsmount takes integers only.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_fsmount,
                self.0.as_raw_fd(),
                libc::FSMOUNT_CLOEXEC,
                attributes,
            )
        };
        owned(fd)
    }

    fn configure(
        &self,
        command: libc::c_uint,
        key: *const libc::c_char,
        value: *const libc::c_char,
    ) -> nix::Result<()> {
        // SAFETY: the callers pass NUL-terminated strings that outlive the call and are only read,
        // or null for the command that takes none.
        let result = unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                self.0.as_raw_fd(),
                command,
                key,
                value,
                0,
            )
        };
        Errno::result(result).map(drop)
    }
}

fn owned(fd: libc::c_long) -> nix::Result<OwnedFd> {
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just given this descriptor to us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}
