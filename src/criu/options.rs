//! Typed options for CRIU. There is one field for each option of `criu.proto` that rcm uses;
//! criu(8) describes them.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::choices::{CriuChoices, ManageCgroups};
use crate::sys::mount;
use crate::sys::tree::Tree;

/// Options that dumps and restores have in common.
#[derive(Debug, Clone, Default)]
pub struct Common {
    /// The dumped or restored object, for messages: `container "web"`.
    pub subject: String,
    /// The directory of the images. It must exist.
    pub images_dir: PathBuf,
    /// Directory of logs and statistics; `None`: the image directory. It must exist.
    pub work_dir: Option<PathBuf>,
    /// The root file system as CRIU sees it; `None` without a mount namespace. For a restore it
    /// must be a mount point whose parent is not overmounted, see [`RestoreOptions::rootfs`].
    pub root: Option<PathBuf>,
    /// Verbosity of the log, 0 to 4. runc uses 4; 2 (errors and warnings) costs least during the
    /// freeze.
    pub log_level: i32,
    /// The flags that the user gave.
    pub choices: CriuChoices,
    /// How control groups are treated; it need not be what the flags say.
    pub manage_cgroups: ManageCgroups,
    /// Do not save the contents of the network namespace. The engine makes devices and addresses.
    pub empty_network_namespace: bool,
    /// Resources that are not saved, but found again at the restore.
    pub external: Vec<External>,
    /// A CRIU configuration file that overrides all of this.
    pub config_file: Option<PathBuf>,
    /// Memory stays at the source and is fetched on access.
    pub lazy_pages: bool,
    /// Punch superseded pages out of parent images (dump), or out of the images while restoring.
    pub auto_dedup: bool,
    /// How CRIU locks the network while tasks are stopped. `None`: CRIU's default (iptables). A
    /// restore finds the method in the images.
    pub network_lock: Option<NetworkLockMethod>,
    /// How long rcm waits for each message of CRIU. `None`: no limit, because large memory takes
    /// long.
    pub answer_limit_dur: Option<Duration>,
}

/// Options of a dump.
#[derive(Debug, Clone, Default)]
pub struct DumpOptions {
    /// Options that restores have, too.
    pub common: Common,
    /// The first process, by its id in rcm's pid namespace.
    pub pid: i32,
    /// Resume the tasks after the dump instead of killing them.
    pub leave_running: bool,
    /// Leave out TCP connections that are not yet established.
    pub tcp_skip_in_flight: bool,
    /// The previous images of the chain, relative to the image directory.
    pub parent_images: Option<PathBuf>,
    /// Track changed memory from now on, so that the next dump can be incremental.
    pub track_memory: bool,
    /// Directory of the freezer's files. CRIU freezes the cgroup in steps of 100 ms unless it is
    /// frozen already.
    pub freeze_cgroup: Option<PathBuf>,
    /// The page server that gets the memory instead of the image directory.
    pub page_server: Option<PageServer>,
    /// Connection to a page server of [`super::page_server`]. It takes precedence over
    /// [`Self::page_server`].
    pub page_connection: Option<Arc<OwnedFd>>,
    /// Size limit in bytes for deleted files that go into the images. `None`: CRIU's 1 MiB.
    pub ghost_limit_bytes: Option<u32>,
    /// How a pre-dump copies memory.
    pub pre_dump_mode: Option<PreDumpMode>,
    /// The network namespace of the tasks, if CRIU must not save it. rcm starts CRIU in it, so that
    /// CRIU takes it for the host's. CRIU saves the connection tracking of any other namespace,
    /// even of an [`External::Namespace`]. For that the kernel walks through its whole table twice:
    /// 20 ms of the freeze (`dump_net_ns` in criu/net.c, CRIU 4.2).
    pub network: Option<Arc<OwnedFd>>,
}

/// Options of a restore.
#[derive(Debug, Default)]
pub struct RestoreOptions {
    /// Options that dumps have, too.
    pub common: Common,
    /// Directory to bind at [`Common::root`] where only CRIU sees it: CRIU wants a mount point
    /// whose parent is not overmounted.
    pub rootfs: Option<PathBuf>,
    /// Mounts that only CRIU sees, for [`External::Mount`]. They need a [`Self::rootfs`].
    pub trees: Option<Trees>,
    /// Open descriptors that replace resources, by key.
    pub inherited: Vec<InheritedFd>,
    /// Namespaces that are joined instead of made.
    pub join_namespaces: Vec<JoinNamespace>,
    /// Control groups that replace those in the images.
    pub cgroup_roots: Vec<CgroupRoot>,
    /// Another LSM profile, `TYPE:NAME`.
    pub lsm_profile: Option<String>,
    /// Another LSM mount context.
    pub lsm_mount_context: Option<String>,
    /// Skip the file mode comparison (criu(8), `--skip-file-rwx-check`).
    pub skip_file_rwx_check: bool,
    /// Stdin of CRIU. With [`CriuChoices::shell_job`] it is the terminal of the tasks.
    pub stdin: Option<OwnedFd>,
    /// The network namespace for the tasks, if the dump had one in [`DumpOptions::network`].
    pub network: Option<OwnedFd>,
}

/// Mount trees that are attached below an empty directory, each by its number.
#[derive(Debug)]
pub struct Trees {
    /// The empty directory.
    pub place: PathBuf,
    /// The trees, in the order of their numbers.
    pub trees: Vec<Tree>,
}

impl Trees {
    /// Attaches the trees, in a mount namespace of this thread's own.
    pub(super) fn attach(self) -> io::Result<()> {
        mount::cover(&self.place)?;
        for (number, tree) in self.trees.into_iter().enumerate() {
            tree.attach(&self.place.join(number.to_string()))?;
        }
        Ok(())
    }
}

/// A descriptor that CRIU uses as the resource `key`.
#[derive(Debug)]
pub struct InheritedFd {
    /// `pipe:[INODE]`, `file[MOUNT:INODE]`, `extRootNetNS`, ...
    pub key: String,
    /// The descriptor.
    pub fd: OwnedFd,
}

/// A namespace that the tasks join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinNamespace {
    /// `net`, `ipc`, `uts`, `user`, `time`, `mnt`.
    pub kind: &'static str,
    /// Path of its file.
    pub path: PathBuf,
}

/// A control group that replaces the dumped root group.
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
    /// Its address; `None`: listen on all addresses.
    pub address: Option<String>,
    /// Its port.
    pub port: u16,
}

/// How CRIU keeps packets from stopped sockets (criu(8), `--network-lock`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkLockMethod {
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

/// A resource that is not saved. [`fmt::Display`] formats it for `--external`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum External {
    /// For a dump: a mount at `path` in the container gets the name `name`. For a restore: the
    /// mount named `path` is made from `name`, a path on the host.
    Mount {
        /// Dump: path in the container. Restore: name of the mount.
        path: String,
        /// Dump: name of the mount. Restore: path on the host.
        name: String,
    },
    /// A namespace that is not saved.
    Namespace {
        /// `net` or `pid`.
        kind: &'static str,
        /// Its inode.
        inode: u64,
        /// Name for the restore.
        name: &'static str,
    },
    /// An open file of a mount that the container does not have, in the form of criu/files-reg.c,
    /// CRIU 4.2.
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
