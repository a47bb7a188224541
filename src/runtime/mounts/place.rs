//! Where prepared mounts are attached.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::error::{Result, StageError};

/// An empty directory that is mounted on in mount namespaces only. The root of any user namespace must be able to reach it, which it need not be with the
/// container's own directory.
pub(super) const STAGE: &str = "/run/rcm-mounts";

/// Where a mount is attached.
pub(super) fn point(number: usize) -> PathBuf {
    Path::new(STAGE).join(number.to_string())
}

/// Makes the directory where it is missing.
pub(super) fn make_place() -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(STAGE)
        // Whatever the umask is.
        .and_then(|()| fs::set_permissions(STAGE, Permissions::from_mode(0o755)))
        .map_err(place_error)
}

pub(super) fn place_error(source: io::Error) -> StageError {
    StageError::Place {
        path: STAGE.into(),
        source,
    }
}
