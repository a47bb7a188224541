//! A network lock: while it is locked, no packet passes in a network namespace.
//!
//! The lock is needed while the sockets of a container exist in two places. Without it, the kernel
//! would acknowledge data for a socket that is only frozen, and reset a connection whose socket is
//! not restored yet. CRIU has a network lock, too, but CRIU's takes several program starts and
//! stays behind if CRIU is killed. This lock is an nf_tables table that belongs to a netlink
//! socket. The kernel removes the table with the socket, so the lock cannot outlive its process.
//! [`leave`] makes one that can.
//!
//! Packets with CRIU's mark pass. CRIU sends a few itself to bring a socket into its state
//! (`send_fin` in soccr/soccr.c, CRIU 4.2).

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

/// Whether the host answers and announces the addresses of the namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Neighbours {
    /// The addresses are still this host's. Neighbours that ask for them get an answer.
    Answered,
    /// The addresses are still another host's. Neighbours do not learn that they are here.
    Ignored,
}

/// The packets that a network lock drops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach<'a> {
    /// All packets.
    Everything,
    /// All packets except those of the loopback interface.
    Outside,
    /// TCP segments to or from these sockets of this host. A socket with an unspecified address
    /// stands for all addresses.
    Ends(&'a [SocketAddr]),
}

/// A lock of a network namespace. It drops packets from [`NetworkLock::lock`] until it is unlocked
/// or dropped.
#[derive(Debug)]
pub struct NetworkLock {
    socket: OwnedFd,
    name: String,
    neighbours: Neighbours,
}

impl NetworkLock {
    /// Prepares a lock in a namespace. Packets still pass. Everything that can fail is done here.
    ///
    /// # Errors
    /// If the namespace cannot be entered, or the kernel has no nf_tables or no tables with an
    /// owner (before Linux 5.12).
    pub fn prepare(namespace: &File, neighbours: Neighbours) -> io::Result<Self> {
        let socket = open_socket(namespace)?;
        // Several containers may share the namespace, and one process may migrate several of them.
        let name = format!("rcm-{}-{}", std::process::id(), socket.as_raw_fd());
        let lock = Self {
            socket,
            name,
            neighbours,
        };
        let mut batch = Batch::default();
        for family in lock.families() {
            batch.make_table(*family, &lock.name, true);
        }
        lock.submit(batch)?;
        Ok(lock)
    }

    /// Starts dropping the packets of `reach`. Packets that an earlier call dropped pass again
    /// unless `reach` has them, too.
    ///
    /// # Errors
    /// If the kernel refuses. Packets pass then.
    pub fn lock(&self, reach: Reach) -> io::Result<()> {
        let mut batch = Batch::default();
        fill(&mut batch, &self.name, self.neighbours, reach);
        self.submit(batch)
    }

    /// Lets everything pass again. This is faster than dropping the value, because the kernel waits
    /// when it removes the tables of a closed socket.
    pub fn unlock(self) {
        let mut batch = Batch::default();
        for family in self.families() {
            batch.remove_table(*family, &self.name);
        }
        // Closing the socket removes the table, too.
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

/// Makes a lock that stays until [`remove`], even if this process dies. An existing lock of that
/// name is kept as it is.
///
/// # Errors
/// As [`NetworkLock::prepare`].
pub fn leave(namespace: &File, name: &str, reach: Reach) -> io::Result<()> {
    // It is unknown whose the addresses are, so neighbours may get the same answer as before.
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

/// Removes a lock that [`leave`] made. It is no error if there is none.
///
/// # Errors
/// If the namespace cannot be entered, or the kernel refuses.
pub fn remove(namespace: &File, name: &str) -> io::Result<()> {
    let socket = open_socket(namespace)?;
    let mut batch = Batch::default();
    batch.remove_table(Family::Inet, name);
    match submit(&socket, batch) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Size of the send buffer. A batch is one message, and thousands of sockets need more than the
/// default of 208 KiB.
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

/// Applies the whole batch or nothing. The kernel has answered when the call returns.
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

    /// Whether a datagram passes the namespace's loopback interface.
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
            let lock = NetworkLock::prepare(&namespace, neighbours).unwrap();
            assert!(passes(&namespace));
            lock.lock(Reach::Outside).unwrap();
            assert!(passes(&namespace));
            lock.lock(Reach::Everything).unwrap();
            assert!(!passes(&namespace));
            lock.unlock();
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
        let lock = NetworkLock::prepare(&namespace, Neighbours::Answered).unwrap();
        lock.lock(Reach::Ends(&ends)).unwrap();
        assert_eq!(reached(), [false, false, true, false, false]);
        // As many sockets as a busy host has.
        let many: Vec<SocketAddr> = (1..5000)
            .map(|port| ([192, 0, 2, 1], port).into())
            .collect();
        leave(&namespace, "rcm-web", Reach::Ends(&many)).unwrap();
        remove(&namespace, "rcm-web").unwrap();
        lock.unlock();
        assert_eq!(reached(), [true; 5]);
        drop(listeners);
    }

    #[test]
    fn it_goes_with_its_owner() {
        let namespace = make_namespace().unwrap();
        let lock = NetworkLock::prepare(&namespace, Neighbours::Ignored).unwrap();
        lock.lock(Reach::Everything).unwrap();
        drop(lock);
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
