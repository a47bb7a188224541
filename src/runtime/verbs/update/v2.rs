//! Control files of cgroup v2 (Documentation/admin-guide/cgroup-v2.rst).

use std::path::Path;

use super::control::{ControlFiles, read};
use super::error::UpdateError;
use super::resources::{BlockIo, Cpu, Memory, Resources};
use super::v1::{pids_max, set_idle, takes_weight, write_around};

type Result<T> = std::result::Result<T, UpdateError>;

/// The kernel's default period, in microseconds.
const DEFAULT_PERIOD: &str = "100000";

pub(super) fn apply(
    files: &mut ControlFiles,
    dir: &Path,
    resources: &Resources,
    stored: &Resources,
) -> Result<()> {
    apply_memory(files, dir, &resources.memory, &stored.memory)?;
    apply_cpu(files, dir, &resources.cpu)?;
    for (name, list) in [("cpus", &resources.cpu.cpus), ("mems", &resources.cpu.mems)] {
        if let Some(list) = list {
            files.write(&dir.join(format!("cpuset.{name}")), list)?;
        }
    }
    apply_block_io(files, dir, &resources.block_io)?;
    if let Some(limit) = resources.pids.limit {
        files.write(&dir.join("pids.max"), &pids_max(limit))?;
    }
    for (name, value) in &resources.unified {
        if name.contains('/') || name.is_empty() {
            return Err(UpdateError::UnifiedName { name: name.clone() });
        }
        files.write(&dir.join(name), value)?;
    }
    Ok(())
}

/// Converts a number of bytes; -1 means no limit.
fn bytes(value: i64) -> String {
    if value < 0 {
        "max".into()
    } else {
        value.to_string()
    }
}

fn apply_memory(
    files: &mut ControlFiles,
    dir: &Path,
    memory: &Memory,
    stored: &Memory,
) -> Result<()> {
    if memory.check_before_update == Some(true)
        && let Some(limit_bytes) = memory.limit.filter(|limit| *limit >= 0)
    {
        let usage_bytes = read(&dir.join("memory.current"))?
            .trim()
            .parse()
            .unwrap_or_default();
        if limit_bytes.unsigned_abs() < usage_bytes {
            return Err(UpdateError::BelowUsage {
                limit_bytes,
                usage_bytes,
            });
        }
    }
    // If the limit on memory changes, the limit on the sum stays the same.
    let positive = |bytes: Option<i64>| bytes.filter(|bytes| *bytes > 0);
    let total = memory
        .swap
        .or_else(|| memory.limit.and_then(|_| positive(stored.swap)));
    if let Some(total) = total {
        let limit = memory.limit.or(stored.limit.filter(|limit| *limit != 0));
        let swap = bytes(swap_part(total, limit)?);
        let path = dir.join("memory.swap.max");
        // Without swap in the kernel there is nothing to limit.
        if path.exists() || (swap != "max" && swap != "0") {
            files.write(&path, &swap)?;
        }
    }
    if let Some(limit) = memory.limit {
        files.write(&dir.join("memory.max"), &bytes(limit))?;
    }
    if let Some(reservation) = memory.reservation {
        files.write(&dir.join("memory.low"), &bytes(reservation))?;
    }
    Ok(())
}

/// Returns the part for swap of a limit on memory and swap together.
fn swap_part(total: i64, limit: Option<i64>) -> Result<i64> {
    match limit {
        _ if total < 0 => Ok(-1),
        None => Err(UpdateError::SwapWithoutLimit),
        Some(limit) if limit < 0 => Ok(total),
        Some(limit) if total < limit => Err(UpdateError::SwapBelowLimit),
        Some(limit) => Ok(total - limit),
    }
}

fn apply_cpu(files: &mut ControlFiles, dir: &Path, cpu: &Cpu) -> Result<()> {
    let idle_path = dir.join("cpu.idle");
    let weight_path = dir.join("cpu.weight");
    if cpu.idle == Some(0) {
        // An idle group takes no weight, so end that first.
        files.write(&idle_path, "0")?;
    }
    if let Some(shares) = cpu.shares
        && takes_weight(cpu, &idle_path)?
    {
        files.write(&weight_path, &weight_of_shares(shares).to_string())?;
    }
    let max_path = dir.join("cpu.max");
    let max = if cpu.quota.is_some() || cpu.period.is_some() {
        let current = read(&max_path)?;
        Some((max_path, cpu_max(cpu, &current)))
    } else {
        None
    };
    let burst = cpu
        .burst
        .map(|burst| (dir.join("cpu.max.burst"), burst.to_string()));
    write_around(files, burst.into_iter().collect(), max)?;
    if let Some(idle) = cpu.idle.filter(|idle| *idle != 0) {
        set_idle(files, &idle_path, &weight_path, idle)?;
    }
    Ok(())
}

/// Returns the text for the file of quota and period. If one of them is absent, it keeps its
/// current value.
fn cpu_max(cpu: &Cpu, current: &str) -> String {
    let mut current = current.split_whitespace();
    let quota = current.next().unwrap_or("max").to_owned();
    let period = current.next().unwrap_or(DEFAULT_PERIOD).to_owned();
    let quota = cpu.quota.map_or(quota, bytes);
    let period = cpu.period.map_or(period, |period| period.to_string());
    format!("{quota} {period}")
}

/// Converts shares of v1 to a weight of v2. The curve goes through the smallest, default and
/// largest values of both (2, 1,024 and 262,144; 1, 100 and 10,000). libcontainer uses the same
/// when a container is created.
fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        ..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            10_f64.powf(exponent).ceil() as u64
        }
    }
}

fn apply_block_io(files: &mut ControlFiles, dir: &Path, block_io: &BlockIo) -> Result<()> {
    let bfq_path = dir.join("io.bfq.weight");
    if let Some(weight) = block_io.weight {
        if bfq_path.exists() {
            files.write_weight(&bfq_path, &weight.to_string())?;
        } else {
            let weight = io_weight(weight).to_string();
            files.write_weight(&dir.join("io.weight"), &weight)?;
        }
    }
    if block_io.leaf_weight.is_some() {
        tracing::warn!("blockIO.leafWeight is ignored: cgroup v2 has no such weight");
    }
    for device in &block_io.weight_device {
        let Some(weight) = device.weight.filter(|weight| *weight != 0) else {
            continue;
        };
        let id = format!("{}:{}", device.major, device.minor);
        if bfq_path.exists() {
            files.write_device(&bfq_path, &id, &weight.to_string(), "default")?;
        } else {
            tracing::warn!("the weight for device {id} is ignored: it needs the BFQ scheduler");
        }
    }
    let path = dir.join("io.max");
    for (name, devices) in [
        ("rbps", &block_io.throttle_read_bps_device),
        ("wbps", &block_io.throttle_write_bps_device),
        ("riops", &block_io.throttle_read_iops_device),
        ("wiops", &block_io.throttle_write_iops_device),
    ] {
        for device in devices {
            let id = format!("{}:{}", device.major, device.minor);
            let rate = match device.rate {
                0 => "max".to_owned(),
                rate => rate.to_string(),
            };
            let value = format!("{name}={rate}");
            files.write_device(&path, &id, &value, "rbps=max wbps=max riops=max wiops=max")?;
        }
    }
    Ok(())
}

/// Converts a weight linearly from the scale of 10 to 1,000 to the scale of 1 to 10,000.
fn io_weight(weight: u16) -> u64 {
    1 + u64::from(weight.saturating_sub(10)) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn resources(json: serde_json::Value) -> Resources {
        serde_json::from_value::<Resources>(json)
            .unwrap()
            .normalized()
    }

    fn group(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(dir.path().join(name), content).unwrap();
        }
        dir
    }

    fn content(dir: &tempfile::TempDir, name: &str) -> String {
        fs::read_to_string(dir.path().join(name)).unwrap()
    }

    #[test]
    fn quota_and_period_keep_what_is_not_given() {
        let period = Cpu {
            period: Some(50_000),
            ..Cpu::default()
        };
        let quota = Cpu {
            quota: Some(20_000),
            ..Cpu::default()
        };
        let unlimited = Cpu {
            quota: Some(-1),
            ..Cpu::default()
        };
        assert_eq!(cpu_max(&period, "max 100000\n"), "max 50000");
        assert_eq!(cpu_max(&period, "30000 100000\n"), "30000 50000");
        assert_eq!(cpu_max(&quota, "max 100000\n"), "20000 100000");
        assert_eq!(cpu_max(&unlimited, "30000 60000\n"), "max 60000");
    }

    #[test]
    fn weights() {
        for (shares, weight) in [
            (1, 1),
            (2, 1),
            (1024, 100),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(weight_of_shares(shares), weight);
        }
        for (blkio, io) in [(10, 1), (1000, 10_000), (500, 4950)] {
            assert_eq!(io_weight(blkio), io);
        }
    }

    #[test]
    fn swap_is_what_memory_leaves() {
        assert_eq!(swap_part(300, Some(100)).unwrap(), 200);
        assert_eq!(swap_part(100, Some(100)).unwrap(), 0);
        assert_eq!(swap_part(-1, None).unwrap(), -1);
        assert_eq!(swap_part(300, Some(-1)).unwrap(), 300);
        assert!(matches!(
            swap_part(300, None),
            Err(UpdateError::SwapWithoutLimit)
        ));
        assert!(matches!(
            swap_part(50, Some(100)),
            Err(UpdateError::SwapBelowLimit)
        ));
    }

    #[test]
    fn the_sum_with_swap_stays_when_memory_changes() {
        let dir = group(&[("memory.max", "100\n"), ("memory.swap.max", "200\n")]);
        let stored = resources(serde_json::json!({"memory": {"limit": 100, "swap": 300}}));
        let update = resources(serde_json::json!({"memory": {"limit": 250}}));
        let mut files = ControlFiles::default();
        apply(&mut files, dir.path(), &update, &stored).unwrap();
        assert_eq!(content(&dir, "memory.max"), "250");
        assert_eq!(content(&dir, "memory.swap.max"), "50");
        files.roll_back();
        assert_eq!(content(&dir, "memory.max"), "100");
        assert_eq!(content(&dir, "memory.swap.max"), "200");
    }

    #[test]
    fn a_limit_below_the_usage_can_be_refused() {
        let dir = group(&[("memory.max", "max\n"), ("memory.current", "5000\n")]);
        let update =
            resources(serde_json::json!({"memory": {"limit": 4096, "checkBeforeUpdate": true}}));
        let mut files = ControlFiles::default();
        let refused = apply(&mut files, dir.path(), &update, &Resources::default());
        assert!(matches!(refused, Err(UpdateError::BelowUsage { .. })));
        assert_eq!(content(&dir, "memory.max"), "max\n");
    }

    #[test]
    fn an_idle_group_has_no_weight() {
        let dir = group(&[("cpu.idle", "0\n"), ("cpu.weight", "100\n")]);
        let update = resources(serde_json::json!({"cpu": {"idle": 1, "shares": 2}}));
        let mut files = ControlFiles::default();
        apply(&mut files, dir.path(), &update, &Resources::default()).unwrap();
        assert_eq!(content(&dir, "cpu.idle"), "1");
        assert_eq!(content(&dir, "cpu.weight"), "1");
        // At the second time the kernel would refuse a weight.
        fs::write(dir.path().join("cpu.weight"), "0").unwrap();
        apply(&mut files, dir.path(), &update, &Resources::default()).unwrap();
        assert_eq!(content(&dir, "cpu.weight"), "0");
    }

    #[test]
    fn devices_and_files_by_name() {
        let dir = group(&[
            ("io.max", "8:16 rbps=5 wbps=max riops=max wiops=max\n"),
            ("io.weight", "default 100\n"),
            ("memory.high", "max\n"),
        ]);
        let update = resources(serde_json::json!({
            "blockIO": {"weight": 500, "throttleWriteBpsDevice": [{"major": 8, "minor": 16, "rate": 9}]},
            "unified": {"memory.high": "4096"}
        }));
        let mut files = ControlFiles::default();
        apply(&mut files, dir.path(), &update, &Resources::default()).unwrap();
        assert_eq!(content(&dir, "io.max"), "8:16 wbps=9");
        assert_eq!(content(&dir, "io.weight"), "4950");
        assert_eq!(content(&dir, "memory.high"), "4096");
        files.roll_back();
        assert_eq!(
            content(&dir, "io.max"),
            "8:16 rbps=5 wbps=max riops=max wiops=max"
        );
        let outside = resources(serde_json::json!({"unified": {"../x": "1"}}));
        let refused = apply(
            &mut ControlFiles::default(),
            dir.path(),
            &outside,
            &Resources::default(),
        );
        assert!(matches!(refused, Err(UpdateError::UnifiedName { .. })));
    }
}
