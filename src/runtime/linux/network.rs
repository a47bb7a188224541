//! The network of a container that moves to another host.
//!
//! Its namespace stays where it is: the dump leaves it out, whether the spec names it by a path or had it made, and the restore brings the
//! container into the one that the destination's spec names, or into a new one; only what is in the host's network comes into the host's network.
//! As long as the sockets are in two places no packet passes ([`NetworkLock`]): at the source from just before the freeze, at the destination from
//! before the first socket is restored until the container goes on.
//!
//! From the commit on the source's barrier must outlive rcm: a socket of a container that stands still would acknowledge what belongs to the one
//! that runs. A file in the container's directory says that there is one to remove; the container cannot be destroyed without that.

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

/// Says that a barrier was left in the container's namespace.
const BARRIER_FILE: &str = "network-barrier";
/// A table's name has at most 255 bytes (`NFT_NAME_MAXLEN`), and an id may be longer.
const NAMED_BYTES: usize = 200;

/// Whether the dump of a container that moves leaves its network namespace out. One that belongs to a user namespace can only be made within it, so
/// CRIU does.
#[must_use]
pub fn is_left_out(namespaces: &Namespaces) -> bool {
    namespaces.has(LinuxNamespaceType::Network) && !namespaces.has(LinuxNamespaceType::User)
}

/// The network namespace that a restored container gets, if it is not CRIU that makes it.
#[derive(Debug)]
pub(crate) enum Given {
    /// CRIU is started in it.
    Around(OwnedFd),
    /// CRIU takes it for the one that it has left out.
    Inherited(InheritedFd),
}

/// The network of a container that leaves.
#[derive(Debug)]
pub(crate) struct Departure {
    barrier: NetworkLock,
    /// In the host's network only the container's own connections are barred: those that it has when it stands still.
    is_host: bool,
    ends: Vec<SocketAddr>,
}

impl Departure {
    /// Packets still pass. `None` where nothing comes to the container, or nothing that must be kept, or where CRIU has to lock.
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
        let barrier = of_process(init)
            .and_then(|namespace| NetworkLock::prepare(&namespace, Neighbours::Answered))
            .inspect_err(|error| {
                tracing::warn!(
                    "the network is locked by CRIU, whose rules may stay behind: {error}"
                );
            })
            .ok()?;
        Some(Self {
            barrier,
            is_host,
            ends: Vec::new(),
        })
    }

    /// Before the freeze: what comes in and is not accepted any more would fail the dump.
    pub(crate) fn bar(&self) -> io::Result<()> {
        match self.is_host {
            true => Ok(()),
            false => self.barrier.lock(Reach::Everything),
        }
    }

    /// The same in the host's network, for the sockets of `processes`, which stand still. Returns these.
    pub(crate) fn bar_ends(&mut self, processes: &[Pid]) -> io::Result<Vec<SocketAddr>> {
        if self.is_host {
            self.ends = tcp_ends(processes);
            self.barrier.lock(Reach::Ends(&self.ends))?;
        }
        Ok(self.ends.clone())
    }

    /// Packets pass again.
    pub(crate) fn open(self) {
        self.barrier.unlock();
    }

    /// Leaves a barrier like this that stands until [`lift`], even if this process dies.
    pub(crate) fn leave(&self, container: &Container) -> Result<()> {
        let path = barrier_file(container);
        let reach = match self.is_host {
            true => Reach::Ends(&self.ends),
            false => Reach::Everything,
        };
        // Before the barrier, so that none is forgotten.
        File::create(&path)
            .and_then(|_| of_process(container.live_init().map_err(io::Error::other)?))
            .and_then(|namespace| network_lock::leave(&namespace, &table(container.id()), reach))
            .map_err(|error| {
                let _ = fs::remove_file(&path);
                error_of("lock", container.id())(error)
            })
    }
}

/// This host's ends of the TCP sockets of processes, listening ones too; `/proc` lists those of a whole namespace.
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

/// How CRIU locks the network of a container that is dumped and does not leave. Locking costs several program starts within the freeze. There is
/// nothing to lock in a namespace that no packet enters, and outside of namespaces of its own a container has nothing that is only its own; unless
/// there are connections to keep, of which no packet may be answered meanwhile.
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

/// Whether a process's network has no interface but the loopback.
fn is_lonely(init: Pid) -> bool {
    // Who cannot look finds company.
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
    /// Whether established TCP connections are restored. Without a barrier they would be lost.
    pub has_connections: bool,
}

/// The network of a container that is restored.
#[derive(Debug)]
pub(crate) struct Arrival {
    container: Arriving,
    is_host: bool,
    barrier: Option<NetworkLock>,
}

impl Arrival {
    /// Also returns the namespace, if one was left out of the images or the spec names one.
    pub(crate) fn prepare(
        container: Arriving,
        namespaces: &Namespaces,
        details: &Details,
    ) -> Result<(Self, Option<Given>)> {
        let network = namespaces.get(LinuxNamespaceType::Network);
        let mut arrival = Self {
            container,
            is_host: network == Namespace::Host,
            barrier: None,
        };
        let namespace = match network {
            Namespace::Host => {
                arrival.bar_connections(&details.tcp_ends)?;
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
            // When CRIU tries what the kernel can do, it talks to itself.
            arrival.bar_namespace(&namespace, Reach::Outside)?;
            return Ok((arrival, Some(Given::Around(namespace.into()))));
        }
        arrival.bar_namespace(&namespace, Reach::Everything)?;
        let inherited = InheritedFd {
            key: external::OUTER_NETWORK.to_owned(),
            fd: namespace.into(),
        };
        Ok((arrival, Some(Given::Inherited(inherited))))
    }

    /// From here on no packet passes, if the container comes from another host. `pid` is in its namespace.
    pub(crate) fn bar(&mut self, pid: Pid) -> Result<()> {
        match &self.barrier {
            Some(barrier) if !self.is_host => barrier
                .lock(Reach::Everything)
                .map_err(error_of("lock", &self.container.id)),
            None if self.container.moves && !self.is_host => {
                let namespace = of_process(pid).map_err(error_of("lock", &self.container.id))?;
                self.bar_namespace(&namespace, Reach::Everything)
            }
            _ => Ok(()),
        }
    }

    fn bar_namespace(&mut self, namespace: &File, reach: Reach) -> Result<()> {
        if !self.container.moves {
            return Ok(());
        }
        self.put_up(namespace, Neighbours::Ignored, reach)
    }

    /// In the host's network nothing else may suffer.
    fn bar_connections(&mut self, ends: &[SocketAddr]) -> Result<()> {
        if !self.container.moves || ends.is_empty() {
            return Ok(());
        }
        let namespace = own().map_err(error_of("lock", &self.container.id))?;
        self.put_up(&namespace, Neighbours::Answered, Reach::Ends(ends))
    }

    fn put_up(&mut self, namespace: &File, neighbours: Neighbours, reach: Reach) -> Result<()> {
        // One may have stood here since the container left, if rcm was killed at a bad moment then.
        let barrier = network_lock::remove(namespace, &table(&self.container.id))
            .and_then(|()| NetworkLock::prepare(namespace, neighbours))
            .and_then(|barrier| barrier.lock(reach).map(|()| barrier));
        match barrier {
            Ok(barrier) => self.barrier = Some(barrier),
            Err(error) if self.container.has_connections => {
                return Err(error_of("lock", &self.container.id)(error));
            }
            Err(error) => tracing::warn!("the network is not locked: {error}"),
        }
        Ok(())
    }

    /// Packets pass again, and the link is told where the addresses are now.
    pub(crate) fn complete(&mut self, pid: Pid) -> Option<Announcement> {
        if let Some(barrier) = self.barrier.take() {
            barrier.unlock();
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

/// Whether a barrier can stand in the namespace at `path`, or in a new one.
///
/// # Errors
/// Why not: no namespace, no nf_tables in the kernel.
pub fn try_barrier(path: Option<&Path>) -> io::Result<()> {
    let namespace = match path {
        Some(path) => File::open(path)?,
        None => sys::network::make_namespace()?,
    };
    NetworkLock::prepare(&namespace, Neighbours::Ignored).map(NetworkLock::unlock)
}

/// Removes the barrier that was left, if one was.
///
/// # Errors
/// Where it stays.
pub fn lift(container: &Container) -> Result<()> {
    let path = barrier_file(container);
    if !path.exists() {
        return Ok(());
    }
    if let Some(namespace) = still_there(container) {
        network_lock::remove(&namespace, &table(container.id()))
            .map_err(error_of("unlock", container.id()))?;
    }
    match fs::remove_file(&path) {
        // An engine deletes the container at the same time.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(Error::file("remove", path)),
    }
}

/// The namespace, unless it is gone and the barrier with it.
fn still_there(container: &Container) -> Option<File> {
    if let Ok(init) = container.live_init() {
        return of_process(init).ok();
    }
    let spec = container.spec().ok()?;
    match Namespaces::of(&spec).get(LinuxNamespaceType::Network) {
        // What is left of a namespace's name when it was unmounted is an ordinary file.
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

/// Lets the connections of tasks that stand still end without a word, when those are killed: no peer shall hear from a copy that is given up.
///
/// CRIU keeps the sockets in that state as long as it holds a dump; this is for tasks whose CRIU is gone and whose barrier was left.
pub fn mute(container: &Container) {
    if !barrier_file(container).exists() {
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

fn barrier_file(container: &Container) -> PathBuf {
    container.dir().join(BARRIER_FILE)
}

/// Ids are ASCII.
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
