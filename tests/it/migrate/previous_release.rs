//! Containers, records and peers of the previous release.
//!
//! `make test` builds that release from the history of the repository and names it in
//! `RCM_PREVIOUS_RELEASE`.

use std::env;
use std::ffi::OsString;
use std::fs;

use nix::sys::signal::Signal;

use crate::common::pair::{COUNTER, Gate, Pair};
use crate::common::{Cmd, Host, Output, skip, wait_until};

/// The variable that names the previous release's program.
const VARIABLE: &str = "RCM_PREVIOUS_RELEASE";

fn previous() -> Option<OsString> {
    env::var_os(VARIABLE).filter(|program| !program.is_empty())
}

/// Runs `--resolve` of the current rcm on a host that otherwise runs the previous release.
fn resolve_today(host: &Host, id: &str) -> Output {
    Cmd::new(env!("CARGO_BIN_EXE_rcm"))
        .arg("--root")
        .arg(host.root())
        .args(["live-migrate", id, "--resolve"])
        .run()
}

#[test]
fn its_containers_can_be_managed() {
    let Some(previous) = previous() else {
        skip!("{VARIABLE} names no program: `make test` builds the previous release");
    };
    let host = Host::new();
    let bundle = host.bundle("old").args(["sleep", "1000"]);
    Cmd::new(&previous)
        .arg("--root")
        .arg(host.root())
        .args(["run", "--detach"])
        .bundle(&bundle)
        .run()
        .ok();
    let listed = host
        .cmd("list")
        .args(["--format", "json"])
        .run()
        .ok()
        .json();
    assert_eq!(listed[0]["id"], "old");
    assert_eq!(listed[0]["status"], "running");
    assert_eq!(
        host.exec("old", ["echo", "hello"]).ok().stdout().trim(),
        "hello"
    );
    host.cmd("pause").arg("old").run().ok();
    assert_eq!(host.status("old"), "paused");
    host.cmd("resume").arg("old").run().ok();
    host.cmd("kill").args(["old", "KILL"]).run().ok();
    wait_until("it is stopped", || host.status("old") == "stopped");
    host.cmd("delete").arg("old").run().ok();
    assert_eq!(host.status("old"), "gone");
}

#[test]
fn its_containers_can_be_moved() {
    let Some(previous) = previous() else {
        skip!("{VARIABLE} names no program: `make test` builds the previous release");
    };
    let (source, destination) = (Host::new(), Host::new());
    fs::create_dir(source.dir().join("store")).unwrap();
    let bundle = source.bundle("old").script(COUNTER);
    Cmd::new(&previous)
        .arg("--root")
        .arg(source.root())
        .args(["run", "--detach"])
        .bundle(&bundle)
        .run()
        .ok();
    let pair = Pair {
        source,
        destination,
        bundle,
    };
    wait_until("it counts", || pair.last() > 3);
    pair.move_there();
}

#[test]
fn either_end_may_be_of_that_release() {
    let Some(previous) = previous() else {
        skip!("{VARIABLE} names no program: `make test` builds the previous release");
    };
    let old = Host::new().with_program(&previous);
    let pair = Pair::between(old, Host::new(), "mixed", |bundle, _| bundle);
    pair.move_there();
    pair.move_back();
}

#[test]
fn its_open_records_can_be_settled() {
    let Some(previous) = previous() else {
        skip!("{VARIABLE} names no program: `make test` builds the previous release");
    };
    let old = || Host::new().with_program(&previous);
    let pair = Pair::between(old(), old(), "open", Gate::hook);
    let gate = Gate::close(pair.source.dir());
    let receiver = pair.receiver(&["--detach"]);
    let sender = pair.send_to(receiver.address);
    gate.wait();
    sender.signal(Signal::SIGKILL);
    receiver.running.signal(Signal::SIGKILL);
    sender.wait();
    receiver.running.wait();
    gate.open();
    // Exit status 1: the container runs on at the source.
    resolve_today(&pair.source, "open").exits_with(1);
    resolve_today(&pair.destination, "open").exits_with(1);
    pair.assert_at_source();
}
