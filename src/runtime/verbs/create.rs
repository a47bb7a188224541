//! Creating a container: everything is set up, and its first process waits for `start`.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use chrono::Utc;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::unistd::Pid;
use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};

use super::{delete, update};
use crate::error::chain;
use crate::runtime::container::{Container, Record, validate_id};
use crate::runtime::error::{Error, Result};
use crate::runtime::linux::cgroup::{self, Cgroup};
use crate::runtime::linux::resctrl::Group;
use crate::runtime::process::libcontainer::{self, Launch, Role};
use crate::runtime::process::terminal::{Console, Master};
use crate::runtime::process::{notify, stdio};
use crate::runtime::spec::{self, lower};
use crate::sys;
use crate::sys::process::ProcessId;
use crate::sys::terminal::WindowSize;

/// What a container is made from.
#[derive(Debug, Clone)]
pub struct CreateRequest {
    /// The state directory.
    pub root: PathBuf,
    /// The container's name.
    pub id: String,
    /// The bundle.
    pub bundle: PathBuf,
    /// Whether systemd manages the cgroup.
    pub systemd_cgroup: bool,
    /// Whether the container does without what this user may not do to cgroups, where the spec asks for none of it.
    pub rootless: bool,
    /// Whether the container gets a socket for sd_notify(3).
    pub notifies: bool,
    /// Where the terminal's master goes if rcm does not stay.
    pub console_socket: Option<PathBuf>,
    /// Where a descriptor of the first process goes.
    pub pidfd_socket: Option<PathBuf>,
    /// The file that gets the first process's id.
    pub pid_file: Option<PathBuf>,
    /// Change the root with `MS_MOVE` instead of pivot_root(2): for a root on a ramdisk.
    pub no_pivot: bool,
    /// Leave the container in the caller's session keyring.
    pub no_new_keyring: bool,
    /// How many descriptors after stderr (and those of `LISTEN_FDS`) the container gets.
    pub preserve_fds: i32,
    /// Whether rcm leaves the container to itself (`create`, `run --detach`).
    pub detach: bool,
}

/// A created container; with the terminal's master where rcm stays with it.
#[derive(Debug)]
pub struct Created {
    /// The container.
    pub container: Container,
    /// The terminal, if it has one and nobody else got it.
    pub terminal: Option<Master>,
    /// Its first process, a child of this one.
    pub pid: Pid,
}

/// Creates a container. On failure nothing of it is left behind.
///
/// # Errors
/// [`Error`].
pub fn create(request: &CreateRequest) -> Result<Created> {
    validate_id(&request.id)?;
    let bundle = fs::canonicalize(&request.bundle)
        .map_err(Error::file("use the bundle", &request.bundle))?;
    let config_path = bundle.join("config.json");
    let mut text = spec::read(&config_path)?;
    if request.notifies {
        notify::add_mount(&mut text, &request.root.join(&request.id));
    }
    let given = spec::parse(&config_path, &text)?;
    spec::warn_of_unknown_capabilities(&text);
    lower::validate(&given)?;
    let wants_terminal = has_terminal(&given);
    check_console(request, wants_terminal)?;
    if request.systemd_cgroup {
        check_systemd()?;
    }
    check_preserved(request.preserve_fds)?;
    let names_cgroup = cgroups_path(&given).is_some_and(|path| !path.as_os_str().is_empty());
    let lenient = request.rootless && !request.systemd_cgroup && !names_cgroup;
    let mut lowered = lower::lower(given, &request.id, &bundle, request.systemd_cgroup)?;
    lower::check_dev(&lowered)?;
    if lenient
        && let Some(linux) = lowered.linux_mut()
        && let Some(path) = cgroup::delegated_path(&request.id)
    {
        linux.set_cgroups_path(Some(path));
    }
    if request.notifies {
        notify::add_variable(&mut lowered);
    }

    let record = new_record(request, &bundle, &lowered)?;
    let mut container = claim(&request.root, record, &text)?;
    match set_up(request, &mut container, lowered, wants_terminal, lenient) {
        Ok((pid, terminal)) => Ok(Created {
            container,
            terminal,
            pid,
        }),
        Err(error) => {
            if let Err(left) = delete::discard(&container) {
                tracing::warn!("cleaning up container {}: {}", container.id(), chain(&left));
            }
            Err(error)
        }
    }
}

pub(crate) fn new_record(request: &CreateRequest, bundle: &Path, spec: &Spec) -> Result<Record> {
    let creator = ProcessId::of(Pid::this()).map_err(|error| Error::File {
        action: "read",
        path: "/proc/self/stat".into(),
        source: std::io::Error::other(error),
    })?;
    let cgroup_path = cgroups_path(spec).cloned().unwrap_or_default();
    // Until the first process is there, these are where it will be put, so that a creation that dies can be cleaned up.
    let cgroup_paths = if request.systemd_cgroup {
        BTreeMap::new()
    } else {
        Cgroup::at(&cgroup_path)
            .map_err(cgroup_error("find", &request.id))?
            .paths()
            .clone()
    };
    Ok(Record {
        oci_version: spec.version().clone(),
        id: request.id.clone(),
        init: None,
        creator,
        bundle: bundle.to_path_buf(),
        rootfs: spec
            .root()
            .as_ref()
            .map(|root| root.path().clone())
            .unwrap_or_default(),
        created: Utc::now(),
        annotations: spec.annotations().clone().unwrap_or_default(),
        systemd_cgroup: request.systemd_cgroup,
        rootless: request.rootless,
        cgroup_path,
        cgroup_paths,
        descriptors: Vec::new(),
        no_pivot: request.no_pivot,
    })
}

fn cgroups_path(spec: &Spec) -> Option<&PathBuf> {
    spec.linux().as_ref()?.cgroups_path().as_ref()
}

fn set_up(
    request: &CreateRequest,
    container: &mut Container,
    spec: Spec,
    wants_terminal: bool,
    lenient: bool,
) -> Result<(Pid, Option<Master>)> {
    let console = wants_terminal.then(Console::new).transpose()?;
    let console_socket = match &request.console_socket {
        Some(path) => Some(connect("console", path)?),
        None => None,
    };
    let pidfd_socket = match &request.pidfd_socket {
        Some(path) => Some(connect("pidfd", path)?),
        None => None,
    };
    let console_size = spec.process().as_ref().and_then(console_size);
    let uid = spec.process().as_ref().map(|process| process.user().uid());
    if !request.no_new_keyring {
        join_session_keyring(&request.id);
    }

    if request.notifies {
        notify::make_dir(container)?;
    }
    // Should this process be killed meanwhile, the children that it leaves are known by this: `delete --force` looks for it. A
    // regular file to be read only, so that no path through `/proc/self/fd` leads out of the container.
    let spec_path = container.spec_path();
    let _mark = fs::File::open(&spec_path).map_err(Error::file("read", &spec_path))?;
    let rdt = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.intel_rdt().clone());
    let weighs_devices = lower::resources(&spec)
        .and_then(|resources| resources.block_io().as_ref()?.weight_device().as_ref())
        .is_some_and(|devices| !devices.is_empty());
    let own_network = lower::namespace(&spec, LinuxNamespaceType::Network)
        .is_some_and(|namespace| namespace.path().is_none());
    let own_pids = lower::namespace(&spec, LinuxNamespaceType::Pid)
        .is_some_and(|namespace| namespace.path().is_none());
    let notify_path = container.notify_path();
    let pid = libcontainer::launch(Launch {
        container,
        spec,
        notify_path: &notify_path,
        console: console.as_ref().map(Console::engine_end),
        preserve_fds: request.preserve_fds,
        role: Role::First {
            loopback: own_network,
            lenient,
        },
    })
    .map_err(|reason| Error::Start { reason })?;
    let init = ProcessId::of(pid).map_err(|error| Error::Start {
        reason: format!("the container's first process {pid} is gone: {error}"),
    })?;
    let cgroup = Cgroup::of_process(pid).map_err(cgroup_error("find", &request.id))?;
    let record = container.record_mut();
    record.init = Some(init);
    record.cgroup_paths = cgroup.paths().clone();
    record.descriptors = descriptors(pid);
    container.save()?;
    if request.rootless {
        set_rootless_limits(container, own_pids)?;
    } else if weighs_devices {
        update::set_device_weights(container)?;
    }
    if let Some(rdt) = rdt {
        Group::join(&request.id, pid, &rdt)?;
    }

    let mut terminal = None;
    if let Some(console) = console {
        let master = console.receive()?;
        if let Some(size) = console_size {
            master.resize(size)?;
        }
        match console_socket {
            Some(socket) => master.send(&socket)?,
            None => terminal = Some(master),
        }
    }
    if let Some(uid) = uid {
        stdio::give_to_user(pid, uid)?;
    }
    if let Some(socket) = pidfd_socket {
        let pidfd = sys::process::pidfd_open(pid).map_err(Error::system(
            "open a pidfd of the container's first process",
        ))?;
        sys::socket::send_fd(socket.as_fd(), b"pidfd", pidfd.as_fd())
            .map_err(Error::system("send the pidfd"))?;
    }
    write_pid_file(request.pid_file.as_deref(), pid)?;
    Ok((pid, terminal))
}

/// Without privileges limits are set from here, in the groups that could be made. Device rules are left out: only root can have them.
fn set_rootless_limits(container: &Container, own_pids: bool) -> Result<()> {
    if container.cgroup().paths().is_empty() {
        if !own_pids {
            tracing::warn!(
                "Creating a rootless container with no cgroup and no private pid namespace: its processes cannot all be found when it is \
                 killed"
            );
        }
        return match update::first_limit(container)? {
            Some(limit) => Err(Error::LimitWithoutCgroup { limit }),
            None => Ok(()),
        };
    }
    update::set_limits(container)
}

/// Writes a process id to the file that the caller asked for, atomically.
///
/// # Errors
/// Errors of the file system.
pub(crate) fn write_pid_file(path: Option<&Path>, pid: Pid) -> Result<()> {
    match path {
        Some(path) => sys::file::replace_atomic(path, pid.to_string().as_bytes(), 0o644)
            .map_err(Error::file("write the pid file", path)),
        None => Ok(()),
    }
}

/// For `map_err` on an operation on a container's cgroup.
pub(crate) fn cgroup_error(
    action: &'static str,
    id: &str,
) -> impl FnOnce(crate::runtime::linux::cgroup::CgroupError) -> Error {
    let id = id.to_owned();
    move |source| Error::Cgroup { action, id, source }
}

/// Where a process's stdin, stdout and stderr lead; `/dev/null` for one that cannot be read, as runc has it.
pub(crate) fn descriptors(pid: Pid) -> Vec<String> {
    (0..3)
        .map(|fd| {
            fs::read_link(format!("/proc/{pid}/fd/{fd}")).map_or_else(
                |_| "/dev/null".into(),
                |path| path.to_string_lossy().into_owned(),
            )
        })
        .collect()
}

pub(crate) fn connect(what: &'static str, path: &Path) -> Result<std::os::unix::net::UnixStream> {
    sys::socket::connect(path).map_err(|source| Error::Socket {
        what,
        path: path.to_path_buf(),
        source,
    })
}

/// The size that the spec wants a terminal to have.
pub(crate) fn console_size(process: &Process) -> Option<WindowSize> {
    let size = process.console_size()?;
    Some(WindowSize {
        rows: u16::try_from(size.height()).unwrap_or(u16::MAX),
        columns: u16::try_from(size.width()).unwrap_or(u16::MAX),
    })
}

pub(crate) fn has_terminal(spec: &Spec) -> bool {
    spec.process()
        .as_ref()
        .and_then(|process| process.terminal())
        .unwrap_or(false)
}

pub(crate) fn check_console(request: &CreateRequest, wants_terminal: bool) -> Result<()> {
    match (request.detach && wants_terminal, &request.console_socket) {
        (true, None) => Err(Error::ConsoleSocketNeeded),
        (false, Some(_)) => Err(Error::ConsoleSocketUseless),
        _ => Ok(()),
    }
}

/// Claims the id and the cgroup.
///
/// # Errors
/// As [`Container::claim`], [`Error::CgroupNotEmpty`], [`Error::CgroupFrozen`].
pub(crate) fn claim(root: &Path, record: Record, spec_json: &[u8]) -> Result<Container> {
    let container = Container::claim(root, record, spec_json)?;
    if let Err(error) = check_cgroup(container.record()) {
        // Not `discard`: it would kill whose cgroup this is.
        let _ = fs::remove_dir_all(container.dir());
        return Err(error);
    }
    Ok(container)
}

/// Checks that no one else lives in the container's cgroup: a failed creation, and deleting the container, kill what is in there.
/// In a frozen one the first process would wait for ever.
fn check_cgroup(record: &Record) -> Result<()> {
    let cgroup = Cgroup::new(record.cgroup_paths.clone());
    let processes = cgroup.pids().map_err(cgroup_error("read", &record.id))?;
    if !processes.is_empty() {
        return Err(Error::CgroupNotEmpty {
            path: record.cgroup_path.clone(),
            processes: processes.len(),
        });
    }
    if cgroup.is_frozen() {
        return Err(Error::CgroupFrozen {
            path: record.cgroup_path.clone(),
        });
    }
    Ok(())
}

/// Checks that systemd can manage the cgroup: the engine does this on cgroup v2 only.
pub(crate) fn check_systemd() -> Result<()> {
    let booted = Path::new("/run/systemd/system").is_dir();
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    match (booted, unified) {
        (true, true) => Ok(()),
        (false, _) => Err(Error::NoSystemd {
            reason: "systemd does not run here",
        }),
        (true, false) => Err(Error::NoSystemd {
            reason: "it is used on cgroup v2 only, and this host has v1",
        }),
    }
}

/// Checks that the descriptors which the caller announced are there. rcm's own are close-on-exec, the caller's cannot be.
pub(crate) fn check_preserved(count: i32) -> Result<()> {
    for index in 0..count {
        let inherited = fcntl(3 + index, FcntlArg::F_GETFD)
            .is_ok_and(|flags| !FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC));
        if !inherited {
            return Err(Error::PreservedDescriptor { index, count });
        }
    }
    Ok(())
}

/// The container's processes get a session keyring of their own, called as runc calls it, inherited from this process.
fn join_session_keyring(id: &str) {
    let Ok(name) = CString::new(format!("_ses.{id}")) else {
        return;
    };
    match sys::keyring::join_session(&name) {
        Ok(()) | Err(Errno::ENOSYS) => {}
        // A quota that is used up is no reason not to run the container; runc goes on, too.
        Err(errno) => tracing::warn!(
            "cannot create a session keyring for container {id}: {errno}; --no-new-keyring avoids this"
        ),
    }
}

/// Whether an error says that the file is not there.
pub(crate) fn is_missing(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::NotFound
}
