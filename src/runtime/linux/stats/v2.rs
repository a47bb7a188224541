//! Statistics of cgroup v2: all controllers share one directory, and units are microseconds.

use std::path::Path;

use super::files::{self, Result};
use super::{BlockIoEntry, BlockIoStats, HugeTlb, MemoryEntry, MemoryStats, PidsStats, Stats};

const NANOSECONDS_PER_MICROSECOND: u64 = 1000;

pub(super) fn read(dir: &Path) -> Result<Stats> {
    let mut stats = Stats::default();
    let counters = files::keyed(&dir.join("cpu.stat"))?;
    let counter = |name: &str| counters.get(name).copied().unwrap_or_default();
    let cpu = &mut stats.cpu;
    cpu.usage.total = counter("usage_usec") * NANOSECONDS_PER_MICROSECOND;
    cpu.usage.user = counter("user_usec") * NANOSECONDS_PER_MICROSECOND;
    cpu.usage.kernel = counter("system_usec") * NANOSECONDS_PER_MICROSECOND;
    cpu.throttling.periods = counter("nr_periods");
    cpu.throttling.throttled_periods = counter("nr_throttled");
    cpu.throttling.throttled_time = counter("throttled_usec") * NANOSECONDS_PER_MICROSECOND;
    cpu.psi = files::pressure(&dir.join("cpu.pressure"))?;
    stats.memory = memory(dir)?;
    stats.pids = pids(dir)?;
    stats.blkio = block_io(dir)?;
    for size in libcgroups::stats::supported_page_sizes().unwrap_or_default() {
        if let Some(entry) = hugetlb(dir, &size)? {
            stats.hugetlb.insert(size, entry);
        }
    }
    Ok(stats)
}

fn memory(dir: &Path) -> Result<MemoryStats> {
    let raw = files::keyed(&dir.join("memory.stat"))?;
    if raw.is_empty() {
        // The controller is not enabled for this group.
        return Ok(MemoryStats::default());
    }
    let entry = |prefix: &str| -> Result<MemoryEntry> {
        let number = |name: &str| -> Result<u64> {
            Ok(files::number(&dir.join(format!("{prefix}.{name}")))?.unwrap_or_default())
        };
        Ok(MemoryEntry {
            limit: number("max")?,
            usage: number("current")?,
            // Since Linux 5.19; for swap since 6.5.
            max: number("peak")?,
            failcnt: 0,
        })
    };
    let usage = entry("memory")?;
    let only_swap = entry("memory.swap")?;
    // Readers expect the sum with memory, as cgroup v1 counts it. The peaks need not have been at
    // the same time, so they have no sum.
    let swap = MemoryEntry {
        limit: only_swap.limit.saturating_add(usage.limit),
        usage: only_swap.usage.saturating_add(usage.usage),
        max: 0,
        failcnt: 0,
    };
    Ok(MemoryStats {
        cache: raw.get("file").copied().unwrap_or_default(),
        usage,
        swap,
        raw,
        psi: files::pressure(&dir.join("memory.pressure"))?,
        ..MemoryStats::default()
    })
}

fn pids(dir: &Path) -> Result<PidsStats> {
    let Some(current) = files::number(&dir.join("pids.current"))? else {
        // Without the controller the processes can still be counted.
        let processes = files::text(&dir.join("cgroup.procs"))?.unwrap_or_default();
        return Ok(PidsStats {
            current: processes.lines().count() as u64,
            limit: 0,
        });
    };
    let limit = files::number(&dir.join("pids.max"))?
        .filter(|limit| *limit != u64::MAX)
        .unwrap_or_default();
    Ok(PidsStats { current, limit })
}

/// Parses `io.stat` into the two tables that cgroup v1 has of it.
fn block_io(dir: &Path) -> Result<BlockIoStats> {
    let mut stats = BlockIoStats {
        psi: files::pressure(&dir.join("io.pressure"))?,
        ..BlockIoStats::default()
    };
    let text = files::text(&dir.join("io.stat"))?.unwrap_or_default();
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        let numbers = fields.next().and_then(|device| device.split_once(':'));
        let Some((Ok(major), Ok(minor))) =
            numbers.map(|(major, minor)| (major.parse::<u64>(), minor.parse::<u64>()))
        else {
            continue;
        };
        for (name, value) in fields.filter_map(|field| field.split_once('=')) {
            let (table, op) = match name {
                "rbytes" => (&mut stats.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut stats.io_service_bytes_recursive, "Write"),
                "rios" => (&mut stats.io_serviced_recursive, "Read"),
                "wios" => (&mut stats.io_serviced_recursive, "Write"),
                _ => continue,
            };
            table.push(BlockIoEntry {
                major,
                minor,
                op: op.to_owned(),
                value: value.parse().unwrap_or_default(),
            });
        }
    }
    Ok(stats)
}

fn hugetlb(dir: &Path, size: &str) -> Result<Option<HugeTlb>> {
    for current in [
        format!("hugetlb.{size}.rsvd.current"),
        format!("hugetlb.{size}.current"),
    ] {
        if let Some(usage) = files::number(&dir.join(current))? {
            let events = files::keyed(&dir.join(format!("hugetlb.{size}.events")))?;
            return Ok(Some(HugeTlb {
                usage,
                max: 0,
                failcnt: events.get("max").copied().unwrap_or_default(),
            }));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn group(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(dir.path().join(name), content).unwrap();
        }
        dir
    }

    #[test]
    fn all_of_it() {
        let dir = group(&[
            (
                "cpu.stat",
                "usage_usec 10\nuser_usec 6\nsystem_usec 4\nnr_periods 1\nthrottled_usec 2\n",
            ),
            (
                "cpu.pressure",
                "some avg10=0.00 avg60=0.00 avg300=0.00 total=3\n",
            ),
            ("memory.stat", "anon 4096\nfile 8192\n"),
            ("memory.current", "12288\n"),
            ("memory.max", "1048576\n"),
            ("memory.peak", "16384\n"),
            ("memory.swap.current", "100\n"),
            ("memory.swap.max", "max\n"),
            ("pids.current", "3\n"),
            ("pids.max", "10\n"),
            (
                "io.stat",
                "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n253:0 \n",
            ),
        ]);
        let stats = read(dir.path()).unwrap();
        assert_eq!(stats.cpu.usage.total, 10_000);
        assert_eq!(stats.cpu.throttling.throttled_time, 2_000);
        assert_eq!(stats.cpu.psi.unwrap().some.total, 3);
        assert_eq!(stats.memory.cache, 8192);
        assert_eq!(stats.memory.usage.max, 16_384);
        assert_eq!(
            (stats.memory.swap.usage, stats.memory.swap.limit),
            (12_388, u64::MAX)
        );
        assert_eq!((stats.pids.current, stats.pids.limit), (3, 10));
        assert_eq!(stats.blkio.io_service_bytes_recursive.len(), 2);
        let write = &stats.blkio.io_serviced_recursive[1];
        assert_eq!((write.major, &*write.op, write.value), (8, "Write", 4));
    }

    #[test]
    fn without_controllers_only_the_processes_are_counted() {
        let dir = group(&[("cgroup.procs", "1\n2\n"), ("cpu.stat", "usage_usec 1\n")]);
        let stats = read(dir.path()).unwrap();
        assert_eq!(stats.pids.current, 2);
        assert_eq!(stats.memory.usage, MemoryEntry::default());
        assert!(stats.memory.psi.is_none());
    }
}
