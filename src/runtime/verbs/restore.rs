//! Restoring a container.
//!
//! [`begin`] restores everything but lets nothing execute, and [`HeldRestore`] decides: a plain `restore` resumes at once, the destination of a
//! migration when the source has committed.

mod cgroup;

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::Utc;
use nix::unistd::Pid;
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::create::{self, CreateRequest, cgroup_error};
use super::{delete, start};
use crate::criu::error::CallbackError;
use crate::criu::{
    self, Criu, InheritedFd, ManageCgroups, Notification, Notify, Reply, RestoreOptions, Version,
};
use crate::error::chain;
use crate::runtime::Cgroup;
use crate::runtime::container::{Container, Status, validate_id};
use crate::runtime::criu_flags::CriuFlags;
use crate::runtime::error::{Error, Result};
use crate::runtime::image_extras::{self, Details};
use crate::runtime::linux::external;
use crate::runtime::linux::mounts::{self, Prepared};
use crate::runtime::linux::network::{Arrival, Given};
use crate::runtime::linux::resctrl::Group;
use crate::runtime::process::criu_process;
use crate::runtime::process::terminal::Master;
use crate::runtime::spec::{self, lower};
use crate::sys;
use crate::sys::announce::Announcement;
use crate::sys::process::ProcessId;
use crate::sys::rooted::Root;

/// Where CRIU alone sees the root file system, below the container's directory.
const CRIU_ROOT: &str = "criu-root";

/// What a container is restored from.
#[derive(Debug, Clone, Default)]
pub struct RestoreRequest {
    /// The state directory.
    pub root: PathBuf,
    /// The container's name.
    pub id: String,
    /// The bundle.
    pub bundle: PathBuf,
    /// Whether systemd manages the cgroup.
    pub systemd_cgroup: bool,
    /// The container's cgroup is this and its name, whatever its spec says.
    pub cgroup_parent: Option<PathBuf>,
    /// Where the terminal's master goes if rcm does not stay.
    pub console_socket: Option<PathBuf>,
    /// The file that gets the first process's id, just before it executes.
    pub pid_file: Option<PathBuf>,
    /// As for `create`.
    pub no_pivot: bool,
    /// Whether rcm leaves the container to itself.
    pub detach: bool,
    /// What checkpoints have, too.
    pub flags: CriuFlags,
    /// Another LSM profile, `TYPE:NAME`.
    pub lsm_profile: Option<String>,
    /// Another LSM mount context.
    pub lsm_mount_context: Option<String>,
    /// The network namespace, whatever the spec says.
    pub network_namespace: Option<PathBuf>,
    /// How long CRIU may take for each stage of the restore; `None` for as long as it takes.
    pub answer_limit_dur: Option<Duration>,
    /// The container comes from another host: no packet reaches it before it goes on, and then its link is told where its addresses are.
    pub moves: bool,
}

/// A restored container that executes.
#[derive(Debug)]
pub struct Restored {
    /// The container.
    pub container: Container,
    /// Its first process, a child of this one.
    pub pid: Pid,
    /// The terminal, if it has one and nobody else got it.
    pub terminal: Option<Master>,
    /// What tells its link where its addresses are now, if it came from another host.
    pub announcement: Option<Announcement>,
}

/// Restores a container up to its first instruction. On failure nothing of it is left behind.
///
/// # Errors
/// [`Error`]; CRIU's first error among them.
pub fn begin(criu: &Criu, request: &RestoreRequest) -> Result<HeldRestore> {
    validate_id(&request.id)?;
    let bundle = fs::canonicalize(&request.bundle)
        .map_err(Error::file("use the bundle", &request.bundle))?;
    let config = bundle.join("config.json");
    let mut text = spec::read(&config)?;
    if let Some(path) = &request.network_namespace {
        text = spec::with_network(&config, &text, path)?;
    }
    let mut given = spec::parse(&config, &text)?;
    lower::validate(&given)?;
    let wants_terminal = create::has_terminal(&given);
    let as_created = create_request(request);
    create::check_console(&as_created, wants_terminal)?;
    if request.systemd_cgroup {
        create::check_systemd()?;
    }
    fs::metadata(&request.flags.image_path)
        .map_err(Error::file("use the images in", &request.flags.image_path))?;
    if let Some(parent) = &request.cgroup_parent
        && let Some(linux) = given.linux_mut()
    {
        linux.set_cgroups_path(Some(parent.join(&request.id)));
    }
    let lowered = lower::lower(given, &request.id, &bundle, request.systemd_cgroup)?;
    let record = create::new_record(&as_created, &bundle, &lowered)?;
    let container = create::claim(&request.root, record, &text)?;
    match restore(criu, request, &container, &lowered, wants_terminal) {
        Ok(held) => Ok(HeldRestore {
            container,
            held: Some(held),
            pid_file: request.pid_file.clone(),
        }),
        Err(error) => {
            discard(&container);
            Err(error)
        }
    }
}

/// The checks and the record of a creation serve here, too.
fn create_request(request: &RestoreRequest) -> CreateRequest {
    CreateRequest {
        root: request.root.clone(),
        id: request.id.clone(),
        bundle: request.bundle.clone(),
        systemd_cgroup: request.systemd_cgroup,
        rootless: false,
        notifies: false,
        console_socket: request.console_socket.clone(),
        pidfd_socket: None,
        pid_file: None,
        no_pivot: request.no_pivot,
        no_new_keyring: true,
        preserve_fds: 0,
        detach: request.detach,
    }
}

fn discard(container: &Container) {
    if let Err(left) = delete::discard(container) {
        tracing::warn!("cleaning up container {}: {}", container.id(), chain(&left));
    }
}

fn restore(
    criu: &Criu,
    request: &RestoreRequest,
    container: &Container,
    spec: &Spec,
    wants_terminal: bool,
) -> Result<criu::PausedRestore<Stages>> {
    let flags = &request.flags;
    if flags.lazy_pages {
        criu.require_lazy_pages()?;
    }
    if request.lsm_profile.is_some() {
        criu.require(Version::LSM, "--lsm-profile")?;
    }
    if request.lsm_mount_context.is_some() {
        criu.require(Version::LSM, "--lsm-mount-context")?;
    }
    flags.make_work_dir()?;
    let images = &flags.image_path;
    let details = Details::read(images)?;
    external::make_mount_points(spec, container.bundle(), container.rootfs())?;
    admit_user_namespace(images, spec)?;

    let criu_root = container.dir().join(CRIU_ROOT);
    fs::create_dir(&criu_root).map_err(Error::file("create", &criu_root))?;
    let masks = external::make_masks(&details.mounts, container.dir())?;
    let (outer_namespaces, join_namespaces) = external::restored_namespaces(spec)?;
    let mut inherited = Vec::new();
    let (arrival, given) = Arrival::prepare(request, spec, &details)?;
    let mut network = None;
    match given {
        Some(Given::Around(namespace)) => network = Some(namespace),
        Some(Given::Inherited(namespace)) => inherited.push(namespace),
        None => {}
    }
    for (key, path) in outer_namespaces {
        criu.require(
            Version::EXTERNAL_PID_NAMESPACE,
            "a container in an existing namespace",
        )?;
        let file = File::open(&path).map_err(Error::file("use the namespace", &path))?;
        inherited.push(InheritedFd {
            key: key.to_owned(),
            fd: file.into(),
        });
    }
    inherited.extend(inherited_pipes(images)?);
    let own_user = lower::has_namespace(spec, LinuxNamespaceType::User);
    for file in &details.files {
        inherited.push(file.inherit(own_user)?);
    }

    let rootfs = Root::open(container.rootfs()).map_err(Error::file("open", container.rootfs()))?;
    let mut prepared = Prepared::new(spec, container.bundle(), &rootfs, &details.mounts)?;
    for (path, tree) in external::make_tmpfs(&details.mounts, images)? {
        prepared.add(path, tree)?;
    }
    let mut common = flags.common(container, spec);
    common.answer_limit_dur = request.answer_limit_dur;
    common.root = Some(criu_root.clone());
    if details.cgroups_left_out && flags.manage_cgroups == ManageCgroups::Default {
        common.manage_cgroups = ManageCgroups::Ignore;
    }
    let options = RestoreOptions {
        common,
        rootfs: Some(container.rootfs().to_path_buf()),
        trees: prepared.trees,
        inherited,
        join_namespaces,
        network,
        lsm_profile: request.lsm_profile.clone(),
        lsm_mount_context: request.lsm_mount_context.clone(),
        stdin: (flags.shell_job && !wants_terminal)
            .then(|| copy(std::io::stdin().as_fd()))
            .transpose()?,
        ..RestoreOptions::default()
    };
    let stages = Stages {
        container: container.clone(),
        console_socket: request
            .console_socket
            .as_deref()
            .map(|path| create::connect("console", path))
            .transpose()?,
        wants_terminal,
        terminal: None,
        arrival,
        own_network: lower::namespace(spec, LinuxNamespaceType::Network)
            .is_some_and(|namespace| namespace.path().is_none()),
    };
    let prepare = |pid: i32, options: &mut RestoreOptions| -> Result<(), CallbackError> {
        let cgroup = cgroup::enter(container, spec, Pid::from_raw(pid))?;
        if let Some(rdt) = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.intel_rdt().as_ref())
        {
            // What CRIU restores inherits it.
            Group::join(container.id(), Pid::from_raw(pid), rdt)?;
        }
        let mut sources = external::restored_sources(
            &details.mounts,
            spec,
            container.bundle(),
            &rootfs,
            &external::mounts("self")?,
            cgroup.paths(),
            &masks,
        );
        sources.extend(prepared.sources);
        options.common.external = external::restored_mounts(sources);
        options.cgroup_roots = cgroup::roots(pid)?;
        Ok(())
    };
    // CRIU moves the old root onto `tmp`, or onto a directory that it makes, which a read-only root does not let it (criu/mount.c,
    // cr_pivot_root).
    let put_old = container.rootfs().join("tmp");
    let made_put_old = fs::create_dir(&put_old).is_ok();
    let held = criu.restore(options, stages, prepare);
    if made_put_old {
        // The image shall be as it was; an empty directory that stays harms nobody.
        let _ = fs::remove_dir(&put_old);
    }
    // It was only ever mounted on for CRIU.
    let removed = fs::remove_dir(&criu_root).map_err(Error::file("remove", &criu_root));
    let held = held?;
    removed?;
    mounts::complete(held.pid(), spec)?;
    Ok(held)
}

/// In a user namespace the tasks read their images themselves, as the namespace's root. The files are readable (criu/include/crtools.h,
/// `CR_FD_PERM`); their directory must let that group pass, and nobody else.
fn admit_user_namespace(images: &Path, spec: &Spec) -> Result<()> {
    let linux = spec.linux().as_ref();
    let root_group = linux
        .and_then(|linux| linux.gid_mappings().as_ref())
        .into_iter()
        .flatten()
        .find(|mapping| mapping.container_id() == 0 && mapping.host_id() != 0)
        .map(oci_spec::runtime::LinuxIdMapping::host_id);
    let Some(group) = root_group else {
        return Ok(());
    };
    std::os::unix::fs::chown(images, None, Some(group))
        .and_then(|()| fs::set_permissions(images, fs::Permissions::from_mode(0o710)))
        .map_err(Error::file("let the container's root pass", images))
}

/// The pipes that were stdin, stdout and stderr are this process's now, as with runc.
fn inherited_pipes(images: &Path) -> Result<Vec<InheritedFd>> {
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let own = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    let mut inherited: Vec<InheritedFd> = Vec::new();
    for (key, own) in image_extras::read_descriptors(images)?.into_iter().zip(own) {
        let known = inherited.iter().any(|one| one.key == key);
        if key.starts_with("pipe:") && !known {
            inherited.push(InheritedFd {
                key,
                fd: copy(own)?,
            });
        }
    }
    Ok(inherited)
}

pub(crate) fn copy(fd: BorrowedFd) -> Result<OwnedFd> {
    fd.try_clone_to_owned()
        .map_err(Error::file("copy a descriptor", "/proc/self/fd"))
}

/// What rcm does at the stages of a restore.
#[derive(Debug)]
struct Stages {
    container: Container,
    console_socket: Option<UnixStream>,
    wants_terminal: bool,
    terminal: Option<Master>,
    arrival: Arrival,
    /// Whether the network namespace is the container's own and was made for it now.
    own_network: bool,
}

impl Stages {
    /// The first process exists, its namespaces too; nothing is in them yet. The hooks that runc runs on a restore run here.
    fn set_up(&mut self, pid: i32) -> Result<(), CallbackError> {
        if self.own_network {
            sys::network::bring_loopback_up(Pid::from_raw(pid))?;
        }
        // Before the hooks, which may connect it.
        self.arrival.bar(Pid::from_raw(pid))?;
        let mut container = self.container.clone();
        container.record_mut().init = Some(ProcessId::of(Pid::from_raw(pid))?);
        for kind in ["prestart", "createRuntime"] {
            start::run_hooks(&container, kind, Status::Creating)?;
        }
        Ok(())
    }

    fn take_terminal(&mut self, master: OwnedFd) -> Result<(), CallbackError> {
        let master = Master::new(master);
        match self.console_socket.take() {
            Some(socket) if self.wants_terminal => master.send(&socket)?,
            _ if self.terminal.is_none() => self.terminal = Some(master),
            _ => {}
        }
        Ok(())
    }
}

impl Notify for Stages {
    fn started(&mut self, pid: Pid) -> Result<(), CallbackError> {
        criu_process::record(&self.container, pid)
    }

    fn on(&mut self, notification: Notification) -> Result<Reply, CallbackError> {
        match notification {
            Notification::SetupNamespaces { pid } => self.set_up(pid)?,
            Notification::OrphanPtsMaster(master) => self.take_terminal(master)?,
            _ => {}
        }
        Ok(Reply::default())
    }
}

/// A restored container of which nothing has executed. Dropping this takes it away.
#[derive(Debug)]
#[must_use = "dropping a held restore kills what was restored"]
pub struct HeldRestore {
    container: Container,
    /// Taken by the decision.
    held: Option<criu::PausedRestore<Stages>>,
    pid_file: Option<PathBuf>,
}

impl HeldRestore {
    /// The container.
    #[must_use]
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// The restored first process, a child of this one.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.held
            .as_ref()
            .map_or(Pid::from_raw(-1), criu::PausedRestore::pid)
    }

    /// Lets the container execute and registers it as one that was created and started.
    ///
    /// # Errors
    /// Where the record cannot be written or CRIU fails; nothing is left of the container then.
    pub fn resume(mut self) -> Result<Restored> {
        let result = self.try_resume();
        if result.is_err() {
            discard(&self.container);
        }
        result
    }

    fn try_resume(&mut self) -> Result<Restored> {
        let Some(mut held) = self.held.take() else {
            return Err(Error::NotRunning);
        };
        let pid = held.pid();
        // Before anything executes: were rcm killed now, the container would be known for what it is; and what fails may be tried again.
        self.register(pid)?;
        create::write_pid_file(self.pid_file.as_deref(), pid)?;
        // Before CRIU lets the sockets go: each then asks its peer what it has missed.
        let announcement = held.notify_mut().arrival.complete(pid);
        let stages = held.resume()?;
        let cgroup = self.container.cgroup();
        if cgroup.freezer_dir().is_ok() {
            // CRIU restores the freezer of cgroup v1 as it found it: frozen, by rcm for the dump or by an engine that pauses before it. As with runc, a
            // container that is restored runs.
            if let Err(error) = cgroup.thaw() {
                // It executes or has executed: no reason to take it away.
                let id = self.container.id();
                tracing::error!(
                    "cannot resume the restored container {id}: {}",
                    chain(&error)
                );
            }
        }
        if let Some(announcement) = &announcement {
            // The source unlocks its end when it hears that the container runs here.
            announcement.begun();
        }
        Ok(Restored {
            container: self.container.clone(),
            pid,
            terminal: stages.terminal.filter(|_| stages.wants_terminal),
            announcement,
        })
    }

    fn register(&mut self, pid: Pid) -> Result<()> {
        let init = ProcessId::of(pid).map_err(|error| Error::File {
            action: "read",
            path: format!("/proc/{pid}/stat").into(),
            source: std::io::Error::other(error),
        })?;
        let cgroup = Cgroup::of_process(pid).map_err(cgroup_error("find", self.container.id()))?;
        let record = self.container.record_mut();
        record.init = Some(init);
        record.created = Utc::now();
        record.cgroup_paths = cgroup.paths().clone();
        record.descriptors = create::descriptors(pid);
        self.container.save()
    }

    /// Takes away what was restored. Returns when it is gone.
    pub fn refuse(mut self) {
        self.roll_back();
    }

    fn roll_back(&mut self) {
        if let Some(held) = self.held.take() {
            held.refuse();
            discard(&self.container);
        }
    }
}

impl Drop for HeldRestore {
    fn drop(&mut self) {
        self.roll_back();
    }
}
