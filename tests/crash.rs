//! Creations that are killed or compete: what they leave is found and removed, and nobody else is hurt.

mod common;

use std::time::Duration;

use common::{Host, Output, Running, is_alive, wait_until};
use nix::sys::signal::Signal;
use serde_json::json;

/// Kills rcm after `delay_dur` in a `create` and returns whether that was before its end.
fn killed_creation(host: &Host, verb: &str, delay_dur: Duration) -> bool {
    let bundle = host.bundle("web").args(["sleep", "1000"]);
    let mut running = host.cmd(verb).bundle(&bundle).spawn();
    std::thread::sleep(delay_dur);
    let in_time = running.is_running();
    if in_time {
        running.signal(Signal::SIGKILL);
    }
    let _: Output = running.wait();
    in_time
}

#[test]
fn a_creation_that_was_killed_is_cleaned_up() {
    let host = Host::new();
    let mut caught = 0;
    // Steps of two milliseconds: every phase of a creation is hit.
    for step in 0..60 {
        let delay_dur = Duration::from_millis(2 * step);
        caught += u32::from(killed_creation(&host, "create", delay_dur));
        // Whatever is there can be asked for and listed.
        if host.root().join("web/state.json").exists() {
            assert_ne!(host.status("web"), "gone");
        }
        host.cmd("delete").args(["--force", "web"]).run().ok();
        wait_until("everything is gone", || host.remains().is_empty());
    }
    assert!(caught > 5, "only {caught} creations were killed in time");
}

#[test]
fn a_foreground_run_that_was_killed_is_cleaned_up() {
    let host = Host::new();
    for step in 0..20 {
        killed_creation(&host, "run", Duration::from_millis(5 * step));
        host.cmd("delete").args(["--force", "web"]).run().ok();
        wait_until("everything is gone", || host.remains().is_empty());
    }
}

#[test]
fn two_creations_of_one_id_make_one_container() {
    let host = Host::new();
    let bundle = host.bundle("web").args(["sleep", "1000"]);
    let running: Vec<_> = (0..8)
        .map(|_| host.cmd("create").bundle(&bundle).spawn())
        .collect();
    let outputs: Vec<Output> = running.into_iter().map(Running::wait).collect();
    let made = outputs.iter().filter(|output| output.code() == 0).count();
    assert_eq!(made, 1, "{outputs:?}");
    for output in outputs.into_iter().filter(|output| output.code() != 0) {
        output.fails_with(1, "container with given ID already exists");
    }
    assert_eq!(host.status("web"), "created");
    assert!(is_alive(host.pid("web")));
}

#[test]
fn a_cgroup_in_use_is_not_taken_over() {
    let host = Host::new();
    let first = host.bundle("first").args(["sleep", "1000"]);
    host.run_detached(&first);
    // Another container with the same cgroup: whatever happens to it, the first one must live on.
    let path = format!("{}/first", host.cgroup_parent());
    let second = host
        .bundle("second")
        .set("/linux/cgroupsPath", json!(path))
        .args(["no-such"]);
    host.cmd("run")
        .bundle(&second)
        .run()
        .fails_with(1, "container's cgroup is not empty: 1 process(es) found");
    assert_eq!(host.status("first"), "running");
    host.cmd("pause").arg("first").run().ok();
}
