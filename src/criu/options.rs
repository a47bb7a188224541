//! What CRIU is told, typed. One field per option of `criu.proto` that rcm uses; criu(8) describes them.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::sys::mount;
use crate::sys::tree::Tree;

/// What dumps and restores have in common.
#[derive(Debug, Clone, Default)]
pub struct Common {
    /// What is dumped or restored, for messages: `container "web"`.
    pub subject: String,
    /// The directory of the images. It must exist.
    pub images_dir: PathBuf,
    /// Where logs and statistics go; the image directory if none. It must exist.
    pub work_dir: Option<PathBuf>,
    /// The root file system as CRIU sees it; none without a mount namespace. For a restore it must be a mount point whose parent is not
    /// overmounted, see [`RestoreOptions::rootfs`].
    pub root: Option<PathBuf>,
    /// Verbosity of the log, 0 to 4; 4 is what runc uses, 2 (errors and warnings) costs least inside the freeze.
    pub log_level: i32,
    /// Keep established TCP connections.
    pub tcp_established: bool,
    /// Accept Unix sockets whose other end is outside.
    pub ext_unix_sk: bool,
    /// Accept a session or process group leader, or a terminal, outside.
    pub shell_job: bool,
    /// Keep file locks.
    pub file_locks: bool,
    /// How control groups are treated.
    pub manage_cgroups: CgroupMode,
    /// Do not save what is inside the network namespace: devices and addresses are the engine's business.
    pub empty_network_namespace: bool,
    /// Resources that are not saved but found again at the restore.
    pub external: Vec<External>,
    /// A CRIU configuration file that overrides all of this.
    pub config_file: Option<PathBuf>,
    /// Memory stays behind and is fetched when touched.
    pub lazy_pages: bool,
    /// Punch superseded pages out of parent images (dump), or out of the images while restoring.
    pub auto_dedup: bool,
    /// How the network is locked while tasks are stopped. `None`: CRIU's default (iptables); a restore finds the method in the images.
    pub network_lock: Option<NetworkLock>,
    /// How long rcm waits for each message of CRIU. `None`: as long as it takes; large memory takes long.
    pub answer_limit_dur: Option<Duration>,
}

/// What a dump needs.
#[derive(Debug, Clone, Default)]
pub struct DumpOptions {
    /// What every request has.
    pub common: Common,
    /// The first process, its id as rcm sees it.
    pub pid: i32,
    /// Let the tasks run on after the dump instead of killing them.
    pub leave_running: bool,
    /// Leave out TCP connections that are not yet established.
    pub tcp_skip_in_flight: bool,
    /// Give deleted but open files a temporary name.
    pub link_remap: bool,
    /// The previous images of the chain, relative to the image directory.
    pub parent_images: Option<PathBuf>,
    /// Track changed memory from now on, so that another dump can be incremental.
    pub track_memory: bool,
    /// The directory with the freezer's files. CRIU freezes it in steps of 100 ms unless it finds it frozen already.
    pub freeze_cgroup: Option<PathBuf>,
    /// Where memory goes instead of the image directory.
    pub page_server: Option<PageServer>,
    /// A connection to a page server ([`super::page_server`]), which counts more than [`Self::page_server`].
    pub page_connection: Option<Arc<OwnedFd>>,
    /// Largest deleted file, in bytes, that is put into the images. `None`: CRIU's 1 MiB.
    pub ghost_limit_bytes: Option<u32>,
    /// How a pre-dump copies memory.
    pub pre_dump_mode: Option<PreDumpMode>,
    /// The network namespace of the tasks, where it is to be left out: CRIU is started in it, and takes it for the host's. Of a namespace that it knows to be another
    /// one, even of an [`External::Namespace`], it saves the connection tracking, for which the kernel walks through its whole table twice: 20 ms of the
    /// freeze (criu/net.c, `dump_net_ns`).
    pub network: Option<Arc<OwnedFd>>,
}

/// What a restore needs.
#[derive(Debug, Default)]
pub struct RestoreOptions {
    /// What every request has.
    pub common: Common,
    /// What is bound at [`Common::root`], where only CRIU sees it: CRIU wants a mount point whose parent is not overmounted.
    pub rootfs: Option<PathBuf>,
    /// Mounts that only CRIU sees, for [`External::Mount`]; where there is a [`Self::rootfs`].
    pub trees: Option<Trees>,
    /// Open descriptors that take the place of resources by key.
    pub inherited: Vec<InheritedFd>,
    /// Namespaces that are joined instead of made.
    pub join_namespaces: Vec<JoinNamespace>,
    /// Control groups that take the place of those in the images.
    pub cgroup_roots: Vec<CgroupRoot>,
    /// Another LSM profile, `TYPE:NAME`.
    pub lsm_profile: Option<String>,
    /// Another LSM mount context.
    pub lsm_mount_context: Option<String>,
    /// Skip the file mode comparison (criu(8), `--skip-file-rwx-check`).
    pub skip_file_rwx_check: bool,
    /// What CRIU has as stdin. With [`Common::shell_job`] it is the terminal that tasks get.
    pub stdin: Option<OwnedFd>,
    /// The network namespace that the tasks get, if the dump had one in [`DumpOptions::network`].
    pub network: Option<OwnedFd>,
}

/// Mount trees that are attached below an empty directory, each by its number.
#[derive(Debug)]
pub struct Trees {
    /// The directory.
    pub place: PathBuf,
    /// The trees.
    pub trees: Vec<Tree>,
}

impl Trees {
    /// Attaches them, in a mount namespace of this thread's own.
    pub(super) fn attach(self) -> io::Result<()> {
        mount::cover(&self.place)?;
        for (number, tree) in self.trees.into_iter().enumerate() {
            tree.attach(&self.place.join(number.to_string()))?;
        }
        Ok(())
    }
}

/// A descriptor that CRIU takes for the resource `key`.
#[derive(Debug)]
pub struct InheritedFd {
    /// `pipe:[INODE]`, `file[MOUNT:INODE]`, `extRootNetNS`, ...
    pub key: String,
    /// What takes its place.
    pub fd: OwnedFd,
}

/// A namespace that is joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinNamespace {
    /// `net`, `ipc`, `uts`, `user`, `time`, `mnt`.
    pub kind: &'static str,
    /// Its file.
    pub path: PathBuf,
}

/// A control group that takes the place of the dumped root group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupRoot {
    /// The controllers of the hierarchy as `/proc/PID/cgroup` has them; `None` for all.
    pub controller: Option<String>,
    /// The path in the hierarchy.
    pub path: String,
}

/// A page server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageServer {
    /// Its address; none to listen on all.
    pub address: Option<String>,
    /// Its port.
    pub port: u16,
}

/// How control groups are treated (criu(8), `--manage-cgroups`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CgroupMode {
    /// CRIU's default, which is [`Self::Soft`].
    #[default]
    Default,
    /// Restore properties of groups that CRIU creates only.
    Soft,
    /// Restore all groups and their properties.
    Full,
    /// As full, and fail if a group exists.
    Strict,
    /// Do not touch groups.
    Ignore,
}

impl CgroupMode {
    /// The mode that criu(8) calls `name`; the default for any other name.
    #[must_use]
    pub fn of(name: &str) -> Self {
        match name {
            "soft" => Self::Soft,
            "full" => Self::Full,
            "strict" => Self::Strict,
            "ignore" => Self::Ignore,
            _ => Self::Default,
        }
    }
}

/// How packets are kept from stopped sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkLock {
    /// With iptables-restore.
    Iptables,
    /// With libnftables.
    Nftables,
    /// Not at all.
    Skip,
}

/// How a pre-dump copies memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PreDumpMode {
    /// With vmsplice from a parasite: long pauses.
    Splice,
    /// With process_vm_readv(2): short pauses.
    Read,
}

/// A resource that is not saved; [`fmt::Display`] gives it as `--external` takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum External {
    /// On a dump: the mount at `path` in the container is called `name`.
    /// On a restore: the mount called `path` is made from `name`, a path on the host.
    Mount {
        /// Where it is, or what it is called.
        path: String,
        /// What it is called, or from what it is made.
        name: String,
    },
    /// A namespace that is not saved: its kind, its inode and what it is called.
    Namespace {
        /// `net` or `pid`.
        kind: &'static str,
        /// Its inode.
        inode: u64,
        /// What it is called.
        name: &'static str,
    },
    /// An open file of a mount that the container does not have, as criu/files-reg.c calls it.
    File {
        /// `mnt_id` of `/proc/PID/fdinfo/FD`.
        mount_id: i32,
        /// Its inode.
        inode: u64,
    },
}

impl fmt::Display for External {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount { path, name } => write!(f, "mnt[{path}]:{name}"),
            Self::Namespace { kind, inode, name } => write!(f, "{kind}[{inode}]:{name}"),
            Self::File { mount_id, inode } => write!(f, "file[{mount_id:x}:{inode:x}]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn externals_as_criu_writes_them() {
        let mount = External::Mount {
            path: "/data".into(),
            name: "/srv/data".into(),
        };
        assert_eq!(mount.to_string(), "mnt[/data]:/srv/data");
        let namespace = External::Namespace {
            kind: "net",
            inode: 4_026_531_840,
            name: "extRootNetNS",
        };
        assert_eq!(namespace.to_string(), "net[4026531840]:extRootNetNS");
        let file = External::File {
            mount_id: 27,
            inode: 0xbeef,
        };
        assert_eq!(file.to_string(), "file[1b:beef]");
    }
}
