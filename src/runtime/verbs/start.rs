//! Starting a created container.

use std::fs;
use std::io::Write;
use std::thread;
use std::time::Duration;

use oci_spec::runtime::{Hook, Spec};

use crate::error::chain;
use crate::runtime::container::Container;
use crate::runtime::error::{Error, Result};
use crate::runtime::linux::hooks::{self, Scene};
use crate::runtime::process::libcontainer;
use crate::runtime::status::Status;
use crate::sys::{self, process};

/// Interval at which the first process is checked.
const POLL_INTERVAL_DUR: Duration = Duration::from_micros(200);

/// Lets the user's program begin, then runs the poststart hooks.
///
/// # Errors
/// [`Error::StartStopped`], [`Error::StartRunning`], or the failure of a poststart hook, which
/// kills the container, as with runc.
pub fn start(container: &Container) -> Result<()> {
    match container.status() {
        Status::Created => {}
        Status::Stopped | Status::Creating => return Err(Error::StartStopped),
        Status::Running | Status::Paused => return Err(Error::StartRunning),
    }
    let path = container.notify_path();
    let notified = crate::sys::socket::connect(&path)
        .and_then(|mut socket| socket.write_all(b"start container"));
    notified.map_err(Error::file(
        "start the container's first process through",
        &path,
    ))?;
    // Without this file the container counts as started.
    match fs::remove_file(&path) {
        Err(error) if !sys::file::is_missing(&error) => {
            return Err(Error::file("remove", &path)(error));
        }
        _ => {}
    }
    if of_kind(&container.spec()?, "poststart").is_some() {
        wait_for_program(container)?;
    }
    run_hooks(container, "poststart", Status::Running).inspect_err(|_| {
        if let Err(error) = container.cgroup().kill_all() {
            tracing::warn!("killing container {}: {}", container.id(), chain(&error));
        }
    })
}

/// Runs the spec's hooks of a kind that runs on the host: "prestart", "createRuntime", "poststart"
/// or "poststop".
///
/// # Errors
/// [`Error::Hook`].
pub(crate) fn run_hooks(container: &Container, kind: &'static str, status: Status) -> Result<()> {
    let spec = container.spec()?;
    let Some(hooks) = of_kind(&spec, kind) else {
        return Ok(());
    };
    let state = libcontainer::hook_state(container, status).state;
    let scene = Scene {
        state: &state,
        pid: None,
        dir: Some(container.bundle()),
        default_env: None,
    };
    Ok(hooks::run(hooks, kind, &scene)?)
}

fn of_kind<'a>(spec: &'a Spec, kind: &str) -> Option<&'a Vec<Hook>> {
    let hooks = spec.hooks().as_ref()?;
    let of_kind = match kind {
        #[allow(deprecated, reason = "older specs have it, and runc still runs it")]
        "prestart" => hooks.prestart(),
        "createRuntime" => hooks.create_runtime(),
        "poststart" => hooks.poststart(),
        _ => hooks.poststop(),
    };
    of_kind.as_ref()
}

/// Waits until the user's program has replaced the first process, or the process has ended. The
/// poststart hooks must come after that, and after the startContainer hooks. Until then the process
/// has the container's spec open, see [`create`](super::create::create).
fn wait_for_program(container: &Container) -> Result<()> {
    let path = container.spec_path();
    let path = path.canonicalize().map_err(Error::file("find", &path))?;
    while let Ok(pid) = container.live_init()
        && process::holds(pid, &path)
    {
        thread::sleep(POLL_INTERVAL_DUR);
    }
    Ok(())
}
