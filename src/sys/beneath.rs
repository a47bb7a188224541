//! Files below a directory that is held open, reached one name at a time: neither a symbolic link nor `..` nor a mount point leads
//! anywhere else, whatever the tree contains (openat2(2)).
//!
//! A [`Node`] is the object itself, whatever its kind, without opening it: no device is touched and no FIFO waits. What only works
//! on a path goes through the node's magic link in `/proc/self/fd`, which leads to the object even where that is a symbolic link.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::libc::dev_t;
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstatat, mkdirat, mknodat,
    utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, syncfs, unlinkat};

use super::xattr;

/// A directory that is held open.
#[derive(Debug)]
pub struct Dir {
    file: File,
}

/// An object of any kind that is held, not opened (`O_PATH`).
#[derive(Debug)]
pub struct Node {
    file: File,
}

impl Dir {
    /// Opens the directory `path`, following symbolic links: only what is below it is not trusted.
    ///
    /// # Errors
    /// As open(2).
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY)
            .open(path)?;
        Ok(Self { file })
    }

    /// Opens the directory `name` in this one.
    ///
    /// # Errors
    /// `ENOTDIR` or `ELOOP` where it is something else, `EXDEV` where something is mounted on it.
    pub fn open_dir(&self, name: &OsStr) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let file = self.open_beneath(name, flags, ResolveFlag::RESOLVE_NO_XDEV)?;
        Ok(Self { file })
    }

    /// The object `name` in this directory. A mount point is what is mounted there.
    ///
    /// # Errors
    /// `ENOENT` where it does not exist.
    pub fn node(&self, name: &OsStr) -> io::Result<Node> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
        let file = self.open_beneath(name, flags, ResolveFlag::empty())?;
        Ok(Node { file })
    }

    /// What fstatat(2) tells of the object `name` in this directory, without opening it.
    ///
    /// # Errors
    /// As fstatat(2).
    pub fn status(&self, name: &OsStr) -> io::Result<FileStat> {
        Ok(fstatat(
            Some(self.file.as_raw_fd()),
            name,
            AtFlags::AT_SYMLINK_NOFOLLOW,
        )?)
    }

    /// The directory itself.
    ///
    /// # Errors
    /// As dup(2).
    pub fn as_node(&self) -> io::Result<Node> {
        let file = self.file.try_clone()?;
        Ok(Node { file })
    }

    /// The names in the directory without `.` and `..`, in no particular order.
    ///
    /// # Errors
    /// As getdents(2).
    pub fn names(&self) -> io::Result<Vec<OsString>> {
        // Through /proc: a description of its own, whose position nobody else moves.
        std::fs::read_dir(format!("/proc/self/fd/{}", self.fd()))?
            .map(|entry| Ok(entry?.file_name()))
            .collect()
    }

    /// Makes the directory `name`, which only root can enter yet.
    ///
    /// # Errors
    /// As mkdirat(2).
    pub fn make_dir(&self, name: &OsStr) -> io::Result<()> {
        Ok(mkdirat(Some(self.fd()), single(name)?, Mode::S_IRWXU)?)
    }

    /// Makes the regular file `name`, mode 0600, open for reading and writing.
    ///
    /// # Errors
    /// `EEXIST` where something is there, and as openat2(2).
    pub fn make_file(&self, name: &OsStr) -> io::Result<File> {
        let how = OpenHow::new()
            .flags(OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC)
            .mode(Mode::S_IRUSR | Mode::S_IWUSR)
            .resolve(BENEATH);
        let fd = openat2(self.fd(), single(name)?, how)?;
        // SAFETY: the kernel has just given this descriptor to us; nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
    }

    /// Makes the symbolic link `name`.
    ///
    /// # Errors
    /// As symlinkat(2).
    pub fn make_symlink(&self, name: &OsStr, target: &OsStr) -> io::Result<()> {
        Ok(symlinkat(target, Some(self.fd()), single(name)?)?)
    }

    /// Makes a device, FIFO or socket `name`, mode 0600. `format` is the `S_IF...` of its kind; `device` counts for devices only.
    ///
    /// # Errors
    /// As mknodat(2).
    pub fn make_special(&self, name: &OsStr, format: SFlag, device: dev_t) -> io::Result<()> {
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        Ok(mknodat(
            Some(self.fd()),
            single(name)?,
            format,
            mode,
            device,
        )?)
    }

    /// Makes `name` another name of `node`.
    ///
    /// # Errors
    /// As linkat(2).
    pub fn make_link(&self, name: &OsStr, node: &Node) -> io::Result<()> {
        // Follows the magic link only: the object that it leads to is not followed any further.
        linkat(
            None,
            OsStr::new(&node.magic_path()),
            Some(self.fd()),
            single(name)?,
            AtFlags::AT_SYMLINK_FOLLOW,
        )?;
        Ok(())
    }

    /// Removes `name`, which is no directory.
    ///
    /// # Errors
    /// As unlinkat(2).
    pub fn remove(&self, name: &OsStr) -> io::Result<()> {
        Ok(unlinkat(
            Some(self.fd()),
            single(name)?,
            UnlinkatFlags::NoRemoveDir,
        )?)
    }

    /// Removes the empty directory `name`.
    ///
    /// # Errors
    /// As unlinkat(2).
    pub fn remove_dir(&self, name: &OsStr) -> io::Result<()> {
        Ok(unlinkat(
            Some(self.fd()),
            single(name)?,
            UnlinkatFlags::RemoveDir,
        )?)
    }

    /// Gives `from` the name `to`, within this directory, replacing a file of that name.
    ///
    /// # Errors
    /// As renameat(2).
    pub fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        let fd = Some(self.fd());
        Ok(nix::fcntl::renameat(fd, single(from)?, fd, single(to)?)?)
    }

    /// Waits until the whole file system that holds the directory is on its disk.
    ///
    /// # Errors
    /// As syncfs(2).
    pub fn sync_file_system(&self) -> io::Result<()> {
        Ok(syncfs(self.fd())?)
    }

    fn open_beneath(&self, name: &OsStr, flags: OFlag, more: ResolveFlag) -> io::Result<File> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(BENEATH | more);
        let fd = openat2(self.fd(), single(name)?, how)?;
        // SAFETY: the kernel has just given this descriptor to us; nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
    }

    fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

const BENEATH: ResolveFlag = ResolveFlag::RESOLVE_BENEATH
    .union(ResolveFlag::RESOLVE_NO_SYMLINKS)
    .union(ResolveFlag::RESOLVE_NO_MAGICLINKS);

/// Passes a name that is one component of a path. openat2(2) has flags to resolve safely, mkdirat(2) and its like have none:
/// what they are given must not need any resolution.
fn single(name: &OsStr) -> io::Result<&OsStr> {
    match name.as_bytes() {
        b"" | b"." | b".." => Err(Errno::EINVAL.into()),
        bytes if bytes.contains(&b'/') => Err(Errno::EINVAL.into()),
        _ => Ok(name),
    }
}

impl Node {
    /// What the kernel says about it.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }

    /// Where a symbolic link points to.
    ///
    /// # Errors
    /// As readlinkat(2): `ENOENT` where it is no symbolic link.
    pub fn target(&self) -> io::Result<Vec<u8>> {
        Ok(readlinkat(Some(self.file.as_raw_fd()), "")?.into_vec())
    }

    /// Opens a regular file for reading, without a change of its access time where that is allowed (`O_NOATIME`).
    ///
    /// # Errors
    /// As open(2).
    pub fn open_to_read(&self) -> io::Result<File> {
        let open = |flags| {
            OpenOptions::new()
                .read(true)
                .custom_flags(flags)
                .open(self.magic_path())
        };
        match open(libc::O_NOATIME) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => open(0),
            result => result,
        }
    }

    /// Opens a regular file for reading and writing.
    ///
    /// # Errors
    /// As open(2).
    pub fn open_to_write(&self) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.magic_path())
    }

    /// Changes the owner. The kernel drops the set-user-ID and set-group-ID bits and `security.capability`.
    ///
    /// # Errors
    /// As fchownat(2).
    pub fn set_owner(&self, uid: u32, gid: u32) -> io::Result<()> {
        fchownat(
            Some(self.file.as_raw_fd()),
            "",
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
            AtFlags::AT_EMPTY_PATH,
        )?;
        Ok(())
    }

    /// Changes the permission bits of anything but a symbolic link.
    ///
    /// # Errors
    /// As chmod(2).
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        let mode = Mode::from_bits_truncate(mode);
        let follow = FchmodatFlags::FollowSymlink;
        Ok(fchmodat(None, self.magic_link().as_c_str(), mode, follow)?)
    }

    /// Changes the time of the last modification; the access time stays.
    ///
    /// # Errors
    /// As utimensat(2).
    pub fn set_modified(&self, seconds: i64, nanoseconds: u32) -> io::Result<()> {
        let time = TimeSpec::new(seconds, nanoseconds.into());
        let follow = UtimensatFlags::FollowSymlink;
        let link = self.magic_link();
        Ok(utimensat(
            None,
            link.as_c_str(),
            &TimeSpec::UTIME_OMIT,
            &time,
            follow,
        )?)
    }

    /// As [`xattr::names`].
    ///
    /// # Errors
    /// As [`xattr::names`].
    pub fn attribute_names(&self) -> io::Result<Vec<CString>> {
        xattr::names(&self.magic_link())
    }

    /// As [`xattr::get`].
    ///
    /// # Errors
    /// As [`xattr::get`].
    pub fn attribute(&self, name: &CStr) -> io::Result<Vec<u8>> {
        xattr::get(&self.magic_link(), name)
    }

    /// As [`xattr::set`].
    ///
    /// # Errors
    /// As [`xattr::set`].
    pub fn set_attribute(&self, name: &CStr, value: &[u8]) -> io::Result<()> {
        xattr::set(&self.magic_link(), name, value)
    }

    /// As [`xattr::remove`].
    ///
    /// # Errors
    /// As [`xattr::remove`].
    pub fn remove_attribute(&self, name: &CStr) -> io::Result<()> {
        xattr::remove(&self.magic_link(), name)
    }

    fn magic_path(&self) -> String {
        format!("/proc/self/fd/{}", self.file.as_raw_fd())
    }

    fn magic_link(&self) -> CString {
        CString::new(self.magic_path()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    #[test]
    fn names_are_no_paths() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("below/deep")).unwrap();
        let dir = Dir::open(&root.path().join("below")).unwrap();
        for name in ["", ".", "..", "../x", "deep/x", "/", "/tmp"] {
            let name = OsStr::new(name);
            assert!(dir.node(name).is_err(), "{name:?}");
            assert!(dir.open_dir(name).is_err(), "{name:?}");
            assert!(dir.make_dir(name).is_err(), "{name:?}");
            assert!(dir.make_file(name).is_err(), "{name:?}");
            assert!(dir.make_symlink(name, "x".as_ref()).is_err(), "{name:?}");
            assert!(
                dir.make_special(name, SFlag::S_IFIFO, 0).is_err(),
                "{name:?}"
            );
            assert!(
                dir.make_link(name, &dir.as_node().unwrap()).is_err(),
                "{name:?}"
            );
            assert!(dir.remove(name).is_err(), "{name:?}");
            assert!(dir.remove_dir(name).is_err(), "{name:?}");
            assert!(dir.rename(name, "x".as_ref()).is_err(), "{name:?}");
            assert!(dir.rename("deep".as_ref(), name).is_err(), "{name:?}");
        }
        assert_eq!(dir.names().unwrap(), ["deep"]);
    }

    #[test]
    fn a_link_is_never_followed() {
        let root = tempfile::tempdir().unwrap();
        let outside = root.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::create_dir(root.path().join("tree")).unwrap();
        symlink("../outside", root.path().join("tree/link")).unwrap();
        let dir = Dir::open(&root.path().join("tree")).unwrap();
        let name = OsStr::new("link");
        assert!(dir.open_dir(name).is_err());
        assert!(dir.make_file(name).is_err());
        let node = dir.node(name).unwrap();
        assert_eq!(node.target().unwrap(), b"../outside");
        assert!(node.open_to_write().is_err());
        let before = outside.metadata().unwrap();
        node.set_modified(1, 2).unwrap();
        let link = node.metadata().unwrap();
        assert_eq!((link.mtime(), link.mtime_nsec()), (1, 2));
        // A second name of the link itself, not of what it points to.
        dir.make_link("second".as_ref(), &node).unwrap();
        assert_eq!(node.metadata().unwrap().nlink(), 2);
        let after = outside.metadata().unwrap();
        assert_eq!(before.mtime_nsec(), after.mtime_nsec());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }
}
