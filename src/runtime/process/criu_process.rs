//! Record of the CRIU that works on a container, for the case that rcm is killed.
//!
//! CRIU notices the death of rcm at its next notification. It then resumes the tasks of a dump, or
//! kills those of a restore. Until it has ended, the container's fate is open: restored tasks look
//! as if they executed, and images are still being written. So rcm records CRIU's process beside
//! the container's state before it sends a request. A CRIU that never gets a request ends by
//! itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::Pid;

use crate::criu::error::CallbackError;
use crate::runtime::container::Container;
use crate::runtime::error::{Error, Result};
use crate::sys;
use crate::sys::process::ProcessId;

const FILE: &str = "criu.json";
/// Limit for a CRIU whose rcm was killed. It has to reach its next notification and undo its work,
/// and reads or writes memory images meanwhile.
const END_LIMIT_DUR: Duration = Duration::from_secs(120);

/// Records that the CRIU with the id `pid` works on the container.
///
/// # Errors
/// Errors of the file system. In that case CRIU must not get a request.
pub(crate) fn record(container: &Container, pid: Pid) -> std::result::Result<(), CallbackError> {
    let path = path(container.dir());
    let text = serde_json::to_vec(&ProcessId::of(pid)?)?;
    sys::file::replace_atomic(&path, &text, 0o600).map_err(Error::file("write", path))?;
    Ok(())
}

/// Waits until the CRIU that a killed rcm has left at work on the container `id` has ended. The
/// caller must know that this rcm is dead.
///
/// # Errors
/// [`Error::CriuAtWork`] if it does not end, or errors of the file system.
pub fn wait_for_end(root: &Path, id: &str) -> Result<()> {
    wait_within(&root.join(id), id, END_LIMIT_DUR)
}

/// Does the work of [`wait_for_end`], for the container `id` with the directory `dir`.
pub(crate) fn wait_within(dir: &Path, id: &str, limit_dur: Duration) -> Result<()> {
    let path = path(dir);
    let text = match fs::read(&path) {
        Err(error) if sys::file::is_missing(&error) => return Ok(()),
        read => read.map_err(Error::file("read", &path))?,
    };
    // rcm replaces the file atomically, and `/run` does not survive a reboot. So a file that cannot
    // be parsed is not rcm's.
    let Ok(criu_process) = serde_json::from_slice::<ProcessId>(&text) else {
        return Ok(());
    };
    if criu_process.wait_until_gone(limit_dur) {
        Ok(())
    } else {
        Err(Error::CriuAtWork {
            id: id.to_owned(),
            pid: criu_process.pid,
        })
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_criu_that_lives_is_waited_for() {
        let root = tempfile::tempdir().unwrap();
        wait_for_end(root.path(), "web").unwrap();
        fs::create_dir(root.path().join("web")).unwrap();
        wait_for_end(root.path(), "web").unwrap();

        let mut child = std::process::Command::new("sleep")
            .arg("0.2")
            .spawn()
            .unwrap();
        let criu_process = ProcessId::of(Pid::from_raw(child.id() as i32)).unwrap();
        let text = serde_json::to_vec(&criu_process).unwrap();
        fs::write(root.path().join("web").join(FILE), text).unwrap();
        wait_for_end(root.path(), "web").unwrap();
        // It is a zombie: it ended during the wait.
        assert!(child.try_wait().unwrap().is_some());
        wait_for_end(root.path(), "web").unwrap();
    }
}
