//! Mounts for a container that CRIU restores.
//!
//! CRIU binds each host mount again, one by one. It knows neither mapped ids nor all attributes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::error::{Result, StageError, failed};
use super::idmap::{map, mapping};
use super::options;
use super::place::{STAGE, make_place, point};
use crate::criu::Trees;
use crate::runtime::linux::external::{Bind, HostMount, Source, declared_binds};
use crate::runtime::spec::namespaces::Namespaces;
use crate::sys::namespace::within_mounts_of;
use crate::sys::rooted::Root;
use crate::sys::tree::{Attributes, Scope, Tree, change_at};

/// Mounts that only CRIU's mount namespace has.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    /// The mounts themselves.
    pub trees: Option<Trees>,
    /// Paths at which CRIU sees the mounts, by their paths in the container.
    pub sources: BTreeMap<PathBuf, PathBuf>,
}

impl Prepared {
    /// Prepares the mounts that CRIU cannot bind from the host. These are idmapped ones with the
    /// mounts below them and, for a container with a user namespace, all. There, the mounts below a
    /// mount are locked to it. CRIU binds each one alone, which the kernel refuses (open_tree(2),
    /// `EINVAL`).
    ///
    /// # Errors
    /// [`StageError`].
    pub fn new(
        spec: &Spec,
        namespaces: &Namespaces,
        bundle: &Path,
        rootfs: &Root,
        found: &[HostMount],
    ) -> Result<Self> {
        let binds = declared_binds(spec, bundle, rootfs);
        let own_user = namespaces.has(LinuxNamespaceType::User);
        let mut prepared = Self::default();
        let below = found
            .iter()
            .filter(|mount| matches!(mount.source, Source::Path(_)))
            .map(|mount| mount.path.as_path())
            .filter(|path| binds.iter().all(|bind| bind.path != *path));
        for path in binds.iter().map(|bind| bind.path.as_path()).chain(below) {
            let Some((bind, below)) = nearest(&binds, path) else {
                continue;
            };
            let options = options(bind.mount);
            let ids = mapping(bind.mount, &options, spec, namespaces).unwrap_or_default();
            if ids.is_none() && !own_user {
                continue;
            }
            let source = if below.as_os_str().is_empty() {
                bind.source.clone()
            } else {
                bind.source.join(below)
            };
            let tree =
                Tree::copy(&source, Scope::Top).map_err(failed(bind.mount, "copy the mount"))?;
            if let Some(ids) = ids
                && (below.as_os_str().is_empty() || options.id_mapped == Some(true))
            {
                map(&tree, bind.mount, &ids, Scope::Top)?;
            }
            prepared.add(path.to_path_buf(), tree)?;
        }
        Ok(prepared)
    }

    /// Adds a mount for `path` in the container.
    ///
    /// # Errors
    /// If the directory for prepared mounts cannot be made.
    pub fn add(&mut self, path: PathBuf, tree: Tree) -> Result<()> {
        let trees = match &mut self.trees {
            Some(trees) => trees,
            none => {
                make_place()?;
                none.insert(Trees {
                    place: STAGE.into(),
                    trees: Vec::new(),
                })
            }
        };
        self.sources.insert(path, point(trees.trees.len()));
        trees.trees.push(tree);
        Ok(())
    }
}

/// Returns the bind that a path belongs to, and the path below it. Of several binds with the same
/// destination the last one is visible.
fn nearest<'a, 'b>(binds: &'a [Bind<'a>], path: &'b Path) -> Option<(&'a Bind<'a>, &'b Path)> {
    binds
        .iter()
        .rev()
        .filter_map(|bind| Some((bind, path.strip_prefix(&bind.path).ok()?)))
        .min_by_key(|(_, below)| below.components().count())
}

/// Sets the attributes that CRIU does not know on the mounts of a restored container. None of its
/// tasks has executed yet.
///
/// # Errors
/// [`StageError::Restored`] for the first mount that fails.
pub(crate) fn complete(init: Pid, spec: &Spec, namespaces: &Namespaces) -> Result<()> {
    let attributes = Attributes {
        set: libc::MOUNT_ATTR_NOSYMFOLLOW,
        clear: 0,
    };
    let changes: Vec<(&Path, Scope)> = spec
        .mounts()
        .iter()
        .flatten()
        .filter_map(|mount| {
            let options = options(mount);
            let scope = match options.recursive.set & attributes.set {
                0 if options.attributes().set & attributes.set == 0 => return None,
                0 => Scope::Top,
                _ => Scope::Recursive,
            };
            Some((mount.destination().as_path(), scope))
        })
        .collect();
    if changes.is_empty() || !namespaces.has(LinuxNamespaceType::Mount) {
        return Ok(());
    }
    let mut failed = Path::new("/");
    let result = within_mounts_of(init, || {
        for (destination, scope) in changes {
            failed = destination;
            change_at(destination, attributes, scope)?;
        }
        Ok(())
    });
    result.map_err(|source| StageError::Restored {
        destination: failed.to_path_buf(),
        source,
    })
}
