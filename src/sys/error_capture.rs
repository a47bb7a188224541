//! A note of what went wrong, shared between a process and the children that it forks.
//!
//! `libcontainer` reports a failure inside the container as one flat sentence ("failed to prepare rootfs") and logs
//! the cause on the way. The cause is what an operator needs. So while a container is created, the error events of
//! the engine go to an unlinked file in memory that all forked processes share, and the parent reads it when the creation
//! has failed.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::sys::memfd::{MemFdCreateFlag, memfd_create};

static ACTIVE: AtomicI32 = AtomicI32::new(-1);

/// Collects errors until it is dropped. One at a time in a process.
#[derive(Debug)]
pub struct Trail {
    file: File,
}

impl Trail {
    /// Starts collecting.
    ///
    /// # Errors
    /// As memfd_create(2).
    pub fn start() -> nix::Result<Self> {
        let file = File::from(memfd_create(c"rcm-trail", MemFdCreateFlag::MFD_CLOEXEC)?);
        ACTIVE.store(file.as_raw_fd(), Ordering::Relaxed);
        Ok(Self { file })
    }

    /// What was recorded so far, oldest first: the oldest is the deepest cause.
    #[must_use]
    pub fn records(&mut self) -> Vec<String> {
        let mut text = Vec::new();
        let read = self
            .file
            .seek(SeekFrom::Start(0))
            .and_then(|_| self.file.read_to_end(&mut text));
        match read {
            Ok(_) => String::from_utf8_lossy(&text)
                .split('\0')
                .filter(|record| !record.is_empty())
                .map(str::to_owned)
                .collect(),
            Err(_) => Vec::new(),
        }
    }
}

impl Drop for Trail {
    fn drop(&mut self) {
        ACTIVE.store(-1, Ordering::Relaxed);
    }
}

/// Adds a record to the trail that this process or its parent has started; does nothing where none was.
pub fn record(message: &str) {
    let fd = ACTIVE.load(Ordering::Relaxed);
    if fd < 0 {
        return;
    }
    let mut line = message.as_bytes().to_vec();
    line.push(0);
    // SAFETY: `ACTIVE` holds the descriptor of a living `Trail` of this process, or its copy in a forked child, where
    // nothing closes it before execve.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    // A trail that cannot be written loses a detail, not the failure itself.
    let _ = nix::unistd::write(fd, &line);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_in_order() {
        let mut trail = Trail::start().unwrap();
        record("deepest");
        record("outer");
        assert_eq!(trail.records(), ["deepest", "outer"]);
        drop(trail);
        record("nobody listens");
    }
}
