//! Dumps and restores that fail, are refused or are killed.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use super::{
    COUNTER, assert_counts, assert_stands_still, checkpoint, counter, images, restore,
    restore_detached,
};
use crate::common::{Cmd, Host, wait_until};
use nix::sys::signal::Signal;

#[test]
fn a_failing_hook_takes_the_restore_back() {
    let host = Host::new();
    let bundle = counter(&host, |bundle| bundle);
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images).run().ok();
    let bundle = bundle.hook("createRuntime", "cat > /dev/null; exit 9");
    let output = restore_detached(&host, &bundle, &images).run();
    assert_eq!(output.code(), 1);
    assert!(
        output.stderr().contains("createRuntime"),
        "{}",
        output.stderr()
    );
    assert_eq!(host.status("web"), "gone");
    assert_stands_still(&bundle);
}

#[test]
fn a_failing_dump_says_why_and_leaves_the_container_running() {
    let host = Host::new();
    let bundle = counter(&host, |bundle| {
        bundle
            .host_programs()
            .script(&format!("exec 9> /lock; flock 9; {COUNTER}"))
    });
    let images = images(&host, "images");
    let output = checkpoint(&host, &bundle, &images).run();
    assert_eq!(output.code(), 1);
    let message = output.stderr();
    assert!(
        message.contains("Some file locks are hold by dumping tasks"),
        "{message}"
    );
    assert!(message.contains("use --file-locks"), "{message}");
    assert!(message.contains("dump.log"), "{message}");
    assert_eq!(host.status("web"), "running");
    assert_counts(&bundle);
    checkpoint(&host, &bundle, &images)
        .arg("--file-locks")
        .run()
        .ok();
    restore_detached(&host, &bundle, &images)
        .arg("--file-locks")
        .run()
        .ok();
    assert_counts(&bundle);
}

#[test]
fn the_container_runs_on_whenever_rcm_is_killed() {
    let host = Host::new();
    let bundle = counter(&host, |bundle| bundle);
    let mut interrupted = 0;
    for delay_ms in (0..60).step_by(4) {
        let images = images(&host, &format!("images-{delay_ms}"));
        let mut running = checkpoint(&host, &bundle, &images)
            .arg("--leave-running")
            .spawn();
        sleep(Duration::from_millis(delay_ms));
        if running.is_running() {
            interrupted += 1;
            running.signal(Signal::SIGKILL);
        }
        let _ = running.wait();
        assert_counts(&bundle);
        assert_eq!(host.status("web"), "running", "killed after {delay_ms} ms");
    }
    assert!(interrupted > 5, "only {interrupted} were killed in time");
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images).run().ok();
    restore_detached(&host, &bundle, &images).run().ok();
    assert_counts(&bundle);
}

#[test]
fn nothing_is_left_whenever_a_restore_is_killed() {
    let host = Host::new();
    let bundle = counter(&host, |bundle| bundle);
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images).run().ok();
    for delay_ms in (0..60).step_by(6) {
        let mut running = restore(&host, &bundle, &images).spawn();
        sleep(Duration::from_millis(delay_ms));
        if running.is_running() {
            running.signal(Signal::SIGKILL);
        }
        let _ = running.wait();
        // Either the container never ran, or rcm has a record of it.
        wait_until("CRIU has finished", || {
            matches!(host.status("web").as_str(), "gone" | "stopped" | "running")
        });
        sleep(Duration::from_millis(150));
        if host.status("web") != "running" {
            assert_stands_still(&bundle);
        }
        host.delete("web");
        assert_stands_still(&bundle);
    }
    restore_detached(&host, &bundle, &images).run().ok();
    assert_counts(&bundle);
}

#[test]
fn wrong_requests_are_one_line_each() {
    let host = Host::new();
    let bundle = host.bundle("web").script(COUNTER);
    let empty = images(&host, "empty");
    fs::create_dir(&empty).unwrap();
    let missing = images(&host, "missing");
    let output = |cmd: Cmd| {
        let output = cmd.run();
        assert_eq!(output.code(), 1, "{output:?}");
        assert_eq!(output.stderr().lines().count(), 1, "{output:?}");
        output.stderr()
    };
    assert!(output(checkpoint(&host, &bundle, &empty)).contains("container does not exist"));
    assert!(output(restore_detached(&host, &bundle, &missing)).contains("missing"));
    assert!(output(restore_detached(&host, &bundle, &empty)).contains("no complete dump"));
    assert_eq!(host.status("web"), "gone");
    host.create(&bundle);
    assert!(
        output(checkpoint(&host, &bundle, &empty))
            .contains("cannot be checkpointed in created state")
    );
    host.start("web");
    let absolute = checkpoint(&host, &bundle, &empty).args(["--parent-path", "/abs"]);
    assert!(output(absolute).contains("--parent-path must be relative"));
    let nowhere = host
        .global(["--criu", "/nonexistent/criu"])
        .args(["checkpoint", "--image-path"])
        .arg(&empty)
        .arg("web");
    assert!(output(nowhere).contains("--criu names /nonexistent/criu"));
    assert_eq!(host.status("web"), "running");
}

#[test]
fn a_pre_dump_needs_memory_tracking() {
    let host = Host::new();
    let bundle = counter(&host, |bundle| bundle);
    let first = images(&host, "1");
    let output = checkpoint(&host, &bundle, &first).arg("--pre-dump").run();
    let tracked = rcm::criu::Criu::find(None)
        .unwrap()
        .features()
        .unwrap()
        .memory_tracking;
    if !tracked {
        assert_eq!(output.code(), 1);
        assert!(
            output.stderr().contains("CONFIG_MEM_SOFT_DIRTY"),
            "{}",
            output.stderr()
        );
        assert_counts(&bundle);
        return;
    }
    output.ok();
    assert_counts(&bundle);
    let second = images(&host, "2");
    checkpoint(&host, &bundle, &second)
        .args(["--parent-path", "../1"])
        .run()
        .ok();
    restore_detached(&host, &bundle, &second).run().ok();
    assert_counts(&bundle);
}
