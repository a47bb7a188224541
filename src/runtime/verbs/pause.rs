//! Pausing and resuming with the cgroup freezer.

use crate::runtime::container::Container;
use crate::runtime::error::{Error, Result};
use crate::runtime::status::Status;

/// Freezes all processes of a running or created container.
///
/// # Errors
/// [`Error::NotPausable`].
pub fn pause(container: &Container) -> Result<()> {
    match container.status() {
        Status::Running | Status::Created => container
            .cgroup()
            .freeze()
            .map_err(Error::cgroup("freeze", container.id())),
        status => Err(Error::NotPausable(status)),
    }
}

/// Thaws all processes of a paused container.
///
/// # Errors
/// [`Error::NotPaused`].
pub fn resume(container: &Container) -> Result<()> {
    match container.status() {
        Status::Paused => container
            .cgroup()
            .thaw()
            .map_err(Error::cgroup("thaw", container.id())),
        _ => Err(Error::NotPaused),
    }
}
