//! A `/dev` that is no fresh file system.
//!
//! The engine makes devices and links in any `/dev` and replaces its `ptmx`: in one of the host's, too, which runc leaves alone where it is bound. So the
//! engine gets a file system of its own there, and what the spec wants is put on it when the engine is done, with what is mounted below.
//!
//! And it insists on making them: in the image's own directory it finds those of the time before.

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
/// Where the engine mounts a container's terminal.
const CONSOLE: &str = "/dev/console";
/// Links that the engine makes.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("kcore", "/proc/kcore"),
];
/// Devices that it makes, by their numbers.
const DEVICES: [(&str, u64, u64); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// What goes on `/dev` when the engine is done.
#[derive(Debug)]
pub struct BoundDev {
    tree: Tree,
    /// What is mounted below, in its order.
    below: Vec<PathBuf>,
}

impl BoundDev {
    /// Takes the bind out of `spec`. None where `/dev` is not bound, or nothing can be prepared.
    ///
    /// # Errors
    /// Where it cannot be bound.
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
                // The terminal comes from there.
                mounts.insert(index + 1, bind(host_pts, pts));
            }
        }
        spec.set_mounts(Some(mounts));
        if let Some(linux) = spec.linux_mut() {
            linux.set_devices(None);
        }
        Ok(Some(Self { tree, below }))
    }

    /// Puts it on `/dev` of a container whose first process waits to be started.
    ///
    /// # Errors
    /// [`StageError::Finish`].
    pub fn attach(self, init: Pid) -> Result<()> {
        let failed = |source| StageError::Finish {
            destination: DEV.into(),
            source,
        };
        // From outside: the container's /proc does not know this process.
        let root = Root::open(Path::new(&format!("/proc/{init}/root"))).map_err(failed)?;
        let attach = || {
            let mut below = Vec::with_capacity(self.below.len());
            for path in self.below {
                let kind = match path.is_dir() {
                    true => FileKind::Directory,
                    false => FileKind::File,
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

/// Takes away what an earlier container has left in the image's own `/dev` and the engine makes again, if that is what it would make.
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
            // One that stays is an error of the engine's.
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

/// Makes the mount a tmpfs for the engine; the propagation, which is set later, stays.
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
