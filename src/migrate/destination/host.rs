//! What a destination needs of its host.

use std::path::Path;

use crate::criu::NotResumed;
use crate::error::Cause;
use crate::migrate::agreement::Local;
use crate::migrate::record::restore_spec::Recipe;
use crate::migrate::wire::facts::Facts;
use crate::migrate::wire::preamble::Preamble;

/// This host, as one that containers come to.
pub trait Host {
    /// See [`Held`].
    type Held: Held;

    /// What the host is.
    fn facts(&self) -> Facts;

    /// A source has come: from here on it is about its container.
    fn expect(&mut self, _preamble: &Preamble) {}

    /// Its migration begins, unless somebody else has this container.
    ///
    /// # Errors
    /// What is in the way.
    fn claim(&mut self) -> Result<(), Cause> {
        Ok(())
    }

    /// What a container would find here.
    fn inspect(&self, preamble: &Preamble) -> Local;

    /// What [`Self::restore`] is told, for whoever restores the container if this process dies.
    fn recipe(&self, preamble: &Preamble) -> Recipe;

    /// Restores the container from `images` without letting it run. What was done is undone on failure.
    ///
    /// # Errors
    /// Whatever prevents the restore.
    fn restore(&mut self, preamble: &Preamble, images: &Path) -> Result<Self::Held, Cause>;
}

/// A restored container that has not executed an instruction.
///
/// Dropping it, or the death of this process, destroys it.
pub trait Held: Sized {
    /// A running container.
    type Running;

    /// Lets it run. `announce` is called right before CRIU gets its yes, and can refuse.
    ///
    /// # Errors
    /// It does not run, or `announce` has refused. It is destroyed then, but may have run before.
    fn resume(
        self,
        announce: impl FnOnce() -> Result<(), Cause>,
    ) -> Result<Self::Running, NotResumed<Cause>>;

    /// Destroys it.
    ///
    /// # Errors
    /// Where something of it is left; it does not execute in any case.
    fn discard(self) -> Result<(), Cause>;
}
