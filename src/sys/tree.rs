//! Mount trees that are not attached to any directory. They are copied or made, changed, and then
//! moved to their place (open_tree(2), fsopen(2), mount_setattr(2), move_mount(2); Linux 5.12).
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::MsFlags;
use nix::sys::stat::{Mode, SFlag, fstat};

use super::fs_context::FsContext;

/// A detached tree of mounts. Dropping it unmounts them.
#[derive(Debug)]
pub struct Tree(OwnedFd);

/// The mounts of a tree that a change applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The mount at the root of the tree.
    Top,
    /// All mounts of the tree.
    Recursive,
}

impl Scope {
    fn flags(self) -> libc::c_int {
        match self {
            Self::Top => 0,
            Self::Recursive => libc::AT_RECURSIVE,
        }
    }
}

/// A change of mount attributes: bits of `MOUNT_ATTR_*` (mount_setattr(2)). A bit that is in both
/// is set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Attributes to set.
    pub set: u64,
    /// Attributes to clear.
    pub clear: u64,
}

impl Attributes {
    /// Whether nothing changes.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

impl Tree {
    /// Copies the mount at `path`, from this path on, with or without the mounts below. The copies
    /// belong to the peer groups of the originals.
    ///
    /// # Errors
    /// As open_tree(2).
    pub fn copy(path: &Path, scope: Scope) -> nix::Result<Self> {
        let path = text(path)?;
        let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | scope.flags() as libc::c_uint;
        // SAFETY: the path is NUL-terminated and only read.
        let fd =
            unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
        let fd = Errno::result(fd)?;
        // SAFETY: the kernel has just given this descriptor to us; nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }))
    }

    /// Makes a tmpfs with these options (tmpfs(5)). `name` becomes its device in the table of
    /// mounts.
    ///
    /// # Errors
    /// As fsopen(2), fsconfig(2) and fsmount(2); `EINVAL` for an option that tmpfs does not have.
    pub fn tmpfs<'a>(
        name: &str,
        options: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> nix::Result<Self> {
        let string = |text: &str| CString::new(text).map_err(|_| Errno::EINVAL);
        let context = FsContext::open(c"tmpfs")?;
        context.set(c"source", &string(name)?)?;
        for (key, value) in options {
            context.set(&string(key)?, &string(value)?)?;
        }
        context.mount(0).map(Self)
    }

    /// Returns a path to the tree's root for this process, as long as it sees its own `/proc`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }

    /// Returns the device number of its files.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn device(&self) -> nix::Result<u64> {
        fstat(self.0.as_raw_fd()).map(|status| status.st_dev)
    }

    fn is_directory(&self) -> nix::Result<bool> {
        let mode = SFlag::from_bits_truncate(fstat(self.0.as_raw_fd())?.st_mode);
        Ok(mode & SFlag::S_IFMT == SFlag::S_IFDIR)
    }

    /// Changes attributes.
    ///
    /// # Errors
    /// As mount_setattr(2); `EPERM` if an attribute is locked (mount_namespaces(7)).
    pub fn change(&self, attributes: Attributes, scope: Scope) -> nix::Result<()> {
        if attributes.is_empty() {
            return Ok(());
        }
        self.set(scope, attributes, MsFlags::empty(), 0)
    }

    /// Maps the ids of its files through a user namespace.
    ///
    /// # Errors
    /// As mount_setattr(2); `EINVAL` if the file system does not support that, `EPERM` if it has a
    /// mapping already.
    pub fn map_ids(&self, user_namespace: BorrowedFd, scope: Scope) -> nix::Result<()> {
        let attributes = Attributes {
            set: libc::MOUNT_ATTR_IDMAP,
            clear: 0,
        };
        let fd = user_namespace.as_raw_fd() as u64;
        self.set(scope, attributes, MsFlags::empty(), fd)
    }

    /// Sets the propagation of all its mounts: one of `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED` and
    /// `MS_UNBINDABLE`.
    ///
    /// # Errors
    /// As mount_setattr(2).
    pub fn propagate(&self, propagation: MsFlags) -> nix::Result<()> {
        self.set(Scope::Recursive, Attributes::default(), propagation, 0)
    }

    fn set(
        &self,
        scope: Scope,
        attributes: Attributes,
        propagation: MsFlags,
        userns_fd: u64,
    ) -> nix::Result<()> {
        let change = libc::mount_attr {
            attr_set: attributes.set,
            attr_clr: attributes.clear,
            propagation: propagation.bits(),
            userns_fd,
        };
        // SAFETY: the empty path is NUL-terminated, and `change` has the size that is passed. Both
        // outlive the call and are only read.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                self.0.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH | scope.flags(),
                &raw const change,
                size_of::<libc::mount_attr>(),
            )
        };
        Errno::result(result).map(drop)
    }

    /// Makes a directory at `target`, or a file if the tree's root is a file, and attaches the tree
    /// there.
    ///
    /// # Errors
    /// As mkdir(2), open(2) and move_mount(2).
    pub fn attach(self, target: &Path) -> io::Result<()> {
        if self.is_directory()? {
            fs::create_dir(target)?
        } else {
            drop(File::create(target)?)
        }
        self.cover(target)
    }

    /// Attaches the tree at the existing `target`. Symbolic links are followed.
    ///
    /// # Errors
    /// As move_mount(2).
    pub fn cover(self, target: &Path) -> io::Result<()> {
        let target = text(target)?;
        let empty: &CStr = c"";
        // SAFETY: both paths are NUL-terminated and only read.
        let result = unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                self.0.as_raw_fd(),
                empty.as_ptr(),
                libc::AT_FDCWD,
                target.as_ptr(),
                libc::MOVE_MOUNT_F_EMPTY_PATH,
            )
        };
        Ok(Errno::result(result).map(drop)?)
    }
}

/// Changes attributes of the mount at `path`.
///
/// # Errors
/// As mount_setattr(2).
pub fn change_at(path: &Path, attributes: Attributes, scope: Scope) -> nix::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let fd = open(path, flags, Mode::empty())?;
    // SAFETY: the kernel has just given this descriptor to us; nobody else owns it.
    let mount = Tree(unsafe { OwnedFd::from_raw_fd(fd) });
    mount.change(attributes, scope)
}

fn text(path: &Path) -> nix::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_copied_is_known() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        match Tree::copy(dir.path(), Scope::Top) {
            Ok(tree) => {
                assert_eq!(tree.is_directory(), Ok(true));
                let read_only = Attributes {
                    set: libc::MOUNT_ATTR_RDONLY,
                    clear: 0,
                };
                tree.change(read_only, Scope::Recursive).unwrap();
                let file = Tree::copy(&dir.path().join("file"), Scope::Top).unwrap();
                assert_eq!(file.is_directory(), Ok(false));
            }
            // Without root nothing can be mounted.
            Err(errno) => assert_eq!(errno, Errno::EPERM),
        }
    }

    #[test]
    fn a_tmpfs_has_its_options() {
        match Tree::tmpfs("name", [("size", "8192"), ("mode", "750")]) {
            Ok(tree) => {
                let file = tree.path().join("file");
                assert!(fs::write(&file, [1; 16384]).is_err());
                fs::write(&file, [1; 4096]).unwrap();
                let mode = fs::metadata(tree.path()).unwrap().permissions().mode();
                assert_eq!(mode & 0o7777, 0o750);
                let error = Tree::tmpfs("name", [("no-such", "option")]).unwrap_err();
                assert_eq!(error, Errno::EINVAL);
            }
            Err(errno) => assert_eq!(errno, Errno::EPERM),
        }
    }
}
