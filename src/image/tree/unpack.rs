//! Applies a stream of changes to a directory, and to nothing outside of it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::stat::SFlag;

use super::MAX_DEPTH;
use super::attributes;
use super::changes::{DATA, DELETE, END, ENTRY, HOLE, How, Totals};
use super::codec;
use super::content::next_data;
use super::defect::Defect;
use super::entry::{Attributes, EntryKind, TreeEntry};
use super::error::TreeError;
use super::frame::{Fields, FrameReader, Purpose, malformed};
use super::path::{Order, TreePath};
use crate::sys::beneath::{Dir, Object};
use crate::sys::file::Failed;

/// Limit of noted paths. Syncing more files one by one takes longer than syncing the file system.
pub const MAX_NOTED: usize = 4096;

/// Limits of a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries and deletions together.
    pub entries: u64,
    /// Bytes that are written to files. Holes do not count, because they take no space.
    pub content_bytes: u64,
}

/// Applies the stream `changes` to the directory `root`. Nobody else may change it during that
/// time. Reads `changes` to the end of the stream.
///
/// No stream can touch anything outside `root`. Every name is looked up in an open directory, and
/// no link or mount point is followed. A file with another name is replaced and not written to,
/// because the other name may lie outside. The attributes of a directory are set when everything in
/// it is done.
///
/// # Errors
/// [`TreeError`]. The tree is then neither the old nor the new one: see [`super::Staging`].
pub fn apply(root: &Path, changes: impl Read, limits: Limits) -> Result<Totals, TreeError> {
    apply_noting(root, changes, limits).map(|(totals, _)| totals)
}

/// As [`apply`]. Also returns the changed files and directories, for a caller that syncs them;
/// `None` if there are more than [`MAX_NOTED`].
///
/// # Errors
/// As [`apply`].
pub fn apply_noting(
    root: &Path,
    changes: impl Read,
    limits: Limits,
) -> Result<(Totals, Option<Vec<TreePath>>), TreeError> {
    let mut unpacker = Unpacker {
        root: root.to_path_buf(),
        order: Order::default(),
        levels: Vec::new(),
        file: None,
        limits,
        totals: Totals::default(),
        noted: Some(Vec::new()),
    };
    let mut frames = FrameReader::new(changes, Purpose::Changes)?;
    loop {
        let after = unpacker.order.path().clone();
        let Some((kind, payload)) = frames.next(&after)? else {
            break;
        };
        unpacker.frame(kind, payload)?;
    }
    if unpacker.file.is_some() {
        return Err(unpacker.defect(Defect::Frame { kind: 0 }));
    }
    unpacker.close_levels(0)?;
    Ok((unpacker.totals, unpacker.noted))
}

struct Unpacker {
    root: PathBuf,
    order: Order,
    /// The directories on the way to the current place, the root first.
    levels: Vec<UnpackLevel>,
    file: Option<OpenFile>,
    limits: Limits,
    totals: Totals,
    noted: Option<Vec<TreePath>>,
}

struct UnpackLevel {
    dir: Dir,
    path: TreePath,
    attributes: Attributes,
}

/// A file whose contents are being written.
struct OpenFile {
    file: File,
    object: Object,
    entry: TreeEntry,
    how: How,
    /// Lowest offset of the next contents.
    position: u64,
}

impl Unpacker {
    fn frame(&mut self, kind: u8, payload: &[u8]) -> Result<(), TreeError> {
        let mut fields = Fields::new(payload);
        let misplaced = Defect::Frame { kind };
        match (kind, self.file.is_some()) {
            (ENTRY, false) => {
                let decoded = (|| {
                    let how = How::from_byte(fields.byte()?).ok_or(Defect::Field)?;
                    let entry = codec::entry(&mut fields, &mut self.order)?;
                    fields.end()?;
                    check(how, &entry)?;
                    Ok((how, entry))
                })();
                let (how, entry) = decoded.map_err(|defect| self.defect(defect))?;
                self.totals.entries += 1;
                self.check_entries()?;
                self.close_levels(entry.path.depth())?;
                self.note(&entry);
                self.entry(how, entry)
            }
            (DELETE, false) => {
                let path = codec::place(&mut fields, &mut self.order, false)
                    .and_then(|path| fields.end().map(|()| path))
                    .map_err(|defect| self.defect(defect))?;
                self.totals.deletions += 1;
                self.check_entries()?;
                self.close_levels(path.depth())?;
                let parent = self.parent(&path)?;
                remove(parent, path.name(), MAX_DEPTH).map_err(self.failed("remove", &path))
            }
            (DATA | HOLE | END, true) => self.content(kind, fields),
            _ => Err(self.defect(misplaced)),
        }
    }

    /// Notes a path to sync. Entries that can only be synced with their directory need no note of
    /// their own: that directory is sent, too, when something in it changes.
    fn note(&mut self, entry: &TreeEntry) {
        if matches!(
            entry.kind,
            EntryKind::File { .. } | EntryKind::Directory { .. }
        ) && let Some(noted) = self.noted.as_mut()
        {
            noted.push(entry.path.clone());
        }
        self.noted.take_if(|noted| noted.len() > MAX_NOTED);
    }

    fn entry(&mut self, how: How, entry: TreeEntry) -> Result<(), TreeError> {
        if let EntryKind::Directory { .. } = entry.kind {
            return self.directory(how, entry);
        }
        let path = &entry.path;
        let parent = self.parent(path)?;
        let name = path.name();
        if how == How::Patch {
            self.file = Some(self.patched(entry)?);
            return Ok(());
        }
        // The link's target may be the file that the link replaces.
        let linked = match &entry.kind {
            EntryKind::Link { to } => Some(self.find(to)?),
            _ => None,
        };
        remove(parent, name, MAX_DEPTH).map_err(self.failed("replace", path))?;
        let made = match &entry.kind {
            EntryKind::File { .. } => {
                let file = parent
                    .make_file(name)
                    .map_err(self.failed("create", path))?;
                let object = parent.object(name).map_err(self.failed("read", path))?;
                self.file = Some(OpenFile {
                    file,
                    object,
                    entry,
                    how,
                    position: 0,
                });
                return Ok(());
            }
            EntryKind::Symlink { target } => parent.make_symlink(name, OsStr::from_bytes(target)),
            EntryKind::Character { device } => parent.make_special(name, SFlag::S_IFCHR, *device),
            EntryKind::Block { device } => parent.make_special(name, SFlag::S_IFBLK, *device),
            EntryKind::Fifo => parent.make_special(name, SFlag::S_IFIFO, 0),
            EntryKind::Socket => parent.make_special(name, SFlag::S_IFSOCK, 0),
            EntryKind::Link { .. } => {
                return match &linked {
                    Some(object) => parent.make_link(name, object),
                    None => Err(Errno::ENOENT.into()),
                }
                .map_err(self.failed("link", path));
            }
            EntryKind::Directory { .. } | EntryKind::Whiteout => Err(Errno::EINVAL.into()),
        };
        made.map_err(self.failed("create", path))?;
        let object = parent.object(name).map_err(self.failed("read", path))?;
        attributes::set(&object, &path.below(&self.root), &entry.attributes)
    }

    fn directory(&mut self, how: How, entry: TreeEntry) -> Result<(), TreeError> {
        let path = entry.path;
        let dir = if path.depth() == 0 {
            Dir::open(&self.root).map_err(Failed::to("open", &self.root))?
        } else {
            let parent = self.parent(&path)?;
            let name = path.name();
            let is_there = match parent.object(name).and_then(|object| object.metadata()) {
                Ok(metadata) if metadata.is_dir() => true,
                Ok(_) => {
                    parent.remove(name).map_err(self.failed("replace", &path))?;
                    false
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => false,
                Err(error) => return Err(self.failed("read", &path)(error)),
            };
            if !is_there {
                parent
                    .make_dir(name)
                    .map_err(self.failed("create", &path))?;
            }
            parent.open_dir(name).map_err(self.failed("open", &path))?
        };
        if how == How::Clear {
            empty(&dir, MAX_DEPTH).map_err(self.failed("empty", &path))?;
        }
        self.levels.push(UnpackLevel {
            dir,
            path,
            attributes: entry.attributes,
        });
        Ok(())
    }

    /// Opens an existing file to change its contents.
    fn patched(&self, entry: TreeEntry) -> Result<OpenFile, TreeError> {
        let path = &entry.path;
        let parent = self.parent(path)?;
        let other = || TreeError::OtherBase { path: path.clone() };
        let mut object = match parent.object(path.name()) {
            Ok(object) => object,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(other()),
            Err(error) => return Err(self.failed("read", path)(error)),
        };
        let metadata = object.metadata().map_err(self.failed("read", path))?;
        if !metadata.is_file() {
            return Err(other());
        }
        let file = if metadata.nlink() > 1 {
            let old = object.open_to_read().map_err(self.failed("open", path))?;
            let name = path.name();
            parent.remove(name).map_err(self.failed("replace", path))?;
            let new = parent
                .make_file(name)
                .map_err(self.failed("create", path))?;
            copy(&old, &new, metadata.len()).map_err(self.failed("copy", path))?;
            object = parent.object(name).map_err(self.failed("read", path))?;
            new
        } else {
            object.open_to_write().map_err(self.failed("open", path))?
        };
        Ok(OpenFile {
            file,
            object,
            entry,
            how: How::Patch,
            position: 0,
        })
    }

    fn content(&mut self, kind: u8, mut fields: Fields<'_>) -> Result<(), TreeError> {
        let Some(mut open) = self.file.take() else {
            return Err(self.defect(Defect::Frame { kind }));
        };
        let size_bytes = match open.entry.kind {
            EntryKind::File { size_bytes } => size_bytes,
            _ => 0,
        };
        let path = open.entry.path.clone();
        let first = fields.number().map_err(|defect| self.defect(defect))?;
        if first < open.position || first > size_bytes {
            return Err(self.defect(Defect::Content));
        }
        if kind == END {
            fields.end().map_err(|defect| self.defect(defect))?;
            open.file
                .set_len(first)
                .map_err(self.failed("set the size of", &path))?;
            return attributes::set(
                &open.object,
                &path.below(&self.root),
                &open.entry.attributes,
            );
        }
        let data = match kind {
            DATA => fields.remainder(),
            _ => &[],
        };
        let length_bytes = match kind {
            DATA => data.len() as u64,
            _ => fields.number().map_err(|defect| self.defect(defect))?,
        };
        fields.end().map_err(|defect| self.defect(defect))?;
        let end = first.checked_add(length_bytes);
        let Some(end) = end.filter(|end| *end <= size_bytes && length_bytes > 0) else {
            return Err(self.defect(Defect::Content));
        };
        if kind == DATA {
            self.totals.content_bytes += length_bytes;
            if self.totals.content_bytes > self.limits.content_bytes {
                return Err(TreeError::Limit {
                    what: "bytes",
                    limit: self.limits.content_bytes,
                    path,
                });
            }
            open.file
                .write_all_at(data, first)
                .map_err(self.failed("write", &path))?;
        } else if open.how == How::Patch {
            punch(&open.file, first, end).map_err(self.failed("punch a hole into", &path))?;
        }
        open.position = end;
        self.file = Some(open);
        Ok(())
    }

    /// Finishes the directories that are not above an entry of depth `depth`.
    fn close_levels(&mut self, depth: usize) -> Result<(), TreeError> {
        while self.levels.len() > depth
            && let Some(level) = self.levels.pop()
        {
            let object = level
                .dir
                .as_object()
                .map_err(self.failed("read", &level.path))?;
            attributes::set(&object, &level.path.below(&self.root), &level.attributes)?;
        }
        Ok(())
    }

    /// Returns the directory of `path`. The order of the stream guarantees that it was made or
    /// found on the way.
    fn parent(&self, path: &TreePath) -> Result<&Dir, TreeError> {
        match self.levels.last() {
            Some(level) if self.levels.len() == path.depth() => Ok(&level.dir),
            _ => Err(self.defect(Defect::Parent)),
        }
    }

    /// Returns the object at a path below the root.
    fn find(&self, path: &TreePath) -> Result<Object, TreeError> {
        let found = (|| {
            let mut names = path.names().peekable();
            let mut inner: Option<Dir> = None;
            while let Some(name) = names.next() {
                let dir = match (&inner, self.levels.first()) {
                    (Some(dir), _) => dir,
                    (None, Some(root)) => &root.dir,
                    (None, None) => break,
                };
                if names.peek().is_none() {
                    return dir.object(name);
                }
                inner = Some(dir.open_dir(name)?);
            }
            Err(Errno::ENOENT.into())
        })();
        found.map_err(|error: io::Error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::EXDEV) => {
                TreeError::OtherBase { path: path.clone() }
            }
            _ => self.failed("read", path)(error),
        })
    }

    fn check_entries(&self) -> Result<(), TreeError> {
        if self.totals.entries + self.totals.deletions > self.limits.entries {
            Err(TreeError::Limit {
                what: "entries",
                limit: self.limits.entries,
                path: self.order.path().clone(),
            })
        } else {
            Ok(())
        }
    }

    fn defect(&self, defect: Defect) -> TreeError {
        malformed(defect, self.order.path())
    }

    fn failed(
        &self,
        action: &'static str,
        path: &TreePath,
    ) -> impl FnOnce(io::Error) -> TreeError + use<> {
        let path = path.below(&self.root);
        move |source| {
            TreeError::File(Failed {
                action,
                path,
                source,
            })
        }
    }
}

/// Rejects entries that a stream cannot have. A stream has deletions instead of whiteouts.
fn check(how: How, entry: &TreeEntry) -> Result<(), Defect> {
    let fits = match how {
        How::Whole => true,
        How::Patch => matches!(entry.kind, EntryKind::File { .. }),
        How::Clear => entry.kind.is_directory(),
    };
    let is_plain = entry.stamp.is_none()
        && !matches!(
            entry.kind,
            EntryKind::Whiteout | EntryKind::Directory { opaque: true }
        );
    if fits && is_plain {
        Ok(())
    } else {
        Err(Defect::Field)
    }
}

/// Removes `name` and everything inside it. Does nothing if it does not exist.
fn remove(dir: &Dir, name: &OsStr, depth: usize) -> io::Result<()> {
    match dir.remove(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
            empty(&dir.open_dir(name)?, depth)?;
            dir.remove_dir(name)
        }
        result => result,
    }
}

/// Removes everything in `dir`, which has at most `depth` levels of directories.
fn empty(dir: &Dir, depth: usize) -> io::Result<()> {
    let depth = depth.checked_sub(1).ok_or(Errno::EMFILE)?;
    for name in dir.names()? {
        remove(dir, &name, depth)?;
    }
    Ok(())
}

fn copy(from: &File, to: &File, size_bytes: u64) -> io::Result<()> {
    let (mut from, mut to) = (from, to);
    let mut at = 0;
    while let Some(data) = next_data(from, at, size_bytes)? {
        from.seek(SeekFrom::Start(data.start))?;
        to.seek(SeekFrom::Start(data.start))?;
        io::copy(&mut from.take(data.end - data.start), &mut to)?;
        at = data.end;
    }
    to.set_len(size_bytes)
}

fn punch(file: &File, from: u64, to: u64) -> io::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    match fallocate(file.as_raw_fd(), flags, from as i64, (to - from) as i64) {
        Ok(()) => Ok(()),
        // Zeros are the same contents, but take space.
        Err(Errno::EOPNOTSUPP) => {
            let zeros = [0; 64 << 10];
            let mut at = from;
            while at < to {
                let count = zeros.len().min((to - at) as usize);
                file.write_all_at(&zeros[..count], at)?;
                at += count as u64;
            }
            Ok(())
        }
        Err(errno) => Err(errno.into()),
    }
}
