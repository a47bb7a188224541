//! Images that cross the network, because each host has its own store.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;

use serde_json::Value;

use crate::common::pair::{COUNTER, Gate, Pair, Receiver, runs_on};
use crate::common::{Host, Output, Running, wait_until};

fn this_boot() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    id.trim().to_owned()
}

/// A pair of hosts that share a token but no store.
struct Apart {
    pair: Pair,
    store: PathBuf,
    token: String,
}

impl Apart {
    fn new(id: &str) -> Self {
        Self::of(Pair::new(id))
    }

    fn of(pair: Pair) -> Self {
        let store = pair.destination.dir().join("own-store");
        fs::create_dir(&store).unwrap();
        let token = pair.source.dir().join("token");
        fs::write(&token, "a secret of this test".repeat(3)).unwrap();
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
        Self {
            pair,
            store,
            token: token.to_str().unwrap().to_owned(),
        }
    }

    fn receiver(&self) -> Receiver {
        self.receiver_with(&[])
    }

    fn receiver_with(&self, flags: &[&str]) -> Receiver {
        let flags = [&["--detach", "--token-file", &self.token], flags].concat();
        Receiver::start(&self.pair.destination, self.pair.id(), &self.store, &flags)
    }

    fn send(&self, receiver: &Receiver, flags: &[&str]) -> Output {
        let flags = [&["--token-file", &self.token], flags].concat();
        self.pair.send_with(receiver.address, &flags).wait()
    }

    /// Returns when the destination owns the container and cannot run it, because a directory is
    /// missing. Its receiver is dead, and the source waits for its answer.
    fn in_doubt(&self) -> (PathBuf, Running) {
        let missing = self.pair.destination.dir().join("missing");
        let pid_file = missing.join("pid");
        let receiver = self.receiver_with(&["--pid-file", pid_file.to_str().unwrap()]);
        let sender = self
            .pair
            .send_with(receiver.address, &["--token-file", &self.token]);
        wait_until("it has tried again", || {
            let stderr = receiver.running.stderr();
            stderr.matches("restoring again").count() == 2
        });
        receiver.running.signal(Signal::SIGKILL);
        receiver.running.wait();
        (missing, sender)
    }

    fn resolve(&self, host: &Host, flags: &[&str]) -> Running {
        let resolve = host.cmd("live-migrate").args([self.pair.id(), "--resolve"]);
        let resolve = resolve.args(flags).limit(Duration::from_secs(90));
        resolve.spawn()
    }

    /// Removes all that the destination has in memory: its containers and its state directory. The
    /// boot stamp in its store becomes one of an earlier boot.
    fn lose_power(&self) {
        let destination = &self.pair.destination;
        destination.delete(self.pair.id());
        fs::remove_dir_all(destination.root()).unwrap();
        let claim = fs::read_dir(&self.store)
            .unwrap()
            .map(|entry| entry.unwrap().path().join("destination"))
            .find(|path| path.is_file())
            .unwrap();
        let mut text: Value = serde_json::from_slice(&fs::read(&claim).unwrap()).unwrap();
        let boot = text.pointer_mut("/by/boot").unwrap();
        assert_eq!(boot.as_str().unwrap(), this_boot());
        *boot = "another".into();
        fs::write(&claim, text.to_string()).unwrap();
    }

    fn left(&self) -> usize {
        fs::read_dir(&self.store).unwrap().count()
    }

    #[track_caller]
    fn assert_moved(&self) {
        self.pair.assert_at_destination();
        assert_eq!(self.left(), 0, "in the destination's store");
    }

    #[track_caller]
    fn assert_stayed(&self) {
        self.pair.assert_at_source();
        assert_eq!(self.left(), 0, "in the destination's store");
    }
}

#[test]
fn images_cross_however_they_are_sent() {
    for (index, flags) in [
        &[][..],
        &["--streams", "1", "--compress", "none"],
        &["--streams", "3", "--compress", "zstd"],
        &["--streams", "16", "--compress", "gzip"],
        &["--bandwidth", "20MB/s"],
    ]
    .into_iter()
    .enumerate()
    {
        let apart = Apart::new(&format!("streams{index}"));
        let receiver = apart.receiver();
        apart.send(&receiver, flags).ok();
        receiver.running.wait().ok();
        apart.assert_moved();
    }
}

#[test]
fn without_a_common_store_the_flags_must_make_trust() {
    let apart = Apart::new("untrusted");
    let receiver = apart.receiver();
    let output = apart.pair.send_to(receiver.address).wait();
    runs_on(output, "or the same --token-file");
    apart.send(&receiver, &[]).ok();
    receiver.running.wait().ok();
    apart.assert_moved();
}

#[test]
fn a_receiver_that_dies_leaves_it_counting_and_its_images_go() {
    let apart = Apart::of(Pair::with("streamdies", Gate::hook));
    let gate = Gate::close(apart.pair.source.dir());
    let receiver = apart.receiver();
    let flags = ["--token-file", &apart.token];
    let sender = apart.pair.send_with(receiver.address, &flags);
    gate.wait();
    assert!(apart.left() > 0);
    receiver.running.signal(Signal::SIGKILL);
    receiver.running.wait();
    runs_on(sender.wait(), "closed the connection");
    gate.open();
    wait_until("CRIU has given up", || {
        let resolve = apart.pair.destination.cmd("live-migrate");
        resolve
            .args([apart.pair.id(), "--resolve"])
            .run()
            .exits_with(1);
        apart.left() == 0
    });
    apart.assert_stayed();
    let receiver = apart.receiver();
    apart.send(&receiver, &[]).ok();
    receiver.running.wait().ok();
    apart.assert_moved();
}

#[test]
fn a_full_store_at_the_destination_leaves_it_counting() {
    // The space for a deleted file cannot be predicted.
    let apart = Apart::of(Pair::with("streamfull", |bundle, _| {
        bundle.script(&format!(
            "exec 8>/ghost; dd if=/dev/urandom bs=1M count=16 >&8 2>/dev/null; rm /ghost; {COUNTER}"
        ))
    }));
    let (tmpfs, options) = (Some("tmpfs"), Some("size=8m"));
    mount(tmpfs, &apart.store, tmpfs, MsFlags::empty(), options).unwrap();
    let receiver = apart.receiver();
    let output = apart.send(&receiver, &[]);
    runs_on(output, "No space left on device");
    receiver.running.wait().exits_with(1);
    assert_eq!(apart.left(), 0, "in the destination's store");
    umount2(&apart.store, MntFlags::MNT_DETACH).unwrap();
    apart.assert_stayed();
}

#[test]
fn too_little_room_at_the_destination_is_known_before() {
    let apart = Apart::new("streamroom");
    for options in ["size=64k", "size=64m,nr_inodes=20"] {
        let tmpfs = Some("tmpfs");
        mount(tmpfs, &apart.store, tmpfs, MsFlags::empty(), Some(options)).unwrap();
        let mut receiver = apart.receiver();
        let output = apart.send(&receiver, &[]);
        let why = "destination: the images need about";
        runs_on(output, why);
        assert!(receiver.running.is_running());
        receiver.running.signal(Signal::SIGTERM);
        receiver.running.wait();
        umount2(&apart.store, MntFlags::MNT_DETACH).unwrap();
    }
    apart.assert_stayed();
}

/// The source if it goes on to wait; otherwise it is killed.
fn waiting(source: Running, waits: bool) -> Option<Running> {
    if waits {
        return Some(source);
    }
    source.signal(Signal::SIGKILL);
    source.wait();
    None
}

/// The destination owns the container, its receiver is dead, and no store has its answer.
/// `--resolve` at the destination restores the container and tells the source, whether this still
/// waits or needs `--resolve` itself.
#[test]
fn the_source_is_told_in_the_place_of_a_dead_receiver() {
    for (id, source_waits) in [("toldwaiting", true), ("toldlater", false)] {
        let apart = Apart::new(id);
        let pair = &apart.pair;
        let (missing, sender) = apart.in_doubt();
        let sender = waiting(sender, source_waits);
        if sender.is_none() {
            let output = apart.resolve(&pair.source, &[]).wait().exits_with(3);
            assert!(output.stderr().contains("does not answer"), "{output:?}");
        }
        assert_eq!(pair.source.status(id), "paused");
        fs::create_dir(&missing).unwrap();
        let resolving = apart.resolve(&pair.destination, &[]);
        wait_until("it runs", || pair.destination.status(id) == "running");
        match sender {
            Some(sender) => sender.wait().ok(),
            None => {
                wait_until("it can be asked", || {
                    resolving.stderr().contains("may not know yet")
                });
                // The answer of the destination overrides `--peer-lost`.
                apart.resolve(&pair.source, &["--peer-lost"]).wait().ok()
            }
        };
        let output = resolving.wait().ok();
        assert!(output.stdout().contains("restored"), "{output:?}");
        apart.assert_moved();
        // The source will not ask again, so this one does not wait.
        let again = apart.resolve(&pair.destination, &[]).wait().ok();
        assert!(!again.stderr().contains("may not know"), "{again:?}");
    }
}

/// The destination has only its disk. This suffices to know that the container does not run there.
#[test]
fn a_destination_that_was_started_again_gives_it_back() {
    for (id, source_waits) in [("backwaiting", true), ("backlater", false)] {
        let apart = Apart::new(id);
        let pair = &apart.pair;
        let (_, sender) = apart.in_doubt();
        let sender = waiting(sender, source_waits);
        let store = ["--image-path", apart.store.to_str().unwrap()];
        apart.lose_power();
        let output = apart.resolve(&pair.destination, &[]).wait();
        assert!(
            output.fails_with(1, "name the image store").code() == 1,
            "it knows nothing by itself"
        );
        assert_eq!(pair.source.status(id), "paused");
        let resolving = apart.resolve(&pair.destination, &store);
        match sender {
            Some(sender) => {
                runs_on(sender.wait(), "has rolled back");
            }
            None => {
                wait_until("it can be asked", || {
                    resolving.stderr().contains("may not know yet")
                });
                apart.resolve(&pair.source, &[]).wait().exits_with(1);
            }
        }
        resolving.wait().exits_with(1);
        apart.assert_stayed();
        let receiver = apart.receiver();
        apart.send(&receiver, &[]).ok();
        receiver.running.wait().ok();
        apart.assert_moved();
    }
}

/// The destination will never answer, so the operator decides with `--peer-lost`.
#[test]
fn a_destination_that_is_lost_does_not_keep_it() {
    let apart = Apart::new("peerlost");
    let pair = &apart.pair;
    let (_, sender) = apart.in_doubt();
    sender.signal(Signal::SIGKILL);
    sender.wait();
    apart.lose_power();
    let output = apart.resolve(&pair.source, &[]).wait().exits_with(3);
    assert!(output.stderr().contains("--peer-lost"), "{output:?}");
    assert_eq!(pair.source.status("peerlost"), "paused");
    let output = apart.resolve(&pair.source, &["--peer-lost"]).wait();
    assert!(output.stderr().contains("does not answer"), "{output:?}");
    output.exits_with(1);
    // The destination comes back after all, and reports its unfinished migration.
    let receiver = apart.receiver();
    wait_until("it says so", || {
        receiver.running.stderr().contains("was started again")
    });
    apart.send(&receiver, &[]).ok();
    receiver.running.wait().ok();
    pair.assert_at_destination();
}
