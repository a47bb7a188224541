//! Name of a Unix socket that a migration has put aside.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A name that may have to be put back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketName {
    /// The directory of this host from which the container sees its file: the root file system, or the source of a bind mount.
    pub tree: PathBuf,
    /// The socket's file below it.
    pub path: PathBuf,
    /// Where the file is put aside, in the same directory.
    pub aside: String,
}
