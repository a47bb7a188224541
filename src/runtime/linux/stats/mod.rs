//! Resource use of a container: runc's statistics document, read from the files of its cgroup.
//!
//! `libcgroups` has statistics, too, but it fails if the kernel lacks a file (those of swap
//! accounting, for one) and does not know cpusets. Here, a controller or a file that the host does
//! not have leaves its part of the document empty, as with runc.

use std::collections::BTreeMap;

use serde::Serialize;

use super::cgroup::{Cgroup, CgroupError};
use super::go_json;
use super::resctrl::{self, Group};
use crate::runtime::container::Container;
use crate::runtime::error::{Error, Result};

mod files;
mod v1;
mod v2;

/// Statistics of one moment. Times are in nanoseconds and memory is in bytes, counted since the
/// container was created.
#[derive(Debug, Default, Serialize)]
pub struct Stats {
    /// Processor time.
    pub cpu: CpuStats,
    /// Processors and memory nodes; all zero on cgroup v2, as runc has it.
    pub cpuset: CpuSet,
    /// Memory.
    pub memory: MemoryStats,
    /// Tasks.
    pub pids: PidsStats,
    /// Block devices.
    pub blkio: BlockIoStats,
    /// Huge pages by size, such as `2MB`.
    pub hugetlb: BTreeMap<String, HugeTlb>,
    /// Intel RDT: cache and memory bandwidth.
    pub intel_rdt: resctrl::ResctrlStats,
    /// Always null: runc counts only interfaces that it made itself, and no OCI spec can request
    /// such.
    pub network_interfaces: (),
}

/// Processor time.
#[derive(Debug, Default, Serialize)]
pub struct CpuStats {
    /// Time that was used.
    pub usage: CpuUsage,
    /// Throttling by a quota.
    pub throttling: Throttling,
    /// Time that tasks waited for a processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// Processor time that was used.
#[derive(Debug, Default, Serialize)]
pub struct CpuUsage {
    /// In total.
    #[serde(skip_serializing_if = "go_json::is_zero")]
    pub total: u64,
    /// By processor; cgroup v1 only, like the next two.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu: Vec<u64>,
    /// In the kernel, by processor.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_kernel: Vec<u64>,
    /// In user mode, by processor.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_user: Vec<u64>,
    /// In the kernel.
    pub kernel: u64,
    /// In user mode.
    pub user: u64,
}

/// Effects of a quota.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Throttling {
    /// Periods that have elapsed.
    #[serde(skip_serializing_if = "go_json::is_zero")]
    pub periods: u64,
    /// Periods in which the quota was used up.
    #[serde(skip_serializing_if = "go_json::is_zero")]
    pub throttled_periods: u64,
    /// Time for which tasks were throttled.
    #[serde(skip_serializing_if = "go_json::is_zero")]
    pub throttled_time: u64,
}

/// The cpuset controller of cgroup v1 (cpuset(7)).
#[derive(Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct CpuSet {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<u16>,
    pub cpu_exclusive: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mems: Vec<u16>,
    pub mem_hardwall: u64,
    pub mem_exclusive: u64,
    pub memory_migrate: u64,
    pub memory_spread_page: u64,
    pub memory_spread_slab: u64,
    pub memory_pressure: u64,
    pub sched_load_balance: u64,
    pub sched_relax_domain_level: i64,
}

/// Memory.
#[derive(Debug, Default, Serialize)]
pub struct MemoryStats {
    /// Page cache.
    #[serde(skip_serializing_if = "go_json::is_zero")]
    pub cache: u64,
    /// All memory.
    pub usage: MemoryEntry,
    /// Memory and swap together, on cgroup v2, too.
    pub swap: MemoryEntry,
    /// Memory of the kernel; cgroup v1 only, like the next.
    pub kernel: MemoryEntry,
    /// Buffers of TCP.
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: MemoryEntry,
    /// The counters of `memory.stat`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub raw: BTreeMap<String, u64>,
    /// Time that tasks waited for memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// One kind of memory.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct MemoryEntry {
    /// The limit; the largest number if there is none.
    pub limit: u64,
    /// Use now.
    #[serde(skip_serializing_if = "go_json::is_zero")]
    pub usage: u64,
    /// Highest use so far.
    #[serde(skip_serializing_if = "go_json::is_zero")]
    pub max: u64,
    /// Number of times that the limit was hit; cgroup v1 only.
    pub failcnt: u64,
}

/// Tasks.
#[derive(Debug, Default, Serialize)]
pub struct PidsStats {
    /// Number of tasks.
    #[serde(skip_serializing_if = "go_json::is_zero")]
    pub current: u64,
    /// The limit; 0 if there is none.
    #[serde(skip_serializing_if = "go_json::is_zero")]
    pub limit: u64,
}

/// Block devices.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockIoStats {
    /// Bytes transferred.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_bytes_recursive: Vec<BlockIoEntry>,
    /// Operations.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_serviced_recursive: Vec<BlockIoEntry>,
    /// Requests waiting. This and the following need cgroup v1, and a scheduler that counts them.
    #[serde(rename = "ioQueueRecursive", skip_serializing_if = "Vec::is_empty")]
    pub io_queued_recursive: Vec<BlockIoEntry>,
    /// Time from dispatch to completion.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_time_recursive: Vec<BlockIoEntry>,
    /// Time in the scheduler's queues.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_wait_time_recursive: Vec<BlockIoEntry>,
    /// Requests merged into others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_merged_recursive: Vec<BlockIoEntry>,
    /// Time for which the device served the group.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_time_recursive: Vec<BlockIoEntry>,
    /// Sectors transferred.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sectors_recursive: Vec<BlockIoEntry>,
    /// Time that tasks waited for devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// Counter of one device.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct BlockIoEntry {
    /// Major number of the device.
    #[serde(skip_serializing_if = "go_json::is_zero")]
    pub major: u64,
    #[serde(skip_serializing_if = "go_json::is_zero")]
    #[allow(missing_docs)]
    pub minor: u64,
    /// Operation: `Read`, `Write`, ...
    #[serde(skip_serializing_if = "String::is_empty")]
    pub op: String,
    /// Value of the counter.
    #[serde(skip_serializing_if = "go_json::is_zero")]
    pub value: u64,
}

/// Huge pages of one size.
#[derive(Debug, Default, Serialize)]
pub struct HugeTlb {
    /// Use now.
    #[serde(skip_serializing_if = "go_json::is_zero")]
    pub usage: u64,
    /// Highest use so far; cgroup v1 only.
    #[serde(skip_serializing_if = "go_json::is_zero")]
    pub max: u64,
    /// Number of times that the limit was hit.
    pub failcnt: u64,
}

/// Pressure stall information (Documentation/accounting/psi.rst); cgroup v2 only.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Pressure {
    /// At least one task waited.
    pub some: PressureLine,
    /// All tasks waited.
    pub full: PressureLine,
}

/// Waiting as a share of time, in per cent.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct PressureLine {
    /// Over ten seconds.
    #[serde(serialize_with = "go_json::float")]
    pub avg10: f64,
    /// Over a minute.
    #[serde(serialize_with = "go_json::float")]
    pub avg60: f64,
    /// Over five minutes.
    #[serde(serialize_with = "go_json::float")]
    pub avg300: f64,
    /// The waiting time in microseconds.
    pub total: u64,
}

/// Reader of one container's statistics, for any number of times.
#[derive(Debug)]
pub struct Reader {
    id: String,
    cgroup: Cgroup,
    group: Option<Group>,
}

impl Reader {
    /// Finds the directories to read.
    ///
    /// # Errors
    /// If the container's spec cannot be read.
    pub fn new(container: &Container) -> Result<Self> {
        Ok(Self {
            id: container.id().to_owned(),
            cgroup: container.cgroup(),
            group: Group::of(&container.spec()?, container.id()),
        })
    }

    /// Reads the numbers of this moment.
    ///
    /// # Errors
    /// [`crate::runtime::Error::Cgroup`] if a file exists but cannot be read.
    pub fn read(&self) -> Result<Stats> {
        self.collect()
            .map_err(Error::cgroup("read the statistics of", &self.id))
    }

    fn collect(&self) -> std::result::Result<Stats, CgroupError> {
        let mut stats = match self.cgroup.dir("") {
            Some(dir) if self.cgroup.is_v2() => v2::read(dir)?,
            _ => v1::read(&self.cgroup)?,
        };
        if let Some(group) = &self.group {
            stats.intel_rdt = group.stats()?;
        }
        Ok(stats)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_document_has_runcs_members() {
        let value = serde_json::to_value(Stats::default()).unwrap();
        assert_eq!(
            value,
            serde_json::json!({
                "cpu": {"usage": {"kernel": 0, "user": 0}, "throttling": {}},
                "cpuset": {
                    "cpu_exclusive": 0, "mem_hardwall": 0, "mem_exclusive": 0, "memory_migrate": 0, "memory_spread_page": 0,
                    "memory_spread_slab": 0, "memory_pressure": 0, "sched_load_balance": 0, "sched_relax_domain_level": 0
                },
                "memory": {
                    "usage": {"limit": 0, "failcnt": 0}, "swap": {"limit": 0, "failcnt": 0},
                    "kernel": {"limit": 0, "failcnt": 0}, "kernelTCP": {"limit": 0, "failcnt": 0}
                },
                "pids": {}, "blkio": {}, "hugetlb": {}, "intel_rdt": {}, "network_interfaces": null
            })
        );
    }

    #[test]
    fn whole_percentages_have_no_decimal_point() {
        let line = PressureLine {
            avg10: 0.0,
            avg60: 1.5,
            avg300: 100.0,
            total: 7,
        };
        assert_eq!(
            serde_json::to_string(&line).unwrap(),
            r#"{"avg10":0,"avg60":1.5,"avg300":100,"total":7}"#
        );
    }
}
