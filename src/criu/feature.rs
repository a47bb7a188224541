//! Asks what CRIU can do on this kernel.
//!
//! CRIU probes the kernel (criu/kerndat.c, CRIU 4.2), which takes 20 to 45 ms. A feature check
//! makes CRIU keep the result (see `kerndat`). A dump asks before anything is stopped, so the probe
//! costs no downtime. A restore would probe while the tasks are stopped. So a destination calls
//! [`Criu::features`] before the images arrive.

use super::binary::Criu;
use super::error::{Action, Error};
use super::rpc;
use super::session::{CriuSession, Job, Surroundings};
use super::version::{Features, Version};
use crate::sys::pipe;

/// Size of the pipe through which the page server of a lazy dump reads: `PIPE_MAX_SIZE` pages
/// (criu/include/page-pipe.h, CRIU 4.2), or 3.2 MiB with pages of 4 KiB.
fn page_server_pipe_bytes() -> usize {
    // 2^PAGE_ALLOC_COSTLY_ORDER pages of `struct pipe_buffer`s, each of 40 bytes on 64 bits.
    let page_bytes = pipe::page_bytes();
    (page_bytes << 3) / 40 * page_bytes
}

impl Criu {
    /// Asks CRIU for its features on this kernel, and fills CRIU's cache of them.
    ///
    /// # Errors
    /// If CRIU cannot be started or does not answer.
    pub fn features(&self) -> Result<Features, Error> {
        let ask = || {
            let job = Job::query(Action::FeatureCheck, self.path());
            let mut session = CriuSession::start(self.path(), job, Surroundings::default())?;
            session.ask(&rpc::feature_request())
        };
        let response = self.kerndat.gather(self.path(), ask)?;
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

    /// Checks that a dump can keep memory back and serve it. This needs
    /// [`Self::require_lazy_pages`], and a pipe for CRIU's page server.
    ///
    /// Without the pipe, CRIU continues and fails only at a page request that does not begin at one
    /// of its buffers, with `splice: Bad file descriptor`: `page_server_serve` ignores the result
    /// of `pipe_read_dest_init` (criu/page-xfer.c, CRIU 4.2). By then the container is stopped, and
    /// the restored one lacks memory.
    ///
    /// # Errors
    /// [`Error::Pipe`], or as [`Self::require_lazy_pages`].
    pub fn require_lazy_dump(&self) -> Result<(), Error> {
        self.require_lazy_pages()?;
        let needed_bytes = page_server_pipe_bytes();
        pipe::try_size(needed_bytes).map_err(|source| Error::Pipe {
            needed_bytes,
            // The kernel rounds in this way (fs/pipe.c, `round_pipe_size`).
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

    /// Whether this CRIU announces a lazy dump's page server with a notification. Older versions
    /// write to a descriptor.
    #[must_use]
    pub fn has_status_ready(&self) -> bool {
        self.version() >= Version::EXTERNAL_PID_NAMESPACE
    }
}
