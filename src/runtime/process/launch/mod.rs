//! The processes that start a container's process: rcm, which stays outside, and the intermediate
//! one, which forks the container's.
//!
//! ```text
//! rcm --fork--> intermediate --fork (a sibling)--> libcontainer's container_init_process
//!  |               |                                |
//!  |               joins the cgroup                 |
//!  |<-- mappings? -makes the user namespace         |
//!  | writes them ->|                                |
//!  |<-- pid -------ends                             makes the namespaces, mounts
//!  |<-- now? ---------------------------------------|
//!  | hooks ---------------------------------------->| changes the root, ...
//!  |<-- ready --------------------------------------| waits for the start
//! ```
//!
//! libcontainer has all three processes. rcm uses only the inner one, which does nearly all of the
//! work. libcontainer's outer processes join every cgroup or fail, know only one path for all
//! hierarchies, and do not report which hook failed, nor its output. The channels are
//! libcontainer's.

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
use intermediate::Intermediate;

mod in_namespaces;
mod intermediate;

pub(crate) use in_namespaces::run_in_namespaces;

/// Failure to set a process up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum LaunchError {
    /// One of the processes ended, or reported its failure.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] Failed),
    /// A system call failed.
    #[error("cannot {action}")]
    System {
        /// The failed action.
        action: &'static str,
        /// Error of the system call.
        #[source]
        source: Errno,
    },
    /// The process cannot join its cgroup; the sentence is runc's.
    #[error("unable to apply cgroup configuration")]
    Cgroup(#[source] CgroupError),
    /// A process that joins cannot join the container's cgroup.
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
    /// The process's CPU affinity could not be set.
    #[error(transparent)]
    Affinity(#[from] CPUAffinityError),
    /// A network device could not be moved into the container.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The listener of a seccomp filter did not take the filter's descriptor.
    #[error("failed to connect with seccomp agent at {path} (`linux.seccomp.listenerPath`)")]
    SeccompListener {
        /// Path of the listener's socket, `linux.seccomp.listenerPath`.
        path: PathBuf,
        /// Error of the socket.
        #[source]
        source: io::Error,
    },
    /// The loopback interface could not be brought up.
    #[error("cannot bring the loopback interface up")]
    Loopback(#[source] io::Error),
    /// A hook failed.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The container's mounts are invalid, or could not be completed.
    #[error(transparent)]
    Mounts(StageError),
    /// Work in the container's namespaces failed.
    #[error("{reason}")]
    InNamespaces {
        /// Error chain, from another process.
        reason: String,
    },
}

type Result<T> = std::result::Result<T, LaunchError>;

/// Converts the error of a system call, for `map_err`.
fn system(action: &'static str) -> impl FnOnce(Errno) -> LaunchError {
    move |source| LaunchError::System { action, source }
}

/// Inputs of the outer processes.
pub(crate) struct Outer<'a> {
    /// Arguments for libcontainer. The spec of a container's first process must have `hooks`, even
    /// if these are empty.
    pub args: &'a ContainerArgs,
    /// The groups of the process, which it enters before any namespace is made.
    pub entry: &'a Entry<'a>,
    /// Namespaces that are joined before the user namespace. They are not in the spec.
    pub foreign: &'a [LinuxNamespace],
    /// Pipe to which a joining process reports a failure after the start.
    pub errors: Option<&'a OwnedFd>,
    /// Whether the process must be dumpable, because rcm has no rights over it otherwise and needs
    /// to enter its namespaces. In that case nobody else may be in these namespaces.
    pub visible: bool,
}

/// Forks a process, and waits until it can be started.
///
/// For the first process of a container, `at_hooks` runs when its namespaces and mounts are made
/// and its root is still the host's.
///
/// # Errors
/// [`LaunchError`]. Failures in the other processes are in the [error capture](error_capture).
pub(crate) fn launch(outer: &Outer, at_hooks: impl FnOnce(Pid) -> Result<()>) -> Result<Pid> {
    let args = outer.args;
    let (mut to_us, mut from_intermediate) = channel::main_channel()?;
    let (mut init_to_us, mut from_init) = channel::main_channel()?;
    let (mut to_intermediate, mut intermediate_from_us) = channel::intermediate_channel()?;
    let (mut to_init, mut init_from_us) = channel::init_channel()?;

    let intermediate = fork(Parent::This, || {
        let mut ends = Intermediate {
            outer,
            to_us: &mut to_us,
            from_us: &mut intermediate_from_us,
            init_to_us: &mut init_to_us,
            init_from_us: &mut init_from_us,
        };
        // Close rcm's ends. As long as they are open in this process, too, nobody would notice that
        // rcm was killed.
        let _ = (to_intermediate.close(), to_init.close());
        let _ = (from_intermediate.close(), from_init.close());
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
    intermediate_from_us.close()?;
    init_from_us.close()?;

    let linux = args.spec.linux().as_ref();
    if let Some(mapping) = &args.user_ns_config {
        from_intermediate.wait_for_mapping_request()?;
        if !mapping.privileged {
            // Without privileges, the kernel requires this before groups are mapped
            // (user_namespaces(7); CVE-2014-8989).
            write(&format!("/proc/{intermediate}/setgroups"), "deny")?;
        }
        mapping.write_uid_mapping(intermediate)?;
        mapping.write_gid_mapping(intermediate)?;
        to_intermediate.mapping_written()?;
    }
    if let Some(offsets) = linux.and_then(time_offsets) {
        from_intermediate.wait_for_time_offset_request()?;
        write(&format!("/proc/{intermediate}/timens_offsets"), &offsets)?;
        to_intermediate.time_offsets_written()?;
    }
    to_intermediate.close()?;
    let pid = from_intermediate.wait_for_intermediate_ready()?;

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
    from_intermediate.close()?;
    from_init.close()?;
    // The messages have said everything that its exit status could.
    let _ = sys::process::wait(intermediate);
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

/// Returns the text for `/proc/PID/timens_offsets` (time_namespaces(7)), if a time namespace is
/// made and has offsets.
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

/// Passes on a filter that asks a listener in user space: sends the kernel's descriptor to the
/// listener's socket, with the container's state.
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
