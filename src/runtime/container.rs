//! Container that rcm knows: its record on disk and its state at this moment.
//!
//! The directory `<root>/<id>`, accessible for root only, holds
//!
//! | file | contents |
//! | --- | --- |
//! | `state.json` | the [`Record`], replaced atomically |
//! | `config.json` | the bundle's OCI spec at the time of the creation |
//! | `criu.json` | the last [CRIU](super::process::criu_process) at work on the container |
//! | `notify.sock` | the socket that `start` writes to; exists until the start |
//!
//! The [`Status`] is never stored. It follows from three facts: whether the first process executes,
//! the freezer's state, and whether the socket exists. So it is right no matter which process was
//! killed.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use libcontainer::notify_socket::NOTIFY_FILE;
use nix::unistd::Pid;
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::linux::cgroup::Cgroup;
pub use super::status::Status;
use crate::sys;
use crate::sys::process::{Liveness, ProcessId};

const RECORD_FILE: &str = "state.json";
const SPEC_FILE: &str = "config.json";

/// Properties of a container that rcm stores.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Version of the OCI runtime specification in `config.json`.
    pub oci_version: String,
    /// Name of the container, unique below its root.
    pub id: String,
    /// First process of the container; `None` while it is being created.
    pub init: Option<ProcessId>,
    /// Process that creates the container. It tells a creation in progress from one that died.
    pub creator: ProcessId,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// Absolute path of the root file system on the host.
    pub rootfs: PathBuf,
    /// Time of the creation.
    pub created: DateTime<Utc>,
    /// Annotations of the spec.
    #[serde(default, skip_serializing_if = "HashMap::is_empty")]
    pub annotations: HashMap<String, String>,
    /// Whether systemd manages the cgroup.
    pub systemd_cgroup: bool,
    /// Path of the cgroup for `libcgroups`' manager (`linux.cgroupsPath` or its default).
    pub cgroup_path: PathBuf,
    /// Whether rcm skips changes to cgroups that the user is not allowed to make (`--rootless`).
    #[serde(default)]
    pub rootless: bool,
    /// Directories of the cgroup by controller; a single one with an empty key on cgroup v2.
    pub cgroup_paths: BTreeMap<String, PathBuf>,
    /// Targets of the first process's stdin, stdout and stderr, as links in `/proc/PID/fd`. A
    /// restore replaces pipes and files from outside the container by these names.
    #[serde(default)]
    pub descriptors: Vec<String>,
    /// Whether the root was changed with `MS_MOVE` instead of pivot_root(2).
    #[serde(default)]
    pub no_pivot: bool,
}

/// Container that was loaded.
#[derive(Debug, Clone)]
pub struct Container {
    dir: PathBuf,
    record: Record,
}

/// Accepts the ids that runc accepts: up to 1,024 letters, digits and `_+-.`, but not `.` and `..`.
///
/// # Errors
/// [`Error::EmptyId`], [`Error::InvalidId`].
pub fn validate_id(id: &str) -> Result<()> {
    const LONGEST: usize = 1024;
    if id.is_empty() {
        return Err(Error::EmptyId);
    }
    let proper = id
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte));
    if !proper || id == "." || id == ".." || id.len() > LONGEST {
        return Err(Error::InvalidId);
    }
    Ok(())
}

impl Container {
    /// Claims the id by creating `<root>/<id>`, and stores the record and the spec there.
    ///
    /// # Errors
    /// [`Error::Exist`] if the id is in use, or errors of the file system. Nothing is left behind
    /// in these cases.
    pub(crate) fn claim(root: &Path, record: Record, spec_json: &[u8]) -> Result<Self> {
        validate_id(&record.id)?;
        make_private_dir(root, true).map_err(|source| Error::Root {
            path: root.to_path_buf(),
            source,
        })?;
        let dir = root.join(&record.id);
        make_private_dir(&dir, false).map_err(|source| match source.kind() {
            ErrorKind::AlreadyExists => Error::Exist,
            _ => Error::file("create", &dir)(source),
        })?;
        let container = Self { dir, record };
        let stored = container.save().and_then(|()| {
            let path = container.dir.join(SPEC_FILE);
            sys::file::replace_atomic(&path, spec_json, 0o600).map_err(Error::file("write", path))
        });
        if let Err(error) = stored {
            // Report the first error, and not one of this cleanup.
            let _ = fs::remove_dir_all(&container.dir);
            return Err(error);
        }
        Ok(container)
    }

    /// Loads the container with the name `id` below `root`.
    ///
    /// # Errors
    /// [`Error::NotExist`] if there is none, [`Error::DamagedState`] if its record cannot be
    /// parsed.
    pub fn load(root: &Path, id: &str) -> Result<Self> {
        validate_id(id)?;
        let dir = root.join(id);
        let path = dir.join(RECORD_FILE);
        let text = fs::read(&path).map_err(|source| match source.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => Error::NotExist,
            _ => Error::file("read", &path)(source),
        })?;
        let record = serde_json::from_slice(&text).map_err(|source| Error::DamagedState {
            id: id.to_owned(),
            path,
            source,
        })?;
        Ok(Self { dir, record })
    }

    /// Returns the names of the containers below `root`, sorted, including those with a damaged
    /// record.
    ///
    /// # Errors
    /// Those of readdir(3). If `root` does not exist, the error is of the kind
    /// [`ErrorKind::NotFound`].
    pub fn list(root: &Path) -> std::io::Result<Vec<String>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(root)? {
            let entry = entry?;
            let name = entry.file_name().into_string();
            match (entry.file_type()?.is_dir(), name) {
                // rcm's own directories, such as `@migrations`, have names that no container can
                // have.
                (true, Ok(id)) if validate_id(&id).is_ok() => ids.push(id),
                _ => {}
            }
        }
        ids.sort();
        Ok(ids)
    }

    /// Stores the record.
    ///
    /// # Errors
    /// Errors of the file system.
    pub fn save(&self) -> Result<()> {
        let path = self.dir.join(RECORD_FILE);
        let text = serde_json::to_vec(&self.record).map_err(|source| Error::DamagedState {
            id: self.record.id.clone(),
            path: path.clone(),
            source,
        })?;
        sys::file::replace_atomic(&path, &text, 0o600).map_err(Error::file("write", path))
    }

    /// Returns the container's name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// Returns the container's directory below the root.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the stored properties.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Returns the record for a change; [`Self::save`] stores it.
    pub fn record_mut(&mut self) -> &mut Record {
        &mut self.record
    }

    /// Returns the absolute path of the bundle.
    #[must_use]
    pub fn bundle(&self) -> &Path {
        &self.record.bundle
    }

    /// Returns the absolute path of the root file system on the host.
    #[must_use]
    pub fn rootfs(&self) -> &Path {
        &self.record.rootfs
    }

    /// Returns the id of the container's first process, dead or alive.
    #[must_use]
    pub fn init_pid(&self) -> Option<Pid> {
        self.record.init.map(ProcessId::pid)
    }

    /// Returns the first process's id if it still executes.
    ///
    /// # Errors
    /// [`Error::NotRunning`].
    pub fn live_init(&self) -> Result<Pid> {
        match self.record.init {
            Some(init) if init.liveness() == Liveness::Alive => Ok(init.pid()),
            _ => Err(Error::NotRunning),
        }
    }

    /// Returns the container's cgroup.
    #[must_use]
    pub fn cgroup(&self) -> Cgroup {
        Cgroup::new(self.record.cgroup_paths.clone())
    }

    /// Loads the spec as it was when the container was created.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::InvalidConfig`].
    pub fn spec(&self) -> Result<Spec> {
        super::spec::load(&self.spec_path())
    }

    /// Returns the path of the file with the container's spec.
    #[must_use]
    pub fn spec_path(&self) -> PathBuf {
        self.dir.join(SPEC_FILE)
    }

    /// Returns the path of the socket that `start` writes to.
    #[must_use]
    pub(crate) fn notify_path(&self) -> PathBuf {
        self.dir.join(NOTIFY_FILE)
    }

    /// Returns the container's state at this moment.
    #[must_use]
    pub fn status(&self) -> Status {
        let Some(init) = self.record.init else {
            return match self.record.creator.liveness() {
                Liveness::Alive => Status::Creating,
                Liveness::Gone => Status::Stopped,
            };
        };
        if init.liveness() == Liveness::Gone {
            Status::Stopped
        } else if self.cgroup().is_frozen() {
            Status::Paused
        } else if self.notify_path().exists() {
            Status::Created
        } else {
            Status::Running
        }
    }
}

fn make_private_dir(path: &Path, parents: bool) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(parents)
        .mode(0o700)
        .create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_as_runc_accepts_them() {
        for good in ["a", "web-1", "a.b", "A+b_c", "..."] {
            assert!(validate_id(good).is_ok(), "{good}");
        }
        for bad in [".", "..", "../x", "a/b", "a b", "ü", "a\0", "a\n"] {
            assert!(matches!(validate_id(bad), Err(Error::InvalidId)), "{bad:?}");
        }
        assert!(matches!(validate_id(""), Err(Error::EmptyId)));
    }

    fn record(id: &str) -> Record {
        Record {
            oci_version: "1.2.0".into(),
            id: id.into(),
            init: None,
            creator: ProcessId::of(Pid::this()).unwrap(),
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            created: Utc::now(),
            annotations: HashMap::new(),
            systemd_cgroup: false,
            cgroup_path: "/x".into(),
            rootless: false,
            cgroup_paths: BTreeMap::new(),
            descriptors: Vec::new(),
            no_pivot: false,
        }
    }

    #[test]
    fn a_claimed_id_is_taken() {
        let root = tempfile::tempdir().unwrap();
        let one = Container::claim(root.path(), record("c"), b"{}").unwrap();
        assert_eq!(one.status(), Status::Creating);
        assert!(matches!(
            Container::claim(root.path(), record("c"), b"{}"),
            Err(Error::Exist)
        ));
        assert_eq!(Container::list(root.path()).unwrap(), ["c"]);
        assert_eq!(Container::load(root.path(), "c").unwrap().id(), "c");
    }

    #[test]
    fn a_creation_that_died_is_stopped() {
        let root = tempfile::tempdir().unwrap();
        let mut dead = record("c");
        dead.creator.start_time += 1;
        let container = Container::claim(root.path(), dead, b"{}").unwrap();
        assert_eq!(container.status(), Status::Stopped);
    }

    #[test]
    fn unknown_and_damaged_are_told_apart() {
        let root = tempfile::tempdir().unwrap();
        assert!(matches!(
            Container::load(root.path(), "c"),
            Err(Error::NotExist)
        ));
        fs::create_dir(root.path().join("c")).unwrap();
        assert!(matches!(
            Container::load(root.path(), "c"),
            Err(Error::NotExist)
        ));
        fs::write(root.path().join("c/state.json"), b"{\"id\":").unwrap();
        assert!(matches!(
            Container::load(root.path(), "c"),
            Err(Error::DamagedState { .. })
        ));
    }
}
