//! Statistics of cgroup v1: each controller has its own directory.

use std::path::Path;

use nix::unistd::{SysconfVar, sysconf};

use super::files::{self, Result};
use super::{BlockIoEntry, CpuSet, CpuUsage, HugeTlb, MemoryEntry, Stats};
use crate::runtime::linux::cgroup::Cgroup;

const NANOSECONDS: u64 = 1_000_000_000;

pub(super) fn read(cgroup: &Cgroup) -> Result<Stats> {
    let mut stats = Stats::default();
    if let Some(dir) = cgroup.dir("cpu") {
        let counters = files::keyed(&dir.join("cpu.stat"))?;
        let counter = |name: &str| counters.get(name).copied().unwrap_or_default();
        stats.cpu.throttling.periods = counter("nr_periods");
        stats.cpu.throttling.throttled_periods = counter("nr_throttled");
        stats.cpu.throttling.throttled_time = counter("throttled_time");
    }
    if let Some(dir) = cgroup.dir("cpuacct") {
        stats.cpu.usage = cpu_usage(dir)?;
    }
    if let Some(dir) = cgroup.dir("cpuset") {
        stats.cpuset = cpuset(dir)?;
    }
    if let Some(dir) = cgroup.dir("memory") {
        stats.memory.raw = files::keyed(&dir.join("memory.stat"))?;
        stats.memory.cache = stats.memory.raw.get("cache").copied().unwrap_or_default();
        stats.memory.usage = memory(dir, "memory")?;
        stats.memory.swap = memory(dir, "memory.memsw")?;
        stats.memory.kernel = memory(dir, "memory.kmem")?;
        stats.memory.kernel_tcp = memory(dir, "memory.kmem.tcp")?;
    }
    if let Some(dir) = cgroup.dir("pids") {
        stats.pids.current = files::number(&dir.join("pids.current"))?.unwrap_or_default();
        stats.pids.limit = files::number(&dir.join("pids.max"))?
            .filter(|limit| *limit != u64::MAX)
            .unwrap_or_default();
    }
    if let Some(dir) = cgroup.dir("blkio") {
        let blkio = &mut stats.blkio;
        blkio.io_service_bytes_recursive = device_counters(dir, "io_service_bytes")?;
        blkio.io_serviced_recursive = device_counters(dir, "io_serviced")?;
        blkio.io_queued_recursive = device_counters(dir, "io_queued")?;
        blkio.io_service_time_recursive = device_counters(dir, "io_service_time")?;
        blkio.io_wait_time_recursive = device_counters(dir, "io_wait_time")?;
        blkio.io_merged_recursive = device_counters(dir, "io_merged")?;
        blkio.io_time_recursive = device_counters(dir, "time")?;
        blkio.sectors_recursive = device_counters(dir, "sectors")?;
    }
    if let Some(dir) = cgroup.dir("hugetlb") {
        for size in libcgroups::stats::supported_page_sizes().unwrap_or_default() {
            if let Some(entry) = hugetlb(dir, &size)? {
                stats.hugetlb.insert(size, entry);
            }
        }
    }
    Ok(stats)
}

fn cpu_usage(dir: &Path) -> Result<CpuUsage> {
    let ticks_per_second = sysconf(SysconfVar::CLK_TCK)
        .ok()
        .flatten()
        .and_then(|ticks| u64::try_from(ticks).ok())
        .filter(|ticks| *ticks > 0)
        .unwrap_or(100);
    let modes = files::keyed(&dir.join("cpuacct.stat"))?;
    let mode =
        |name: &str| modes.get(name).copied().unwrap_or_default() * NANOSECONDS / ticks_per_second;
    let mut usage = CpuUsage {
        total: files::number(&dir.join("cpuacct.usage"))?.unwrap_or_default(),
        percpu: files::numbers(&dir.join("cpuacct.usage_percpu"))?,
        kernel: mode("system"),
        user: mode("user"),
        ..CpuUsage::default()
    };
    // The first line is `cpu user system`; one line with numbers follows for each processor.
    let text = files::text(&dir.join("cpuacct.usage_all"))?.unwrap_or_default();
    for line in text.lines().skip(1) {
        let mut fields = line.split_whitespace().skip(1);
        if let (Some(Ok(user)), Some(Ok(kernel))) = (
            fields.next().map(str::parse::<u64>),
            fields.next().map(str::parse::<u64>),
        ) {
            usage.percpu_user.push(user);
            usage.percpu_kernel.push(kernel);
        }
    }
    Ok(usage)
}

fn cpuset(dir: &Path) -> Result<CpuSet> {
    // The files have no prefix if the controller is mounted with `noprefix`, as on Android.
    let file = |name: &str| {
        let prefixed = dir.join(format!("cpuset.{name}"));
        if prefixed.exists() {
            prefixed
        } else {
            dir.join(name)
        }
    };
    let number =
        |name: &str| -> Result<u64> { Ok(files::number(&file(name))?.unwrap_or_default()) };
    let level = files::text(&file("sched_relax_domain_level"))?;
    Ok(CpuSet {
        cpus: files::ranges(&file("cpus"))?,
        cpu_exclusive: number("cpu_exclusive")?,
        mems: files::ranges(&file("mems"))?,
        mem_hardwall: number("mem_hardwall")?,
        mem_exclusive: number("mem_exclusive")?,
        memory_migrate: number("memory_migrate")?,
        memory_spread_page: number("memory_spread_page")?,
        memory_spread_slab: number("memory_spread_slab")?,
        memory_pressure: number("memory_pressure")?,
        sched_load_balance: number("sched_load_balance")?,
        sched_relax_domain_level: level
            .and_then(|level| level.trim().parse().ok())
            .unwrap_or_default(),
    })
}

fn memory(dir: &Path, prefix: &str) -> Result<MemoryEntry> {
    let number = |name: &str| -> Result<u64> {
        Ok(files::number(&dir.join(format!("{prefix}.{name}")))?.unwrap_or_default())
    };
    Ok(MemoryEntry {
        limit: number("limit_in_bytes")?,
        usage: number("usage_in_bytes")?,
        max: number("max_usage_in_bytes")?,
        failcnt: number("failcnt")?,
    })
}

/// Returns the counter from the first file that has any numbers: of the BFQ scheduler, of its
/// predecessor CFQ, and of the throttling layer, each with and without the groups below.
fn device_counters(dir: &Path, name: &str) -> Result<Vec<BlockIoEntry>> {
    for file in [
        format!("blkio.bfq.{name}_recursive"),
        format!("blkio.{name}_recursive"),
        format!("blkio.throttle.{name}_recursive"),
        format!("blkio.throttle.{name}"),
    ] {
        let text = files::text(&dir.join(file))?.unwrap_or_default();
        let entries: Vec<_> = text.lines().filter_map(device_counter).collect();
        if !entries.is_empty() {
            return Ok(entries);
        }
    }
    Ok(Vec::new())
}

/// Parses `major:minor [operation] number`. Other lines, such as the sum over all devices, are
/// skipped.
fn device_counter(line: &str) -> Option<BlockIoEntry> {
    let mut fields = line.split_whitespace();
    let (major, minor) = fields.next()?.split_once(':')?;
    let rest: Vec<&str> = fields.collect();
    let (op, value) = match rest[..] {
        [value] => ("", value),
        [op, value] => (op, value),
        _ => return None,
    };
    Some(BlockIoEntry {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        op: op.to_owned(),
        value: value.parse().ok()?,
    })
}

/// Names of the files, with reservations first: limits apply to them if the kernel has them (Linux
/// 5.7).
fn hugetlb(dir: &Path, size: &str) -> Result<Option<HugeTlb>> {
    for prefix in [format!("hugetlb.{size}.rsvd"), format!("hugetlb.{size}")] {
        let number = |name: &str| files::number(&dir.join(format!("{prefix}.{name}")));
        if let Some(usage) = number("usage_in_bytes")? {
            return Ok(Some(HugeTlb {
                usage,
                max: number("max_usage_in_bytes")?.unwrap_or_default(),
                failcnt: number("failcnt")?.unwrap_or_default(),
            }));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::fs;

    fn group(files: &[(&str, &str)]) -> (tempfile::TempDir, Cgroup) {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(dir.path().join(name), content).unwrap();
        }
        let paths = ["cpu", "cpuacct", "cpuset", "memory", "pids", "blkio"]
            .map(|controller| (controller.to_owned(), dir.path().to_path_buf()));
        let cgroup = Cgroup::new(BTreeMap::from(paths));
        (dir, cgroup)
    }

    #[test]
    fn processor_time() {
        let (_dir, cgroup) = group(&[
            (
                "cpu.stat",
                "nr_periods 5\nnr_throttled 2\nthrottled_time 900\nwait_sum 1\n",
            ),
            ("cpuacct.usage", "30\n"),
            ("cpuacct.usage_percpu", "10 20 \n"),
            ("cpuacct.usage_all", "cpu user system\n0 4 6\n1 8 12\n"),
            ("cpuacct.stat", "user 3\nsystem 7\n"),
        ]);
        let stats = read(&cgroup).unwrap().cpu;
        assert_eq!(stats.usage.total, 30);
        assert_eq!(stats.usage.percpu, [10, 20]);
        assert_eq!(stats.usage.percpu_user, [4, 8]);
        assert_eq!(stats.usage.percpu_kernel, [6, 12]);
        // Ticks of 10 ms, on every architecture that Linux runs on today.
        assert_eq!(
            (stats.usage.user, stats.usage.kernel),
            (30_000_000, 70_000_000)
        );
        assert_eq!(stats.throttling.throttled_time, 900);
    }

    #[test]
    fn memory_of_a_kernel_with_fewer_files() {
        let (_dir, cgroup) = group(&[
            ("memory.stat", "cache 4096\nrss 8192\n"),
            ("memory.usage_in_bytes", "12288\n"),
            ("memory.max_usage_in_bytes", "16384\n"),
            ("memory.failcnt", "1\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory.kmem.usage_in_bytes", "100\n"),
            ("pids.current", "2\n"),
            ("pids.max", "max\n"),
        ]);
        let stats = read(&cgroup).unwrap();
        assert_eq!(stats.memory.cache, 4096);
        assert_eq!(stats.memory.usage.limit, 9_223_372_036_854_771_712);
        assert_eq!(
            (stats.memory.kernel.usage, stats.memory.kernel.limit),
            (100, 0)
        );
        assert_eq!(stats.memory.swap, MemoryEntry::default());
        assert_eq!((stats.pids.current, stats.pids.limit), (2, 0));
    }

    #[test]
    fn devices_from_the_first_place_that_counts() {
        let (_dir, cgroup) = group(&[
            ("blkio.bfq.io_serviced_recursive", "Total 0\n"),
            (
                "blkio.throttle.io_serviced_recursive",
                "8:16 Read 3\n8:16 Total 3\nTotal 3\n",
            ),
            ("blkio.sectors_recursive", "8:16 77\n"),
        ]);
        let stats = read(&cgroup).unwrap().blkio;
        let json = serde_json::to_value(&stats).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "ioServicedRecursive": [
                    {"major": 8, "minor": 16, "op": "Read", "value": 3}, {"major": 8, "minor": 16, "op": "Total", "value": 3}
                ],
                "sectorsRecursive": [{"major": 8, "minor": 16, "value": 77}]
            })
        );
    }

    #[test]
    fn no_controller_is_no_error() {
        let stats = read(&Cgroup::new(BTreeMap::new())).unwrap();
        assert_eq!(stats.memory.usage.usage, 0);
        // The group is gone.
        let (dir, cgroup) = group(&[]);
        drop(dir);
        assert!(read(&cgroup).is_ok());
    }
}
