//! A copy of CRIU's kernel checks ("kerndat") for hosts on which CRIU does not keep them.
//!
//! CRIU keeps the result in `/run/criu.kdat`, but only on a tmpfs, because it must not survive a
//! reboot into another kernel. On other hosts every restore probes the kernel again while the tasks
//! are stopped: 20 ms of the downtime. On such a host the feature check gets a `/run` of its own.
//! The restores of this process then get the file that the check has left there.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use tempfile::NamedTempFile;

use crate::sys::mount;

const DIR: &str = "/run";
/// `KERNDAT_CACHE_FILE` in criu/kerndat.c, CRIU 4.2.
const FILE: &str = "/run/criu.kdat";
const ATTEMPTS: u32 = 8;

/// The kernel checks of one CRIU, if that CRIU does not keep them itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Kerndat(Arc<OnceLock<Vec<u8>>>);

/// A file with the kernel checks for one restore. Dropping it removes every trace of it.
#[derive(Debug)]
pub(super) struct KerndatFile {
    contents: NamedTempFile,
}

impl Kerndat {
    /// Calls `ask`, which starts CRIU at `path`, and remembers the kernel checks if CRIU itself
    /// would not keep them.
    pub fn gather<T: Send>(&self, path: &Path, ask: impl Fn() -> T + Send + Sync) -> T {
        let keeps = statfs(DIR).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC);
        if keeps || Path::new(FILE).exists() || path.starts_with(DIR) {
            return ask();
        }
        let asked = mount::with_private_mounts(
            || mount::cover(Path::new(DIR)),
            || (ask(), fs::read(FILE).ok()),
        );
        match asked {
            Ok((answer, found)) => {
                if let Some(found) = found {
                    // Another thread may have been faster.
                    let _ = self.0.set(found);
                }
                answer
            }
            // Without the mounts CRIU only takes longer.
            Err(_) => ask(),
        }
    }

    /// Prepares the kernel checks for a restore.
    pub fn provide(&self) -> Option<KerndatFile> {
        let known = self.0.get()?;
        let mut contents = NamedTempFile::new().ok()?;
        contents.write_all(known).ok()?;
        Some(KerndatFile { contents })
    }
}

impl KerndatFile {
    /// Binds the file over CRIU's, in a mount namespace of this thread's own. That needs an empty
    /// file as mount point, which other restores make and remove, too. If they interfere too often,
    /// CRIU probes the kernel again.
    pub fn attach(&self) {
        for _ in 0..ATTEMPTS {
            // The file may exist already.
            let _ = OpenOptions::new().write(true).create_new(true).open(FILE);
            match mount::bind(self.contents.path(), Path::new(FILE)) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    return tracing::debug!(%error, "CRIU is not told what the kernel can do");
                }
                Ok(()) => return,
            }
        }
    }
}

impl Drop for KerndatFile {
    fn drop(&mut self) {
        // A CRIU that was started in the meantime may have filled it.
        if fs::metadata(FILE).is_ok_and(|metadata| metadata.len() == 0) {
            let _ = fs::remove_file(FILE);
        }
    }
}
