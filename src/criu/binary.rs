//! Finds CRIU and asks for its version.

use std::env;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::error::{Action, Error};
use super::kerndat::Kerndat;
use super::rpc;
use super::session::{CriuSession, Job, Surroundings};
use super::version::Version;

/// The environment variable that names a CRIU.
pub const VARIABLE: &str = "RCM_CRIU";

/// The oldest CRIU that rcm works with. It is the first whose RPC tells its version; runc has the
/// same limit.
pub const OLDEST: Version = Version::new(3, 0, 0);

/// A CRIU whose version is known.
#[derive(Debug, Clone)]
pub struct Criu {
    path: PathBuf,
    version: Version,
    pub(super) kerndat: Kerndat,
}

impl Criu {
    /// Finds CRIU: `named` (`--criu`), else [`VARIABLE`], else the first `criu` in PATH. Asks for
    /// its version.
    ///
    /// # Errors
    /// One sentence that says which CRIU was found, what it lacks and what to install.
    pub fn find(named: Option<&Path>) -> Result<Self, Error> {
        let path = locate(
            named,
            env::var_os(VARIABLE).as_deref(),
            env::var_os("PATH").as_deref(),
        )?;
        let version = version_of(&path)?;
        let kerndat = Kerndat::default();
        let criu = Self {
            path,
            version,
            kerndat,
        };
        criu.require(OLDEST, "rcm")?;
        Ok(criu)
    }

    /// Returns the path of the executable.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns its version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Checks that this CRIU is at least `needed`.
    ///
    /// # Errors
    /// [`Error::TooOld`], naming `needed_for`.
    pub fn require(&self, needed: Version, needed_for: &'static str) -> Result<(), Error> {
        if self.version < needed {
            return Err(Error::TooOld {
                path: self.path.clone(),
                found: self.version,
                needed,
                needed_for,
            });
        }
        Ok(())
    }
}

fn locate(
    named: Option<&Path>,
    variable: Option<&std::ffi::OsStr>,
    search_path: Option<&std::ffi::OsStr>,
) -> Result<PathBuf, Error> {
    let explicit = named.map(|path| ("--criu", path.as_os_str())).or_else(|| {
        variable
            .filter(|value| !value.is_empty())
            .map(|value| (VARIABLE, value))
    });
    let in_search_path = |name: &Path| {
        env::split_paths(search_path?)
            .map(|dir| dir.join(name))
            .find(|path| is_executable(path))
    };
    let Some((origin, path)) = explicit else {
        return in_search_path(Path::new("criu")).ok_or(Error::NotFound);
    };
    let path = Path::new(path);
    // As in a shell, only a name without a slash is searched in PATH. The default of runc's former
    // option `--criu` was such a name.
    let found = if path.components().count() == 1 && !path.is_absolute() {
        in_search_path(path)
    } else {
        Some(path.to_path_buf()).filter(|path| is_executable(path))
    };
    found.ok_or_else(|| Error::NotThere {
        origin,
        path: path.to_path_buf(),
    })
}

fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn version_of(path: &Path) -> Result<Version, Error> {
    let mut session = CriuSession::start(
        path,
        Job::query(Action::Version, path),
        Surroundings::default(),
    )?;
    let response = session.ask(&rpc::version_request())?;
    rpc::version(&response).ok_or(Error::Protocol {
        action: Action::Version,
        what: "it has no version",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn executable(dir: &Path, name: &str) -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn the_order_of_places() {
        let dir = tempfile::tempdir().unwrap();
        let named = executable(dir.path(), "named");
        let by_variable = executable(dir.path(), "variable");
        let in_path = executable(dir.path(), "criu");
        let variable = Some(by_variable.as_os_str());
        let search = Some(dir.path().as_os_str());
        assert_eq!(locate(Some(&named), variable, search).unwrap(), named);
        assert_eq!(locate(None, variable, search).unwrap(), by_variable);
        assert_eq!(locate(None, None, search).unwrap(), in_path);
        assert_eq!(locate(None, Some("".as_ref()), search).unwrap(), in_path);
        assert_eq!(
            locate(Some(Path::new("criu")), None, search).unwrap(),
            in_path
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let empty = tempfile::tempdir().unwrap();
        let search = Some(empty.path().as_os_str());
        assert!(matches!(locate(None, None, search), Err(Error::NotFound)));
        let absent = empty.path().join("nowhere");
        let error = locate(Some(&absent), None, search).unwrap_err().to_string();
        assert!(
            error.contains("--criu") && error.contains("nowhere"),
            "{error}"
        );
        fs::write(&absent, "not executable").unwrap();
        assert!(matches!(
            locate(None, Some(absent.as_os_str()), search),
            Err(Error::NotThere {
                origin: VARIABLE,
                ..
            })
        ));
    }

    #[test]
    fn versions_are_ordered() {
        assert!(Version::new(3, 18, 0) < Version::new(4, 0, 0));
        assert!(Version::new(4, 1, 0) < Version::new(4, 1, 1));
        assert_eq!(Version::new(4, 2, 0).to_string(), "4.2");
        assert_eq!(Version::new(4, 2, 1).to_string(), "4.2.1");
    }
}
