//! The test support itself: it notices all that it promises to notice.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::common::{Cmd, Host, is_alive};

/// The message of a panic that must happen.
fn panic_message(action: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(action)).expect_err("a panic");
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .expect("a message")
}

#[test]
fn a_hanging_command_is_killed_and_reported() {
    let running = Cmd::new("sleep")
        .arg("1000")
        .limit(Duration::from_millis(100))
        .spawn();
    let pid = running.pid();
    let message = panic_message(|| drop(running.wait()));
    assert!(message.contains("hangs"), "{message}");
    assert!(!is_alive(pid));
}

#[test]
fn what_a_container_leaves_fails_the_test() {
    let host = Host::new();
    let bundle = host.bundle("web").args(["sleep", "1000"]);
    host.run_detached(&bundle);
    let remains = host.remains().join("\n");
    for kind in ["state directory", "cgroup", "process"] {
        assert!(remains.contains(kind), "no {kind} in {remains}");
    }
    // rcm forgets the container: nothing is left for `delete --force` to find.
    let pid = host.pid("web");
    std::fs::remove_dir_all(host.root().join("web")).unwrap();
    let message = panic_message(|| drop(host));
    assert!(message.contains("left behind"), "{message}");
    assert!(message.contains("cgroup"), "{message}");
    assert!(!is_alive(pid));
}
