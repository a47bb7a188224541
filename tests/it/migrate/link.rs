//! Two network namespaces with a link between them, and the link is cut.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::common::Namespace;
use crate::common::pair::{Gate, Pair, Receiver, runs_on};
use crate::common::{Host, wait_until};

pub const SOURCE: &str = "198.18.0.1";
pub const DESTINATION: &str = "198.18.0.2";

/// Two namespaces and the files that hold them.
pub struct Link {
    pub source: Namespace,
    pub destination: Namespace,
    _dir: tempfile::TempDir,
}

impl Link {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = Namespace::new(dir.path().join("source"));
        let destination = Namespace::new(dir.path().join("destination"));
        source.connect("veth-a", &destination, "veth-b");
        source.ip(&format!("addr add {SOURCE}/30 dev veth-a"));
        destination.ip(&format!("addr add {DESTINATION}/30 dev veth-b"));
        Self {
            source,
            destination,
            _dir: dir,
        }
    }

    pub fn cut(&self) {
        self.source.ip("link set veth-a down");
    }

    pub fn mend(&self) {
        self.source.ip("link set veth-a up");
    }
}

pub fn host(namespace: &Namespace) -> Host {
    let net = format!("--net={}", namespace.path().display());
    Host::new().with_prefix(["nsenter".into(), net])
}

/// No packet tells that the other end is gone, there is only silence. The container is frozen until
/// the source notices this.
#[test]
fn a_cut_link_is_noticed_and_leaves_it_counting() {
    let link = Link::new();
    let (source, destination) = (host(&link.source), host(&link.destination));
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
    // The receiver cannot distinguish a dead source from one that asks later, so it waits.
    wait_until("the receiver has given up", || {
        let status = pair.destination.migration_status("cut");
        status.stdout().contains("did not come")
    });
    receiver.running.signal(Signal::SIGTERM);
    receiver.running.wait().exits_with(1);
    pair.assert_at_source();
}
