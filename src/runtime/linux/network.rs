//! Network of a container that moves to another host.
//!
//! The network namespace itself does not move. The dump leaves it out, whether the spec names it by
//! a path or had it created. The restore brings the container into the namespace that the
//! destination's spec names, or into a new one. A container in the host's network comes into the
//! host's network again.
//!
//! As long as the sockets exist on both hosts, no packet may pass: at the source from just before
//! the freeze, at the destination from before the first socket is restored until the container
//! runs. [`NetworkLock`] drops the packets.
//!
//! After the commit the source's lock must outlive rcm. A socket of the frozen container would
//! otherwise acknowledge data that is meant for the running one. A file in the container's
//! directory records that there is a lock to remove. The container cannot be deleted without
//! removing it.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use oci_spec::runtime::LinuxNamespaceType;
use procfs::process::{FDTarget, Process};

use super::external;
use crate::criu::{Criu, InheritedFd, NetworkLockMethod, Version};
use crate::runtime::container::Container;
use crate::runtime::error::{Error, Result};
use crate::runtime::image_extras::Details;
use crate::runtime::spec::namespaces::{Namespace, Namespaces};
use crate::sys;
use crate::sys::announce::Announcement;
use crate::sys::network_lock::{self, Neighbours, NetworkLock, Reach};

/// Name of the file that records a network lock that was left in the container's namespace.
const LOCK_FILE: &str = "network-barrier";
/// Bytes of the id that are part of a table's name. A name has at most 255 bytes
/// (`NFT_NAME_MAXLEN`), and an id may be longer.
const NAMED_BYTES: usize = 200;

/// Returns whether the dump of a container that moves leaves its network namespace out. A namespace
/// that belongs to a user namespace can only be created within it, so CRIU dumps and restores that
/// one.
#[must_use]
pub fn is_left_out(namespaces: &Namespaces) -> bool {
    namespaces.has(LinuxNamespaceType::Network) && !namespaces.has(LinuxNamespaceType::User)
}

/// Network namespace that a restored container gets if CRIU does not create it.
#[derive(Debug)]
pub(crate) enum Given {
    /// CRIU is started in this namespace.
    Around(OwnedFd),
    /// CRIU uses this descriptor for the namespace that the dump left out.
    Inherited(InheritedFd),
}

/// Network of a container that is dumped and moves.
#[derive(Debug)]
pub(crate) struct Departure {
    lock: NetworkLock,
    /// Whether the container is in the host's network. There, only the container's own connections
    /// are locked: those that it has when it is frozen.
    is_host: bool,
    ends: Vec<SocketAddr>,
}

impl Departure {
    /// Prepares the lock; packets still pass. Returns `None` if no packet can reach the container,
    /// if it has no connection that must be kept, or if CRIU has to lock.
    pub(crate) fn prepare(
        criu: &Criu,
        init: Pid,
        namespaces: &Namespaces,
        tcp_established: bool,
    ) -> Option<Self> {
        let is_host = !namespaces.has(LinuxNamespaceType::Network);
        let needless = (is_host && !tcp_established) || (!is_host && is_lonely(init));
        if needless || criu.version() < Version::NETWORK_LOCK_SKIP {
            return None;
        }
        let lock = of_process(init)
            .and_then(|namespace| NetworkLock::prepare(&namespace, Neighbours::Answered))
            .inspect_err(|error| {
                tracing::warn!(
                    "the network is locked by CRIU, whose rules may stay behind: {error}"
                );
            })
            .ok()?;
        Some(Self {
            lock,
            is_host,
            ends: Vec::new(),
        })
    }

    /// Locks the network namespace. This must come before the freeze: a connection that arrives
    /// after it and is not accepted any more would make the dump fail.
    pub(crate) fn lock(&self) -> io::Result<()> {
        if self.is_host {
            Ok(())
        } else {
            self.lock.lock(Reach::Everything)
        }
    }

    /// Locks the sockets of `processes` in the host's network, and returns their addresses. The
    /// processes must be frozen, so that they open no further socket.
    pub(crate) fn lock_ends(&mut self, processes: &[Pid]) -> io::Result<Vec<SocketAddr>> {
        if self.is_host {
            self.ends = tcp_ends(processes);
            self.lock.lock(Reach::Ends(&self.ends))?;
        }
        Ok(self.ends.clone())
    }

    /// Lets packets pass again.
    pub(crate) fn unlock(self) {
        self.lock.unlock();
    }

    /// Leaves a second lock, equal to this one, that holds until [`lift`], even if this process
    /// dies.
    pub(crate) fn leave(&self, container: &Container) -> Result<()> {
        let path = left_lock_file(container);
        let reach = if self.is_host {
            Reach::Ends(&self.ends)
        } else {
            Reach::Everything
        };
        // The file comes before the lock: if rcm dies in between, a file without a lock is
        // harmless, but a lock without a file would be forgotten.
        File::create(&path)
            .and_then(|_| of_process(container.live_init().map_err(io::Error::other)?))
            .and_then(|namespace| network_lock::leave(&namespace, &table(container.id()), reach))
            .map_err(|error| {
                let _ = fs::remove_file(&path);
                error_of("lock", container.id())(error)
            })
    }
}

/// Returns this host's addresses of the processes' TCP sockets, listening ones included. `/proc`
/// lists the sockets of a whole namespace, hence the filter.
fn tcp_ends(processes: &[Pid]) -> Vec<SocketAddr> {
    let sockets: HashSet<u64> = processes
        .iter()
        .filter_map(|pid| Process::new(pid.as_raw()).ok()?.fd().ok())
        .flat_map(|open| open.flatten())
        .filter_map(|open| match open.target {
            FDTarget::Socket(inode) => Some(inode),
            _ => None,
        })
        .collect();
    let Some(Ok(process)) = processes.first().map(|pid| Process::new(pid.as_raw())) else {
        return Vec::new();
    };
    let ends: BTreeSet<SocketAddr> = [process.tcp(), process.tcp6()]
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| sockets.contains(&entry.inode) && entry.local_address.port() != 0)
        .map(|entry| entry.local_address)
        .collect();
    ends.into_iter().collect()
}

/// Returns how CRIU locks the network of a container that is dumped and does not move.
///
/// Locking costs several program starts within the freeze, so it is skipped if it is of no use.
/// That is so in a namespace that no packet enters, and in a namespace that the container shares,
/// unless it has connections to keep: then no packet may be answered meanwhile.
pub(crate) fn criu_lock(
    criu: &Criu,
    init: Pid,
    namespaces: &Namespaces,
    tcp_established: bool,
) -> Option<NetworkLockMethod> {
    let own = namespaces.makes(LinuxNamespaceType::Network);
    let lonely = own && is_lonely(init);
    let skip = lonely || (!own && !tcp_established);
    (skip && criu.version() >= Version::NETWORK_LOCK_SKIP).then_some(NetworkLockMethod::Skip)
}

/// Returns whether a process's network has no interface but the loopback.
fn is_lonely(init: Pid) -> bool {
    // If the list cannot be read, assume that there are others: then the network is locked.
    fs::read_to_string(format!("/proc/{init}/net/dev")).is_ok_and(|text| names_loopback_only(&text))
}

fn names_loopback_only(devices: &str) -> bool {
    devices
        .lines()
        // Two lines of headings.
        .skip(2)
        .filter_map(|line| line.split_once(':'))
        .all(|(name, _)| name.trim() == "lo")
}

/// Container whose network is to be restored.
#[derive(Debug)]
pub(crate) struct Arriving {
    /// Id of the container.
    pub id: String,
    /// Whether the container comes from another host.
    pub moves: bool,
    /// Whether established TCP connections are restored. Without a network lock they would break.
    pub has_connections: bool,
}

/// Network of a container that is restored.
#[derive(Debug)]
pub(crate) struct Arrival {
    container: Arriving,
    is_host: bool,
    lock: Option<NetworkLock>,
}

impl Arrival {
    /// Locks the network as far as it exists already. Also returns the namespace, if the dump left
    /// one out or the spec names one.
    pub(crate) fn prepare(
        container: Arriving,
        namespaces: &Namespaces,
        details: &Details,
    ) -> Result<(Self, Option<Given>)> {
        let network = namespaces.get(LinuxNamespaceType::Network);
        let mut arrival = Self {
            container,
            is_host: network == Namespace::Host,
            lock: None,
        };
        let namespace = match network {
            Namespace::Host => {
                arrival.lock_connections(&details.tcp_ends)?;
                return Ok((arrival, None));
            }
            Namespace::Own if details.network_left_out => sys::network::make_namespace()
                .map_err(Error::file("make a namespace like", "/proc/self/ns/net"))?,
            Namespace::Joined(path) => {
                File::open(path).map_err(Error::file("use the namespace", path))?
            }
            Namespace::Own => return Ok((arrival, None)),
        };
        if details.network_left_out {
            // CRIU is started in this namespace, and its kernel checks use the loopback. So only
            // packets from outside are dropped until `lock`.
            arrival.lock_namespace(&namespace, Reach::Outside)?;
            return Ok((arrival, Some(Given::Around(namespace.into()))));
        }
        arrival.lock_namespace(&namespace, Reach::Everything)?;
        let inherited = InheritedFd {
            key: external::OUTER_NETWORK.to_owned(),
            fd: namespace.into(),
        };
        Ok((arrival, Some(Given::Inherited(inherited))))
    }

    /// Drops every packet from here on, if the container comes from another host. `pid` is a
    /// process in the container's namespace.
    pub(crate) fn lock(&mut self, pid: Pid) -> Result<()> {
        match &self.lock {
            Some(lock) if !self.is_host => lock
                .lock(Reach::Everything)
                .map_err(error_of("lock", &self.container.id)),
            None if self.container.moves && !self.is_host => {
                let namespace = of_process(pid).map_err(error_of("lock", &self.container.id))?;
                self.lock_namespace(&namespace, Reach::Everything)
            }
            _ => Ok(()),
        }
    }

    fn lock_namespace(&mut self, namespace: &File, reach: Reach) -> Result<()> {
        if !self.container.moves {
            return Ok(());
        }
        self.put_lock(namespace, Neighbours::Ignored, reach)
    }

    /// Locks only the container's own connections: in the host's network nothing else may be
    /// disturbed.
    fn lock_connections(&mut self, ends: &[SocketAddr]) -> Result<()> {
        if !self.container.moves || ends.is_empty() {
            return Ok(());
        }
        let namespace = own().map_err(error_of("lock", &self.container.id))?;
        self.put_lock(&namespace, Neighbours::Answered, Reach::Ends(ends))
    }

    fn put_lock(&mut self, namespace: &File, neighbours: Neighbours, reach: Reach) -> Result<()> {
        // If rcm was killed when the container left this host, its lock may still be here. Remove
        // it first.
        let lock = network_lock::remove(namespace, &table(&self.container.id))
            .and_then(|()| NetworkLock::prepare(namespace, neighbours))
            .and_then(|lock| lock.lock(reach).map(|()| lock));
        match lock {
            Ok(lock) => self.lock = Some(lock),
            Err(error) if self.container.has_connections => {
                return Err(error_of("lock", &self.container.id)(error));
            }
            Err(error) => tracing::warn!("the network is not locked: {error}"),
        }
        Ok(())
    }

    /// Lets packets pass again, and announces on the link where the addresses are now.
    pub(crate) fn complete(&mut self, pid: Pid) -> Option<Announcement> {
        if let Some(lock) = self.lock.take() {
            lock.unlock();
        }
        if !self.container.moves || self.is_host {
            return None;
        }
        of_process(pid)
            .and_then(Announcement::begin)
            .inspect_err(|error| tracing::warn!("cannot announce the addresses: {error}"))
            .ok()
    }
}

/// Tries whether a network lock is possible in the namespace at `path`, or in a new one.
///
/// # Errors
/// If there is no such namespace, or the kernel has no nf_tables.
pub fn try_lock(path: Option<&Path>) -> io::Result<()> {
    let namespace = match path {
        Some(path) => File::open(path)?,
        None => sys::network::make_namespace()?,
    };
    NetworkLock::prepare(&namespace, Neighbours::Ignored).map(NetworkLock::unlock)
}

/// Removes the network lock that was left, if there is one.
///
/// # Errors
/// If the lock could not be removed.
pub fn lift(container: &Container) -> Result<()> {
    let path = left_lock_file(container);
    if !path.exists() {
        return Ok(());
    }
    if let Some(namespace) = still_there(container) {
        network_lock::remove(&namespace, &table(container.id()))
            .map_err(error_of("unlock", container.id()))?;
    }
    match fs::remove_file(&path) {
        // An engine may delete the container at the same time.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(Error::file("remove", path)),
    }
}

/// Returns the container's network namespace; `None` if it is gone, and the lock with it.
fn still_there(container: &Container) -> Option<File> {
    if let Ok(init) = container.live_init() {
        return of_process(init).ok();
    }
    let spec = container.spec().ok()?;
    match Namespaces::of(&spec).get(LinuxNamespaceType::Network) {
        // When a namespace's bind mount is gone, an ordinary file is left at its path.
        Namespace::Joined(path) => File::open(path).ok().filter(sys::network::is_namespace),
        Namespace::Own => None,
        Namespace::Host => own().ok(),
    }
}

fn own() -> io::Result<File> {
    File::open("/proc/self/ns/net")
}

/// The network namespace of a process.
pub(crate) fn of_process(pid: Pid) -> io::Result<File> {
    File::open(format!("/proc/{pid}/ns/net"))
}

/// Mutes the connections of frozen tasks before these are killed: a peer must not get a FIN or RST
/// from a copy that is given up.
///
/// As long as CRIU holds a dump, it keeps the sockets in that state. This function is for tasks
/// whose CRIU is gone and whose network lock was left.
pub fn mute(container: &Container) {
    if !left_lock_file(container).exists() {
        return;
    }
    let pids = match container.cgroup().pids() {
        Ok(pids) => pids,
        Err(error) => {
            tracing::warn!("{}", crate::error::chain(&error));
            return;
        }
    };
    for pid in pids {
        if let Err(error) = sys::network::mute_connections(pid) {
            tracing::debug!("cannot mute the connections of process {pid}: {error}");
        }
    }
}

pub(crate) fn error_of(action: &'static str, id: &str) -> impl FnOnce(io::Error) -> Error {
    let id = id.to_owned();
    move |source| Error::Network { action, id, source }
}

fn left_lock_file(container: &Container) -> PathBuf {
    container.dir().join(LOCK_FILE)
}

/// Returns the name of the container's nf_tables table. Ids are ASCII, so the cut is at a
/// character.
fn table(id: &str) -> String {
    format!("rcm-{}", &id[..id.len().min(NAMED_BYTES)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_loopback_is_lonely() {
        let head = "Inter-| Receive\n face |bytes\n";
        assert!(names_loopback_only(&format!("{head}    lo: 0 0\n")));
        assert!(!names_loopback_only(&format!(
            "{head}    lo: 0 0\n  eth0: 1 2\n"
        )));
    }

    #[test]
    fn the_name_of_a_table_is_short() {
        assert_eq!(table("web"), "rcm-web");
        assert!(table(&"x".repeat(1024)).len() < 255);
    }
}
