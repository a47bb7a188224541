//! Whether what runs on one host's processor runs on another's.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::binary::Criu;
use super::error::{Action, Error};
use super::rpc;
use super::session::{Job, Session, Surroundings};
use crate::sys::mount;

/// What CRIU calls its description of a processor.
const IMAGE: &str = "cpuinfo.img";

impl Criu {
    /// CRIU's description of this host's processor. `place` is any directory: what CRIU writes there, only CRIU sees.
    ///
    /// # Errors
    /// Where CRIU fails: it knows some architectures and vendors only.
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

    /// Whether processes from a host whose processor is described by `theirs` ([`Self::processor`]) can execute here: instructions, and the sizes of the
    /// registers that are saved. A processor that can do more is no obstacle.
    ///
    /// # Errors
    /// CRIU's first error where not.
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

    /// `work` has an empty directory at `place`, and asks CRIU there.
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
            let mut session = Session::start(self.path(), job, Surroundings::default())?;
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
