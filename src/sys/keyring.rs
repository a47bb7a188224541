//! Session keyrings (keyctl(2)).
#![allow(unsafe_code)]

use std::ffi::CStr;

use nix::errno::Errno;

/// `KEYCTL_JOIN_SESSION_KEYRING` of `<linux/keyctl.h>`.
const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;

/// Joins the session keyring `name`, creating it if it does not exist, so that the keys of the
/// caller's session stay out of the container.
///
/// # Errors
/// `ENOSYS` if the kernel has no keyrings, `EDQUOT` if the user's quota of keys is used up.
pub fn join_session(name: &CStr) -> nix::Result<()> {
    // SAFETY: the kernel reads the NUL-terminated name and keeps no pointer to it.
    let result =
        unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
    Errno::result(result).map(drop)
}
