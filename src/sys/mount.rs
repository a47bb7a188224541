//! Mounts that only one program sees.

use std::io;
use std::path::Path;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Calls `work` in a view in which the mounts of `prepare` exist. Programs that `work` starts and
/// paths that it opens stay in that view. The mounts disappear when the last of these programs has
/// ended, in any way.
///
/// `prepare` and `work` run on a thread of their own in a new mount namespace. Every mount in it is
/// a slave of the mount that it was copied from: later mounts of the host appear in the namespace,
/// but its own mounts do not appear on the host (mount_namespaces(7)).
///
/// # Errors
/// As unshare(2) and mount(2), and the error of `prepare`.
pub fn with_private_mounts<T: Send>(
    prepare: impl FnOnce() -> io::Result<()> + Send,
    work: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, || {
            let none = None::<&str>;
            // Also separates the thread's working and root directory from the process's.
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
            prepare()?;
            Ok(work())
        })?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

/// Binds `source` with all mounts below it to the directory `target`.
///
/// # Errors
/// As mount(2).
pub fn bind(source: &Path, target: &Path) -> io::Result<()> {
    let none = None::<&str>;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    Ok(mount(Some(source), target, none, flags, none)?)
}

/// Makes the mount at `target` shared, so that it propagates mounts to its copies.
///
/// # Errors
/// As mount(2).
pub fn share(target: &Path) -> io::Result<()> {
    let none = None::<&str>;
    Ok(mount(none, target, none, MsFlags::MS_SHARED, none)?)
}

/// Mounts an empty file system for mount points on a directory.
///
/// # Errors
/// As mount(2).
pub fn cover(dir: &Path) -> io::Result<()> {
    let flags = MsFlags::empty();
    Ok(mount(
        Some("rcm"),
        dir,
        Some("tmpfs"),
        flags,
        Some("mode=755"),
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::process::Command;

    #[test]
    fn only_the_work_sees_it() {
        let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(source.path().join("file"), "here").unwrap();
        let prepare = || bind(source.path(), target.path());
        let result = with_private_mounts(prepare, || {
            let output = Command::new("cat")
                .arg(target.path().join("file"))
                .output()
                .unwrap();
            String::from_utf8(output.stdout).unwrap()
        });
        match result {
            Ok(text) => assert_eq!(text, "here"),
            // Without root nothing can be mounted.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
        }
        assert!(!target.path().join("file").exists());
    }
}
