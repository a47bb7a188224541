//! Terminals: one to run rcm on, and the receiving end of `--console-socket`.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use rcm::sys::terminal::{WindowSize, set_window_size};

use super::COMMAND_LIMIT_DUR;
use super::command::{Watched, exit_code, whereabouts};

/// A pseudoterminal: the test holds the master.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    /// `None` if the other side is in a container.
    slave: Option<File>,
    /// Everything that was read from it.
    transcript: Vec<u8>,
}

impl Terminal {
    /// A fresh one of 24 lines and 80 columns.
    ///
    /// # Panics
    /// If none can be made.
    #[must_use]
    pub fn open() -> Self {
        // Close-on-exec from the start: other threads start programs meanwhile, and a copy of the
        // slave there would keep it open.
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)
            .expect("a pseudoterminal");
        grantpt(&master).expect("grantpt");
        unlockpt(&master).expect("unlockpt");
        let slave = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(ptsname_r(&master).expect("its name"))
            .expect("the slave");
        let mut terminal =
            Self::of_master(master.as_fd().try_clone_to_owned().expect("a descriptor"));
        terminal.slave = Some(slave);
        terminal.resize(24, 80);
        terminal
    }

    /// The terminal of a container by its master.
    #[must_use]
    pub fn of_master(master: OwnedFd) -> Self {
        Self {
            master: master.into(),
            slave: None,
            transcript: Vec::new(),
        }
    }

    pub(super) fn slave(&self) -> Stdio {
        let slave = self.slave.as_ref().expect("a slave");
        slave.try_clone().expect("a descriptor").into()
    }

    /// Its settings, to see whether rcm restores them.
    ///
    /// # Panics
    /// If they cannot be read.
    #[must_use]
    pub fn settings(&self) -> Termios {
        tcgetattr(&self.master).expect("settings of a terminal")
    }

    /// The size that programs on it see.
    ///
    /// # Panics
    /// If it cannot be set.
    pub fn resize(&self, rows: u16, columns: u16) {
        set_window_size(self.master.as_fd(), WindowSize { rows, columns }).expect("a size");
    }

    /// Types.
    ///
    /// # Panics
    /// If the other side is gone.
    pub fn send(&mut self, text: &str) {
        self.master
            .write_all(text.as_bytes())
            .expect("write to the terminal");
    }

    /// Everything that was read from it until now.
    #[must_use]
    pub fn transcript(&self) -> String {
        String::from_utf8_lossy(&self.transcript).into_owned()
    }

    /// Reads all that is there, and waits up to `limit_dur` for the first byte. Returns whether
    /// more may follow.
    fn read(&mut self, limit_dur: Duration) -> bool {
        let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        let millis = u16::try_from(limit_dur.as_millis()).unwrap_or(u16::MAX);
        if !matches!(poll(&mut fds, PollTimeout::from(millis)), Ok(1..)) {
            return true;
        }
        let mut chunk = [0; 4096];
        match self.master.read(&mut chunk) {
            // EIO: no process has the slave open any longer.
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.transcript.extend_from_slice(&chunk[..count]);
                true
            }
        }
    }

    /// Reads until the transcript has `text`.
    ///
    /// # Panics
    /// If it does not appear.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + COMMAND_LIMIT_DUR;
        while !self.transcript().contains(text) {
            let more = self.read(Duration::from_millis(50));
            assert!(
                (more && Instant::now() < deadline) || self.transcript().contains(text),
                "{text:?} did not come; the terminal has {:?}",
                self.transcript()
            );
        }
    }

    /// Forgets the transcript, so that [`expect`](Self::expect) sees only new output.
    pub fn forget(&mut self) {
        self.transcript.clear();
    }
}

/// A command on a terminal of its own.
#[derive(Debug)]
pub struct Session {
    child: Watched,
    /// Its terminal.
    pub terminal: Terminal,
    line: String,
    limit_dur: Duration,
}

impl Session {
    pub(super) fn new(
        child: Watched,
        terminal: Terminal,
        line: String,
        limit_dur: Duration,
    ) -> Self {
        Self {
            child,
            terminal,
            line,
            limit_dur,
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.pid().as_raw()
    }

    /// Sends a signal to exactly this process.
    ///
    /// # Panics
    /// If it has ended.
    pub fn signal(&self, signal: Signal) {
        kill(self.child.pid(), signal).expect("the process is there");
    }

    /// Waits for its end, reading its terminal meanwhile. Returns its exit status (128 and the
    /// signal's number if a signal ended it) and everything that was read from the terminal.
    ///
    /// # Panics
    /// If that takes too long; it is killed then.
    #[track_caller]
    pub fn wait(self) -> (i32, String) {
        let (code, terminal) = self.finish();
        (code, terminal.transcript())
    }

    /// As [`wait`](Self::wait), with the terminal itself.
    ///
    /// # Panics
    /// As [`wait`](Self::wait).
    #[track_caller]
    pub fn finish(mut self) -> (i32, Terminal) {
        let deadline = Instant::now() + self.limit_dur;
        loop {
            let ended = self.child.wait(Duration::ZERO);
            let mut fds = [
                PollFd::new(self.terminal.master.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.child.fd().as_fd(), PollFlags::POLLIN),
            ];
            let limit = if ended.is_some() { 0u16 } else { 100 };
            let _ = poll(&mut fds, PollTimeout::from(limit));
            let readable = fds[0].any().unwrap_or(false);
            if readable {
                self.terminal.read(Duration::ZERO);
            } else if let Some(status) = ended {
                return (exit_code(status), self.terminal);
            }
            assert!(
                Instant::now() < deadline,
                "{} hangs: not at its end within {:?}; {}\nthe terminal has {:?}",
                self.line,
                self.limit_dur,
                whereabouts(self.child.pid()),
                self.terminal.transcript()
            );
        }
    }
}

/// A socket that receives a descriptor: `--console-socket`, `--pidfd-socket`.
#[derive(Debug)]
pub struct ConsoleSocket {
    path: PathBuf,
    listener: UnixListener,
}

impl ConsoleSocket {
    /// Listens at `path`.
    ///
    /// # Panics
    /// If that is impossible.
    #[must_use]
    pub fn listen(path: &Path) -> Self {
        let listener = UnixListener::bind(path).expect("a socket");
        listener.set_nonblocking(true).expect("a socket option");
        Self {
            path: path.to_path_buf(),
            listener,
        }
    }

    /// The path of the socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The message and the descriptor that were sent.
    ///
    /// # Panics
    /// If none arrives.
    #[must_use]
    #[track_caller]
    pub fn receive(&self) -> (Vec<u8>, OwnedFd) {
        let deadline = Instant::now() + COMMAND_LIMIT_DUR;
        let stream = loop {
            match self.listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    assert!(Instant::now() < deadline, "nobody connects to the socket");
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => panic!("accept: {error}"),
            }
        };
        let (message, fd) =
            rcm::sys::socket::recv_fd(stream.as_fd(), 4096).expect("a message on the socket");
        (message, fd.expect("a descriptor with the message"))
    }

    /// The terminal that was sent.
    ///
    /// # Panics
    /// If none arrives.
    #[must_use]
    #[track_caller]
    pub fn terminal(&self) -> Terminal {
        Terminal::of_master(self.receive().1)
    }
}
