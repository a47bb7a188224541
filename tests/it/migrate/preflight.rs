//! Checks before the container is stopped.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::MetadataExt;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;

use crate::common::pair::{COUNTER, Pair, Receiver, runs_on};
use crate::common::{Output, wait_until};

fn dry_run(pair: &Pair, receiver: &Receiver, flags: &[&str]) -> Output {
    let flags = [&["--dry-run"], flags].concat();
    pair.send_with(receiver.address, &flags).wait()
}

#[track_caller]
fn moves(pair: &Pair, receiver: Receiver, flags: &[&str]) {
    pair.send_with(receiver.address, flags).wait().ok();
    receiver.running.wait().ok();
    pair.assert_at_destination();
}

#[test]
fn a_dry_run_leaves_everything_as_it_is() {
    let pair = Pair::new("dry");
    let mut receiver = pair.receiver(&["--detach"]);
    let before = pair.left_in_store();
    for _ in 0..2 {
        let output = dry_run(&pair, &receiver, &[]).ok();
        assert!(
            output
                .stdout()
                .contains("container dry can be moved to 127.0.0.1:"),
            "{output:?}"
        );
    }
    assert_eq!(pair.left_in_store(), before);
    assert!(receiver.running.is_running());
    assert_eq!(pair.source.status("dry"), "running");
    pair.assert_counts();
    // A dry run leaves no migration for `--status`.
    let status = pair.source.cmd("live-migrate").args(["dry", "--status"]);
    status.run().exits_with(1);
    moves(&pair, receiver, &[]);
}

#[test]
fn findings_of_both_ends_come_at_once() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().to_path_buf();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = format!(
        "sleep 1000 | nc 127.0.0.1 {port} >/dev/null 2>&1 & unshare -i sleep 1000 & {COUNTER}"
    );
    let pair = Pair::with("both", |bundle, _| {
        fs::create_dir(bundle.rootfs().join("data")).unwrap();
        let bundle = bundle.script(&script).bind(&path, "/data", "rw");
        // All capabilities that unshare(1) needs, and the network of the host.
        let capabilities = serde_json::json!(["CAP_SYS_ADMIN", "CAP_KILL"]);
        ["bounding", "effective", "permitted"]
            .into_iter()
            .fold(bundle, |bundle, set| {
                bundle.set(
                    &format!("/process/capabilities/{set}"),
                    capabilities.clone(),
                )
            })
            .without_namespace("network")
    });
    let (_connection, _) = listener.accept().unwrap();
    let mut receiver = pair.receiver(&["--detach"]);
    let moved = data.path().with_extension("moved");
    fs::rename(data.path(), &moved).unwrap();
    let output = dry_run(&pair, &receiver, &[]).exits_with(1);
    let refused = pair.send_to(receiver.address).wait();
    fs::rename(&moved, data.path()).unwrap();
    let stdout = output.stdout();
    for (side, what, remedy) in [
        (
            "source",
            "the container has 1 TCP connections",
            "--tcp-established",
        ),
        ("source", "has a ipc namespace of its own", "end it"),
        (
            "destination",
            "does not exist, and the container mounts it",
            "provide it",
        ),
    ] {
        let says = |line: &str| {
            line.starts_with(&format!("error: {side}: "))
                && line.contains(what)
                && line.contains(remedy)
        };
        assert!(stdout.lines().any(says), "{what:?} not in {stdout}");
    }
    assert!(stdout.contains("3 errors"), "{stdout}");
    // The same without --dry-run: nothing is stopped, and the receiver still waits.
    assert!(refused.stderr().contains("ipc namespace"), "{refused:?}");
    runs_on(refused, "TCP connections");
    assert!(receiver.running.is_running());
    pair.assert_counts();
}

#[test]
fn a_large_deleted_file_moves() {
    let pair = Pair::with("ghost", |bundle, _| {
        bundle.script(&format!(
            "exec 8>/ghost; dd if=/dev/urandom bs=1M count=3 >&8 2>/dev/null; rm /ghost; {COUNTER}"
        ))
    });
    let contents = |pid: i32| fs::read(format!("/proc/{pid}/fd/8")).unwrap();
    let before = contents(pair.source.pid("ghost"));
    assert_eq!(before.len(), 3 << 20);
    moves(&pair, pair.receiver(&["--detach"]), &[]);
    let pid = pair.destination.pid("ghost");
    assert!(before == contents(pid), "the deleted file has changed");
    assert_eq!(
        fs::metadata(format!("/proc/{pid}/fd/8")).unwrap().nlink(),
        0
    );
}

#[test]
fn too_little_room_for_the_images_is_known_before() {
    let pair = Pair::with("room", |bundle, _| {
        let ballast = "ballast=$(head -c 2000000 /dev/zero | tr '\\0' x)";
        bundle.script(&format!("{ballast}; {COUNTER}"))
    });
    let store = pair.store();
    let (tmpfs, size) = (Some("tmpfs"), Some("size=128k"));
    mount(tmpfs, &store, tmpfs, MsFlags::empty(), size).unwrap();
    let mut receiver = pair.receiver(&["--detach"]);
    runs_on(
        pair.send_to(receiver.address).wait(),
        "the images need about",
    );
    assert!(receiver.running.is_running());
    mount(tmpfs, &store, tmpfs, MsFlags::MS_REMOUNT, Some("size=64m")).unwrap();
    moves(&pair, receiver, &[]);
    umount2(&store, MntFlags::MNT_DETACH).unwrap();
}

#[test]
fn another_root_file_system_is_known_before() {
    let pair = Pair::new("tree");
    let other = pair.destination.bundle("tree").script(COUNTER);
    let program = other.rootfs().join("bin/busybox");
    let mut file = fs::OpenOptions::new().append(true).open(program).unwrap();
    file.write_all(b"another build").unwrap();
    let flags = ["--detach", "--bundle", other.dir().to_str().unwrap()];
    let mut receiver = pair.receiver(&flags);
    let output = dry_run(&pair, &receiver, &["--rootfs", "none"]).exits_with(1);
    assert!(output.stdout().contains("/bin/busybox"), "{output:?}");
    assert!(receiver.running.is_running());
    wait_until("it counts", || pair.last() > 3);
}

#[test]
fn without_a_receiver_a_dry_run_says_what_it_knows() {
    let pair = Pair::with("known", |bundle, _| {
        let script = format!("unshare -i sleep 1000 & {COUNTER}");
        let capabilities = serde_json::json!(["CAP_SYS_ADMIN", "CAP_KILL"]);
        ["bounding", "effective", "permitted"].into_iter().fold(
            bundle.script(&script),
            |bundle, set| {
                bundle.set(
                    &format!("/process/capabilities/{set}"),
                    capabilities.clone(),
                )
            },
        )
    });
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let output = pair.send_with(address, &["--dry-run"]).wait().exits_with(1);
    assert!(output.stdout().contains("ipc namespace"), "{output:?}");
    assert!(output.stderr().contains("is a receiver"), "{output:?}");
    pair.assert_counts();
    assert!(pair.left_in_store().is_empty());
}

#[test]
fn connections_that_nobody_accepts_are_known_before() {
    let server = "$server = IO::Socket::INET->new(Listen => 5, LocalPort => 7);
$client = IO::Socket::INET->new(PeerAddr => q(127.0.0.1), PeerPort => 7);
select(undef, undef, undef, 0.01) until -e q(/accept);
$accepted = $server->accept;
sleep 1000";
    let pair = Pair::with("queue", |bundle, _| {
        let bundle = bundle.host_programs();
        bundle.script(&format!(
            "perl -MIO::Socket::INET -e '{server}' </dev/null >/dev/null 2>&1 & {COUNTER}"
        ))
    });
    let mut receiver = pair.receiver(&["--detach"]);
    let flags = ["--tcp-established", "--dry-run"];
    wait_until("the connection waits", || {
        let output = pair.send_with(receiver.address, &flags).wait();
        output.stdout().contains("wait for the container to accept")
    });
    assert!(receiver.running.is_running());
    fs::write(pair.bundle.rootfs().join("accept"), "").unwrap();
    wait_until("nothing waits", || {
        let output = pair.send_with(receiver.address, &flags).wait();
        !output.stdout().contains("wait for the container to accept")
    });
    moves(&pair, receiver, &["--tcp-established"]);
}

#[test]
fn a_file_that_needs_a_name_is_known_before() {
    let pair = Pair::with("unnamed", |bundle, _| {
        bundle.script(&format!("exec 9>/one; ln /one /two; rm /one; {COUNTER}"))
    });
    let mut receiver = pair.receiver(&["--detach"]);
    runs_on(pair.send_to(receiver.address).wait(), "use --link-remap");
    assert!(receiver.running.is_running());
    moves(&pair, receiver, &["--link-remap"]);
}

/// At either end the obstacle is one finding among the others.
#[test]
fn a_missing_criu_is_known_before() {
    let pair = Pair::with("nocriu", |bundle, _| {
        bundle.script(&format!("exec 9>/one; ln /one /two; rm /one; {COUNTER}"))
    });
    let nowhere = ["--criu", "/nonexistent/criu"];
    let send = |address: std::net::SocketAddr, global: &[&str], flags: &[&str]| {
        let command = pair.source.global(global).arg("live-migrate");
        let command = command.args(["nocriu", "--image-path"]).arg(pair.store());
        let command = command.args(["--destination", &address.to_string()]);
        command.args(flags).run().exits_with(1)
    };
    let receiver = pair.receiver(&["--detach", "--bundle", "/nonexistent/bundle"]);
    for flags in [&["--rootfs=none"][..], &["--rootfs=none", "--dry-run"]] {
        let output = send(receiver.address, &nowhere, flags);
        let said = output.stdout() + &output.stderr();
        for what in [
            "source: --criu names /nonexistent/criu",
            "--link-remap",
            "no bundle",
        ] {
            assert!(said.contains(what), "{said}");
        }
    }
    pair.assert_counts();
    receiver.running.signal(Signal::SIGTERM);
    receiver.running.wait();

    let receiver = Receiver::with(&pair.destination, "nocriu", &pair.store(), &nowhere, &[]);
    let output = send(receiver.address, &[], &[]);
    let what = "destination: --criu names /nonexistent/criu";
    assert!(output.stderr().contains(what), "{output:?}");
    assert!(output.stderr().contains("--link-remap"), "{output:?}");
    pair.assert_counts();
    receiver.running.signal(Signal::SIGTERM);
    receiver.running.wait();
}
