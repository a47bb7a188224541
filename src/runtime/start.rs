//! Starting a created container.

use std::fs;
use std::io::Write;

use super::container::{Container, Status};
use super::error::{Error, Result};
use super::{create, engine};

/// Lets the user's program begin, then runs the poststart hooks.
///
/// # Errors
/// [`Error::StartStopped`], [`Error::StartRunning`]; a failing poststart hook kills the container, as runc does.
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
        "tell the container's first process to go on through",
        &path,
    ))?;
    // From here on the container counts as started.
    match fs::remove_file(&path) {
        Err(error) if !create::is_missing(&error) => {
            return Err(Error::file("remove", &path)(error));
        }
        _ => {}
    }
    run_hooks(container, "poststart", Status::Running).inspect_err(|_| {
        if let Err(error) = container.cgroup().kill_all() {
            tracing::warn!(
                "killing container {}: {}",
                container.id(),
                engine::chain(&error)
            );
        }
    })
}

/// Runs the spec's hooks of a kind that run around the container: "prestart", "createRuntime", "poststart" or "poststop".
///
/// # Errors
/// [`Error::Hook`].
pub(crate) fn run_hooks(container: &Container, kind: &'static str, status: Status) -> Result<()> {
    let spec = container.spec()?;
    let Some(hooks) = spec.hooks() else {
        return Ok(());
    };
    let hooks = match kind {
        // Only libcontainer 0.7's name for what older specs have; runc still runs them.
        #[allow(deprecated)]
        "prestart" => hooks.prestart(),
        "createRuntime" => hooks.create_runtime(),
        "poststart" => hooks.poststart(),
        _ => hooks.poststop(),
    };
    let state = engine::hook_state(container, status).state;
    libcontainer::hooks::run_hooks(
        hooks.as_ref(),
        Some(&state),
        Some(container.bundle()),
        None,
        None,
    )
    .map_err(|source| Error::Hook { kind, source })
}
