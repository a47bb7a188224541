//! Checkpoint and restore of real containers with the real CRIU.

mod failures;
mod programs;
mod streams;
mod surroundings;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use crate::common::{Bundle, Cmd, Host, wait_until};

/// Counts in the file `/number` of its root file system, which is replaced atomically.
const COUNTER: &str =
    "i=0; while :; do i=$((i+1)); echo $i > /number.new; mv /number.new /number; sleep 0.02; done";

fn number(bundle: &Bundle) -> u64 {
    fs::read_to_string(bundle.rootfs().join("number"))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

#[track_caller]
fn assert_counts(bundle: &Bundle) {
    let before = number(bundle);
    wait_until("it counts on", || number(bundle) > before);
}

#[track_caller]
fn assert_stands_still(bundle: &Bundle) {
    let before = number(bundle);
    sleep(Duration::from_millis(200));
    assert_eq!(number(bundle), before, "it counts although it must not");
}

fn images(host: &Host, name: &str) -> PathBuf {
    host.dir().join(name)
}

fn checkpoint(host: &Host, bundle: &Bundle, images: &Path) -> Cmd {
    host.cmd("checkpoint")
        .arg("--image-path")
        .arg(images)
        .arg(bundle.id())
}

fn restore(host: &Host, bundle: &Bundle, images: &Path) -> Cmd {
    host.cmd("restore")
        .arg("--image-path")
        .arg(images)
        .bundle(bundle)
}

fn restore_detached(host: &Host, bundle: &Bundle, images: &Path) -> Cmd {
    restore(host, bundle, images).arg("--detach")
}

/// A container that counts.
fn counter(host: &Host, change: impl FnOnce(Bundle) -> Bundle) -> Bundle {
    let bundle = change(host.bundle("web").script(COUNTER));
    host.run_detached(&bundle);
    assert_counts(&bundle);
    bundle
}

#[test]
fn a_restored_container_is_a_full_citizen() {
    let host = Host::new();
    let bundle = counter(&host, |bundle| {
        bundle
            .resource("memory", serde_json::json!({"limit": 64 << 20}))
            .resource("pids", serde_json::json!({"limit": 33}))
    });
    for round in 1..=2 {
        let images = images(&host, &format!("images-{round}"));
        let before = number(&bundle);
        checkpoint(&host, &bundle, &images).run().ok();
        assert_eq!(host.status("web"), "gone");
        assert_stands_still(&bundle);
        assert!(number(&bundle) >= before);

        let last = number(&bundle);
        let pid_file = host.dir().join("pid");
        restore_detached(&host, &bundle, &images)
            .arg("--pid-file")
            .arg(&pid_file)
            .run()
            .ok();
        assert_counts(&bundle);
        assert!(number(&bundle) > last, "it began anew");
        assert_eq!(host.status("web"), "running");
        assert_eq!(
            fs::read_to_string(&pid_file).unwrap(),
            host.pid("web").to_string()
        );
    }
    let limit = host.cgroup_file("web", "memory.limit_in_bytes", "memory.max");
    assert_eq!(limit, (64 << 20).to_string());
    assert_eq!(host.cgroup_file("web", "pids.max", "pids.max"), "33");
    let inside = host.exec("web", ["cat", "/proc/1/comm"]).ok();
    assert_eq!(inside.stdout(), "sh\n");
    let processes = host.rcm(["ps", "--format", "json", "web"]).ok();
    let pids = processes.json();
    assert!(
        pids.as_array().unwrap().contains(&host.pid("web").into()),
        "{pids}"
    );
    let stats = host.rcm(["events", "--stats", "web"]).ok().json();
    assert!(
        stats["data"]["pids"]["current"].as_u64() > Some(0),
        "{stats}"
    );
    host.rcm(["update", "--pids-limit", "44", "web"]).ok();
    assert_eq!(host.cgroup_file("web", "pids.max", "pids.max"), "44");
    host.pause("web").ok();
    assert_eq!(host.status("web"), "paused");
    assert_stands_still(&bundle);
    host.resume("web").ok();
    assert_counts(&bundle);
    host.kill("web", "KILL").ok();
    host.wait_for_status("web", "stopped");
    host.rcm(["delete", "web"]).ok();
    assert_eq!(host.status("web"), "gone");
}

#[test]
fn a_paused_container_stays_paused_and_runs_when_restored() {
    let host = Host::new();
    let bundle = counter(&host, |bundle| bundle);
    host.pause("web").ok();
    let first = images(&host, "first");
    checkpoint(&host, &bundle, &first)
        .arg("--leave-running")
        .run()
        .ok();
    assert_eq!(host.status("web"), "paused");
    assert_stands_still(&bundle);
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images).run().ok();
    // As with runc, the restored container runs: containerd pauses a container before a checkpoint,
    // and does not resume it after the restore.
    restore_detached(&host, &bundle, &images).run().ok();
    assert_eq!(host.status("web"), "running");
    assert_counts(&bundle);
}

#[test]
fn the_container_may_be_left_running() {
    let host = Host::new();
    let bundle = counter(&host, |bundle| bundle);
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images)
        .arg("--leave-running")
        .run()
        .ok();
    assert_eq!(host.status("web"), "running");
    assert_counts(&bundle);
    let output = restore_detached(&host, &bundle, &images).run();
    assert_eq!(output.code(), 1);
    assert!(
        output
            .stderr()
            .contains("container with given ID already exists"),
        "{}",
        output.stderr()
    );
    assert_counts(&bundle);
}

#[test]
fn hooks_run_as_with_runc() {
    let host = Host::new();
    let log = host.dir().join("hooks");
    let note = |kind: &str| {
        format!(
            "state=$(cat); pid=${{state#*\\\"pid\\\":}}; pid=${{pid%%[,\\}}]*}}; echo {kind} ${{pid:+with pid}} >> {}",
            log.display()
        )
    };
    let bundle = counter(&host, |bundle| {
        [
            "prestart",
            "createRuntime",
            "createContainer",
            "poststart",
            "poststop",
        ]
        .iter()
        .filter(|kind| **kind != "createContainer")
        .fold(bundle, |bundle, kind| bundle.hook(kind, &note(kind)))
    });
    let lines = || -> Vec<String> {
        fs::read_to_string(&log)
            .unwrap_or_default()
            .lines()
            .map(|line| line.split(' ').next().unwrap().to_owned())
            .collect()
    };
    assert_eq!(lines(), ["prestart", "createRuntime", "poststart"]);
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images).run().ok();
    assert_eq!(lines()[3..], ["poststop"]);
    restore_detached(&host, &bundle, &images).run().ok();
    assert_eq!(lines()[4..], ["prestart", "createRuntime"]);
    host.delete("web");
    assert_eq!(lines()[6..], ["poststop"]);
}

#[test]
fn images_of_runc_are_restored() {
    let host = Host::new();
    let runc = |verb: &str| {
        Cmd::new("runc")
            .arg("--root")
            .arg(host.dir().join("runc"))
            .arg(verb)
    };
    let bundle = host.bundle("web").script(COUNTER).mount(
        "cgroup",
        Path::new("cgroup"),
        "/sys/fs/cgroup",
        &["ro"],
    );
    // runc cannot dump a container that writes its output to a file of the host.
    let run = format!(
        "exec runc --root {} run --detach --bundle {} web > /dev/null 2>&1",
        host.dir().join("runc").display(),
        bundle.dir().display()
    );
    Cmd::new("sh").args(["-c", &run]).run().ok();
    assert_counts(&bundle);
    let images = images(&host, "images");
    // runc may find the dead process unreaped and then fails to delete the container, but the
    // images are complete.
    runc("checkpoint")
        .arg("--image-path")
        .arg(&images)
        .arg("web")
        .run();
    assert!(images.join("inventory.img").exists());
    runc("delete").args(["--force", "web"]).run().ok();
    assert_stands_still(&bundle);
    restore_detached(&host, &bundle, &images).run().ok();
    assert_counts(&bundle);
}
