//! The CRIU that works on a container, remembered in case rcm is killed.
//!
//! CRIU notices the death of rcm at its next report, and then lets the tasks of a dump go or kills those of a restore. Until it has ended, nobody
//! can say what becomes of the container: restored tasks look as if they executed, and images are still being written. So its process is
//! recorded beside the container's state before it is told anything; one that is never told anything ends by itself.

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
/// How long a CRIU whose rcm was killed may take to its next report and to undo its work; it writes or reads memory images meanwhile.
const END_LIMIT_DUR: Duration = Duration::from_secs(120);

/// Records that the CRIU with the id `pid` works on the container.
///
/// # Errors
/// Errors of the file system: it must not be told to work then.
pub(crate) fn record(container: &Container, pid: Pid) -> std::result::Result<(), CallbackError> {
    let path = path(container.dir());
    let text = serde_json::to_vec(&ProcessId::of(pid)?)?;
    sys::file::replace_atomic(&path, &text, 0o600).map_err(Error::file("write", path))?;
    Ok(())
}

/// Waits until the CRIU that a killed rcm has left at work on the container `id` has ended. The caller knows that the rcm is dead.
///
/// # Errors
/// [`Error::CriuAtWork`] where it does not end, errors of the file system.
pub fn wait_for_end(root: &Path, id: &str) -> Result<()> {
    wait_within(&root.join(id), id, END_LIMIT_DUR)
}

/// As [`wait_for_end`], for the container `id` with the directory `dir`.
pub(crate) fn wait_within(dir: &Path, id: &str, limit_dur: Duration) -> Result<()> {
    let path = path(dir);
    let text = match fs::read(&path) {
        Err(error) if sys::file::is_missing(&error) => return Ok(()),
        read => read.map_err(Error::file("read", &path))?,
    };
    // The file is replaced atomically, and `/run` does not outlive the machine: what cannot be read is no word of rcm's.
    let Ok(worker) = serde_json::from_slice::<ProcessId>(&text) else {
        return Ok(());
    };
    match worker.wait_until_gone(limit_dur) {
        true => Ok(()),
        false => Err(Error::CriuAtWork {
            id: id.to_owned(),
            pid: worker.pid,
        }),
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_worker_that_lives_is_waited_for() {
        let root = tempfile::tempdir().unwrap();
        wait_for_end(root.path(), "web").unwrap();
        fs::create_dir(root.path().join("web")).unwrap();
        wait_for_end(root.path(), "web").unwrap();

        let mut child = std::process::Command::new("sleep")
            .arg("0.2")
            .spawn()
            .unwrap();
        let worker = ProcessId::of(Pid::from_raw(child.id() as i32)).unwrap();
        let text = serde_json::to_vec(&worker).unwrap();
        fs::write(root.path().join("web").join(FILE), text).unwrap();
        wait_for_end(root.path(), "web").unwrap();
        // A zombie: it ended while it was waited for.
        assert!(child.try_wait().unwrap().is_some());
        wait_for_end(root.path(), "web").unwrap();
    }
}
