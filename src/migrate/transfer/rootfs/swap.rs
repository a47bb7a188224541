//! Changes of the destination's file system by a migration, and their undoing.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{CONFIG, Result, RootfsError};
use crate::error::chain;
use crate::image::tree::{Slot, Staging, TreePath};
use crate::migrate::record::journal::JournalRecord;
use crate::migrate::record::paths;
use crate::migrate::wire::id::{MigrationId, Side};
use crate::migrate::wire::preamble::CarriedFile;
use crate::migrate::wire::rootfs::RootfsWay;
use crate::sys::beneath::Dir;
use crate::sys::file::Failed;
use crate::sys::file::write_atomic;

/// The new bundle and tree of a container. They are prepared beside the old ones, put into their
/// places when they are complete, and replaced by the old ones again unless they are kept.
///
/// Every change is in a record beside the journal before it is made. After a crash [`settle`]
/// undoes the changes by this record, or finishes them if the container belongs to this host.
#[derive(Debug)]
pub struct TreeSwap {
    record_path: PathBuf,
    record: Record,
    tree: Option<Staging>,
    config: Option<Staging>,
    /// The directory of the carried files.
    files: Option<Staging>,
    is_diff: bool,
    config_place: PathBuf,
    changed: Option<Vec<TreePath>>,
    kept: bool,
}

/// Paths to which the arriving data is written.
#[derive(Debug, Clone)]
pub(super) struct Targets {
    pub(super) tree: PathBuf,
    /// Whether the source first gets an inventory of the tree that is there.
    pub(super) is_diff: bool,
    /// Path of the tree that a diff builds on.
    pub(super) base: Option<PathBuf>,
    pub(super) config: Option<PathBuf>,
    pub(super) config_place: PathBuf,
}

impl Targets {
    pub(super) fn sync(&self) -> Result<()> {
        sync(&self.tree)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    migration: MigrationId,
    places: Vec<Slot>,
    /// Directories that were created, each above the next one.
    made: Vec<PathBuf>,
}

impl TreeSwap {
    /// Prepares for the container's tree at `rootfs` and its `config.json` in `bundle`, with the
    /// `carried` files beside it. `root` is rcm's state directory.
    ///
    /// # Errors
    /// [`RootfsError`]. Everything is undone then.
    pub fn prepare(
        root: &Path,
        container: &str,
        migration: MigrationId,
        way: RootfsWay,
        bundle: &Path,
        rootfs: &Path,
        carried: &[CarriedFile],
    ) -> Result<Self> {
        let id = migration.to_string();
        let config_place = bundle.join(CONFIG);
        let tree = Slot::new(rootfs, &id)?;
        // A host with a tree for a diff was prepared for the container: its own spec stays.
        let config = if way == RootfsWay::Diff && config_place.exists() {
            None
        } else {
            Some(Slot::new(&config_place, &id)?)
        };
        let files = if config.is_some() && !carried.is_empty() {
            Some(Slot::new(&bundle.join(CarriedFile::DIR), &id)?)
        } else {
            None
        };
        let mut made = missing(bundle);
        for dir in missing(rootfs.parent().unwrap_or(rootfs)) {
            if !made.contains(&dir) {
                made.push(dir);
            }
        }
        let record_path = paths::placement_path(root, container);
        let record = Record {
            migration,
            places: [Some(&tree), config.as_ref(), files.as_ref()]
                .into_iter()
                .flatten()
                .cloned()
                .collect(),
            made,
        };
        // The record is on the disk before the first change.
        serde_json::to_vec_pretty(&record)
            .map_err(io::Error::from)
            .and_then(|text| write_atomic(&record_path, &text, 0o600))
            .map_err(Failed::to("write", &record_path))?;
        // From here on an error drops this value, which undoes everything that was done.
        let mut swap = Self {
            record_path,
            is_diff: way == RootfsWay::Diff,
            record,
            tree: None,
            config: None,
            files: None,
            config_place,
            changed: None,
            kept: false,
        };
        for dir in &swap.record.made {
            // Other users must not find the container's set-user-ID programs here, but its user
            // namespace must get through.
            DirBuilder::new()
                .mode(0o711)
                .create(dir)
                .map_err(Failed::to("create", dir))?;
        }
        swap.tree = Some(Staging::create_tree(tree)?);
        swap.config = config.map(Staging::create).transpose()?;
        if let Some(place) = files {
            let staging = swap.files.insert(Staging::create_tree(place)?);
            unpack(carried, &staging.path())?;
        }
        Ok(swap)
    }

    pub(super) fn targets(&self) -> Targets {
        let path = |staging: &Option<Staging>| staging.as_ref().map(Staging::path);
        Targets {
            tree: path(&self.tree).unwrap_or_default(),
            is_diff: self.is_diff,
            base: self
                .record
                .places
                .first()
                .filter(|tree| self.is_diff && tree.replaces)
                .map(|tree| tree.path.clone()),
            config: path(&self.config),
            config_place: self.config_place.clone(),
        }
    }

    /// Puts everything into its place. Everything but the last changes, `changed`, is on the disk
    /// already.
    ///
    /// # Errors
    /// [`RootfsError::Tree`].
    pub fn publish(&mut self, changed: Option<Vec<TreePath>>) -> Result<()> {
        self.changed = changed;
        for staging in [&self.tree, &self.config, &self.files]
            .into_iter()
            .flatten()
        {
            staging.publish()?;
        }
        Ok(())
    }

    /// Waits until the last changes are on the disk. This is in the freeze, so only these files are
    /// synced: a sync of the whole file system would wait for the data of all other programs, too.
    ///
    /// # Errors
    /// [`RootfsError`].
    pub fn sync(&self) -> Result<()> {
        let Some(changed) = &self.changed else {
            return self.tree.as_ref().map_or(Ok(()), |tree| Ok(tree.sync()?));
        };
        let tree = self.record.places.first().map(|tree| &tree.path);
        let paths = tree
            .into_iter()
            .flat_map(|tree| changed.iter().map(|path| path.below(tree)));
        // The directories above have the new names.
        let above = self
            .record
            .places
            .iter()
            .filter_map(|place| place.path.parent());
        for path in paths.chain(above.map(Path::to_path_buf)) {
            File::open(&path)
                .and_then(|opened| opened.sync_all())
                .map_err(Failed::to("sync", &path))?;
        }
        Ok(())
    }

    /// Keeps the new tree, since the container belongs to this host, and removes the old one.
    ///
    /// # Errors
    /// [`RootfsError`] if a part of the old one is left, until [`settle`] removes it.
    pub fn keep(&mut self) -> Result<()> {
        // First: an error below must not bring the old tree back under a running container.
        self.kept = true;
        let all = [self.tree.take(), self.config.take(), self.files.take()];
        for staging in all.into_iter().flatten() {
            staging.keep()?;
        }
        forget(&self.record_path)
    }
}

impl Drop for TreeSwap {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        drop((self.tree.take(), self.config.take(), self.files.take()));
        if let Err(error) = self.record.undo(&self.record_path) {
            tracing::warn!("{}", chain(&error));
        }
    }
}

impl Record {
    fn undo(&self, path: &Path) -> Result<()> {
        for place in &self.places {
            place.undo()?;
        }
        for dir in self.made.iter().rev() {
            // Another program may have put a file into it meanwhile. Then it stays.
            let _ = fs::remove_dir(dir);
        }
        forget(path)
    }

    fn clear(&self, path: &Path) -> Result<()> {
        for place in &self.places {
            place.clear()?;
        }
        forget(path)
    }
}

/// Undoes the changes of a receiver that was killed before the commit, or finishes those of one
/// that was killed after it, as its journal says. The caller must hold the container's lock.
///
/// # Errors
/// [`RootfsError`].
pub fn settle(root: &Path, journal: &JournalRecord) -> Result<()> {
    let path = paths::placement_path(root, &journal.container);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Failed::to("read", &path)(error).into()),
    };
    let record: Record = serde_json::from_slice(&text).map_err(|_| RootfsError::Invalid {
        reason: "the record of the placed files is damaged",
    })?;
    // The changes are undone only if no commit can have arrived. In any other case a container may
    // run in the new tree.
    let is_undone = journal.side == Side::Destination
        && journal.phase.may_roll_back()
        && journal.migration == record.migration;
    if is_undone {
        record.undo(&path)
    } else {
        record.clear(&path)
    }
}

/// Writes the carried files into `dir`.
fn unpack(carried: &[CarriedFile], dir: &Path) -> Result<()> {
    for one in carried {
        let mut parts = Path::new(&one.name).components();
        let (Some(Component::Normal(name)), None) = (parts.next(), parts.next()) else {
            return Err(RootfsError::Invalid {
                reason: "a file for the bundle without a valid name",
            });
        };
        let path = dir.join(name);
        match &one.contents {
            Some(contents) => fs::write(&path, contents),
            None => fs::create_dir(&path),
        }
        .and_then(|()| chown(&path, Some(one.uid), Some(one.gid)))
        .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(one.mode & 0o7777)))
        .map_err(Failed::to("create", &path))?;
    }
    fs::set_permissions(dir, Permissions::from_mode(0o755))
        .map_err(|error| Failed::to("create", dir)(error).into())
}

/// Returns the directories up to `path` that do not exist, the uppermost first.
fn missing(path: &Path) -> Vec<PathBuf> {
    let mut missing: Vec<PathBuf> = path
        .ancestors()
        .take_while(|dir| !dir.as_os_str().is_empty() && fs::symlink_metadata(dir).is_err())
        .map(Path::to_path_buf)
        .collect();
    missing.reverse();
    missing
}

fn forget(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Failed::to("remove", path)(error).into())
        }
        _ => Ok(()),
    }
}

fn sync(path: &Path) -> Result<()> {
    Dir::open(path)
        .and_then(|dir| dir.sync_file_system())
        .map_err(|error| Failed::to("sync", path)(error).into())
}
