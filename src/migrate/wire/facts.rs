//! Capabilities of a host, as it reports them to the other end.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Mount of the control groups of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CgroupMode {
    /// Version 2 only.
    Unified,
    /// Version 1 controllers, with or without an empty version 2 hierarchy beside them.
    Legacy,
}

/// Capabilities of one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// Version of rcm.
    pub rcm_version: String,
    /// The machine architecture as uname(2) names it.
    pub architecture: String,
    /// Features of the processor as in `/proc/cpuinfo`.
    pub cpu_features: BTreeSet<String>,
    /// The kernel's release as uname(2) names it.
    pub kernel_release: String,
    /// CRIU's version as `MAJOR * 10000 + MINOR * 100 + SUBLEVEL`; 0 if the host has no usable
    /// CRIU.
    pub criu_version: u32,
    /// Features that the kernel and CRIU have together: "mem_track", "lazy_pages".
    pub criu_features: BTreeSet<String>,
    /// Mount of the control groups.
    pub cgroup_mode: CgroupMode,
    /// Controllers that are in use.
    #[serde(default)]
    pub cgroup_controllers: BTreeSet<String>,
}
