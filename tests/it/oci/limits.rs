//! Limits of every kind that the machine's cgroups have, as the spec and `update` set them.

use std::path::Path;

use crate::common::{Bundle, Host};
use serde_json::{Value, json};

/// Limit of a new container, the flag of `update` for it (if there is one), and the control file
/// with the first line for both values: on cgroup v1, and on v2 if there is one.
struct Limit {
    pointer: &'static str,
    value: Value,
    flag: &'static str,
    updated: &'static str,
    v1: (&'static str, &'static str, &'static str),
    v2: (&'static str, &'static str, &'static str),
}

#[rustfmt::skip]
fn limits() -> Vec<Limit> {
    let limit = |pointer, value, flag, updated, v1, v2| Limit { pointer, value, flag, updated, v1, v2 };
    vec![
        limit("/cpu/shares", json!(512), "--cpu-share", "300", ("cpu.shares", "512", "300"), ("cpu.weight", "59", "44")),
        limit("/cpu/quota", json!(50_000), "--cpu-quota", "40000", ("cpu.cfs_quota_us", "50000", "40000"), ("cpu.max", "50000 100000", "40000 100000")),
        limit("/cpu/burst", json!(10_000), "--cpu-burst", "5000", ("cpu.cfs_burst_us", "10000", "5000"), ("cpu.max.burst", "10000", "5000")),
        limit("/cpu/cpus", json!("0"), "--cpuset-cpus", "0-1", ("cpuset.cpus", "0", "0-1"), ("cpuset.cpus", "0", "0-1")),
        limit("/cpu/mems", json!("0"), "--cpuset-mems", "0", ("cpuset.mems", "0", "0"), ("cpuset.mems", "0", "0")),
        limit("/memory/limit", json!(64 << 20), "--memory", "80M", ("memory.limit_in_bytes", "67108864", "83886080"), ("memory.max", "67108864", "83886080")),
        limit("/memory/swap", json!(100 << 20), "--memory-swap", "120M", ("memory.memsw.limit_in_bytes", "104857600", "125829120"), ("memory.swap.max", "37748736", "41943040")),
        limit("/memory/reservation", json!(32 << 20), "--memory-reservation", "40M", ("memory.soft_limit_in_bytes", "33554432", "41943040"), ("memory.low", "33554432", "41943040")),
        limit("/memory/swappiness", json!(10), "", "", ("memory.swappiness", "10", "10"), ("", "", "")),
        limit("/memory/disableOOMKiller", json!(true), "", "", ("memory.oom_control", "oom_kill_disable 1", "oom_kill_disable 1"), ("", "", "")),
        limit("/cpu/realtimePeriod", json!(500_000), "--cpu-rt-period", "400000", ("cpu.rt_period_us", "500000", "400000"), ("", "", "")),
        limit("/pids/limit", json!(40), "--pids-limit", "30", ("pids.max", "40", "30"), ("pids.max", "40", "30")),
        limit("/blockIO/weight", json!(200), "--blkio-weight", "300", ("blkio.bfq.weight", "200", "300"), ("io.bfq.weight", "200", "300")),
    ]
}

/// Control file of a limit; `None` if the kernel has none.
fn control_file(host: &Host, name: &str) -> Option<String> {
    let dirs = host.cgroup_dirs("web");
    let found = dirs
        .iter()
        .map(|dir| dir.join(name))
        .find(|path| path.exists())?;
    let text = std::fs::read_to_string(found).unwrap();
    Some(text.lines().next().unwrap_or_default().to_owned())
}

/// Whether a hierarchy of the machine has groups with this file.
fn machine_has(name: &str) -> bool {
    if name.is_empty() {
        return false;
    }
    let root = Path::new("/sys/fs/cgroup");
    let controller = name.split('.').next().unwrap();
    [root.to_path_buf(), root.join(controller)]
        .iter()
        .any(|dir| {
            // The root of v2 has none of them; its groups have.
            dir.join(name).exists()
                || dir.join("cgroup.controllers").exists() && !name.contains("bfq")
        })
}

fn with(bundle: Bundle, pointer: &str, value: &Value) -> Bundle {
    bundle.edit(|config| {
        let mut at = &mut config["linux"]["resources"];
        for key in pointer.split('/').skip(1) {
            if at.is_null() {
                *at = json!({});
            }
            at = &mut at[key];
        }
        *at = value.clone();
    })
}

#[test]
fn every_kind_of_limit_is_set_and_changed() {
    let host = Host::new();
    let is_v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let several = std::thread::available_parallelism().unwrap().get() > 1;
    let limits: Vec<_> = limits()
        .into_iter()
        .map(|limit| {
            let file = if is_v2 { limit.v2 } else { limit.v1 };
            (limit, file)
        })
        .filter(|(limit, (name, ..))| {
            machine_has(name) && (several || limit.flag != "--cpuset-cpus")
        })
        .collect();
    assert!(limits.len() >= 7, "too few kinds are left");
    let bundle = host.bundle("web").args(["sleep", "1000"]);
    let bundle = limits.iter().fold(bundle, |bundle, (limit, _)| {
        with(bundle, limit.pointer, &limit.value)
    });
    host.run_detached(&bundle);
    for (limit, (name, set, _)) in &limits {
        assert_eq!(
            control_file(&host, name).as_deref(),
            Some(*set),
            "{}",
            limit.pointer
        );
    }
    // One after the other: none touches another one.
    for (index, (limit, (name, _, updated))) in limits.iter().enumerate() {
        if limit.flag.is_empty() {
            continue;
        }
        let update = host.cmd("update").args([limit.flag, limit.updated, "web"]);
        update.run().ok();
        assert_eq!(
            control_file(&host, name).as_deref(),
            Some(*updated),
            "{}",
            limit.flag
        );
        for (later, (name, set, _)) in &limits[index + 1..] {
            // On v2 swap is without memory, and the limit for both stays.
            if later.flag != "--memory-swap" {
                let found = control_file(&host, name);
                assert_eq!(found.as_deref(), Some(*set), "{}", limit.flag);
            }
        }
    }
}

#[test]
fn a_container_executes_when_nothing_else_does() {
    let host = Host::new();
    let bundle = host.bundle("web").args(["sleep", "1000"]);
    host.run_detached(&bundle.resource("cpu", json!({"idle": 1})));
    if control_file(&host, "cpu.idle").is_none() {
        crate::common::skip!("the kernel has no idle groups");
    }
    assert_eq!(control_file(&host, "cpu.idle").as_deref(), Some("1"));
    host.rcm(["update", "--cpu-idle", "0", "web"]).ok();
    assert_eq!(control_file(&host, "cpu.idle").as_deref(), Some("0"));
    host.rcm(["update", "--cpu-idle", "2", "web"]).exits_with(1);
    assert_eq!(control_file(&host, "cpu.idle").as_deref(), Some("0"));
}

#[test]
fn devices_are_throttled() {
    let host = Host::new();
    // Any disk will do; a loop device is one.
    let Ok(numbers) = std::fs::read_to_string("/sys/block/loop0/dev") else {
        crate::common::skip!("there are no loop devices");
    };
    let (major, minor) = numbers.trim().split_once(':').unwrap();
    let device: Value = json!({"major": major.parse::<u32>().unwrap(), "minor": minor.parse::<u32>().unwrap(), "rate": 1 << 20});
    let bundle = host.bundle("web").args(["sleep", "1000"]).resource(
        "blockIO",
        json!({"throttleReadBpsDevice": [device], "throttleWriteIOPSDevice": [device]}),
    );
    host.run_detached(&bundle);
    match control_file(&host, "io.max") {
        Some(limits) => assert_eq!(
            limits,
            format!(
                "{} rbps=1048576 wbps=max riops=max wiops=1048576",
                numbers.trim()
            )
        ),
        None => {
            let expected = format!("{} 1048576", numbers.trim());
            for name in [
                "blkio.throttle.read_bps_device",
                "blkio.throttle.write_iops_device",
            ] {
                assert_eq!(
                    control_file(&host, name).as_deref(),
                    Some(&*expected),
                    "{name}"
                );
            }
        }
    }
}
