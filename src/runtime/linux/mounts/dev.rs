//! A `/dev` that is not a new file system.
//!
//! libcontainer creates devices and links in any `/dev` and replaces its `ptmx`. It does so in the
//! host's own, too, which runc leaves alone if it is bound. So libcontainer gets a tmpfs there.
//! When it is done, rcm mounts the spec's `/dev` over it, with all mounts below.
//!
//! libcontainer also fails if a device exists already. In the image's own `/dev` it would find
//! those of an earlier container.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::makedev;
use nix::unistd::{Pid, geteuid};
use oci_spec::runtime::{LinuxNamespaceType, Mount, Process, Spec};

use super::error::{Result, StageError};
use super::idmap::{made, mapping, source};
use super::options;
use super::options::{Options, is_bind};
use crate::runtime::spec::namespaces::Namespaces;
use crate::sys::namespace::within_mounts_of;
use crate::sys::rooted::{FileKind, Root};
use crate::sys::tree::{Scope, Tree};

const DEV: &str = "/dev";
/// Path at which libcontainer mounts a container's terminal.
const CONSOLE: &str = "/dev/console";
/// Links that libcontainer creates.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("kcore", "/proc/kcore"),
];
/// Devices that libcontainer creates, with their numbers.
const DEVICES: [(&str, u64, u64); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Mount of the spec that goes over `/dev` when libcontainer is done.
#[derive(Debug)]
pub struct BoundDev {
    tree: Tree,
    /// Paths of the mounts below it, in their order.
    below: Vec<PathBuf>,
}

impl BoundDev {
    /// Takes the bind out of `spec`. `None` if `/dev` is not bound, or if this process cannot
    /// prepare mounts.
    ///
    /// # Errors
    /// If the bind cannot be made.
    pub fn take(spec: &mut Spec, namespaces: &Namespaces) -> Result<Option<Self>> {
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        let is_bound = |mount: &Mount| is_bind(mount) && mount.destination() == Path::new(DEV);
        let possible = geteuid().is_root() && namespaces.has(LinuxNamespaceType::Mount);
        let Some(index) = mounts.iter().rposition(is_bound).filter(|_| possible) else {
            return Ok(None);
        };
        let bound = &mounts[index];
        let wanted = options(bound);
        let ids = mapping(bound, &wanted, spec, namespaces).unwrap_or_default();
        let tree = made(bound, &wanted, ids.as_ref(), spec, namespaces)?;
        let host_pts = source(bound).join("pts");

        let is_below = |mount: &&Mount| {
            let destination = mount.destination();
            destination.starts_with(DEV) && destination != Path::new(DEV)
        };
        let later = mounts[index + 1..].iter().filter(is_below);
        let mut below: Vec<_> = later.map(|mount| mount.destination().clone()).collect();
        let pts = Path::new(DEV).join("pts");
        let has_pts = below.contains(&pts);
        stand_in(&mut mounts[index]);
        let has_terminal = spec.process().as_ref().and_then(Process::terminal);
        if has_terminal.unwrap_or(false) {
            below.push(CONSOLE.into());
            if !has_pts {
                // The terminal is allocated in the host's /dev/pts.
                mounts.insert(index + 1, bind(host_pts, pts));
            }
        }
        spec.set_mounts(Some(mounts));
        if let Some(linux) = spec.linux_mut() {
            linux.set_devices(None);
        }
        Ok(Some(Self { tree, below }))
    }

    /// Mounts it over `/dev` of a container whose first process waits for the start.
    ///
    /// # Errors
    /// [`StageError::Finish`].
    pub fn attach(self, init: Pid) -> Result<()> {
        let failed = |source| StageError::Finish {
            destination: DEV.into(),
            source,
        };
        // Opened outside of the container's mount namespace: the container's /proc does not have
        // this process.
        let root = Root::open(Path::new(&format!("/proc/{init}/root"))).map_err(failed)?;
        let attach = || {
            let mut below = Vec::with_capacity(self.below.len());
            for path in self.below {
                let kind = if path.is_dir() {
                    FileKind::Directory
                } else {
                    FileKind::File
                };
                below.push((Tree::copy(&path, Scope::Recursive)?, path, kind));
            }
            self.tree.cover(Path::new(DEV))?;
            for (tree, path, kind) in below {
                root.make(&path, kind)?;
                tree.cover(&path)?;
            }
            Ok(())
        };
        within_mounts_of(init, attach).map_err(failed)
    }
}

/// Removes devices and links that an earlier container has left in the image's own `/dev`, if they
/// are the ones that libcontainer would create.
pub fn clear_image_dev(spec: &Spec) {
    let mut mounts = spec.mounts().iter().flatten();
    if mounts.any(|mount| mount.destination() == Path::new(DEV)) {
        return;
    }
    let root = spec.root().as_ref().map(|root| Root::open(root.path()));
    let Some(Ok(root)) = root else { return };
    let remove = |path: &Path, is_same: &dyn Fn(&Path) -> bool| {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return;
        };
        if let Ok(dir) = root.directory(dir)
            && is_same(&dir.entry(name))
        {
            // If one cannot be removed, libcontainer reports it.
            let _ = fs::remove_file(dir.entry(name));
        }
    };
    for (name, target) in LINKS {
        remove(&Path::new(DEV).join(name), &|link| {
            fs::read_link(link).is_ok_and(|found| found == Path::new(target))
        });
    }
    let devices = DEVICES
        .iter()
        .map(|(name, major, minor)| (Path::new(DEV).join(name), makedev(*major, *minor)));
    let linux = spec.linux().as_ref();
    let own = linux.and_then(|linux| linux.devices().as_ref());
    let own = own.into_iter().flatten().map(|device| {
        let (major, minor) = (
            device.major().cast_unsigned(),
            device.minor().cast_unsigned(),
        );
        (device.path().clone(), makedev(major, minor))
    });
    for (path, number) in devices.chain(own) {
        remove(&path, &|node| {
            fs::symlink_metadata(node).is_ok_and(|found| {
                let kind = found.file_type();
                let is_device = kind.is_char_device() || kind.is_block_device() || kind.is_fifo();
                is_device && found.rdev() == number
            })
        });
    }
}

/// Turns the mount into a tmpfs for libcontainer. The propagation options stay, because they are
/// applied later.
fn stand_in(mount: &mut Mount) {
    let is_propagation = |option: &String| !Options::parse([option]).propagation.is_empty();
    let mut words = mount.options().clone().unwrap_or_default();
    words.retain(is_propagation);
    words.push("mode=755".to_owned());
    mount.set_typ(Some("tmpfs".to_owned()));
    mount.set_source(Some("tmpfs".into()));
    mount.set_options(Some(words));
    mount.set_uid_mappings(None);
    mount.set_gid_mappings(None);
}

fn bind(source: PathBuf, destination: PathBuf) -> Mount {
    let mut mount = Mount::default();
    mount.set_destination(destination);
    mount.set_typ(Some("bind".to_owned()));
    mount.set_source(Some(source));
    mount.set_options(Some(vec!["bind".to_owned()]));
    mount
}
