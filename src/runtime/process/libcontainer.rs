//! The only place that starts processes through libcontainer; it also makes libcontainer's failures
//! readable.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use libcgroups::common::CgroupConfig;
use libcontainer::container::{
    Container as LibcontainerContainer, ContainerStatus, State as LibcontainerState,
};
use libcontainer::notify_socket::NotifyListener;
use libcontainer::process::args::{ContainerArgs, ContainerType};
use libcontainer::process::channel::ChannelError;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::user_ns::UserNamespaceConfig;
use nix::errno::Errno;
use nix::unistd::{Pid, geteuid};
use oci_spec::runtime::{Hooks, LinuxNamespace, LinuxNamespaceType, Process, Spec};

use super::executor::ProcessExecutor;
use super::launch::{LaunchError, Outer, run_in_namespaces};
use crate::error::chain;
use crate::runtime::container::{Container, Record};
use crate::runtime::linux::cgroup::{Entry, Making};
use crate::runtime::linux::hooks::{self, Scene};
use crate::runtime::linux::mounts::{self, BoundDev, Stage, StageError};
use crate::runtime::spec::lower;
use crate::runtime::spec::namespaces::Namespaces;
use crate::runtime::status::Status;
use crate::sys;
use crate::sys::error_capture::ErrorCapture;
use crate::sys::file::Failed;
use crate::sys::rooted::{FileKind, Root};

/// Process to be started in a container.
pub(crate) struct Launch<'a> {
    /// The container that the process belongs to.
    pub container: &'a Container,
    /// The lowered spec.
    pub spec: Spec,
    /// Socket at which the process waits to be started.
    pub notify_path: &'a Path,
    /// Socket to which libcontainer sends the terminal's master; the process gets a terminal if
    /// this is set.
    pub console: Option<&'a OwnedFd>,
    /// Number of descriptors after stderr that stay open.
    pub preserve_fds: i32,
}

/// First process of a container. Its cgroup, namespaces and mounts are made.
pub(crate) struct First<'a> {
    /// The namespaces of the spec.
    pub namespaces: &'a Namespaces,
    /// Whether to skip groups that this user may not make.
    pub lenient: bool,
}

/// Process that joins a running container.
pub(crate) struct Joining<'a> {
    /// The cgroup that it joins.
    pub entry: Entry<'a>,
    /// Pipe to which libcontainer reports a failure after the start.
    pub errors: &'a OwnedFd,
}

impl First<'_> {
    /// Forks the process, sets everything up, and lets it wait at its notify socket. Afterwards the
    /// bundle is the working directory of this process.
    ///
    /// # Errors
    /// The deepest known cause, as one sentence.
    ///
    /// # Errors
    /// The deepest known cause, as one sentence.
    pub(crate) fn launch(self, mut launch: Launch) -> Result<Pid, String> {
        let container = launch.container;
        let namespaces = self.namespaces;
        let _undumpable = Undumpable::enter();
        // Preparing mounts needs the host's root and rights, so it comes before any namespace is
        // made. The stage must live until the process has entered it.
        let (dev, _stage) = prepare_mounts(&mut launch.spec, namespaces)
            .map_err(|error| format!("error during container init: {}", chain(&error)))?;
        let user_ns_config =
            UserNamespaceConfig::new(&launch.spec).map_err(|error| chain(&error))?;
        let listener = listen(&launch)?;
        let hooks = launch.spec.hooks().clone().unwrap_or_default();
        // rcm runs the hooks itself. If the spec has hooks, even empty lists, libcontainer waits at
        // the point at which those on the host must run.
        launch.spec.set_hooks(Some(Hooks::default()));
        let start_hooks = hooks.start_container().clone().unwrap_or_default();
        let created = hook_state(container, Status::Created).state;
        let foreign = take_foreign(&mut launch.spec, namespaces);
        let spec = Rc::new(std::mem::take(&mut launch.spec));
        let parts = Parts {
            container_type: ContainerType::InitContainer,
            listener,
            executor: ProcessExecutor::of_init(start_hooks, created, dev.is_some()),
            user_ns_config,
        };
        let args = parts.into_args(&launch, &spec);
        let entry = first_entry(container, &spec, self.lenient);
        let creating = hook_state(container, Status::Creating).state;
        let at_hooks = |pid: Pid| {
            // Check before hooks or the user's program can use a mount that covers `/proc`.
            mounts::check_proc(pid, &spec, container.rootfs()).map_err(LaunchError::Mounts)?;
            if let Entry::Make(making) = &entry {
                // The limits come before the hooks, which find them set as with runc. They could
                // not be set before the fork: see `Making::limit`.
                making.limit().map_err(LaunchError::Cgroup)?;
            }
            make_working_directory(container, &spec, pid);
            if namespaces.makes(LinuxNamespaceType::Network) {
                bring_loopback_up(container, pid)?;
            }
            run_creation_hooks(container, &hooks, &creating, pid)
        };
        let outer = Outer {
            args: &args,
            entry: &entry,
            foreign: &foreign,
            errors: None,
            // Unless it is root, rcm cannot enter the namespaces of a process that is not dumpable.
            visible: namespaces.makes(LinuxNamespaceType::User) && !geteuid().is_root(),
        };
        let pid = run(&outer, &spec, at_hooks)?;
        // This comes after all mounts of the spec: a change made earlier would be lost under a
        // later mount.
        finish_mounts(pid, &spec, namespaces, dev).map_err(|error| chain(&error))?;
        Ok(pid)
    }
}

impl Joining<'_> {
    /// Forks the process, puts it into the container, and lets it wait at its notify socket.
    /// Afterwards the bundle is the working directory of this process.
    ///
    /// # Errors
    /// The deepest known cause, as one sentence.
    pub(crate) fn launch(self, mut launch: Launch) -> Result<Pid, String> {
        let _undumpable = Undumpable::enter();
        let listener = listen(&launch)?;
        // Without hooks, libcontainer does not wait for rcm to run them.
        launch.spec.set_hooks(None);
        let namespaces = Namespaces::of(&launch.spec);
        let foreign = take_foreign(&mut launch.spec, &namespaces);
        let spec = Rc::new(std::mem::take(&mut launch.spec));
        let parts = Parts {
            container_type: ContainerType::TenantContainer {
                exec_notify_fd: self.errors.as_raw_fd(),
            },
            listener,
            executor: ProcessExecutor::of_joining(self.errors.as_raw_fd()),
            // The user namespace that it joins has its mappings already.
            user_ns_config: None,
        };
        let args = parts.into_args(&launch, &spec);
        let outer = Outer {
            args: &args,
            entry: &self.entry,
            foreign: &foreign,
            errors: Some(self.errors),
            visible: false,
        };
        run(&outer, &spec, |_| Ok(()))
    }
}

/// Arguments for libcontainer that differ between a first process and a joining one.
struct Parts {
    container_type: ContainerType,
    listener: NotifyListener,
    executor: ProcessExecutor,
    user_ns_config: Option<UserNamespaceConfig>,
}

impl Parts {
    fn into_args(self, launch: &Launch, spec: &Rc<Spec>) -> ContainerArgs {
        let record = launch.container.record();
        ContainerArgs {
            container_type: self.container_type,
            syscall: SyscallType::default(),
            rootfs: record.rootfs.clone(),
            spec: Rc::clone(spec),
            console_socket: launch.console.map(AsRawFd::as_raw_fd),
            notify_listener: self.listener,
            preserve_fds: launch.preserve_fds,
            container: Some(hook_state(launch.container, Status::Creating)),
            user_ns_config: self.user_ns_config,
            // Not used: the process is in its cgroup before libcontainer's part begins.
            cgroup_config: cgroup_config(record),
            // libcontainer reads this only without a console socket.
            detached: true,
            executor: Box::new(self.executor),
            no_pivot: record.no_pivot,
            stdin: None,
            stdout: None,
            stderr: None,
            as_sibling: false,
            pid_file: None,
        }
    }
}

/// Makes the socket at which the process waits for the start. Changes to the bundle first.
fn listen(launch: &Launch) -> Result<NotifyListener, String> {
    // As runc. libcontainer makes the socket in another directory and changes back. This user may
    // not be allowed to enter the directory in which the command was given, but can enter the
    // bundle. If the bundle is gone, the old directory has to do.
    let _ = nix::unistd::chdir(launch.container.bundle());
    NotifyListener::new(launch.notify_path).map_err(|error| chain(&error))
}

/// Starts the process. The message of a failure is libcontainer's first error event, which comes
/// from the process that failed, one of three.
fn run(
    outer: &Outer,
    spec: &Spec,
    at_hooks: impl FnOnce(Pid) -> Result<(), LaunchError>,
) -> Result<Pid, String> {
    let process = spec.process().as_ref();
    let oom_score = process.and_then(|process| process.oom_score_adj());
    // The capture starts before the fork, so that it gets the events of all three processes.
    let mut capture = ErrorCapture::start().map_err(|errno| errno.to_string())?;
    // The children inherit the score; this process gets its own back when this function returns.
    let _oom_score = oom_score.map(OomScore::enter).transpose()?;
    super::launch::launch(outer, at_hooks).map_err(|error| reason(&mut capture, &error, spec))
}

fn prepare_mounts(
    spec: &mut Spec,
    namespaces: &Namespaces,
) -> Result<(Option<BoundDev>, Option<Stage>), StageError> {
    mounts::clear_image_dev(spec);
    let dev = BoundDev::take(spec, namespaces)?;
    Ok((dev, Stage::prepare(spec, namespaces)?))
}

fn finish_mounts(
    pid: Pid,
    spec: &Spec,
    namespaces: &Namespaces,
    dev: Option<BoundDev>,
) -> Result<(), StageError> {
    if let Some(dev) = dev {
        dev.attach(pid)?;
    }
    mounts::finish(pid, spec, namespaces)
}

/// Takes the existing network and IPC namespaces out of a spec with a user namespace, so that they
/// are joined before it. The user namespace may not own them, and then gives no right to join them.
/// libcontainer would join them afterwards.
fn take_foreign(spec: &mut Spec, namespaces: &Namespaces) -> Vec<LinuxNamespace> {
    let is_foreign = |namespace: &LinuxNamespace| {
        matches!(
            namespace.typ(),
            LinuxNamespaceType::Network | LinuxNamespaceType::Ipc
        ) && namespace.path().is_some()
    };
    let moves_devices = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.net_devices().as_ref())
        .is_some_and(|devices| !devices.is_empty());
    if !geteuid().is_root() || moves_devices || !namespaces.has(LinuxNamespaceType::User) {
        return Vec::new();
    }
    let namespaces = spec
        .linux_mut()
        .as_mut()
        .and_then(|linux| linux.namespaces_mut().as_mut());
    let Some(namespaces) = namespaces else {
        return Vec::new();
    };
    let (foreign, rest) = namespaces.drain(..).partition(is_foreign);
    *namespaces = rest;
    foreign
}

/// Returns the container's groups and limits. Without privileges `libcgroups` gets no limits,
/// because it would insist on device rules, too.
fn first_entry<'a>(container: &Container, spec: &'a Spec, lenient: bool) -> Entry<'a> {
    let record = container.record();
    Entry::Make(Making {
        config: cgroup_config(record),
        groups: container.cgroup(),
        resources: lower::resources(spec).filter(|_| !record.rootless),
        lenient,
    })
}

/// Makes the working directory if neither the image nor a mount has it, as runc does. If that
/// fails, the error is reported when libcontainer changes to the directory.
fn make_working_directory(container: &Container, spec: &Spec, pid: Pid) {
    let Some(process) = spec.process() else {
        return;
    };
    let cwd = process.cwd();
    // The path is resolved through the mount namespace of the container's first process.
    let rootfs = container.rootfs();
    let seen = Path::new("/proc").join(pid.to_string()).join("root");
    let seen = seen.join(rootfs.strip_prefix("/").unwrap_or(rootfs));
    if Root::open(&seen).is_ok_and(|root| root.resolve(cwd).is_ok()) {
        return;
    }
    let made = run_in_namespaces(pid, rootfs, || {
        Root::open(rootfs)
            .and_then(|root| root.make(cwd, FileKind::Directory))
            .map_err(|source| {
                LaunchError::File(Failed {
                    action: "make",
                    path: cwd.clone(),
                    source,
                })
            })
    });
    if let Err(error) = made {
        tracing::debug!("the working directory: {}", chain(&error));
    }
}

/// Brings the loopback interface up, as runc does; libcontainer leaves it down.
fn bring_loopback_up(container: &Container, pid: Pid) -> Result<(), LaunchError> {
    let up = |done: std::io::Result<()>| done.map_err(LaunchError::Loopback);
    if geteuid().is_root() {
        return up(sys::network::bring_loopback_up(pid));
    }
    // Without root, only a process in the container's user namespace may do this.
    run_in_namespaces(pid, container.rootfs(), || {
        up(sys::network::bring_own_loopback_up())
    })
}

/// Runs the hooks of a creation. The container's namespaces and mounts are made; its root is still
/// the host's.
fn run_creation_hooks(
    container: &Container,
    hooks: &Hooks,
    state: &LibcontainerState,
    pid: Pid,
) -> Result<(), LaunchError> {
    let outside = Scene {
        state,
        pid: Some(pid),
        dir: Some(container.bundle()),
        default_env: None,
    };
    #[allow(deprecated, reason = "older specs have it, and runc still runs it")]
    let prestart = hooks.prestart();
    hooks::run(
        prestart.as_deref().unwrap_or_default(),
        "prestart",
        &outside,
    )?;
    let create_runtime = hooks.create_runtime().as_deref().unwrap_or_default();
    hooks::run(create_runtime, "createRuntime", &outside)?;
    let create_container = hooks.create_container().as_deref().unwrap_or_default();
    if create_container.is_empty() {
        return Ok(());
    }
    let inside = Scene {
        pid: sys::process::innermost_pid(pid).ok(),
        dir: None,
        ..outside
    };
    run_in_namespaces(pid, container.rootfs(), || {
        Ok(hooks::run(create_container, "createContainer", &inside)?)
    })
}

/// Returns the deepest cause of a failure: runc's sentence if the executor refused, otherwise the
/// first error that libcontainer logged.
fn reason(capture: &mut ErrorCapture, error: &LaunchError, spec: &Spec) -> String {
    let flat = chain(error);
    // libcontainer wraps the sentence of rcm's executor.
    if let Some(at) = flat.find("exec: \"") {
        return format!("error during container init: {}", &flat[at..]);
    }
    let first = capture.records().into_iter().next().unwrap_or_default();
    if let Some(failure) = first.strip_prefix("failed to chdir") {
        return format!("error during container init: {}", chdir(failure, spec));
    }
    match error {
        // These errors say only that the other side has ended.
        LaunchError::Channel(
            ChannelError::ReceiveError { .. } | ChannelError::UnexpectedMessage { .. },
        ) if !first.is_empty() => first,
        LaunchError::Channel(_) if !first.is_empty() && !flat.contains(&first) => {
            format!("{first} ({flat})")
        }
        _ => flat,
    }
}

/// Returns runc's sentence for a working directory that cannot be entered. libcontainer gives only
/// the error number.
fn chdir(failure: &str, spec: &Spec) -> String {
    let cwd = spec.process().as_ref().map(Process::cwd);
    let errno = [
        Errno::ENOENT,
        Errno::ENOTDIR,
        Errno::EACCES,
        Errno::EPERM,
        Errno::ELOOP,
    ]
    .into_iter()
    .find(|errno| failure.ends_with(&format!("{errno:?}")));
    format!(
        "chdir to cwd ({:?}) set in config.json failed: {}",
        cwd.map_or(Path::new(""), PathBuf::as_path),
        errno.map_or_else(|| failure.to_owned(), |errno| errno.desc().to_lowercase())
    )
}

/// Returns the configuration of `libcgroups`' manager for a container.
#[must_use]
pub(crate) fn cgroup_config(record: &Record) -> CgroupConfig {
    CgroupConfig {
        cgroup_path: record.cgroup_path.clone(),
        systemd_cgroup: record.systemd_cgroup,
        container_name: record.id.clone(),
    }
}

/// Returns libcontainer's view of a container, which hooks get on stdin.
#[must_use]
pub(crate) fn hook_state(container: &Container, status: Status) -> LibcontainerContainer {
    let record = container.record();
    let mut state = LibcontainerState::new(
        &record.id,
        match status {
            Status::Creating => ContainerStatus::Creating,
            Status::Created => ContainerStatus::Created,
            // The OCI state has no pause.
            Status::Running | Status::Paused => ContainerStatus::Running,
            Status::Stopped => ContainerStatus::Stopped,
        },
        record.init.map(|init| init.pid),
        record.bundle.clone(),
    );
    state.oci_version.clone_from(&record.oci_version);
    state.annotations = Some(record.annotations.clone());
    LibcontainerContainer {
        state,
        root: container.dir().to_path_buf(),
    }
}

/// Makes this process undumpable until dropped. Otherwise processes in each namespace that is
/// joined or made could look into this process before it has closed the host's descriptors and
/// given up its rights (ptrace(2), `PTRACE_MODE`; CVE-2016-9962).
struct Undumpable {
    former: bool,
}

impl Undumpable {
    fn enter() -> Self {
        let former = nix::sys::prctl::get_dumpable().unwrap_or(true);
        let _ = nix::sys::prctl::set_dumpable(false);
        Self { former }
    }
}

impl Drop for Undumpable {
    fn drop(&mut self) {
        let _ = nix::sys::prctl::set_dumpable(self.former);
    }
}

/// Gives this process the container's OOM score, which children inherit. Restores its own when
/// dropped.
struct OomScore {
    former: String,
}

const OOM_SCORE_FILE: &str = "/proc/self/oom_score_adj";

impl OomScore {
    fn enter(score: i32) -> Result<Self, String> {
        let former = std::fs::read_to_string(OOM_SCORE_FILE).unwrap_or_default();
        std::fs::write(OOM_SCORE_FILE, score.to_string())
            .map_err(|error| format!("cannot set oomScoreAdj {score}: {error}"))?;
        Ok(Self { former })
    }
}

impl Drop for OomScore {
    fn drop(&mut self) {
        // Lowering the score below the initial one needs CAP_SYS_RESOURCE.
        let _ = std::fs::write(OOM_SCORE_FILE, self.former.trim());
    }
}
