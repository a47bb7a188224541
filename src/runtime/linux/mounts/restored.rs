//! Mounts for a container that CRIU restores.
//!
//! CRIU binds what comes from the host once more, mount by mount, and knows neither mapped ids nor all attributes.

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

/// Mounts that only CRIU sees.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    /// The mounts themselves.
    pub trees: Option<Trees>,
    /// Where CRIU sees what, by the place in the container.
    pub sources: BTreeMap<PathBuf, PathBuf>,
}

impl Prepared {
    /// Prepares the mounts that CRIU could not bind from the host: idmapped ones with what is mounted in them and, for a container with a user namespace, all.
    /// There, what is mounted below a mount is locked to it, and CRIU, which binds each alone, were refused (open_tree(2), `EINVAL`).
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
            let source = match below.as_os_str().is_empty() {
                true => bind.source.clone(),
                false => bind.source.join(below),
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

    /// Adds a mount for the place `path` in the container.
    ///
    /// # Errors
    /// Where there is no place for it on the host.
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

/// The bind that a path belongs to, and the path below it. Of binds with the same destination the last is what is seen.
fn nearest<'a, 'b>(binds: &'a [Bind<'a>], path: &'b Path) -> Option<(&'a Bind<'a>, &'b Path)> {
    binds
        .iter()
        .rev()
        .filter_map(|bind| Some((bind, path.strip_prefix(&bind.path).ok()?)))
        .min_by_key(|(_, below)| below.components().count())
}

/// Gives the mounts of a restored container, of which nothing executes yet, the attributes that CRIU does not know.
///
/// # Errors
/// The mount that cannot have them.
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
