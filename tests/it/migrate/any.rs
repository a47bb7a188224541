//! A receiver that accepts any container.

use nix::sys::signal::Signal;

use crate::common::pair::{Gate, Pair, Receiver, runs_on, send};
use crate::common::wait_until;

fn receiver(pair: &Pair, id: &str, flags: &[&str]) -> Receiver {
    Receiver::start(&pair.destination, id, &pair.store(), flags)
}

/// Another container that counts, on the same host.
fn second(pair: &Pair, id: &str) {
    let bundle = pair.source.bundle(id).script(
        "exec </dev/null >/dev/null 2>&1 3>>/numbers
number=0
while :; do number=$((number + 1)); echo $number >&3; usleep 5000; done",
    );
    pair.source.run_detached(&bundle);
}

#[test]
fn one_after_the_other_until_it_is_stopped() {
    let pair = Pair::new("first");
    second(&pair, "second");
    let mut receiver = receiver(&pair, "-", &["--json"]);
    let address = receiver.address;
    pair.send_to(address).wait().ok();
    assert_eq!(pair.destination.status("first"), "running");
    send(&pair.source, "second", &pair.store(), address, &[])
        .wait()
        .ok();
    assert_eq!(pair.destination.status("second"), "running");
    pair.assert_counts();
    // The container has no parent that must reap it: no zombie is left when it ends.
    let pid = pair.destination.pid("second");
    pair.destination.delete("second");
    wait_until("it was waited for", || {
        !std::path::Path::new(&format!("/proc/{pid}")).exists()
    });
    assert!(receiver.running.is_running());
    receiver.running.signal(Signal::SIGTERM);
    let output = receiver.running.wait().ok();
    let containers: Vec<String> = output
        .stdout()
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|report| report["container"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(containers, ["first", "second"]);
    pair.assert_at_destination();
}

#[test]
fn two_that_come_at_once_are_both_taken() {
    let pair = Pair::new("left");
    second(&pair, "right");
    let receiver = receiver(&pair, "-", &[]);
    let sender = |id| send(&pair.source, id, &pair.store(), receiver.address, &[]);
    let (left, right) = (sender("left"), sender("right"));
    left.wait().ok();
    right.wait().ok();
    for id in ["left", "right"] {
        assert_eq!(pair.destination.status(id), "running");
        assert_eq!(pair.source.status(id), "gone");
    }
    receiver.running.signal(Signal::SIGINT);
    receiver.running.wait().ok();
}

#[test]
fn one_that_does_not_come_is_not_the_last() {
    let pair = Pair::with("clumsy", Gate::hook);
    let gate = Gate::close(pair.source.dir());
    let mut receiver = receiver(&pair, "-", &[]);
    let sender = pair.send_to(receiver.address);
    gate.wait();
    sender.signal(Signal::SIGTERM);
    runs_on(sender.wait(), "stopped by SIGTERM");
    gate.open();
    pair.assert_counts();
    pair.send_to(receiver.address).wait().ok();
    assert!(receiver.running.is_running());
    // If the receiver is stopped in the middle of the next migration, it rolls this one back.
    receiver.running.signal(Signal::SIGTERM);
    receiver.running.wait().ok();
    pair.assert_at_destination();
}

#[test]
fn bundles_by_name() {
    let pair = Pair::new("named");
    let bundles = pair.bundle.dir().parent().unwrap().to_owned();
    let nowhere = pair.source.dir().join("nowhere");
    std::fs::create_dir(&nowhere).unwrap();
    let refusing = receiver(&pair, "-", &["--bundle", nowhere.to_str().unwrap()]);
    let flags = ["--rootfs", "none"];
    let output = pair.send_with(refusing.address, &flags).wait();
    let output = output.exits_with(1);
    let expected = format!("no bundle at {}", nowhere.join("named").display());
    assert!(output.stderr().contains(&expected), "{output:?}");
    refusing.running.signal(Signal::SIGTERM);
    refusing.running.wait().ok();
    let receiver = receiver(&pair, "-", &["--bundle", bundles.to_str().unwrap()]);
    pair.send_to(receiver.address).wait().ok();
    receiver.running.signal(Signal::SIGTERM);
    receiver.running.wait().ok();
    pair.assert_at_destination();
}

#[test]
fn it_has_a_flag_too() {
    let pair = Pair::new("flagged");
    let mut running = pair
        .destination
        .cmd("live-migrate")
        .args(["--any", "--listen", "127.0.0.1:0", "--image-path"])
        .arg(pair.store())
        .spawn();
    wait_until("it listens", || running.stderr().contains("waiting on "));
    assert!(running.is_running());
    running.signal(Signal::SIGTERM);
    running.wait().ok();
    assert!(pair.left_in_store().is_empty());
}
