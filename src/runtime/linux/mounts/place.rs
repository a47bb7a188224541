//! The directory in which prepared mounts are attached.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};

use super::error::{Result, StageError};
use super::place;
use crate::sys::rooted::Root;

/// Empty directory on which only mount namespaces of containers have mounts. The root of any user
/// namespace must be able to reach it. The container's own directory may not be reachable.
pub(super) const STAGE: &str = "/run/rcm-mounts";

/// Returns the path of a prepared mount.
pub(super) fn point(number: usize) -> PathBuf {
    Path::new(STAGE).join(number.to_string())
}

/// Makes the directory if it is missing.
pub(super) fn make_place() -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(STAGE)
        // The mode must not depend on the umask.
        .and_then(|()| fs::set_permissions(STAGE, Permissions::from_mode(0o755)))
        .map_err(place_error)
}

pub(super) fn place_error(source: io::Error) -> StageError {
    StageError::Place {
        path: STAGE.into(),
        source,
    }
}

/// Follows the symbolic links in the destination of `mounts[index]`. A link may lead to a path that
/// does not exist yet: the path is created later, as with runc. libcontainer refuses such links.
///
/// `/proc` and `/sys` are left alone, so that libcontainer refuses any link there: it could lead a
/// masked path astray.
pub(super) fn settle(mounts: &mut [Mount], index: usize, spec: &Spec) {
    if let Some("proc" | "sysfs") = mounts[index].typ().as_deref() {
        return;
    }
    let Some(root) = spec.root() else { return };
    let rootfs = root.path();
    let Some((base, below)) = place(mounts, index, Path::new("/"), rootfs) else {
        return;
    };
    let Ok(root) = Root::open(&base) else { return };
    if root.resolve(&below).is_ok() {
        return;
    }
    // The prefix of the destination that corresponds to `base`: the destination without `below`.
    let destination = Path::new("/").join(mounts[index].destination());
    let depth = below.components().filter(is_name).count();
    let cover = if base == *rootfs {
        Path::new("/")
    } else {
        destination.ancestors().nth(depth).unwrap_or(Path::new("/"))
    };
    if let Ok(settled) = root.resolve_missing(&below) {
        let settled = cover.join(settled.strip_prefix("/").unwrap_or(&settled));
        mounts[index].set_destination(settled);
    }
}

fn is_name(component: &Component) -> bool {
    matches!(component, Component::Normal(_))
}
