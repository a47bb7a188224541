//! Mounts that the engine cannot make: what it mounts otherwise than runc is prepared here, so that a plain bind is left to it.
//!
//! Idmapped mounts, the attributes of bind mounts and file systems that are filled first become trees in a mount namespace of their own,
//! the [`Stage`], which the engine then enters instead of making one. The propagation of mounts is set when everything is mounted.

mod copy_up;
mod dev;
mod error;
mod idmap;
mod options;
mod place;
mod proc;
mod restored;
mod stage;
mod table;

use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::unistd::{Pid, geteuid};
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};

pub(crate) use dev::{BoundDev, clear_image_dev};
pub use error::{InvalidMount, StageError};
pub use options::{Options, is_bind, names};
pub(crate) use proc::check_proc;
pub use stage::Stage;
pub(in crate::runtime) use table::mount_table;

pub(crate) use restored::{Prepared, complete};

use crate::error::chain;
use crate::runtime::process::launch::{LaunchError, run_inside};
use crate::runtime::spec::namespaces::Namespaces;
use crate::sys::namespace::within_mounts_of;
use crate::sys::tree::{Attributes, Scope, change_at};
use idmap::mapping;

/// The options of a mount.
#[must_use]
pub fn options(mount: &Mount) -> Options {
    Options::parse(mount.options().iter().flatten())
}

/// Checks a mount of a spec.
///
/// # Errors
/// [`InvalidMount`].
pub fn validate(mount: &Mount, spec: &Spec, namespaces: &Namespaces) -> Result<(), InvalidMount> {
    let options = options(mount);
    let binds = is_bind(mount);
    if binds && !options.data.is_empty() {
        return Err(InvalidMount::BindData);
    }
    let is_mapped = options.id_mapped.is_some()
        || mount.uid_mappings().is_some()
        || mount.gid_mappings().is_some();
    if !is_mapped {
        return Ok(());
    }
    if !binds {
        return Err(InvalidMount::MappedFileSystem);
    }
    if !geteuid().is_root() {
        return Err(InvalidMount::MappedRootless);
    }
    mapping(mount, &options, spec, namespaces)?;
    match namespaces.has(LinuxNamespaceType::Mount) {
        true => Ok(()),
        false => Err(InvalidMount::MappedOnHost),
    }
}

/// Where the mount point of `mounts[index]` lies: a directory on the host, and the path below it. None where an earlier mount covers it with a file system
/// of its own, whose contents are not the host's.
pub(crate) fn place(
    mounts: &[Mount],
    index: usize,
    bundle: &Path,
    rootfs: &Path,
) -> Option<(PathBuf, PathBuf)> {
    let destination = Path::new("/").join(mounts[index].destination());
    let cover = mounts[..index].iter().rev().find_map(|cover| {
        let at = Path::new("/").join(cover.destination());
        let below = destination.strip_prefix(&at).ok()?.to_path_buf();
        (!below.as_os_str().is_empty()).then_some((cover, below))
    });
    match cover {
        None => Some((rootfs.to_path_buf(), destination)),
        Some((cover, below)) if is_bind(cover) => {
            let source = cover.source().clone().unwrap_or_default();
            Some((bundle.join(source), below))
        }
        Some(_) => None,
    }
}

/// Puts the options of a mount that is left to the engine into words that it knows.
///
/// It passes what it does not know to the file system, and what is about a file system and not about a mount it forgets. fsconfig(2) takes these as
/// parameters of any file system, whatever type and value they have, so that they pass as unknown ones.
pub(crate) fn translate(mount: &mut Mount) {
    let binds = is_bind(mount);
    let Some(given) = mount.options() else {
        return;
    };
    let mut translated = Vec::with_capacity(given.len());
    for option in given {
        match option.as_str() {
            // Inode versions are counted without being asked for (ext4 since Linux 6.1, others always), messages of the kernel stay as they are.
            "iversion" | "noiversion" | "silent" | "loud" | "tmpcopyup" => {}
            "lazytime" | "nolazytime" | "sync" | "async" | "dirsync" | "mand" | "nomand"
                if binds => {}
            "sync" | "async" | "dirsync" | "mand" | "nomand" => {
                translated.push(format!("{option}="));
            }
            // The engine knows these for a tree of mounts, and a new one has no mounts below.
            "nosymfollow" => translated.push("rnosymfollow".to_owned()),
            "symfollow" => translated.retain(|option| option != "rnosymfollow"),
            _ => translated.push(option.clone()),
        }
    }
    mount.set_options(Some(translated));
}

/// What is done to a mount when everything is mounted.
enum Finish {
    /// Its propagation.
    Propagation(MsFlags),
    /// Its attributes, and those of the mounts below.
    Attributes(Attributes, Scope),
}

impl Finish {
    fn apply(&self, destination: &Path) -> Result<(), StageError> {
        let none = None::<&str>;
        let done = match *self {
            Self::Propagation(flags) => mount(none, destination, none, flags, none),
            Self::Attributes(attributes, scope) => change_at(destination, attributes, scope),
        };
        match done {
            // A later mount has covered it.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT | Errno::ENOTDIR) => Ok(()),
            Err(errno) => Err(StageError::Finish {
                destination: destination.to_path_buf(),
                source: errno.into(),
            }),
        }
    }
}

/// What the engine leaves undone: it keeps `/dev` writable, and mounts the hierarchies of cgroup v1 without the options of their mount.
fn finishes(mount: &Mount) -> Vec<Finish> {
    let options = options(mount);
    let propagation = options.propagation.iter();
    let mut found: Vec<_> = propagation
        .map(|flags| Finish::Propagation(*flags))
        .collect();
    let is_device_directory = mount.destination() == Path::new("/dev");
    let (set, scope) = match mount.typ().as_deref() {
        Some("cgroup") => (options.set_attributes(), Scope::Recursive),
        _ if is_device_directory => {
            let read_only = options.set_attributes() & libc::MOUNT_ATTR_RDONLY;
            (read_only, Scope::Top)
        }
        _ => (0, Scope::Top),
    };
    if set != 0 {
        found.push(Finish::Attributes(Attributes { set, clear: 0 }, scope));
    }
    found
}

/// Gives the mounts of a container whose first process waits to be started what they get when everything is mounted.
///
/// # Errors
/// The mount that cannot have what its options say.
pub(crate) fn finish(init: Pid, spec: &Spec, namespaces: &Namespaces) -> Result<(), StageError> {
    let changes: Vec<(&Path, Finish)> = spec
        .mounts()
        .iter()
        .flatten()
        .flat_map(|mount| {
            let destination = mount.destination().as_path();
            finishes(mount)
                .into_iter()
                .map(move |one| (destination, one))
        })
        .collect();
    if changes.is_empty() || !namespaces.has(LinuxNamespaceType::Mount) {
        return Ok(());
    }
    let apply = || {
        changes
            .iter()
            .try_for_each(|(destination, change)| change.apply(destination))
    };
    if geteuid().is_root() {
        return within_mounts_of(init, || Ok(apply())).map_err(|source| StageError::Finish {
            destination: "/".into(),
            source,
        })?;
    }
    // The right to it comes with the user namespace only.
    let inside = || apply().map_err(LaunchError::Mounts);
    run_inside(init, Path::new("/"), inside).map_err(|error| StageError::Finish {
        destination: "/".into(),
        source: io::Error::other(chain(&error)),
    })
}
