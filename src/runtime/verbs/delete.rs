//! Removing a container.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use libcgroups::common::CgroupManager;

use super::start;
use crate::error::chain;
use crate::runtime::container::{Container, validate_id};
use crate::runtime::error::{Error, Result};
use crate::runtime::linux::cgroup::CgroupError;
use crate::runtime::linux::network;
use crate::runtime::linux::resctrl::Group;
use crate::runtime::process::libcontainer;
use crate::runtime::status::Status;
use crate::sys;

/// Limit for the first process to die of SIGKILL, as with runc.
const KILL_LIMIT_DUR: Duration = Duration::from_secs(10);

/// Deletes the container `id` if it is stopped or was not started. Other states need `force`, which
/// kills it.
///
/// With `force`, an id that no container has is no error.
///
/// # Errors
/// [`Error::NotExist`], [`Error::NotStopped`], or the first failure to clean up.
pub fn delete(root: &Path, id: &str, force: bool) -> Result<()> {
    validate_id(id)?;
    let container = match Container::load(root, id) {
        Ok(container) => container,
        Err(error @ (Error::NotExist | Error::DamagedState { .. })) => {
            if force {
                return remove_remains(&root.join(id));
            }
            return Err(error);
        }
        Err(error) => return Err(error),
    };
    match container.status() {
        Status::Stopped if !force => {}
        Status::Stopped | Status::Created => kill_and_wait(&container)?,
        _ if force => kill_and_wait(&container)?,
        status => {
            return Err(Error::NotStopped {
                id: id.to_owned(),
                status,
            });
        }
    }
    destroy(&container)
}

/// Removes a container's directory, which may lack a record. If the directory is gone already, that
/// is no error.
fn remove_remains(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if !sys::file::is_missing(&error) => Err(Error::file("remove", dir)(error)),
        _ => Ok(()),
    }
}

/// Kills everything in the container and waits for its first process to end.
///
/// # Errors
/// [`Error::StillRunning`] after ten seconds.
pub(crate) fn kill_and_wait(container: &Container) -> Result<()> {
    // Mute before the kill: a peer of a container that has moved away must not get a FIN or RST
    // from this copy.
    network::mute(container);
    container
        .cgroup()
        .kill_all()
        .map_err(Error::cgroup("kill", container.id()))?;
    let Some(init) = container.record().init else {
        return kill_orphans(container);
    };
    // A container without a cgroup of its own has only its first process.
    if let Ok(pid) = container.live_init() {
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    }
    if init.wait_until_gone(KILL_LIMIT_DUR) {
        Ok(())
    } else {
        Err(Error::StillRunning { pid: init.pid })
    }
}

/// Kills the children of a creation that died before it knew its first process. They would wait for
/// it for ever, and may not be in the cgroup yet. They have the container's spec open.
fn kill_orphans(container: &Container) -> Result<()> {
    let path = container.spec_path();
    let deadline = Instant::now() + KILL_LIMIT_DUR;
    loop {
        let orphans = match sys::process::holders(&path) {
            Err(error) if sys::file::is_missing(&error) => return Ok(()),
            found => found.map_err(Error::file("look for processes that use", &path))?,
        };
        let Some(first) = orphans.first() else {
            return Ok(());
        };
        if Instant::now() > deadline {
            return Err(Error::StillRunning {
                pid: first.as_raw(),
            });
        }
        for pid in &orphans {
            let _ = nix::sys::signal::kill(*pid, nix::sys::signal::Signal::SIGKILL);
        }
        // One of them may just have forked another; look again.
        thread::sleep(Duration::from_millis(1));
    }
}

/// Removes everything that a container with a dead first process still has: remaining processes,
/// cgroup and state. Runs the poststop hooks.
///
/// # Errors
/// The first failure; everything else is removed all the same.
pub fn destroy(container: &Container) -> Result<()> {
    // Processes first: no hook may find one alive, and none may send when the network lock goes.
    let cgroup = remove_cgroup(container);
    // As with runc, the hooks run even if a step before failed, and their failure is only logged.
    if let Err(error) = start::run_hooks(container, "poststop", Status::Stopped) {
        tracing::warn!("{}", chain(&error));
    }
    // Remove the lock after the hooks: they take away the addresses, or the namespace.
    let network = network::lift(container);
    // The state comes last, because it records the lock. It may be gone: an engine that has seen
    // the first process end deletes at the same time.
    let state = remove_remains(container.dir());
    cgroup.and(network).and(state)
}

/// Kills the processes that still execute, then does the work of [`destroy`].
///
/// # Errors
/// Those of [`destroy`], and [`Error::StillRunning`].
pub fn destroy_forcibly(container: &Container) -> Result<()> {
    // If the first process is dead, the others are killed with the cgroup.
    if container.record().init.is_none() || container.live_init().is_ok() {
        kill_and_wait(container)?;
    }
    destroy(container)
}

/// Removes a container whose creation or restore failed.
///
/// # Errors
/// Those of [`destroy`].
pub(crate) fn discard(container: &Container) -> Result<()> {
    let killed = kill_and_wait(container);
    let cgroup = remove_cgroup(container);
    let state = fs::remove_dir_all(container.dir()).map_err(Error::file("remove", container.dir()));
    killed.and(cgroup).and(state)
}

/// Kills the remaining processes in the container's cgroup and removes it. Without a private PID
/// namespace, processes outlive the first one.
fn remove_cgroup(container: &Container) -> Result<()> {
    let record = container.record();
    let cgroup = container.cgroup();
    let removed = if cgroup.remove_unused() {
        Ok(())
    } else {
        cgroup.kill_all().and_then(|()| cgroup.remove())
    };
    let removed = removed.and_then(|()| {
        if record.systemd_cgroup {
            stop_unit(container)
        } else {
            Ok(())
        }
    });
    if let Ok(spec) = container.spec()
        && let Some(group) = Group::of(&spec, container.id())
        && let Err(error) = group.remove()
    {
        tracing::warn!(
            "cannot remove the resctrl group of container {}: {error}",
            container.id()
        );
    }
    removed.map_err(Error::cgroup("remove", container.id()))
}

fn stop_unit(container: &Container) -> std::result::Result<(), CgroupError> {
    let record = container.record();
    let manager = |error: &dyn std::error::Error| CgroupError::Manager {
        reason: chain(error),
    };
    let config = libcontainer::cgroup_config(record);
    libcgroups::common::create_cgroup_manager(config)
        .map_err(|error| manager(&error))?
        .remove()
        .map_err(|error| manager(&error))
}
