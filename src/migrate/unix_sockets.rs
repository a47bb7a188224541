//! The names of a container's Unix sockets, which a restore on the same file system takes from it.
//!
//! A restore binds each socket anew, and to do so it first removes the file that has its name (criu/sk-unix.c, `unlink_sk`). Where both ends share the
//! root file system or a directory that is mounted into the container, that is the name of the source's socket: were the restored container
//! destroyed and the source's to run on, clients would find the socket of a container that is gone.
//!
//! A socket can be reached as long as its file has any name. So while the container stands still, and before a restore can begin, the source renames each of
//! these files, and makes a hard link where it was. The restore removes that link; the file itself gets its name back, or, where the container has gone,
//! loses the other one. Whether the ends do share the file system need not be known.
//!
//! The file and not the link is what is put aside, because the kernel remembers by which name a socket was bound, and it follows a rename of that one. A
//! socket whose own name was removed counts as deleted for CRIU, whatever other names its file has, and would come without any after the next migration.

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
use crate::runtime::container::Container;
use crate::runtime::linux::cgroup::Cgroup;
use crate::sys::rooted::{Directory, Root};
use crate::sys::unix_file::{FileId, bound_files};

/// How the names begin under which the sockets' files are put aside.
const PREFIX: &str = ".rcm-";
/// How often it is looked whether a restore that cannot be seen has taken a name.
pub const PAUSE_DUR: Duration = Duration::from_millis(50);
/// How long a restore goes on to take names whose rcm has died: CRIU ends at its next report.
pub const ORPHAN_LIMIT_DUR: Duration = Duration::from_secs(5);

impl Unkept {
    /// For the operator.
    #[must_use]
    pub fn finding(&self) -> Finding {
        Finding::warning(
            Side::Source,
            format!(
                "the Unix socket {} is not to be found by its name any more if the migration fails and both hosts have the same file there: {}",
                self.path.display(),
                self.why
            ),
            "have it in a directory that this host can write to, or restart what listens there then",
        )
    }
}

/// The names of one container.
#[derive(Debug, Default)]
pub struct Names {
    names: Vec<SocketName>,
    /// Whose sockets they are; none where there are no names.
    cgroup: Option<Cgroup>,
    /// How often one was taken and put back.
    taken: usize,
}

/// A name that could not be put back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unkept {
    /// Of the socket, as the container sees it.
    pub path: PathBuf,
    /// Why.
    pub why: String,
}

impl Names {
    /// Finds the names that can be kept, and those that cannot. Sockets on file systems that the container has for itself are neither.
    #[must_use]
    pub fn find(container: &Container, spec: &Spec, migration: MigrationId) -> (Self, Vec<Unkept>) {
        let cgroup = container.cgroup();
        let (Some(init), Ok(processes)) = (container.init_pid(), cgroup.pids()) else {
            return (Self::default(), Vec::new());
        };
        let (mut names, mut unkept) = (Vec::new(), Vec::new());
        let files = bound_files(&processes);
        let trees = match files.is_empty() {
            true => Vec::new(),
            false => trees(container, spec, init),
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

    /// Those that a process which has died has kept.
    #[must_use]
    pub fn adopt(container: &Container, names: Vec<SocketName>) -> Self {
        Self {
            names,
            cgroup: Some(container.cgroup()),
            taken: 0,
        }
    }

    /// All of them.
    #[must_use]
    pub fn list(&self) -> &[SocketName] {
        &self.names
    }

    /// Puts the files aside. Returns for which that was not possible. For moments a client finds no file.
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

    /// Lets the names lead to the container's sockets again that lead to something else, or nowhere. What the container has done itself meanwhile stays. May
    /// be repeated until [`Self::settle`].
    pub fn put_back(&mut self) {
        let own = self.own_files();
        let taken = |name: &&SocketName| {
            name.put_back(&own)
                .unwrap_or_else(|error| name.warn(&error))
        };
        self.taken += self.names.iter().filter(taken).count();
    }

    /// As [`Self::put_back`], and the files are not aside any more. A restore that may be under way unheard takes each name once: until it has, it is waited
    /// for, for at most `limit_dur`.
    pub fn settle(mut self, limit_dur: Duration) {
        let deadline = Instant::now() + limit_dur;
        while self.taken < self.names.len() && Instant::now() < deadline {
            self.put_back();
            // There is no descriptor to wait for: the restore is on another host, and inotify(7)
            // does not see what that does to a file system that both share.
            thread::sleep(PAUSE_DUR);
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

/// Removes what was put aside of a container that has gone.
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

    /// Whether the socket's file can be reached by this name, and another one be made beside it.
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
        fs::rename(&own, &aside)?;
        fs::hard_link(&aside, &own).inspect_err(|_| {
            // As it was; what fails here is said by the error that comes before it.
            let _ = fs::rename(&aside, &own);
        })
    }

    /// Where the name leads, seen from the container's sockets.
    fn look(&self, directory: &Directory, own_files: &HashSet<FileId>) -> io::Result<Leads> {
        let kept = match fs::symlink_metadata(directory.entry(self.aside.as_ref())) {
            Ok(meta) => FileId::of(&meta),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Leads::Away),
            Err(error) => return Err(error),
        };
        let current = fs::symlink_metadata(self.own(directory)).ok();
        Ok(match current {
            // It closed that one, and needs no name for it.
            _ if !own_files.contains(&kept) => Leads::Away,
            Some(meta) if FileId::of(&meta) == kept => Leads::Home,
            // It has bound another one there.
            Some(meta) if own_files.contains(&FileId::of(&meta)) => Leads::Away,
            // No restore makes such a file.
            Some(meta) if !meta.file_type().is_socket() => Leads::Away,
            _ => Leads::Astray,
        })
    }

    /// Returns whether that was necessary. Atomic, and the file itself stays aside: the destination may take the name again.
    fn put_back(&self, own_files: &HashSet<FileId>) -> io::Result<bool> {
        let directory = self.directory()?;
        let astray = self.look(&directory, own_files)? == Leads::Astray;
        if astray {
            let spare = directory.entry(self.spare().as_ref());
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
            // The link: rename(2) does nothing between two names of one file.
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
        remove(&directory.entry(self.spare().as_ref()))?;
        remove(&directory.entry(self.aside.as_ref()))
    }

    fn spare(&self) -> String {
        format!("{}.new", self.aside)
    }

    fn warn(&self, error: &io::Error) -> bool {
        tracing::error!(
            "the Unix socket {} of the container may have lost its name to {} beside it: {error}",
            self.tree.join(&self.path).display(),
            self.aside
        );
        false
    }
}

/// Where the name of a socket leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leads {
    /// To the file that is aside.
    Home,
    /// To what a restore has made there, or nowhere because one has removed it.
    Astray,
    /// To something that the container wants there, or its socket is closed.
    Away,
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Where the container sees what: its mount points, and the directory of this host that is mounted there, if one is.
fn trees(container: &Container, spec: &Spec, init: Pid) -> Vec<(PathBuf, Option<PathBuf>)> {
    let view = Root::open(Path::new(&format!("/proc/{init}/root"))).ok();
    let mounted = |mount: &Mount| {
        let point = mount.destination();
        // Links of the container may lead to it.
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

/// Whether a mount shows a directory of the host.
pub(super) fn is_bind(mount: &Mount) -> bool {
    let mut options = mount.options().iter().flatten();
    mount.typ().as_deref() == Some("bind")
        || options.any(|option| option == "bind" || option == "rbind")
}

/// The directory of this host that has `path`, and where below it.
fn place(trees: &[(PathBuf, Option<PathBuf>)], path: &Path) -> Option<(PathBuf, PathBuf)> {
    let (point, tree) = (trees.iter().rev())
        .filter(|(point, _)| path.starts_with(point))
        // Of two at the same place the later one covers the earlier.
        .reduce(|best, next| {
            let depth = |point: &Path| point.components().count();
            match depth(&next.0) > depth(&best.0) {
                true => next,
                false => best,
            }
        })?;
    let below = path.strip_prefix(point).ok()?;
    // The journal has text only.
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

        /// As CRIU does.
        fn rebind(&self) -> UnixListener {
            fs::remove_file(&self.path).unwrap();
            UnixListener::bind(&self.path).unwrap()
        }

        fn put_back(&self) -> bool {
            self.name.put_back(&self.own()).unwrap()
        }

        /// Nothing is left beside it.
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
            // What CRIU takes for a deleted one.
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
    fn what_the_container_does_itself_stays() {
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
