//! Changing the limits of a container that executes.

use std::fs;

use crate::common::{Bundle, Host};
use serde_json::{Value, json};

const MEBIBYTE: u64 = 1 << 20;

/// A container that does nothing for long.
fn sleeper(host: &Host, id: &str) -> Bundle {
    host.bundle(id).args(["sleep", "1000"])
}

/// Reads the limits that the tests change; on cgroup v2 in the units of v1.
struct Limits<'a>(&'a Host);

impl Limits<'_> {
    fn memory(&self) -> String {
        self.0
            .cgroup_file("web", "memory.limit_in_bytes", "memory.max")
    }

    fn pids(&self) -> String {
        self.0.cgroup_file("web", "pids.max", "pids.max")
    }

    fn quota_and_period(&self) -> (String, String) {
        let quota = self.0.cgroup_file("web", "cpu.cfs_quota_us", "cpu.max");
        match quota.split_once(' ') {
            Some((quota, period)) => (quota.replace("max", "-1"), period.to_owned()),
            None => (
                quota,
                self.0.cgroup_file("web", "cpu.cfs_period_us", "cpu.max"),
            ),
        }
    }

    fn all(&self) -> Vec<String> {
        let (quota, period) = self.quota_and_period();
        let weight = self.0.cgroup_file("web", "cpu.shares", "cpu.weight");
        vec![self.memory(), self.pids(), quota, period, weight]
    }
}

/// The limits that rcm has on record.
fn stored(host: &Host) -> Value {
    let text = fs::read(host.root().join("web/config.json")).unwrap();
    let config: Value = serde_json::from_slice(&text).unwrap();
    config["linux"]["resources"].clone()
}

#[test]
fn limits_change_and_are_remembered() {
    let host = Host::new();
    let bundle = sleeper(&host, "web").resource("pids", json!({"limit": 50}));
    host.run_detached(&bundle);
    let limits = Limits(&host);
    let update = |flags: &[&str]| host.cmd("update").args(flags).arg("web").run().ok();

    update(&[
        "--memory",
        "100M",
        "--memory-swap",
        "200M",
        "--pids-limit",
        "20",
    ]);
    assert_eq!(limits.memory(), (100 * MEBIBYTE).to_string());
    assert_eq!(limits.pids(), "20");
    // Both above and both below the current values: the kernel accepts each pair in one order only.
    update(&["--memory", "300M", "--memory-swap", "400M"]);
    assert_eq!(limits.memory(), (300 * MEBIBYTE).to_string());
    update(&["--memory", "50M", "--memory-swap", "60M"]);
    assert_eq!(limits.memory(), (50 * MEBIBYTE).to_string());

    update(&["--cpu-period", "50000"]);
    assert_eq!(limits.quota_and_period(), ("-1".into(), "50000".into()));
    update(&["--cpu-quota", "20000"]);
    assert_eq!(limits.quota_and_period(), ("20000".into(), "50000".into()));
    update(&[
        "--cpu-quota",
        "900000",
        "--cpu-period",
        "1000000",
        "--cpu-share",
        "512",
    ]);
    assert_eq!(
        limits.quota_and_period(),
        ("900000".into(), "1000000".into())
    );

    let recorded = stored(&host);
    assert_eq!(recorded["memory"]["limit"], 50 * MEBIBYTE);
    assert_eq!(recorded["cpu"]["shares"], 512);
    assert_eq!(recorded["pids"]["limit"], 20);
    assert_eq!(
        recorded["devices"],
        json!([{"allow": false, "access": "rwm"}])
    );

    update(&["--memory", "-1", "--pids-limit", "-1", "--cpu-quota", "-1"]);
    assert_eq!(limits.pids(), "max");
    assert_eq!(limits.quota_and_period().0, "-1");
    let memory = limits.memory();
    assert!(
        memory == "max" || memory.parse::<u64>().unwrap() > 1 << 60,
        "{memory}"
    );
    // The container is as usable as before.
    assert_eq!(host.exec("web", ["echo", "fine"]).ok().stdout(), "fine\n");
}

#[test]
fn limits_come_from_a_file_or_a_pipe() {
    let host = Host::new();
    host.run_detached(&sleeper(&host, "web"));
    let limits = Limits(&host);
    host.cmd("update")
        .args(["--resources", "-", "web"])
        .stdin(r#"{"memory": {"limit": 67108864}, "cpu": null}"#)
        .run()
        .ok();
    assert_eq!(limits.memory(), (64 * MEBIBYTE).to_string());
    let path = host.dir().join("resources.json");
    fs::write(&path, r#"{"pids": {"limit": 9}}"#).unwrap();
    host.cmd("update")
        .arg("-r")
        .arg(&path)
        .arg("web")
        .run()
        .ok();
    assert_eq!(limits.pids(), "9");
    assert_eq!(limits.memory(), (64 * MEBIBYTE).to_string());
    host.cmd("update")
        .args(["-r", "-", "web"])
        .stdin(r#"{"memory": {"limit": "much"}}"#)
        .run()
        .fails_with(1, "invalid resources on the standard input");
}

#[test]
fn a_failing_update_changes_nothing() {
    let host = Host::new();
    host.run_detached(&sleeper(&host, "web"));
    let limits = Limits(&host);
    host.rcm([
        "update",
        "--memory",
        "64M",
        "--cpu-quota",
        "20000",
        "--cpu-share",
        "300",
        "web",
    ])
    .ok();
    let (before, recorded) = (limits.all(), stored(&host));
    // The last of it is refused: there is no such processor.
    host.rcm([
        "update",
        "--memory",
        "128M",
        "--cpu-quota",
        "30000",
        "--cpu-share",
        "400",
        "--cpuset-cpus",
        "60000",
        "web",
    ])
    .fails_with(1, "cpuset.cpus");
    assert_eq!(limits.all(), before);
    assert_eq!(stored(&host), recorded);
    host.rcm(["update", "--memory", "1x", "web"])
        .fails_with(1, "invalid value for memory: invalid size: '1x'");
    host.rcm(["update", "--memory", "64M", "--memory-swap", "32M", "web"])
        .fails_with(1, "memory+swap limit should be >= memory limit");
    assert_eq!(limits.all(), before);
}

#[test]
fn an_ended_container_has_no_limits() {
    let host = Host::new();
    host.run_detached(&host.bundle("web").args(["true"]));
    host.wait_for_status("web", "stopped");
    host.rcm(["update", "--pids-limit", "5", "web"])
        .fails_with(1, "container not running");
}
