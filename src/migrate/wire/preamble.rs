//! Description of the container and of the source, which the source sends before anything is
//! stopped.
//!
//! No input or output here: [`crate::migrate::preflight::facts`] gathers,
//! [`judge`](crate::migrate::agreement::judge()) compares. All findings come at once, each with a
//! remedy, so that an operator need not repair one problem after the other.

use crate::criu::CriuChoices;

use super::facts::Facts;
use super::observed::Observed;
use super::rootfs::RootfsOffer;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::id::MigrationId;

/// A mount of the container that needs a file or directory of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BindMount {
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Absolute path in the container.
    pub destination: PathBuf,
}

/// A file, or an empty directory, that is put into the bundle at the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CarriedFile {
    /// Name of the file in [`Self::DIR`].
    pub name: String,
    /// Contents of the file; `None` for a directory.
    pub contents: Option<Vec<u8>>,
    /// Permission bits.
    pub mode: u32,
    /// User id of the owner.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl CarriedFile {
    /// Directory of these files in the bundle.
    pub const DIR: &str = "files";
}

/// First message of a source about the migration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Preamble {
    /// Id of the migration.
    pub migration: MigrationId,
    /// The container's id at the source.
    pub container: String,
    /// Capabilities of the source.
    pub facts: Facts,
    /// OCI spec with which the container was created.
    pub spec: serde_json::Value,
    /// The bundle's path at the source.
    pub bundle: PathBuf,
    /// The root file system's path at the source.
    pub rootfs: PathBuf,
    /// Files and directories of the host that the container mounts.
    pub bind_mounts: Vec<BindMount>,
    /// The image store's path at the source.
    pub image_path: PathBuf,
    /// Options of the dump; the restore needs the same.
    pub criu: CriuChoices,
    /// Resources that the container uses.
    #[serde(default)]
    pub observed: Observed,
    /// CRIU's description of the source's processor; empty if it has none.
    #[serde(default)]
    pub processor: Vec<u8>,
    /// Wall clock of the source when it sent this, in milliseconds since 1970.
    #[serde(default)]
    pub clock_ms: Option<i64>,
    /// Number of connections that carry the images; 0 if both ends share the store.
    #[serde(default)]
    pub streams: u32,
    /// Wish of the source for the root file system.
    #[serde(default)]
    pub rootfs_offer: RootfsOffer,
    /// Files for the bundle, if that is new at the destination.
    #[serde(default)]
    pub carried: Vec<CarriedFile>,
    /// Whether the source only asks for findings and will not begin. The receiver keeps waiting.
    #[serde(default)]
    pub asks_only: bool,
    /// Whether this is a rehearsal: the source will not commit, and only measures. The receiver
    /// keeps waiting.
    #[serde(default)]
    pub rehearses: bool,
}
