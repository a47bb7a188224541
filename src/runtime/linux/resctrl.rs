//! Intel RDT: the resctrl group of a container (Documentation/filesystems/resctrl.rst).
//!
//! libcontainer's `container_main_process`, which rcm uses, leaves RDT to its caller. rcm lets
//! libcontainer make the group, and removes it itself.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use libcontainer::process::intel_rdt::{find_resctrl_mount_point, setup_intel_rdt};
use nix::unistd::Pid;
use oci_spec::runtime::{LinuxIntelRdt, Spec};
use serde::Serialize;

use super::cgroup::CgroupError;
use super::go_json;
use crate::error::chain;
use crate::sys::file::Failed;

/// Statistics of RDT for a container.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct ResctrlStats {
    /// Properties of the cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l3_cache_info: Option<CacheInfo>,
    /// The cache's lines of the root group's schemata.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub l3_cache_schema_root: String,
    /// The cache's lines of the container's schemata.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub l3_cache_schema: String,
    /// Properties of the memory bandwidth.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_bw_info: Option<BandwidthInfo>,
    /// The bandwidth's line of the root group's schemata.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mem_bw_schema_root: String,
    /// The bandwidth's line of the container's schemata.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mem_bw_schema: String,
    /// All lines of the container's schemata.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub schemata: Vec<String>,
    /// Bandwidth used so far, by NUMA node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mbm_stats: Option<Vec<BandwidthUse>>,
    /// Cache in use, by NUMA node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmt_stats: Option<Vec<CacheUse>>,
}

/// Files of `info/L3`.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct CacheInfo {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cbm_mask: String,
    #[serde(skip_serializing_if = "go_json::is_zero")]
    pub min_cbm_bits: u64,
    #[serde(skip_serializing_if = "go_json::is_zero")]
    pub num_closids: u64,
}

/// Files of `info/MB`.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct BandwidthInfo {
    #[serde(skip_serializing_if = "go_json::is_zero")]
    pub bandwidth_gran: u64,
    #[serde(skip_serializing_if = "go_json::is_zero")]
    pub delay_linear: u64,
    #[serde(skip_serializing_if = "go_json::is_zero")]
    pub min_bandwidth: u64,
    #[serde(skip_serializing_if = "go_json::is_zero")]
    pub num_closids: u64,
}

/// Bytes through the memory controllers of one NUMA node.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct BandwidthUse {
    pub mbm_total_bytes: u64,
    pub mbm_local_bytes: u64,
}

/// Bytes in the cache of one NUMA node.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct CacheUse {
    pub llc_occupancy: u64,
}

/// Group that a container's spec puts it into.
#[derive(Debug, Clone)]
pub struct Group {
    root: PathBuf,
    dir: PathBuf,
    /// The container's own monitoring group in it, if it has one.
    monitoring_dir: PathBuf,
    /// Whether the spec names the group; other containers may be in it, too, in that case.
    named: bool,
}

impl Group {
    /// Returns the group of the container `id`; `None` if its spec names no RDT or the host has
    /// none.
    #[must_use]
    pub fn of(spec: &Spec, id: &str) -> Option<Self> {
        let rdt = spec.linux().as_ref()?.intel_rdt().as_ref()?;
        Some(Self::new(mount_point()?, rdt, id))
    }

    fn new(root: PathBuf, rdt: &LinuxIntelRdt, id: &str) -> Self {
        let name = rdt.clos_id().as_deref().unwrap_or(id);
        let dir = root.join(name);
        Self {
            monitoring_dir: dir.join("mon_groups").join(id),
            named: rdt.clos_id().is_some(),
            root,
            dir,
        }
    }

    /// Puts a process into the group, and makes the group as the spec has it. The process must have
    /// no children yet: it is the container's first one, or the CRIU that restores it.
    ///
    /// # Errors
    /// The reason, as one sentence: the host has no RDT, or refuses.
    pub(crate) fn join(id: &str, pid: Pid, rdt: &LinuxIntelRdt) -> Result<(), String> {
        setup_intel_rdt(Some(id), &pid, rdt)
            .map(drop)
            .map_err(|error| {
                format!(
                    "intelRdt is specified in config, but cannot be set up: {}",
                    chain(&error)
                )
            })
    }

    /// Removes the groups that were made for the container alone. Its processes must be gone.
    ///
    /// # Errors
    /// Those of rmdir(2).
    pub fn remove(&self) -> io::Result<()> {
        let own = (!self.named).then_some(&self.dir);
        for dir in [Some(&self.monitoring_dir), own].into_iter().flatten() {
            match fs::remove_dir(dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Returns the path of the file that has the group's limits.
    #[must_use]
    pub fn schemata_path(&self) -> PathBuf {
        self.dir.join("schemata")
    }

    /// Reads the limits of the group and its use.
    ///
    /// # Errors
    /// If a file exists but cannot be read.
    pub fn stats(&self) -> Result<ResctrlStats, CgroupError> {
        let mut stats = ResctrlStats::default();
        let of_root = lines(&self.root.join("schemata"))?;
        stats.schemata = lines(&self.schemata_path())?;
        if has_cache_allocation(&self.root) {
            let info = self.root.join("info/L3");
            stats.l3_cache_info = Some(CacheInfo {
                cbm_mask: word(&info.join("cbm_mask"))?,
                min_cbm_bits: number(&info.join("min_cbm_bits"))?,
                num_closids: number(&info.join("num_closids"))?,
            });
            stats.l3_cache_schema_root = schema(&of_root, "L3");
            stats.l3_cache_schema = schema(&stats.schemata, "L3");
        }
        if has_bandwidth_allocation(&self.root) {
            let info = self.root.join("info/MB");
            stats.mem_bw_info = Some(BandwidthInfo {
                bandwidth_gran: number(&info.join("bandwidth_gran"))?,
                delay_linear: number(&info.join("delay_linear"))?,
                min_bandwidth: number(&info.join("min_bandwidth"))?,
                num_closids: number(&info.join("num_closids"))?,
            });
            stats.mem_bw_schema_root = schema(&of_root, "MB");
            stats.mem_bw_schema = schema(&stats.schemata, "MB");
        }
        self.monitor(&mut stats)?;
        Ok(stats)
    }

    fn monitor(&self, stats: &mut ResctrlStats) -> Result<(), CgroupError> {
        let features = lines(&self.root.join("info/L3_MON/mon_features"))?;
        let has = |name: &str| features.iter().any(|feature| feature == name);
        let counts_bandwidth = has("mbm_total_bytes") || has("mbm_local_bytes");
        let counts_cache = has("llc_occupancy");
        if !counts_bandwidth && !counts_cache {
            return Ok(());
        }
        // Without a monitoring group the numbers are those of the whole group, as with runc.
        let counted_dir = if self.monitoring_dir.is_dir() {
            &self.monitoring_dir
        } else {
            &self.dir
        };
        let mut nodes: Vec<PathBuf> = fs::read_dir(counted_dir.join("mon_data"))
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.is_dir())
            .collect();
        nodes.sort();
        if counts_bandwidth {
            let read = |node: &PathBuf| {
                Ok(BandwidthUse {
                    mbm_total_bytes: number(&node.join("mbm_total_bytes"))?,
                    mbm_local_bytes: number(&node.join("mbm_local_bytes"))?,
                })
            };
            let counted: Result<_, CgroupError> = nodes.iter().map(read).collect();
            stats.mbm_stats = Some(counted?);
        }
        if counts_cache {
            let read = |node: &PathBuf| {
                Ok(CacheUse {
                    llc_occupancy: number(&node.join("llc_occupancy"))?,
                })
            };
            let counted: Result<_, CgroupError> = nodes.iter().map(read).collect();
            stats.cmt_stats = Some(counted?);
        }
        Ok(())
    }
}

/// Returns the mount point of resctrl on this host; `None` if it is not mounted.
#[must_use]
pub fn mount_point() -> Option<PathBuf> {
    find_resctrl_mount_point().ok()
}

/// Returns whether the processor can divide its cache among groups.
#[must_use]
pub fn has_cache_allocation(root: &Path) -> bool {
    // With code and data prioritization the directory has another name.
    ["info/L3", "info/L3CODE"]
        .iter()
        .any(|dir| root.join(dir).is_dir())
}

/// Returns whether the processor can divide its memory bandwidth among groups.
#[must_use]
pub fn has_bandwidth_allocation(root: &Path) -> bool {
    root.join("info/MB").is_dir()
}

fn schema(lines: &[String], resource: &str) -> String {
    lines
        .iter()
        .rfind(|line| line.contains(resource))
        .map(|line| line.trim().to_owned())
        .unwrap_or_default()
}

/// Reads a file; the text is empty if the kernel does not have the file.
fn text(path: &Path) -> Result<String, CgroupError> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read.map_err(|source| {
            CgroupError::File(Failed {
                action: "read",
                path: path.to_path_buf(),
                source,
            })
        }),
    }
}

fn lines(path: &Path) -> Result<Vec<String>, CgroupError> {
    Ok(text(path)?.lines().map(str::to_owned).collect())
}

fn word(path: &Path) -> Result<String, CgroupError> {
    Ok(text(path)?.trim().to_owned())
}

/// Reads a counter; `Unavailable` counts as 0.
fn number(path: &Path) -> Result<u64, CgroupError> {
    Ok(word(path)?.parse().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    #[test]
    fn a_group_with_everything() {
        let root = tree(&[
            ("schemata", "    L3:0=fffff\n    MB:0=100\n"),
            ("info/L3/cbm_mask", "fffff\n"),
            ("info/L3/min_cbm_bits", "1\n"),
            ("info/L3/num_closids", "16\n"),
            ("info/MB/bandwidth_gran", "10\n"),
            ("info/MB/min_bandwidth", "10\n"),
            (
                "info/L3_MON/mon_features",
                "llc_occupancy\nmbm_total_bytes\nmbm_local_bytes\n",
            ),
            ("web/schemata", "L3:0=f\nMB:0=20\n"),
            ("web/mon_data/mon_L3_00/llc_occupancy", "4096\n"),
            ("web/mon_data/mon_L3_00/mbm_total_bytes", "9\n"),
            ("web/mon_data/mon_L3_00/mbm_local_bytes", "Unavailable\n"),
        ]);
        let group = Group::new(root.path().into(), &LinuxIntelRdt::default(), "web");
        let stats = serde_json::to_value(group.stats().unwrap()).unwrap();
        assert_eq!(
            stats,
            serde_json::json!({
                "l3_cache_info": {"cbm_mask": "fffff", "min_cbm_bits": 1, "num_closids": 16},
                "l3_cache_schema_root": "L3:0=fffff",
                "l3_cache_schema": "L3:0=f",
                "mem_bw_info": {"bandwidth_gran": 10, "min_bandwidth": 10},
                "mem_bw_schema_root": "MB:0=100",
                "mem_bw_schema": "MB:0=20",
                "schemata": ["L3:0=f", "MB:0=20"],
                "mbm_stats": [{"mbm_total_bytes": 9, "mbm_local_bytes": 0}],
                "cmt_stats": [{"llc_occupancy": 4096}]
            })
        );
    }

    #[test]
    fn a_named_group_is_left_to_others() {
        let root = tempfile::tempdir().unwrap();
        let mut rdt = LinuxIntelRdt::default();
        for (name, left) in [(None, false), (Some("gold".to_owned()), true)] {
            rdt.set_clos_id(name);
            let group = Group::new(root.path().into(), &rdt, "web");
            fs::create_dir_all(&group.dir).unwrap();
            group.remove().unwrap();
            assert_eq!(group.dir.exists(), left);
            // A second call finds nothing to remove.
            group.remove().unwrap();
        }
    }

    #[test]
    fn a_named_group() {
        let mut rdt = LinuxIntelRdt::default();
        rdt.set_clos_id(Some("gold".into()));
        let group = Group::new("/r".into(), &rdt, "web");
        assert_eq!(group.schemata_path(), Path::new("/r/gold/schemata"));
        assert_eq!(group.monitoring_dir, Path::new("/r/gold/mon_groups/web"));
    }
}
