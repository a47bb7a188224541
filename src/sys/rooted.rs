//! Paths inside a root directory whose contents are not trusted. Symbolic links never lead out of
//! it (openat2(2), `RESOLVE_IN_ROOT`).
#![allow(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{Mode, mkdirat};

/// The kind of file to make at the end of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A directory, mode 0755.
    Directory,
    /// An empty file, mode 0644.
    File,
}

/// An open root directory.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    path: PathBuf,
}

/// An open directory. Its entries stay reachable if the names on the way to it change.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
}

impl Directory {
    /// Returns a path to the entry `name`. It is valid in this process and as long as `self` lives.
    /// The entry itself may be a symbolic link.
    #[must_use]
    pub fn entry(&self, name: &OsStr) -> PathBuf {
        Path::new("/proc/self/fd")
            .join(self.fd.as_raw_fd().to_string())
            .join(name)
    }
}

impl Root {
    /// Opens the directory `path`.
    ///
    /// # Errors
    /// As open(2).
    pub fn open(path: &Path) -> io::Result<Self> {
        let fd = open(
            path,
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        // SAFETY: the kernel has just given this descriptor to us; nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let path = link(&fd)?;
        Ok(Self { fd, path })
    }

    /// Resolves `path` inside the root. The result is an absolute path below the root without
    /// symbolic links.
    ///
    /// # Errors
    /// `ENOENT` if it does not exist.
    pub fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        let found = link(&self.look_up(path)?)?;
        let below = found.strip_prefix(&self.path).map_err(|_| Errno::EXDEV)?;
        Ok(Path::new("/").join(below))
    }

    /// As [`Self::resolve`], also for paths that do not exist: links on the way are followed, and
    /// missing parts keep their names.
    ///
    /// # Errors
    /// `ELOOP`, and other errors than that something is missing.
    pub fn resolve_missing(&self, path: &Path) -> io::Result<PathBuf> {
        /// The limit of path_resolution(7).
        const MOST_LINKS: usize = 40;
        let mut links = 0;
        let mut found = PathBuf::from("/");
        let mut rest: Vec<OsString> = names(path).rev().collect();
        while let Some(name) = rest.pop() {
            if name == ".." {
                found.pop();
                continue;
            }
            let parent = self.directory(&found);
            let target = parent.and_then(|parent| std::fs::read_link(parent.entry(&name)));
            match target.as_ref().map_err(io::Error::raw_os_error) {
                Ok(target) => {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(Errno::ELOOP.into());
                    }
                    if target.is_absolute() {
                        found = PathBuf::from("/");
                    }
                    rest.extend(names(target).rev());
                }
                // The name is no link, or does not exist.
                Err(Some(libc::EINVAL | libc::ENOENT | libc::ENOTDIR)) => found.push(name),
                Err(_) => return Err(target.unwrap_err()),
            }
        }
        Ok(found)
    }

    /// Opens the directory `path`.
    ///
    /// # Errors
    /// As open(2).
    pub fn directory(&self, path: &Path) -> io::Result<Directory> {
        Ok(Directory {
            fd: self.look_up(path)?,
        })
    }

    /// Makes `path` and the directories on the way to it, if they are missing.
    ///
    /// # Errors
    /// As mkdir(2) and open(2).
    pub fn make(&self, path: &Path, kind: FileKind) -> io::Result<()> {
        let mut made = PathBuf::new();
        let names: Vec<_> = path
            .components()
            .filter_map(|component| match component {
                Component::Normal(name) => Some(name),
                _ => None,
            })
            .collect();
        for (index, name) in names.iter().enumerate() {
            let parent = self.look_up(&made)?;
            made.push(name);
            match self.look_up(&made) {
                Ok(_) => continue,
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
            let parent = parent.as_raw_fd();
            if index + 1 < names.len() || kind == FileKind::Directory {
                mkdirat(Some(parent), *name, Mode::from_bits_truncate(0o755))?;
            } else {
                let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
                let fd = openat(Some(parent), *name, flags, Mode::from_bits_truncate(0o644))?;
                // SAFETY: the kernel has just given this descriptor to us; it is closed at once.
                drop(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        Ok(())
    }

    fn look_up(&self, path: &Path) -> nix::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() {
            Path::new("/")
        } else {
            path
        };
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT);
        let fd = openat2(self.fd.as_raw_fd(), path, how)?;
        // SAFETY: the kernel has just given this descriptor to us; nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// The components of a path, ".." included.
fn names(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}

fn link(fd: &OwnedFd) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_do_not_lead_out() {
        let outside = tempfile::tempdir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("absolute")).unwrap();
        symlink("../../../..", dir.path().join("up")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        // An absolute link starts at the root: its target does not exist there.
        assert!(
            root.make(Path::new("/absolute/x"), FileKind::Directory)
                .is_err()
        );
        root.make(Path::new("/up/x/y"), FileKind::File).unwrap();
        assert!(dir.path().join("x/y").is_file());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn links_to_what_is_missing_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        symlink("/run/none/hosts", dir.path().join("etc/hosts")).unwrap();
        symlink("../../../up", dir.path().join("etc/dangling")).unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        for (path, settled) in [
            ("/etc/hosts", "/run/none/hosts"),
            ("/etc/dangling/below", "/up/below"),
            ("none/../etc/new", "/etc/new"),
            ("../../x", "/x"),
        ] {
            let found = root.resolve_missing(Path::new(path)).unwrap();
            assert_eq!(found, Path::new(settled));
        }
        assert!(root.resolve_missing(Path::new("/loop/x")).is_err());
    }

    #[test]
    fn what_is_there_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("run/a")).unwrap();
        symlink("/run", dir.path().join("var-run")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        root.make(Path::new("/var-run/a/b"), FileKind::Directory)
            .unwrap();
        root.make(Path::new("/var-run/a/b"), FileKind::Directory)
            .unwrap();
        assert_eq!(
            root.resolve(Path::new("/var-run/a/b")).unwrap(),
            Path::new("/run/a/b")
        );
        assert!(root.resolve(Path::new("/none")).is_err());
    }
}
