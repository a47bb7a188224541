//! A mount namespace with prepared mounts, for the container to live in.
//!
//! libcontainer finds the source of a bind by its path in the container's mount namespace, which it
//! makes itself. A detached mount has no path, and a mount attached on the host would be visible to
//! everybody. So rcm makes the namespace, as a copy of this process's and owned by the container's
//! user namespace. It attaches the prepared mounts there, and makes libcontainer enter it. Hooks
//! that run on the host are not affected.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::geteuid;
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};

use super::copy_up::copy_up;
use super::error::{Result, StageError, failed};
use super::idmap::{made, mapping, open_namespace, ranges, scope, set_attributes, source};
use super::options::{Options, is_bind};
use super::place::{STAGE, make_place, place_error, point, settle};
use super::{options, place, translate};
use crate::error::chain;
use crate::runtime::spec::namespaces::{Namespace, Namespaces};
use crate::sys::mount::cover;
use crate::sys::namespace::{mount_namespace, user_namespace};
use crate::sys::rooted::{Directory, Root};
use crate::sys::tree::{Scope, Tree};

/// Namespaces of a container that is being created, with its prepared mounts. Keep it until
/// libcontainer has entered them.
#[derive(Debug)]
pub struct Stage {
    _mount: OwnedFd,
    _user: Option<OwnedFd>,
}

/// Mount that is attached below [`STAGE`].
#[derive(Debug)]
enum Staged {
    /// A mount that only this process has the rights to make.
    Made(Tree),
    /// A bind for which the container's own rights suffice.
    Bind,
    /// A tmpfs, filled with the contents of this directory.
    Filled(Option<Covered>),
}

/// Directory that a mount will cover, as an open descriptor. If another container shares the
/// volume, the path may lead elsewhere by the time it is read, even out of the volume.
#[derive(Debug)]
struct Covered {
    dir: Directory,
    /// Path by which it was found, for messages.
    path: PathBuf,
}

impl Covered {
    fn itself(&self) -> PathBuf {
        self.dir.entry(OsStr::new("."))
    }
}

impl Stage {
    /// Prepares the mounts that libcontainer cannot make. Replaces them in `spec` with binds, and
    /// the namespaces with the prepared ones. Returns `None` if libcontainer can make all mounts.
    /// Forks; see fork(2) about threads.
    ///
    /// # Errors
    /// [`StageError`].
    pub fn prepare(spec: &mut Spec, namespaces: &Namespaces) -> Result<Option<Self>> {
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        let mut all = Vec::new();
        for index in 0..mounts.len() {
            settle(&mut mounts, index, spec);
            let covered = match mounts[index].typ().as_deref() {
                Some("tmpfs") => covered(&mounts, index, spec),
                _ => None,
            };
            if let Some(covered) = &covered {
                inherit_mode(&mut mounts[index], covered);
            }
            let options = options(&mounts[index]);
            if let Some(staged) = stage_of(&mounts[index], &options, covered, spec, namespaces)? {
                all.push((index, mounts[index].clone(), options, staged));
            }
        }
        let is_needed = all
            .iter()
            .any(|(.., staged)| matches!(staged, Staged::Made(_)));
        if !all.is_empty()
            && let Err(error) = make_place()
        {
            if is_needed {
                return Err(error);
            }
            tracing::warn!(
                "{}: attributes of bind mounts stay as on the host, and no tmpfs is filled (tmpcopyup)",
                chain(&error)
            );
            all.clear();
        }
        for (number, (index, _, options, _)) in all.iter().enumerate() {
            bind(&mut mounts[*index], options, &point(number));
        }
        let all: Vec<_> = all
            .into_iter()
            .map(|(_, mount, options, staged)| (mount, options, staged))
            .collect();
        let stage = if all.is_empty() {
            None
        } else {
            Some(Self::build(spec, namespaces, all)?)
        };
        mounts.iter_mut().for_each(translate);
        spec.set_mounts(Some(mounts));
        Ok(stage)
    }

    fn build(
        spec: &mut Spec,
        namespaces: &Namespaces,
        all: Vec<(Mount, Options, Staged)>,
    ) -> Result<Self> {
        let user = container_user(spec, namespaces)?;
        let existing = match namespaces.joined(LinuxNamespaceType::Mount) {
            Some(path) => Some(open_namespace(path)?),
            None => None,
        };
        let user_fd = user.as_ref().map(AsFd::as_fd);
        let existing = existing.as_ref().map(AsFd::as_fd);
        let mount = mount_namespace(user_fd, existing, || {
            attach_all(all).map_err(|error| chain(&error))
        })?;
        enter(spec, LinuxNamespaceType::Mount, &mount);
        if let Some(user) = &user {
            enter(spec, LinuxNamespaceType::User, user);
        }
        Ok(Self {
            _mount: mount,
            _user: user,
        })
    }
}

/// Returns the directory that a mount will cover, if it exists already and is the host's.
fn covered(mounts: &[Mount], index: usize, spec: &Spec) -> Option<Covered> {
    let rootfs = spec.root().as_ref()?.path();
    let (base, below) = place(mounts, index, Path::new("/"), rootfs)?;
    let covered = Covered {
        dir: Root::open(&base).ok()?.directory(&below).ok()?,
        path: base.join(below.strip_prefix("/").unwrap_or(&below)),
    };
    covered.itself().is_dir().then_some(covered)
}

/// Gives a tmpfs without a mode in its options the mode of the directory that it covers.
fn inherit_mode(mount: &mut Mount, covered: &Covered) {
    if let Ok(metadata) = fs::metadata(covered.itself()) {
        let mut options = mount.options().clone().unwrap_or_default();
        options.insert(0, format!("mode={:04o}", metadata.mode() & 0o7777));
        mount.set_options(Some(options));
    }
}

/// Returns the preparation for a mount; `None` if libcontainer can make it.
fn stage_of(
    mount: &Mount,
    options: &Options,
    covered: Option<Covered>,
    spec: &Spec,
    namespaces: &Namespaces,
) -> Result<Option<Staged>> {
    let possible = geteuid().is_root() && namespaces.has(LinuxNamespaceType::Mount);
    if !possible {
        return Ok(None);
    }
    if !is_bind(mount) {
        let copies = options.copy_up && mount.typ().as_deref() == Some("tmpfs");
        return Ok(copies.then_some(Staged::Filled(covered)));
    }
    if let Ok(Some(ids)) = mapping(mount, options, spec, namespaces) {
        return made(mount, options, Some(&ids), spec, namespaces)
            .map(|tree| Some(Staged::Made(tree)));
    }
    if namespaces.has(LinuxNamespaceType::User) && !reachable_by_all(source(mount)) {
        // As runc, which opens the source with the rights of its caller.
        return made(mount, options, None, spec, namespaces).map(|tree| Some(Staged::Made(tree)));
    }
    // libcontainer creates devices in /dev, and clears `ro` until that is done.
    let plain = !options.has_attributes() || mount.destination() == Path::new("/dev");
    Ok((!plain).then_some(Staged::Bind))
}

/// Returns whether everybody may search the directories on the way to `path`; true if the path does
/// not exist.
fn reachable_by_all(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else {
        return true;
    };
    path.ancestors().skip(1).all(|dir| {
        let mode = fs::metadata(dir).map_or(0o777, |metadata| metadata.mode());
        mode & 0o001 != 0
    })
}

/// Turns a mount into a bind of the prepared one. The propagation is set later.
fn bind(mount: &mut Mount, options: &Options, source: &Path) {
    let mut words = vec!["rbind".to_owned()];
    let is_propagation = |option: &&String| !Options::parse([option]).propagation.is_empty();
    words.extend(
        mount
            .options()
            .iter()
            .flatten()
            .filter(is_propagation)
            .cloned(),
    );
    if options.copy_up && options.set.contains(MsFlags::MS_RDONLY) {
        // The tmpfs is mounted writable, to be filled.
        words.push("ro".to_owned());
    }
    mount.set_typ(Some("bind".to_owned()));
    mount.set_source(Some(source.to_path_buf()));
    mount.set_options(Some(words));
    mount.set_uid_mappings(None);
    mount.set_gid_mappings(None);
}

/// Returns the user namespace of the container, and makes it if the spec wants a new one.
fn container_user(spec: &Spec, namespaces: &Namespaces) -> Result<Option<OwnedFd>> {
    match namespaces.get(LinuxNamespaceType::User) {
        Namespace::Host => return Ok(None),
        Namespace::Joined(path) => return open_namespace(path).map(Some),
        Namespace::Own => {}
    }
    let linux = spec.linux().as_ref();
    let uids = ranges(linux.and_then(|linux| linux.uid_mappings().as_ref()));
    let gids = ranges(linux.and_then(|linux| linux.gid_mappings().as_ref()));
    Ok(Some(user_namespace(&uids, &gids)?))
}

/// Makes the spec's namespace of this kind the one of a descriptor. libcontainer's processes
/// inherit the descriptor.
fn enter(spec: &mut Spec, kind: LinuxNamespaceType, fd: &OwnedFd) {
    let namespaces = spec
        .linux_mut()
        .as_mut()
        .and_then(|linux| linux.namespaces_mut().as_mut());
    for namespace in namespaces.into_iter().flatten() {
        if namespace.typ() == kind {
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            namespace.set_path(Some(path.into()));
        }
    }
}

/// Attaches all mounts; called in the new mount namespace.
fn attach_all(all: Vec<(Mount, Options, Staged)>) -> Result<()> {
    cover_place().map_err(place_error)?;
    for (number, (mount, options, staged)) in all.into_iter().enumerate() {
        let point = point(number);
        match staged {
            Staged::Made(tree) => attach(tree, &mount, &point)?,
            Staged::Bind => attach(bound(&mount, &options)?, &mount, &point)?,
            Staged::Filled(from) => fill(&mount, &options, from.as_ref(), &point)?,
        }
    }
    Ok(())
}

/// Mounts a tmpfs on the directory. First the mount that has the directory becomes private, so that
/// it does not propagate to peers on the host or in other containers.
fn cover_place() -> io::Result<()> {
    let none = None::<&str>;
    for dir in Path::new(STAGE).ancestors() {
        // `EINVAL` means that no mount begins at this directory.
        match mount(none, dir, none, MsFlags::MS_PRIVATE, none) {
            Err(Errno::EINVAL) => {}
            Err(errno) => return Err(errno.into()),
            Ok(()) => break,
        }
    }
    cover(Path::new(STAGE))
}

fn attach(tree: Tree, mount: &Mount, point: &Path) -> Result<()> {
    tree.attach(point)
        .map_err(failed(mount, "attach the mount"))
}

/// Makes a bind with the attributes of its options, as far as they are not locked.
fn bound(mount: &Mount, options: &Options) -> Result<Tree> {
    let tree = Tree::copy(source(mount), scope(options.is_recursive_bind()))
        .map_err(failed(mount, "copy the mount"))?;
    let attributes = options.attributes();
    let attributes = match tree.change(attributes, Scope::Top) {
        Err(Errno::EPERM) => {
            let present = statvfs(source(mount)).map_err(failed(mount, "look at the mount"))?;
            options
                .locked_attributes(mount_flags(present.flags()))
                .map_err(|flags| StageError::Locked {
                    source_path: source(mount).to_path_buf(),
                    destination: mount.destination().clone(),
                    flags,
                })?
        }
        _ => attributes,
    };
    set_attributes(&tree, mount, options, attributes)?;
    Ok(tree)
}

/// Converts flags of statvfs(3) to flags of mount(2).
fn mount_flags(flags: FsFlags) -> MsFlags {
    let mut found = MsFlags::empty();
    for (flag, same) in [
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ] {
        if flags.contains(flag) {
            found |= same;
        }
    }
    found
}

/// Mounts a tmpfs at `point` and copies the directory's contents to it.
fn fill(spec_mount: &Mount, options: &Options, from: Option<&Covered>, point: &Path) -> Result<()> {
    fs::create_dir(point).map_err(failed(spec_mount, "make a mount point"))?;
    // Writable for now, because it is filled next.
    mount(
        Some(source(spec_mount)),
        point,
        Some("tmpfs"),
        options.set - MsFlags::MS_RDONLY,
        Some(options.data.join(",").as_str()),
    )
    .map_err(failed(spec_mount, "mount a tmpfs"))?;
    let Some(from) = from else { return Ok(()) };
    copy_up(&from.itself(), point).map_err(|source| StageError::CopyUp {
        source_path: from.path.clone(),
        destination: spec_mount.destination().clone(),
        source,
    })
}
