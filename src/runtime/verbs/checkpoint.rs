//! Dumping a container.
//!
//! [`begin`] stops the container and writes its images, and [`HeldCheckpoint`] decides what becomes of it: a plain `checkpoint` commits at once, a
//! migration ships the images first.
//!
//! # Freezing
//!
//! CRIU's own way to freeze a cgroup looks every 100 ms whether it is done. So rcm freezes it, when CRIU reports that its start-up is over, and CRIU
//! finds it frozen. But CRIU then also freezes it again when it lets the tasks go, and if rcm has been killed nobody would thaw it. Two things keep a
//! container from staying frozen so:
//!
//! * CRIU gets the freezer's directory as `/proc/PID/fd/N` of this process. When rcm is dead the path is, too, and CRIU cannot freeze again.
//!   (Its result is not looked at, criu/seize.c `pstree_switch_state`.)
//! * Until CRIU has stopped the tasks itself and thawed the cgroup, a [`ThawGuard`] thaws if rcm dies.

mod held;

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::criu::error::CallbackError;
use crate::criu::{
    self, Criu, DumpOptions, ManageCgroups, NetworkLockMethod, Notification, Notify, PageServer,
    Reply, Version,
};
use crate::runtime::container::{Container, Status};
use crate::runtime::criu_flags::CriuFlags;
use crate::runtime::error::{Error, Result};
use crate::runtime::image_extras::{self, Details};
use crate::runtime::linux::cgroup::Cgroup;
use crate::runtime::linux::external::{self, Opened};
use crate::runtime::linux::host_file;
use crate::runtime::linux::network::{self, Departure};
use crate::runtime::linux::quiesce;
use crate::runtime::process::criu_process;
use crate::runtime::spec::lower;
use crate::sys::thaw_guard::ThawGuard;

pub use held::HeldCheckpoint;

/// How long a CRIU that was hung up on may take to let the container go.
const ROLL_BACK_DUR: Duration = Duration::from_secs(5);

/// How a container is dumped.
#[derive(Debug, Default)]
pub struct CheckpointOptions {
    /// What restores have, too.
    pub flags: CriuFlags,
    /// The images that these build on, relative to the image path.
    pub parent_path: Option<PathBuf>,
    /// Let the container run on.
    pub leave_running: bool,
    /// Leave out TCP connections that are not yet established.
    pub tcp_skip_in_flight: bool,
    /// Give deleted but open files a temporary name.
    pub link_remap: bool,
    /// The largest deleted file, in bytes, that goes into the images. `None`: CRIU's 1 MiB.
    pub ghost_limit_bytes: Option<u32>,
    /// Where memory goes instead of the image directory.
    pub page_server: Option<PageServer>,
    /// A connection to a page server of this process.
    pub page_connection: Option<Arc<OwnedFd>>,
    /// Gets a zero byte when a lazy dump's page server listens.
    pub status_fd: Option<OwnedFd>,
    /// How long CRIU may take for each stage of the dump; `None` for as long as it takes.
    pub answer_limit_dur: Option<Duration>,
    /// The container goes to another host: its network namespace stays, and no packet passes there from the freeze until it is decided.
    pub moves: bool,
}

/// Stops the container and dumps it; the result decides what becomes of it.
///
/// # Errors
/// [`Error::NotCheckpointable`], CRIU's first error. The container runs on (or stays paused) then.
pub fn begin(
    criu: &Criu,
    container: &Container,
    options: CheckpointOptions,
) -> Result<HeldCheckpoint> {
    let prepared = prepare(criu, container, options, true)?;
    let (dump, stages, tmpfs) = (prepared.dump, prepared.stages, prepared.tmpfs);
    let paused = stages.paused;
    let cgroup = stages.cgroup.clone();
    let mut held = match criu.dump(&dump, stages) {
        Ok(held) => held,
        Err(error) => {
            // CRIU may have left it frozen, or rcm before CRIU came to thaw it.
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
        // A parent that CRIU does not accept makes a complete dump without a word.
        if fs::symlink_metadata(images.join("parent")).is_err() {
            let path = images.clone();
            held.refuse();
            return Err(Error::NotIncremental { path });
        }
    }
    match external::save_tmpfs(&tmpfs, &dump.common.images_dir) {
        Ok(()) => Ok(held),
        Err(error) => {
            held.refuse();
            Err(error)
        }
    }
}

/// The error of a dump that has failed: does CRIU still hold the container?
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

/// Copies the memory of the running container, so that a later dump with this one as its parent has less to copy.
///
/// # Errors
/// [`Error::NotCheckpointable`], [`criu::Error::Lacks`] on a kernel without memory tracking, CRIU's first error.
pub fn pre_dump(criu: &Criu, container: &Container, options: CheckpointOptions) -> Result<()> {
    criu.require_memory_tracking()?;
    let prepared = prepare(criu, container, options, false)?;
    criu.pre_dump(&prepared.dump, &mut Recorded(container))?;
    Ok(())
}

struct Prepared {
    dump: DumpOptions,
    stages: Stages,
    /// What rcm saves itself.
    tmpfs: Vec<Opened>,
}

fn prepare(
    criu: &Criu,
    container: &Container,
    options: CheckpointOptions,
    complete: bool,
) -> Result<Prepared> {
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
    let track_memory = match &options.parent_path {
        Some(parent) => {
            check_parent(&flags.image_path, parent)?;
            criu.require_memory_tracking()?;
            true
        }
        None => false,
    };

    let mut common = flags.common(container, &spec);
    if complete {
        // The copies of running memory take as long as they take.
        common.answer_limit_dur = options.answer_limit_dur;
    }
    common.root = Some(container.rootfs().to_path_buf());
    let (mut freezer, mut departure, mut tmpfs) = (None, None, Vec::new());
    if complete {
        if options.moves {
            departure = Departure::prepare(criu, init, &spec, flags.tcp_established);
        }
        common.network_lock = match departure {
            Some(_) => Some(NetworkLockMethod::Skip),
            None => network::criu_lock(criu, init, &spec, flags.tcp_established),
        };
    }
    // A namespace that CRIU must lock is one that it has to see.
    let leave_network = options.moves
        && common.network_lock == Some(NetworkLockMethod::Skip)
        && network::is_left_out(&spec);
    let network = leave_network
        .then(|| network::of_process(init))
        .transpose()
        .map_err(Error::file(
            "use the namespace",
            format!("/proc/{init}/ns/net"),
        ))?;
    common.external = external::dumped_namespaces(init, &spec, leave_network)?;
    if !common.external.is_empty() {
        criu.require(
            Version::EXTERNAL_PID_NAMESPACE,
            "a container in an existing namespace",
        )?;
    }
    let mut details = Details::default();
    let cgroup = container.cgroup();
    if flags.manage_cgroups == ManageCgroups::Default && is_plain(&spec, &cgroup) {
        common.manage_cgroups = ManageCgroups::Ignore;
        details.cgroups_left_out = true;
    }
    details.network_left_out = leave_network;
    if complete {
        details.mounts = external::host_mounts(
            init,
            &spec,
            container.bundle(),
            cgroup.paths(),
            options.moves,
        )?;
        tmpfs = external::open_tmpfs(init, &mut details.mounts)?;
        common
            .external
            .extend(external::dumped_mounts(&details.mounts));
        let descriptors = match container.record().descriptors.is_empty() {
            true => super::create::descriptors(init),
            false => container.record().descriptors.clone(),
        };
        image_extras::write_descriptors(&flags.image_path, &descriptors)?;
        if !cgroup.is_v2() || criu.version() >= Version::FREEZER_V2 {
            freezer = open_freezer(&cgroup)?;
        }
    }
    let dump = DumpOptions {
        common,
        pid: init.as_raw(),
        leave_running: options.leave_running,
        tcp_skip_in_flight: options.tcp_skip_in_flight,
        link_remap: options.link_remap,
        ghost_limit_bytes: options.ghost_limit_bytes,
        parent_images: options.parent_path,
        track_memory,
        freeze_cgroup: freezer.as_ref().map(path_through_this_process),
        page_server: options.page_server,
        page_connection: options.page_connection,
        network: network.map(|network| Arc::new(network.into())),
        ..DumpOptions::default()
    };
    Ok(Prepared {
        dump,
        tmpfs,
        stages: Stages {
            container: container.clone(),
            init,
            images: options.flags.image_path,
            cgroup,
            paused: status == Status::Paused,
            details,
            asks_for_files: !complete || criu.version() >= Version::EXTERNAL_FILES_QUERY,
            freezer,
            departure,
            guard: None,
            stopped_at: Instant::now(),
            frozen_at: Instant::now(),
            status_fd: options.status_fd,
        },
    })
}

/// Whether the container has no control group but the one that a restore makes for it, limits included. Then CRIU need not look at control groups, which
/// takes it 20 ms of the freeze, and does not save those of others: on a hybrid set-up every container is in the root of the v2 hierarchy.
///
/// A cgroup namespace is made by CRIU along with the groups.
fn is_plain(spec: &Spec, cgroup: &Cgroup) -> bool {
    let has_groups_below = |dir: &PathBuf| {
        fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
    };
    !lower::has_namespace(spec, LinuxNamespaceType::Cgroup)
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
    // What every dump and pre-dump has.
    let inventory = path.join("inventory.img");
    fs::metadata(&inventory)
        .map(drop)
        .map_err(Error::file("find images of a --parent-path in", path))
}

fn open_freezer(cgroup: &Cgroup) -> Result<Option<File>> {
    match cgroup.freezer_dir() {
        Ok(dir) => File::open(dir).map(Some).map_err(Error::file("open", dir)),
        // Without one CRIU stops the tasks one by one.
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

/// Thaws what a failed or refused dump may have left frozen.
fn thaw_after(cgroup: &Cgroup, paused: bool, id: &str) {
    if paused || cgroup.freezer_dir().is_err() {
        return;
    }
    if let Err(error) = cgroup.thaw() {
        tracing::error!(
            "container {id} may still be frozen: {}; `rcm resume {id}` thaws it",
            crate::error::chain(&error)
        );
    }
}

/// What rcm does at the stages of a dump.
#[derive(Debug)]
struct Stages {
    container: Container,
    init: Pid,
    images: PathBuf,
    cgroup: Cgroup,
    /// Whether the container was paused before the dump.
    paused: bool,
    details: Details,
    /// Whether CRIU asks for files that are not to be saved. One that does not can save none that lies outside the container's mounts.
    asks_for_files: bool,
    /// As long as this is open CRIU finds the freezer.
    freezer: Option<File>,
    guard: Option<ThawGuard>,
    /// Lets no packet through from the freeze on.
    departure: Option<Departure>,
    /// Just before the first task stops, as far as rcm stops them.
    stopped_at: Instant,
    /// When rcm had stopped all of them.
    frozen_at: Instant,
    status_fd: Option<OwnedFd>,
}

impl Stages {
    fn freeze(&mut self) -> Result<(), CallbackError> {
        if self.freezer.is_none() || self.paused {
            return Ok(());
        }
        let dir = self.cgroup.freezer_dir()?;
        self.guard = Some(match self.cgroup.is_v2() {
            true => ThawGuard::start(&dir.join("cgroup.freeze"), b"0")?,
            false => ThawGuard::start(&dir.join("freezer.state"), b"THAWED")?,
        });
        self.stopped_at = quiesce::freeze(&self.cgroup)?;
        self.frozen_at = Instant::now();
        Ok(())
    }

    fn find_files(&mut self) -> Result<Reply, CallbackError> {
        // CRIU has stopped the tasks itself and thawed the cgroup.
        self.guard = None;
        let processes = self.bar_ends()?;
        let (external, files) = host_file::find(self.init, &processes)?;
        self.details.files = files;
        self.details.write(&self.images)?;
        Ok(Reply { external })
    }

    /// Returns the processes, which stand still.
    fn bar_ends(&mut self) -> Result<Vec<Pid>, CallbackError> {
        let processes = match self.cgroup.pids()? {
            none if none.is_empty() => vec![self.init],
            processes => processes,
        };
        if let Some(departure) = &mut self.departure {
            self.details.tcp_ends = departure.bar_ends(&processes)?;
        }
        Ok(processes)
    }
}

/// A conversation of which nothing but its worker matters.
struct Recorded<'a>(&'a Container);

impl Notify for Recorded<'_> {
    fn started(&mut self, pid: Pid) -> Result<(), CallbackError> {
        criu_process::record(self.0, pid)
    }

    fn on(&mut self, _: Notification) -> Result<Reply, CallbackError> {
        Ok(Reply::default())
    }
}

impl Notify for Stages {
    fn started(&mut self, pid: Pid) -> Result<(), CallbackError> {
        criu_process::record(&self.container, pid)
    }

    fn on(&mut self, notification: Notification) -> Result<Reply, CallbackError> {
        match notification {
            Notification::PreDump => {
                if let Some(departure) = &self.departure {
                    departure.bar()?;
                }
                self.freeze()?;
                if !self.asks_for_files {
                    self.bar_ends()?;
                    self.details.write(&self.images)?;
                }
            }
            Notification::QueryExternalFiles => return self.find_files(),
            Notification::StatusReady => {
                if let Some(fd) = self.status_fd.take() {
                    File::from(fd).write_all(&[0])?;
                }
            }
            _ => {}
        }
        Ok(Reply::default())
    }
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
