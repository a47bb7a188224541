use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::migrate::wire::id::MigrationId;

/// A file in the root file system by whose name the destination recognizes the tree. A new one each time: a name that was never looked up is in no cache of a network
/// file system. Removed when dropped.
#[derive(Debug)]
pub struct Nonce {
    path: PathBuf,
    name: String,
}

fn name(migration: MigrationId) -> String {
    format!(".rcm-{migration}")
}

impl Nonce {
    /// Makes it; none where the tree cannot be written to.
    #[must_use]
    pub fn leave(rootfs: &Path, migration: MigrationId) -> Option<Self> {
        let name = name(migration);
        let path = rootfs.join(&name);
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o000)
            .open(&path);
        match made {
            Ok(_) => Some(Self { path, name }),
            Err(error) => {
                tracing::debug!("cannot create {}: {error}", path.display());
                None
            }
        }
    }

    /// Its name, in the first directory of the tree.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Nonce {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Removes what a source has left in `rootfs` that was killed while it waited for the answer.
pub fn remove_nonce(rootfs: &Path, migration: MigrationId) {
    let _ = fs::remove_file(rootfs.join(name(migration)));
}
