//! Checks whether programs of one host's processor can run on another's.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::binary::Criu;
use super::error::{Action, Error};
use super::rpc;
use super::session::{CriuSession, Job, Surroundings};
use crate::sys::mount;

/// CRIU's name of the file that describes a processor.
const IMAGE: &str = "cpuinfo.img";

impl Criu {
    /// Returns CRIU's description of this host's processor. `place` is any directory; only CRIU
    /// sees the files that CRIU writes there.
    ///
    /// # Errors
    /// If CRIU fails: it knows only some architectures and vendors.
    pub fn processor(&self, place: &Path) -> Result<Vec<u8>, Error> {
        self.covered(Action::CpuinfoDump, place, |ask| {
            ask()?;
            fs::read(place.join(IMAGE)).map_err(|source| Error::Directory {
                what: "processor description in",
                path: place.to_path_buf(),
                source,
            })
        })
    }

    /// Checks whether processes from a host can execute here. `theirs` is the description of its
    /// processor ([`Self::processor`]). CRIU compares the instructions and the sizes of the saved
    /// registers. A processor here that can do more is no obstacle.
    ///
    /// # Errors
    /// CRIU's first error if they cannot.
    pub fn check_processor(&self, theirs: &[u8], place: &Path) -> Result<(), Error> {
        self.covered(Action::CpuinfoCheck, place, |ask| {
            let path = place.join(IMAGE);
            fs::write(&path, theirs).map_err(|source| Error::Directory {
                what: "processor description",
                path,
                source,
            })?;
            ask()
        })
    }

    /// Calls `work` with an empty directory mounted at `place`. `work` asks CRIU there.
    fn covered<T: Send>(
        &self,
        action: Action,
        place: &Path,
        work: impl FnOnce(&dyn Fn() -> Result<(), Error>) -> Result<T, Error> + Send,
    ) -> Result<T, Error> {
        let directory_error = |source: io::Error| Error::Directory {
            what: "directory for a question to CRIU",
            path: place.to_path_buf(),
            source,
        };
        let ask = || {
            let images = File::open(place).map_err(directory_error)?;
            let job = Job::query(action, self.path());
            let mut session = CriuSession::start(self.path(), job, Surroundings::default())?;
            let request = rpc::processor_request(action, images.as_raw_fd());
            session.ask(&request).map(drop)
        };
        mount::with_private_mounts(|| mount::cover(place), || work(&ask))
            .unwrap_or_else(|source| Err(directory_error(source)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_is_like_itself() {
        let criu = Criu::find(None).unwrap();
        let place = tempfile::tempdir().unwrap();
        let Ok(own) = criu.processor(place.path()) else {
            return;
        };
        criu.check_processor(&own, place.path()).unwrap();
        let damaged = &own[..own.len() / 2];
        criu.check_processor(damaged, place.path()).unwrap_err();
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }
}
