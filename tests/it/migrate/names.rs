//! Unix sockets with names in a file system that both hosts share: the container answers there on
//! the host that runs it, and no other files are left beside the sockets.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::common::pair::{COUNTER, Gate, Pair, runs_on};
use crate::common::{Bundle, wait_until};

/// One socket in the root file system by an absolute name, one by a relative name in a directory of
/// the host, and one in a directory that only the container has. The server sends the name to each
/// client.
const SERVER: &str = "
import os, socket, threading
def serve(path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    while True:
        client, _ = listener.accept()
        try:
            client.sendall(path.encode())
        except OSError:
            pass
        client.close()
os.chdir('/data')
for path in ['/sockets/web', 'relative', '/dev/shm/own']:
    threading.Thread(target=serve, args=[path]).start()
";

/// A pair with a container that listens, and the paths of its sockets on the host.
struct Named {
    pair: Pair,
    sockets: [(PathBuf, &'static str); 2],
}

impl Named {
    fn new(id: &str) -> Self {
        Self::with(id, |bundle, _| bundle)
    }

    fn gated(id: &str) -> Self {
        Self::with(id, Gate::hook)
    }

    fn with(id: &str, change: impl FnOnce(Bundle, &Path) -> Bundle) -> Self {
        let mut data = PathBuf::new();
        let pair = Pair::with(id, |bundle, dir| {
            data = dir.join("data");
            fs::create_dir(&data).unwrap();
            for dir in ["data", "sockets"] {
                fs::create_dir(bundle.rootfs().join(dir)).unwrap();
            }
            fs::write(bundle.rootfs().join("server.py"), SERVER).unwrap();
            let script = format!("/usr/bin/python3 /server.py </dev/null >/log 2>&1 & {COUNTER}");
            let bundle = bundle.host_programs().script(&script);
            change(bundle.bind(&data, "/data", "rw"), dir)
        });
        let named = Self {
            sockets: [
                (pair.bundle.rootfs().join("sockets/web"), "/sockets/web"),
                (data.join("relative"), "relative"),
            ],
            pair,
        };
        wait_until("it listens", || {
            let mut paths = named.sockets.iter().map(|(path, _)| path);
            paths.all(|path| UnixStream::connect(path).is_ok())
        });
        named
    }

    #[track_caller]
    fn assert_answers(&self) {
        for (path, answer) in &self.sockets {
            let mut said = String::new();
            let mut stream = UnixStream::connect(path).unwrap();
            stream.read_to_string(&mut said).unwrap();
            assert_eq!(said, *answer);
            let beside = fs::read_dir(path.parent().unwrap()).unwrap();
            assert_eq!(beside.count(), 1, "beside {}", path.display());
        }
    }

    /// Asserts that the migration has failed, that the container has its sockets, and that the next
    /// migration succeeds.
    #[track_caller]
    fn assert_at_source(&self) {
        self.pair.assert_at_source();
        self.assert_answers();
        let receiver = self.pair.receiver(&["--detach"]);
        self.pair.send_to(receiver.address).wait().ok();
        receiver.running.wait().ok();
        self.pair.assert_at_destination();
        self.assert_answers();
    }
}

#[test]
fn a_rehearsal_and_a_local_test_take_no_names() {
    let named = Named::new("names");
    let receiver = named.pair.receiver(&["--detach"]);
    let flags = ["--rehearse"];
    (named.pair.send_with(receiver.address, &flags).wait()).ok();
    named.assert_answers();
    let local = named.pair.source.cmd("live-migrate");
    let local = local.args(["names", "--local-test", "--image-path"]);
    local.arg(named.pair.store()).run().ok();
    named.assert_answers();
    named.pair.assert_counts();
    receiver.running.signal(Signal::SIGTERM);
    receiver.running.wait();
    named.assert_at_source();
}

/// First the source ends the migration, and the destination notices later; then the destination
/// ends it.
#[test]
fn a_failed_restore_takes_no_names() {
    let named = Named::gated("namesfail");
    let gate = Gate::close(named.pair.source.dir());
    let receiver = named.pair.receiver(&["--detach"]);
    let flags = ["--timeout", "3s"];
    let sender = named.pair.send_with(receiver.address, &flags);
    gate.wait();
    // The container runs on, and the source waits for the destination.
    named.pair.assert_counts();
    assert!(UnixStream::connect(&named.sockets[0].0).is_ok());
    // Now the restore continues, takes the names and is destroyed.
    gate.open();
    runs_on(sender.wait(), "was frozen for 3s");
    receiver.running.wait().exits_with(1);
    named.assert_answers();

    fs::remove_file(&gate.reached).unwrap();
    let gate = Gate::close(named.pair.source.dir());
    let receiver = named.pair.receiver(&["--detach"]);
    let sender = named.pair.send_to(receiver.address);
    gate.wait();
    receiver.running.signal(Signal::SIGTERM);
    gate.open();
    runs_on(sender.wait(), "stopped by SIGTERM");
    receiver.running.wait().exits_with(1);
    named.assert_at_source();
}

/// Kills the receiver in the middle of the restore, which CRIU notices later; then a receiver that
/// has sent "ready"; then the source.
#[test]
fn a_killed_end_takes_no_names() {
    for killed in ["restoring", "ready", "source"] {
        let named = Named::gated("nameskill");
        let pair = &named.pair;
        let gate = Gate::close(pair.source.dir());
        let receiver = pair.receiver(&["--detach"]);
        let sender = pair.send_to(receiver.address);
        gate.wait();
        if killed == "restoring" {
            receiver.running.signal(Signal::SIGKILL);
            receiver.running.wait();
            gate.open();
            sender.wait().exits_with(1);
            named.assert_answers();
            pair.resolve_destination();
            named.assert_at_source();
            continue;
        }
        sender.signal(Signal::SIGSTOP);
        gate.open();
        wait_until("it is restored", || {
            let status = pair.destination.cmd("live-migrate");
            let output = status.args([pair.id(), "--status"]).run();
            output.stdout().contains("peer-ready")
        });
        let (dies, survivor) = match killed {
            "source" => (sender, receiver.running),
            _ => (receiver.running, sender),
        };
        dies.signal(Signal::SIGKILL);
        dies.wait();
        if killed == "ready" {
            pair.resolve_destination();
            survivor.signal(Signal::SIGCONT);
        }
        survivor.wait().exits_with(1);
        if killed == "source" {
            let resolve = pair.source.cmd("live-migrate");
            resolve.args([pair.id(), "--resolve"]).run().exits_with(1);
        }
        named.assert_answers();
        named.assert_at_source();
    }
}
