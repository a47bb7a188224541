//! Images that cross the network, because each host has its own store.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;

use crate::common::{Output, wait_until};
use crate::pair::{Gate, Pair, Receiver, runs_on};

/// A pair whose hosts do not share a store, and a token that they do.
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
        let flags = ["--detach", "--token-file", &self.token];
        Receiver::start(&self.pair.destination, self.pair.id(), &self.store, &flags)
    }

    fn send(&self, receiver: &Receiver, flags: &[&str]) -> Output {
        let flags = [&["--token-file", &self.token], flags].concat();
        self.pair.send_with(receiver.address, &flags).wait()
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
    let apart = Apart::new("streamfull");
    // Less than any dump has.
    let (tmpfs, options) = (Some("tmpfs"), Some("size=64k"));
    mount(tmpfs, &apart.store, tmpfs, MsFlags::empty(), options).unwrap();
    let receiver = apart.receiver();
    let output = apart.send(&receiver, &[]);
    runs_on(output, "No space left on device");
    receiver.running.wait().exits_with(1);
    assert_eq!(apart.left(), 0, "in the destination's store");
    umount2(&apart.store, MntFlags::MNT_DETACH).unwrap();
    apart.assert_stayed();
}
