//! Observations of the destination about its own host, which the judges compare with the preamble.

use core::net::IpAddr;
use std::path::PathBuf;

use super::space::Space;
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
    /// Whether its `config.json` is equal to the source's at the creation of the container.
    pub same_spec: bool,
    /// Conflict of the container's terminal with the receiver's flags, and its remedy.
    pub terminal: Option<(&'static str, &'static str)>,
    /// Sources of bind mounts that do not exist here.
    pub missing_mount_sources: Vec<PathBuf>,
    /// Whether the migration's directory is visible in this host's image store.
    pub images_visible: bool,
    /// This host's path of the image store.
    pub image_path: PathBuf,
    /// Mapped files of the container that are not in the root file system, or have another size.
    pub differing_files: Vec<PathBuf>,
    /// Conflict of the container's network at the source with the one here, and its remedy.
    pub network: Option<(String, String)>,
    /// The network namespace that exists for the container.
    pub network_namespace: Option<PathBuf>,
    /// Addresses of the container's connections that no interface has.
    pub missing_addresses: Vec<IpAddr>,
    /// This host's wall clock, in milliseconds since 1970.
    pub clock_ms: Option<i64>,
    /// Reason for which there is no usable CRIU here.
    pub no_criu: Option<String>,
    /// CRIU's objection to this host's processor.
    pub processor: Option<String>,
    /// Free space of the image store.
    pub space: Space,
    /// State of the path at which the root file system belongs.
    pub rootfs_found: RootfsFound,
    /// Way by which the root file system gets here.
    pub rootfs_plan: RootfsPlan,
}

/// State of the place at the destination where the root file system belongs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RootfsFound {
    /// Whether the source's probe file is there: then it is the same tree.
    pub sees_probe: bool,
    /// Whether a file system is mounted there.
    pub is_mount_point: bool,
    /// A process whose root directory it is.
    pub used_by: Option<i32>,
    /// Free space of its file system, in bytes.
    pub free_bytes: Option<u64>,
    /// Size of a tree that is there, in bytes, if it was measured.
    pub size_bytes: u64,
}
