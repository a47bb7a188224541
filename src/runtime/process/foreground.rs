//! Running in the foreground until a container's process ends: signals, terminal, exit status.
//!
//! rcm learns from a pidfd that the process has ended, and not from SIGCHLD. A child that ends
//! before SIGCHLD is blocked leaves no signal behind, because the default action ignores it, and
//! waiting for the signal would never end. The foreground run of youki 0.7 does that, and hangs in
//! about one of ten runs. A pidfd stays readable.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use super::terminal::Master;
use crate::runtime::error::{Error, Result};
use crate::sys;
use crate::sys::terminal::RawMode;

/// Base of the exit status of a process that a signal ended; the signal's number is added, as in
/// shells.
const SIGNAL_BASE: i32 = 128;
/// Size of one read of the terminal's data.
const CHUNK_BYTES: usize = 32 * 1024;

/// Watch over a child process. Create it before the child can end, and before signals arrive that
/// are meant for it.
#[derive(Debug)]
pub struct Foreground {
    pid: Pid,
    pidfd: OwnedFd,
    signals: SignalFd,
    relay: Option<Relay>,
}

impl Foreground {
    /// Begins to watch the child `pid`: from now on this process's signals are forwarded to it.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn watch(pid: Pid) -> Result<Self> {
        let pidfd = sys::process::pidfd_open(pid)
            .map_err(Error::system("watch the container's process"))?;
        let set = SigSet::all();
        set.thread_block().map_err(Error::system("block signals"))?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .map_err(Error::system("receive signals"))?;
        Ok(Self {
            pid,
            pidfd,
            signals,
            relay: None,
        })
    }

    /// Connects the child's terminal, if it has one, with this process's standard streams. Call it
    /// before the child starts, so that it finds the final size and modes.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn attach(&mut self, terminal: Option<Master>) -> Result<()> {
        self.relay = terminal.map(Relay::new).transpose()?;
        Ok(())
    }

    /// Waits until the child has ended; forwards signals to it and moves its terminal's data.
    ///
    /// Returns the child's exit status, or 128 plus the number of the signal that ended it.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn wait(mut self) -> Result<i32> {
        loop {
            let input = self.relay.as_ref().and_then(Relay::input_fd);
            let output = self.relay.as_ref().and_then(Relay::output_fd);
            let mut fds = vec![
                PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            ];
            // An absent descriptor has no entry; the ready flags below are read in the same order.
            fds.extend(input.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            fds.extend(output.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::system("wait for the container")(errno)),
            }
            let ready: Vec<bool> = fds
                .iter()
                .map(|fd| fd.revents().is_some_and(|events| !events.is_empty()))
                .collect();
            drop(fds);
            let mut ready = ready.into_iter();
            let ended = ready.next().unwrap_or(false);
            let signalled = ready.next().unwrap_or(false);
            let has_input = input_ready(&self.relay, Relay::input_fd, &mut ready);
            let has_output = input_ready(&self.relay, Relay::output_fd, &mut ready);
            if signalled {
                self.forward_signals()?;
            }
            if let Some(relay) = &mut self.relay {
                if has_output {
                    relay.copy_output();
                }
                if has_input {
                    relay.copy_input();
                }
            }
            if ended {
                if let Some(relay) = &mut self.relay {
                    relay.drain();
                }
                return self.reap();
            }
        }
    }

    fn forward_signals(&mut self) -> Result<()> {
        loop {
            match self.signals.read_signal() {
                Ok(Some(info)) => {
                    let number = info.ssi_signo as i32;
                    match Signal::try_from(number) {
                        // As a subreaper, this process inherits the container's orphans.
                        Ok(Signal::SIGCHLD) => sys::process::reap_others(self.pid),
                        signal => match &self.relay {
                            Some(relay) if signal == Ok(Signal::SIGWINCH) => relay.follow_size(),
                            // An error is ignored: the process may just be ending.
                            _ => drop(sys::process::pidfd_send_signal(&self.pidfd, Some(number))),
                        },
                    }
                }
                Ok(None) | Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::system("receive signals")(errno)),
            }
        }
    }

    fn reap(&self) -> Result<i32> {
        let status = sys::process::wait(self.pid)
            .map_err(Error::system("get the container's exit status"))?;
        // rcm does not wait for stopped or continued children, so the status has one of the two.
        let by_signal = status.signal().map(|signal| SIGNAL_BASE + signal);
        Ok(status.code().or(by_signal).unwrap_or(SIGNAL_BASE))
    }
}

fn input_ready<'a>(
    relay: &'a Option<Relay>,
    fd: impl Fn(&'a Relay) -> Option<BorrowedFd<'a>>,
    ready: &mut impl Iterator<Item = bool>,
) -> bool {
    relay.as_ref().and_then(fd).is_some() && ready.next().unwrap_or(false)
}

/// Pump between rcm's standard streams and a container's terminal.
#[derive(Debug)]
struct Relay {
    master: Master,
    /// Whether stdin may have more data.
    input_open: bool,
    /// Whether the terminal may have more data. EIO means that no process has it open any more.
    output_open: bool,
    /// rcm's own terminal, in raw mode until this is dropped.
    _raw: Option<RawMode>,
}

impl Relay {
    fn new(master: Master) -> Result<Self> {
        let stdin = io::stdin();
        // A stdin that is no terminal is copied without raw mode.
        let raw = RawMode::enter(stdin.as_fd()).ok();
        let _ = sys::terminal::clear_onlcr(master.fd().as_fd());
        let flags = fcntl(master.fd().as_raw_fd(), FcntlArg::F_GETFL)
            .map_err(Error::system("use the container's terminal"))?;
        let flags = OFlag::from_bits_truncate(flags) | OFlag::O_NONBLOCK;
        fcntl(master.fd().as_raw_fd(), FcntlArg::F_SETFL(flags))
            .map_err(Error::system("use the container's terminal"))?;
        let relay = Self {
            master,
            input_open: true,
            output_open: true,
            _raw: raw,
        };
        relay.follow_size();
        Ok(relay)
    }

    fn input_fd(&self) -> Option<BorrowedFd<'_>> {
        self.input_open.then(stdin_fd)
    }

    fn output_fd(&self) -> Option<BorrowedFd<'_>> {
        self.output_open.then(|| self.master.fd().as_fd())
    }

    /// Gives the container's terminal the size of rcm's terminal.
    fn follow_size(&self) {
        if let Ok(size) = sys::terminal::window_size(stdin_fd()) {
            let _ = self.master.resize(size);
        }
    }

    fn copy_input(&mut self) {
        let mut chunk = [0; CHUNK_BYTES];
        match nix::unistd::read(stdin_fd().as_raw_fd(), &mut chunk) {
            Ok(0) => {
                // On a terminal, end of input is a character and not a closed descriptor. A program
                // that reads lines sees it.
                let _ = self.write_master(&[END_OF_TRANSMISSION]);
                self.input_open = false;
            }
            Ok(count) => self.input_open = self.write_master(&chunk[..count]),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(_) => self.input_open = false,
        }
    }

    /// Writes input to the terminal. Returns whether the terminal still takes input.
    fn write_master(&mut self, mut data: &[u8]) -> bool {
        while !data.is_empty() {
            match nix::unistd::write(self.master.fd(), data) {
                Ok(count) => data = &data[count..],
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    // The program does not read. Keep its output flowing, or both sides wait for
                    // each other.
                    self.copy_output();
                    let mut fds = [PollFd::new(
                        self.master.fd().as_fd(),
                        PollFlags::POLLOUT | PollFlags::POLLIN,
                    )];
                    if poll(&mut fds, PollTimeout::from(100u8)).is_err() {
                        return false;
                    }
                    if fds[0]
                        .revents()
                        .is_some_and(|events| events.contains(PollFlags::POLLHUP))
                    {
                        return false;
                    }
                }
                Err(_) => return false,
            }
        }
        true
    }

    /// Moves one chunk of output. Returns whether there may be more at once.
    fn copy_output(&mut self) -> bool {
        let mut chunk = [0; CHUNK_BYTES];
        match nix::unistd::read(self.master.fd().as_raw_fd(), &mut chunk) {
            Ok(count) if count > 0 => {
                if write_stdout(&chunk[..count]).is_err() {
                    // Nobody reads rcm's output. That must not stop the container.
                    tracing::debug!("stdout is closed; the container's output is dropped");
                }
                true
            }
            Err(Errno::EINTR) => true,
            Err(Errno::EAGAIN) => false,
            _ => {
                self.output_open = false;
                false
            }
        }
    }

    /// Moves the output that the container wrote before it ended.
    fn drain(&mut self) {
        while self.copy_output() {}
    }
}

/// Control-D.
const END_OF_TRANSMISSION: u8 = 4;

fn stdin_fd() -> BorrowedFd<'static> {
    // The standard library's handle lives as long as the process.
    static STDIN: std::sync::OnceLock<io::Stdin> = std::sync::OnceLock::new();
    STDIN.get_or_init(io::stdin).as_fd()
}

fn write_stdout(mut data: &[u8]) -> nix::Result<()> {
    let stdout = io::stdout();
    while !data.is_empty() {
        match nix::unistd::write(&stdout, data) {
            Ok(count) => data = &data[count..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::POLLOUT)];
                poll(&mut fds, PollTimeout::NONE)?;
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
