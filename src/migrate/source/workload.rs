//! What a source needs of a container.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

use crate::criu::stats::DumpStats;
use crate::error::Cause;
use crate::migrate::unix_sockets::{SocketNames, Unkept};
use crate::migrate::wire::id::MigrationId;

/// Where images go.
#[derive(Debug)]
pub struct Target<'a> {
    /// The directory.
    pub images: &'a Path,
    /// Where the earlier images are that these build on, relative to the directory.
    pub parent: Option<&'a Path>,
    /// A connection that takes the memory instead of the directory.
    pub pages: Option<OwnedFd>,
}

/// A container that can be copied, stopped and dumped.
pub trait Workload {
    /// See [`Held`].
    type Held: Held;

    /// Copies the memory of the running container; only what has changed since, where there are earlier images.
    ///
    /// # Errors
    /// Whatever prevents it. The container runs on.
    fn pre_dump(&mut self, target: Target) -> Result<DumpStats, Cause>;

    /// Stops the container and writes its images. What was done is undone on failure: the container runs on.
    ///
    /// # Errors
    /// Whatever prevents the dump.
    fn dump(self, target: Target) -> Result<Self::Held, Cause>;
}

/// A dumped container that stands still until it is told what to do.
///
/// Dropping it, or the death of this process, lets the container go on.
pub trait Held: Sized {
    /// The same, held by its cgroup too.
    type Fenced: Fence;

    /// When the container stopped.
    fn stopped_at(&self) -> Instant;

    /// When all of it stood still; as [`Self::stopped_at`] where that is not known.
    fn frozen_at(&self) -> Instant;

    /// The names of its sockets that the destination's restore may take from it, and those that cannot be kept.
    fn names(&self, migration: MigrationId) -> (SocketNames, Vec<Unkept>);

    /// Makes it stand still by its cgroup, too.
    ///
    /// # Errors
    /// Where that cannot be made sure: the container runs on then, or will once `self` is gone.
    fn fence(self) -> Result<Self::Fenced, (Self, Cause)>;

    /// Lets it go on.
    ///
    /// # Errors
    /// Where it still stands.
    fn release(self) -> Result<(), Cause>;
}

/// A dumped container that stands still whatever happens to CRIU and, once it is sealed, to this process.
pub trait Fence: Sized {
    /// From here on it stands still even if this process dies. Before that, a death lets it go on: the commit was not announced
    /// in the journal yet.
    ///
    /// # Errors
    /// Where that cannot be made sure.
    fn seal(&mut self) -> Result<(), Cause>;

    /// Lets it go on.
    ///
    /// # Errors
    /// Where it still stands.
    fn release(self) -> Result<(), Cause>;

    /// Kills it and removes what it was from this host.
    ///
    /// # Errors
    /// What could not be removed; it does not execute in any case.
    fn finish(self) -> Result<(), Cause>;

    /// Leaves it standing: nobody knows yet whose it is.
    fn leave(self);
}
