//! Files below an open directory, reached one name at a time. No symbolic link, `..` or mount point
//! leads anywhere else, even in a hostile tree (openat2(2)).
//!
//! An [`Object`] is a file of any kind that is not opened: no device is touched, and no FIFO
//! blocks. Calls that need a path use the object's magic link in `/proc/self/fd`. That link leads
//! to the object itself, even if the object is a symbolic link.
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

/// An open directory.
#[derive(Debug)]
pub struct Dir {
    file: File,
}

/// A file of any kind, held by an `O_PATH` descriptor.
#[derive(Debug)]
pub struct Object {
    file: File,
}

impl Dir {
    /// Opens the directory `path`, following symbolic links: only the tree below it is not trusted.
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
    /// `ENOTDIR` or `ELOOP` if it is something else, `EXDEV` if something is mounted on it.
    pub fn open_dir(&self, name: &OsStr) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let file = self.open_beneath(name, flags, ResolveFlag::RESOLVE_NO_XDEV)?;
        Ok(Self { file })
    }

    /// Returns the object `name` in this directory. For a mount point it is the root of the mount.
    ///
    /// # Errors
    /// `ENOENT` if it does not exist.
    pub fn object(&self, name: &OsStr) -> io::Result<Object> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
        let file = self.open_beneath(name, flags, ResolveFlag::empty())?;
        Ok(Object { file })
    }

    /// Returns the result of fstatat(2) for the object `name` in this directory, without opening
    /// it.
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

    /// Returns the directory itself as an object.
    ///
    /// # Errors
    /// As dup(2).
    pub fn as_object(&self) -> io::Result<Object> {
        let file = self.file.try_clone()?;
        Ok(Object { file })
    }

    /// Returns the names in the directory without `.` and `..`, in no particular order.
    ///
    /// # Errors
    /// As getdents(2).
    pub fn names(&self) -> io::Result<Vec<OsString>> {
        // Through `/proc`, which opens the directory again: this listing has a read position of its
        // own.
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
    /// `EEXIST` if the name is taken, and as openat2(2).
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

    /// Makes a device, FIFO or socket `name`, mode 0600. `format` is the `S_IF...` of its kind;
    /// `device` counts for devices only.
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

    /// Makes `name` another name of `object`.
    ///
    /// # Errors
    /// As linkat(2).
    pub fn make_link(&self, name: &OsStr, object: &Object) -> io::Result<()> {
        // Follows the magic link only. If the object is a symbolic link, that one is not followed.
        linkat(
            None,
            OsStr::new(&object.magic_path()),
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

    /// Renames `from` to `to` within this directory, replacing a file of that name.
    ///
    /// # Errors
    /// As renameat(2).
    pub fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        let fd = Some(self.fd());
        Ok(nix::fcntl::renameat(fd, single(from)?, fd, single(to)?)?)
    }

    /// Waits until the whole file system of the directory is on its disk.
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

/// Passes a name that is one component of a path. openat2(2) has flags for safe resolution, but
/// mkdirat(2) and similar calls have none, so their names must not need any resolution.
fn single(name: &OsStr) -> io::Result<&OsStr> {
    match name.as_bytes() {
        b"" | b"." | b".." => Err(Errno::EINVAL.into()),
        bytes if bytes.contains(&b'/') => Err(Errno::EINVAL.into()),
        _ => Ok(name),
    }
}

impl Object {
    /// Returns the result of fstat(2).
    ///
    /// # Errors
    /// As fstat(2).
    pub fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }

    /// Returns the target of a symbolic link.
    ///
    /// # Errors
    /// As readlinkat(2): `ENOENT` if it is no symbolic link.
    pub fn target(&self) -> io::Result<Vec<u8>> {
        Ok(readlinkat(Some(self.file.as_raw_fd()), "")?.into_vec())
    }

    /// Opens a regular file for reading. Its access time does not change if the kernel allows that
    /// (`O_NOATIME`).
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

    /// Changes the owner. The kernel drops the set-user-ID and set-group-ID bits and
    /// `security.capability`.
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

    /// Changes the time of the last modification, but not the access time.
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

    /// Returns the names of all attributes, as [`xattr::names`].
    ///
    /// # Errors
    /// As [`xattr::names`].
    pub fn attribute_names(&self) -> io::Result<Vec<CString>> {
        xattr::names(&self.magic_link())
    }

    /// Returns the value of an attribute, as [`xattr::get`].
    ///
    /// # Errors
    /// As [`xattr::get`].
    pub fn attribute(&self, name: &CStr) -> io::Result<Vec<u8>> {
        xattr::get(&self.magic_link(), name)
    }

    /// Creates or replaces an attribute, as [`xattr::set`].
    ///
    /// # Errors
    /// As [`xattr::set`].
    pub fn set_attribute(&self, name: &CStr, value: &[u8]) -> io::Result<()> {
        xattr::set(&self.magic_link(), name, value)
    }

    /// Removes an attribute, as [`xattr::remove`].
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
            assert!(dir.object(name).is_err(), "{name:?}");
            assert!(dir.open_dir(name).is_err(), "{name:?}");
            assert!(dir.make_dir(name).is_err(), "{name:?}");
            assert!(dir.make_file(name).is_err(), "{name:?}");
            assert!(dir.make_symlink(name, "x".as_ref()).is_err(), "{name:?}");
            assert!(
                dir.make_special(name, SFlag::S_IFIFO, 0).is_err(),
                "{name:?}"
            );
            assert!(
                dir.make_link(name, &dir.as_object().unwrap()).is_err(),
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
        let object = dir.object(name).unwrap();
        assert_eq!(object.target().unwrap(), b"../outside");
        assert!(object.open_to_write().is_err());
        let before = outside.metadata().unwrap();
        object.set_modified(1, 2).unwrap();
        let link = object.metadata().unwrap();
        assert_eq!((link.mtime(), link.mtime_nsec()), (1, 2));
        // A second name of the link itself, not of its target.
        dir.make_link("second".as_ref(), &object).unwrap();
        assert_eq!(object.metadata().unwrap().nlink(), 2);
        let after = outside.metadata().unwrap();
        assert_eq!(before.mtime_nsec(), after.mtime_nsec());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }
}
