//! Where a container is after an operation on its migration has failed.

use serde::Serialize;

/// Where a container is after an operation on its migration has failed.
///
/// The exit status of the command line and the answer of an agent follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// The operation did not begin, or it changed nothing: the container is as it was.
    AsBefore,
    /// The container runs on this host.
    RunsHere,
    /// The container runs at the other end, or stayed there.
    RunsThere,
    /// The container is this host's and does not run. The message names the command that helps.
    Stands,
    /// Nobody knows where the container runs until `--resolve` has settled it.
    Unknown,
}

/// An error that knows the fate of the container.
pub trait Fated: std::error::Error {
    /// Returns the fate of the container.
    fn fate(&self) -> Fate;
}
