//! A barrier in a network namespace that no packet passes.
//!
//! It stands while the sockets of a container are in two places: the kernel would acknowledge what arrives for a socket that is only frozen, and
//! reset a connection whose socket is not restored yet. CRIU has such a lock too, but it takes several program starts, and it stays behind when
//! CRIU is killed. This one is a table of nf_tables that belongs to a netlink socket: the kernel removes it with the socket, so it cannot outlive
//! its process unless it shall ([`leave`]).
//!
//! Packets that CRIU marks pass: it makes some itself to bring a socket into its state (criu `soccr/soccr.c`, `send_fin`).

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::SndBufForce;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
    setsockopt, socket,
};

use super::network::within;

mod message;

use message::{Batch, Chain, Family, Rule};

/// What else is not let through, or is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Neighbours {
    /// Who asks for an address that is here gets an answer: the addresses are still this host's.
    Answered,
    /// Nobody learns that the addresses are here: they are still another host's.
    Ignored,
}

/// What does not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach<'a> {
    /// No packet.
    Everything,
    /// No packet but those of the loopback interface.
    Outside,
    /// No TCP segment to or from these sockets of this host; one without an address has all.
    Ends(&'a [SocketAddr]),
}

/// A barrier that stands as long as this lives, but for the time before [`Barrier::close`].
#[derive(Debug)]
pub struct Barrier {
    socket: OwnedFd,
    name: String,
    neighbours: Neighbours,
}

impl Barrier {
    /// Prepares one in a namespace; packets still pass. What can go wrong goes wrong here.
    ///
    /// # Errors
    /// Where the namespace cannot be entered, or the kernel has no nf_tables or no tables with an owner (before Linux 5.12).
    pub fn prepare(namespace: &File, neighbours: Neighbours) -> io::Result<Self> {
        let socket = open_socket(namespace)?;
        // Several containers may share the namespace, and several be moved by one process.
        let name = format!("rcm-{}-{}", std::process::id(), socket.as_raw_fd());
        let barrier = Self {
            socket,
            name,
            neighbours,
        };
        let mut batch = Batch::default();
        for family in barrier.families() {
            batch.make_table(*family, &barrier.name, true);
        }
        barrier.submit(batch)?;
        Ok(barrier)
    }

    /// From here on what it reaches does not pass, and only that.
    ///
    /// # Errors
    /// Where the kernel refuses; packets pass then.
    pub fn close(&self, reach: Reach) -> io::Result<()> {
        let mut batch = Batch::default();
        fill(&mut batch, &self.name, self.neighbours, reach);
        self.submit(batch)
    }

    /// Everything passes again. Faster than to drop it: the kernel waits when it removes the tables of a socket that is closed.
    pub fn open(self) {
        let mut batch = Batch::default();
        for family in self.families() {
            batch.remove_table(*family, &self.name);
        }
        // The end of the socket does the same.
        if let Err(error) = self.submit(batch) {
            tracing::debug!("cannot remove the table {}: {error}", self.name);
        }
    }

    fn families(&self) -> &'static [Family] {
        families(self.neighbours)
    }

    fn submit(&self, batch: Batch) -> io::Result<()> {
        submit(&self.socket, batch)
    }
}

/// Puts up a barrier that stands until it is removed, whatever becomes of this process. One of that name that is there already serves.
///
/// # Errors
/// As [`Barrier::prepare`].
pub fn leave(namespace: &File, name: &str, reach: Reach) -> io::Result<()> {
    // Who asks while it is not known whose the addresses are may be told as before.
    let neighbours = Neighbours::Answered;
    let socket = open_socket(namespace)?;
    let mut batch = Batch::default();
    for family in families(neighbours) {
        batch.make_table(*family, name, false);
    }
    fill(&mut batch, name, neighbours, reach);
    match submit(&socket, batch) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        left => left,
    }
}

/// Removes a barrier that was left. That there is none is no error.
///
/// # Errors
/// Where the namespace cannot be entered, or the kernel refuses.
pub fn remove(namespace: &File, name: &str) -> io::Result<()> {
    let socket = open_socket(namespace)?;
    let mut batch = Batch::default();
    batch.remove_table(Family::Inet, name);
    match submit(&socket, batch) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// A batch is one message; thousands of sockets need more than the default of 208 KiB.
const MESSAGE_LIMIT_BYTES: usize = 16 << 20;

const fn families(neighbours: Neighbours) -> &'static [Family] {
    match neighbours {
        Neighbours::Answered => &[Family::Inet],
        Neighbours::Ignored => &[Family::Inet, Family::Arp],
    }
}

fn fill(batch: &mut Batch, table: &str, neighbours: Neighbours, reach: Reach) {
    let drops = !matches!(reach, Reach::Ends(_));
    for family in families(neighbours) {
        for chain in Chain::BOTH {
            batch.make_chain(*family, table, chain, drops);
        }
    }
    for chain in Chain::BOTH {
        batch.clear_chain(table, chain);
        batch.add_rule(table, chain, Rule::AcceptMarkedByCriu);
        if drops && neighbours == Neighbours::Answered {
            batch.add_rule(table, chain, Rule::AcceptNeighbourDiscovery);
        }
        match reach {
            Reach::Everything => {}
            Reach::Outside => batch.add_rule(table, chain, Rule::AcceptLoopback),
            Reach::Ends(ends) => {
                for end in ends {
                    batch.add_rule(table, chain, Rule::DropEnd(*end));
                }
            }
        }
    }
}

fn open_socket(namespace: &File) -> io::Result<OwnedFd> {
    within(namespace.try_clone()?, || {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )?;
        setsockopt(&socket, SndBufForce, &MESSAGE_LIMIT_BYTES)?;
        Ok(socket)
    })
}

/// All of it or nothing. The kernel has answered when the call returns.
fn submit(socket: &OwnedFd, batch: Batch) -> io::Result<()> {
    let kernel = NetlinkAddr::new(0, 0);
    sendto(
        socket.as_raw_fd(),
        &batch.finish(),
        &kernel,
        MsgFlags::empty(),
    )?;
    let mut buffer = vec![0; 16 << 10];
    let mut result = Ok(());
    loop {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(count) if count > 0 && result.is_ok() => {
                result = message::read_answer(&buffer[..count]);
            }
            Ok(count) if count > 0 => {}
            Ok(_) | Err(Errno::EAGAIN) => return result,
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
    use std::time::Duration;

    use super::*;
    use crate::sys::network::make_namespace;

    /// Whether a datagram comes through the namespace's loopback interface.
    fn passes(namespace: &File) -> bool {
        within(namespace.try_clone().unwrap(), || {
            let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            receiver.set_read_timeout(Some(Duration::from_millis(50)))?;
            let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            let sent = sender.send_to(b"x", receiver.local_addr()?);
            Ok(sent.is_ok() && receiver.recv(&mut [0]).is_ok())
        })
        .unwrap()
    }

    #[test]
    fn nothing_passes_until_it_opens() {
        let namespace = make_namespace().unwrap();
        for neighbours in [Neighbours::Answered, Neighbours::Ignored] {
            let barrier = Barrier::prepare(&namespace, neighbours).unwrap();
            assert!(passes(&namespace));
            barrier.close(Reach::Outside).unwrap();
            assert!(passes(&namespace));
            barrier.close(Reach::Everything).unwrap();
            assert!(!passes(&namespace));
            barrier.open();
            assert!(passes(&namespace));
        }
    }

    #[test]
    fn only_some_sockets_may_be_reached() {
        let namespace = make_namespace().unwrap();
        let listen = |address: &'static str| {
            within(namespace.try_clone().unwrap(), move || {
                TcpListener::bind(address)
            })
            .unwrap()
        };
        let listeners = ["127.0.0.1:7", "127.0.0.1:8", "127.0.0.2:8", "[::]:9"].map(listen);
        let ends: Vec<SocketAddr> = ["127.0.0.1:7", "127.0.0.1:8", "[::]:9"]
            .map(|text| text.parse().unwrap())
            .into();
        let reached = || {
            let addresses: Vec<SocketAddr> = [
                "127.0.0.1:7",
                "127.0.0.1:8",
                "127.0.0.2:8",
                "[::1]:9",
                "127.0.0.1:9",
            ]
            .map(|text| text.parse().unwrap())
            .into();
            within(namespace.try_clone().unwrap(), move || {
                let limit_dur = Duration::from_millis(50);
                let connects = |to| TcpStream::connect_timeout(to, limit_dur).is_ok();
                Ok(addresses.iter().map(connects).collect::<Vec<_>>())
            })
            .unwrap()
        };
        assert_eq!(reached(), [true; 5]);
        let barrier = Barrier::prepare(&namespace, Neighbours::Answered).unwrap();
        barrier.close(Reach::Ends(&ends)).unwrap();
        assert_eq!(reached(), [false, false, true, false, false]);
        // As many as a busy host has.
        let many: Vec<SocketAddr> = (1..5000)
            .map(|port| ([192, 0, 2, 1], port).into())
            .collect();
        leave(&namespace, "rcm-web", Reach::Ends(&many)).unwrap();
        remove(&namespace, "rcm-web").unwrap();
        barrier.open();
        assert_eq!(reached(), [true; 5]);
        drop(listeners);
    }

    #[test]
    fn it_goes_with_its_owner() {
        let namespace = make_namespace().unwrap();
        let barrier = Barrier::prepare(&namespace, Neighbours::Ignored).unwrap();
        barrier.close(Reach::Everything).unwrap();
        drop(barrier);
        assert!(passes(&namespace));
    }

    #[test]
    fn one_that_is_left_stays() {
        let namespace = make_namespace().unwrap();
        leave(&namespace, "rcm-web", Reach::Everything).unwrap();
        leave(&namespace, "rcm-web", Reach::Everything).unwrap();
        assert!(!passes(&namespace));
        remove(&namespace, "rcm-web").unwrap();
        assert!(passes(&namespace));
        remove(&namespace, "rcm-web").unwrap();
    }
}
