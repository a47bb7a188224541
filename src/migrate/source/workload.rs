//! Interface of the source to a container.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

use crate::criu::stats::DumpStats;
use crate::error::Cause;
use crate::migrate::unix_sockets::{SocketNames, Unkept};
use crate::migrate::wire::id::MigrationId;

/// Target of a dump.
#[derive(Debug)]
pub struct Target<'a> {
    /// Directory for the images.
    pub images: &'a Path,
    /// Path of the images that these build on, relative to the directory; `None` for complete
    /// images.
    pub parent: Option<&'a Path>,
    /// Connection that takes the memory instead of the directory.
    pub pages: Option<OwnedFd>,
}

/// A container that can be copied, stopped and dumped.
pub trait Workload {
    /// The container after the dump.
    type Held: FrozenContainer;

    /// Copies the memory of the running container: all of it, or the changes since the earlier
    /// images.
    ///
    /// # Errors
    /// If the memory cannot be copied. The container runs on.
    fn pre_dump(&mut self, target: Target) -> Result<DumpStats, Cause>;

    /// Freezes the container and writes its images. On failure everything is undone and the
    /// container runs on.
    ///
    /// # Errors
    /// If the dump fails.
    fn dump(self, target: Target) -> Result<Self::Held, Cause>;
}

/// A dumped container that CRIU holds frozen.
///
/// Dropping it, or the death of this process, resumes the container.
pub trait FrozenContainer: Sized {
    /// The container after [`Self::fence`].
    type Fenced: Fence;

    /// Returns the time at which the first task stopped.
    fn stopped_at(&self) -> Instant;

    /// Returns the time at which all tasks were stopped; equal to [`Self::stopped_at`] if it is not
    /// known.
    fn frozen_at(&self) -> Instant;

    /// Returns the sockets whose files the destination's restore may replace, and those that cannot
    /// be kept.
    fn names(&self, migration: MigrationId) -> (SocketNames, Vec<Unkept>);

    /// Freezes the container by its cgroup, too.
    ///
    /// # Errors
    /// If the cgroup cannot be frozen. The container then runs on, or will when `self` is dropped.
    fn fence(self) -> Result<Self::Fenced, (Self, Cause)>;

    /// Resumes the container.
    ///
    /// # Errors
    /// If it is still frozen.
    fn release(self) -> Result<(), Cause>;
}

/// A dumped container that stays frozen if CRIU dies and, once it is sealed, if this process dies.
pub trait Fence: Sized {
    /// Makes the fence outlive this process. Before that, the death of this process resumes the
    /// container: its journal does not announce a commit yet.
    ///
    /// # Errors
    /// If the fence cannot be made permanent.
    fn seal(&mut self) -> Result<(), Cause>;

    /// Resumes the container.
    ///
    /// # Errors
    /// If it is still frozen.
    fn release(self) -> Result<(), Cause>;

    /// Kills the container and removes it from this host.
    ///
    /// # Errors
    /// If a part could not be removed. The container does not execute in any case.
    fn finish(self) -> Result<(), Cause>;

    /// Leaves the container frozen: it is not known yet where it runs.
    fn leave(self);
}
