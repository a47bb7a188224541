//! The processes around a container's: the one that stays outside, and the one between that forks the container's.
//!
//! ```text
//! rcm ──fork──▶ between ──fork (a sibling)──▶ inside: libcontainer's container_init_process
//!  │               │                             │
//!  │               joins the cgroup              │
//!  │◀── mappings? ─makes the user namespace      │
//!  │ writes them ─▶│                             │
//!  │◀── pid ───────ends                          makes the namespaces, mounts
//!  │◀── now? ────────────────────────────────────│
//!  │ hooks ─────────────────────────────────────▶│ changes the root, ...
//!  │◀── ready ───────────────────────────────────│ waits to be started
//! ```
//!
//! `libcontainer` has all three. Only the inner one is used, which does nearly all of the work: its outer ones join every cgroup or fail, know one path
//! for all hierarchies, and leave out of a hook's failure which one it was and what it said. The channels between the three are its own.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use libcontainer::namespaces::NamespaceError;
use libcontainer::network::NetworkError;
use libcontainer::network::network_device::dev_change_net_namespace;
use libcontainer::process::args::{ContainerArgs, ContainerType};
use libcontainer::process::channel::{self, ChannelError};
use libcontainer::process::cpu_affinity::CPUAffinityError;
use libcontainer::syscall::SyscallError;
use libcontainer::user_ns::UserNamespaceError;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::Pid;
use oci_spec::runtime::{ContainerState, Linux, LinuxNamespace, LinuxNamespaceType};

use crate::error::chain;
use crate::runtime::linux::cgroup::{CgroupError, Entry};
use crate::runtime::linux::hooks::{self, HookError};
use crate::runtime::linux::mounts::StageError;
use crate::sys;
use crate::sys::error_capture;
use crate::sys::file::Failed;
use crate::sys::fork::{Parent, fork};
use intermediate::Between;

mod in_namespaces;
mod intermediate;

pub(crate) use in_namespaces::run_inside;

/// A process could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum LaunchError {
    /// One of the processes ended, or said why it fails.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] Failed),
    /// A system call failed.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: Errno,
    },
    /// runc's sentence.
    #[error("unable to apply cgroup configuration")]
    Cgroup(#[source] CgroupError),
    /// A process cannot join the container's cgroup.
    #[error(transparent)]
    JoinCgroup(CgroupError),
    /// The ids could not be mapped.
    #[error(transparent)]
    Mapping(#[from] UserNamespaceError),
    /// A namespace could not be made or joined.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// A limit or an id could not be set.
    #[error(transparent)]
    Syscall(#[from] SyscallError),
    /// The process could not be bound to processors.
    #[error(transparent)]
    Affinity(#[from] CPUAffinityError),
    /// A network device could not be moved into the container.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The listener of a seccomp filter did not take its descriptor.
    #[error("failed to connect with seccomp agent at {path} (`linux.seccomp.listenerPath`)")]
    SeccompListener {
        /// Its socket, `linux.seccomp.listenerPath`.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The loopback interface stays down.
    #[error("cannot bring the loopback interface up")]
    Loopback(#[source] io::Error),
    /// A hook failed.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The container's mounts cannot get what they are to have.
    #[error(transparent)]
    Mounts(StageError),
    /// What was done in the container's namespaces failed.
    #[error("{reason}")]
    Inside {
        /// One of these errors, from another process.
        reason: String,
    },
}

type Result<T> = std::result::Result<T, LaunchError>;

/// For `map_err` on a system call.
fn system(action: &'static str) -> impl FnOnce(Errno) -> LaunchError {
    move |source| LaunchError::System { action, source }
}

/// What the outer processes need to know.
pub(crate) struct Outer<'a> {
    /// What the engine sets up. The spec of a container's first process must have `hooks`, if only empty ones.
    pub args: &'a ContainerArgs,
    /// Done first of all, before there are namespaces.
    pub entry: &'a Entry<'a>,
    /// Namespaces that are joined before the user namespace. They are not in the spec.
    pub foreign: &'a [LinuxNamespace],
    /// Where a process that joins says why it does not begin after it was started.
    pub errors: Option<&'a OwnedFd>,
    /// Whether rcm has no rights over a process that is not dumpable but needs to enter its namespaces. Nobody else may be in these.
    pub visible: bool,
}

/// Forks a process and waits until it can be started.
///
/// The first process of a container lets `at_hooks` run when its namespaces and mounts are there and its root is still the host's.
///
/// # Errors
/// [`LaunchError`]. What failed in one of the other processes is in the [error capture](error_capture).
pub(crate) fn launch(outer: &Outer, at_hooks: impl FnOnce(Pid) -> Result<()>) -> Result<Pid> {
    let args = outer.args;
    let (mut to_us, mut from_between) = channel::main_channel()?;
    let (mut init_to_us, mut from_init) = channel::main_channel()?;
    let (mut to_between, mut between_from_us) = channel::intermediate_channel()?;
    let (mut to_init, mut init_from_us) = channel::init_channel()?;

    let between = fork(Parent::This, || {
        let mut ends = Between {
            outer,
            to_us: &mut to_us,
            from_us: &mut between_from_us,
            init_to_us: &mut init_to_us,
            init_from_us: &mut init_from_us,
        };
        // rcm's ends: while they are open here, too, nobody learns that rcm was killed.
        let _ = (to_between.close(), to_init.close());
        let _ = (from_between.close(), from_init.close());
        let _ = prctl::set_name(c"rcm:[1:CHILD]");
        match ends.run() {
            Ok(()) => 0,
            Err(error) => {
                let text = chain(&error);
                error_capture::record(&text);
                let _ = ends.to_us.send_error(text);
                1
            }
        }
    })
    .map_err(system("fork"))?;
    to_us.close()?;
    init_to_us.close()?;
    between_from_us.close()?;
    init_from_us.close()?;

    let linux = args.spec.linux().as_ref();
    if let Some(mapping) = &args.user_ns_config {
        from_between.wait_for_mapping_request()?;
        if !mapping.privileged {
            // Without privileges the mapping of groups needs this (user_namespaces(7); CVE-2014-8989).
            write(&format!("/proc/{between}/setgroups"), "deny")?;
        }
        mapping.write_uid_mapping(between)?;
        mapping.write_gid_mapping(between)?;
        to_between.mapping_written()?;
    }
    if let Some(offsets) = linux.and_then(time_offsets) {
        from_between.wait_for_time_offset_request()?;
        write(&format!("/proc/{between}/timens_offsets"), &offsets)?;
        to_between.time_offsets_written()?;
    }
    to_between.close()?;
    let pid = from_between.wait_for_intermediate_ready()?;

    if matches!(args.container_type, ContainerType::InitContainer) {
        from_init.wait_for_hook_request()?;
        at_hooks(pid)?;
        to_init.hook_done()?;
    }
    if let Some(linux) = linux {
        move_network_devices(linux, pid, &mut from_init, &mut to_init)?;
        pass_seccomp_listener(args, linux, pid, &mut from_init, &mut to_init)?;
    }
    to_init.close()?;
    from_init.wait_for_init_ready()?;
    from_between.close()?;
    from_init.close()?;
    // Its status tells nothing that the messages have not.
    let _ = sys::process::wait(between);
    Ok(pid)
}

fn write(path: &str, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|source| {
        LaunchError::File(Failed {
            action: "write",
            path: path.into(),
            source,
        })
    })
}

/// What `/proc/PID/timens_offsets` takes (time_namespaces(7)), where a time namespace is made and has offsets.
fn time_offsets(linux: &Linux) -> Option<String> {
    let offsets = linux.time_offsets().as_ref()?;
    let made = linux
        .namespaces()
        .iter()
        .flatten()
        .any(|one| one.typ() == LinuxNamespaceType::Time && one.path().is_none());
    (made && !offsets.is_empty()).then(|| {
        offsets
            .iter()
            .map(|(clock, offset)| {
                let (seconds, nanoseconds) = (offset.secs(), offset.nanosecs());
                format!(
                    "{clock} {} {}\n",
                    seconds.unwrap_or(0),
                    nanoseconds.unwrap_or(0)
                )
            })
            .collect()
    })
}

fn move_network_devices(
    linux: &Linux,
    pid: Pid,
    from_init: &mut channel::MainReceiver,
    to_init: &mut channel::InitSender,
) -> Result<()> {
    let namespaces = linux.namespaces().iter().flatten();
    let network = namespaces
        .into_iter()
        .find(|one| one.typ() == LinuxNamespaceType::Network);
    let (Some(devices), Some(network)) = (linux.net_devices(), network) else {
        return Ok(());
    };
    if devices.is_empty() {
        return Ok(());
    }
    from_init.wait_for_network_setup_ready()?;
    let path = network
        .path()
        .clone()
        .unwrap_or_else(|| format!("/proc/{pid}/ns/net").into());
    let namespace = fs::File::open(&path).map_err(|source| {
        LaunchError::File(Failed {
            action: "open",
            path,
            source,
        })
    })?;
    let mut addresses = std::collections::HashMap::new();
    for (name, device) in devices {
        let moved = dev_change_net_namespace(name, namespace.as_raw_fd(), device)?;
        addresses.insert(name.clone(), moved);
    }
    to_init.move_network_device(addresses)?;
    Ok(())
}

/// A filter that asks a listener in user space: the kernel's descriptor for it goes to the listener's socket, with the container's state.
fn pass_seccomp_listener(
    args: &ContainerArgs,
    linux: &Linux,
    pid: Pid,
    from_init: &mut channel::MainReceiver,
    to_init: &mut channel::InitSender,
) -> Result<()> {
    let Some(seccomp) = linux
        .seccomp()
        .as_ref()
        .filter(|seccomp| libcontainer::seccomp::is_notify(seccomp))
    else {
        return Ok(());
    };
    let listener = from_init.wait_for_seccomp_request()?;
    let path = seccomp.listener_path().clone().unwrap_or_default();
    let state = args.container.as_ref().and_then(|container| {
        let mut state = hooks::oci_state(&container.state, Some(pid)).ok()?;
        if !matches!(args.container_type, ContainerType::InitContainer) {
            state.set_status(ContainerState::Running);
        }
        Some(state)
    });
    let text = serde_json::json!({
        "ociVersion": oci_spec::runtime::VERSION,
        "fds": [oci_spec::runtime::SECCOMP_FD_NAME],
        "pid": pid.as_raw(),
        "metadata": seccomp.listener_metadata().as_deref().unwrap_or_default(),
        "state": state,
    })
    .to_string();
    let sent = sys::socket::connect(&path).and_then(|socket| {
        Ok(sys::socket::send_fd(
            socket.as_fd(),
            text.as_bytes(),
            listener,
        )?)
    });
    let _ = nix::unistd::close(listener);
    sent.map_err(|source| LaunchError::SeccompListener { path, source })?;
    to_init.seccomp_notify_done()?;
    Ok(())
}
