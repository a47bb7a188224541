//! A container's life through the command line: create, start, state, kill, pause, resume, delete, run.

mod common;

use common::{Host, wait_until};

#[test]
fn a_container_is_created_started_and_deleted() {
    let host = Host::new();
    let bundle = host.bundle("web").script("echo hello; sleep 1000");
    let created = host.create(&bundle);
    assert_eq!(host.status("web"), "created");
    assert_eq!(created.stdout(), "");
    host.start("web");
    assert_eq!(host.status("web"), "running");
    wait_until("the container writes", || created.stdout() == "hello\n");
    host.cmd("kill").args(["web", "KILL"]).run().ok();
    host.wait_for_status("web", "stopped");
    host.cmd("delete").arg("web").run().ok();
    assert_eq!(host.status("web"), "gone");
    assert_eq!(host.remains(), Vec::<String>::new());
}
