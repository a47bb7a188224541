//! Dumping a container.
//!
//! [`begin`] freezes the container and writes its images. [`HeldCheckpoint`] then commits or rolls
//! back: a plain `checkpoint` commits at once, a migration transfers the images first.
//!
//! # Freezing
//!
//! When CRIU freezes a cgroup itself, it polls for the result every 100 ms. So rcm freezes the
//! cgroup, when CRIU reports that its start-up is over, and CRIU finds it frozen. But CRIU also
//! freezes it again when it resumes the tasks. If rcm has been killed by then, nobody would thaw
//! it. Two things keep a container from staying frozen:
//!
//! * CRIU gets the freezer's directory as `/proc/PID/fd/N` of this process. When rcm is dead, this
//!   path is gone and CRIU cannot freeze again. (CRIU ignores the failure: criu/seize.c,
//!   `pstree_switch_state`, CRIU 4.2.)
//! * Until CRIU has stopped the tasks itself and thawed the cgroup, a
//!   [`ThawGuard`](crate::sys::thaw_guard::ThawGuard) thaws it if rcm dies.

mod held;
mod stages;

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::criu::{
    self, Common, Criu, DumpOptions, ManageCgroups, NetworkLockMethod, PageServer, Version,
};
use crate::runtime::container::Container;
use crate::runtime::criu_flags::CriuFlags;
use crate::runtime::error::{Error, Result};
use crate::runtime::image_extras::{self, Details};
use crate::runtime::linux::cgroup::Cgroup;
use crate::runtime::linux::external::{self, Opened};
use crate::runtime::linux::network::{self, Departure};
use crate::runtime::process::{criu_process, stdio};
use crate::runtime::spec::namespaces::Namespaces;
use crate::runtime::status::Status;
use stages::{DumpStages, Recorded, thaw_after};

pub use held::HeldCheckpoint;

/// Time for a CRIU whose connection was closed to resume the container.
const ROLL_BACK_DUR: Duration = Duration::from_secs(5);

/// Options of a dump.
#[derive(Debug, Default)]
pub struct CheckpointOptions {
    /// Options that restores have, too.
    pub flags: CriuFlags,
    /// Path of the images that these build on, relative to the image path.
    pub parent_path: Option<PathBuf>,
    /// Whether the container runs on after the dump.
    pub leave_running: bool,
    /// Whether TCP connections that are not established yet are left out.
    pub tcp_skip_in_flight: bool,
    /// Size limit, in bytes, for deleted files that go into the images. `None` for CRIU's default
    /// of 1 MiB.
    pub ghost_limit_bytes: Option<u32>,
    /// Page server that gets the memory instead of the image directory.
    pub page_server: Option<PageServer>,
    /// Connection to a page server of this process.
    pub page_connection: Option<Arc<OwnedFd>>,
    /// Descriptor that gets a zero byte when the page server of a lazy dump listens.
    pub status_fd: Option<OwnedFd>,
    /// Limit on each stage of the dump; `None` for no limit.
    pub answer_limit_dur: Option<Duration>,
    /// Whether the container goes to another host. Its network namespace stays here, and no packet
    /// passes there from the freeze until the commit or the rollback.
    pub moves: bool,
}

/// Freezes the container and dumps it. The result commits or rolls back.
///
/// # Errors
/// [`Error::NotCheckpointable`], or CRIU's first error. The container runs on (or stays paused) in
/// these cases.
pub fn begin(
    criu: &Criu,
    container: &Container,
    options: CheckpointOptions,
) -> Result<HeldCheckpoint> {
    let PreparedDump {
        dump,
        stages,
        tmpfs,
    } = Subject::of(criu, container, &options)?.dump(options)?;
    let paused = stages.paused;
    let cgroup = stages.cgroup.clone();
    let mut held = match criu.dump(&dump, stages) {
        Ok(held) => held,
        Err(error) => {
            // CRIU may have left it frozen; or rcm froze it, and CRIU did not get to thaw it.
            thaw_after(&cgroup, paused, container.id());
            return Err(given_up(container, error));
        }
    };
    let held = HeldCheckpoint {
        may_run_on: dump.leave_running || dump.common.lazy_pages,
        container: container.clone(),
        init: held.notify_mut().init,
        stopped_at: held.notify_mut().stopped_at,
        frozen_at: held.notify_mut().frozen_at,
        held: Some(held),
    };
    if dump.parent_images.is_some() {
        let images = &dump.common.images_dir;
        // If CRIU does not accept the parent, it makes a complete dump without an error.
        if fs::symlink_metadata(images.join("parent")).is_err() {
            let path = images.clone();
            held.refuse();
            return Err(Error::NotIncremental { path });
        }
    }
    // After the dump, because CRIU may give names to deleted files in a tmpfs. The container is
    // still frozen, so the contents match the images.
    match external::save_tmpfs(&tmpfs, &dump.common.images_dir) {
        Ok(()) => Ok(held),
        Err(error) => {
            held.refuse();
            Err(error)
        }
    }
}

/// Returns the error of a failed dump, which tells whether CRIU still holds the container.
fn given_up(container: &Container, source: criu::Error) -> Error {
    let id = container.id();
    let ended = match source {
        criu::Error::Timeout { .. } => {
            criu_process::wait_within(container.dir(), id, ROLL_BACK_DUR)
        }
        _ => return source.into(),
    };
    match ended {
        Err(Error::CriuAtWork { id, pid }) => Error::CriuHolds { id, pid, source },
        _ => source.into(),
    }
}

/// Copies the memory of the running container, so that a later dump with this one as its parent has
/// less to copy.
///
/// # Errors
/// [`Error::NotCheckpointable`], [`criu::Error::Lacks`] on a kernel without memory tracking, or
/// CRIU's first error.
pub fn pre_dump(criu: &Criu, container: &Container, options: CheckpointOptions) -> Result<()> {
    criu.require_memory_tracking()?;
    let dump = Subject::of(criu, container, &options)?.pre_dump(options)?;
    criu.pre_dump(&dump, &mut Recorded(container))?;
    Ok(())
}

/// Container that can be dumped, with everything that a dump needs of it.
struct Subject<'a> {
    criu: &'a Criu,
    container: &'a Container,
    init: Pid,
    spec: Spec,
    namespaces: Namespaces,
    cgroup: Cgroup,
    status: Status,
}

/// Complete dump that is ready to begin.
struct PreparedDump {
    dump: DumpOptions,
    stages: DumpStages,
    /// Mounts that rcm saves itself.
    tmpfs: Vec<Opened>,
}

impl<'a> Subject<'a> {
    /// Checks that the container executes and that this CRIU supports the options, and makes the
    /// directories.
    fn of(criu: &'a Criu, container: &'a Container, options: &CheckpointOptions) -> Result<Self> {
        let status = container.status();
        if !matches!(status, Status::Running | Status::Paused) {
            return Err(Error::NotCheckpointable {
                id: container.id().to_owned(),
                status,
            });
        }
        let init = container.live_init()?;
        let spec = container.spec()?;
        let flags = &options.flags;
        if flags.lazy_pages {
            criu.require_lazy_dump()?;
        }
        flags.make_image_dir()?;
        flags.make_work_dir()?;
        if let Some(parent) = &options.parent_path {
            check_parent(&flags.image_path, parent)?;
            criu.require_memory_tracking()?;
        }
        Ok(Self {
            criu,
            container,
            init,
            namespaces: Namespaces::of(&spec),
            spec,
            cgroup: container.cgroup(),
            status,
        })
    }

    /// Prepares a copy of the memory while the container executes. It has no answer limit, because
    /// nothing is locked or frozen.
    fn pre_dump(&self, options: CheckpointOptions) -> Result<DumpOptions> {
        let mut common = self.common(&options.flags);
        self.leave_namespaces(&mut common, false)?;
        self.leave_cgroups(&options.flags, &mut common);
        Ok(self.dump_options(common, options))
    }

    /// Prepares a dump that can be restored.
    fn dump(&self, mut options: CheckpointOptions) -> Result<PreparedDump> {
        let tcp_established = options.flags.choices.tcp_established;
        let mut common = self.common(&options.flags);
        common.answer_limit_dur = options.answer_limit_dur;
        let departure = options
            .moves
            .then(|| Departure::prepare(self.criu, self.init, &self.namespaces, tcp_established))
            .flatten();
        // rcm's own lock replaces CRIU's, which costs several program starts within the freeze.
        common.network_lock = match departure {
            Some(_) => Some(NetworkLockMethod::Skip),
            None => network::criu_lock(self.criu, self.init, &self.namespaces, tcp_established),
        };
        // If CRIU locks the network namespace, it has to enter it. So only a namespace that CRIU
        // need not lock can be left out.
        let leave_network = options.moves
            && common.network_lock == Some(NetworkLockMethod::Skip)
            && network::is_left_out(&self.namespaces);
        let network = leave_network
            .then(|| network::of_process(self.init))
            .transpose()
            .map_err(Error::file(
                "use the namespace",
                format!("/proc/{}/ns/net", self.init),
            ))?;
        self.leave_namespaces(&mut common, leave_network)?;
        let mut details = Details {
            network_left_out: leave_network,
            cgroups_left_out: self.leave_cgroups(&options.flags, &mut common),
            ..Details::default()
        };
        let tmpfs = self.leave_mounts(&mut common, &mut details, options.moves)?;
        self.write_descriptors(&options.flags.image_path)?;
        let mut freezer = None;
        if !self.cgroup.is_v2() || self.criu.version() >= Version::FREEZER_V2 {
            freezer = open_freezer(&self.cgroup)?;
        }
        let stages = DumpStages {
            container: self.container.clone(),
            init: self.init,
            images: options.flags.image_path.clone(),
            cgroup: self.cgroup.clone(),
            paused: self.status == Status::Paused,
            details,
            asks_for_files: self.criu.version() >= Version::EXTERNAL_FILES_QUERY,
            freezer,
            departure,
            guard: None,
            stopped_at: Instant::now(),
            frozen_at: Instant::now(),
            status_fd: options.status_fd.take(),
        };
        let dump = DumpOptions {
            freeze_cgroup: stages.freezer.as_ref().map(path_through_this_process),
            network: network.map(|network| Arc::new(network.into())),
            ..self.dump_options(common, options)
        };
        Ok(PreparedDump {
            dump,
            stages,
            tmpfs,
        })
    }

    fn common(&self, flags: &CriuFlags) -> Common {
        let mut common = flags.common(self.container, &self.spec);
        common.root = Some(self.container.rootfs().to_path_buf());
        common
    }

    fn dump_options(&self, common: Common, options: CheckpointOptions) -> DumpOptions {
        DumpOptions {
            common,
            pid: self.init.as_raw(),
            leave_running: options.leave_running,
            tcp_skip_in_flight: options.tcp_skip_in_flight,
            ghost_limit_bytes: options.ghost_limit_bytes,
            track_memory: options.parent_path.is_some(),
            parent_images: options.parent_path,
            page_server: options.page_server,
            page_connection: options.page_connection,
            ..DumpOptions::default()
        }
    }

    /// Leaves out the namespaces that exist without the container.
    fn leave_namespaces(&self, common: &mut Common, leave_network: bool) -> Result<()> {
        common.external = external::dumped_namespaces(self.init, &self.namespaces, leave_network)?;
        if !common.external.is_empty() {
            self.criu.require(
                Version::EXTERNAL_PID_NAMESPACE,
                "a container in an existing namespace",
            )?;
        }
        Ok(())
    }

    /// Leaves out the control groups if a restore makes them anyway. Returns whether it did.
    fn leave_cgroups(&self, flags: &CriuFlags, common: &mut Common) -> bool {
        let leave = flags.choices.manage_cgroups() == ManageCgroups::Default
            && is_plain(&self.namespaces, &self.cgroup);
        if leave {
            common.manage_cgroups = ManageCgroups::Ignore;
        }
        leave
    }

    /// Leaves out the mounts that come from the host, and opens the tmpfs that rcm saves itself.
    fn leave_mounts(
        &self,
        common: &mut Common,
        details: &mut Details,
        moves: bool,
    ) -> Result<Vec<Opened>> {
        details.mounts = external::host_mounts(
            self.init,
            &self.spec,
            &self.namespaces,
            self.container.bundle(),
            self.cgroup.paths(),
            moves,
        )?;
        // Open the tmpfs mounts now, while the container executes. When it is frozen, they are only
        // read.
        let tmpfs = external::open_tmpfs(self.init, &mut details.mounts)?;
        common
            .external
            .extend(external::dumped_mounts(&details.mounts));
        Ok(tmpfs)
    }

    fn write_descriptors(&self, images: &Path) -> Result<()> {
        let recorded = &self.container.record().descriptors;
        if recorded.is_empty() {
            image_extras::write_descriptors(images, &stdio::descriptors(self.init))
        } else {
            image_extras::write_descriptors(images, recorded)
        }
    }
}

/// Returns whether the container has no control groups but those that a restore makes for it,
/// limits included.
///
/// If so, CRIU can skip control groups, which saves 20 ms of the freeze. CRIU also does not save
/// groups of others: on a hybrid host every container is in the root of the v2 hierarchy. A cgroup
/// namespace must be restored by CRIU, along with the groups.
fn is_plain(namespaces: &Namespaces, cgroup: &Cgroup) -> bool {
    let has_groups_below = |dir: &PathBuf| {
        fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
    };
    !namespaces.has(LinuxNamespaceType::Cgroup)
        && cgroup.freezer_dir().is_ok()
        && !cgroup.paths().values().any(has_groups_below)
}

fn check_parent(images: &Path, parent: &Path) -> Result<()> {
    if parent.is_absolute() {
        return Err(Error::AbsoluteParent {
            path: parent.to_path_buf(),
        });
    }
    let path = images.join(parent);
    // Every dump and pre-dump has this file.
    let inventory = path.join("inventory.img");
    fs::metadata(&inventory)
        .map(drop)
        .map_err(Error::file("find images of a --parent-path in", path))
}

fn open_freezer(cgroup: &Cgroup) -> Result<Option<File>> {
    match cgroup.freezer_dir() {
        Ok(dir) => File::open(dir).map(Some).map_err(Error::file("open", dir)),
        // Without a freezer, CRIU stops the tasks one by one.
        Err(_) => Ok(None),
    }
}

fn path_through_this_process(dir: &File) -> PathBuf {
    PathBuf::from(format!(
        "/proc/{}/fd/{}",
        std::process::id(),
        dir.as_raw_fd()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_relative_and_there() {
        let images = tempfile::tempdir().unwrap();
        assert!(matches!(
            check_parent(images.path(), Path::new("/abs")),
            Err(Error::AbsoluteParent { .. })
        ));
        assert!(check_parent(images.path(), Path::new("../none")).is_err());
        fs::create_dir(images.path().join("1")).unwrap();
        fs::write(images.path().join("1/inventory.img"), "").unwrap();
        check_parent(images.path(), Path::new("1")).unwrap();
    }
}
