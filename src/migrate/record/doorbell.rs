//! The address of a waiting receiver, for ssh helpers on its host and for `--cancel`.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{Result, file};
use super::paths::doorbell_path;
use crate::sys::file::write_atomic;
use crate::sys::process::ProcessId;

/// Address of a receiver in a file, for ssh helpers on its host and for `--cancel`; removed when
/// dropped.
#[derive(Debug)]
pub struct Doorbell {
    path: PathBuf,
}

/// Contents of the file.
#[derive(Debug, Serialize, Deserialize)]
pub struct Place {
    /// Address and port on which the receiver listens.
    pub address: SocketAddr,
    /// Path of its rendezvous file in the image store.
    pub rendezvous: PathBuf,
    /// Process that a signal ends when no migration is wanted any more; `None` if it only answers
    /// for a migration that has ended.
    #[serde(default)]
    pub keeper: Option<ProcessId>,
}

impl Doorbell {
    /// Writes the address of the receiver for `container`, its file in the store, and the process
    /// that a signal ends.
    ///
    /// # Errors
    /// [`JournalError::File`](super::error::JournalError::File).
    pub fn create(
        root: &Path,
        container: &str,
        address: SocketAddr,
        rendezvous: &Path,
        keeper: Option<ProcessId>,
    ) -> Result<Self> {
        let path = doorbell_path(root, container);
        let place = Place {
            address,
            rendezvous: rendezvous.to_path_buf(),
            keeper,
        };
        serde_json::to_vec(&place)
            .map_err(io::Error::other)
            .and_then(|text| write_atomic(&path, &text, 0o600))
            .map_err(file("write", &path))?;
        Ok(Self { path })
    }
}

impl Drop for Doorbell {
    fn drop(&mut self) {
        // If the file stays, the next receiver replaces it, and an ssh helper finds that no
        // receiver answers.
        let _ = fs::remove_file(&self.path);
    }
}

/// Returns the process of the receiver for `container`, if a receiver has written its address here.
/// The process may have died since.
pub(crate) fn keeper(root: &Path, container: &str) -> Option<ProcessId> {
    let text = fs::read(doorbell_path(root, container)).ok()?;
    serde_json::from_slice::<Place>(&text).ok()?.keeper
}

/// Reads the file at `path`; `None` if it holds no address.
///
/// # Errors
/// As read(2).
pub fn read(path: &Path) -> io::Result<Option<Place>> {
    Ok(serde_json::from_slice(&fs::read(path)?).ok())
}
