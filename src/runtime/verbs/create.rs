//! Creating a container: everything is set up, and its first process waits for `start`.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};

use chrono::Utc;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::unistd::Pid;
use oci_spec::runtime::{LinuxIntelRdt, LinuxNamespaceType, Spec};

use super::{delete, update};
use crate::error::chain;
use crate::runtime::container::{Container, Record, validate_id};
use crate::runtime::error::{Error, Result};
use crate::runtime::linux::cgroup::{self, Cgroup};
use crate::runtime::linux::resctrl::Group;
use crate::runtime::process::delivery::{Delivery, PidfdOf, Requested};
use crate::runtime::process::libcontainer::{First, Launch};
use crate::runtime::process::terminal::Master;
use crate::runtime::process::{notify, stdio};
use crate::runtime::spec::namespaces::Namespaces;
use crate::runtime::spec::{self, lower};
use crate::sys;
use crate::sys::process::ProcessId;

/// Input of a creation.
#[derive(Debug, Clone)]
pub struct CreateRequest {
    /// State directory.
    pub root: PathBuf,
    /// Name of the container.
    pub id: String,
    /// Path of the bundle.
    pub bundle: PathBuf,
    /// Whether systemd manages the cgroup.
    pub systemd_cgroup: bool,
    /// Whether rcm skips changes to cgroups that this user is not allowed to make, if the spec does
    /// not require them.
    pub rootless: bool,
    /// Whether the container gets a socket for sd_notify(3).
    pub notifies: bool,
    /// Socket that gets the terminal's master if rcm does not stay in the foreground.
    pub console_socket: Option<PathBuf>,
    /// Socket that gets a pidfd of the first process.
    pub pidfd_socket: Option<PathBuf>,
    /// File that gets the first process's id.
    pub pid_file: Option<PathBuf>,
    /// Whether the root is changed with `MS_MOVE` instead of pivot_root(2), for a root on a
    /// ramdisk.
    pub no_pivot: bool,
    /// Whether the container stays in the caller's session keyring.
    pub no_new_keyring: bool,
    /// Number of descriptors after stderr (and those of `LISTEN_FDS`) that the container gets.
    pub preserve_fds: i32,
    /// Whether rcm exits and the container runs on (`create`, `run --detach`).
    pub detach: bool,
}

/// Container that was created.
#[derive(Debug)]
pub struct Created {
    /// The container.
    pub container: Container,
    /// Master of the terminal, if there is one and no socket got it.
    pub terminal: Option<Master>,
    /// First process of the container, a child of this process.
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
    check_console(
        request.detach,
        request.console_socket.as_deref(),
        wants_terminal,
    )?;
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

    let namespaces = Namespaces::of(&lowered);
    let record = new_record(request, &bundle, &lowered)?;
    let mut container = claim(&request.root, record, &text)?;
    match set_up(request, &mut container, lowered, &namespaces, lenient) {
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
    let creator = ProcessId::of(Pid::this())
        .map_err(std::io::Error::other)
        .map_err(Error::file("read", "/proc/self/stat"))?;
    let cgroup_path = cgroups_path(spec).cloned().unwrap_or_default();
    // Until the first process exists, these are the groups that it will be put into. With them, a
    // creation that dies can be cleaned up.
    let cgroup_paths = if request.systemd_cgroup {
        BTreeMap::new()
    } else {
        Cgroup::at(&cgroup_path)
            .map_err(Error::cgroup("find", &request.id))?
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

/// Sets a claimed container up. Everything is in place when this returns, and the first process
/// waits for the start.
fn set_up(
    request: &CreateRequest,
    container: &mut Container,
    spec: Spec,
    namespaces: &Namespaces,
    lenient: bool,
) -> Result<(Pid, Option<Master>)> {
    let requested = Requested {
        console_socket: request.console_socket.as_deref(),
        pidfd_socket: request.pidfd_socket.as_deref(),
        pid_file: request.pid_file.as_deref(),
    };
    let delivery = Delivery::prepare(spec.process().as_ref(), requested)?;
    if !request.no_new_keyring {
        // Join before the fork: the container inherits the keyring.
        join_session_keyring(&request.id);
    }
    if request.notifies {
        notify::make_dir(container)?;
    }
    // If this process is killed during the launch, `delete --force` finds its children by this open
    // file. The file is a regular one and open for reading only, so that no path through
    // `/proc/self/fd` leads out of the container.
    let spec_path = container.spec_path();
    let _mark = fs::File::open(&spec_path).map_err(Error::file("read", &spec_path))?;
    let limits = OuterLimits::of(&spec);
    let notify_path = container.notify_path();
    let launch = Launch {
        container,
        spec,
        notify_path: &notify_path,
        console: delivery.libcontainer_end(),
        preserve_fds: request.preserve_fds,
    };
    let first = First {
        namespaces,
        lenient,
    };
    let pid = first
        .launch(launch)
        .map_err(|reason| Error::Start { reason })?;
    // Register first: if a later step fails, `delete::discard` kills the process that the record
    // names.
    register(container, pid)?;
    limits.apply(request, container, namespaces, pid)?;
    // Deliver last: the pid file tells engines that the container is complete.
    let terminal = delivery.complete(pid, PidfdOf::Init)?;
    Ok((pid, terminal))
}

/// Stores the first process in the container's record.
fn register(container: &mut Container, pid: Pid) -> Result<()> {
    let init = ProcessId::of(pid).map_err(|error| Error::Start {
        reason: format!("the container's first process {pid} is gone: {error}"),
    })?;
    let cgroup = Cgroup::of_process(pid).map_err(Error::cgroup("find", container.id()))?;
    let record = container.record_mut();
    record.init = Some(init);
    record.cgroup_paths = cgroup.paths().clone();
    record.descriptors = stdio::descriptors(pid);
    container.save()
}

/// Limits that rcm sets itself when the first process exists, because libcontainer does not.
#[derive(Debug)]
struct OuterLimits {
    rdt: Option<LinuxIntelRdt>,
    weighs_devices: bool,
}

impl OuterLimits {
    fn of(spec: &Spec) -> Self {
        let linux = spec.linux().as_ref();
        Self {
            rdt: linux.and_then(|linux| linux.intel_rdt().clone()),
            weighs_devices: lower::resources(spec)
                .and_then(|resources| resources.block_io().as_ref()?.weight_device().as_ref())
                .is_some_and(|devices| !devices.is_empty()),
        }
    }

    fn apply(
        &self,
        request: &CreateRequest,
        container: &Container,
        namespaces: &Namespaces,
        pid: Pid,
    ) -> Result<()> {
        if request.rootless {
            set_rootless_limits(container, namespaces.makes(LinuxNamespaceType::Pid))?;
        } else if self.weighs_devices {
            update::set_device_weights(container)?;
        }
        if let Some(rdt) = &self.rdt {
            Group::join(&request.id, pid, rdt).map_err(|reason| Error::Start { reason })?;
        }
        Ok(())
    }
}

/// Sets limits without privileges, in the groups that could be made. Device rules are left out,
/// because only root can have them.
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

pub(crate) fn has_terminal(spec: &Spec) -> bool {
    spec.process()
        .as_ref()
        .and_then(|process| process.terminal())
        .unwrap_or(false)
}

/// Checks that there is a console socket exactly if rcm exits and the container has a terminal.
///
/// # Errors
/// [`Error::ConsoleSocketNeeded`], [`Error::ConsoleSocketUseless`].
pub(crate) fn check_console(
    detach: bool,
    console_socket: Option<&Path>,
    wants_terminal: bool,
) -> Result<()> {
    match (detach && wants_terminal, console_socket) {
        (true, None) => Err(Error::ConsoleSocketNeeded),
        (false, Some(_)) => Err(Error::ConsoleSocketUseless),
        _ => Ok(()),
    }
}

/// Claims the id and the cgroup.
///
/// # Errors
/// Those of [`Container::claim`], and [`Error::CgroupNotEmpty`], [`Error::CgroupFrozen`].
pub(crate) fn claim(root: &Path, record: Record, spec_json: &[u8]) -> Result<Container> {
    let container = Container::claim(root, record, spec_json)?;
    if let Err(error) = check_cgroup(container.record()) {
        // Not `discard`, which would kill the processes that use this cgroup.
        let _ = fs::remove_dir_all(container.dir());
        return Err(error);
    }
    Ok(container)
}

/// Checks that the container's cgroup has no processes. A failed creation and `delete` would kill
/// them. The cgroup must not be frozen either, because the first process would wait for ever.
fn check_cgroup(record: &Record) -> Result<()> {
    let cgroup = Cgroup::new(record.cgroup_paths.clone());
    let processes = cgroup.pids().map_err(Error::cgroup("read", &record.id))?;
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

/// Checks that systemd can manage the cgroup; libcontainer uses it on cgroup v2 only.
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

/// Checks that the announced descriptors are open. rcm's own are close-on-exec; the caller's cannot
/// be.
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

/// Joins a new session keyring, which the container's processes inherit. Its name is the same as
/// with runc.
fn join_session_keyring(id: &str) {
    let Ok(name) = CString::new(format!("_ses.{id}")) else {
        return;
    };
    match sys::keyring::join_session(&name) {
        Ok(()) | Err(Errno::ENOSYS) => {}
        // A used-up quota must not keep the container from running; runc continues, too.
        Err(errno) => tracing::warn!(
            "cannot create a session keyring for container {id}: {errno}; --no-new-keyring avoids this"
        ),
    }
}
