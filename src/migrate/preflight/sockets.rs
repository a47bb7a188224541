//! Probes of a container's sockets.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::thread;

use nix::unistd::Pid;
use procfs::net::{TcpNetEntry, TcpState};
use procfs::process::Process;

use super::error;
use crate::criu::CriuChoices;
use crate::migrate::limits::BACKLOG_PAUSE_DUR;
use crate::migrate::wire::finding::Finding;
use crate::sys::network::{UnixPeer, unix_peers};

/// Number of checks whether a program accepts waiting connections.
const ACCEPT_CHECKS: u32 = 10;

/// Result of the probe.
#[derive(Debug, Default)]
pub(super) struct Connections {
    pub(super) findings: Vec<Finding>,
    /// Local addresses of the connections that move with the container.
    pub(super) addresses: Vec<IpAddr>,
}

/// Probes the sockets. `own` has the inodes of those that the container holds.
pub(super) fn look(init: Pid, own: &HashSet<u64>, choices: &CriuChoices) -> Connections {
    let mut found = Connections::default();
    if own.is_empty() {
        return found;
    }
    let sockets = tcp_sockets(init, own);
    found.findings.extend(unaccepted(init, own, &sockets));
    let connected: Vec<TcpNetEntry> = sockets
        .into_iter()
        .filter(|entry| is_connection(&entry.state))
        .collect();
    match (choices.tcp_established, connected.first()) {
        (true, _) => {
            let addresses: BTreeSet<IpAddr> = connected
                .iter()
                .map(|entry| entry.local_address.ip().to_canonical())
                .filter(|address| !address.is_loopback())
                .collect();
            found.addresses = addresses.into_iter().collect();
        }
        (false, Some(first)) => found.findings.push(error(
            format!(
                "the container has {} TCP connections, such as {} to {}",
                connected.len(),
                first.local_address,
                first.remote_address
            ),
            "use --tcp-established on both hosts to keep them, or close them",
        )),
        (false, None) => {}
    }
    if !choices.ext_unix_sk {
        match unix_peers(init) {
            Ok(peers) => found.findings.extend(external(&peers, own)),
            // The kernel lacks CONFIG_UNIX_DIAG. CRIU fails then, too.
            Err(error) => tracing::debug!("cannot list Unix sockets: {error}"),
        }
    }
    found
}

fn tcp_sockets(init: Pid, own: &HashSet<u64>) -> Vec<TcpNetEntry> {
    let Ok(process) = Process::new(init.as_raw()) else {
        return Vec::new();
    };
    [process.tcp(), process.tcp6()]
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| own.contains(&entry.inode))
        .collect()
}

/// Returns a finding for a listening socket whose connections stay unaccepted: CRIU cannot dump
/// them (criu/sk-inet.c, "In-flight connection", CRIU 4.2). A program at work accepts them within
/// moments.
fn unaccepted(init: Pid, own: &HashSet<u64>, sockets: &[TcpNetEntry]) -> Option<Finding> {
    // The receive queue of a listening socket counts connections (net/ipv4/tcp_ipv4.c,
    // `get_tcp4_sock`, Linux 6.18).
    let waits = |entry: &&TcpNetEntry| entry.state == TcpState::Listen && entry.rx_queue > 0;
    let (inode, address) = sockets
        .iter()
        .find(waits)
        .map(|entry| (entry.inode, entry.local_address))?;
    for _ in 0..ACCEPT_CHECKS {
        thread::sleep(BACKLOG_PAUSE_DUR);
        let now = tcp_sockets(init, own);
        now.iter()
            .filter(waits)
            .find(|entry| entry.inode == inode)?;
    }
    Some(error(
        format!(
            "connections to {address} wait for the container to accept them, and CRIU cannot dump them"
        ),
        "have the program accept them, or have the clients close them",
    ))
}

/// Returns whether CRIU needs `--tcp-established` for the socket: it neither listens nor is only
/// remembered by the kernel.
fn is_connection(state: &TcpState) -> bool {
    !matches!(
        state,
        TcpState::Listen | TcpState::TimeWait | TcpState::Close | TcpState::NewSynRecv
    )
}

fn external(peers: &[UnixPeer], own: &HashSet<u64>) -> Option<Finding> {
    let outside = peers
        .iter()
        .filter(|socket| own.contains(&socket.inode.into()))
        // Without an inode the peer waits to be accepted.
        .filter(|socket| socket.peer != 0 && !own.contains(&socket.peer.into()))
        .count();
    (outside > 0).then(|| {
        error(
            format!("{outside} Unix sockets of the container are connected to processes outside"),
            "close them, or use --ext-unix-sk for datagram sockets such as that of a log",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_peers_outside_count() {
        let peers = [
            UnixPeer { inode: 1, peer: 2 },
            UnixPeer { inode: 2, peer: 1 },
            UnixPeer { inode: 3, peer: 0 },
            UnixPeer { inode: 8, peer: 9 },
        ];
        let own = HashSet::from([1, 2, 3]);
        assert_eq!(external(&peers, &own), None);
        let own = HashSet::from([1, 3]);
        let finding = external(&peers, &own).unwrap();
        assert!(finding.what.starts_with("1 Unix"), "{finding}");
    }
}
