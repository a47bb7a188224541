//! Two network namespaces with a link between them, and the link is cut.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use crate::common::{Host, wait_until};
use crate::pair::{Gate, Pair, Receiver, runs_on};

const SOURCE: &str = "198.18.0.1";
const DESTINATION: &str = "198.18.0.2";

/// Two namespaces, each held by a mount on a file.
struct Link {
    dir: tempfile::TempDir,
}

fn ip(namespace: &Path, arguments: &str) {
    let status = Command::new("nsenter")
        .arg(format!("--net={}", namespace.display()))
        .arg("ip")
        .args(arguments.split(' '))
        .status()
        .unwrap();
    assert!(status.success(), "ip {arguments}");
}

impl Link {
    fn new() -> Self {
        let link = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        for end in [link.source(), link.destination()] {
            File::create(&end).unwrap();
            let made = Command::new("unshare")
                .arg(format!("--net={}", end.display()))
                .arg("true")
                .status();
            assert!(made.unwrap().success());
            ip(&end, "link set lo up");
        }
        ip(&link.source(), "link add veth-a type veth peer name veth-b");
        let destination = File::open(link.destination()).unwrap();
        let path = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            destination.as_raw_fd()
        );
        ip(&link.source(), &format!("link set veth-b netns {path}"));
        ip(&link.source(), &format!("addr add {SOURCE}/30 dev veth-a"));
        ip(
            &link.destination(),
            &format!("addr add {DESTINATION}/30 dev veth-b"),
        );
        ip(&link.source(), "link set veth-a up");
        ip(&link.destination(), "link set veth-b up");
        link
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    fn destination(&self) -> PathBuf {
        self.dir.path().join("destination")
    }

    fn cut(&self) {
        ip(&self.source(), "link set veth-a down");
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for end in [self.source(), self.destination()] {
            let _ = umount2(&end, MntFlags::MNT_DETACH);
        }
    }
}

fn host(namespace: PathBuf) -> Host {
    Host::new().with_prefix(["nsenter".into(), format!("--net={}", namespace.display())])
}

/// No packet says that the other end is gone: only silence does. The container stands still as long as it is not understood.
#[test]
fn a_cut_link_is_noticed_and_leaves_it_counting() {
    let link = Link::new();
    let (source, destination) = (host(link.source()), host(link.destination()));
    let pair = Pair::between(source, destination, "cut", Gate::hook);
    let gate = Gate::close(pair.source.dir());
    let address = format!("{DESTINATION}:7260");
    let receiver = Receiver::start(
        &pair.destination,
        "cut",
        &pair.store(),
        &["--detach", "--listen", &address],
    );
    let sender = pair.send_to(address.parse().unwrap());
    gate.wait();
    let cut_at = Instant::now();
    link.cut();
    runs_on(sender.wait(), "");
    let noticed_dur = cut_at.elapsed();
    assert!(noticed_dur < Duration::from_secs(15), "{noticed_dur:?}");
    pair.assert_counts();
    gate.open();
    // It cannot tell a source that is gone from one that asks later, and waits for one that asks.
    wait_until("the receiver has given up", || {
        let status = pair
            .destination
            .cmd("live-migrate")
            .args(["cut", "--status"])
            .run();
        status.stdout().contains("did not come")
    });
    receiver.running.signal(Signal::SIGTERM);
    receiver.running.wait().exits_with(1);
    pair.assert_at_source();
}
