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
use libcontainer::process::container_main_process::container_main_process;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::user_ns::UserNamespaceConfig;
use nix::errno::Errno;
use nix::unistd::Pid;
use oci_spec::runtime::{Hook, Process, Spec};

use super::container::{Container, Record, Status};
use super::executor::ProcessExecutor;
use super::mounts::{self, Stage};
use crate::sys::trail::Trail;

/// What is to be started.
#[derive(Debug)]
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
    /// For a process that joins the container: where the engine reports a failure after the start.
    pub tenant_errors: Option<&'a OwnedFd>,
    /// The cgroup as the engine's manager is told.
    pub cgroup_path: PathBuf,
}

/// Forks the process, sets everything up and leaves it waiting at its notify socket.
///
/// # Errors
/// The deepest cause that is known, as one sentence.
pub(crate) fn launch(mut launch: Launch) -> Result<Launched, String> {
    let record = launch.container.record();
    let init = launch.tenant_errors.is_none();
    // Every namespace that is joined or made could otherwise look into this process before it has dropped what the host
    // gave it (ptrace(2), PTRACE_MODE; CVE-2016-9962).
    let _dumpable = Undumpable::enter();
    let _stage = match init {
        true => Stage::prepare(&mut launch.spec).map_err(|error| chain(&error))?,
        false => None,
    };
    let user_ns_config = if init {
        UserNamespaceConfig::new(&launch.spec).map_err(|error| chain(&error))?
    } else {
        // A process that joins has its mappings already.
        None
    };
    let notify_listener = NotifyListener::new(launch.notify_path).map_err(|error| chain(&error))?;
    let process = launch.spec.process().as_ref();
    let oom_score = process.and_then(|process| process.oom_score_adj());
    let executor = if init {
        let state = hook_state(launch.container, Status::Created).state;
        ProcessExecutor::of_init(take_start_hooks(&mut launch.spec), state)
    } else {
        ProcessExecutor::default()
    };
    let spec = Rc::new(launch.spec);
    let args = ContainerArgs {
        container_type: match launch.tenant_errors {
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
        container: Some(hook_state(launch.container, Status::Creating)),
        user_ns_config,
        cgroup_config: cgroup_config(record, launch.cgroup_path),
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
    let mut trail = Trail::start().map_err(|errno| errno.to_string())?;
    let _oom_score = oom_score.map(OomScore::enter).transpose()?;
    match container_main_process(&args) {
        Ok(pid) => {
            if init {
                mounts::propagate(pid, &spec).map_err(|error| chain(&error))?;
            }
            let seen = trail.records().len();
            Ok(Launched { pid, trail, seen })
        }
        Err(error) => Err(reason(&mut trail, &error, &spec)),
    }
}

/// The `startContainer` hooks, which rcm's executor runs instead of the engine.
fn take_start_hooks(spec: &mut Spec) -> Vec<Hook> {
    let Some(mut hooks) = spec.hooks().clone() else {
        return Vec::new();
    };
    let taken = hooks.start_container().clone().unwrap_or_default();
    hooks.set_start_container(None);
    spec.set_hooks(Some(hooks));
    taken
}

/// A process that waits at its notify socket.
#[derive(Debug)]
pub struct Launched {
    /// Its id; a child of this process.
    pub pid: Pid,
    /// Where it writes what goes wrong between its start and its execve.
    trail: Trail,
    /// How many records of the set-up are before that: what failed there without harm.
    seen: usize,
}

impl Launched {
    /// Why the process could not be executed after its start. Ask only when it has ended: until then it may still write.
    #[must_use]
    pub fn start_failure(&mut self) -> Option<String> {
        self.trail.records().into_iter().nth(self.seen)
    }
}

/// The deepest cause of a failure: runc's sentence where the executor refused, else the first error that the engine logged.
fn reason(trail: &mut Trail, error: &dyn std::error::Error, spec: &Spec) -> String {
    let flat = chain(error);
    // The engine's own wrapping of what rcm's executor said.
    if let Some(at) = flat.find("exec: \"") {
        return format!("error during container init: {}", &flat[at..]);
    }
    let first = trail.records().into_iter().next().unwrap_or_default();
    if let Some(failure) = first.strip_prefix("failed to chdir") {
        return format!("error during container init: {}", chdir(failure, spec));
    }
    let mut text = match first.is_empty() || flat.contains(&first) {
        true => flat,
        false => format!("{first} ({flat})"),
    };
    if text.contains("hook")
        && let Some(missing) = missing_hook(spec)
    {
        text = format!("{text}: {} does not exist", missing.display());
    }
    text
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

/// The engine does not say which hook it could not execute.
fn missing_hook(spec: &Spec) -> Option<PathBuf> {
    let hooks = spec.hooks().as_ref()?;
    #[allow(deprecated, reason = "prestart hooks still exist in specs")]
    let kinds = [
        hooks.prestart(),
        hooks.create_runtime(),
        hooks.create_container(),
    ];
    kinds
        .into_iter()
        .flatten()
        .flatten()
        .map(Hook::path)
        .find(|path| !path.exists())
        .cloned()
}

/// An error and its sources, joined with colons.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        // Transparent errors repeat their source's sentence.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}

/// How the engine's cgroup manager is told about a container.
#[must_use]
pub(crate) fn cgroup_config(record: &Record, cgroup_path: PathBuf) -> CgroupConfig {
    CgroupConfig {
        cgroup_path,
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
