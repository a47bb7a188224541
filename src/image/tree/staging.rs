use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::TreeError;
use super::file_error;
use crate::sys::beneath::Dir;

/// A place where something new is put, and how it is put back.
///
/// Beside it lies a directory that only root can enter: a set-user-ID file in it is of no use to anybody yet. `new` is in there until it is published, then
/// `old`, if there was one. So the directory tells how far it had come when it was left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Where it goes.
    pub path: PathBuf,
    /// Tells it from others at the same place; a part of a file name.
    pub id: String,
    /// Something was there before.
    pub replaces: bool,
}

impl Place {
    /// For something at `path`.
    ///
    /// # Errors
    /// [`TreeError::File`]: a path or an id that cannot be one.
    pub fn new(path: &Path, id: &str) -> Result<Self, TreeError> {
        if path.file_name().is_none() || id.contains('/') {
            let error = io::ErrorKind::InvalidInput.into();
            return Err(file_error("stage", path)(error));
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

    /// Puts back what was there, whatever had come of it, and removes the rest. Nothing where nothing was staged.
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
            |from: &Path, to: &Path| fs::rename(from, to).map_err(file_error("put back", to));
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

    /// Removes what was there before; what is there now stays.
    ///
    /// # Errors
    /// [`TreeError::File`].
    pub fn clear(&self) -> Result<(), TreeError> {
        let outer = self.outer();
        match fs::remove_dir_all(&outer) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(file_error("remove", &outer)(error))
            }
            _ => Ok(()),
        }
    }
}

/// A file or tree that is not in its [`Place`] before it is whole. Dropped without [`Staging::keep`], everything is as it was.
#[derive(Debug)]
pub struct Staging {
    place: Place,
    kept: bool,
}

impl Staging {
    /// Prepares for something at `place`, on the same file system. What a crash left of an earlier one with the same id is removed.
    ///
    /// # Errors
    /// [`TreeError::File`].
    pub fn create(place: Place) -> Result<Self, TreeError> {
        place.undo()?;
        let outer = place.outer();
        DirBuilder::new()
            .mode(0o700)
            .create(&outer)
            .map_err(file_error("create", &outer))?;
        Ok(Self { place, kept: false })
    }

    /// The same, with an empty directory in it.
    ///
    /// # Errors
    /// [`TreeError::File`].
    pub fn create_tree(place: Place) -> Result<Self, TreeError> {
        let staging = Self::create(place)?;
        let tree = staging.path();
        DirBuilder::new()
            .mode(0o700)
            .create(&tree)
            .map_err(file_error("create", &tree))?;
        Ok(staging)
    }

    /// Where it is built.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.place.new_path()
    }

    /// Waits until what was built, or published, is on the disk.
    ///
    /// # Errors
    /// [`TreeError::File`].
    pub fn sync(&self) -> Result<(), TreeError> {
        let outer = self.place.outer();
        Dir::open(&outer)
            .and_then(|dir| dir.sync_file_system())
            .map_err(file_error("sync", &outer))
    }

    /// Puts it into its place, as a whole. What is there waits beside it.
    ///
    /// # Errors
    /// [`TreeError::File`].
    pub fn publish(&self) -> Result<(), TreeError> {
        let place = &self.place.path;
        let failed = || file_error("replace", place);
        match fs::rename(place, self.place.old_path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed()(error)),
            _ => {}
        }
        fs::rename(self.path(), place).map_err(failed())
    }

    /// It stays; what was there before is removed.
    ///
    /// # Errors
    /// [`TreeError::File`]: something of the latter is left.
    pub fn keep(mut self) -> Result<(), TreeError> {
        self.kept = true;
        self.place.clear()
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = self.place.undo()
        {
            tracing::warn!("{}: {error}", self.place.path.display());
        }
    }
}
