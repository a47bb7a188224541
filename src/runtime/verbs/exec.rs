//! Executing another process in a container.

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use oci_spec::runtime::{
    Linux, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, Process, Spec,
};

use super::create::{check_console, check_preserved};
use crate::runtime::container::Container;
use crate::runtime::error::{Error, Result};
use crate::runtime::linux::cgroup::{Cgroup, CgroupError, Entry, SubCgroups};
use crate::runtime::linux::seccomp;
use crate::runtime::process::delivery::{Delivery, PidfdOf, Requested};
use crate::runtime::process::libcontainer::{Joining, Launch};
use crate::runtime::process::terminal::Master;
use crate::runtime::spec::lower;
use crate::runtime::status::Status;
use crate::sys;

/// Input of `exec`.
#[derive(Debug)]
pub struct ExecRequest {
    /// The process, as the `process` object of a spec.
    pub process: Process,
    /// Socket that gets the terminal's master if rcm does not stay in the foreground.
    pub console_socket: Option<PathBuf>,
    /// Socket that gets a pidfd of the process.
    pub pidfd_socket: Option<PathBuf>,
    /// File that gets the process's id.
    pub pid_file: Option<PathBuf>,
    /// Number of descriptors after stderr that the process gets.
    pub preserve_fds: i32,
    /// Whether rcm exits and the process runs on.
    pub detach: bool,
    /// Whether to execute although the container is paused: the process waits until it is resumed.
    pub ignore_paused: bool,
    /// Groups below the container's, for the process to join.
    pub sub_cgroups: SubCgroups,
}

/// Process that joined a container.
#[derive(Debug)]
pub struct Executed {
    /// Id of the process, a child of this one.
    pub pid: Pid,
    /// Master of the terminal, if there is one and no socket got it.
    pub terminal: Option<Master>,
    start: StartGate,
}

/// Gate at which the process waits for its start.
#[derive(Debug)]
struct StartGate {
    socket_path: PathBuf,
    errors: OwnedFd,
    /// libcontainer's end of `errors`, open until the start.
    writer: OwnedFd,
}

/// Namespaces that a process joins, with their names in `/proc/PID/ns` and libcontainer's. The user
/// namespace is first, because it owns the others.
const NAMESPACES: [(&str, LinuxNamespaceType); 8] = [
    ("user", LinuxNamespaceType::User),
    ("ipc", LinuxNamespaceType::Ipc),
    ("uts", LinuxNamespaceType::Uts),
    ("net", LinuxNamespaceType::Network),
    ("pid", LinuxNamespaceType::Pid),
    ("mnt", LinuxNamespaceType::Mount),
    ("cgroup", LinuxNamespaceType::Cgroup),
    ("time", LinuxNamespaceType::Time),
];

/// Sets up a process in the container's namespaces and cgroup. It waits for [`Executed::start`].
///
/// # Errors
/// [`Error`].
pub fn exec(container: &Container, mut request: ExecRequest) -> Result<Executed> {
    check(container, &request)?;
    lower::normalize_process(&mut request.process);
    let init = container.live_init()?;
    let spec = tenant_spec(container.spec()?, request.process.clone(), init)?;
    let entry = entry(container, &request.sub_cgroups, init)
        .map_err(Error::cgroup("join", container.id()))?;
    let requested = Requested {
        console_socket: request.console_socket.as_deref(),
        pidfd_socket: request.pidfd_socket.as_deref(),
        pid_file: request.pid_file.as_deref(),
    };
    let delivery = Delivery::prepare(Some(&request.process), requested)?;
    let start = StartGate::prepare(container)?;

    let launch = Launch {
        container,
        spec,
        notify_path: &start.socket_path,
        console: delivery.libcontainer_end(),
        preserve_fds: request.preserve_fds,
    };
    let joining = Joining {
        entry,
        errors: &start.writer,
    };
    let pid = joining.launch(launch).map_err(|reason| {
        start.remove();
        Error::Exec { reason }
    })?;
    // The process exists. If its creator cannot get everything that it requested, the process must
    // not stay.
    match delivery.complete(pid, PidfdOf::Joined) {
        Ok(terminal) => Ok(Executed {
            pid,
            terminal,
            start,
        }),
        Err(error) => {
            start.remove();
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            Err(error)
        }
    }
}

/// Checks that the container takes another process, and that the request is consistent.
fn check(container: &Container, request: &ExecRequest) -> Result<()> {
    match container.status() {
        Status::Stopped | Status::Creating => return Err(Error::ExecStopped),
        Status::Paused if !request.ignore_paused => return Err(Error::ExecPaused),
        _ => {}
    }
    lower::validate_process(&request.process)?;
    let wants_terminal = request.process.terminal().unwrap_or(false);
    check_console(
        request.detach,
        request.console_socket.as_deref(),
        wants_terminal,
    )?;
    check_preserved(request.preserve_fds)
}

/// Returns the container's groups that a process joins.
fn entry(
    container: &Container,
    subs: &SubCgroups,
    init: Pid,
) -> Result<Entry<'static>, CgroupError> {
    let cgroup = container.cgroup();
    let target = cgroup.below(subs)?;
    let otherwise = if cgroup.is_v2() && subs.is_empty() {
        Some(Cgroup::of_process(init)?)
    } else {
        None
    };
    Ok(Entry::Join {
        target,
        otherwise,
        rootless: container.record().rootless,
    })
}

impl StartGate {
    fn prepare(container: &Container) -> Result<Self> {
        let (errors, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
            .map_err(Error::system("make a pipe"))?;
        let socket_path = container
            .dir()
            .join(format!("exec-{}.sock", std::process::id()));
        Ok(Self {
            socket_path,
            errors,
            writer,
        })
    }

    fn remove(&self) {
        // A remaining file would do no harm: it is removed with the container's directory.
        let _ = fs::remove_file(&self.socket_path);
    }
}

impl Executed {
    /// Lets the process begin, and waits until the program has replaced it.
    ///
    /// # Errors
    /// [`Error::Exec`] if the program could not be executed.
    pub fn start(&mut self) -> Result<()> {
        use std::io::Write;
        let path = self.start.socket_path.clone();
        let told =
            sys::socket::connect(&path).and_then(|mut socket| socket.write_all(b"start container"));
        self.start.remove();
        told.map_err(Error::file("start the process through", &path))?;
        let (_, unused) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
            .map_err(Error::system("make a pipe"))?;
        // Drop this process's writing end. Now only the other process has one, and execve closes
        // it: the read below ends then.
        drop(std::mem::replace(&mut self.start.writer, unused));
        let mut reason = String::new();
        let errors = self
            .start
            .errors
            .try_clone()
            .map_err(Error::file("read", "the error pipe"))?;
        fs::File::from(errors)
            .read_to_string(&mut reason)
            .map_err(Error::file("read", "the error pipe"))?;
        if reason.is_empty() {
            Ok(())
        } else {
            Err(Error::Exec { reason })
        }
    }
}

/// Returns the spec of a process that joins. It is the container's, with another process, and with
/// the namespaces of the first process.
fn tenant_spec(spec: Spec, process: Process, init: Pid) -> Result<Spec> {
    let mut linux = spec.linux().clone().unwrap_or_default();
    lower::drop_personality_flags(&mut linux);
    let mut filter = linux.seccomp().clone();
    filter.iter_mut().for_each(seccomp::lower);
    let mut joined = Linux::default();
    joined
        .set_namespaces(Some(joined_namespaces(init)?))
        .set_seccomp(filter)
        .set_memory_policy(linux.memory_policy().clone())
        .set_personality(linux.personality().clone())
        .set_mount_label(linux.mount_label().clone())
        .set_resources(None)
        .set_devices(None)
        .set_masked_paths(None)
        .set_readonly_paths(None)
        .set_cgroups_path(linux.cgroups_path().clone());
    let mut tenant = spec;
    tenant
        .set_process(Some(process))
        .set_linux(Some(joined))
        .set_hooks(None)
        .set_mounts(None);
    Ok(tenant)
}

/// Returns the namespaces that differ between the container and this process. They may include some
/// that the spec does not name, because the first process may have been put there by other means:
/// CRIU restores into a time namespace, and refuses to dump processes in several.
fn joined_namespaces(init: Pid) -> Result<Vec<LinuxNamespace>> {
    let mut namespaces = Vec::with_capacity(NAMESPACES.len());
    for (file, kind) in NAMESPACES {
        let path = PathBuf::from(format!("/proc/{init}/ns/{file}"));
        let own = Path::new("/proc/self/ns").join(file);
        let same = match (fs::read_link(&path), fs::read_link(&own)) {
            (Ok(theirs), Ok(ours)) => theirs == ours,
            // This kernel does not have namespaces of this kind.
            _ => true,
        };
        if same {
            continue;
        }
        let namespace = LinuxNamespaceBuilder::default()
            .typ(kind)
            .path(path)
            .build()
            .map_err(|error| Error::Exec {
                reason: error.to_string(),
            })?;
        namespaces.push(namespace);
    }
    Ok(namespaces)
}
