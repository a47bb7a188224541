//! Paths below the state directory, and the files there other than journals.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::error::{JournalError, Result, file};
use crate::sys::file::write_atomic;

/// Name of the source's record in the container's directory.
const SOURCE_FILE: &str = "migration.json";
/// Directory below the root. `@` is no character of a container id, so no container has this name.
pub(super) const DIR: &str = "@migrations";

/// Makes the directory of all migrations' records.
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

/// Returns the names of the containers whose last migration has a record below `root`. Containers
/// that are being sent for the first time are not among them.
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

/// Opens the directory of all migrations' records, if there is one.
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

/// Notes a file in the image store that must be removed if this process is killed. The next
/// receiver or `--resolve` of the container removes it. Returns the path of the note.
///
/// # Errors
/// [`JournalError::File`].
pub fn remember_litter(root: &Path, container: &str, litter: &Path) -> Result<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    let path = litter_path(root, container);
    write_atomic(&path, litter.as_os_str().as_bytes(), 0o600).map_err(file("write", &path))?;
    Ok(path)
}

/// Removes the files that a killed process has left in the image store. The caller must have the
/// container's [`Lock`](super::lock::Lock): then the process that left them is dead.
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
    // The note goes last: if rcm is killed in between, the next one still finds it.
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

/// Makes an empty directory for CRIU's logs while `container` is migrated. The logs of an earlier
/// migration are removed.
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

/// Path of the file in which a receiver writes its address, see
/// [`crate::migrate::link::ssh_helper`].
pub(crate) fn doorbell_path(root: &Path, container: &str) -> PathBuf {
    root.join(DIR).join(format!("{container}.door"))
}

/// Reads the receiver's record of its changes to the file system, if there is one; see
/// [`crate::migrate::transfer::rootfs`].
pub(crate) fn read_placement(root: &Path, container: &str) -> Option<String> {
    fs::read_to_string(placement_path(root, container)).ok()
}

/// Writes such a record, which a boot stamp has preserved.
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
