//! A network with a client, and the traffic between it and the container.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::common::Namespace;
use crate::common::pair::{COUNTER, Gate, Pair, Receiver};
use crate::common::wait_until;

pub const CLIENT: [&str; 2] = ["198.18.1.1", "2001:db8:1::1"];

pub const CONTAINER: [&str; 2] = ["198.18.1.9", "2001:db8:1::9"];

pub const MAC_AT_SOURCE: &str = "02:00:00:00:00:0a";

pub const MAC_AT_DESTINATION: &str = "02:00:00:00:00:0b";

pub const ECHO_PORT: u16 = 5001;

pub const DATAGRAM_PORT: u16 = 5002;

/// Number of announcements of an address.
pub const ANNOUNCEMENTS: u32 = 5;

/// A switch with three ports: the client's own, and one for the container's namespace at each host.
pub struct Lan {
    pub client: Namespace,
    pub source: Namespace,
    pub destination: Namespace,
    pub _dir: tempfile::TempDir,
}

impl Lan {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let client = Namespace::new(dir.path().join("client"));
        client.ip("link add lan type bridge");
        client.ip("link set lan up");
        for address in CLIENT {
            Self::add_address(&client, address, "lan");
        }
        let end = |name: &str, mac: &str| {
            let namespace = Namespace::new(dir.path().join(name));
            let port = format!("to-{name}");
            client.connect(&port, &namespace, "eth0");
            client.ip(&format!("link set {port} master lan"));
            namespace.ip(&format!("link set eth0 address {mac}"));
            for address in CONTAINER {
                Self::add_address(&namespace, address, "eth0");
            }
            namespace
        };
        Self {
            source: end("source", MAC_AT_SOURCE),
            destination: end("destination", MAC_AT_DESTINATION),
            client,
            _dir: dir,
        }
    }

    pub fn add_address(namespace: &Namespace, address: &str, interface: &str) {
        let is_v6 = address.contains(':');
        // Both ends have the same address: the second would be found a duplicate.
        let rest = if is_v6 { "/64 nodad" } else { "/24" };
        let (length, flags) = rest.split_once(' ').unwrap_or((rest, ""));
        let command = format!("addr add {address}{length} dev {interface} {flags}");
        namespace.ip(command.trim_end());
    }

    /// The hardware address that the client knows for the container's `address`.
    pub fn neighbour(&self, address: &str) -> String {
        let entry = self.client.ip(&format!("neigh show to {address} dev lan"));
        let mut words = entry.split_whitespace();
        words.find(|word| *word == "lladdr");
        words.next().unwrap_or_default().to_owned()
    }

    /// A pair with a container in the source's namespace, by its path, with an echo server and a
    /// server that sends numbers in datagrams.
    pub fn pair(&self, id: &str) -> Pair {
        let script = format!(
            "exec </dev/null >/dev/null 2>&1
nc -ll -p {ECHO_PORT} -e cat &
bash -c 'exec 5<>/dev/udp/{}/{DATAGRAM_PORT}; number=0
while :; do number=$((number + 1)); echo $number >&5; usleep 20000; done' &
{COUNTER}",
            CLIENT[0]
        );
        Pair::with(id, |bundle, dir| {
            let bundle = bundle
                .host_programs()
                .namespace("network", Some(self.source.path()))
                .script(&script);
            Gate::hook(bundle, dir)
        })
    }

    pub fn receiver(&self, pair: &Pair) -> Receiver {
        let path = self.destination.path().to_str().unwrap();
        pair.receiver(&["--detach", "--netns", path, "--tcp-established"])
    }

    pub fn streams(&self) -> Vec<Stream> {
        let connect = |address: &str| {
            let address = SocketAddr::new(address.parse().unwrap(), ECHO_PORT);
            Stream::start(self.client.within(|| {
                let mut connected = None;
                wait_until("the echo server listens", || {
                    connected = TcpStream::connect(address).ok();
                    connected.is_some()
                });
                connected.unwrap()
            }))
        };
        CONTAINER.map(connect).into()
    }
}

/// A stream of numbers that the container sends back.
pub struct Stream {
    pub socket: TcpStream,
    pub stop: Arc<AtomicBool>,
    pub echoed_bytes: Arc<AtomicU64>,
    pub writer: JoinHandle<u64>,
    pub reader: JoinHandle<u64>,
}

/// Blocks of a sequence that no two places of it have in common.
pub fn block(number: u64) -> Vec<u8> {
    let mut state = number + 1;
    let words = (0..128).flat_map(|_| {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.collect()
}

impl Stream {
    pub fn start(socket: TcpStream) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let echoed_bytes = Arc::new(AtomicU64::new(0));
        let (mut to, stopped) = (socket.try_clone().unwrap(), Arc::clone(&stop));
        let writer = std::thread::spawn(move || {
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) {
                to.write_all(&block(number)).expect("the stream goes on");
                number += 1;
                std::thread::sleep(Duration::from_micros(500));
            }
            to.shutdown(Shutdown::Write).unwrap();
            number
        });
        let (mut from, count) = (socket.try_clone().unwrap(), Arc::clone(&echoed_bytes));
        let reader = std::thread::spawn(move || {
            let mut number = 0;
            let mut buffer = block(0);
            loop {
                let first = from.read(&mut buffer[..1]).expect("the stream goes on");
                if first == 0 {
                    return number;
                }
                from.read_exact(&mut buffer[1..]).expect("whole blocks");
                assert!(
                    buffer == block(number),
                    "block {number} is not what was sent"
                );
                number += 1;
                count.fetch_add(buffer.len() as u64, Ordering::Relaxed);
            }
        });
        Self {
            socket,
            stop,
            echoed_bytes,
            writer,
            reader,
        }
    }

    pub fn assert_flows(&self) {
        let now_bytes = self.echoed_bytes.load(Ordering::Relaxed);
        wait_until("the stream goes on", || {
            assert!(!self.reader.is_finished(), "the stream has ended");
            self.echoed_bytes.load(Ordering::Relaxed) > now_bytes + 20_000
        });
    }

    /// Asserts that every byte was echoed.
    pub fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        assert_eq!(self.writer.join().unwrap(), self.reader.join().unwrap());
    }
}

/// Frames that cross the switch.
pub struct Capture {
    pub stop: Arc<AtomicBool>,
    pub ends: Arc<AtomicU32>,
    pub announced: [Arc<AtomicU32>; 2],
    pub thread: JoinHandle<()>,
}

impl Capture {
    pub fn start(lan: &Lan) -> Self {
        let socket = lan.client.within(|| {
            socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::EthAll,
            )
            .unwrap()
        });
        setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(50)).unwrap();
        let capture = Self {
            stop: Arc::default(),
            ends: Arc::default(),
            announced: Default::default(),
            thread: std::thread::spawn(|| ()),
        };
        let stop = Arc::clone(&capture.stop);
        let ends = Arc::clone(&capture.ends);
        let announced = capture.announced.clone();
        let thread = std::thread::spawn(move || {
            let mut frame = vec![0; 64 << 10];
            while !stop.load(Ordering::Relaxed) {
                let count = match recv(socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                    Ok(count) => count,
                    Err(Errno::EAGAIN | Errno::EINTR) => continue,
                    Err(errno) => panic!("{errno}"),
                };
                let frame = &frame[..count];
                if ends_connection(frame) {
                    ends.fetch_add(1, Ordering::Relaxed);
                }
                for (count, address) in announced.iter().zip(CONTAINER) {
                    if announces(frame, address.parse().unwrap()) {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        Self { thread, ..capture }
    }

    /// No connection was reset or closed; each address was announced several times (the switch
    /// shows a broadcast at each port).
    pub fn finish(self, announces: bool) {
        if announces {
            for count in &self.announced {
                wait_until("the addresses are announced", || {
                    count.load(Ordering::Relaxed) >= ANNOUNCEMENTS
                });
            }
        }
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        assert_eq!(self.ends.load(Ordering::Relaxed), 0, "resets and ends");
        if !announces {
            let counts = self.announced.map(|count| count.load(Ordering::Relaxed));
            assert_eq!(counts, [0, 0], "announcements");
        }
    }
}

pub fn ethertype(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[12], frame[13]])
}

/// A TCP segment with RST or FIN.
pub fn ends_connection(frame: &[u8]) -> bool {
    let (protocol, segment) = match ethertype(frame) {
        0x0800 => (frame[23], 14 + usize::from(frame[14] & 15) * 4),
        0x86dd => (frame[20], 54),
        _ => return false,
    };
    protocol == 6 && frame.len() > segment + 13 && frame[segment + 13] & 0b101 != 0
}

/// An ARP request for the sender's own address, or an advertisement to all nodes, from the
/// destination.
pub fn announces(frame: &[u8], address: IpAddr) -> bool {
    let mac = MAC_AT_DESTINATION.split(':');
    let mac: Vec<u8> = mac
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    if frame[6..12] != mac {
        return false;
    }
    match address {
        IpAddr::V4(address) => {
            let address = address.octets();
            ethertype(frame) == 0x0806 && frame[28..32] == address && frame[38..42] == address
        }
        IpAddr::V6(address) => {
            let unsolicited = ethertype(frame) == 0x86dd && frame[20] == 58 && frame[54] == 136;
            unsolicited && frame[0] == 0x33 && frame[62..78] == address.octets()
        }
    }
}
