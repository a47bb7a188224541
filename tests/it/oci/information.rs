//! The verbs that only print: events, ps, features, spec, --version. If the distribution's runc is
//! installed, the answers must be like its own.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::common::{Bundle, Cmd, Host, skip, wait_until};
use serde_json::{Value, json};

const MEBIBYTE: u64 = 1 << 20;

/// The distribution's runc, if it is installed.
fn runc() -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|dir| dir.join("runc"))
        .find(|path| path.is_file())
}

/// A container of runc's that goes away with this.
struct RuncContainer {
    runc: PathBuf,
    root: PathBuf,
    id: String,
}

impl RuncContainer {
    fn run(runc: PathBuf, host: &Host, bundle: &Bundle) -> Self {
        let container = Self {
            runc,
            root: host.dir().join("runc"),
            id: bundle.id().to_owned(),
        };
        container
            .cmd("run")
            .arg("--detach")
            .bundle(bundle)
            .run()
            .ok();
        container
    }

    fn cmd(&self, verb: &str) -> Cmd {
        Cmd::new(&self.runc).arg("--root").arg(&self.root).arg(verb)
    }
}

impl Drop for RuncContainer {
    fn drop(&mut self) {
        self.cmd("delete").arg("--force").arg(&self.id).run();
    }
}

/// A container that does nothing for long.
fn sleeper(host: &Host, id: &str) -> Bundle {
    host.bundle(id).args(["sleep", "1000"])
}

/// Returns the paths of all members, without those that runc leaves out if they are zero.
fn members(value: &Value) -> BTreeSet<String> {
    const OMITTED_WHEN_ZERO: [&str; 16] = [
        "/cpu/usage/total",
        "/cpu/throttling/periods",
        "/cpu/throttling/throttledPeriods",
        "/cpu/throttling/throttledTime",
        "/memory/cache",
        "/memory/usage/usage",
        "/memory/usage/max",
        "/memory/swap/usage",
        "/memory/swap/max",
        "/memory/kernel/usage",
        "/memory/kernel/max",
        "/memory/kernelTCP/usage",
        "/memory/kernelTCP/max",
        "/pids/current",
        "/pids/limit",
        "/blkio",
    ];
    fn collect(value: &Value, path: &str, found: &mut BTreeSet<String>) {
        let Value::Object(members) = value else {
            return;
        };
        for (name, value) in members {
            let path = format!("{path}/{name}");
            found.insert(path.clone());
            collect(value, &path, found);
        }
    }
    let mut found = BTreeSet::new();
    collect(value, "", &mut found);
    found.retain(|path| {
        !OMITTED_WHEN_ZERO
            .iter()
            .any(|zero| path == *zero || path.starts_with(&format!("{zero}/")))
    });
    found
}

#[test]
fn statistics_have_runcs_members() {
    let Some(runc) = runc() else {
        skip!("runc, the yardstick, is not installed");
    };
    let host = Host::new();
    host.run_detached(&sleeper(&host, "ours"));
    let theirs = RuncContainer::run(runc, &host, &sleeper(&host, "theirs"));
    let ours = host.rcm(["events", "--stats", "ours"]).ok().json();
    let theirs = theirs
        .cmd("events")
        .args(["--stats", "theirs"])
        .run()
        .ok()
        .json();
    assert_eq!(
        (&ours["type"], &ours["id"]),
        (&json!("stats"), &json!("ours"))
    );
    let (ours, theirs) = (&ours["data"], &theirs["data"]);
    // runc 1.1 has no pressure, and on cgroup v2 fails at huge pages' counters and leaves them out.
    let no_huge_pages = theirs["hugetlb"] == json!({});
    let comparable = |document: &Value| -> BTreeSet<String> {
        members(document)
            .into_iter()
            .filter(|path| !path.contains("/psi"))
            .filter(|path| !(no_huge_pages && path.starts_with("/hugetlb/")))
            .collect()
    };
    assert_eq!(comparable(ours), comparable(theirs));
    // The same kind of container on the same kernel: all values that do not count up are equal.
    for pointer in [
        "/pids",
        "/cpuset",
        "/memory/usage/limit",
        "/memory/swap/limit",
        "/intel_rdt",
        "/network_interfaces",
    ] {
        assert_eq!(ours.pointer(pointer), theirs.pointer(pointer), "{pointer}");
    }
}

#[test]
fn statistics_count() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .resource("pids", json!({"limit": 17}))
        .resource("memory", json!({"limit": 64 * MEBIBYTE}))
        .script("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; touch /done; sleep 1000");
    host.run_detached(&bundle);
    wait_until("the loop is over", || bundle.rootfs().join("done").exists());
    let event = host.rcm(["events", "--stats", "web"]).ok().json();
    let number = |pointer: &str| {
        event["data"]
            .pointer(pointer)
            .and_then(Value::as_u64)
            .unwrap_or_else(|| panic!("no {pointer} in {event}"))
    };
    assert!(number("/cpu/usage/total") > 1_000_000, "{event}");
    assert_eq!(number("/pids/limit"), 17);
    // The shell, its current child, and perhaps the next one.
    assert!((1..=3).contains(&number("/pids/current")), "{event}");
    assert_eq!(number("/memory/usage/limit"), 64 * MEBIBYTE);
    let usage = number("/memory/usage/usage");
    assert!((1..64 * MEBIBYTE).contains(&usage), "{event}");
    assert!(
        !event["data"]["memory"]["raw"]
            .as_object()
            .unwrap()
            .is_empty()
    );
}

#[test]
fn events_end_with_the_container() {
    let host = Host::new();
    let bundle = sleeper(&host, "web");
    host.run_detached(&bundle);
    let events = host
        .cmd("events")
        .args(["--interval", "20ms", "web"])
        .spawn();
    wait_until("three lines of statistics", || {
        events.stdout().lines().count() >= 3
    });
    host.kill("web", "KILL").ok();
    let output = events.wait().ok();
    for line in output.stdout().lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        assert_eq!(event["type"], "stats", "{line}");
    }
    host.wait_for_status("web", "stopped");
    host.rcm(["events", "web"])
        .fails_with(1, "container with id web is not running");
}

#[test]
fn running_out_of_memory_is_an_event() {
    let host = Host::new();
    // tail keeps a line in memory until its end.
    let bundle = host
        .bundle("web")
        .resource("memory", json!({"limit": 16 * MEBIBYTE, "swap": 16 * MEBIBYTE}))
        .script("while [ ! -e /go ]; do sleep 0.02; done; head -c 100m /dev/zero | tail >/dev/null; sleep 0.2");
    host.run_detached(&bundle);
    let events = host
        .cmd("events")
        .args(["--interval", "50ms", "web"])
        .spawn();
    // The first statistics show that the watch has begun.
    wait_until("events are watched", || !events.stdout().is_empty());
    fs::write(bundle.rootfs().join("go"), "").unwrap();
    let output = events.wait().ok();
    let kills = output
        .stdout()
        .lines()
        .filter(|line| *line == r#"{"type":"oom","id":"web"}"#)
        .count();
    assert!(kills > 0, "{output:?}");
}

#[test]
fn wrong_intervals_are_refused() {
    let host = Host::new();
    host.run_detached(&sleeper(&host, "web"));
    host.rcm(["events", "--interval", "0s", "web"])
        .fails_with(1, "duration interval must be greater than 0");
    let output = host
        .rcm(["events", "--interval", "soon", "web"])
        .exits_with(1);
    assert!(output.stderr().contains("invalid duration"), "{output:?}");
    host.rcm(["events", "nobody"])
        .fails_with(1, "container does not exist");
}

#[test]
fn ps_shows_the_containers_processes_only() {
    let host = Host::new();
    let bundle = host.bundle("web").script("sleep 4321 & wait");
    host.run_detached(&bundle);
    let pids = || -> Vec<i32> {
        let output = host.rcm(["ps", "--format", "json", "web"]).ok();
        serde_json::from_value(output.json()).unwrap()
    };
    wait_until("both processes", || pids().len() == 2);
    assert!(pids().contains(&host.pid("web")));

    let table = host.rcm(["ps", "web"]).ok().stdout();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert!(lines[0].contains("PID"), "{table}");
    assert!(table.contains("sleep 4321"), "{table}");
    // Everything after the name belongs to ps, even flags that rcm has, too.
    let table = host.rcm(["ps", "web", "-f", "-e"]).ok().stdout();
    assert_eq!(table.lines().count(), 3, "{table}");
    let table = host.rcm(["ps", "web", "aux"]).ok().stdout();
    assert!(table.starts_with("USER"), "{table}");
}

#[test]
fn ps_fails_as_runcs() {
    let host = Host::new();
    host.run_detached(&sleeper(&host, "web"));
    host.rcm(["ps", "web", "-o", "cmd"])
        .fails_with(1, "couldn't find PID field in ps output");
    host.rcm(["ps", "--format", "yaml", "web"])
        .fails_with(1, "invalid format option");
    host.rcm(["ps", "web", "-o", "nonsense"])
        .fails_with(1, "exit status");
}

#[test]
fn features_cover_runcs() {
    let Some(runc) = runc() else {
        skip!("runc, the yardstick, is not installed");
    };
    let ours = Cmd::new(env!("CARGO_BIN_EXE_rcm"))
        .arg("features")
        .run()
        .ok()
        .json();
    let theirs = Cmd::new(runc).arg("features").run().ok().json();
    let names = |document: &Value, pointer: &str| -> BTreeSet<String> {
        let names = document.pointer(pointer).cloned().unwrap_or_default();
        serde_json::from_value(names).unwrap_or_default()
    };
    for pointer in [
        "/hooks",
        "/linux/namespaces",
        "/linux/capabilities",
        "/linux/seccomp/actions",
        "/linux/seccomp/operators",
    ] {
        let missing: Vec<_> = names(&theirs, pointer)
            .difference(&names(&ours, pointer))
            .cloned()
            .collect();
        assert!(missing.is_empty(), "{pointer} lacks {missing:?}");
    }
    // Data of file systems since runc 1.2.
    let no_longer = BTreeSet::from(["acl", "noacl"].map(str::to_owned));
    let missing: BTreeSet<String> = names(&theirs, "/mountOptions")
        .difference(&names(&ours, "/mountOptions"))
        .cloned()
        .collect();
    assert!(missing.is_subset(&no_longer), "{missing:?}");
    let annotations = &ours["annotations"];
    assert_eq!(
        annotations["org.opencontainers.runc.checkpoint.enabled"],
        "true"
    );
    assert_eq!(annotations["org.rcm.version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(
        annotations["io.github.seccomp.libseccomp.version"],
        theirs["annotations"]["io.github.seccomp.libseccomp.version"]
    );
}

#[test]
fn what_cannot_be_done_is_refused() {
    let host = Host::new();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    if !mounts.contains(" resctrl ") {
        let bundle = host
            .bundle("web")
            .set("/linux/intelRdt", json!({"l3CacheSchema": "L3:0=f"}));
        host.run(&bundle)
            .fails_with(1, "intelRdt is specified in config");
    }
    if !PathBuf::from("/sys/fs/cgroup/cgroup.controllers").exists() {
        let bundle = host
            .bundle("web")
            .resource("unified", json!({"memory.high": "1000000"}));
        host.run(&bundle)
            .fails_with(1, "cannot use unified on cgroup v1");
    }
    assert_eq!(host.remains(), Vec::<String>::new());
}

/// Returns the output of `PROGRAM spec FLAGS`, without the parts that may differ.
fn written_spec(program: impl AsRef<std::ffi::OsStr>, flags: &[&str]) -> Value {
    let dir = tempfile::tempdir().unwrap();
    Cmd::new(program)
        .arg("spec")
        .args(flags)
        .arg("--bundle")
        .arg(dir.path())
        .run()
        .ok();
    let text = fs::read(dir.path().join("config.json")).unwrap();
    let mut spec: Value = serde_json::from_slice(&text).unwrap();
    let version = spec["ociVersion"].take();
    assert!(version.as_str().unwrap().starts_with("1."), "{version}");
    // Older runcs put the capabilities into the ambient set, too.
    spec["process"]["capabilities"]
        .as_object_mut()
        .unwrap()
        .remove("ambient");
    spec
}

#[test]
fn the_example_spec_is_runcs() {
    let Some(runc) = runc() else {
        skip!("runc, the yardstick, is not installed");
    };
    for flags in [&[][..], &["--rootless"]] {
        let ours = written_spec(env!("CARGO_BIN_EXE_rcm"), flags);
        let theirs = written_spec(&runc, flags);
        assert_eq!(ours, theirs, "{flags:?}");
    }
}

#[test]
fn the_example_spec_runs() {
    let host = Host::new();
    let bundle = host.bundle("web");
    let spec = || {
        host.bare()
            .args(["spec", "--bundle"])
            .arg(bundle.dir())
            .run()
    };
    spec().fails_with(1, "File config.json exists. Remove it first");
    fs::remove_file(bundle.config_path()).unwrap();
    spec().ok();
    let text = fs::read_to_string(bundle.config_path()).unwrap();
    assert!(text.starts_with("{\n\t\"ociVersion\""), "{text}");
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["echo", "it runs"]);
    config["linux"]["cgroupsPath"] = json!(format!("{}/web", host.cgroup_parent()));
    fs::write(bundle.config_path(), config.to_string()).unwrap();
    let output = host.run(&bundle).ok();
    assert_eq!(output.stdout(), "it runs\n");
}

#[test]
fn the_version_has_runcs_lines() {
    let output = Cmd::new(env!("CARGO_BIN_EXE_rcm"))
        .arg("--version")
        .run()
        .ok();
    let text = output.stdout();
    let mut lines = text.lines();
    // Docker reads the first two.
    let first = lines.next().unwrap();
    assert_eq!(first, format!("rcm version {}", env!("CARGO_PKG_VERSION")));
    let names: Vec<&str> = lines
        .filter_map(|line| Some(line.split_once(": ")?.0))
        .collect();
    assert!(
        names.contains(&"spec") && names.contains(&"libseccomp"),
        "{text}"
    );
    assert_eq!(names.len(), text.lines().count() - 1, "{text}");

    // Without CRIU the answer is as fast, and shorter.
    let output = Cmd::new(env!("CARGO_BIN_EXE_rcm"))
        .args(["--criu", "/nonexistent/criu", "--version"])
        .limit(Duration::from_secs(5))
        .run()
        .ok();
    assert!(!output.stdout().contains("criu:"), "{output:?}");
}
