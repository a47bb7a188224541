//! Names of a container's Unix sockets. A restore on the same file system takes them away.
//!
//! A restore binds each socket anew. To do so it first removes the file that has the socket's name
//! (`unlink_sk` in criu/sk-unix.c, CRIU 4.2). If both ends share the root file system or a
//! directory that is mounted into the container, that file belongs to the source's socket. If the
//! restored container were then destroyed and the source's resumed, clients would find the socket
//! of a container that is gone.
//!
//! A socket can be reached as long as its file has any name. So while the container is frozen, and
//! before a restore can begin, the source renames each of these files and makes a hard link in its
//! old place. The restore removes that link. Afterwards the file gets its name back, or loses its
//! other name if the container has gone. The source need not know whether the ends share the file
//! system.
//!
//! The source moves the file aside and not the link, because the kernel remembers the name to which
//! a socket was bound and follows a rename of that file. CRIU takes a socket for deleted if the
//! name to which it was bound was removed, even if its file has other names. Such a socket would
//! have no name after the next migration.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::{AccessFlags, Pid, access};
use oci_spec::runtime::{Mount, Spec};

use super::record::socket_name::SocketName;
use super::wire::finding::Finding;
use super::wire::id::{MigrationId, Side};
use crate::migrate::limits::SOCKET_NAME_PAUSE_DUR;
use crate::runtime::container::Container;
use crate::runtime::linux::cgroup::Cgroup;
use crate::sys::rooted::{Directory, Root};
use crate::sys::unix_file::{FileId, bound_files};

/// Prefix of the names under which the sockets' files are put aside.
const PREFIX: &str = ".rcm-";

impl Unkept {
    /// Returns the finding for the operator.
    #[must_use]
    pub fn finding(&self) -> Finding {
        Finding::warning(
            Side::Source,
            format!(
                "rcm cannot keep the name of the Unix socket {}: if both hosts share its file and the migration fails, clients can no longer connect to it: {}",
                self.path.display(),
                self.why
            ),
            "put the socket into a directory that this host can write to, or restart its server after a failed migration",
        )
    }
}

/// Names of the sockets of one container.
#[derive(Debug, Default)]
pub struct SocketNames {
    names: Vec<SocketName>,
    /// Control group of the container; `None` if there are no names.
    cgroup: Option<Cgroup>,
    /// Number of times that a restore took a name and it was put back.
    taken: usize,
}

/// A name that cannot be put back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unkept {
    /// Path of the socket, as the container sees it.
    pub path: PathBuf,
    /// Cause.
    pub why: String,
}

impl SocketNames {
    /// Finds the names that can be kept, and those that cannot. Sockets on file systems that belong
    /// to the container alone are in neither list.
    #[must_use]
    pub fn find(container: &Container, spec: &Spec, migration: MigrationId) -> (Self, Vec<Unkept>) {
        let cgroup = container.cgroup();
        let (Some(init), Ok(processes)) = (container.init_pid(), cgroup.pids()) else {
            return (Self::default(), Vec::new());
        };
        let (mut names, mut unkept) = (Vec::new(), Vec::new());
        let files = bound_files(&processes);
        let trees = if files.is_empty() {
            Vec::new()
        } else {
            trees(container, spec, init)
        };
        for file in files.iter().filter(|file| !file.is_deleted) {
            let Some((tree, path)) = place(&trees, &file.path) else {
                continue;
            };
            let name = SocketName {
                tree,
                path,
                aside: format!("{PREFIX}{migration}-{}", names.len()),
            };
            match name.check(file.id) {
                Ok(()) => names.push(name),
                Err(error) => unkept.push(Unkept {
                    path: file.path.clone(),
                    why: error.to_string(),
                }),
            }
        }
        let cgroup = (!names.is_empty()).then_some(cgroup);
        let names = Self {
            names,
            cgroup,
            taken: 0,
        };
        (names, unkept)
    }

    /// Takes over the names that a process has put aside which has died since.
    #[must_use]
    pub fn adopt(container: &Container, names: Vec<SocketName>) -> Self {
        Self {
            names,
            cgroup: Some(container.cgroup()),
            taken: 0,
        }
    }

    /// Returns all names.
    #[must_use]
    pub fn list(&self) -> &[SocketName] {
        &self.names
    }

    /// Puts the files aside. Returns the names for which that was not possible. For a moment a
    /// client finds no file.
    #[must_use]
    pub fn keep(&self) -> Vec<Unkept> {
        let keep = |name: &SocketName| {
            let error = name.keep().err()?;
            Some(Unkept {
                path: name.path.clone(),
                why: error.to_string(),
            })
        };
        self.names.iter().filter_map(keep).collect()
    }

    /// Makes the names lead to the container's sockets again if they lead to another file, or to
    /// none. Changes that the container has made itself meanwhile stay. May be repeated until
    /// [`Self::settle`].
    pub fn put_back(&mut self) {
        let own = self.own_files();
        let taken = |name: &&SocketName| {
            name.put_back(&own)
                .unwrap_or_else(|error| name.warn(&error))
        };
        self.taken += self.names.iter().filter(taken).count();
    }

    /// Like [`Self::put_back`], but also removes the second names. A restore that may still be
    /// under way takes each name once. This waits until it has, for at most `limit_dur`.
    pub fn settle(mut self, limit_dur: Duration) {
        let deadline = Instant::now() + limit_dur;
        while self.taken < self.names.len() && Instant::now() < deadline {
            self.put_back();
            // There is no descriptor to wait for: the restore is on another host, and inotify(7)
            // does not report changes that another host makes to a shared file system.
            thread::sleep(SOCKET_NAME_PAUSE_DUR);
        }
        let own = self.own_files();
        for name in &self.names {
            if let Err(error) = name.settle(&own) {
                name.warn(&error);
            }
        }
    }

    fn own_files(&self) -> HashSet<FileId> {
        let processes = self.cgroup.as_ref().and_then(|cgroup| cgroup.pids().ok());
        let files = bound_files(&processes.unwrap_or_default());
        files.into_iter().map(|file| file.id).collect()
    }
}

/// Removes the files that were put aside for a container that has gone.
pub fn forget(names: &[SocketName]) {
    for name in names {
        if let Err(error) = name.forget() {
            name.warn(&error);
        }
    }
}

impl SocketName {
    fn directory(&self) -> io::Result<Directory> {
        let parent = self.path.parent().unwrap_or(Path::new(""));
        Root::open(&self.tree)?.directory(parent)
    }

    fn own(&self, directory: &Directory) -> PathBuf {
        directory.entry(self.path.file_name().unwrap_or_default())
    }

    /// Checks that the socket's file can be reached by this name, and that this host can make
    /// another file beside it.
    fn check(&self, id: FileId) -> io::Result<()> {
        let directory = self.directory()?;
        match fs::symlink_metadata(self.own(&directory)) {
            Ok(meta) if FileId::of(&meta) == id => {}
            Ok(_) => return Err(io::Error::other("this host sees another file there")),
            Err(error) => return Err(error),
        }
        access(&directory.entry(".".as_ref()), AccessFlags::W_OK)?;
        Ok(())
    }

    fn keep(&self) -> io::Result<()> {
        let directory = self.directory()?;
        let (own, aside) = (self.own(&directory), directory.entry(self.aside.as_ref()));
        // The file and not a link is moved: the socket stays bound to the file that is renamed.
        fs::rename(&own, &aside)?;
        fs::hard_link(&aside, &own).inspect_err(|_| {
            // Restores the name. The error that is returned is the cause, so an error here is not
            // reported.
            let _ = fs::rename(&aside, &own);
        })
    }

    /// Finds out where the name leads, seen from the container's sockets.
    fn look(&self, directory: &Directory, own_files: &HashSet<FileId>) -> io::Result<Leads> {
        let kept = match fs::symlink_metadata(directory.entry(self.aside.as_ref())) {
            Ok(meta) => FileId::of(&meta),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Leads::Away),
            Err(error) => return Err(error),
        };
        let current = fs::symlink_metadata(self.own(directory)).ok();
        Ok(match current {
            // The container has closed that socket, and needs no name for it.
            _ if !own_files.contains(&kept) => Leads::Away,
            Some(meta) if FileId::of(&meta) == kept => Leads::Home,
            // The container has bound another socket there.
            Some(meta) if own_files.contains(&FileId::of(&meta)) => Leads::Away,
            // No restore makes such a file.
            Some(meta) if !meta.file_type().is_socket() => Leads::Away,
            _ => Leads::Astray,
        })
    }

    /// Returns whether the name had to be put back. The change is atomic. The file stays aside,
    /// because the destination may take the name again.
    fn put_back(&self, own_files: &HashSet<FileId>) -> io::Result<bool> {
        let directory = self.directory()?;
        let astray = self.look(&directory, own_files)? == Leads::Astray;
        if astray {
            let spare = directory.entry(self.spare().as_ref());
            // A link under a third name, then a rename: so clients always find a file.
            remove(&spare)?;
            fs::hard_link(directory.entry(self.aside.as_ref()), &spare)?;
            fs::rename(&spare, self.own(&directory))?;
        }
        Ok(astray)
    }

    fn settle(&self, own_files: &HashSet<FileId>) -> io::Result<()> {
        let directory = self.directory()?;
        let (own, aside) = (self.own(&directory), directory.entry(self.aside.as_ref()));
        match self.look(&directory, own_files)? {
            Leads::Away => return self.forget(),
            // The link has to go first: rename(2) does nothing between two names of one file.
            Leads::Home => remove(&own)?,
            Leads::Astray => {}
        }
        fs::rename(aside, own)
    }

    fn forget(&self) -> io::Result<()> {
        let directory = match self.directory() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            directory => directory?,
        };
        // The file that is aside goes last. If this fails before, it can be repeated.
        remove(&directory.entry(self.spare().as_ref()))?;
        remove(&directory.entry(self.aside.as_ref()))
    }

    fn spare(&self) -> String {
        format!("{}.new", self.aside)
    }

    fn warn(&self, error: &io::Error) -> bool {
        tracing::error!(
            "clients may not find the Unix socket {} of the container: its file may be named {} in the same directory: {error}",
            self.tree.join(&self.path).display(),
            self.aside
        );
        false
    }
}

/// Target of the name of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leads {
    /// To the file that is aside.
    Home,
    /// To the file of a restore, or nowhere because a restore has removed it.
    Astray,
    /// To a file that the container wants there. Or the container has closed its socket.
    Away,
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Returns the container's mount points, each with the directory of this host that is mounted
/// there, if there is one.
fn trees(container: &Container, spec: &Spec, init: Pid) -> Vec<(PathBuf, Option<PathBuf>)> {
    let view = Root::open(Path::new(&format!("/proc/{init}/root"))).ok();
    let mounted = |mount: &Mount| {
        let point = mount.destination();
        // Symbolic links in the container may lead to it.
        let resolved = view.as_ref().and_then(|view| view.resolve(point).ok());
        let source = (mount.source().as_ref()).filter(|_| is_bind(mount));
        (
            resolved.unwrap_or_else(|| point.clone()),
            source.map(|source| container.bundle().join(source)),
        )
    };
    let mut trees = vec![("/".into(), Some(container.rootfs().to_path_buf()))];
    trees.extend(spec.mounts().iter().flatten().map(mounted));
    trees
}

/// Whether the mount is a bind mount.
pub(super) fn is_bind(mount: &Mount) -> bool {
    let mut options = mount.options().iter().flatten();
    mount.typ().as_deref() == Some("bind")
        || options.any(|option| option == "bind" || option == "rbind")
}

/// Returns the directory of this host that contains `path`, and the path below it.
fn place(trees: &[(PathBuf, Option<PathBuf>)], path: &Path) -> Option<(PathBuf, PathBuf)> {
    let (point, tree) = (trees.iter().rev())
        .filter(|(point, _)| path.starts_with(point))
        // Of two mounts at the same place the later one covers the earlier.
        .reduce(|best, next| {
            let depth = |point: &Path| point.components().count();
            if depth(&next.0) > depth(&best.0) {
                next
            } else {
                best
            }
        })?;
    let below = path.strip_prefix(point).ok()?;
    // The journal is text, so other paths cannot be recorded.
    below.to_str()?;
    Some((tree.clone()?, below.to_path_buf()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    struct Scene {
        _dir: tempfile::TempDir,
        path: PathBuf,
        name: SocketName,
    }

    impl Scene {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("run")).unwrap();
            Self {
                path: dir.path().join("run/web"),
                name: SocketName {
                    tree: dir.path().to_path_buf(),
                    path: "run/web".into(),
                    aside: ".rcm-0-0".into(),
                },
                _dir: dir,
            }
        }

        fn own(&self) -> HashSet<FileId> {
            let files = bound_files(&[Pid::this()]);
            files.into_iter().map(|file| file.id).collect()
        }

        /// Binds the socket anew, as CRIU does.
        fn rebind(&self) -> UnixListener {
            fs::remove_file(&self.path).unwrap();
            UnixListener::bind(&self.path).unwrap()
        }

        fn put_back(&self) -> bool {
            self.name.put_back(&self.own()).unwrap()
        }

        /// Asserts that nothing is left beside it.
        fn settle(&self) {
            self.name.settle(&self.own()).unwrap();
            let left = fs::read_dir(self.path.parent().unwrap()).unwrap();
            assert!(left.count() <= 1);
        }
    }

    #[test]
    fn a_name_is_put_back_as_often_as_it_is_lost() {
        let scene = Scene::new();
        let _own = UnixListener::bind(&scene.path).unwrap();
        for losses in 0..3 {
            scene.name.keep().unwrap();
            UnixStream::connect(&scene.path).unwrap();
            assert!(!scene.put_back());
            for _ in 0..losses {
                drop(scene.rebind());
                assert!(UnixStream::connect(&scene.path).is_err());
                assert!(scene.put_back());
                UnixStream::connect(&scene.path).unwrap();
            }
            scene.settle();
            UnixStream::connect(&scene.path).unwrap();
            // CRIU must not take it for a deleted one.
            let files = bound_files(&[Pid::this()]);
            let mut own = files.iter().filter(|file| file.path == scene.path);
            assert!(own.any(|file| !file.is_deleted), "{files:?}");
        }
        scene.name.keep().unwrap();
        fs::remove_file(&scene.path).unwrap();
        scene.settle();
        UnixStream::connect(&scene.path).unwrap();
    }

    #[test]
    fn changes_of_the_container_itself_stay() {
        let scene = Scene::new();
        let own = UnixListener::bind(&scene.path).unwrap();
        scene.name.keep().unwrap();
        let newer = scene.rebind();
        assert!(!scene.put_back());
        drop(own);
        fs::remove_file(&scene.path).unwrap();
        assert!(!scene.put_back());
        scene.settle();
        assert!(!scene.path.exists());
        drop(newer);
    }

    #[test]
    fn the_innermost_mount_counts() {
        let tree = |point: &str, tree: Option<&str>| (point.into(), tree.map(PathBuf::from));
        let trees = [
            tree("/", Some("/rootfs")),
            tree("/run", None),
            tree("/run/shared", Some("/srv")),
            tree("/data", Some("/one")),
            tree("/data", Some("/other")),
        ];
        let place = |path: &str| place(&trees, Path::new(path));
        let found = |tree: &str, path: &str| Some((tree.into(), path.into()));
        assert_eq!(place("/var/x"), found("/rootfs", "var/x"));
        assert_eq!(place("/run/x"), None);
        assert_eq!(place("/run/shared/x"), found("/srv", "x"));
        assert_eq!(place("/runner"), found("/rootfs", "runner"));
        assert_eq!(place("/data/x"), found("/other", "x"));
    }
}
