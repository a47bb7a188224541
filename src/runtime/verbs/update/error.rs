//! Errors of a change of limits.

use std::io;
use std::path::PathBuf;

/// Limits could not be changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpdateError {
    /// The kernel refused a value.
    #[error("cannot write {value:?} to {path}")]
    Write {
        /// What was written.
        value: String,
        /// The control file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A control file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The control file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The controller is not there.
    #[error("cannot set {setting}: the container's cgroup has no {controller} controller")]
    NoController {
        /// The setting, as `config.json` calls it.
        setting: &'static str,
        /// Its controller.
        controller: &'static str,
    },
    /// The kernel could not reclaim enough.
    #[error(
        "unable to set memory limit to {limit_bytes} (current usage: {usage_bytes}, peak usage: {peak_bytes})"
    )]
    MemoryInUse {
        /// The limit.
        limit_bytes: i64,
        /// What is used now.
        usage_bytes: String,
        /// The most that was used.
        peak_bytes: String,
    },
    /// `checkBeforeUpdate` says not to try.
    #[error(
        "memory limit {limit_bytes} is below the current usage of {usage_bytes} and checkBeforeUpdate is set"
    )]
    BelowUsage {
        /// The limit.
        limit_bytes: i64,
        /// What is used now.
        usage_bytes: u64,
    },
    /// A limit for swap on cgroup v2 follows from that of memory.
    #[error("unable to set swap limit without memory limit")]
    SwapWithoutLimit,
    /// The sum cannot be below a part.
    #[error("memory+swap limit should be >= memory limit")]
    SwapBelowLimit,
    /// The kernel took another value than was written.
    #[error("the {bound} allowed cpu-shares is {accepted}")]
    Shares {
        /// "maximum" or "minimum".
        bound: &'static str,
        /// What it took.
        accepted: u64,
    },
    /// `unified` names files of cgroup v2.
    #[error("invalid configuration: cannot use unified on cgroup v1")]
    UnifiedOnV1,
    /// `unified` names no file.
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
    /// The container was created without.
    #[error("updating a non-existent Intel RDT configuration is not supported")]
    NoRdt,
    /// systemd refused.
    #[error("systemd does not take the new limits: {reason}")]
    Systemd {
        /// Its sentence.
        reason: String,
    },
}
