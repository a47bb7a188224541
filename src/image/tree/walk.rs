//! Walks through the entries of a tree, in the order of [`TreePath`].

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::statfs::{
    BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, FsType, OVERLAYFS_SUPER_MAGIC,
    XFS_SUPER_MAGIC, fstatfs, statfs,
};

use super::MAX_DEPTH;
use super::entry::{Attributes, EntryKind, Extended, Stamp, TreeEntry, is_carried, overlay_suffix};
use super::error::TreeError;
use super::path::TreePath;
use crate::sys::beneath::{Dir, Object};
use crate::sys::file::Failed;

/// Coarsest unit of file times on some file systems (one second on ext4 with small inodes). A
/// second change within the same unit does not show.
const COARSEST_TIME_DUR: Duration = Duration::from_secs(2);

/// The meaning of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    /// A tree as a container sees it.
    Tree,
    /// The upper directory of an overlay: changes to its lower layers.
    Upper,
}

/// The use of the stamps of a walk's entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stamps {
    /// No stamps.
    None,
    /// For comparison with earlier stamps.
    Compared,
    /// For comparison with later stamps, too.
    Lasting,
}

/// Walks through a tree that may change during the walk. Entries that vanish on the way are left
/// out.
pub(super) struct Walk {
    root: PathBuf,
    view: View,
    stack: Vec<WalkLevel>,
    /// The directory to enter next, or the root before the first step.
    entering: Option<(Dir, TreePath)>,
    started: bool,
    /// The last name of the path that was returned last, in the innermost directory. The root has
    /// none.
    name: Option<OsString>,
    /// The first path of every file with several names, by device and inode.
    first_names: HashMap<(u64, u64), TreePath>,
    /// If a file's change time is older than this, later changes will get another change time.
    settled: Option<SystemTime>,
}

struct WalkLevel {
    dir: Dir,
    path: TreePath,
    names: std::vec::IntoIter<OsString>,
}

/// The result of [`Walk::look`].
pub(super) enum Look {
    /// An entry.
    Found(Found),
    /// The file with the given stamp, which has the same contents and attributes.
    Same,
    /// The entry has vanished since its directory was listed.
    Gone,
}

/// An entry and the file itself.
pub(super) struct Found {
    pub(super) entry: TreeEntry,
    pub(super) object: Object,
}

impl Walk {
    /// Begins at the directory `root`.
    ///
    /// With [`Stamps::Lasting`], the stamps of entries show later changes of their contents. A
    /// program that has mapped a file can write to a dirty page without a new change time. So
    /// everything is written back first; after that the kernel notices the next write.
    pub(super) fn new(root: &Path, view: View, stamps: Stamps) -> Result<Self, TreeError> {
        let dir = Dir::open(root).map_err(Failed::to("open", root))?;
        let mut settled = None;
        if stamps != Stamps::None && times_tell(&dir) {
            settled = SystemTime::now().checked_sub(COARSEST_TIME_DUR);
        }
        if stamps == Stamps::Lasting && settled.is_some() {
            dir.sync_file_system().map_err(Failed::to("sync", root))?;
        }
        Ok(Self {
            root: root.to_path_buf(),
            view,
            stack: Vec::new(),
            entering: Some((dir, TreePath::root())),
            started: false,
            name: None,
            first_names: HashMap::new(),
            settled,
        })
    }

    /// Returns the tree's root on this host.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the next path. [`Self::look`] describes the entry there, and must be called before
    /// the next call.
    pub(super) fn next(&mut self) -> Result<Option<TreePath>, TreeError> {
        if !self.started {
            self.started = true;
            return Ok(Some(TreePath::root()));
        }
        if let Some((dir, path)) = self.entering.take() {
            self.enter(dir, path)?;
        }
        loop {
            let Some(level) = self.stack.last_mut() else {
                return Ok(None);
            };
            let Some(name) = level.names.next() else {
                self.stack.pop();
                continue;
            };
            let mut path = level.path.clone();
            // The kernel's names are valid.
            if path.push(name.as_bytes()).is_ok() {
                self.name = Some(name);
                return Ok(Some(path));
            }
        }
    }

    /// Describes the entry at `path`, which [`Self::next`] has returned. `stamp` is from an earlier
    /// walk. A file that still has it is not even opened, because fstatat(2) alone takes a quarter
    /// of the time.
    pub(super) fn look(
        &mut self,
        path: TreePath,
        stamp: Option<&Stamp>,
    ) -> Result<Look, TreeError> {
        let on_host = || path.below(&self.root);
        let object = match (&self.name, self.stack.last(), &self.entering) {
            (Some(name), Some(level), _) => {
                // A file with other names is described anyway, because their first one must be
                // known.
                if let (Some(stamp), Some(_)) = (stamp, self.settled)
                    && let Ok(status) = level.dir.status(name)
                    && status.st_nlink == 1
                    && Stamp::of(&status) == *stamp
                {
                    return Ok(Look::Same);
                }
                level.dir.object(name)
            }
            (_, _, Some((root, _))) => root.as_object(),
            _ => return Ok(Look::Gone),
        };
        let object = match object {
            Ok(object) => object,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Look::Gone),
            Err(error) => return Err(Failed::to("read", &on_host())(error).into()),
        };
        let found = self.describe(path, object)?;
        if found.entry.kind.is_directory()
            && let Some(name) = self.name.take()
        {
            self.prepare_to_enter(&found.entry.path, &name)?;
        }
        Ok(Look::Found(found))
    }

    fn prepare_to_enter(&mut self, path: &TreePath, name: &OsString) -> Result<(), TreeError> {
        let Some(level) = self.stack.last() else {
            return Ok(());
        };
        match level.dir.open_dir(name) {
            Ok(dir) => self.entering = Some((dir, path.clone())),
            // Another file system is mounted there, or the directory has just vanished.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EXDEV | libc::ENOENT | libc::ENOTDIR | libc::ELOOP)
                ) => {}
            Err(error) => return Err(Failed::to("open", &path.below(&self.root))(error).into()),
        }
        Ok(())
    }

    fn enter(&mut self, dir: Dir, path: TreePath) -> Result<(), TreeError> {
        let mut names = dir
            .names()
            .map_err(Failed::to("list", &path.below(&self.root)))?;
        if !names.is_empty() && self.stack.len() >= MAX_DEPTH {
            return Err(TreeError::Deep {
                path,
                limit: MAX_DEPTH,
            });
        }
        names.sort_unstable();
        self.stack.push(WalkLevel {
            dir,
            path,
            names: names.into_iter(),
        });
        Ok(())
    }

    fn describe(&mut self, path: TreePath, object: Object) -> Result<Found, TreeError> {
        let on_host = || path.below(&self.root);
        let metadata = object
            .metadata()
            .map_err(|error| Failed::to("read", &on_host())(error))?;
        let format = metadata.file_type();
        let mut entry = TreeEntry {
            path: path.clone(),
            kind: EntryKind::Fifo,
            attributes: Attributes::default(),
            linked: false,
            stamp: None,
        };
        if self.view == View::Upper && format.is_char_device() && metadata.rdev() == 0 {
            entry.kind = EntryKind::Whiteout;
            return Ok(Found { entry, object });
        }
        if metadata.nlink() > 1 && !format.is_dir() {
            let id = (metadata.dev(), metadata.ino());
            if let Some(first) = self.first_names.get(&id) {
                entry.kind = EntryKind::Link { to: first.clone() };
                return Ok(Found { entry, object });
            }
            self.first_names.insert(id, path.clone());
            entry.linked = true;
        }
        let (extended, marks) = self.extended_attributes(&path, &object)?;
        if marks.whiteout && format.is_file() {
            entry.kind = EntryKind::Whiteout;
            entry.linked = false;
            return Ok(Found { entry, object });
        }
        entry.kind = kind_of(&object, &metadata, marks.opaque)
            .map_err(|error| Failed::to("read the link", &on_host())(error))?;
        entry.attributes = Attributes::new(&metadata, extended);
        entry.stamp = self
            .settled
            .filter(|settled| format.is_file() && change_time(&metadata) < *settled)
            .map(|_| Stamp::new(&metadata));
        Ok(Found { entry, object })
    }

    /// Reads the attributes of an object, apart from the overlay's marks on an upper directory.
    fn extended_attributes(
        &self,
        path: &TreePath,
        object: &Object,
    ) -> Result<(Extended, OverlayMarks), TreeError> {
        let mut extended = Vec::new();
        let mut marks = OverlayMarks::default();
        let names = object.attribute_names().map_err(|error| {
            Failed::to("list the extended attributes of", &path.below(&self.root))(error)
        })?;
        for name in names.into_iter().filter(|name| is_carried(name)) {
            let value = match object.attribute(&name) {
                Ok(value) => value,
                Err(error) if error.raw_os_error() == Some(libc::ENODATA) => continue,
                Err(source) => {
                    return Err(TreeError::Attribute {
                        action: "read",
                        name,
                        path: path.below(&self.root),
                        source,
                    });
                }
            };
            match overlay_suffix(&name) {
                Some(suffix) if self.view == View::Upper => marks.note(suffix, &value, path)?,
                _ => extended.push((name, value)),
            }
        }
        extended.sort_unstable();
        Ok((extended, marks))
    }
}

fn kind_of(object: &Object, metadata: &Metadata, opaque: bool) -> io::Result<EntryKind> {
    let format = metadata.file_type();
    let device = metadata.rdev();
    Ok(if format.is_dir() {
        EntryKind::Directory { opaque }
    } else if format.is_file() {
        let size_bytes = metadata.size();
        EntryKind::File { size_bytes }
    } else if format.is_symlink() {
        let target = object.target()?;
        EntryKind::Symlink { target }
    } else if format.is_char_device() {
        EntryKind::Character { device }
    } else if format.is_block_device() {
        EntryKind::Block { device }
    } else if format.is_socket() {
        EntryKind::Socket
    } else {
        EntryKind::Fifo
    })
}

fn change_time(metadata: &Metadata) -> SystemTime {
    let nanoseconds = Duration::from_nanos(metadata.ctime_nsec() as u64);
    match u64::try_from(metadata.ctime()) {
        Ok(seconds) => UNIX_EPOCH + Duration::from_secs(seconds) + nanoseconds,
        Err(_) => UNIX_EPOCH,
    }
}

/// Whether every change of a file below `dir` gives it a new change time, also a change through a
/// mapping.
///
/// These file systems do so in their `page_mkwrite`, after each write-back. tmpfs does not notice
/// writes to a page that was once mapped for writing. Network file systems take the time from the
/// server's clock. An overlay behaves like the file system of its upper directory.
fn times_tell(dir: &Dir) -> bool {
    let tells = |kind: FsType| {
        [
            BTRFS_SUPER_MAGIC,
            EXT4_SUPER_MAGIC,
            F2FS_SUPER_MAGIC,
            XFS_SUPER_MAGIC,
        ]
        .contains(&kind)
    };
    match fstatfs(dir) {
        Ok(found) if found.filesystem_type() == OVERLAYFS_SUPER_MAGIC => upper_directory(dir)
            .and_then(|upper| statfs(&upper).ok())
            .is_some_and(|found| tells(found.filesystem_type())),
        Ok(found) => tells(found.filesystem_type()),
        Err(_) => false,
    }
}

/// Returns the upper directory of the overlay that `dir` lies in, if this process can find it.
fn upper_directory(dir: &Dir) -> Option<PathBuf> {
    let device = dir.as_object().ok()?.metadata().ok()?.dev();
    let device = format!("{}:{}", libc::major(device), libc::minor(device));
    let mounts = procfs::process::Process::myself().ok()?.mountinfo().ok()?;
    mounts
        .into_iter()
        .find(|mount| mount.majmin == device)
        .and_then(|mount| mount.super_options.get("upperdir").cloned().flatten())
        .map(PathBuf::from)
}

/// Marks of the overlay file system on a file of its upper directory
/// (Documentation/filesystems/overlayfs.rst). Its other marks (`origin`, `impure`, `nlink`, `uuid`,
/// ...) are only valid on this file system.
#[derive(Default)]
struct OverlayMarks {
    opaque: bool,
    whiteout: bool,
}

impl OverlayMarks {
    fn note(&mut self, suffix: &[u8], value: &[u8], path: &TreePath) -> Result<(), TreeError> {
        let refers = |attribute| {
            Err(TreeError::Overlay {
                path: path.clone(),
                attribute,
            })
        };
        match suffix {
            // "x" means that whiteouts inside are marked by attributes.
            b"opaque" => self.opaque = value == b"y",
            b"whiteout" => self.whiteout = true,
            b"redirect" => return refers("trusted.overlay.redirect"),
            b"metacopy" => return refers("trusted.overlay.metacopy"),
            _ => {}
        }
        Ok(())
    }
}
