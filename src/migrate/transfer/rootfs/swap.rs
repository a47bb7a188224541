//! What happens to the destination's file system, and how it is undone.

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

/// A bundle and a tree that are not in their places before they are whole, and that make way again for what was there before unless they are kept.
///
/// What is changed is in a record beside the journal before it is changed: who comes after a crash undoes it, or finishes it where the container is this host's
/// ([`settle`]).
#[derive(Debug)]
pub struct Placement {
    record_path: PathBuf,
    record: Record,
    tree: Option<Staging>,
    config: Option<Staging>,
    /// The directory of what is carried.
    files: Option<Staging>,
    is_diff: bool,
    config_place: PathBuf,
    changed: Option<Vec<TreePath>>,
    kept: bool,
}

/// Where what comes is written.
#[derive(Debug, Clone)]
pub(super) struct Targets {
    pub(super) tree: PathBuf,
    /// The source is told what is there before it sends anything.
    pub(super) is_diff: bool,
    /// What a diff builds on.
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
    /// Directories that did not exist, each above the next one.
    made: Vec<PathBuf>,
}

impl Placement {
    /// Prepares for the container's tree at `rootfs` and its `config.json` in `bundle`, beside which what is `carried` is put. `root` is rcm's state directory.
    ///
    /// # Errors
    /// [`RootfsError`]; nothing is left then.
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
        // A diff goes to a host that has been prepared for the container: its own spec stays.
        let config = match way == RootfsWay::Diff && config_place.exists() {
            true => None,
            false => Some(Slot::new(&config_place, &id)?),
        };
        let files = match config.is_some() && !carried.is_empty() {
            true => Some(Slot::new(&bundle.join(CarriedFile::DIR), &id)?),
            false => None,
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
        // A later rcm could undo nothing by an empty record.
        serde_json::to_vec_pretty(&record)
            .map_err(io::Error::from)
            .and_then(|text| write_atomic(&record_path, &text, 0o600))
            .map_err(Failed::to("write", &record_path))?;
        // Dropped, it undoes what was done of the rest.
        let mut placement = Self {
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
        for dir in &placement.record.made {
            // Set-user-ID programs of a container are for nobody who does not know where they are; its user namespace must get through.
            DirBuilder::new()
                .mode(0o711)
                .create(dir)
                .map_err(Failed::to("create", dir))?;
        }
        placement.tree = Some(Staging::create_tree(tree)?);
        placement.config = config.map(Staging::create).transpose()?;
        if let Some(place) = files {
            let staging = placement.files.insert(Staging::create_tree(place)?);
            unpack(carried, &staging.path())?;
        }
        Ok(placement)
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

    /// Puts everything into its place. All but `changed`, the last changes, is on the disk already.
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

    /// Waits until the last changes are on the disk. In the freeze: to wait for everything that anybody has written to the file system could take long.
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
        // Their new names are in these.
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

    /// It stays: the container is this host's. Removes what was there before.
    ///
    /// # Errors
    /// [`RootfsError`]: something of the latter is left, until [`settle`].
    pub fn keep(&mut self) -> Result<()> {
        self.kept = true;
        let all = [self.tree.take(), self.config.take(), self.files.take()];
        for staging in all.into_iter().flatten() {
            staging.keep()?;
        }
        forget(&self.record_path)
    }
}

impl Drop for Placement {
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
            // Somebody may have put something into it meanwhile.
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

/// Undoes what a receiver has left that was killed before the commit, or clears up behind it, by what its journal says. Only under the container's lock.
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
        reason: "the record of what was placed is damaged",
    })?;
    // Where anything is doubtful, a container may run in the new tree.
    let is_undone = journal.side == Side::Destination
        && journal.phase.may_roll_back()
        && journal.migration == record.migration;
    match is_undone {
        true => record.undo(&path),
        false => record.clear(&path),
    }
}

/// Puts what is carried into `dir`.
fn unpack(carried: &[CarriedFile], dir: &Path) -> Result<()> {
    for one in carried {
        let mut parts = Path::new(&one.name).components();
        let (Some(Component::Normal(name)), None) = (parts.next(), parts.next()) else {
            return Err(RootfsError::Invalid {
                reason: "a file for the bundle is no file name",
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

/// The directories up to `path` that do not exist, from above.
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
