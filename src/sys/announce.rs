//! Announces where addresses are now: gratuitous ARP and unsolicited neighbour advertisements.
//!
//! Switches and neighbours keep sending to the old host until they hear from the new one. A single
//! frame may be lost, and nobody answers it. So rcm repeats the announcement with growing pauses,
//! as QEMU does for virtual machines.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket};

use super::network::{enter, ip_address};

/// Pauses after the first announcement (those of QEMU's `announce-self`).
const PAUSES_DUR: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(150),
    Duration::from_millis(250),
    Duration::from_millis(350),
];
/// Limit for [`Announcement::begun`]. Sending takes well below a millisecond.
const BEGIN_LIMIT_DUR: Duration = Duration::from_secs(1);

const BROADCAST: [u8; 6] = [0xff; 6];
/// Ethernet address of all nodes of the link (RFC 2464, 7).
const ALL_NODES_FRAME: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
/// IPv6 address of all nodes of the link (RFC 4291, 2.7.1).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ICMPV6: u8 = 58;
/// Receivers reject an advertisement with a smaller hop limit (RFC 4861, 7.1.2).
const HOP_LIMIT: u8 = 255;

/// Announcements in progress.
#[derive(Debug)]
pub struct Announcement {
    thread: JoinHandle<()>,
    first: Receiver<()>,
}

impl Announcement {
    /// Begins to announce every address of the namespace, each on the interface that has it.
    /// Interfaces that are down or not Ethernet are left out: they have no neighbours to tell.
    ///
    /// # Errors
    /// If no thread can be started. Later failures are only logged, because neighbours also find
    /// the addresses by asking for them.
    pub fn begin(namespace: File) -> io::Result<Self> {
        let (told, first) = mpsc::sync_channel(1);
        // The new thread inherits the mask. Signals must go to the threads that wait for them.
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let thread = thread::Builder::new().spawn(move || {
            let result = Announcer::new(&namespace).and_then(|announcer| {
                announcer.send()?;
                let _ = told.send(());
                for pause_dur in PAUSES_DUR {
                    if announcer.frames.is_empty() {
                        return Ok(());
                    }
                    thread::sleep(pause_dur);
                    announcer.send()?;
                }
                Ok(())
            });
            if let Err(error) = result {
                tracing::warn!("cannot announce the container's addresses: {error}");
            }
        });
        mask.thread_set_mask()?;
        Ok(Self {
            thread: thread?,
            first,
        })
    }

    /// Returns when every address was announced once.
    pub fn begun(&self) {
        // The thread has logged its error.
        let _ = self.first.recv_timeout(BEGIN_LIMIT_DUR);
    }

    /// Returns when the last announcement is sent, after 800 ms at most.
    pub fn finish(self) {
        let _ = self.thread.join();
    }
}

struct Announcer {
    socket: OwnedFd,
    frames: Vec<(LinkAddr, Vec<u8>)>,
}

impl Announcer {
    /// Moves the calling thread into the namespace.
    fn new(namespace: &File) -> io::Result<Self> {
        enter(namespace)?;
        // A socket without a protocol receives nothing (packet(7)), and this one only sends.
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        Ok(Self {
            socket,
            frames: frames()?,
        })
    }

    fn send(&self) -> io::Result<()> {
        for (interface, frame) in &self.frames {
            sendto(self.socket.as_raw_fd(), frame, interface, MsgFlags::empty())?;
        }
        Ok(())
    }
}

fn frames() -> io::Result<Vec<(LinkAddr, Vec<u8>)>> {
    let entries: Vec<_> = getifaddrs()?
        .filter(|entry| entry.flags.contains(InterfaceFlags::IFF_UP))
        .filter(|entry| {
            let silent = InterfaceFlags::IFF_LOOPBACK | InterfaceFlags::IFF_NOARP;
            !entry.flags.intersects(silent)
        })
        .collect();
    let links: Vec<(&str, LinkAddr, [u8; 6])> = entries
        .iter()
        .filter_map(|entry| {
            let link = *entry.address.as_ref()?.as_link_addr()?;
            let ethernet = link.hatype() == libc::ARPHRD_ETHER && link.halen() == 6;
            ethernet.then_some((entry.interface_name.as_str(), link, link.addr()?))
        })
        .collect();
    let mut frames = Vec::new();
    for entry in &entries {
        let address = entry.address.as_ref().and_then(ip_address);
        let link = links
            .iter()
            .find(|(name, ..)| *name == entry.interface_name);
        let (Some(address), Some((_, link, own))) = (address, link) else {
            continue;
        };
        let frame = match address {
            IpAddr::V4(address) => gratuitous_arp(*own, address),
            IpAddr::V6(address) => advertisement(*own, address),
        };
        frames.push((*link, frame));
    }
    Ok(frames)
}

fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(86);
    frame.extend(to);
    frame.extend(from);
    frame.extend(kind.to_be_bytes());
    frame
}

/// An ARP announcement (RFC 5227, 2.3): a request for the announced address. Every kind of
/// neighbour accepts a request, but some ignore a reply.
fn gratuitous_arp(own: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, own, ETHERTYPE_ARP);
    // Ethernet, IPv4, the lengths of their addresses, a request (RFC 826).
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(own);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

/// An unsolicited neighbour advertisement (RFC 4861, 4.4 and 7.2.6).
fn advertisement(own: [u8; 6], address: Ipv6Addr) -> Vec<u8> {
    // Type, code, checksum; flag "override". The address and the option "target link-layer address"
    // follow.
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(address.octets());
    message.extend([2, 1]);
    message.extend(own);
    let length_bytes = message.len() as u16;
    let sum = checksum(address, ALL_NODES, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());

    let mut frame = ethernet(ALL_NODES_FRAME, own, ETHERTYPE_IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length_bytes.to_be_bytes());
    frame.extend([ICMPV6, HOP_LIMIT]);
    frame.extend(address.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    frame
}

/// Computes the checksum, which covers the pseudo-header, too (RFC 4443, 2.3). The length of
/// `message` is even.
fn checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let words = message
        .chunks_exact(2)
        .map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    let mut sum: u32 = from
        .segments()
        .into_iter()
        .chain(to.segments())
        .chain(words)
        .map(u32::from)
        .sum();
    sum += message.len() as u32 + u32::from(ICMPV6);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: [u8; 6] = [2, 0, 0, 0, 0, 7];

    #[test]
    fn an_announcement_names_the_address_twice() {
        let frame = gratuitous_arp(OWN, Ipv4Addr::new(192, 0, 2, 9));
        assert_eq!(frame.len(), 42);
        assert_eq!(frame[..12], [BROADCAST, OWN].concat());
        assert_eq!(frame[28..32], [192, 0, 2, 9]);
        assert_eq!(frame[38..42], [192, 0, 2, 9]);
    }

    #[test]
    fn the_checksum_makes_all_words_sum_up() {
        let address: Ipv6Addr = "2001:db8::9".parse().unwrap();
        let frame = advertisement(OWN, address);
        assert_eq!(frame.len(), 14 + 40 + 32);
        // A receiver sums up everything, the checksum included (RFC 1071).
        assert_eq!(checksum(address, ALL_NODES, &frame[54..]), 0);
    }

    #[test]
    fn only_the_loopback_has_nobody_to_tell() {
        let namespace = crate::sys::network::make_namespace().unwrap();
        let announcement = Announcement::begin(namespace).unwrap();
        announcement.begun();
        announcement.finish();
    }
}
