//! A commit in doubt, and `--resolve` after a process was killed.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcm::migrate::wire::id::Side;
use rcm::migrate::wire::protocol::Kind;

use super::network::{Cut, WITHOUT_ROUNDS, network};
use crate::common::pair::{Pair, runs_on};
use crate::common::{Host, wait_until};

#[test]
fn a_commit_that_never_arrives_is_given_back() {
    let pair = Pair::new("lostcommit");
    let receiver = pair.receiver(&["--detach"]);
    let address = network(
        receiver.address,
        Cut::Before(Kind::Commit),
        &Arc::new(true.into()),
    );
    runs_on(
        pair.send_with(address, &WITHOUT_ROUNDS).wait(),
        "has rolled back",
    );
    receiver.running.wait().exits_with(1);
    pair.assert_at_source();
}

#[test]
fn a_commit_whose_answer_is_lost_is_settled_by_asking() {
    let pair = Pair::new("lostanswer");
    let receiver = pair.receiver(&["--detach"]);
    let address = network(
        receiver.address,
        Cut::After(Kind::Commit),
        &Arc::new(true.into()),
    );
    pair.send_with(address, &WITHOUT_ROUNDS).wait().ok();
    receiver.running.wait().ok();
    pair.assert_at_destination();
}

/// The destination runs the container. The source cannot receive the answer and dies: its copy
/// stays frozen, and `--resolve` finds the answer in the store.
#[test]
fn after_the_commit_the_source_never_runs_by_itself() {
    let pair = Pair::new("doubt");
    let receiver = pair.receiver(&[]);
    let open = Arc::new(AtomicBool::new(false));
    let address = network(receiver.address, Cut::After(Kind::Commit), &open);
    let sender = pair.send_with(address, &WITHOUT_ROUNDS);
    wait_until("it asks", || sender.stderr().contains("asking again"));
    // Kill the source at once: after two seconds the receiver leaves its answer in the store, and
    // the source would find it there.
    sender.signal(Signal::SIGKILL);
    sender.wait();
    pair.destination.wait_for_status("doubt", "running");
    // The copy does not run even though its keeper is dead: the only running copy is the other one.
    pair.assert_counts();
    assert_eq!(pair.source.status("doubt"), "paused");
    let status = pair.source.migration_status("doubt").ok();
    assert!(status.stdout().contains("is not settled"), "{status:?}");
    let again = pair.send_to(receiver.address).wait().exits_with(1);
    assert!(again.stderr().contains("is not settled"), "{again:?}");

    // It cannot be resumed by mistake either.
    let resumed = pair.source.resume("doubt").exits_with(1);
    assert!(resumed.stderr().contains("is not settled"), "{resumed:?}");
    assert_eq!(pair.source.status("doubt"), "paused");

    // Nor can a checkpoint remove it and its record, and nothing can be started in it.
    let images = pair.source.dir().join("checkpoint");
    let checkpointed = pair
        .source
        .cmd("checkpoint")
        .arg("--image-path")
        .arg(images);
    let exec = ["--ignore-paused", "doubt", "true"];
    for command in [
        checkpointed.arg("doubt"),
        pair.source.cmd("exec").args(exec),
    ] {
        let output = command.run();
        assert_ne!(output.code(), 0);
        assert!(output.stderr().contains("is not settled"), "{output:?}");
    }
    assert_eq!(pair.source.status("doubt"), "paused");
    let status = pair.source.migration_status("doubt").ok();
    assert!(status.stdout().contains("is not settled"), "{status:?}");

    // The receiver stays as the container's parent and answers for a while. Then it leaves its
    // answer in the store.
    wait_until("the verdict is left", || {
        fs::read_dir(pair.store())
            .unwrap()
            .any(|entry| entry.unwrap().path().join("verdict").exists())
    });
    let resolved = pair.source.resolve("doubt").ok();
    assert!(
        resolved.stdout().contains("runs at 127.0.0.1:"),
        "{resolved:?}"
    );
    assert_eq!(pair.source.status("doubt"), "gone");
    pair.assert_counts();
    fs::write(pair.bundle.rootfs().join("stop"), "").unwrap();
    receiver.running.wait().exits_with(7);
}

/// Only the record says whose the container is: without it `--resolve` knows nothing.
#[test]
fn a_record_that_cannot_be_read_settles_nothing() {
    let host = Host::with_container(|bundle| bundle.args(["sleep", "1000"]));
    let record = host.root().join("web/migration.json");
    for text in ["", "null", "garbage", r#"{"version":99}"#] {
        fs::write(&record, text).unwrap();
        host.resolve("web").exits_with(3);
        assert_eq!(host.status("web"), "running");
    }
    fs::remove_file(record).unwrap();
}

/// The destination owns the container, and cannot start it until the obstacle is removed.
#[test]
fn a_container_that_could_not_be_started_is_restored_by_resolve() {
    let pair = Pair::new("unstarted");
    let missing = pair.destination.dir().join("missing");
    let pid_file = missing.join("pid");
    let receiver = pair.receiver(&["--detach", "--pid-file", pid_file.to_str().unwrap()]);
    let sender = pair.send_to(receiver.address);
    // Meanwhile it answers that it owns the container.
    wait_until("it has tried again", || {
        let stderr = receiver.running.stderr();
        stderr.matches("restoring again").count() == 2
    });
    assert_eq!(pair.source.status("unstarted"), "paused");
    receiver.running.signal(Signal::SIGKILL);
    receiver.running.wait();
    let output = pair.resolve_destination().exits_with(3);
    assert!(
        output
            .stderr()
            .contains("cannot be restored from its images"),
        "{output:?}"
    );
    let last = pair.last();

    fs::create_dir(missing).unwrap();
    let output = pair.resolve_destination().ok();
    assert!(output.stdout().contains("restored"), "{output:?}");
    assert!(pair.last() >= last);
    let pid: i32 = fs::read_to_string(pid_file).unwrap().parse().unwrap();
    assert_eq!(pid, pair.destination.pid("unstarted"));
    // The source finds the answer in the store.
    sender.wait().ok();
    pair.assert_at_destination();
    let output = pair.resolve_destination().ok();
    assert!(
        output.stdout().contains("belongs to this host"),
        "{output:?}"
    );
    pair.assert_counts();
}

fn phase(host: &Host, id: &str) -> Option<String> {
    let path = host.root().join(format!("@migrations/{id}.json"));
    let record: serde_json::Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    Some(record["phase"].as_str()?.to_owned())
}

/// Killed between the commit and the first instruction, or shortly after it: CRIU then destroys the
/// container, or lets it run.
#[test]
fn a_receiver_killed_at_the_commit_is_continued_by_resolve() {
    for delay_dur in [0, 0, 0, 2, 5, 10, 20].map(Duration::from_millis) {
        let pair = Pair::new("committed");
        let receiver = pair.receiver(&["--detach"]);
        let sender = pair.send_with(receiver.address, &WITHOUT_ROUNDS);
        wait_closely(|| {
            phase(&pair.destination, "committed")
                .is_some_and(|phase| ["committed", "resuming"].contains(&&*phase))
                || !sender.stderr().is_empty() && sender.stderr().contains("moved to")
        });
        std::thread::sleep(delay_dur);
        // It may have ended already.
        let _ = kill(Pid::from_raw(receiver.running.pid()), Signal::SIGKILL);
        receiver.running.wait();
        pair.settle_destination().ok();
        sender.wait().ok();
        pair.assert_at_destination();
    }
}

/// Without the pauses of `wait_until`.
fn wait_closely(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline);
    }
}

/// If either end is killed at any moment, exactly one copy is left after `--resolve` on both, and
/// it has not missed or repeated a step.
fn one_copy_is_left(victim: Side) {
    for round in 0..7_u64 {
        let pair = Pair::new("killed");
        let receiver = pair.receiver(&["--detach"]);
        let sender = pair.send_to(receiver.address);
        std::thread::sleep(Duration::from_millis(30 * (round + 1)));
        let (killed, survivor) = if victim == Side::Source {
            (sender, receiver.running)
        } else {
            (receiver.running, sender)
        };
        // It may have ended already.
        let _ = kill(Pid::from_raw(killed.pid()), Signal::SIGKILL);
        killed.wait();
        let survivor = if victim == Side::Source {
            // A receiver waits on if no source has connected, or if its source died after the
            // commit.
            let mut survivor = survivor;
            if !survivor.ends_within(Duration::from_secs(3)) {
                survivor.signal(Signal::SIGTERM);
            }
            pair.settle_destination();
            survivor
        } else {
            // A source that asks a dead receiver finds the answer in the store.
            pair.settle_destination();
            survivor
        };
        survivor.wait();
        pair.settle_destination();
        let _ = pair.source.resolve("killed");
        let (at_source, at_destination) = (
            pair.source.status("killed"),
            pair.destination.status("killed"),
        );
        match (at_source.as_str(), at_destination.as_str()) {
            ("running", "gone") => pair.assert_at_source(),
            ("gone", "running") => pair.assert_at_destination(),
            other => panic!("round {round}: {other:?}"),
        }
    }
}

#[test]
fn a_source_killed_at_any_time_leaves_exactly_one_copy() {
    one_copy_is_left(Side::Source);
}

#[test]
fn a_receiver_killed_at_any_time_leaves_exactly_one_copy() {
    one_copy_is_left(Side::Destination);
}
