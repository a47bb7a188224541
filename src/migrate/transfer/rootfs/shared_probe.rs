//! The probe file by which the ends find out that they see the same tree.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::migrate::wire::id::MigrationId;

/// A file in the root file system by whose name the destination recognizes the tree. Its name is
/// new each time: no cache of a network file system has a name that was never looked up. It is
/// removed on drop.
#[derive(Debug)]
pub struct SharedProbe {
    path: PathBuf,
    name: String,
}

fn name(migration: MigrationId) -> String {
    format!(".rcm-{migration}")
}

impl SharedProbe {
    /// Creates the file; `None` if the tree cannot be written to.
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

    /// Returns its name in the first directory of the tree.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for SharedProbe {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Removes the probe file from `rootfs` of a source that was killed while it waited for the answer.
pub fn remove_probe(rootfs: &Path, migration: MigrationId) {
    let _ = fs::remove_file(rootfs.join(name(migration)));
}
