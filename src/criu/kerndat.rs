//! What CRIU has found out about the kernel, for hosts on which CRIU does not keep it.
//!
//! CRIU keeps it in `/run/criu.kdat`, but only on a tmpfs, because it must not survive a reboot into another kernel. On other hosts each restore finds it out
//! again, while the tasks stand still: 20 ms of the downtime. There a feature check gets a `/run` of its own, and the restores of this process see what it left.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use tempfile::NamedTempFile;

use crate::sys::mount;

const DIR: &str = "/run";
/// criu/kerndat.c, `KERNDAT_CACHE_FILE`.
const FILE: &str = "/run/criu.kdat";
const ATTEMPTS: u32 = 8;

/// What one CRIU knows, if it cannot remember it itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Knowledge(Arc<OnceLock<Vec<u8>>>);

/// Knowledge for a restore. Dropped, nothing is left of it.
#[derive(Debug)]
pub(super) struct Provided {
    contents: NamedTempFile,
}

impl Knowledge {
    /// Calls `ask`, which starts CRIU at `path`, and notes what CRIU finds out if CRIU itself would forget it.
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
            // It only takes longer.
            Err(_) => ask(),
        }
    }

    /// Prepares what is known for a restore.
    pub fn provide(&self) -> Option<Provided> {
        let known = self.0.get()?;
        let mut contents = NamedTempFile::new().ok()?;
        contents.write_all(known).ok()?;
        Some(Provided { contents })
    }
}

impl Provided {
    /// Puts it in its place, in a mount namespace of this thread's own. It is bound over an empty file, which other restores make and remove, too: where that
    /// comes in between too often, CRIU finds out again what the kernel can do.
    pub fn attach(&self) {
        for _ in 0..ATTEMPTS {
            // There may be one.
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

impl Drop for Provided {
    fn drop(&mut self) {
        // A CRIU that was started meanwhile may have filled it.
        if fs::metadata(FILE).is_ok_and(|metadata| metadata.len() == 0) {
            let _ = fs::remove_file(FILE);
        }
    }
}
