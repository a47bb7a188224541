//! A container that counts moves, once, completely, or not at all.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;

use crate::common::pair::{COUNTER, Pair, Receiver, in_the_middle, runs_on, send};
use crate::common::{ConsoleSocket, Host, is_alive, wait_until};

#[test]
fn a_counter_moves_without_a_gap() {
    let pair = Pair::new("moves");
    pair.move_there();
    let state = pair.destination.state("moves");
    assert_eq!(state["bundle"].as_str(), pair.bundle.dir().to_str());
    let status = |host: &Host| {
        let output = host.migration_status("moves").ok();
        output.stdout()
    };
    assert!(status(&pair.source).contains("moved to 127.0.0.1:"));
    assert!(status(&pair.destination).contains("came from 127.0.0.1:"));
    let output = pair.source.cmd("live-migrate").args(["moves", "--status"]);
    let known = output.arg("--json").run().ok().json();
    assert_eq!(known["side"], "source");
    assert_eq!(
        (&known["phase"], &known["settled"]),
        (&"done".into(), &true.into())
    );
    assert!(known["status"].is_null(), "{known}");
}

#[test]
fn it_moves_there_and_back() {
    let pair = Pair::new("back");
    pair.move_there();
    pair.move_back();
}

#[test]
fn a_receiver_in_the_foreground_is_the_parent() {
    let pair = Pair::new("parent");
    let pid_file = pair.destination.dir().join("pid");
    let mut receiver = pair.receiver(&["--pid-file", pid_file.to_str().unwrap()]);
    pair.send_to(receiver.address).wait().ok();
    pair.assert_at_destination();
    assert!(receiver.running.is_running());
    let pid: i32 = fs::read_to_string(pid_file).unwrap().parse().unwrap();
    assert_eq!(pid, pair.destination.pid("parent"));
    fs::write(pair.bundle.rootfs().join("stop"), "").unwrap();
    receiver.running.wait().exits_with(7);
    assert_eq!(pair.destination.status("parent"), "gone");
}

#[test]
fn a_receiver_killed_in_the_middle_leaves_it_counting() {
    let (pair, gate, receiver, sender) = in_the_middle("victim", &[]);
    receiver.running.signal(Signal::SIGKILL);
    receiver.running.wait();
    gate.open();
    runs_on(sender.wait(), "");
    pair.destination.resolve("victim").exits_with(1);
    pair.assert_at_source();
    // And the next attempt succeeds.
    pair.move_there();
}

/// The restored copy is complete and held when its keeper is killed.
#[test]
fn a_receiver_killed_with_the_restored_container_leaves_it_counting() {
    let (pair, gate, receiver, sender) = in_the_middle("held", &[]);
    // The source cannot commit.
    sender.signal(Signal::SIGSTOP);
    gate.open();
    wait_until("it is restored", || {
        receiver.running.stderr().contains("restore ")
    });
    receiver.running.signal(Signal::SIGKILL);
    receiver.running.wait();
    sender.signal(Signal::SIGCONT);
    // "Ready" may have arrived before the connection ended. Then the source has fenced the
    // container and committed to a dead receiver. It cannot know that the receiver is dead until
    // `--resolve` at the destination settles this.
    pair.destination.resolve("held").exits_with(1);
    runs_on(sender.wait(), "");
    pair.assert_at_source();
}

#[test]
fn a_source_killed_in_the_middle_leaves_it_counting() {
    let (pair, gate, receiver, sender) = in_the_middle("orphan", &[]);
    sender.signal(Signal::SIGKILL);
    let pid = sender.pid();
    sender.wait();
    assert!(!is_alive(pid));
    pair.assert_counts();
    gate.open();
    receiver.running.wait().exits_with(1);
    pair.source.resolve("orphan").exits_with(1);
    pair.assert_at_source();
}

#[test]
fn a_source_that_is_asked_to_stop_rolls_back() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (pair, gate, receiver, sender) = in_the_middle("term", &[]);
        sender.signal(signal);
        runs_on(sender.wait(), &format!("stopped by {signal}"));
        pair.assert_counts();
        gate.open();
        let output = receiver.running.wait().exits_with(1);
        assert!(output.stderr().contains("stopped by"), "{output:?}");
        pair.assert_at_source();
    }
}

#[test]
fn a_receiver_that_is_asked_to_stop_gives_it_back() {
    let (pair, gate, receiver, sender) = in_the_middle("giveback", &[]);
    receiver.running.signal(Signal::SIGTERM);
    gate.open();
    receiver.running.wait().exits_with(1);
    runs_on(sender.wait(), "ended the migration: stopped by SIGTERM");
    pair.assert_at_source();
}

#[test]
fn a_freeze_that_takes_too_long_is_ended() {
    let (pair, gate, receiver, sender) = in_the_middle("slow", &["--timeout", "3s"]);
    runs_on(sender.wait(), "was frozen for 3s");
    pair.assert_counts();
    gate.open();
    receiver.running.wait().exits_with(1);
    pair.assert_at_source();
}

#[test]
fn strangers_get_nothing_and_disturb_nobody() {
    let pair = Pair::new("strange");
    let mut receiver = pair.receiver(&["--detach"]);
    let silent: Vec<TcpStream> = (0..100)
        .map(|_| TcpStream::connect(receiver.address).unwrap())
        .collect();
    let mut talkative = TcpStream::connect(receiver.address).unwrap();
    talkative.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    // End of the stream, or a reset if the kernel had more data.
    let _ = talkative.read_to_end(&mut answer);
    assert_eq!(answer, b"", "a stranger gets no answer");
    let mut liar = TcpStream::connect(receiver.address).unwrap();
    liar.write_all(b"rcm-mig\n\x01\x00\x01").unwrap();
    liar.write_all(&[0, 4, 0, 0, 0xff, 0xff, 0xff, 0xff])
        .unwrap();
    liar.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut answer = Vec::new();
    // An opening and a challenge, then the end: the receiver does not wait after a frame out of
    // turn.
    let _ = liar.read_to_end(&mut answer);
    assert!(answer.len() < 1024);
    assert!(receiver.running.is_running());
    pair.send_to(receiver.address).wait().ok();
    receiver.running.wait().ok();
    drop(silent);
    pair.assert_at_destination();
}

#[test]
fn a_source_with_another_store_is_turned_away() {
    let pair = Pair::new("elsewhere");
    let mut receiver = pair.receiver(&["--detach"]);
    let other = pair.source.dir().join("other");
    fs::create_dir(&other).unwrap();
    let output = send(&pair.source, "elsewhere", &other, receiver.address, &[]).wait();
    runs_on(output, "is not in this image store");
    assert!(receiver.running.is_running());

    // A file that others can read is not accepted either.
    let secret = fs::read_dir(pair.store())
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
    runs_on(pair.send_to(receiver.address).wait(), "it proves nothing");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    // Neither is a wrong secret, and a receiver with another certificate gets no information.
    let right = fs::read_to_string(&secret).unwrap();
    let (key, fingerprint) = right.split_once('\n').unwrap();
    let zeros = "0".repeat(64);
    for (key, fingerprint, message) in [
        (zeros.as_str(), fingerprint, "closed the connection"),
        (key, &format!("{zeros}\n"), "somebody else answers"),
    ] {
        fs::write(&secret, format!("{key}\n{fingerprint}")).unwrap();
        runs_on(pair.send_to(receiver.address).wait(), message);
    }
    fs::write(&secret, right).unwrap();

    pair.send_to(receiver.address).wait().ok();
    receiver.running.wait().ok();
    pair.assert_at_destination();
}

#[test]
fn everything_that_speaks_against_it_is_said_at_once() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().to_path_buf();
    let pair = Pair::with("refused", |bundle, _| {
        fs::create_dir(bundle.rootfs().join("data")).unwrap();
        bundle.bind(&path, "/data", "rw")
    });
    let mut receiver = pair.receiver(&["--detach"]);
    // The id is taken after the receiver has begun to wait.
    let rival = pair.destination.bundle("refused").args(["sleep", "1000"]);
    pair.destination.create(&rival);
    let moved = data.path().with_extension("moved");
    fs::rename(data.path(), &moved).unwrap();
    let output = pair.send_to(receiver.address).wait();
    fs::rename(&moved, data.path()).unwrap();
    let stderr = output.stderr();
    runs_on(output, "exists; remove it with `rcm delete refused`");
    assert!(
        stderr.contains(&format!("{} does not exist", path.display())),
        "{stderr}"
    );
    pair.assert_counts();
    assert!(receiver.running.is_running());

    pair.destination.delete("refused");
    pair.send_to(receiver.address).wait().ok();
    receiver.running.wait().ok();
    pair.assert_at_destination();
}

#[test]
fn without_a_receiver_it_runs_on() {
    let pair = Pair::new("alone");
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap();
    runs_on(pair.send_to(nobody).wait(), "is a receiver");
    pair.assert_at_source();
}

#[test]
fn a_dump_that_fails_says_why_and_leaves_it_counting() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("criu.conf");
    fs::write(&config, "ghost-limit 1\n").unwrap();
    let pair = Pair::with("ghosts", |bundle, _| {
        let annotations = serde_json::json!({"org.criu.config": config});
        let bundle = bundle.set("/annotations", annotations);
        bundle.script(&format!(
            "exec 8>/ghost; echo boo >&8; rm /ghost; {COUNTER}"
        ))
    });
    let receiver = pair.receiver(&["--detach"]);
    runs_on(pair.send_to(receiver.address).wait(), "ghost");
    receiver.running.wait().exits_with(1);
    pair.assert_at_source();

    fs::write(&config, "").unwrap();
    pair.move_there();
}

#[test]
fn a_full_store_leaves_it_counting() {
    // The space for a deleted file cannot be predicted.
    let pair = Pair::with("full", |bundle, _| {
        bundle.script(&format!(
            "exec 8>/ghost; dd if=/dev/urandom bs=1M count=16 >&8 2>/dev/null; rm /ghost; {COUNTER}"
        ))
    });
    let store = pair.store();
    let (tmpfs, options) = (Some("tmpfs"), Some("size=8m"));
    mount(tmpfs, &store, tmpfs, MsFlags::empty(), options).unwrap();
    let receiver = pair.receiver(&["--detach"]);
    runs_on(pair.send_to(receiver.address).wait(), "cannot be dumped");
    receiver.running.wait().exits_with(1);
    pair.assert_at_source();
    umount2(&store, MntFlags::MNT_DETACH).unwrap();
}

#[test]
fn what_exec_brought_in_is_named_and_does_not_move() {
    let pair = Pair::new("execs");
    let exec = pair
        .source
        .cmd("exec")
        .args(["--detach", "execs", "sleep", "1000"]);
    exec.run().ok();
    let receiver = pair.receiver(&["--detach"]);
    let output = pair.send_to(receiver.address).wait().ok();
    assert!(
        output.stderr().contains("(sleep) was started by `exec`"),
        "{output:?}"
    );
    receiver.running.wait().ok();
    pair.assert_at_destination();
}

#[test]
fn a_terminal_moves_with_its_container() {
    let (source, destination) = (Host::new(), Host::new());
    let store = source.dir().join("store");
    fs::create_dir(&store).unwrap();
    let script = "while read -r line; do number=$((number + 1)); echo \"$number: $line\"; done";
    let bundle = source.bundle("tty").script(script).terminal();
    let console = ConsoleSocket::listen(&source.dir().join("console"));
    let create = source.cmd("run").args(["--detach", "--console-socket"]);
    create.arg(console.path()).bundle(&bundle).run().ok();
    let mut terminal = console.terminal();
    terminal.send("here\n");
    terminal.expect("1: here");

    // Without a receiver for the terminal, the container is not even frozen.
    let receiver = Receiver::start(&destination, "tty", &store, &["--detach"]);
    let refused = send(&source, "tty", &store, receiver.address, &[]).wait();
    runs_on(refused, "has a terminal, and this receiver has none for it");
    receiver.running.signal(Signal::SIGTERM);
    receiver.running.wait().exits_with(1);

    let console = ConsoleSocket::listen(&destination.dir().join("console"));
    let flags = [
        "--detach",
        "--console-socket",
        console.path().to_str().unwrap(),
    ];
    let receiver = Receiver::start(&destination, "tty", &store, &flags);
    send(&source, "tty", &store, receiver.address, &[])
        .wait()
        .ok();
    receiver.running.wait().ok();
    let mut terminal = console.terminal();
    terminal.send("there\n");
    terminal.expect("2: there");
    assert_eq!(source.status("tty"), "gone");
}

#[test]
fn one_migration_at_a_time() {
    let (pair, gate, receiver, sender) = in_the_middle("busy", &[]);
    let second = pair.send_to(receiver.address).wait().exits_with(1);
    assert!(
        second.stderr().contains("another rcm is migrating"),
        "{second:?}"
    );
    let resolve = pair.source.resolve("busy");
    assert!(
        resolve
            .exits_with(1)
            .stderr()
            .contains("another rcm is migrating")
    );
    gate.open();
    sender.wait().ok();
    receiver.running.wait().ok();
    pair.assert_at_destination();
}

#[test]
fn wrong_usage_has_its_own_status() {
    let host = Host::new();
    for arguments in [
        &["x"][..],
        &["x", "--image-path", "/tmp", "--no-such-flag"],
        &[
            "x",
            "--image-path",
            "/tmp",
            "--destination",
            "h",
            "--listen",
            "127.0.0.1:1",
        ],
        &["x", "--image-path", "/tmp", "--destination", "h:0"],
        &["x", "--image-path", "/tmp", "--timeout", "soon"],
        &["x", "--status", "--resolve"],
        &["x", "--status", "--report", "/tmp/report"],
    ] {
        let output = host.cmd("live-migrate").args(arguments).run().exits_with(2);
        assert!(output.stderr().contains("incorrect usage"), "{output:?}");
    }
    host.rcm([
        "live-migrate",
        "nobody",
        "--image-path",
        "/tmp",
        "--destination",
        "127.0.0.1",
    ])
    .fails_with(1, "container does not exist");
    host.migration_status("nobody")
        .fails_with(1, "no migration of container");
}

#[test]
fn the_demo_succeeds_and_cleans_up() {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/demo.sh");
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(demo)
        .env("RCM", env!("CARGO_BIN_EXE_rcm"))
        .env("RCM_DEMO_BEFORE", "0.5")
        .env("RCM_DEMO_AFTER", "0.5")
        .env("TMPDIR", dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(text.contains("downtime as the container saw it"), "{text}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
