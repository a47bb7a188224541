//! Restoring a container.
//!
//! [`begin`] restores everything, but nothing executes yet. [`HeldRestore`] then resumes or rolls
//! back: a plain `restore` resumes at once, the destination of a migration when the source has
//! committed.

mod cgroup;
mod held;
mod stages;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::Pid;
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::create::{self, CreateRequest};
use crate::criu::error::CallbackError;
use crate::criu::{self, Criu, InheritedFd, ManageCgroups, RestoreOptions, Version};
use crate::runtime::container::{Container, validate_id};
use crate::runtime::criu_flags::CriuFlags;
use crate::runtime::error::{Error, Result};
use crate::runtime::image_extras::{self, Details};
use crate::runtime::linux::external::{self, RestoredHost};
use crate::runtime::linux::mounts::{self, Prepared, mount_table};
use crate::runtime::linux::network::{Arrival, Arriving, Given};
use crate::runtime::linux::resctrl::Group;
use crate::runtime::process::delivery::connect;
use crate::runtime::process::stdio;
use crate::runtime::spec::namespaces::Namespaces;
use crate::runtime::spec::{self, lower};
use crate::sys::rooted::Root;
use held::discard;
use stages::RestoreStages;

pub use held::{HeldRestore, Restored};

/// Directory, below the container's, at which only CRIU has the root file system mounted.
const CRIU_ROOT: &str = "criu-root";

/// Input of a restore.
#[derive(Debug, Clone, Default)]
pub struct RestoreRequest {
    /// State directory.
    pub root: PathBuf,
    /// Name of the container.
    pub id: String,
    /// Path of the bundle.
    pub bundle: PathBuf,
    /// Whether systemd manages the cgroup.
    pub systemd_cgroup: bool,
    /// Parent of the container's cgroup, which overrides the spec. The group has the container's
    /// name.
    pub cgroup_parent: Option<PathBuf>,
    /// Socket that gets the terminal's master if rcm does not stay in the foreground.
    pub console_socket: Option<PathBuf>,
    /// File that gets the first process's id, just before it executes.
    pub pid_file: Option<PathBuf>,
    /// Same as for `create`.
    pub no_pivot: bool,
    /// Whether rcm exits and the container runs on.
    pub detach: bool,
    /// Options that checkpoints have, too.
    pub flags: CriuFlags,
    /// LSM profile that replaces the dumped one, `TYPE:NAME`.
    pub lsm_profile: Option<String>,
    /// LSM mount context that replaces the dumped one.
    pub lsm_mount_context: Option<String>,
    /// Path of a network namespace, which overrides the spec.
    pub network_namespace: Option<PathBuf>,
    /// Limit on each stage of the restore; `None` for no limit.
    pub answer_limit_dur: Option<Duration>,
    /// Whether the container comes from another host. No packet reaches it before it resumes, and
    /// then its addresses are announced on the link.
    pub moves: bool,
}

/// Restores a container up to its first instruction. On failure nothing of it is left behind.
///
/// # Errors
/// [`Error`], with CRIU's first error if it is CRIU that fails.
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
    create::check_console(
        request.detach,
        request.console_socket.as_deref(),
        wants_terminal,
    )?;
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
    let namespaces = Namespaces::of(&lowered);
    let record = create::new_record(&as_created, &bundle, &lowered)?;
    let container = create::claim(&request.root, record, &text)?;
    match restore(
        criu,
        request,
        &container,
        &lowered,
        &namespaces,
        wants_terminal,
    ) {
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

/// Returns the request for a creation's checks and record, which a restore uses, too.
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

fn restore(
    criu: &Criu,
    request: &RestoreRequest,
    container: &Container,
    spec: &Spec,
    namespaces: &Namespaces,
    wants_terminal: bool,
) -> Result<criu::PausedRestore<RestoreStages>> {
    require(criu, request)?;
    request.flags.make_work_dir()?;
    let restore = Restore {
        criu,
        request,
        container,
        spec,
        namespaces,
        wants_terminal,
        details: Details::read(&request.flags.image_path)?,
    };
    restore.run()
}

/// Checks that this CRIU supports the options.
fn require(criu: &Criu, request: &RestoreRequest) -> Result<()> {
    if request.flags.lazy_pages {
        criu.require_lazy_pages()?;
    }
    if request.lsm_profile.is_some() {
        criu.require(Version::LSM, "--lsm-profile")?;
    }
    if request.lsm_mount_context.is_some() {
        criu.require(Version::LSM, "--lsm-mount-context")?;
    }
    Ok(())
}

/// Restore in preparation.
struct Restore<'a> {
    criu: &'a Criu,
    request: &'a RestoreRequest,
    container: &'a Container,
    spec: &'a Spec,
    namespaces: &'a Namespaces,
    wants_terminal: bool,
    /// Contents of `rcm.json`, beside the images.
    details: Details,
}

impl Restore<'_> {
    /// Restores everything; nothing executes yet.
    fn run(&self) -> Result<criu::PausedRestore<RestoreStages>> {
        let Self {
            container,
            spec,
            namespaces,
            details,
            ..
        } = self;
        let images = &self.request.flags.image_path;
        // Mount points must exist before CRIU mounts, and in a user namespace its tasks must be
        // able to open the images.
        external::make_mount_points(spec, container.bundle(), container.rootfs())?;
        admit_user_namespace(images, spec)?;
        let criu_root = container.dir().join(CRIU_ROOT);
        fs::create_dir(&criu_root).map_err(Error::file("create", &criu_root))?;
        let masks = external::make_masks(&details.mounts, container.dir())?;
        let (outer_namespaces, join_namespaces) = external::restored_namespaces(namespaces)?;

        // From here on the network is locked, if the container moves: its sockets must not answer
        // before the source has committed.
        let (arrival, given) = Arrival::prepare(self.arriving(), namespaces, details)?;
        let (network, inherited_network) = match given {
            Some(Given::Around(namespace)) => (Some(namespace), None),
            Some(Given::Inherited(namespace)) => (None, Some(namespace)),
            None => (None, None),
        };
        let mut inherited: Vec<InheritedFd> = inherited_network.into_iter().collect();
        inherited.extend(self.inherited(outer_namespaces)?);

        let rootfs =
            Root::open(container.rootfs()).map_err(Error::file("open", container.rootfs()))?;
        let prepared = self.prepare_mounts(&rootfs)?;
        let options = RestoreOptions {
            common: self.common(&criu_root),
            rootfs: Some(container.rootfs().to_path_buf()),
            trees: prepared.trees,
            inherited,
            join_namespaces,
            network,
            lsm_profile: self.request.lsm_profile.clone(),
            lsm_mount_context: self.request.lsm_mount_context.clone(),
            stdin: (self.request.flags.choices.shell_job && !self.wants_terminal)
                .then(|| stdio::duplicate(std::io::stdin().as_fd()))
                .transpose()?,
            ..RestoreOptions::default()
        };
        let host = RestoredHost {
            found: &details.mounts,
            spec,
            bundle: container.bundle(),
            rootfs: &rootfs,
            masks: &masks,
        };
        let held = {
            let _put_old = PutOld::make(container.rootfs());
            self.criu
                .restore(options, self.stages(arrival)?, |criu, options| {
                    self.place_criu(Pid::from_raw(criu), options, host, prepared.sources)
                })
        };
        // The directory served only as CRIU's mount point. If CRIU has failed, report that error
        // first.
        let removed = fs::remove_dir(&criu_root).map_err(Error::file("remove", &criu_root));
        let held = held?;
        removed?;
        // CRIU does not know all attributes of mounts. Set the rest while nothing executes.
        mounts::complete(held.pid(), spec, namespaces)?;
        Ok(held)
    }

    fn arriving(&self) -> Arriving {
        Arriving {
            id: self.request.id.clone(),
            moves: self.request.moves,
            has_connections: self.request.flags.choices.tcp_established,
        }
    }

    /// Opens the resources outside of the container that CRIU gets by descriptor: namespaces,
    /// pipes, files.
    fn inherited(
        &self,
        outer_namespaces: Vec<(&'static str, PathBuf)>,
    ) -> Result<Vec<InheritedFd>> {
        let mut inherited = Vec::new();
        for (key, path) in outer_namespaces {
            self.criu.require(
                Version::EXTERNAL_PID_NAMESPACE,
                "a container in an existing namespace",
            )?;
            let file = File::open(&path).map_err(Error::file("use the namespace", &path))?;
            inherited.push(InheritedFd {
                key: key.to_owned(),
                fd: file.into(),
            });
        }
        inherited.extend(inherited_pipes(&self.request.flags.image_path)?);
        let in_user_namespace = self.namespaces.has(LinuxNamespaceType::User);
        for file in &self.details.files {
            inherited.push(file.inherit(in_user_namespace)?);
        }
        Ok(inherited)
    }

    /// Prepares the mounts that CRIU cannot bind from the host's.
    fn prepare_mounts(&self, rootfs: &Root) -> Result<Prepared> {
        let found = &self.details.mounts;
        let bundle = self.container.bundle();
        let mut prepared = Prepared::new(self.spec, self.namespaces, bundle, rootfs, found)?;
        for (path, tree) in external::make_tmpfs(found, &self.request.flags.image_path)? {
            prepared.add(path, tree)?;
        }
        Ok(prepared)
    }

    fn common(&self, criu_root: &Path) -> criu::Common {
        let flags = &self.request.flags;
        let mut common = flags.common(self.container, self.spec);
        common.answer_limit_dur = self.request.answer_limit_dur;
        common.root = Some(criu_root.to_path_buf());
        if self.details.cgroups_left_out && flags.choices.manage_cgroups() == ManageCgroups::Default
        {
            common.manage_cgroups = ManageCgroups::Ignore;
        }
        common
    }

    fn stages(&self, arrival: Arrival) -> Result<RestoreStages> {
        Ok(RestoreStages {
            container: self.container.clone(),
            console_socket: self
                .request
                .console_socket
                .as_deref()
                .map(|path| connect("console", path))
                .transpose()?,
            wants_terminal: self.wants_terminal,
            terminal: None,
            arrival,
            own_network: self.namespaces.makes(LinuxNamespaceType::Network),
        })
    }

    /// Puts a CRIU that has just been started into the container's groups, and completes the
    /// options that depend on it.
    fn place_criu(
        &self,
        criu: Pid,
        options: &mut RestoreOptions,
        host: RestoredHost,
        prepared: BTreeMap<PathBuf, PathBuf>,
    ) -> Result<(), CallbackError> {
        // This comes before CRIU forks: the tasks that it restores inherit its groups.
        let cgroup = cgroup::enter(self.container, self.spec, criu)?;
        let linux = self.spec.linux().as_ref();
        if let Some(rdt) = linux.and_then(|linux| linux.intel_rdt().as_ref()) {
            Group::join(self.container.id(), criu, rdt)
                .map_err(|reason| Error::Start { reason })?;
        }
        let mut sources = host.sources(&mount_table(None)?, cgroup.paths());
        // These replace paths on the host from which CRIU could not bind.
        sources.extend(prepared);
        options.common.external = external::restored_mounts(sources);
        options.cgroup_roots = cgroup::roots(criu)?;
        Ok(())
    }
}

/// Mount point for the old root. CRIU moves the old root to `tmp`, or to a directory that it makes.
/// In a read-only root it cannot make one (criu/mount.c, `cr_pivot_root`, CRIU 4.2).
struct PutOld(Option<PathBuf>);

impl PutOld {
    fn make(rootfs: &Path) -> Self {
        let path = rootfs.join("tmp");
        Self(fs::create_dir(&path).is_ok().then_some(path))
    }
}

impl Drop for PutOld {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // The root file system gets back its old contents. If that fails, an empty directory
            // stays, which does no harm.
            let _ = fs::remove_dir(path);
        }
    }
}

/// Lets the root of a user namespace open the images. The tasks read their images themselves, as
/// that user. The files are readable (criu/include/crtools.h, `CR_FD_PERM`, CRIU 4.2); the
/// directory becomes accessible for that group, and for nobody else.
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

/// Opens this process's streams for the pipes that were the container's stdin, stdout and stderr,
/// as runc does.
fn inherited_pipes(images: &Path) -> Result<Vec<InheritedFd>> {
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let own = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    let mut inherited: Vec<InheritedFd> = Vec::new();
    for (key, own) in image_extras::read_descriptors(images)?.into_iter().zip(own) {
        let known = inherited.iter().any(|one| one.key == key);
        if key.starts_with("pipe:") && !known {
            inherited.push(InheritedFd {
                key,
                fd: stdio::duplicate(own)?,
            });
        }
    }
    Ok(inherited)
}
