//! Control files of cgroup v1.

use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::control::{ControlFiles, read};
use super::error::UpdateError;
use super::resources::{BlockIo, Cpu, Memory, Resources};
use crate::runtime::linux::cgroup::Cgroup;

type Result<T> = std::result::Result<T, UpdateError>;

pub(super) fn apply(
    files: &mut ControlFiles,
    cgroup: &Cgroup,
    resources: &Resources,
) -> Result<()> {
    if !resources.unified.is_empty() {
        return Err(UpdateError::UnifiedOnV1);
    }
    let dir = |controller: &'static str, setting: &'static str| {
        cgroup.dir(controller).ok_or(UpdateError::NoController {
            setting,
            controller,
        })
    };
    let Resources {
        memory,
        cpu,
        block_io,
        pids,
        ..
    } = resources;
    if memory.limit.is_some() || memory.swap.is_some() || memory.reservation.is_some() {
        apply_memory(files, dir("memory", "memory")?, memory)?;
    }
    let only_sets = Cpu {
        cpus: cpu.cpus.clone(),
        mems: cpu.mems.clone(),
        ..Cpu::default()
    };
    if *cpu != only_sets {
        apply_cpu(files, dir("cpu", "cpu")?, cpu)?;
    }
    for (name, list) in [("cpus", &cpu.cpus), ("mems", &cpu.mems)] {
        if let Some(list) = list {
            let dir = dir("cpuset", "cpu.cpus and cpu.mems")?;
            files.write(&dir.join(format!("cpuset.{name}")), list)?;
        }
    }
    if *block_io != BlockIo::default() {
        apply_block_io(files, dir("blkio", "blockIO")?, block_io)?;
    }
    if let Some(limit) = pids.limit {
        let dir = dir("pids", "pids.limit")?;
        files.write(&dir.join("pids.max"), &pids_max(limit))?;
    }
    Ok(())
}

/// Returns the text for a limit on tasks. A container cannot have 0 tasks, so 0 becomes 1, as
/// systemd requires.
pub(super) fn pids_max(limit: i64) -> String {
    match limit {
        ..0 => "max".into(),
        0 => "1".into(),
        limit => limit.to_string(),
    }
}

fn apply_memory(files: &mut ControlFiles, dir: &Path, memory: &Memory) -> Result<()> {
    let limit_path = dir.join("memory.limit_in_bytes");
    let swap_path = dir.join("memory.memsw.limit_in_bytes");
    // Without a limit on swap, swap accounting is not needed.
    let swap = memory.swap.filter(|swap| *swap != -1 || swap_path.exists());
    let set_limit = |files: &mut ControlFiles| match memory.limit {
        Some(limit) => write_limit(files, dir, &limit_path, limit),
        None => Ok(()),
    };
    match swap {
        Some(swap) => {
            // The kernel's "invalid argument" would not tell which limit is wrong.
            if swap > 0 && memory.limit.is_some_and(|limit| limit > swap) {
                return Err(UpdateError::SwapBelowLimit);
            }
            // The limit of the sum must never be below the limit of memory: raise it first, or
            // lower it last.
            let current: i64 = read(&limit_path)?.trim().parse().unwrap_or(i64::MAX);
            if swap == -1 || current < swap {
                files.write(&swap_path, &swap.to_string())?;
                set_limit(files)?;
            } else {
                set_limit(files)?;
                files.write(&swap_path, &swap.to_string())?;
            }
        }
        None => set_limit(files)?,
    }
    if let Some(reservation) = memory.reservation {
        files.write(
            &dir.join("memory.soft_limit_in_bytes"),
            &reservation.to_string(),
        )?;
    }
    Ok(())
}

fn write_limit(files: &mut ControlFiles, dir: &Path, path: &Path, limit: i64) -> Result<()> {
    match files.write(path, &limit.to_string()) {
        Err(error) if is_errno(&error, Errno::EBUSY) => {
            let figure = |name: &str| {
                read(&dir.join(name)).map_or_else(|_| "unknown".into(), |text| text.trim().into())
            };
            Err(UpdateError::MemoryInUse {
                limit_bytes: limit,
                usage_bytes: figure("memory.usage_in_bytes"),
                peak_bytes: figure("memory.max_usage_in_bytes"),
            })
        }
        written => written,
    }
}

fn apply_cpu(files: &mut ControlFiles, dir: &Path, cpu: &Cpu) -> Result<()> {
    let idle_path = dir.join("cpu.idle");
    let shares_path = dir.join("cpu.shares");
    if cpu.idle == Some(0) {
        // An idle group takes no weight, so end that first.
        files.write(&idle_path, "0")?;
    }
    if let Some(shares) = cpu.shares
        && takes_weight(cpu, &idle_path)?
    {
        files.write(&shares_path, &shares.to_string())?;
        // The kernel clamps the value without an error.
        let accepted = read(&shares_path)?.trim().parse().unwrap_or(shares);
        if accepted != shares {
            let bound = if accepted < shares {
                "maximum"
            } else {
                "minimum"
            };
            return Err(UpdateError::Shares { bound, accepted });
        }
    }
    let mut first = Vec::new();
    if let Some(period) = cpu.period {
        first.push((dir.join("cpu.cfs_period_us"), period.to_string()));
    }
    if let Some(burst) = cpu.burst {
        let path = dir.join("cpu.cfs_burst_us");
        if path.exists() {
            first.push((path, burst.to_string()));
        } else {
            tracing::warn!("cpu.burst is ignored: this kernel does not have it (Linux 5.14)");
        }
    }
    let quota = cpu
        .quota
        .map(|quota| (dir.join("cpu.cfs_quota_us"), quota.to_string()));
    write_around(files, first, quota)?;
    let period = cpu
        .realtime_period
        .map(|period| (dir.join("cpu.rt_period_us"), period.to_string()));
    let runtime = cpu
        .realtime_runtime
        .map(|runtime| (dir.join("cpu.rt_runtime_us"), runtime.to_string()));
    write_around(files, period.into_iter().collect(), runtime)?;
    if let Some(idle) = cpu.idle.filter(|idle| *idle != 0) {
        set_idle(files, &idle_path, &shares_path, idle)?;
    }
    Ok(())
}

/// Returns whether the kernel takes a weight now. A group that is idle and stays so takes none.
pub(super) fn takes_weight(cpu: &Cpu, idle_path: &Path) -> Result<bool> {
    let stays_idle = cpu.idle.is_some_and(|idle| idle != 0) && read(idle_path)?.trim() != "0";
    Ok(!stays_idle)
}

/// Makes a group idle. This also changes its weight, which a rollback has to restore.
pub(super) fn set_idle(
    files: &mut ControlFiles,
    idle_path: &Path,
    weight_path: &Path,
    idle: i64,
) -> Result<()> {
    if read(idle_path)?.trim() == "0" {
        files.remember(weight_path)?;
    }
    files.write(idle_path, &idle.to_string())
}

/// Writes values of which the kernel takes some only before `main`, and some only after it,
/// depending on the current values. For example, with a shorter period the old quota may exceed the
/// parent's.
pub(super) fn write_around(
    files: &mut ControlFiles,
    first: Vec<(PathBuf, String)>,
    main: Option<(PathBuf, String)>,
) -> Result<()> {
    let mut again = Vec::new();
    for (path, value) in first {
        match files.write(&path, &value) {
            Err(error) if main.is_some() && is_errno(&error, Errno::EINVAL) => {
                again.push((path, value));
            }
            written => written?,
        }
    }
    for (path, value) in main.into_iter().chain(again) {
        files.write(&path, &value)?;
    }
    Ok(())
}

fn apply_block_io(files: &mut ControlFiles, dir: &Path, block_io: &BlockIo) -> Result<()> {
    // Name with the CFQ scheduler of old kernels, or with BFQ.
    let name = if dir.join("blkio.weight").exists() {
        "blkio.weight"
    } else {
        "blkio.bfq.weight"
    };
    if let Some(weight) = block_io.weight {
        files.write_weight(&dir.join(name), &weight.to_string())?;
    }
    if let Some(weight) = block_io.leaf_weight {
        files.write_weight(&dir.join("blkio.leaf_weight"), &weight.to_string())?;
    }
    for device in &block_io.weight_device {
        let id = format!("{}:{}", device.major, device.minor);
        for (name, weight) in [
            (format!("{name}_device"), device.weight),
            ("blkio.leaf_weight_device".to_owned(), device.leaf_weight),
        ] {
            if let Some(weight) = weight.filter(|weight| *weight != 0) {
                files.write_device(&dir.join(name), &id, &weight.to_string(), "default")?;
            }
        }
    }
    for (name, devices) in [
        ("read_bps", &block_io.throttle_read_bps_device),
        ("write_bps", &block_io.throttle_write_bps_device),
        ("read_iops", &block_io.throttle_read_iops_device),
        ("write_iops", &block_io.throttle_write_iops_device),
    ] {
        let path = dir.join(format!("blkio.throttle.{name}_device"));
        for device in devices {
            let id = format!("{}:{}", device.major, device.minor);
            files.write_device(&path, &id, &device.rate.to_string(), "0")?;
        }
    }
    Ok(())
}

fn is_errno(error: &UpdateError, errno: Errno) -> bool {
    matches!(error, UpdateError::Write { source, .. } if source.raw_os_error() == Some(errno as i32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::fs;

    fn cgroup(controllers: &[&str], dir: &Path) -> Cgroup {
        Cgroup::new(BTreeMap::from_iter(
            controllers
                .iter()
                .map(|name| ((*name).to_owned(), dir.to_path_buf())),
        ))
    }

    fn resources(json: serde_json::Value) -> Resources {
        serde_json::from_value::<Resources>(json)
            .unwrap()
            .normalized()
    }

    #[test]
    fn a_missing_controller_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = ControlFiles::default();
        for (update, sentence) in [
            (
                serde_json::json!({"pids": {"limit": 1}}),
                "cannot set pids.limit: the container's cgroup has no pids controller",
            ),
            (
                serde_json::json!({"memory": {"limit": 1}}),
                "cannot set memory: the container's cgroup has no memory controller",
            ),
            (
                serde_json::json!({"unified": {"cpu.max": "max"}}),
                "invalid configuration: cannot use unified on cgroup v1",
            ),
        ] {
            let error = apply(
                &mut files,
                &cgroup(&["cpu"], dir.path()),
                &resources(update),
            );
            assert_eq!(error.unwrap_err().to_string(), sentence);
        }
        // A limit that is absent needs no controller.
        apply(&mut files, &cgroup(&[], dir.path()), &Resources::default()).unwrap();
    }

    #[test]
    fn unlimited_memory_without_swap_accounting() {
        let dir = tempfile::tempdir().unwrap();
        let limit = dir.path().join("memory.limit_in_bytes");
        fs::write(&limit, "100\n").unwrap();
        let mut files = ControlFiles::default();
        let update = resources(serde_json::json!({"memory": {"limit": -1}}));
        apply(&mut files, &cgroup(&["memory"], dir.path()), &update).unwrap();
        assert_eq!(fs::read_to_string(&limit).unwrap(), "-1");
    }

    #[test]
    fn limits_on_tasks() {
        assert_eq!(pids_max(-1), "max");
        assert_eq!(pids_max(0), "1");
        assert_eq!(pids_max(20), "20");
    }
}
