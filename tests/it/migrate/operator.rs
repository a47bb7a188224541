//! Output for an operator or a script.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::pair::{Pair, Receiver, in_the_middle, runs_on};

/// Each line is an object with the fields that every event has.
#[track_caller]
fn events(stderr: &str) -> Vec<Value> {
    let events: Vec<Value> = stderr
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    for event in &events {
        assert!(event["event"].is_string(), "{event}");
        assert!(event["container"].is_string(), "{event}");
        chrono::DateTime::parse_from_rfc3339(event["time"].as_str().unwrap()).unwrap();
    }
    events
}

#[track_caller]
fn number(document: &Value, path: &str) -> f64 {
    let found = document.pointer(path).and_then(Value::as_f64);
    found.unwrap_or_else(|| panic!("no number {path} in {document:#}"))
}

fn read(path: &std::path::Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn programs_are_told_all_of_it() {
    let pair = Pair::new("told");
    let (sent, came) = (
        pair.source.dir().join("sent.json"),
        pair.destination.dir().join("came.json"),
    );
    let receiver = pair.receiver(&["--detach", "--json", "--report", came.to_str().unwrap()]);
    let flags = ["--progress", "json", "--json", "--report"];
    let flags = [&flags[..], &[sent.to_str().unwrap()]].concat();
    let output = pair.send_with(receiver.address, &flags).wait().ok();
    let received = receiver.running.wait().ok();
    pair.assert_at_destination();

    let events = events(&output.stderr());
    let phases = |kind: &str| -> Vec<&str> {
        events
            .iter()
            .filter(|event| event["event"] == kind)
            .map(|event| event["phase"].as_str().unwrap())
            .filter(|phase| *phase != "round")
            .collect()
    };
    let after_agreement = ["dump", "ship", "verify", "restore", "fence", "commit"];
    let ended = [&["negotiate"], &after_agreement[..], &["clean up"]].concat();
    assert_eq!(phases("ended"), ended);
    assert!(phases("began").contains(&"dump"));

    let report = output.json();
    assert_eq!(report, read(&sent), "the same document");
    assert_eq!(report["container"], "told");
    assert_eq!(report["side"], "source");
    assert_eq!(report["outcome"], "moved");
    assert_eq!(report["exitStatus"], 0);
    assert!(report["error"].is_null());
    assert_eq!(report["peer"], receiver.address.to_string());
    assert_eq!(report["migration"].as_str().unwrap().len(), 32);
    let downtime = number(&report, "/downtimeMs");
    assert!(downtime <= number(&report, "/totalMs"));
    assert!(number(&report, "/imagesBytes") > 0.0);
    let parts = [
        "freeze", "dump", "ship", "verify", "restore", "fence", "commit",
    ];
    let sum: f64 = parts
        .iter()
        .map(|part| number(&report, &format!("/freeze/{part}Ms")))
        .sum();
    assert!(sum <= downtime * 1.01, "the parts are disjoint: {report:#}");
    assert!(number(&report, "/freeze/resumeMs") <= number(&report, "/freeze/commitMs"));
    for end in ["source", "destination"] {
        for program in ["rcm", "criu", "kernel"] {
            assert!(report["versions"][end][program].is_string(), "{report:#}");
        }
    }

    let came = read(&came);
    assert_eq!(received.json(), came);
    assert_eq!(came["side"], "destination");
    assert_eq!(came["outcome"], "moved");
    assert_eq!(came["migration"], report["migration"]);
    assert!(number(&came, "/freeze/restoreMs") > 0.0);
    assert_eq!(came["versions"], report["versions"]);
}

#[test]
fn programs_are_told_of_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("report.json");
    let flags = ["--json", "--report", path.to_str().unwrap()];
    let (pair, gate, receiver, sender) = in_the_middle("untold", &flags);
    sender.signal(Signal::SIGTERM);
    let output = sender.wait();
    let report = output.json();
    assert_eq!(report, read(&path));
    assert_eq!(report["outcome"], "not-moved");
    assert_eq!(report["exitStatus"], 1);
    let error = report["error"].as_str().unwrap();
    assert!(error.contains("runs on here") && error.contains("stopped by SIGTERM"));
    assert!(number(&report, "/freeze/dumpMs") > 0.0);
    assert!(report["freeze"]["commitMs"].is_null());
    runs_on(output, "stopped by SIGTERM");
    gate.open();
    receiver.running.wait().exits_with(1);
    pair.assert_at_source();

    // Long before there is anything to migrate, too.
    let output = pair
        .source
        .cmd("live-migrate")
        .args(["nobody", "--image-path"])
        .arg(pair.store())
        .args(["--destination", "127.0.0.1:1", "--json"])
        .run()
        .exits_with(1);
    let report = output.json();
    assert_eq!(report["outcome"], "not-moved");
    assert!(report["migration"].is_null());
    assert!(report["error"].as_str().unwrap().contains("does not exist"));
}

#[test]
fn a_report_that_could_not_be_written_is_found_before_anything_is_done() {
    let pair = Pair::new("nowhere");
    let output = pair.send_with(
        "127.0.0.1:1".parse().unwrap(),
        &["--report", "/no/such/directory/report.json"],
    );
    let output = output.wait().exits_with(1);
    assert!(output.stderr().contains("--report"), "{output:?}");
    pair.assert_counts();
}

#[test]
fn nothing_is_shown_if_that_is_asked_for() {
    let pair = Pair::new("quiet");
    let receiver = pair.receiver(&["--detach"]);
    let flags = ["--progress", "none", "--mode", "stop-and-copy"];
    let output = pair.send_with(receiver.address, &flags).wait().ok();
    receiver.running.wait().ok();
    assert_eq!(output.stderr(), "");
    assert_eq!(output.stdout(), "");
    pair.assert_at_destination();
}

#[test]
fn findings_are_in_the_report_of_a_dry_run() {
    let pair = Pair::new("asked");
    let receiver = pair.receiver(&["--detach"]);
    let ask = |flags: &[&str]| {
        let flags = [&["--dry-run", "--json"], flags].concat();
        pair.send_with(receiver.address, &flags).wait()
    };
    let report = ask(&[]).ok().json();
    assert_eq!(report["outcome"], "would-move");
    assert_eq!(report["exitStatus"], 0);
    fs::rename(pair.bundle.dir(), pair.source.dir().join("elsewhere")).unwrap();
    let report = ask(&["--rootfs", "none"]).exits_with(1).json();
    fs::rename(pair.source.dir().join("elsewhere"), pair.bundle.dir()).unwrap();
    assert_eq!(report["outcome"], "not-moved");
    let finding = &report["findings"][0];
    assert_eq!(finding["severity"], "error");
    assert_eq!(finding["side"], "destination");
    assert!(finding["what"].as_str().unwrap().contains("no bundle"));
    pair.send_to(receiver.address).wait().ok();
    receiver.running.wait().ok();
}

#[test]
fn a_terminal_gets_a_bar() {
    let pair = Pair::with("bar", crate::common::pair::Gate::hook);
    let gate = crate::common::pair::Gate::close(pair.source.dir());
    let receiver = pair.receiver(&["--detach"]);
    let mut session = pair
        .source
        .cmd("live-migrate")
        .args(["bar", "--image-path"])
        .arg(pair.store())
        .args(["--destination", &receiver.address.to_string()])
        .env("TERM", "xterm")
        .on_terminal();
    gate.wait();
    // The current phase, which has no line yet.
    session.terminal.expect("bar: restore");
    gate.open();
    session.terminal.expect("moved to ");
    let (status, transcript) = session.wait();
    assert_eq!(status, 0, "{transcript}");
    assert!(transcript.contains("bar: dump "), "{transcript}");
    receiver.running.wait().ok();
    pair.assert_at_destination();
}

#[test]
fn a_rehearsal_moves_nothing() {
    let pair = Pair::new("rehearsed");
    let mut receiver = pair.receiver(&["--detach"]);
    // Twice: the first one leaves nothing that is in the way of the second.
    for _ in 0..2 {
        let flags = ["--rehearse", "--json"];
        let output = pair.send_with(receiver.address, &flags).wait().ok();
        let report = output.json();
        assert_eq!(report["outcome"], "would-move");
        assert!(number(&report, "/predictedMs") > 0.0);
        assert!(number(&report, "/freeze/restoreMs") > 0.0);
        assert!(report["freeze"]["commitMs"].is_null());
        let stderr = output.stderr();
        assert!(stderr.contains("predicted downtime"), "{stderr}");
        assert_eq!(pair.source.status("rehearsed"), "running");
        pair.assert_counts();
        assert_eq!(pair.destination.status("rehearsed"), "gone");
        assert_eq!(pair.left_in_store().len(), 1, "the receiver's file");
    }
    crate::common::wait_until("the receiver waits again", || {
        let stderr = receiver.running.stderr();
        stderr.matches("rehearsed; waiting").count() == 2
    });
    assert!(receiver.running.is_running());
    pair.send_to(receiver.address).wait().ok();
    receiver.running.wait().ok();
    pair.assert_at_destination();
}

#[test]
fn a_rehearsal_that_fails_leaves_the_receiver_waiting() {
    let pair = Pair::with("stumbles", crate::common::pair::Gate::hook);
    let gate = crate::common::pair::Gate::close(pair.source.dir());
    let receiver = pair.receiver(&["--detach"]);
    let flags = ["--rehearse", "--timeout", "1s"];
    runs_on(
        pair.send_with(receiver.address, &flags).wait(),
        "was frozen for 1s",
    );
    gate.open();
    pair.assert_counts();
    pair.send_to(receiver.address).wait().ok();
    receiver.running.wait().ok();
    pair.assert_at_destination();
}

fn test_locally(pair: &Pair, flags: &[&str]) -> crate::common::Output {
    pair.source
        .cmd("live-migrate")
        .args([pair.id(), "--local-test", "--image-path"])
        .arg(pair.store())
        .args(flags)
        .run()
}

#[test]
fn a_copy_on_the_same_host_does_not_run() {
    let pair = Pair::new("copied");
    let report = test_locally(&pair, &["--json"]).ok().json();
    assert_eq!(report["outcome"], "would-move");
    assert!(number(&report, "/freeze/restoreMs") > 0.0);
    assert!(number(&report, "/predictedMs") <= number(&report, "/downtimeMs"));
    // A second runner would repeat numbers, and its cgroup or state would be found when the host
    // ends.
    pair.assert_counts();
    assert!(pair.left_in_store().is_empty());
    assert!(pair.source.cgroup_dirs("copied.test").is_empty());
    test_locally(&pair, &[]).ok();
    pair.assert_counts();
}

#[test]
fn a_copy_that_would_take_something_away_is_not_made() {
    let pair = Pair::with("unique", crate::common::pair::Gate::hook);
    let output = test_locally(&pair, &["--file-locks"]).exits_with(1);
    for reason in ["file locks", "hooks"] {
        assert!(output.stderr().contains(reason), "{output:?}");
    }
    pair.assert_counts();
    assert!(pair.left_in_store().is_empty());
}

#[test]
fn a_test_that_is_killed_leaves_it_counting() {
    let pair = Pair::new("tested");
    let running = pair
        .source
        .cmd("live-migrate")
        .args(["tested", "--local-test", "--image-path"])
        .arg(pair.store())
        .spawn();
    crate::common::wait_until("it is dumped", || running.stderr().contains("dump "));
    running.signal(Signal::SIGKILL);
    running.wait();
    pair.assert_counts();
    // `--resolve` removes the remains of an unfinished test. If the test had already ended, there
    // are none.
    let resolved = pair.source.resolve("tested");
    resolved.exits_with(1);
    crate::common::wait_until("the images are gone", || pair.left_in_store().is_empty());
    test_locally(&pair, &[]).ok();
    pair.assert_counts();
}

/// For a report of a bug: both ends say once what they wait for.
#[test]
fn debug_prints_the_limits_of_each_end() {
    let pair = Pair::new("limits");
    let receiver = Receiver::with(
        &pair.destination,
        "limits",
        &pair.store(),
        &["--debug"],
        &["--detach"],
    );
    let address = receiver.address.to_string();
    let command = pair.source.global(["--debug", "live-migrate", "limits"]);
    let sent = command
        .arg("--image-path")
        .arg(pair.store())
        .args(["--destination", &address, "--mode", "stop-and-copy"])
        .args(["--timeout", "90s"])
        .run()
        .ok();
    let received = receiver.running.wait().ok();
    for (output, side, own) in [
        (sent, "source", " --timeout=90s ASK_AGAIN_DUR=500ms "),
        (
            received,
            "destination",
            " --timeout=300s RESUME_ATTEMPTS=3 ",
        ),
    ] {
        let stderr = output.stderr();
        let head = format!("limits of the {side}:");
        let lines: Vec<&str> = stderr.lines().filter(|line| line.contains(&head)).collect();
        assert_eq!(lines.len(), 1, "{stderr}");
        for limit in own.split_whitespace().chain(["STALL_LIMIT_DUR=30s"]) {
            assert!(lines[0].contains(&format!(" {limit}")), "{}", lines[0]);
        }
    }
    pair.assert_at_destination();
}
