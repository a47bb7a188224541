//! What is in a tree, in the order of [`TreePath`].

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

use super::entry::{Attributes, Entry, Kind, Stamp, is_carried, overlay_suffix};
use super::error::TreeError;
use super::path::TreePath;
use super::{MAX_DEPTH, file_error};
use crate::sys::beneath::{Dir, Node};

/// Times of files are as coarse as this on some file systems (one second on ext4 with small inodes), so that a change later in the same unit does not show.
const COARSEST_TIME_DUR: Duration = Duration::from_secs(2);

/// What a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    /// A tree as a container sees it.
    Tree,
    /// The upper directory of an overlay: changes to what its lower layers have.
    Upper,
}

/// What the stamps of a walk's entries are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stamps {
    /// Nothing: there are none.
    None,
    /// To be compared with earlier ones.
    Compared,
    /// To be compared with later ones, too.
    Lasting,
}

/// Walks through a tree that may change meanwhile: what vanishes on the way was never there.
pub(super) struct Walk {
    root: PathBuf,
    view: View,
    stack: Vec<Level>,
    /// The directory that is entered next, or the root before the first step.
    entering: Option<(Dir, TreePath)>,
    started: bool,
    /// Of the path that was told last, in the innermost directory; the root has none.
    name: Option<OsString>,
    /// The first path of every object with several names, by device and inode.
    first_names: HashMap<(u64, u64), TreePath>,
    /// An older change time tells that the contents are those that this walk finds.
    settled: Option<SystemTime>,
}

struct Level {
    dir: Dir,
    path: TreePath,
    names: std::vec::IntoIter<OsString>,
}

/// What [`Walk::look`] finds.
pub(super) enum Look {
    /// This.
    Found(Found),
    /// The file that the stamp is of, with the same contents and attributes.
    Same,
    /// Nothing: it has vanished since its directory was listed.
    Gone,
}

/// What stands at a path.
pub(super) struct Found {
    pub(super) entry: Entry,
    pub(super) node: Node,
}

impl Walk {
    /// Begins at the directory `root`.
    ///
    /// With [`Stamps::Lasting`], entries tell when their contents were changed. A program that has mapped a file writes to it without a new change
    /// time as long as the page is dirty, so everything is written back first: from then on the kernel notices the next write.
    pub(super) fn new(root: &Path, view: View, stamps: Stamps) -> Result<Self, TreeError> {
        let dir = Dir::open(root).map_err(file_error("open", root))?;
        let mut settled = None;
        if stamps != Stamps::None && times_tell(&dir) {
            settled = SystemTime::now().checked_sub(COARSEST_TIME_DUR);
        }
        if stamps == Stamps::Lasting && settled.is_some() {
            dir.sync_file_system().map_err(file_error("sync", root))?;
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

    /// Where the tree lies on this host.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The next path. What is there, [`Self::look`] tells, before the next call.
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
            // The kernel's names are valid ones.
            if path.push(name.as_bytes()).is_ok() {
                self.name = Some(name);
                return Ok(Some(path));
            }
        }
    }

    /// What stands at `path`, the one that [`Self::next`] told. An older walk has noted `stamp` there: a file that still has it is not even opened, because
    /// to look at nothing but that takes a quarter of the time.
    pub(super) fn look(
        &mut self,
        path: TreePath,
        stamp: Option<&Stamp>,
    ) -> Result<Look, TreeError> {
        let on_host = || path.below(&self.root);
        let node = match (&self.name, self.stack.last(), &self.entering) {
            (Some(name), Some(level), _) => {
                // A file with other names is looked at: the first of them must be known.
                if let (Some(stamp), Some(_)) = (stamp, self.settled)
                    && let Ok(status) = level.dir.status(name)
                    && status.st_nlink == 1
                    && Stamp::of(&status) == *stamp
                {
                    return Ok(Look::Same);
                }
                level.dir.node(name)
            }
            (_, _, Some((root, _))) => root.as_node(),
            _ => return Ok(Look::Gone),
        };
        let node = match node {
            Ok(node) => node,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Look::Gone),
            Err(error) => return Err(file_error("read", &on_host())(error)),
        };
        let found = self.describe(path, node)?;
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
            // What is mounted there is another file system's matter; or it has just gone.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EXDEV | libc::ENOENT | libc::ENOTDIR | libc::ELOOP)
                ) => {}
            Err(error) => return Err(file_error("open", &path.below(&self.root))(error)),
        }
        Ok(())
    }

    fn enter(&mut self, dir: Dir, path: TreePath) -> Result<(), TreeError> {
        let mut names = dir
            .names()
            .map_err(file_error("list", &path.below(&self.root)))?;
        if !names.is_empty() && self.stack.len() >= MAX_DEPTH {
            return Err(TreeError::Deep {
                path,
                limit: MAX_DEPTH,
            });
        }
        names.sort_unstable();
        self.stack.push(Level {
            dir,
            path,
            names: names.into_iter(),
        });
        Ok(())
    }

    fn describe(&mut self, path: TreePath, node: Node) -> Result<Found, TreeError> {
        let on_host = || path.below(&self.root);
        let metadata = node
            .metadata()
            .map_err(|error| file_error("read", &on_host())(error))?;
        let format = metadata.file_type();
        let mut entry = Entry {
            path: path.clone(),
            kind: Kind::Fifo,
            attributes: Attributes::default(),
            linked: false,
            stamp: None,
        };
        if self.view == View::Upper && format.is_char_device() && metadata.rdev() == 0 {
            entry.kind = Kind::Whiteout;
            return Ok(Found { entry, node });
        }
        if metadata.nlink() > 1 && !format.is_dir() {
            let object = (metadata.dev(), metadata.ino());
            if let Some(first) = self.first_names.get(&object) {
                entry.kind = Kind::Link { to: first.clone() };
                return Ok(Found { entry, node });
            }
            self.first_names.insert(object, path.clone());
            entry.linked = true;
        }
        let mut extended = Vec::new();
        let mut marks = OverlayMarks::default();
        let names = node
            .attribute_names()
            .map_err(|error| file_error("list the extended attributes of", &on_host())(error))?;
        for name in names.into_iter().filter(|name| is_carried(name)) {
            let value = match node.attribute(&name) {
                Ok(value) => value,
                Err(error) if error.raw_os_error() == Some(libc::ENODATA) => continue,
                Err(source) => {
                    return Err(TreeError::Attribute {
                        action: "read",
                        name,
                        path: on_host(),
                        source,
                    });
                }
            };
            match overlay_suffix(&name) {
                Some(suffix) if self.view == View::Upper => marks.note(suffix, &value, &path)?,
                _ => extended.push((name, value)),
            }
        }
        extended.sort_unstable();
        if marks.whiteout && format.is_file() {
            entry.kind = Kind::Whiteout;
            entry.linked = false;
            return Ok(Found { entry, node });
        }
        entry.kind = if format.is_dir() {
            let opaque = marks.opaque;
            Kind::Directory { opaque }
        } else if format.is_file() {
            let size_bytes = metadata.size();
            Kind::File { size_bytes }
        } else if format.is_symlink() {
            let target = node
                .target()
                .map_err(|error| file_error("read the link", &on_host())(error))?;
            Kind::Symlink { target }
        } else if format.is_char_device() {
            let device = metadata.rdev();
            Kind::Character { device }
        } else if format.is_block_device() {
            let device = metadata.rdev();
            Kind::Block { device }
        } else if format.is_socket() {
            Kind::Socket
        } else {
            Kind::Fifo
        };
        entry.attributes = Attributes::new(&metadata, extended);
        entry.stamp = self
            .settled
            .filter(|settled| format.is_file() && change_time(&metadata) < *settled)
            .map(|_| Stamp::new(&metadata));
        Ok(Found { entry, node })
    }
}

fn change_time(metadata: &Metadata) -> SystemTime {
    let nanoseconds = Duration::from_nanos(metadata.ctime_nsec() as u64);
    match u64::try_from(metadata.ctime()) {
        Ok(seconds) => UNIX_EPOCH + Duration::from_secs(seconds) + nanoseconds,
        Err(_) => UNIX_EPOCH,
    }
}

/// Does every change of a file below `dir` give it a new change time, also one through a mapping?
///
/// These file systems do it in their `page_mkwrite`, after each write-back. tmpfs does not: a page once mapped for writing is written to unnoticed.
/// Network file systems take the time from the server's clock. An overlay does what the file system of its upper directory does.
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

/// The upper directory of the overlay that `dir` lies in, where this process can know it.
fn upper_directory(dir: &Dir) -> Option<PathBuf> {
    let device = dir.as_node().ok()?.metadata().ok()?.dev();
    let device = format!("{}:{}", libc::major(device), libc::minor(device));
    let mounts = procfs::process::Process::myself().ok()?.mountinfo().ok()?;
    mounts
        .into_iter()
        .find(|mount| mount.majmin == device)
        .and_then(|mount| mount.super_options.get("upperdir").cloned().flatten())
        .map(PathBuf::from)
}

/// What the overlay file system noted on a file of its upper directory (Documentation/filesystems/overlayfs.rst). Its other notes
/// (`origin`, `impure`, `nlink`, `uuid`, ...) only hold on this file system.
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
            // "x" says that whiteouts inside are marked by attributes.
            b"opaque" => self.opaque = value == b"y",
            b"whiteout" => self.whiteout = true,
            b"redirect" => return refers("trusted.overlay.redirect"),
            b"metacopy" => return refers("trusted.overlay.metacopy"),
            _ => {}
        }
        Ok(())
    }
}
