//! Idmapped mounts (mount_setattr(2), `MOUNT_ATTR_IDMAP`).

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::MsFlags;
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Mount, Spec};

use super::error::{InvalidMount, Result, StageError, failed};
use super::options::Options;
use crate::runtime::spec::namespaces::{Namespace, Namespaces};
use crate::sys::namespace::{IdRange, user_namespace};
use crate::sys::tree::{Attributes, Scope, Tree};

/// Ids of an idmapped mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mapping {
    /// Ranges from the mount or the spec.
    Ranges {
        /// User ids.
        uids: Vec<IdRange>,
        /// Group ids.
        gids: Vec<IdRange>,
    },
    /// Those of the existing user namespace that the container joins, at this path.
    Joined(PathBuf),
}

/// Returns the ids of a mount; `None` if it is not idmapped.
///
/// # Errors
/// [`InvalidMount::IncompleteMapping`].
pub(super) fn mapping(
    mount: &Mount,
    options: &Options,
    spec: &Spec,
    namespaces: &Namespaces,
) -> std::result::Result<Option<Mapping>, InvalidMount> {
    let own = (mount.uid_mappings(), mount.gid_mappings());
    let (uids, gids) = match own {
        (None, None) if options.id_mapped.is_none() => return Ok(None),
        (None, None) => {
            match namespaces.get(LinuxNamespaceType::User) {
                Namespace::Host => return Err(InvalidMount::IncompleteMapping),
                Namespace::Joined(path) => return Ok(Some(Mapping::Joined(path.to_path_buf()))),
                Namespace::Own => {}
            }
            let linux = spec.linux().as_ref();
            (
                linux.and_then(|linux| linux.uid_mappings().as_ref()),
                linux.and_then(|linux| linux.gid_mappings().as_ref()),
            )
        }
        (uids, gids) => (uids.as_ref(), gids.as_ref()),
    };
    let (uids, gids) = (ranges(uids), ranges(gids));
    if uids.is_empty() || gids.is_empty() {
        return Err(InvalidMount::IncompleteMapping);
    }
    Ok(Some(Mapping::Ranges { uids, gids }))
}

pub(super) fn ranges(mappings: Option<&Vec<LinuxIdMapping>>) -> Vec<IdRange> {
    mappings
        .into_iter()
        .flatten()
        .map(|mapping| IdRange {
            inside: mapping.container_id(),
            outside: mapping.host_id(),
            count: mapping.size(),
        })
        .collect()
}

pub(super) fn scope(recursive: bool) -> Scope {
    if recursive {
        Scope::Recursive
    } else {
        Scope::Top
    }
}

pub(super) fn source(mount: &Mount) -> &Path {
    mount.source().as_deref().unwrap_or(Path::new(""))
}

/// Makes a mount that needs rights which the container's user namespace does not have: an idmapped
/// one needs them over its file system, any other over the directories on the way to it.
pub(super) fn made(
    mount: &Mount,
    options: &Options,
    ids: Option<&Mapping>,
    spec: &Spec,
    namespaces: &Namespaces,
) -> Result<Tree> {
    let tree = Tree::copy(source(mount), scope(options.is_recursive_bind()))
        .map_err(failed(mount, "copy the mount"))?;
    if let Some(ids) = ids {
        map(&tree, mount, ids, scope(options.id_mapped == Some(true)))?;
    }
    set_attributes(&tree, mount, options, options.attributes())?;
    // The copy is a peer of the host's mount. Mounts made in the container must not appear on the
    // host, as with libcontainer's treatment of `/`.
    let linux = spec.linux().as_ref();
    let propagation = linux.and_then(|linux| linux.rootfs_propagation().as_deref());
    let own_user = namespaces.has(LinuxNamespaceType::User);
    let propagation = match propagation {
        Some("shared") if !own_user => return Ok(tree),
        Some("private") => MsFlags::MS_PRIVATE,
        _ => MsFlags::MS_SLAVE,
    };
    tree.propagate(propagation)
        .map_err(failed(mount, "separate the mount from the host's"))?;
    Ok(tree)
}

pub(super) fn set_attributes(
    tree: &Tree,
    mount: &Mount,
    options: &Options,
    attributes: Attributes,
) -> Result<()> {
    tree.change(attributes, Scope::Top)
        .and_then(|()| tree.change(options.recursive, Scope::Recursive))
        .map_err(failed(mount, "set the mount's options"))
}

pub(super) fn open_namespace(path: &Path) -> Result<OwnedFd> {
    let file = File::open(path).map_err(|source| StageError::Namespace {
        path: path.to_path_buf(),
        source,
    })?;
    Ok(file.into())
}

/// Applies the ids of a mount to a tree.
pub(super) fn map(tree: &Tree, mount: &Mount, ids: &Mapping, scope: Scope) -> Result<()> {
    let user = match ids {
        Mapping::Ranges { uids, gids } => {
            user_namespace(uids, gids).map_err(|source| StageError::Mapping {
                source_path: mount.source().clone().unwrap_or_default(),
                source,
            })?
        }
        Mapping::Joined(path) => open_namespace(path)?,
    };
    tree.map_ids(user.as_fd(), scope)
        .map_err(|source| match source {
            Errno::EINVAL | Errno::EPERM => StageError::NotMappable {
                source_path: mount.source().clone().unwrap_or_default(),
                source,
            },
            errno => failed(mount, "map the ids of the mount")(errno),
        })
}
