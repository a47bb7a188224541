//! What CRIU has found out about the kernel, for hosts on which CRIU does not keep it.
//!
//! CRIU keeps it in `/run/criu.kdat`, but only on a tmpfs, because it must not survive a reboot into another kernel. On other hosts each restore finds it out
//! again, while the tasks stand still: 20 ms of the downtime. There a feature check gets a `/run` of its own, and the restores of this process see what it left.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use tempfile::NamedTempFile;

use crate::sys::mount;

const DIR: &str = "/run";
/// criu/kerndat.c, `KERNDAT_CACHE_FILE`.
const FILE: &str = "/run/criu.kdat";

/// What one CRIU knows, if it cannot remember it itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Knowledge(Arc<OnceLock<Vec<u8>>>);

/// Knowledge where a restore finds it. Dropped, nothing is left of it.
#[derive(Debug)]
pub(super) struct Provided {
    contents: NamedTempFile,
    /// The empty file that was made for it to be bound over.
    made_place: bool,
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
        let place = OpenOptions::new().write(true).create_new(true).open(FILE);
        Some(Provided {
            contents,
            made_place: place.is_ok(),
        })
    }
}

impl Provided {
    /// Puts it in its place, in a mount namespace of this thread's own.
    ///
    /// # Errors
    /// As mount(2).
    pub fn attach(&self) -> io::Result<()> {
        mount::bind(self.contents.path(), Path::new(FILE))
    }
}

impl Drop for Provided {
    fn drop(&mut self) {
        // A CRIU that was started meanwhile may have filled it.
        let is_empty = || File::open(FILE).and_then(|file| file.metadata());
        if self.made_place && is_empty().is_ok_and(|metadata| metadata.len() == 0) {
            let _ = fs::remove_file(FILE);
        }
    }
}
