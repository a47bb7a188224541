use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::error::TreeError;
use super::file_error;
use crate::sys::node::Dir;

/// A tree that is not in its place before it is whole.
///
/// It is built in a directory beside its place, which only root can enter: a set-user-ID file in it is of no use to anybody yet. Dropped without
/// [`Staging::publish`], it is removed.
#[derive(Debug)]
pub struct Staging {
    /// The directory that keeps others out.
    outer: PathBuf,
    tree: PathBuf,
    place: PathBuf,
}

impl Staging {
    /// Makes an empty tree for `place`, which is absent or an empty directory. What a crash left of an earlier one with the same `id`, a part of a file name,
    /// is removed.
    ///
    /// # Errors
    /// [`TreeError::File`].
    pub fn create(place: &Path, id: &str) -> Result<Self, TreeError> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let name = match place.file_name() {
            Some(name) if !id.contains('/') => name,
            _ => return Err(file_error("stage", place)(invalid())),
        };
        match fs::read_dir(place).map(|mut entries| entries.next().is_none()) {
            Ok(true) => {}
            Ok(false) => {
                let error = io::ErrorKind::DirectoryNotEmpty.into();
                return Err(file_error("replace", place)(error));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(file_error("replace", place)(error)),
        }
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(".rcm-");
        hidden.push(id);
        let outer = place.with_file_name(hidden);
        match fs::remove_dir_all(&outer) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(file_error("remove", &outer)(error));
            }
            _ => {}
        }
        let tree = outer.join("tree");
        let mut builder = DirBuilder::new();
        builder.mode(0o700);
        builder
            .create(&outer)
            .map_err(file_error("create", &outer))?;
        let staging = Self {
            outer,
            tree,
            place: place.to_path_buf(),
        };
        builder
            .create(&staging.tree)
            .map_err(file_error("create", &staging.tree))?;
        Ok(staging)
    }

    /// Where the tree is now.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.tree
    }

    /// Waits until the tree is on the disk.
    ///
    /// # Errors
    /// [`TreeError::File`].
    pub fn sync(&self) -> Result<(), TreeError> {
        Dir::open(&self.tree)
            .and_then(|dir| dir.sync_file_system())
            .map_err(file_error("sync", &self.tree))
    }

    /// Puts the tree into its place, at once and as a whole.
    ///
    /// # Errors
    /// [`TreeError::File`]: something is in the place; the tree is removed then.
    pub fn publish(self) -> Result<(), TreeError> {
        fs::rename(&self.tree, &self.place).map_err(file_error("replace", &self.place))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // What is left costs space and nothing else; the next attempt removes it.
        let _ = fs::remove_dir_all(&self.outer);
    }
}
