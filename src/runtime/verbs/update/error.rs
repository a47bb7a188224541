//! Errors of a change of limits.

use std::io;
use std::path::PathBuf;

/// Reason why limits could not be changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpdateError {
    /// The kernel refused a value.
    #[error("cannot write {value:?} to {path}")]
    Write {
        /// The value.
        value: String,
        /// Path of the control file.
        path: PathBuf,
        /// Error of the write.
        #[source]
        source: io::Error,
    },
    /// A control file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Path of the control file.
        path: PathBuf,
        /// Error of the read.
        #[source]
        source: io::Error,
    },
    /// The container's cgroup does not have the controller.
    #[error("cannot set {setting}: the container's cgroup has no {controller} controller")]
    NoController {
        /// Name of the setting in `config.json`.
        setting: &'static str,
        /// Name of the controller.
        controller: &'static str,
    },
    /// The kernel could not reclaim enough memory.
    #[error(
        "unable to set memory limit to {limit_bytes} (current usage: {usage_bytes}, peak usage: {peak_bytes})"
    )]
    MemoryInUse {
        /// The limit.
        limit_bytes: i64,
        /// Use now.
        usage_bytes: String,
        /// Highest use so far.
        peak_bytes: String,
    },
    /// The limit is below the use, and `checkBeforeUpdate` forbids that.
    #[error(
        "memory limit {limit_bytes} is below the current usage of {usage_bytes} and checkBeforeUpdate is set"
    )]
    BelowUsage {
        /// The limit.
        limit_bytes: i64,
        /// Use now.
        usage_bytes: u64,
    },
    /// The limit on swap needs a limit on memory: cgroup v2 limits the difference.
    #[error("unable to set swap limit without memory limit")]
    SwapWithoutLimit,
    /// The limit on memory and swap together is below the limit on memory.
    #[error("memory+swap limit should be >= memory limit")]
    SwapBelowLimit,
    /// The kernel accepted another value than the given one.
    #[error("the {bound} allowed cpu-shares is {accepted}")]
    Shares {
        /// "maximum" or "minimum".
        bound: &'static str,
        /// The accepted value.
        accepted: u64,
    },
    /// `unified` names files of cgroup v2, and this is v1.
    #[error("invalid configuration: cannot use unified on cgroup v1")]
    UnifiedOnV1,
    /// A name in `unified` is no file name.
    #[error("unified resource {name:?} must be a file name without slashes")]
    UnifiedName {
        /// The name.
        name: String,
    },
    /// The processor cannot divide its cache.
    #[error("Intel RDT/CAT: l3 cache schema is not enabled")]
    NoCacheAllocation,
    /// The processor cannot divide its memory bandwidth.
    #[error("Intel RDT/MBA: memory bandwidth schema is not enabled")]
    NoBandwidthAllocation,
    /// The container was created without Intel RDT.
    #[error("updating a non-existent Intel RDT configuration is not supported")]
    NoRdt,
    /// systemd refused the limits.
    #[error("systemd refuses the new limits: {reason}")]
    Systemd {
        /// Error chain of systemd.
        reason: String,
    },
}
