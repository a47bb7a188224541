//! Pipes.

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{SysconfVar, pipe2, sysconf};

/// Size of a page of memory, in bytes.
#[must_use]
pub fn page_bytes() -> usize {
    let page_bytes = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    page_bytes
        .and_then(|bytes| usize::try_from(bytes).ok())
        .unwrap_or(4096)
}

/// Checks that this process, and those that it starts, may have a pipe of `size_bytes`
/// (`F_SETPIPE_SZ` in fcntl(2), `fs.pipe-max-size`).
///
/// # Errors
/// `EPERM` if that is above the limit and `CAP_SYS_RESOURCE` is missing, `ENOMEM`, `EINVAL` if no
/// pipe can be so large.
pub fn try_size(size_bytes: usize) -> nix::Result<()> {
    let (read, _write) = pipe2(OFlag::O_CLOEXEC)?;
    let size = i32::try_from(size_bytes).map_err(|_| Errno::EINVAL)?;
    fcntl(read.as_raw_fd(), FcntlArg::F_SETPIPE_SZ(size)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_fits_and_not_everything_does() {
        try_size(page_bytes()).unwrap();
        assert!(try_size(usize::MAX).is_err());
        assert!(try_size(i32::MAX as usize).is_err());
    }
}
