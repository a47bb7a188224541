//! The one place that starts processes through `libcontainer`, and makes its failures readable.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use libcgroups::common::CgroupConfig;
use libcontainer::container::{
    Container as EngineContainer, ContainerStatus, State as EngineState,
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
use super::launch::{LaunchError, Outer, run_inside};
use crate::error::chain;
use crate::runtime::container::{Container, Record, Status};
use crate::runtime::linux::cgroup::{Entry, Making};
use crate::runtime::linux::hooks::{self, Scene};
use crate::runtime::linux::mounts::{self, BoundDev, Stage, StageError};
use crate::runtime::spec::lower;
use crate::sys;
use crate::sys::error_capture::ErrorCapture;
use crate::sys::rooted::{FileKind, Root};

/// What is to be started.
pub(crate) struct Launch<'a> {
    /// The container it belongs to.
    pub container: &'a Container,
    /// The lowered spec.
    pub spec: Spec,
    /// The socket at which the process waits to be started.
    pub notify_path: &'a Path,
    /// Where the engine sends the terminal's master; with it the process gets a terminal.
    pub console: Option<&'a OwnedFd>,
    /// How many descriptors after stderr stay open.
    pub preserve_fds: i32,
    /// What becomes of the process.
    pub role: Role<'a>,
}

/// What a process is to its container.
pub(crate) enum Role<'a> {
    /// The first: cgroup and namespaces are made for it.
    First {
        /// Whether the loopback interface is to be brought up: the network namespace is its own.
        loopback: bool,
        /// Whether the container does without groups that this user may not make.
        lenient: bool,
    },
    /// It joins.
    Joining {
        /// The cgroup.
        entry: Entry<'a>,
        /// Where the engine reports a failure after the start.
        errors: &'a OwnedFd,
    },
}

/// Forks the process, sets everything up and leaves it waiting at its notify socket. The working directory is the bundle then.
///
/// # Errors
/// The deepest cause that is known, as one sentence.
pub(crate) fn launch(mut launch: Launch) -> Result<Pid, String> {
    let container = launch.container;
    let record = container.record();
    let (is_first, loopback, lenient) = match launch.role {
        Role::First { loopback, lenient } => (true, loopback, lenient),
        Role::Joining { .. } => (false, false, false),
    };
    let makes_user_namespace = lower::namespace(&launch.spec, LinuxNamespaceType::User)
        .is_some_and(|namespace| namespace.path().is_none());
    // Every namespace that is joined or made could otherwise look into this process before it has dropped what the host
    // gave it (ptrace(2), PTRACE_MODE; CVE-2016-9962).
    let _dumpable = Undumpable::enter();
    let (dev, _stage) = match is_first {
        true => prepare_mounts(&mut launch.spec)
            .map_err(|error| format!("error during container init: {}", chain(&error)))?,
        false => (None, None),
    };
    let user_ns_config = if is_first {
        UserNamespaceConfig::new(&launch.spec).map_err(|error| chain(&error))?
    } else {
        // A process that joins has its mappings already.
        None
    };
    // As runc. The engine makes the socket in another directory and comes back, but this user need not have the right to enter the one where the
    // command was given. With a bundle that is gone it has to.
    let _ = nix::unistd::chdir(container.bundle());
    let notify_listener = NotifyListener::new(launch.notify_path).map_err(|error| chain(&error))?;
    let process = launch.spec.process().as_ref();
    let oom_score = process.and_then(|process| process.oom_score_adj());
    let hooks = launch.spec.hooks().clone().unwrap_or_default();
    // rcm runs them all. With hooks, if only an empty list, the engine waits where the outer ones are run.
    launch.spec.set_hooks(is_first.then(Hooks::default));
    let state = hook_state(container, Status::Creating);
    let executor = match &launch.role {
        Role::First { .. } => {
            let start_hooks = hooks.start_container().clone().unwrap_or_default();
            let state = hook_state(container, Status::Created).state;
            ProcessExecutor::of_init(start_hooks, state, dev.is_some())
        }
        Role::Joining { errors, .. } => ProcessExecutor::of_joining(errors.as_raw_fd()),
    };
    let foreign = take_foreign(&mut launch.spec);
    let spec = Rc::new(launch.spec);
    let (entry, errors) = match launch.role {
        Role::Joining { entry, errors } => (entry, Some(errors)),
        Role::First { .. } => (first_entry(container, &spec, lenient), None),
    };
    let args = ContainerArgs {
        container_type: match errors {
            None => ContainerType::InitContainer,
            Some(pipe) => ContainerType::TenantContainer {
                exec_notify_fd: pipe.as_raw_fd(),
            },
        },
        syscall: SyscallType::default(),
        rootfs: record.rootfs.clone(),
        spec: Rc::clone(&spec),
        console_socket: launch.console.map(AsRawFd::as_raw_fd),
        notify_listener,
        preserve_fds: launch.preserve_fds,
        container: Some(state.clone()),
        user_ns_config,
        // Not used: the process is in its cgroup already when the engine's work begins.
        cgroup_config: cgroup_config(record),
        // The engine only asks this where it has no console socket.
        detached: true,
        executor: Box::new(executor),
        no_pivot: record.no_pivot,
        stdin: None,
        stdout: None,
        stderr: None,
        as_sibling: false,
        pid_file: None,
    };
    let at_hooks = |pid: Pid| {
        mounts::check_proc(pid, &spec, container.rootfs()).map_err(LaunchError::Mounts)?;
        if let Entry::Make(making) = &entry {
            // As with runc, hooks find the limits set.
            making.limit().map_err(LaunchError::Cgroup)?;
        }
        make_working_directory(container, &spec, pid);
        if loopback {
            bring_loopback_up(container, pid)?;
        }
        run_creation_hooks(container, &hooks, &state.state, pid)
    };
    let mut capture = ErrorCapture::start().map_err(|errno| errno.to_string())?;
    let _oom_score = oom_score.map(OomScore::enter).transpose()?;
    let outer = Outer {
        args: &args,
        entry: &entry,
        foreign: &foreign,
        errors,
        visible: is_first && makes_user_namespace && !geteuid().is_root(),
    };
    match super::launch::launch(&outer, at_hooks) {
        Ok(pid) => {
            if is_first {
                finish_mounts(pid, &spec, dev).map_err(|error| chain(&error))?;
            }
            Ok(pid)
        }
        Err(error) => Err(reason(&mut capture, &error, &spec)),
    }
}

fn prepare_mounts(spec: &mut Spec) -> Result<(Option<BoundDev>, Option<Stage>), StageError> {
    mounts::clear_image_dev(spec);
    let dev = BoundDev::take(spec)?;
    Ok((dev, Stage::prepare(spec)?))
}

fn finish_mounts(pid: Pid, spec: &Spec, dev: Option<BoundDev>) -> Result<(), StageError> {
    if let Some(dev) = dev {
        dev.attach(pid)?;
    }
    mounts::finish(pid, spec)
}

/// Takes the existing network and IPC namespaces out of a spec with a user namespace, to be joined before that: it need not be their owner, and then
/// gives no right to it. The engine joins them afterwards.
fn take_foreign(spec: &mut Spec) -> Vec<LinuxNamespace> {
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
    if !geteuid().is_root()
        || moves_devices
        || !lower::has_namespace(spec, LinuxNamespaceType::User)
    {
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

/// The container's groups and limits. Without privileges the limits are not the engine's business: it would insist on device rules, too.
fn first_entry<'a>(container: &Container, spec: &'a Spec, lenient: bool) -> Entry<'a> {
    let record = container.record();
    Entry::Make(Making {
        config: cgroup_config(record),
        groups: container.cgroup(),
        resources: lower::resources(spec).filter(|_| !record.rootless),
        lenient,
    })
}

/// Makes the working directory where neither the image nor a mount has it, as runc does. One that cannot be made is reported when it cannot be
/// entered.
fn make_working_directory(container: &Container, spec: &Spec, pid: Pid) {
    let Some(process) = spec.process() else {
        return;
    };
    let cwd = process.cwd();
    // As the container will see it: through the mount namespace of its first process.
    let rootfs = container.rootfs();
    let seen = Path::new("/proc").join(pid.to_string()).join("root");
    let seen = seen.join(rootfs.strip_prefix("/").unwrap_or(rootfs));
    if Root::open(&seen).is_ok_and(|root| root.resolve(cwd).is_ok()) {
        return;
    }
    let made = run_inside(pid, rootfs, || {
        Root::open(rootfs)
            .and_then(|root| root.make(cwd, FileKind::Directory))
            .map_err(|source| LaunchError::File {
                action: "make",
                path: cwd.clone(),
                source,
            })
    });
    if let Err(error) = made {
        tracing::debug!("the working directory: {}", chain(&error));
    }
}

/// As runc; the engine leaves the loopback interface down.
fn bring_loopback_up(container: &Container, pid: Pid) -> Result<(), LaunchError> {
    let up = |done: std::io::Result<()>| done.map_err(LaunchError::Loopback);
    if geteuid().is_root() {
        return up(sys::network::bring_loopback_up(pid));
    }
    // The right to it comes with the user namespace only.
    run_inside(pid, container.rootfs(), || {
        up(sys::network::bring_own_loopback_up())
    })
}

/// Runs the hooks of a creation; the container's namespaces and mounts are there, its root is still the host's.
fn run_creation_hooks(
    container: &Container,
    hooks: &Hooks,
    state: &EngineState,
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
    run_inside(pid, container.rootfs(), || {
        Ok(hooks::run(create_container, "createContainer", &inside)?)
    })
}

/// The deepest cause of a failure: runc's sentence where the executor refused, else the first error that the engine logged.
fn reason(capture: &mut ErrorCapture, error: &LaunchError, spec: &Spec) -> String {
    let flat = chain(error);
    // The engine's own wrapping of what rcm's executor said.
    if let Some(at) = flat.find("exec: \"") {
        return format!("error during container init: {}", &flat[at..]);
    }
    let first = capture.records().into_iter().next().unwrap_or_default();
    if let Some(failure) = first.strip_prefix("failed to chdir") {
        return format!("error during container init: {}", chdir(failure, spec));
    }
    match error {
        // All that is known here is that the other side has ended.
        LaunchError::Channel(
            ChannelError::ReceiveError { .. } | ChannelError::UnexpectedMessage { .. },
        ) if !first.is_empty() => first,
        LaunchError::Channel(_) if !first.is_empty() && !flat.contains(&first) => {
            format!("{first} ({flat})")
        }
        _ => flat,
    }
}

/// runc's sentence for a working directory that cannot be entered. The engine names the error number only.
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

/// How the engine's cgroup manager is told about a container.
#[must_use]
pub(crate) fn cgroup_config(record: &Record) -> CgroupConfig {
    CgroupConfig {
        cgroup_path: record.cgroup_path.clone(),
        systemd_cgroup: record.systemd_cgroup,
        container_name: record.id.clone(),
    }
}

/// The engine's view of a container: what hooks get on stdin.
#[must_use]
pub(crate) fn hook_state(container: &Container, status: Status) -> EngineContainer {
    let record = container.record();
    let mut state = EngineState::new(
        &record.id,
        match status {
            Status::Creating => ContainerStatus::Creating,
            Status::Created => ContainerStatus::Created,
            // The OCI state knows no pause.
            Status::Running | Status::Paused => ContainerStatus::Running,
            Status::Stopped => ContainerStatus::Stopped,
        },
        record.init.map(|init| init.pid),
        record.bundle.clone(),
    );
    state.oci_version.clone_from(&record.oci_version);
    state.annotations = Some(record.annotations.clone());
    EngineContainer {
        state,
        root: container.dir().to_path_buf(),
    }
}

/// Keeps this process from being looked into until dropped.
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

/// Gives this process the container's OOM score while children inherit it, and its own back when dropped.
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
        // Going back below the score that this process was started with needs CAP_SYS_RESOURCE.
        let _ = std::fs::write(OOM_SCORE_FILE, self.former.trim());
    }
}
