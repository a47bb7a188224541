//! Interface of the destination to its host.

use std::path::Path;

use crate::criu::NotResumed;
use crate::error::Cause;
use crate::migrate::agreement::Local;
use crate::migrate::record::restore_spec::RestoreSpec;
use crate::migrate::wire::facts::Facts;
use crate::migrate::wire::preamble::Preamble;

/// A host that can receive containers.
pub trait Host {
    /// The restored container.
    type Held: RestoredContainer;

    /// Returns the description of the host.
    fn facts(&self) -> Facts;

    /// Prepares for the container of a source that has connected.
    fn expect(&mut self, _preamble: &Preamble) {}

    /// Reserves the container for this receiver, right before its migration begins.
    ///
    /// # Errors
    /// If another process has this container, or the last migration is not settled.
    fn claim(&mut self) -> Result<(), Cause> {
        Ok(())
    }

    /// Returns the observations about this host that concern the container.
    fn inspect(&self, preamble: &Preamble) -> Local;

    /// Returns the parameters of [`Self::restore`], for a later `--resolve` that has to restore the
    /// container.
    fn restore_spec(&self, preamble: &Preamble) -> RestoreSpec;

    /// Restores the container from `images` without letting it run. On failure everything is
    /// undone.
    ///
    /// # Errors
    /// If the restore fails.
    fn restore(&mut self, preamble: &Preamble, images: &Path) -> Result<Self::Held, Cause>;
}

/// A restored container that has not executed an instruction.
///
/// Dropping it, or the death of this process, destroys it.
pub trait RestoredContainer: Sized {
    /// The container after [`Self::resume`].
    type Running;

    /// Resumes the container. `announce` is called right before CRIU gets its yes, and can refuse.
    ///
    /// # Errors
    /// If it cannot run, or `announce` refuses. It is destroyed then, but may have run before.
    fn resume(
        self,
        announce: impl FnOnce() -> Result<(), Cause>,
    ) -> Result<Self::Running, NotResumed<Cause>>;

    /// Destroys the container.
    ///
    /// # Errors
    /// If a part of it is left. The container does not execute in any case.
    fn discard(self) -> Result<(), Cause>;
}
