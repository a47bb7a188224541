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
    /// Size of the file. CRIU refuses a file of another size (`validate_file` in criu/files-reg.c,
    /// CRIU 4.2).
    pub size_bytes: u64,
}

/// Resources that a running container uses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Observed {
    /// Mapped files of the root file system.
    pub files: Vec<NeededFile>,
    /// Local addresses of its TCP connections, without those of the loopback device.
    pub tcp_addresses: Vec<IpAddr>,
    /// Memory that the images will hold.
    pub memory_bytes: u64,
    /// Number of processes.
    pub processes: u64,
}
