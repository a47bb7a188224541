//! Running the hooks of a spec, with runc's sentences where one fails.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};

use libcontainer::container::State as EngineState;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MemFdCreateFlag, memfd_create};
use nix::unistd::Pid;
use oci_spec::runtime::{Hook, State};

use crate::sys;

/// How much of what a failed hook has written is repeated, per stream.
const REPEATED_BYTES: u64 = 64 * 1024;

/// A hook failed; runc's sentence.
#[derive(Debug, thiserror::Error)]
#[error("error running {kind} hook #{index}")]
pub struct HookError {
    /// Which hooks: "prestart", "createRuntime", ...
    pub kind: &'static str,
    /// Which of them, from 0.
    pub index: usize,
    /// What it did.
    #[source]
    pub source: HookFailure,
}

/// What a hook did that it should not.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HookFailure {
    /// It could not be executed.
    #[error("cannot execute {path}")]
    Execute {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It failed.
    #[error("{end}, stdout: {stdout}, stderr: {stderr}")]
    Failed {
        /// How it ended.
        end: End,
        /// What it wrote.
        stdout: String,
        /// What it wrote.
        stderr: String,
    },
    /// It took longer than its `timeout`.
    #[error("hook ran past specified timeout of {limit_seconds:.1}s")]
    Timeout {
        /// The timeout.
        limit_seconds: f64,
    },
    /// It could not be given the state, or not be waited for.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// How a process ended, as Go says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End(ExitStatus);

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.code(), self.0.signal()) {
            (Some(code), _) => write!(f, "exit status {code}"),
            (None, Some(signal)) => {
                write!(f, "signal: {}", sys::process::signal_text(signal))
            }
            (None, None) => write!(f, "{}", self.0),
        }
    }
}

/// Where hooks run and what they get.
#[derive(Debug)]
pub(crate) struct Scene<'a> {
    /// The container's state: their standard input.
    pub state: &'a EngineState,
    /// The first process's id as they should see it; `None` for that of the state.
    pub pid: Option<Pid>,
    /// Their working directory; `None` for this process's.
    pub dir: Option<&'a Path>,
    /// The environment of those that have none in the spec; `None` for this process's, as with runc.
    pub default_env: Option<&'a HashMap<String, String>>,
}

/// Runs `hooks` one after another.
///
/// No thread is started for it, so that a process may go on to fork.
///
/// # Errors
/// [`HookError`] of the first that fails; those after it do not run.
pub(crate) fn run(hooks: &[Hook], kind: &'static str, scene: &Scene) -> Result<(), HookError> {
    for (index, hook) in hooks.iter().enumerate() {
        run_one(hook, scene).map_err(|source| HookError {
            kind,
            index,
            source,
        })?;
    }
    Ok(())
}

fn run_one(hook: &Hook, scene: &Scene) -> Result<(), HookFailure> {
    let stdin = state_file(scene)?;
    let (mut stdout, mut stderr) = (memory(c"hook-stdout")?, memory(c"hook-stderr")?);
    let mut command = Command::new(hook.path());
    // The first argument is the name that the program is told it has.
    match hook.args().as_deref().unwrap_or_default().split_first() {
        Some((name, args)) => command.arg0(name).args(args),
        None => &mut command,
    };
    let given = hook.env().as_deref().unwrap_or_default();
    if !given.is_empty() {
        let variables = given
            .iter()
            .map(|one| one.split_once('=').unwrap_or((one, "")));
        command.env_clear().envs(variables);
    } else if let Some(variables) = scene.default_env {
        command.env_clear().envs(variables);
    }
    if let Some(dir) = scene.dir {
        command.current_dir(dir);
    }
    // A command that stays with its container has blocked all, to forward them.
    sys::spawn::unblock_signals(&mut command);
    let share = |file: &File| file.try_clone().map_err(system("share a hook's output"));
    let mut child = command
        .stdin(stdin)
        .stdout(share(&stdout)?)
        .stderr(share(&stderr)?)
        .spawn()
        .map_err(|source| HookFailure::Execute {
            path: hook.path().clone(),
            source,
        })?;
    let status = wait(&mut child, hook.timeout())?;
    if status.success() {
        return Ok(());
    }
    Err(HookFailure::Failed {
        end: End(status),
        stdout: written(&mut stdout),
        stderr: written(&mut stderr),
    })
}

/// Waits for the hook to end, or ends it.
fn wait(child: &mut Child, limit_seconds: Option<i64>) -> Result<ExitStatus, HookFailure> {
    if let Some(seconds) = limit_seconds {
        let pidfd = sys::process::pidfd_open(Pid::from_raw(child.id() as i32))
            .map_err(|errno| system("watch a hook")(errno.into()))?;
        // Longer ones than fit are as good as none.
        let timeout = i32::try_from(seconds.saturating_mul(1000)).unwrap_or(i32::MAX);
        let timeout = PollTimeout::try_from(timeout.max(0)).unwrap_or(PollTimeout::MAX);
        let ended = loop {
            let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(system("wait for a hook")(errno.into())),
                Ok(count) => break count > 0,
            }
        };
        if !ended {
            // It may just have ended.
            let _ = child.kill();
            let _ = child.wait();
            return Err(HookFailure::Timeout {
                limit_seconds: seconds as f64,
            });
        }
    }
    child.wait().map_err(system("wait for a hook"))
}

/// The state as a file: a pipe could fill up while the hook fills another.
fn state_file(scene: &Scene) -> Result<File, HookFailure> {
    let give = system("give a hook the container's state");
    let text = oci_state(scene.state, scene.pid)
        .and_then(|state| serde_json::to_vec(&state).map_err(io::Error::other));
    let mut file = memory(c"hook-stdin")?;
    text.and_then(|text| {
        file.write_all(&text)?;
        file.rewind()
    })
    .map_err(give)?;
    Ok(file)
}

/// The engine's state as the OCI specification has it, with another process id if one is given.
///
/// # Errors
/// Where the engine has a status that the specification has not.
pub(crate) fn oci_state(state: &EngineState, pid: Option<Pid>) -> io::Result<State> {
    let mut state = State::try_from(state).map_err(io::Error::other)?;
    if let Some(pid) = pid {
        state.set_pid(Some(pid.as_raw()));
    }
    Ok(state)
}

fn memory(name: &std::ffi::CStr) -> Result<File, HookFailure> {
    memfd_create(name, MemFdCreateFlag::MFD_CLOEXEC)
        .map(File::from)
        .map_err(|errno| system("make a file in memory")(errno.into()))
}

fn written(file: &mut File) -> String {
    let mut text = Vec::new();
    // What cannot be read is missing from a sentence only.
    let _ = file
        .seek(SeekFrom::Start(0))
        .and_then(|_| file.take(REPEATED_BYTES).read_to_end(&mut text));
    String::from_utf8_lossy(&text).into_owned()
}

fn system(action: &'static str) -> impl FnOnce(io::Error) -> HookFailure {
    move |source| HookFailure::System { action, source }
}
