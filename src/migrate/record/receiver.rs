//! A receiver as its journal stores it, for another process that answers in its place.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::migrate::trust::StoredIdentity;
use crate::migrate::wire::id::Bytes32;

/// Parameters of a receiver, as its journal stores them. Only root can read the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredReceiver {
    /// Address on which it listened.
    pub listen: SocketAddr,
    /// Certificate, unless that is in files.
    pub identity: Option<StoredIdentity>,
    /// Key of sources that do not know the secret of its file.
    pub key_without_store: Option<Bytes32>,
    /// Path of its image store.
    pub store: PathBuf,
}
