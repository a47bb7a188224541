//! Paths below the state directory, and the files there that are no journal.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::error::{JournalError, Result, file};
use crate::sys::file::write_atomic;

/// The source's record in the container's directory.
const SOURCE_FILE: &str = "migration.json";
/// Below the root; `@` is no character of a container id, so no container has this name.
pub(super) const DIR: &str = "@migrations";

/// The directory of all migrations' records.
///
/// # Errors
/// [`JournalError::File`].
pub(super) fn make_dir(root: &Path) -> Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    let dir = root.join(DIR);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .map_err(file("create", &dir))?;
    Ok(dir)
}

/// The containers of whose last migration something is known below `root`, but for those that are being sent for the first time.
#[must_use]
pub fn names(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root.join(DIR)).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            Some(
                entry
                    .file_name()
                    .to_str()?
                    .strip_suffix(".json")?
                    .to_owned(),
            )
        })
        .collect()
}

/// Whether a record of a migration of `container` was kept below `root`, beside that in the
/// container's own directory.
#[must_use]
pub fn is_kept(root: &Path, container: &str) -> bool {
    kept_path(root, container).exists()
}

/// The directory of all migrations' records, if there ever was one.
pub(crate) fn open_dir(root: &Path) -> Result<Option<File>> {
    match File::open(root.join(DIR)) {
        Ok(dir) => Ok(Some(dir)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file("open", &root.join(DIR))(error)),
    }
}

pub(crate) fn dir_error(root: &Path, action: &'static str, errno: Errno) -> JournalError {
    file(action, &root.join(DIR))(errno.into())
}

/// Remembers a file in the image store that must go if this process is killed; the next receiver or `--resolve` of the container removes it.
/// Returns where that is noted.
///
/// # Errors
/// [`JournalError::File`].
pub fn remember_litter(root: &Path, container: &str, litter: &Path) -> Result<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    let path = litter_path(root, container);
    write_atomic(&path, litter.as_os_str().as_bytes(), 0o600).map_err(file("write", &path))?;
    Ok(path)
}

/// Removes what a killed process has left in the image store. Only under the container's [`Lock`](super::lock::Lock): then its owner is dead.
///
/// # Errors
/// [`JournalError::File`].
pub fn remove_litter(root: &Path, container: &str) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let door = doorbell_path(root, container);
    match fs::remove_file(&door) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(file("remove", &door)(error));
        }
        _ => {}
    }
    let path = litter_path(root, container);
    let litter = match fs::read(&path) {
        Ok(text) => PathBuf::from(std::ffi::OsStr::from_bytes(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(file("read", &path)(error)),
    };
    for path in [&litter, &path] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(file("remove", path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Where CRIU logs while `container` is migrated; what an earlier migration left there goes.
///
/// # Errors
/// [`JournalError::File`].
pub fn make_work_dir(root: &Path, container: &str) -> Result<PathBuf> {
    let dir = make_dir(root)?.join(format!("{container}.criu"));
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(file("replace", &dir)(error));
        }
        _ => {}
    }
    fs::create_dir(&dir).map_err(file("create", &dir))?;
    Ok(dir)
}

pub(super) fn source_path(root: &Path, container: &str) -> PathBuf {
    root.join(container).join(SOURCE_FILE)
}

pub(super) fn litter_path(root: &Path, container: &str) -> PathBuf {
    root.join(DIR).join(format!("{container}.litter"))
}

/// Where a receiver leaves where it listens, see [`crate::migrate::link::ssh_helper`].
pub(crate) fn doorbell_path(root: &Path, container: &str) -> PathBuf {
    root.join(DIR).join(format!("{container}.door"))
}

/// Where it is remembered what a receiver puts into the file system, see [`crate::migrate::transfer::rootfs`].
/// The receiver's record of what it changes in the file system, if there is one.
pub(crate) fn read_placement(root: &Path, container: &str) -> Option<String> {
    fs::read_to_string(placement_path(root, container)).ok()
}

/// Puts such a record back.
pub(crate) fn write_placement(root: &Path, container: &str, text: &str) -> Result<()> {
    make_dir(root)?;
    let path = placement_path(root, container);
    write_atomic(&path, text.as_bytes(), 0o600).map_err(file("write", &path))
}

pub(crate) fn placement_path(root: &Path, container: &str) -> PathBuf {
    root.join(DIR).join(format!("{container}.placement"))
}

pub(super) fn kept_path(root: &Path, container: &str) -> PathBuf {
    root.join(DIR).join(format!("{container}.json"))
}
