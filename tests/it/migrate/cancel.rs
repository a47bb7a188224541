//! Ending a migration from another process.

use nix::sys::signal::Signal;

use crate::common::pair::{Pair, Receiver, in_the_middle, runs_on};
use crate::common::{Host, Output, wait_until};

fn cancel(host: &Host, id: &str) -> Output {
    host.cancel(id)
}

#[test]
fn from_the_source() {
    let (pair, gate, receiver, sender) = in_the_middle("endsource", &[]);
    let output = cancel(&pair.source, "endsource").ok();
    assert!(output.stdout().contains("runs on here"), "{output:?}");
    runs_on(sender.wait(), "stopped by SIGTERM");
    pair.assert_counts();
    gate.open();
    receiver.running.wait().exits_with(1);
    pair.assert_at_source();
    // And once more: there is nothing left to end.
    let output = cancel(&pair.source, "endsource").exits_with(1);
    assert!(output.stderr().contains("no migration"), "{output:?}");
}

#[test]
fn from_the_destination() {
    let (pair, gate, receiver, sender) = in_the_middle("enddest", &[]);
    // The restore, which the gate holds up, is not interrupted.
    let cancelling = pair
        .destination
        .cmd("live-migrate")
        .args(["enddest", "--cancel"])
        .spawn();
    // The test cannot see whether the signal handler has run, so it waits.
    std::thread::sleep(std::time::Duration::from_millis(300));
    gate.open();
    let output = cancelling.wait().ok();
    assert!(output.stdout().contains("at its source"), "{output:?}");
    runs_on(sender.wait(), "stopped by SIGTERM");
    receiver.running.wait().exits_with(1);
    pair.assert_at_source();
}

#[test]
fn after_it_there_is_nothing_to_end() {
    let pair = Pair::new("endlate");
    let receiver = pair.receiver(&[]);
    pair.send_to(receiver.address).wait().ok();
    pair.assert_at_destination();
    // The receiver is the container's parent now, and would pass a signal on.
    cancel(&pair.destination, "endlate").exits_with(1);
    cancel(&pair.source, "endlate").exits_with(1);
    pair.assert_counts();
    drop(receiver);
}

#[test]
fn a_receiver_to_which_nobody_comes() {
    let pair = Pair::new("endwait");
    for (name, status) in [("endwait", 1), ("-", 0)] {
        let receiver = Receiver::start(&pair.destination, name, &pair.store(), &["--detach"]);
        // It does not wait for other containers.
        cancel(&pair.destination, "other").exits_with(1);
        let output = cancel(&pair.destination, name).ok();
        assert!(output.stdout().contains("no receiver waits"), "{output:?}");
        receiver.running.wait().exits_with(status);
        cancel(&pair.destination, name).exits_with(1);
        pair.assert_at_source();
    }
    // After a rehearsal the receiver still waits, and can be cancelled.
    let receiver = pair.receiver(&["--detach"]);
    pair.send_with(receiver.address, &["--rehearse"])
        .wait()
        .ok();
    cancel(&pair.destination, "endwait").ok();
    receiver.running.wait().exits_with(1);
    pair.assert_at_source();
}

/// The destination cannot answer the commit. The source does not know whether the commit arrived,
/// so it is too late to cancel.
#[test]
fn not_after_the_commit() {
    let (pair, gate, receiver, sender) = in_the_middle("endcommit", &[]);
    sender.signal(Signal::SIGSTOP);
    gate.open();
    let status = |host: &Host| {
        let output = host.migration_status("endcommit");
        output.stdout()
    };
    wait_until("it is restored", || {
        status(&pair.destination).contains("peer-ready")
    });
    // "Ready" leaves right after that.
    std::thread::sleep(std::time::Duration::from_millis(300));
    receiver.running.signal(Signal::SIGSTOP);
    sender.signal(Signal::SIGCONT);
    wait_until("it is committing", || {
        status(&pair.source).contains("committing")
    });
    let cancelling = pair
        .source
        .cmd("live-migrate")
        .args(["endcommit", "--cancel"])
        .spawn();
    receiver.running.signal(Signal::SIGCONT);
    let output = cancelling.wait().exits_with(3);
    assert!(output.stderr().contains("too late"), "{output:?}");
    sender.wait().ok();
    receiver.running.wait().ok();
    pair.assert_at_destination();
}

#[test]
fn one_that_nobody_drives_is_settled_otherwise() {
    let (pair, gate, receiver, sender) = in_the_middle("enddead", &[]);
    sender.signal(Signal::SIGKILL);
    sender.wait();
    let output = cancel(&pair.source, "enddead").exits_with(3);
    assert!(output.stderr().contains("--resolve"), "{output:?}");
    gate.open();
    receiver.running.wait().exits_with(1);
    pair.source.resolve("enddead").exits_with(1);
    pair.assert_at_source();
}
