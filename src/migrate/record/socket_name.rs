//! Name of a Unix socket that a migration has put aside.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A name that may have to be put back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketName {
    /// Directory of this host from which the container sees the file: the root file system, or the
    /// source of a bind mount.
    pub tree: PathBuf,
    /// Path of the socket's file below that directory.
    pub path: PathBuf,
    /// Name under which the file is put aside, in the same directory as the socket.
    pub aside: String,
}
