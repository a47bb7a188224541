//! A mount namespace with what the engine is to bind, for the container to live in.
//!
//! The engine finds the source of a bind by its path in the container's mount namespace, which it makes itself. A detached mount has no path, and one that
//! were attached on the host would be there for everybody. So the namespace is made here, as a copy of this process's and owned by the container's user
//! namespace; the prepared mounts are attached in it; and the engine is told to enter it. Hooks that run on the host are not affected.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::geteuid;
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};

use super::copy_up::copy_up;
use super::{Mapping, Options, mapping, options, place, ranges, translate};
use crate::image::tree::TreeError;
use crate::runtime::engine::chain;
use crate::runtime::lower;
use crate::sys::namespace::{NamespaceError, mount_namespace, user_namespace};
use crate::sys::rooted::Root;
use crate::sys::tree::{Attributes, Scope, Tree};

/// An empty directory that is mounted on in mount namespaces only. The root of any user namespace must be able to reach it, which it need not be with the
/// container's own directory.
const STAGE: &str = "/run/rcm-mounts";

/// A mount could not be prepared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StageError {
    /// A step on the way to a mount failed.
    #[error("error mounting {source_path} to rootfs at {destination}: cannot {action}")]
    Mount {
        /// What shall be mounted.
        source_path: PathBuf,
        /// Where.
        destination: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The file system, or the kernel for it, does not have idmapped mounts.
    #[error(
        "failed to set MOUNT_ATTR_IDMAP on {source_path}: its file system does not support idmapped mounts on this kernel, or it is idmapped already"
    )]
    NotMappable {
        /// What shall be mounted.
        source_path: PathBuf,
        /// Why it failed.
        #[source]
        source: Errno,
    },
    /// The host has these flags on the mount, and a user namespace cannot take them away.
    #[error("error mounting to rootfs at {destination}: cannot clear locked flags {flags:?}")]
    Locked {
        /// Where it shall be mounted.
        destination: PathBuf,
        /// Which.
        flags: MsFlags,
    },
    /// A tmpfs could not be filled.
    #[error("tmpcopyup: failed to copy {source_path} to {destination}")]
    CopyUp {
        /// What was copied.
        source_path: PathBuf,
        /// Where the tmpfs shall be mounted.
        destination: PathBuf,
        /// Why it failed.
        #[source]
        source: TreeError,
    },
    /// The propagation could not be set.
    #[error("cannot set the propagation of the mount {destination}")]
    Propagation {
        /// Where it is.
        destination: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A namespace that the spec names cannot be used.
    #[error("cannot use the namespace {path}")]
    Namespace {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A namespace could not be made, or not filled.
    #[error(transparent)]
    Made(#[from] NamespaceError),
    /// The place for the mounts cannot be had.
    #[error("cannot use the directory {path}, where mounts are prepared")]
    Place {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

type Result<T> = std::result::Result<T, StageError>;

/// The namespaces of a container to be, with its prepared mounts. They are needed until the engine has entered them.
#[derive(Debug)]
pub struct Stage {
    _mount: OwnedFd,
    _user: Option<OwnedFd>,
}

/// What is attached below [`STAGE`].
#[derive(Debug)]
enum Prop {
    /// What only this process has the rights to make.
    Made(Tree),
    /// A bind that the container's own rights suffice for.
    Bind,
    /// A tmpfs with what is in this directory.
    Filled(Option<PathBuf>),
}

impl Stage {
    /// Prepares what the engine cannot mount, replaces it in `spec` with binds and the namespaces with those that have the prepared mounts.
    /// None where the engine can do it all. Makes children; see fork(2) about threads.
    ///
    /// # Errors
    /// [`StageError`].
    pub fn prepare(spec: &mut Spec) -> Result<Option<Self>> {
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        let mut props = Vec::new();
        for index in 0..mounts.len() {
            let covered = match mounts[index].typ().as_deref() {
                Some("tmpfs") => covered(&mounts, index, spec),
                _ => None,
            };
            if let Some(covered) = &covered {
                inherit_mode(&mut mounts[index], covered);
            }
            let options = options(&mounts[index]);
            if let Some(prop) = prop(&mounts[index], &options, covered, spec)? {
                props.push((index, mounts[index].clone(), options, prop));
            }
        }
        let stage = match props.is_empty() {
            true => None,
            false => {
                for (number, (index, _, options, _)) in props.iter().enumerate() {
                    bind(&mut mounts[*index], options, &point(number));
                }
                let props = props
                    .into_iter()
                    .map(|(_, mount, options, prop)| (mount, options, prop))
                    .collect();
                Some(Self::build(spec, props)?)
            }
        };
        mounts.iter_mut().for_each(translate);
        spec.set_mounts(Some(mounts));
        Ok(stage)
    }

    fn build(spec: &mut Spec, props: Vec<(Mount, Options, Prop)>) -> Result<Self> {
        make_place().map_err(|source| StageError::Place {
            path: STAGE.into(),
            source,
        })?;
        let user = container_user(spec)?;
        let existing = match namespace_path(spec, LinuxNamespaceType::Mount) {
            Some(path) => Some(open_namespace(&path)?),
            None => None,
        };
        let user_fd = user.as_ref().map(AsFd::as_fd);
        let existing = existing.as_ref().map(AsFd::as_fd);
        let mount = mount_namespace(user_fd, existing, || {
            furnish(props).map_err(|error| chain(&error))
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

/// The directory that a mount will cover, if it is there already and the host can see it.
fn covered(mounts: &[Mount], index: usize, spec: &Spec) -> Option<PathBuf> {
    let rootfs = spec.root().as_ref()?.path();
    let (base, below) = place(mounts, index, Path::new("/"), rootfs)?;
    let found = Root::open(&base).ok()?.resolve(&below).ok()?;
    let dir = base.join(found.strip_prefix("/").unwrap_or(&found));
    dir.is_dir().then_some(dir)
}

/// Without a mode in its options a tmpfs has that of the directory which it covers.
fn inherit_mode(mount: &mut Mount, covered: &Path) {
    if let Ok(metadata) = fs::metadata(covered) {
        let mut options = mount.options().clone().unwrap_or_default();
        options.insert(0, format!("mode={:04o}", metadata.mode() & 0o7777));
        mount.set_options(Some(options));
    }
}

/// What must be prepared for a mount, if the engine is not up to it.
fn prop(
    mount: &Mount,
    options: &Options,
    covered: Option<PathBuf>,
    spec: &Spec,
) -> Result<Option<Prop>> {
    let possible = geteuid().is_root() && lower::has_namespace(spec, LinuxNamespaceType::Mount);
    if !possible {
        return Ok(None);
    }
    if !lower::is_bind(mount) {
        let copies = options.copy_up && mount.typ().as_deref() == Some("tmpfs");
        return Ok(copies.then_some(Prop::Filled(covered)));
    }
    if let Ok(Some(ids)) = mapping(mount, options, spec) {
        return made(mount, options, &ids, spec).map(|tree| Some(Prop::Made(tree)));
    }
    // The engine makes devices in /dev, and takes `ro` from it until they are made.
    let plain = !options.has_attributes() || mount.destination() == Path::new("/dev");
    Ok((!plain).then_some(Prop::Bind))
}

/// Makes a mount a bind of what is prepared for it. The propagation is set later.
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
        // It had to be written to.
        words.push("ro".to_owned());
    }
    mount.set_typ(Some("bind".to_owned()));
    mount.set_source(Some(source.to_path_buf()));
    mount.set_options(Some(words));
    mount.set_uid_mappings(None);
    mount.set_gid_mappings(None);
}

/// For `map_err` on a step of preparing a mount.
fn failed<E: Into<io::Error>>(mount: &Mount, action: &'static str) -> impl FnOnce(E) -> StageError {
    let source_path = mount.source().clone().unwrap_or_default();
    let destination = mount.destination().clone();
    move |source| StageError::Mount {
        source_path,
        destination,
        action,
        source: source.into(),
    }
}

fn scope(recursive: bool) -> Scope {
    match recursive {
        true => Scope::Recursive,
        false => Scope::Top,
    }
}

fn source(mount: &Mount) -> &Path {
    mount.source().as_deref().unwrap_or(Path::new(""))
}

/// An idmapped tree: it takes the rights over its file system, which the container's user namespace does not have.
fn made(mount: &Mount, options: &Options, ids: &Mapping, spec: &Spec) -> Result<Tree> {
    let tree = Tree::copy(source(mount), scope(options.is_recursive_bind()))
        .map_err(failed(mount, "copy the mount"))?;
    let user = match ids {
        Mapping::Ranges { uids, gids } => user_namespace(uids, gids)?,
        Mapping::Joined(path) => open_namespace(path)?,
    };
    tree.map_ids(user.as_fd(), scope(options.id_mapped == Some(true)))
        .map_err(|source| match source {
            Errno::EINVAL | Errno::EPERM => StageError::NotMappable {
                source_path: mount.source().clone().unwrap_or_default(),
                source,
            },
            errno => failed(mount, "map the ids of the mount")(errno),
        })?;
    set_attributes(&tree, mount, options, options.attributes())?;
    // A copy is a peer of the host's mount; what is mounted in the container must not be seen there, see the engine's treatment of `/`.
    let linux = spec.linux().as_ref();
    let propagation = linux.and_then(|linux| linux.rootfs_propagation().as_deref());
    let own_user = lower::has_namespace(spec, LinuxNamespaceType::User);
    let propagation = match propagation {
        Some("shared") if !own_user => return Ok(tree),
        Some("private") => MsFlags::MS_PRIVATE,
        _ => MsFlags::MS_SLAVE,
    };
    tree.propagate(propagation)
        .map_err(failed(mount, "separate the mount from the host's"))?;
    Ok(tree)
}

fn set_attributes(
    tree: &Tree,
    mount: &Mount,
    options: &Options,
    attributes: Attributes,
) -> Result<()> {
    tree.change(attributes, Scope::Top)
        .and_then(|()| tree.change(options.recursive, Scope::Recursive))
        .map_err(failed(mount, "set the mount's options"))
}

/// The user namespace of the container, made now where the spec wants a new one.
fn container_user(spec: &Spec) -> Result<Option<OwnedFd>> {
    if !lower::has_namespace(spec, LinuxNamespaceType::User) {
        return Ok(None);
    }
    if let Some(path) = namespace_path(spec, LinuxNamespaceType::User) {
        return open_namespace(&path).map(Some);
    }
    let linux = spec.linux().as_ref();
    let uids = ranges(linux.and_then(|linux| linux.uid_mappings().as_ref()));
    let gids = ranges(linux.and_then(|linux| linux.gid_mappings().as_ref()));
    Ok(Some(user_namespace(&uids, &gids)?))
}

fn namespace_path(spec: &Spec, kind: LinuxNamespaceType) -> Option<PathBuf> {
    lower::namespace(spec, kind)?.path().clone()
}

fn open_namespace(path: &Path) -> Result<OwnedFd> {
    let file = File::open(path).map_err(|source| StageError::Namespace {
        path: path.to_path_buf(),
        source,
    })?;
    Ok(file.into())
}

/// Makes the spec's namespace of this kind the one of a descriptor, which the processes of the engine inherit.
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

/// Where a mount is attached.
fn point(number: usize) -> PathBuf {
    Path::new(STAGE).join(number.to_string())
}

fn make_place() -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(STAGE)?;
    // Whatever the umask is.
    fs::set_permissions(STAGE, Permissions::from_mode(0o755))
}

/// Attaches everything, in the namespace that this is for.
fn furnish(props: Vec<(Mount, Options, Prop)>) -> Result<()> {
    cover_place().map_err(|errno| StageError::Place {
        path: STAGE.into(),
        source: errno.into(),
    })?;
    for (number, (mount, options, prop)) in props.into_iter().enumerate() {
        let point = point(number);
        match prop {
            Prop::Made(tree) => attach(tree, &mount, &point)?,
            Prop::Bind => attach(bound(&mount, &options)?, &mount, &point)?,
            Prop::Filled(from) => fill(&mount, &options, from.as_deref(), &point)?,
        }
    }
    Ok(())
}

/// Mounts a tmpfs on the place. The mount that the place is on must not pass this on to its peers on the host, nor to those in other containers.
fn cover_place() -> nix::Result<()> {
    let none = None::<&str>;
    for dir in Path::new(STAGE).ancestors() {
        // Fails where no mount begins.
        match mount(none, dir, none, MsFlags::MS_PRIVATE, none) {
            Err(Errno::EINVAL) => {}
            Err(errno) => return Err(errno),
            Ok(()) => break,
        }
    }
    mount(
        Some("rcm"),
        STAGE,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=755"),
    )
}

fn attach(tree: Tree, mount: &Mount, point: &Path) -> Result<()> {
    let directory = tree
        .is_directory()
        .map_err(failed(mount, "look at the mount"))?;
    match directory {
        true => fs::create_dir(point),
        false => File::create(point).map(drop),
    }
    .map_err(failed(mount, "make a mount point"))?;
    tree.attach(point)
        .map_err(failed(mount, "attach the mount"))
}

/// A bind with the attributes of its options, as far as they are not locked.
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
                    destination: mount.destination().clone(),
                    flags,
                })?
        }
        _ => attributes,
    };
    set_attributes(&tree, mount, options, attributes)?;
    Ok(tree)
}

/// The flags of statvfs(3) as those of mount(2).
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

/// Mounts a tmpfs at `point` and copies to it what it will cover.
fn fill(spec_mount: &Mount, options: &Options, from: Option<&Path>, point: &Path) -> Result<()> {
    fs::create_dir(point).map_err(failed(spec_mount, "make a mount point"))?;
    // It must be written to first.
    mount(
        Some(source(spec_mount)),
        point,
        Some("tmpfs"),
        options.set - MsFlags::MS_RDONLY,
        Some(options.data.join(",").as_str()),
    )
    .map_err(failed(spec_mount, "mount a tmpfs"))?;
    let Some(from) = from else { return Ok(()) };
    copy_up(from, point).map_err(|source| StageError::CopyUp {
        source_path: from.to_path_buf(),
        destination: spec_mount.destination().clone(),
        source,
    })
}
