//! Running the hooks of a spec. Errors are runc's sentences.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};

use libcontainer::container::State as LibcontainerState;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MemFdCreateFlag, memfd_create};
use nix::unistd::Pid;
use oci_spec::runtime::{Hook, State};

use crate::sys;

/// Limit on the output of a failed hook that is repeated, for each stream.
const REPEATED_BYTES: u64 = 64 * 1024;

/// Failure of a hook, in runc's sentence.
#[derive(Debug, thiserror::Error)]
#[error("error running {kind} hook #{index}")]
pub struct HookError {
    /// Kind of the hook: "prestart", "createRuntime", ...
    pub kind: &'static str,
    /// Index among the hooks of this kind, from 0.
    pub index: usize,
    /// The failure.
    #[source]
    pub source: HookFailure,
}

/// Failure of a hook's process.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HookFailure {
    /// The program could not be executed.
    #[error("cannot execute {path}")]
    Execute {
        /// Path of the program.
        path: PathBuf,
        /// Error of execve(2), or of creating the process.
        #[source]
        source: io::Error,
    },
    /// The program ended with a failure.
    #[error("{end}, stdout: {stdout}, stderr: {stderr}")]
    Failed {
        /// How the process ended.
        end: End,
        /// Output of the hook.
        stdout: String,
        /// Error output of the hook.
        stderr: String,
    },
    /// The hook took longer than its `timeout`.
    #[error("hook ran past specified timeout of {limit_seconds:.1}s")]
    Timeout {
        /// The timeout, in seconds.
        limit_seconds: f64,
    },
    /// The hook could not be given the state, or rcm could not wait for it.
    #[error("cannot {action}")]
    System {
        /// The failed action.
        action: &'static str,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
}

/// End of a process, printed as Go prints it.
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

/// Surroundings of the hooks.
#[derive(Debug)]
pub(crate) struct Scene<'a> {
    /// The container's state, which is the hooks' standard input.
    pub state: &'a LibcontainerState,
    /// Id of the first process as the hooks should see it; `None` for the id in the state.
    pub pid: Option<Pid>,
    /// Working directory of the hooks; `None` for this process's.
    pub dir: Option<&'a Path>,
    /// Environment of hooks that have none in the spec; `None` for this process's, as with runc.
    pub default_env: Option<&'a HashMap<String, String>>,
}

/// Runs `hooks` one after another.
///
/// It starts no thread, because the calling process may fork afterwards.
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
    // As in the OCI specification, the first argument is the program's own name (argv[0]).
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
    // A rcm in the foreground has blocked all signals, to forward them to the container.
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

/// Waits for the hook to end, and kills it at its timeout.
fn wait(child: &mut Child, limit_seconds: Option<i64>) -> Result<ExitStatus, HookFailure> {
    if let Some(seconds) = limit_seconds {
        let pidfd = sys::process::pidfd_open(Pid::from_raw(child.id() as i32))
            .map_err(|errno| system("watch a hook")(errno.into()))?;
        // A timeout that does not fit is as good as none.
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
            // The hook may just have ended.
            let _ = child.kill();
            let _ = child.wait();
            return Err(HookFailure::Timeout {
                limit_seconds: seconds as f64,
            });
        }
    }
    child.wait().map_err(system("wait for a hook"))
}

/// Returns the state as a file. A pipe could fill up while the hook is blocked on another one.
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

/// Converts libcontainer's state to the OCI specification's, with another process id if one is
/// given.
///
/// # Errors
/// If libcontainer has a status that the specification does not have.
pub(crate) fn oci_state(state: &LibcontainerState, pid: Option<Pid>) -> io::Result<State> {
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
    // If the output cannot be read, it is only missing from the message.
    let _ = file
        .seek(SeekFrom::Start(0))
        .and_then(|_| file.take(REPEATED_BYTES).read_to_end(&mut text));
    String::from_utf8_lossy(&text).into_owned()
}

fn system(action: &'static str) -> impl FnOnce(io::Error) -> HookFailure {
    move |source| HookFailure::System { action, source }
}
