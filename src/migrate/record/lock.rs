//! Lock that lets only one process work on the migrations of a container.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::error::{JournalError, Result, file};
use super::paths::{DIR, make_dir};

/// Returns the path of the lock for `container`.
#[must_use]
pub fn lock_path(root: &Path, container: &str) -> PathBuf {
    root.join(DIR).join(format!("{container}.lock"))
}

/// Exclusive right to migrate one container on this host. It ends with the process.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Takes the lock without waiting.
    ///
    /// # Errors
    /// [`JournalError::Busy`] if another process has it.
    pub fn take(root: &Path, container: &str) -> Result<Self> {
        make_dir(root)?;
        let path = lock_path(root, container);
        let opened = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(file("open", &path))?;
        match Flock::lock(opened, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => Ok(Self { _file: locked }),
            Err((_, Errno::EWOULDBLOCK)) => Err(JournalError::Busy {
                container: container.to_owned(),
                path,
            }),
            Err((_, error)) => Err(file("lock", &path)(error.into())),
        }
    }
}
