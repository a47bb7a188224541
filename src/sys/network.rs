//! Network namespaces.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::thread;

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::sockopt::TcpRepair;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recv, send,
    setsockopt, socket,
};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
use nix::unistd::Pid;

use super::process::{copy_descriptor, pidfd_open};

/// Brings the loopback interface of a process's network namespace up (netdevice(7),
/// `SIOCSIFFLAGS`).
///
/// # Errors
/// If the namespace cannot be entered or has no loopback interface.
pub fn bring_loopback_up(pid: Pid) -> io::Result<()> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    within(namespace, bring_own_loopback_up)
}

/// As [`bring_loopback_up`], in the network namespace of this thread.
///
/// # Errors
/// If it has no loopback interface, or this thread has no right to change it.
pub fn bring_own_loopback_up() -> io::Result<()> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    set_up(&socket)
}

/// Calls `work` in a network namespace, on a thread of its own. A namespace is a property of a
/// thread, so the others stay in theirs.
pub(super) fn within<T: Send + 'static>(
    namespace: File,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let thread = thread::Builder::new().spawn(move || -> io::Result<T> {
        enter(&namespace)?;
        work()
    })?;
    thread
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
}

/// Moves the calling thread into a network namespace.
pub(super) fn enter(namespace: &File) -> io::Result<()> {
    Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?)
}

/// Makes a network namespace with its loopback interface up. It lives as long as the file is open
/// or a process is in it.
///
/// # Errors
/// As unshare(2).
pub fn make_namespace() -> io::Result<File> {
    let own = File::open("/proc/thread-self/ns/net")?;
    within(own, || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        bring_own_loopback_up()?;
        File::open("/proc/thread-self/ns/net")
    })
}

/// Whether an open file is a namespace. It is none if nothing is mounted on its name any more.
#[must_use]
pub fn is_namespace(file: &File) -> bool {
    fstatfs(file).is_ok_and(|stats| stats.filesystem_type() == NSFS_MAGIC)
}

/// Puts the TCP connections of a frozen process into repair mode. If they are closed then, no
/// packet tells their peers (`__tcp_close` in net/ipv4/tcp.c, Linux; tcp(7) does not describe
/// `TCP_REPAIR`).
///
/// # Errors
/// If the process is gone or its descriptors cannot be copied.
pub fn mute_connections(pid: Pid) -> io::Result<()> {
    let process = pidfd_open(pid)?;
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let name = entry?.file_name();
        let Some(fd) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let copy = copy_descriptor(&process, fd)?;
        // Fails for descriptors that are no TCP connection.
        let _ = setsockopt(&copy, TcpRepair, &1);
    }
    Ok(())
}

/// Returns the addresses of all interfaces, in the network namespace at `namespace` or in this
/// process's.
///
/// # Errors
/// If the namespace cannot be entered or getifaddrs(3) fails.
pub fn addresses(namespace: Option<&Path>) -> io::Result<Vec<IpAddr>> {
    let list = || -> io::Result<Vec<IpAddr>> {
        Ok(getifaddrs()?
            .filter_map(|interface| interface.address.as_ref().and_then(ip_address))
            .collect())
    };
    match namespace {
        Some(path) => within(File::open(path)?, list),
        None => list(),
    }
}

pub(super) fn ip_address(address: &SockaddrStorage) -> Option<IpAddr> {
    match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
        (Some(v4), _) => Some(v4.ip().into()),
        (_, Some(v6)) => Some(v6.ip().into()),
        _ => None,
    }
}

/// A Unix socket and the one that it is connected to, by their inodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnixPeer {
    /// Inode of the socket.
    pub inode: u32,
    /// Inode of its peer; 0 if the connection is not accepted yet.
    pub peer: u32,
}

/// Returns the connected Unix sockets of a process's network namespace (sock_diag(7)).
///
/// # Errors
/// If the namespace cannot be entered, or the kernel has no `CONFIG_UNIX_DIAG`.
pub fn unix_peers(pid: Pid) -> io::Result<Vec<UnixPeer>> {
    within(File::open(format!("/proc/{pid}/ns/net"))?, || {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )?;
        send(socket.as_raw_fd(), &unix_request(), MsgFlags::empty())?;
        let mut peers = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            if count == 0 || !read_unix_answer(&buffer[..count], &mut peers)? {
                return Ok(peers);
            }
        }
    })
}

/// `SOCK_DIAG_BY_FAMILY` of linux/sock_diag.h.
const BY_FAMILY: u16 = 20;
/// `UDIAG_SHOW_PEER` of linux/unix_diag.h.
const SHOW_PEER: u32 = 4;
/// `UNIX_DIAG_PEER` of linux/unix_diag.h.
const ATTRIBUTE_PEER: u16 = 2;

/// An `nlmsghdr` and a `unix_diag_req`.
fn unix_request() -> Vec<u8> {
    let mut request = Vec::with_capacity(40);
    request.extend(40_u32.to_ne_bytes());
    request.extend(BY_FAMILY.to_ne_bytes());
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    request.extend(flags.to_ne_bytes());
    // Sequence number and port.
    request.extend([0; 8]);
    request.extend([libc::AF_UNIX as u8, 0, 0, 0]);
    // Sockets in all states, no particular inode.
    request.extend(u32::MAX.to_ne_bytes());
    request.extend(0_u32.to_ne_bytes());
    request.extend(SHOW_PEER.to_ne_bytes());
    // No cookie.
    request.extend([0xff; 8]);
    request
}

/// Returns whether more messages follow.
fn read_unix_answer(mut answer: &[u8], peers: &mut Vec<UnixPeer>) -> io::Result<bool> {
    let u16_at = |bytes: &[u8], at: usize| {
        let bytes = bytes.get(at..at + 2)?.try_into().ok()?;
        Some(u16::from_ne_bytes(bytes))
    };
    let u32_at = |bytes: &[u8], at: usize| {
        let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(bytes))
    };
    while let (Some(length), Some(kind)) = (u32_at(answer, 0), u16_at(answer, 4)) {
        let length = length as usize;
        if length < 16 || length > answer.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        match i32::from(kind) {
            libc::NLMSG_DONE => return Ok(false),
            libc::NLMSG_ERROR => {
                let code = u32_at(answer, 16).unwrap_or(0) as i32;
                return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
            }
            _ => {}
        }
        let (message, rest) = answer.split_at(length);
        // After the nlmsghdr: family, type, state and padding, the inode, the cookie; then
        // attributes.
        let (inode, mut attributes) = (u32_at(message, 20), message.get(32..).unwrap_or(&[]));
        while let (Some(size), Some(name)) = (u16_at(attributes, 0), u16_at(attributes, 2)) {
            if size < 4 {
                break;
            }
            if name == ATTRIBUTE_PEER
                && let (Some(inode), Some(peer)) = (inode, u32_at(attributes, 4))
            {
                peers.push(UnixPeer { inode, peer });
            }
            attributes = attributes
                .get(usize::from(size).next_multiple_of(4)..)
                .unwrap_or(&[]);
        }
        answer = rest
            .get(length.next_multiple_of(4) - length..)
            .unwrap_or(&[]);
    }
    Ok(true)
}

fn set_up(socket: &OwnedFd) -> io::Result<()> {
    // SAFETY: an all-zero ifreq is valid: integers and a union of integers and addresses.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the kernel reads one ifreq, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    Errno::result(result)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn both_ends_of_a_pair_are_peers() {
        let (one, other) = UnixStream::pair().unwrap();
        let inode = |socket: &UnixStream| {
            let link = format!("/proc/self/fd/{}", socket.as_raw_fd());
            u32::try_from(std::fs::metadata(link).unwrap().ino()).unwrap()
        };
        let peers = unix_peers(Pid::this()).unwrap();
        let (inode, peer) = (inode(&one), inode(&other));
        assert!(peers.contains(&UnixPeer { inode, peer }), "{peers:?}");
        assert!(peers.contains(&UnixPeer {
            inode: peer,
            peer: inode
        }));
    }
}
