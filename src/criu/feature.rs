//! What CRIU can do with this kernel.
//!
//! CRIU finds out what the kernel can do by trying (criu/kerndat.c), which takes 30 to 45 ms, and keeps the answer in `/run/criu.kdat`, but only
//! if `/run` is a tmpfs: the file must not survive a reboot into another kernel. Every feature check fills that cache. A dump asks
//! before anything is stopped, so a cold cache costs no downtime there; a restore asks while the tasks are stopped, so whoever waits for
//! the images of a migration calls [`Criu::features`] beforehand.

use super::binary::{Criu, Version};
use super::error::{Action, Error};
use super::rpc;
use super::session::{Job, Session, Surroundings};

/// The features that CRIU's feature check knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// Changed memory is tracked (`CONFIG_MEM_SOFT_DIRTY` or the pagemap scan): pre-dumps and incremental dumps.
    pub memory_tracking: bool,
    /// Missing memory can be fetched when touched (userfaultfd with its non-cooperative events).
    pub lazy_pages: bool,
    /// Processes are told apart by pidfds across pre-dumps.
    pub pidfd_store: bool,
}

impl Criu {
    /// Asks CRIU what it can do on this kernel, and fills CRIU's cache of that.
    ///
    /// # Errors
    /// Where CRIU cannot be started or does not answer.
    pub fn features(&self) -> Result<Features, Error> {
        let job = Job::query(Action::FeatureCheck, self.path());
        let mut session = Session::start(self.path(), job, Surroundings::default())?;
        let response = session.ask(&rpc::feature_request())?;
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
