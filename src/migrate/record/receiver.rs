//! A receiver as its journal keeps it, for another process that answers in its place.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::migrate::trust::StoredIdentity;
use crate::migrate::wire::id::Bytes32;

/// A receiver, as its journal holds it. Root alone reads that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredReceiver {
    /// Where it listened.
    pub listen: SocketAddr,
    /// Its certificate, unless that is in files.
    pub identity: Option<StoredIdentity>,
    /// The key of sources that do not know the secret of its file.
    pub key_without_store: Option<Bytes32>,
    /// Its image store.
    pub store: PathBuf,
}
