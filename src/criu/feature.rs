//! What CRIU can do with this kernel.
//!
//! CRIU finds out what the kernel can do by trying (criu/kerndat.c), which takes 20 to 45 ms, and remembers it (`knowledge.rs`) from a feature check on. A
//! dump asks before anything is stopped, so that costs no downtime there; a restore asks while the tasks are stopped, so whoever waits for
//! the images of a migration calls [`Criu::features`] beforehand.

use super::binary::Criu;
use super::error::{Action, Error};
use super::rpc;
use super::session::{Job, Session, Surroundings};
use super::version::{Features, Version};
use crate::sys::pipe;

/// The pipe through which the page server of a lazy dump reads (criu/include/page-pipe.h, `PIPE_MAX_SIZE` pages; 3.2 MiB with pages of 4 KiB).
fn page_server_pipe_bytes() -> usize {
    // 2^PAGE_ALLOC_COSTLY_ORDER pages of `struct pipe_buffer`s, of 40 bytes each on 64 bits.
    let page_bytes = pipe::page_bytes();
    (page_bytes << 3) / 40 * page_bytes
}

impl Criu {
    /// Asks CRIU what it can do on this kernel, and fills CRIU's cache of that.
    ///
    /// # Errors
    /// Where CRIU cannot be started or does not answer.
    pub fn features(&self) -> Result<Features, Error> {
        let ask = || {
            let job = Job::query(Action::FeatureCheck, self.path());
            let mut session = Session::start(self.path(), job, Surroundings::default())?;
            session.ask(&rpc::feature_request())
        };
        let response = self.knowledge.gather(self.path(), ask)?;
        rpc::features(&response).ok_or(Error::Protocol {
            action: Action::FeatureCheck,
            what: "it names no features",
        })
    }

    /// Checks that pre-dumps and incremental dumps are possible.
    ///
    /// # Errors
    /// [`Error::Lacks`], or as [`Self::features`].
    pub fn require_memory_tracking(&self) -> Result<(), Error> {
        self.require_feature(
            self.features()?.memory_tracking,
            "track changed memory",
            "pre-dumps and incremental dumps need a kernel with CONFIG_MEM_SOFT_DIRTY",
        )
    }

    /// Checks that memory can be fetched after the restore.
    ///
    /// # Errors
    /// [`Error::Lacks`], or as [`Self::features`].
    pub fn require_lazy_pages(&self) -> Result<(), Error> {
        self.require_feature(
            self.features()?.lazy_pages,
            "restore memory lazily",
            "--lazy-pages needs a kernel with CONFIG_USERFAULTFD, and userfaultfd not forbidden (vm.unprivileged_userfaultfd)",
        )
    }

    /// Checks that a dump can keep memory back and serve it: as [`Self::require_lazy_pages`], and that its page server gets its pipe.
    ///
    /// Without it CRIU goes on and fails at the first request that does not begin where one of its buffers does: `splice: Bad file descriptor`
    /// (criu/page-xfer.c, `page_server_serve` does not look at what `pipe_read_dest_init` returns). The container was stopped then, and the restored one
    /// lacks memory.
    ///
    /// # Errors
    /// [`Error::Pipe`], or as [`Self::require_lazy_pages`].
    pub fn require_lazy_dump(&self) -> Result<(), Error> {
        self.require_lazy_pages()?;
        let needed_bytes = page_server_pipe_bytes();
        pipe::try_size(needed_bytes).map_err(|source| Error::Pipe {
            needed_bytes,
            // As the kernel rounds (fs/pipe.c, `round_pipe_size`).
            limit_bytes: needed_bytes.next_power_of_two(),
            source,
        })
    }

    fn require_feature(
        &self,
        present: bool,
        feature: &'static str,
        remedy: &'static str,
    ) -> Result<(), Error> {
        if present {
            return Ok(());
        }
        Err(Error::Lacks {
            path: self.path().to_path_buf(),
            version: self.version(),
            feature,
            remedy,
        })
    }

    /// Whether this CRIU announces a lazy dump's page server with a notification (older ones write to a descriptor).
    #[must_use]
    pub fn has_status_ready(&self) -> bool {
        self.version() >= Version::EXTERNAL_PID_NAMESPACE
    }
}
