//! rcm's code in the container, just before `execve`.
//!
//! libcontainer calls [`validate`](Executor::validate) when namespaces, mounts, user and
//! capabilities are the container's and the creator still waits. It calls [`exec`](Executor::exec)
//! once the container is started.

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use libcontainer::container::State;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::stat::fstat;
use nix::unistd::{Pid, dup2};
use oci_spec::runtime::{Hook, Spec};
use pathrs::flags::OpenFlags;
use pathrs::procfs::{ProcfsBase, ProcfsHandle};

use crate::error::chain;
use crate::runtime::linux::hooks::{self, Scene};
use crate::sys;
use crate::sys::exec::{close_private, highest_descriptor};

/// Executes the process of a spec with runc's error texts.
#[derive(Debug, Clone, Default)]
pub struct ProcessExecutor {
    /// The environment from libcontainer: with `HOME` of the container's user, and `LISTEN_FDS`.
    libcontainers: RefCell<HashMap<String, String>>,
    /// Writing end of a pipe, for errors after the start. The first process of a container has
    /// none: its errors go to its stderr.
    errors: Option<RawFd>,
    /// Highest descriptor that rcm had open.
    highest_descriptor: RawFd,
    /// Whether `/dev` has become another directory since libcontainer opened its `null` for
    /// standard streams.
    reopens_null: bool,
    /// The `startContainer` hooks and the state that they get. libcontainer would give them the
    /// state "creating".
    start_hooks: Option<(Vec<Hook>, State)>,
}

/// Upper limit on the descriptors that are opened between rcm's fork and the program.
const OPENED_SINCE: RawFd = 64;

/// Variables that libcontainer may add; it changes none that the spec has.
const ADDED_VARIABLES: [&str; 3] = ["HOME", "LISTEN_FDS", "LISTEN_PID"];

impl Executor for ProcessExecutor {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        if self.start_hooks.is_none() {
            // From here on, a process that joins a container waits for the start. It would wait for
            // ever if its rcm were killed, so it gets SIGKILL in that case. If rcm is gone already,
            // the process notices that when it reports that it is ready. A seccomp filter may
            // forbid the call.
            let _ = prctl::set_pdeathsig(Signal::SIGKILL);
        } else {
            // As with runc, signals like SIGTERM end a container that is not started yet. A filter
            // may forbid this, too.
            let _ = sys::process::end_on_signals();
        }
        // runc logs this sentence at the same moment.
        tracing::debug!("init: closing the pipe to signal completion");
        find_program(spec)
            .map(drop)
            .map_err(ExecutorValidationError::ArgValidationError)
    }

    fn setup_envs(&self, envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // execve gets the environment as the spec has it, in its order. This process's own is not
        // changed.
        *self.libcontainers.borrow_mut() = envs;
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        // Once started, the process outlives rcm, as with runc.
        let _ = prctl::set_pdeathsig(None);
        if self.start_hooks.is_none() {
            tracing::debug!("setns_init: about to exec");
        }
        if self.reopens_null {
            reopen_null();
        }
        let replaced = self
            .run_start_hooks()
            .and_then(|()| self.replace_process(spec));
        let error = match replaced {
            Ok(never) => match never {},
            Err(error) => error,
        };
        if self.errors.is_none() {
            // Nobody waits for an answer any more.
            let _ = writeln!(std::io::stderr(), "{error}");
        }
        Err(ExecutorError::Other(error))
    }
}

impl ProcessExecutor {
    /// Returns the executor of a container's first process; `state` is the container's.
    /// `reopens_null` tells that `/dev` is mounted last.
    #[must_use]
    pub fn of_init(start_hooks: Vec<Hook>, state: State, reopens_null: bool) -> Self {
        Self {
            highest_descriptor: highest_descriptor(),
            reopens_null,
            start_hooks: Some((start_hooks, state)),
            ..Self::default()
        }
    }

    /// Returns the executor of a process that joins a container.
    #[must_use]
    pub fn of_joining(errors: RawFd) -> Self {
        Self {
            highest_descriptor: highest_descriptor(),
            errors: Some(errors),
            ..Self::default()
        }
    }

    fn run_start_hooks(&self) -> Result<(), String> {
        let Some((hooks, state)) = &self.start_hooks else {
            return Ok(());
        };
        // As with runc, they get the pid as the container sees it, and the process's environment if
        // they have none.
        let scene = Scene {
            state,
            pid: Some(Pid::this()),
            dir: None,
            default_env: Some(&self.libcontainers.borrow()),
        };
        hooks::run(hooks, "startContainer", &scene).map_err(|error| chain(&error))
    }

    fn replace_process(&self, spec: &Spec) -> Result<Infallible, String> {
        let path = find_program(spec)?;
        let text = |text: &str| {
            CString::new(text)
                .map_err(|_| format!("{text:?} has a NUL byte and cannot be passed on"))
        };
        let process = spec.process().as_ref();
        let args = process
            .and_then(|process| process.args().as_ref())
            .into_iter()
            .flatten()
            .map(|arg| text(arg))
            .collect::<Result<Vec<_>, _>>()?;
        let env = self
            .environment(spec)
            .iter()
            .map(|variable| text(variable))
            .collect::<Result<Vec<_>, _>>()?;
        let program = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| format!("{} has a NUL byte", path.display()))?;
        set_exec_label(process.and_then(|process| process.selinux_label().as_deref()))?;
        close_private(self.highest_descriptor + OPENED_SINCE, self.errors);
        sys::process::reset_signals().map_err(|error| format!("cannot reset signals: {error}"))?;
        match sys::exec::replace_process(&program, &args, &env) {
            Ok(never) => Ok(never),
            Err(errno) => Err(format!("exec {}: {}", path.display(), describe(errno))),
        }
    }

    /// Returns the spec's variables in their order, the last of equal names winning, followed by
    /// those that libcontainer adds.
    fn environment(&self, spec: &Spec) -> Vec<String> {
        let given = variables(spec);
        let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
        let mut env: Vec<String> = Vec::with_capacity(given.len() + ADDED_VARIABLES.len());
        for variable in given {
            env.retain(|one| name(one) != name(variable));
            env.push(variable.clone());
        }
        let libcontainers = self.libcontainers.borrow();
        for key in ADDED_VARIABLES {
            if let Some(value) = libcontainers.get(key)
                && !env
                    .iter()
                    .any(|one| name(one) == key && *one != format!("{key}="))
            {
                env.retain(|one| name(one) != key);
                env.push(format!("{key}={value}"));
            }
        }
        // libcontainer knows only the home directories of /etc/passwd.
        if !env.iter().any(|one| name(one) == "HOME") {
            env.push("HOME=/".into());
        }
        env
    }
}

/// Sets the SELinux label for the next execve (proc_pid_attr(5)); libcontainer labels mounts only.
///
/// The file must be the kernel's, no matter which file system the container has at `/proc`.
/// Otherwise the process would execute without its label (CVE-2019-19921, CVE-2025-52881).
fn set_exec_label(label: Option<&str>) -> Result<(), String> {
    let Some(label) = label.filter(|label| !label.is_empty()) else {
        return Ok(());
    };
    let failed = |error: &dyn std::error::Error| {
        let reason = chain(error);
        format!("cannot set selinuxLabel {label:?} in /proc/thread-self/attr/exec: {reason}")
    };
    let flags = OpenFlags::O_WRONLY | OpenFlags::O_CLOEXEC;
    let mut file = ProcfsHandle::new()
        .and_then(|proc| proc.open(ProcfsBase::ProcThreadSelf, "attr/exec", flags))
        .map_err(|error| failed(&error))?;
    file.write_all(label.as_bytes())
        .map_err(|error| failed(&error))
}

/// Opens the null device again for each standard stream that is one. Its mount is covered by
/// another, and CRIU could not dump a file on it. If the device cannot be opened, the streams stay.
fn reopen_null() {
    let Ok(null) = File::options().read(true).write(true).open("/dev/null") else {
        return;
    };
    let device = |fd| fstat(fd).ok().map(|status| status.st_rdev);
    for stream in 0..3 {
        if device(stream) == device(null.as_raw_fd()) {
            let _ = dup2(null.as_raw_fd(), stream);
        }
    }
}

fn variables(spec: &Spec) -> &[String] {
    spec.process()
        .as_ref()
        .and_then(|process| process.env().as_deref())
        .unwrap_or_default()
}

/// Finds the program as the container's user would. Engines match the sentences, to tell exit
/// status 127 from 126.
fn find_program(spec: &Spec) -> Result<PathBuf, String> {
    let name = spec
        .process()
        .as_ref()
        .and_then(|process| process.args().as_ref()?.first())
        .map(String::as_str)
        .unwrap_or_default();
    if name.contains('/') {
        return match check_program(Path::new(name)) {
            Ok(()) => Ok(name.into()),
            Err(Errno::ENOENT) => Err(format!(
                "exec: {name:?}: stat {name}: {}",
                describe(Errno::ENOENT)
            )),
            Err(errno) => Err(format!("exec: {name:?}: {}", describe(errno))),
        };
    }
    let path = variables(spec)
        .iter()
        .rev()
        .find_map(|variable| variable.strip_prefix("PATH="))
        .unwrap_or_default();
    let mut denied = false;
    for dir in path.split(':') {
        // An empty entry of PATH is the working directory.
        let candidate = Path::new(if dir.is_empty() { "." } else { dir }).join(name);
        match check_program(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Errno::EACCES) => denied = true,
            Err(_) => {}
        }
    }
    if denied && !name.is_empty() {
        return Err(format!("exec: {name:?}: {}", describe(Errno::EACCES)));
    }
    Err(format!(
        "exec: {name:?}: executable file not found in $PATH"
    ))
}

fn check_program(path: &Path) -> Result<(), Errno> {
    let metadata = path
        .metadata()
        .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    if metadata.is_dir() {
        return Err(Errno::EISDIR);
    }
    if !sys::exec::may_execute(path) {
        return Err(Errno::EACCES);
    }
    Ok(())
}

/// Returns the C library's text in lower case, as runc prints it.
fn describe(errno: Errno) -> String {
    errno.desc().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(args: &[&str], env: &[&str]) -> Spec {
        serde_json::from_value(serde_json::json!({
            "ociVersion": "1.0.2",
            "process": {"cwd": "/", "user": {"uid": 0, "gid": 0}, "args": args, "env": env}
        }))
        .unwrap()
    }

    #[test]
    fn sentences_that_engines_match() {
        let missing = find_program(&spec(&["no-such"], &["PATH=/bin"])).unwrap_err();
        assert_eq!(
            missing,
            r#"exec: "no-such": executable file not found in $PATH"#
        );
        let missing = find_program(&spec(&["/no/such"], &[])).unwrap_err();
        assert_eq!(
            missing,
            r#"exec: "/no/such": stat /no/such: no such file or directory"#
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        let denied = find_program(&spec(&[path], &[])).unwrap_err();
        assert_eq!(denied, format!("exec: {path:?}: permission denied"));
        let directory = find_program(&spec(&["/etc"], &[])).unwrap_err();
        assert_eq!(directory, r#"exec: "/etc": is a directory"#);
    }

    #[test]
    fn environment_keeps_order_and_gets_home() {
        let executor = ProcessExecutor::default();
        executor
            .setup_envs(HashMap::from([
                ("HOME".to_owned(), "/root".to_owned()),
                ("HOSTS_OWN".to_owned(), "x".to_owned()),
            ]))
            .unwrap();
        assert_eq!(
            executor.environment(&spec(&["sh"], &["A=1", "B=2", "A=3"])),
            ["B=2", "A=3", "HOME=/root"]
        );
        assert_eq!(
            executor.environment(&spec(&["sh"], &["HOME=/h"])),
            ["HOME=/h"]
        );
        assert_eq!(
            executor.environment(&spec(&["sh"], &["HOME="])),
            ["HOME=/root"]
        );
        assert_eq!(
            ProcessExecutor::default().environment(&spec(&["sh"], &[])),
            ["HOME=/"]
        );
    }
}
