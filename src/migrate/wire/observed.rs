//! Resources that a running container uses, as the source has observed them.

use core::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A file of the root file system that the container's processes have mapped.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NeededFile {
    /// Absolute path in the container.
    pub path: PathBuf,
    /// Its size. CRIU refuses a file of another one (`criu/files-reg.c`, `validate_file`).
    pub size_bytes: u64,
}

/// What a running container uses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Observed {
    /// Mapped files of the root file system.
    pub files: Vec<NeededFile>,
    /// The addresses of this end of its TCP connections, without those of the loopback.
    pub tcp_addresses: Vec<IpAddr>,
    /// The memory that the images will hold.
    pub memory_bytes: u64,
    /// How many processes move.
    pub processes: u64,
}
