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

/// Where a receiver is, for relays on its host and for who wants to end it; removed when dropped.
#[derive(Debug)]
pub struct Doorbell {
    path: PathBuf,
}

/// The contents of the file.
#[derive(Debug, Serialize, Deserialize)]
pub struct Place {
    /// Address and port on which the receiver listens.
    pub address: SocketAddr,
    /// Path of its rendezvous file in the image store.
    pub rendezvous: PathBuf,
    /// Who ends when nobody is to come any more; none where it only answers for a migration that has ended.
    #[serde(default)]
    pub keeper: Option<ProcessId>,
}

impl Doorbell {
    /// Leaves where the receiver for `container` listens, its file in the store, and the process that a signal ends.
    ///
    /// # Errors
    /// [`JournalError::File`](super::error::JournalError::File).
    pub fn hang(
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
        // The next receiver replaces it, and a relay finds that nobody answers.
        let _ = fs::remove_file(&self.path);
    }
}

/// The process of the receiver for `container`, if one has hung up a bell here. It may have been killed meanwhile.
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
