use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::TreeError;
use crate::sys::beneath::Dir;
use crate::sys::file::Failed;

/// A path at which something new replaces something old, and how that is undone.
///
/// A directory beside the path is the work area. Only root can enter it, so nobody can use a
/// set-user-ID file in it yet. It has `new` until that is published, and then `old`, if something
/// was there before. So after a crash the directory tells how far the replacement had come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Path that gets the new file or tree.
    pub path: PathBuf,
    /// Tells this replacement from others at the same path. It becomes a part of a file name.
    pub id: String,
    /// Something was at the path before.
    pub replaces: bool,
}

impl Slot {
    /// Makes a slot for `path`.
    ///
    /// # Errors
    /// [`TreeError::File`]: the path or the id is not usable.
    pub fn new(path: &Path, id: &str) -> Result<Self, TreeError> {
        if path.file_name().is_none() || id.contains('/') {
            let error = io::ErrorKind::InvalidInput.into();
            return Err(Failed::to("stage", path)(error).into());
        }
        Ok(Self {
            path: path.to_path_buf(),
            id: id.to_owned(),
            replaces: fs::symlink_metadata(path).is_ok(),
        })
    }

    fn outer(&self) -> PathBuf {
        let mut hidden = OsString::from(".");
        hidden.push(self.path.file_name().unwrap_or_default());
        hidden.push(".rcm-");
        hidden.push(&self.id);
        self.path.with_file_name(hidden)
    }

    fn new_path(&self) -> PathBuf {
        self.outer().join("new")
    }

    fn old_path(&self) -> PathBuf {
        self.outer().join("old")
    }

    /// Puts the old file or tree back, at whatever step the replacement was left, and removes the
    /// rest. Does nothing if nothing was staged.
    ///
    /// # Errors
    /// [`TreeError::File`].
    pub fn undo(&self) -> Result<(), TreeError> {
        let (new, old) = (self.new_path(), self.old_path());
        let is_there = |path: &Path| fs::symlink_metadata(path).is_ok();
        if !is_there(&self.outer()) {
            return Ok(());
        }
        let back =
            |from: &Path, to: &Path| fs::rename(from, to).map_err(Failed::to("put back", to));
        let was_there = is_there(&old);
        let is_new = was_there || !self.replaces && !is_there(&new);
        if is_new && is_there(&self.path) {
            back(&self.path, &new)?;
        }
        if was_there {
            back(&old, &self.path)?;
        }
        self.clear()
    }

    /// Removes the old file or tree. The new one stays.
    ///
    /// # Errors
    /// [`TreeError::File`].
    pub fn clear(&self) -> Result<(), TreeError> {
        let outer = self.outer();
        match fs::remove_dir_all(&outer) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Failed::to("remove", &outer)(error).into())
            }
            _ => Ok(()),
        }
    }
}

/// A file or tree that is built outside of its [`Slot`] until it is complete. If it is dropped
/// without [`Staging::keep`], everything is restored to the old state.
#[derive(Debug)]
pub struct Staging {
    slot: Slot,
    kept: bool,
}

impl Staging {
    /// Prepares a replacement at `slot`, on the same file system. The rest of an earlier one with
    /// the same id, left by a crash, is removed.
    ///
    /// # Errors
    /// [`TreeError::File`].
    pub fn create(slot: Slot) -> Result<Self, TreeError> {
        slot.undo()?;
        let outer = slot.outer();
        DirBuilder::new()
            .mode(0o700)
            .create(&outer)
            .map_err(Failed::to("create", &outer))?;
        Ok(Self { slot, kept: false })
    }

    /// As [`Self::create`], with an empty directory as the new tree.
    ///
    /// # Errors
    /// [`TreeError::File`].
    pub fn create_tree(slot: Slot) -> Result<Self, TreeError> {
        let staging = Self::create(slot)?;
        let tree = staging.path();
        DirBuilder::new()
            .mode(0o700)
            .create(&tree)
            .map_err(Failed::to("create", &tree))?;
        Ok(staging)
    }

    /// Returns the path at which the new file or tree is built.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.slot.new_path()
    }

    /// Waits until the new file or tree is on the disk, before or after it was published.
    ///
    /// # Errors
    /// [`TreeError::File`].
    pub fn sync(&self) -> Result<(), TreeError> {
        let outer = self.slot.outer();
        Dir::open(&outer)
            .and_then(|dir| dir.sync_file_system())
            .map_err(|error| Failed::to("sync", &outer)(error).into())
    }

    /// Moves the new file or tree to its path, as a whole. The old one is kept in the work area.
    ///
    /// # Errors
    /// [`TreeError::File`].
    pub fn publish(&self) -> Result<(), TreeError> {
        let slot = &self.slot.path;
        let failed = || Failed::to("replace", slot);
        match fs::rename(slot, self.slot.old_path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed()(error).into());
            }
            _ => {}
        }
        Ok(fs::rename(self.path(), slot).map_err(failed())?)
    }

    /// Makes the replacement final and removes the old file or tree.
    ///
    /// # Errors
    /// [`TreeError::File`]: a part of the old one is left.
    pub fn keep(mut self) -> Result<(), TreeError> {
        self.kept = true;
        self.slot.clear()
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = self.slot.undo()
        {
            tracing::warn!("{}: {error}", self.slot.path.display());
        }
    }
}
