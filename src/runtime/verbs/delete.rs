//! Taking a container away.

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

/// How long the first process has to die of SIGKILL, as with runc.
const KILL_LIMIT_DUR: Duration = Duration::from_secs(10);

/// Deletes the container `id`. A stopped one and one that was not started go; others need `force`, which kills them.
///
/// With `force`, an id that no container has is no error.
///
/// # Errors
/// [`Error::NotExist`], [`Error::NotStopped`], and what is left when cleaning up fails.
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

/// A container's directory, perhaps without a record; that it is gone is no error.
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
    network::mute(container);
    container
        .cgroup()
        .kill_all()
        .map_err(Error::cgroup("kill", container.id()))?;
    let Some(init) = container.record().init else {
        return kill_orphans(container);
    };
    // Without a cgroup of its own the first process is all that is known.
    if let Ok(pid) = container.live_init() {
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    }
    if init.wait_until_gone(KILL_LIMIT_DUR) {
        Ok(())
    } else {
        Err(Error::StillRunning { pid: init.pid })
    }
}

/// Kills what a creation has left that died before it knew its first process: children that wait for it for ever, perhaps not
/// yet in the cgroup. They have the container's spec open.
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
        // One of them may just have forked another.
        thread::sleep(Duration::from_millis(1));
    }
}

/// Removes what a container whose first process is gone holds: remaining processes, cgroup, state; then runs the poststop hooks.
///
/// # Errors
/// The first thing that could not be removed; the rest is removed all the same.
pub fn destroy(container: &Container) -> Result<()> {
    let cgroup = remove_cgroup(container);
    // runc runs the hooks whatever else failed, and their failure is only logged.
    if let Err(error) = start::run_hooks(container, "poststop", Status::Stopped) {
        tracing::warn!("{}", chain(&error));
    }
    // After the hooks: they take the addresses away, or the namespace.
    let network = network::lift(container);
    // An engine that has seen the first process end deletes at the same time.
    let state = remove_remains(container.dir());
    cgroup.and(network).and(state)
}

/// As [`destroy`], after killing what still executes.
///
/// # Errors
/// As [`destroy`], and [`Error::StillRunning`].
pub fn destroy_forcibly(container: &Container) -> Result<()> {
    // Others than the first process are killed with the cgroup.
    if container.record().init.is_none() || container.live_init().is_ok() {
        kill_and_wait(container)?;
    }
    destroy(container)
}

/// Removes what a failed creation made.
///
/// # Errors
/// As [`destroy`].
pub(crate) fn discard(container: &Container) -> Result<()> {
    let killed = kill_and_wait(container);
    let cgroup = remove_cgroup(container);
    let state = fs::remove_dir_all(container.dir()).map_err(Error::file("remove", container.dir()));
    killed.and(cgroup).and(state)
}

/// Kills what is left in the container's cgroup (without a private pid namespace processes outlive the first) and removes it.
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
