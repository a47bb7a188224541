//! Executing rcm (or any program) so that a hang fails the test instead of stopping it.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::terminal::{Session, Terminal};
use super::{Bundle, COMMAND_LIMIT_DUR};

/// A command line in the making.
///
/// Its output goes to files, not pipes: a detached container inherits it, and a pipe would be open
/// as long as that lives.
#[derive(Debug)]
pub struct Cmd {
    command: Command,
    stdin: Option<Vec<u8>>,
    stdin_given: bool,
    limit_dur: Duration,
}

impl Cmd {
    /// Executes `program`.
    #[must_use]
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            command: Command::new(program),
            stdin: None,
            stdin_given: false,
            limit_dur: COMMAND_LIMIT_DUR,
        }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// `--bundle DIR ID`.
    #[must_use]
    pub fn bundle(self, bundle: &Bundle) -> Self {
        self.arg("--bundle").arg(bundle.dir()).arg(bundle.id())
    }

    /// A variable of rcm's own environment.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// rcm's working directory.
    #[must_use]
    pub fn current_dir(mut self, dir: impl AsRef<std::path::Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Text for standard input, which is `/dev/null` without this.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Reads standard input from here.
    #[must_use]
    pub fn stdin_from(mut self, stdin: impl Into<Stdio>) -> Self {
        self.command.stdin(stdin);
        self.stdin_given = true;
        self
    }

    /// Time limit instead of [`COMMAND_LIMIT_DUR`].
    #[must_use]
    pub fn limit(mut self, limit_dur: Duration) -> Self {
        self.limit_dur = limit_dur;
        self
    }

    /// Starts it and waits for its end.
    ///
    /// # Panics
    /// If it takes too long; it is killed then.
    #[track_caller]
    pub fn run(self) -> Output {
        self.spawn().wait()
    }

    /// Starts it.
    ///
    /// # Panics
    /// If it cannot be executed.
    #[track_caller]
    pub fn spawn(mut self) -> Running {
        let stdout = tempfile::tempfile().expect("a temporary file");
        let stderr = tempfile::tempfile().expect("a temporary file");
        match self.stdin.take() {
            Some(bytes) => {
                let mut file = tempfile::tempfile().expect("a temporary file");
                file.write_all(&bytes).expect("write");
                file.rewind().expect("rewind");
                self.command.stdin(file);
            }
            None if !self.stdin_given => {
                self.command.stdin(Stdio::null());
            }
            None => {}
        }
        self.command
            .stdout(stdout.try_clone().expect("a descriptor"))
            .stderr(stderr.try_clone().expect("a descriptor"));
        let line = format!("{:?}", self.command);
        let child = self
            .command
            .spawn()
            .unwrap_or_else(|error| panic!("{line}: {error}"));
        Running {
            child: Watched::new(child),
            stdout,
            stderr,
            line,
            limit_dur: self.limit_dur,
        }
    }

    /// Starts it with a terminal as its standard streams and controlling terminal, as a login shell
    /// would.
    ///
    /// # Panics
    /// If it cannot be executed.
    #[track_caller]
    pub fn on_terminal(self) -> Session {
        let terminal = Terminal::open();
        // setsid(1) keeps its process id when it executes the program, because it does not lead a
        // process group.
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(self.command.get_program());
        command.args(self.command.get_args());
        for (key, value) in self.command.get_envs() {
            if let Some(value) = value {
                command.env(key, value);
            }
        }
        if let Some(dir) = self.command.get_current_dir() {
            command.current_dir(dir);
        }
        let line = format!("{command:?}");
        let child = command
            .stdin(terminal.slave())
            .stdout(terminal.slave())
            .stderr(terminal.slave())
            .spawn()
            .unwrap_or_else(|error| panic!("{line}: {error}"));
        Session::new(Watched::new(child), terminal, line, self.limit_dur)
    }
}

/// A child that is killed, by its id, when it is dropped before it has ended.
#[derive(Debug)]
pub(super) struct Watched {
    child: Child,
    pidfd: OwnedFd,
}

impl Watched {
    fn new(child: Child) -> Self {
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
        let pidfd = rcm::sys::process::pidfd_open(pid).expect("a pidfd of a child");
        Self { child, pidfd }
    }

    pub(super) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"))
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Returns its exit status; `None` if it still runs after `limit_dur`.
    pub(super) fn wait(&mut self, limit_dur: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit_dur;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return Some(status);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
            let millis = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
            let _ = poll(&mut fds, PollTimeout::from(millis));
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A started command.
#[derive(Debug)]
pub struct Running {
    child: Watched,
    stdout: File,
    stderr: File,
    line: String,
    limit_dur: Duration,
}

impl Running {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.pid().as_raw()
    }

    /// Sends a signal to exactly this process.
    ///
    /// # Panics
    /// If it has ended.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill(self.child.pid(), signal).expect("the process is there");
    }

    /// Whether it has not ended yet.
    #[must_use]
    pub fn is_running(&mut self) -> bool {
        self.child.wait(Duration::ZERO).is_none()
    }

    /// Waits up to `limit_dur` for its end. Returns whether it has ended.
    #[must_use]
    pub fn ends_within(&mut self, limit_dur: Duration) -> bool {
        self.child.wait(limit_dur).is_some()
    }

    /// Returns its standard output until now.
    #[must_use]
    pub fn stdout(&self) -> String {
        contents(&self.stdout)
    }

    /// Returns its standard error until now.
    #[must_use]
    pub fn stderr(&self) -> String {
        contents(&self.stderr)
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If that takes too long; it is killed then.
    #[track_caller]
    pub fn wait(mut self) -> Output {
        match self.child.wait(self.limit_dur) {
            Some(status) => Output {
                status,
                stdout: self.stdout,
                stderr: self.stderr,
                line: self.line,
            },
            None => panic!(
                "{} hangs: not at its end within {:?}; {}\nstdout: {}\nstderr: {}",
                self.line,
                self.limit_dur,
                whereabouts(self.child.pid()),
                contents(&self.stdout),
                contents(&self.stderr)
            ),
        }
    }
}

/// Returns the place in which a process hangs, for the message of a failed test.
pub(super) fn whereabouts(pid: Pid) -> String {
    let read =
        |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    format!(
        "process {pid} in {}, system call {}",
        read("wchan").trim(),
        read("syscall").trim()
    )
}

/// All of a file, without moving the position that it shares with the writer.
fn contents(file: &File) -> String {
    let mut bytes = Vec::new();
    let mut chunk = [0; 8192];
    loop {
        match file.read_at(&mut chunk, bytes.len() as u64) {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            Err(error) => panic!("cannot read the output: {error}"),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A command that has ended.
pub struct Output {
    status: ExitStatus,
    stdout: File,
    stderr: File,
    line: String,
}

impl Output {
    /// Its exit status; 128 and the signal's number if a signal ended it.
    #[must_use]
    pub fn code(&self) -> i32 {
        exit_code(self.status)
    }

    /// Standard output until now: a detached container may still write to it.
    #[must_use]
    pub fn stdout(&self) -> String {
        contents(&self.stdout)
    }

    /// Standard error until now.
    #[must_use]
    pub fn stderr(&self) -> String {
        contents(&self.stderr)
    }

    /// Asserts that it succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.exits_with(0)
    }

    /// Asserts its exit status.
    #[track_caller]
    pub fn exits_with(self, code: i32) -> Self {
        assert_eq!(self.code(), code, "exit status of {self:?}");
        self
    }

    /// Asserts that it failed with `code` and one line on standard error that contains `sentence`:
    /// no backtrace, no panic.
    #[track_caller]
    pub fn fails_with(self, code: i32, sentence: &str) -> Self {
        let output = self.exits_with(code);
        let stderr = output.stderr();
        assert!(stderr.contains(sentence), "{sentence:?} not in {output:?}");
        assert_eq!(stderr.lines().count(), 1, "one line of error: {output:?}");
        output
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout())
            .unwrap_or_else(|error| panic!("{error}: no JSON from {self:?}"))
    }
}

pub(super) fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .expect("a process that has ended")
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}\nstdout: {}\nstderr: {}",
            self.line,
            self.status,
            self.stdout(),
            self.stderr()
        )
    }
}
