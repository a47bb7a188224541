//! Connections that move: a client on a third host streams in both directions, over IPv4 and IPv6,
//! while the container changes its place. The container's address is in a prepared network
//! namespace at each end, behind different hardware addresses.

mod lan;

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use rcm::migrate::wire::protocol::Kind;

use super::network::{Cut, WITHOUT_ROUNDS, network};
use crate::common::Namespace;
use crate::common::pair::{COUNTER, Gate, Pair, runs_on};
use crate::common::{Host, wait_until};
use lan::{
    CLIENT, CONTAINER, Capture, DATAGRAM_PORT, Lan, MAC_AT_DESTINATION, MAC_AT_SOURCE, Stream,
};

/// Datagrams still arrive, and none twice.
fn assert_datagrams(socket: &UdpSocket, last: &mut u64) {
    let until = *last + 10;
    wait_until("datagrams come", || {
        let mut buffer = [0; 32];
        let Ok(count) = socket.recv(&mut buffer) else {
            return false;
        };
        let number = std::str::from_utf8(&buffer[..count]).unwrap();
        let number = number.trim().parse().unwrap();
        assert!(number > *last, "{number} after {last}");
        *last = number;
        number > until
    });
}

fn datagrams(lan: &Lan) -> UdpSocket {
    let socket = lan
        .client
        .within(|| UdpSocket::bind((CLIENT[0], DATAGRAM_PORT)).unwrap());
    socket
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    socket
}

#[track_caller]
fn assert_no_tables(lan: &Lan) {
    for namespace in [&lan.source, &lan.destination] {
        wait_until("nothing locks the network", || {
            namespace.tables().is_empty()
        });
    }
}

fn resolve(host: &Host, id: &str) {
    host.resolve(id);
}

#[test]
fn connections_move_without_losing_a_byte() {
    let lan = Lan::new();
    let datagrams = datagrams(&lan);
    let pair = lan.pair("stream");
    let streams = lan.streams();
    let capture = Capture::start(&lan);
    let mut last = 0;
    assert_datagrams(&datagrams, &mut last);
    for address in CONTAINER {
        assert_eq!(lan.neighbour(address), MAC_AT_SOURCE);
    }
    streams.iter().for_each(Stream::assert_flows);
    let receiver = lan.receiver(&pair);
    pair.send_with(receiver.address, &["--tcp-established"])
        .wait()
        .ok();
    for address in CONTAINER {
        assert_eq!(lan.neighbour(address), MAC_AT_DESTINATION);
    }
    receiver.running.wait().ok();
    streams.iter().for_each(Stream::assert_flows);
    assert_datagrams(&datagrams, &mut last);
    pair.assert_at_destination();
    assert_no_tables(&lan);
    capture.finish(true);
    // The server still listens.
    lan.streams().into_iter().for_each(Stream::finish);
    streams.into_iter().for_each(Stream::finish);
}

#[test]
fn connections_go_on_at_the_source_when_it_fails() {
    let lan = Lan::new();
    let pair = lan.pair("keeps");
    let streams = lan.streams();
    let capture = Capture::start(&lan);
    for killed in ["destination", "source"] {
        streams.iter().for_each(Stream::assert_flows);
        let gate = Gate::close(pair.source.dir());
        let receiver = lan.receiver(&pair);
        let sender = pair.send_with(receiver.address, &["--tcp-established"]);
        gate.wait();
        assert_eq!(lan.destination.tables().len(), 2);
        assert_eq!(lan.source.tables().len(), 1);
        // A client that asks now gets the old place: the network lock silences the new one.
        lan.client.ip("neigh flush dev lan");
        wait_until("the client has asked", || {
            let told = CONTAINER.map(|address| lan.neighbour(address));
            told == [MAC_AT_SOURCE; 2]
        });
        match killed {
            "destination" => {
                receiver.running.signal(Signal::SIGKILL);
                runs_on(sender.wait(), "");
                gate.open();
                receiver.running.wait();
            }
            _ => {
                sender.signal(Signal::SIGKILL);
                sender.wait();
                gate.open();
                // The receiver would wait for a source that asks.
                wait_until("nothing locks the destination", || {
                    lan.destination.tables().is_empty()
                });
                receiver.running.signal(Signal::SIGTERM);
                receiver.running.wait().exits_with(1);
            }
        }
        streams.iter().for_each(Stream::assert_flows);
        resolve(&pair.source, "keeps");
        resolve(&pair.destination, "keeps");
        pair.assert_at_source();
        assert_no_tables(&lan);
        std::fs::remove_file(&gate.reached).unwrap();
    }
    capture.finish(false);
    for address in CONTAINER {
        assert_eq!(lan.neighbour(address), MAC_AT_SOURCE);
    }
    streams.into_iter().for_each(Stream::finish);
}

/// The source does not learn that the container runs at the destination, and is killed. The sockets
/// of its copy must not send a packet, neither now nor when the migration is settled.
#[test]
fn a_source_that_does_not_know_is_silent() {
    let lan = Lan::new();
    let pair = lan.pair("silent");
    let streams = lan.streams();
    let capture = Capture::start(&lan);
    streams.iter().for_each(Stream::assert_flows);
    let receiver = lan.receiver(&pair);
    let open = Arc::new(AtomicBool::new(false));
    let address = network(receiver.address, Cut::Before(Kind::Running), &open);
    let flags = [&WITHOUT_ROUNDS[..], &["--tcp-established"]].concat();
    let sender = pair.send_with(address, &flags);
    wait_until("the source asks", || {
        sender.stderr().contains("asking again")
    });
    sender.signal(Signal::SIGKILL);
    sender.wait();
    streams.iter().for_each(Stream::assert_flows);
    assert_eq!(lan.source.tables(), ["rcm-silent"]);
    open.store(true, Ordering::Relaxed);
    resolve(&pair.source, "silent");
    receiver.running.wait().ok();
    streams.iter().for_each(Stream::assert_flows);
    pair.assert_at_destination();
    assert_no_tables(&lan);
    capture.finish(true);
    streams.into_iter().for_each(Stream::finish);
}

/// In the host's network rcm drops only the packets of the container's sockets, and no rule is
/// left.
#[test]
fn connections_in_the_host_s_network_leave_no_rules() {
    let lan = Lan::new();
    let host = |namespace: &Namespace| {
        let net = format!("--net={}", namespace.path().display());
        Host::new().with_prefix(["nsenter".into(), net])
    };
    let echo = "exec </dev/null >/dev/null 2>&1
nc -ll -p 5001 -e cat &
bash -c 'until exec 5<>/dev/tcp/127.0.0.1/5001; do usleep 10000; done; number=0
while :; do number=$((number + 1)); echo $number >&5; read -u 5 same; [ $same = $number ] || exit; echo $number >>/echoed; usleep 5000; done' &";
    let pair = Pair::between(
        host(&lan.source),
        host(&lan.destination),
        "hosted",
        |bundle, _| {
            let bundle = bundle.host_programs().without_namespace("network");
            bundle.script(&format!("{echo}\n{COUNTER}"))
        },
    );
    let echoed = || {
        let text = std::fs::read_to_string(pair.bundle.rootfs().join("echoed"));
        text.unwrap_or_default().lines().count()
    };
    let flows = || {
        let now = echoed();
        wait_until("the connection goes on", || echoed() > now + 5);
    };
    flows();
    // The hosts' own addresses instead of the container's.
    for (namespace, address) in [
        (&lan.source, "198.18.1.2"),
        (&lan.destination, "198.18.1.3"),
    ] {
        namespace.ip(&format!("addr del {}/24 dev eth0", CONTAINER[0]));
        Lan::add_address(namespace, address, "eth0");
    }
    let address = "198.18.1.3:7260";
    let flags = ["--detach", "--listen", address, "--tcp-established"];
    let receiver = pair.receiver(&flags);
    pair.send_with(address.parse().unwrap(), &["--tcp-established"])
        .wait()
        .ok();
    receiver.running.wait().ok();
    flows();
    pair.assert_at_destination();
    assert_no_tables(&lan);
}
