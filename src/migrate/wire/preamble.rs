//! What the source tells of the container and of itself before anything is stopped, and the judgement on it.
//!
//! No input or output here: [`crate::migrate::preflight::facts`] gathers, [`judge`](crate::migrate::agreement::judge()) compares. All findings come at once, each with what to do
//! about it, so that an operator does not repair one thing after the other.

use crate::criu::CriuChoices;

use super::facts::Facts;
use super::observed::Observed;
use super::rootfs::RootfsOffer;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::id::MigrationId;

/// A mount of the container that needs something on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BindMount {
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Absolute path in the container.
    pub destination: PathBuf,
}

/// A file, or an empty directory, that comes into the bundle at the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CarriedFile {
    /// Its name in [`Self::DIR`].
    pub name: String,
    /// `None` for a directory.
    pub contents: Option<Vec<u8>>,
    /// Its permissions.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

impl CarriedFile {
    /// The directory of these, in the bundle.
    pub const DIR: &str = "files";
}

/// What a source sends first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Preamble {
    /// This migration.
    pub migration: MigrationId,
    /// The container's id at the source.
    pub container: String,
    /// The source itself.
    pub facts: Facts,
    /// The container's OCI spec as it was created with.
    pub spec: serde_json::Value,
    /// The bundle's path at the source.
    pub bundle: PathBuf,
    /// The root file system's path at the source.
    pub rootfs: PathBuf,
    /// Files and directories of the host that the container mounts.
    pub bind_mounts: Vec<BindMount>,
    /// The image store's path at the source.
    pub image_path: PathBuf,
    /// How the dump is made; the restore must be told the same.
    pub criu: CriuChoices,
    /// What the container uses.
    #[serde(default)]
    pub observed: Observed,
    /// CRIU's description of the source's processor; empty where it has none.
    #[serde(default)]
    pub processor: Vec<u8>,
    /// The source's wall clock when it sent this, in milliseconds since 1970.
    #[serde(default)]
    pub clock_ms: Option<i64>,
    /// How many connections carry the images; 0 where both ends share the store.
    #[serde(default)]
    pub streams: u32,
    /// What is to be done about the root file system.
    #[serde(default)]
    pub rootfs_offer: RootfsOffer,
    /// What is put into the bundle if that is new at the destination.
    #[serde(default)]
    pub carried: Vec<CarriedFile>,
    /// The source only asks for findings and will not begin; the receiver goes on waiting.
    #[serde(default)]
    pub asks_only: bool,
    /// The source will not commit: it wants to know whether it could, and how long that would take. The receiver goes on waiting.
    #[serde(default)]
    pub rehearses: bool,
}
