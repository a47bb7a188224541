//! Mounts that libcontainer cannot make, or makes otherwise than runc. rcm prepares them, so that
//! only a plain bind is left to libcontainer.
//!
//! Idmapped mounts, the attributes of bind mounts, and file systems that are filled first are
//! prepared in a mount namespace of their own, the [`Stage`]. libcontainer then enters this
//! namespace instead of making one. The propagation of mounts is set when everything is mounted.

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
use crate::runtime::process::launch::{LaunchError, run_in_namespaces};
use crate::runtime::spec::namespaces::Namespaces;
use crate::sys::namespace::within_mounts_of;
use crate::sys::tree::{Attributes, Scope, change_at};
use idmap::mapping;

/// Parses the options of a mount.
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
    if namespaces.has(LinuxNamespaceType::Mount) {
        Ok(())
    } else {
        Err(InvalidMount::MappedOnHost)
    }
}

/// Returns the mount point of `mounts[index]` as a directory on the host and the path below it.
/// `None` if an earlier mount covers it with a file system of its own, whose contents are not the
/// host's.
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

/// Translates the options of a mount that is left to libcontainer into options that it knows.
///
/// libcontainer passes unknown options to the file system. It drops options that concern a file
/// system and not a mount. fsconfig(2) takes these as parameters of any file system, whatever their
/// type and value, so they are rewritten to look unknown.
pub(crate) fn translate(mount: &mut Mount) {
    let binds = is_bind(mount);
    let Some(given) = mount.options() else {
        return;
    };
    let mut translated = Vec::with_capacity(given.len());
    for option in given {
        match option.as_str() {
            // Inode versions are always counted (ext4 since Linux 6.1, others before), and the
            // kernel's messages stay as they are.
            "iversion" | "noiversion" | "silent" | "loud" | "tmpcopyup" => {}
            "lazytime" | "nolazytime" | "sync" | "async" | "dirsync" | "mand" | "nomand"
                if binds => {}
            "sync" | "async" | "dirsync" | "mand" | "nomand" => {
                translated.push(format!("{option}="));
            }
            // libcontainer knows these for a tree of mounts only. A new mount has no mounts below,
            // so that is the same.
            "nosymfollow" => translated.push("rnosymfollow".to_owned()),
            "symfollow" => translated.retain(|option| option != "rnosymfollow"),
            _ => translated.push(option.clone()),
        }
    }
    mount.set_options(Some(translated));
}

/// Change to a mount after everything is mounted.
enum Finish {
    /// Changes its propagation.
    Propagation(MsFlags),
    /// Sets its attributes, and possibly those of the mounts below.
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
            // A later mount has covered it, or its path.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT | Errno::ENOTDIR) => Ok(()),
            Err(errno) => Err(StageError::Finish {
                destination: destination.to_path_buf(),
                source: errno.into(),
            }),
        }
    }
}

/// Returns the changes that libcontainer omits: it keeps `/dev` writable, and mounts the
/// hierarchies of cgroup v1 without the options of their mount.
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

/// Applies propagation and late attributes to the mounts of a container whose first process waits
/// for the start.
///
/// # Errors
/// [`StageError::Finish`] for the first mount that fails.
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
    // Without root, only a process in the container's user namespace may do this.
    let inside = || apply().map_err(LaunchError::Mounts);
    run_in_namespaces(init, Path::new("/"), inside).map_err(|error| StageError::Finish {
        destination: "/".into(),
        source: io::Error::other(chain(&error)),
    })
}
