//! Data of which the source composes the preamble: the container, this host and the migration.

use std::path::PathBuf;

use crate::criu::CriuChoices;
use crate::migrate::wire::facts::Facts;
use crate::migrate::wire::id::MigrationId;
use crate::migrate::wire::observed::Observed;
use crate::migrate::wire::preamble::{BindMount, CarriedFile, Preamble};
use crate::migrate::wire::rootfs::RootfsOffer;

/// The bundle that the destination needs.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// Path of the bundle, unless the receiver has another one.
    pub path: PathBuf,
    /// Path of the root file system.
    pub rootfs: PathBuf,
    /// The OCI spec.
    pub spec: serde_json::Value,
    /// Files and directories of the host that the container mounts.
    pub bind_mounts: Vec<BindMount>,
    /// Files that are put into a new bundle.
    pub carried: Vec<CarriedFile>,
}

/// The part that is known before the destination is connected.
#[derive(Debug, Clone)]
pub struct Offer {
    /// Id of the migration.
    pub migration: MigrationId,
    /// Id of the container.
    pub container: String,
    /// Description of this host.
    pub facts: Facts,
    /// The bundle that the destination needs.
    pub bundle: Bundle,
    /// Path of the image store here.
    pub image_path: PathBuf,
    /// CRIU's flags at this end.
    pub criu: CriuChoices,
    /// Observations of the running container.
    pub observed: Observed,
    /// CRIU's description of the processor; empty if CRIU has none.
    pub processor: Vec<u8>,
    /// Request for the root file system.
    pub rootfs: RootfsOffer,
    /// Whether the migration ends before the commit.
    pub rehearses: bool,
}

/// The part that is known only after the destination is connected.
#[derive(Debug, Clone)]
pub struct Meeting {
    /// Number of connections for the images; 0 if both ends share the store.
    pub streams: u32,
    /// Name of the file in the root file system by which the destination recognizes the same tree.
    pub probe: Option<String>,
    /// Wall clock of this host, in milliseconds since 1970.
    pub clock_ms: i64,
    /// Whether the destination is only asked.
    pub asks_only: bool,
}

impl Offer {
    /// Composes the preamble. No other code decides about the contents of the preamble.
    #[must_use]
    pub fn preamble(&self, meeting: Meeting) -> Preamble {
        let Self {
            migration,
            container,
            facts,
            bundle,
            image_path,
            criu,
            observed,
            processor,
            rootfs,
            rehearses,
        } = self.clone();
        Preamble {
            migration,
            container,
            facts,
            spec: bundle.spec,
            bundle: bundle.path,
            rootfs: bundle.rootfs,
            bind_mounts: bundle.bind_mounts,
            image_path,
            criu,
            observed,
            processor,
            clock_ms: Some(meeting.clock_ms),
            streams: meeting.streams,
            rootfs_offer: RootfsOffer {
                nonce: meeting.probe,
                ..rootfs
            },
            carried: bundle.carried,
            asks_only: meeting.asks_only,
            rehearses,
        }
    }
}
