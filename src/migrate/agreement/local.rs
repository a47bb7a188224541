//! Observations of the destination about its own host, which the judges compare with the preamble.

use core::net::IpAddr;
use std::path::PathBuf;

use super::space::Room;
use crate::migrate::wire::rootfs::RootfsPlan;

/// Observations that concern one preamble.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Local {
    /// The id that the receiver was started for.
    pub container: String,
    /// Whether that id is in use here.
    pub id_in_use: bool,
    /// The bundle that will be used: `--bundle`, else the source's path.
    pub bundle: PathBuf,
    /// Whether it is a directory.
    pub bundle_exists: bool,
    /// The root file system that will be used.
    pub rootfs: PathBuf,
    /// Whether it is a directory.
    pub rootfs_exists: bool,
    /// Whether its `config.json` says what the source's did when the container was created.
    pub same_spec: bool,
    /// What does not fit between the container's terminal and the receiver's flags, and what to do.
    pub terminal: Option<(&'static str, &'static str)>,
    /// Sources of bind mounts that do not exist here.
    pub missing_mount_sources: Vec<PathBuf>,
    /// Whether the migration's directory is visible in this host's image store.
    pub images_visible: bool,
    /// This host's path of the image store.
    pub image_path: PathBuf,
    /// Mapped files of the container that are not in the root file system, or have another size.
    pub differing_files: Vec<PathBuf>,
    /// What does not fit between the network of the container at the source and the one here, and what to do.
    pub network: Option<(String, String)>,
    /// The network namespace that exists for the container.
    pub network_namespace: Option<PathBuf>,
    /// Addresses of the container's connections that no interface has.
    pub missing_addresses: Vec<IpAddr>,
    /// This host's wall clock, in milliseconds since 1970.
    pub clock_ms: Option<i64>,
    /// Why there is no CRIU here that can be used.
    pub no_criu: Option<String>,
    /// What CRIU says against this host's processor.
    pub processor: Option<String>,
    /// What there is in the image store.
    pub room: Room,
    /// What there is at the place of the root file system.
    pub rootfs_found: RootfsFound,
    /// How it gets here.
    pub rootfs_plan: RootfsPlan,
}

/// State of the place at the destination where the root file system belongs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RootfsFound {
    /// The source's nonce: it is the same tree.
    pub sees_nonce: bool,
    /// Something is mounted there.
    pub is_mount_point: bool,
    /// A process whose root directory it is.
    pub used_by: Option<i32>,
    /// What is free on its file system.
    pub free_bytes: Option<u64>,
    /// What a tree that is there takes, where it was looked at.
    pub size_bytes: u64,
}
