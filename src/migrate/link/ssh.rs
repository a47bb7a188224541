//! A connection through ssh(1): the destination's port need not be open, and ssh establishes the
//! trust.
//!
//! ssh starts `rcm live-migrate ID --relay` at the other end ([`super::ssh_helper`]). That program
//! sends the contents of the receiver's file, and then carries bytes between ssh and the receiver.
//! Inside is the usual TLS session, with the proof of the secret. The receiver does not know that
//! ssh is in between, and needs no port that other hosts reach.
//!
//! `RCM_SSH` replaces `ssh`: a program with its options, separated by spaces. `RCM_REMOTE` replaces
//! `rcm` as the command at the other end, for instance `sudo rcm` or `rcm --root /run/other`.

use std::env;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nix::poll::{PollFd, PollFlags};
use nix::unistd::Pid;

use super::channel::{Patience, Stream, TransportError};
use crate::migrate::limits::{MAX_NOISE_BYTES, SSH_END_LIMIT_DUR};
use crate::migrate::trust::rendezvous::ReceiverFile;
use crate::sys::process;

/// First line that the ssh helper sends. Output of a login script before it is skipped.
pub(crate) const GREETING: &str = "rcm-relay 1\n";
/// Options of ssh: it never prompts, and notices in seconds that the other host is gone.
const OPTIONS: [&str; 9] = [
    "-T",
    "-o",
    "BatchMode=yes",
    "-o",
    "ConnectTimeout=10",
    "-o",
    "ServerAliveInterval=2",
    "-o",
    "ServerAliveCountMax=3",
];

/// Login at the other host.
pub(crate) struct Login<'a> {
    pub user: Option<&'a str>,
    pub host: &'a str,
    pub port: Option<u16>,
}

/// Stream over the standard input and output of a running ssh.
#[derive(Debug)]
pub(crate) struct SshStream {
    socket: UnixStream,
    child: Child,
}

/// Starts ssh and waits for the greeting of the ssh helper.
pub(crate) fn dial(
    login: &Login,
    container: &str,
    patience: Patience,
) -> Result<(SshStream, ReceiverFile), TransportError> {
    let peer = format!("{} over ssh", login.host);
    let failed = |source| TransportError::Connect {
        peer: peer.clone(),
        source,
    };
    let mut stream = SshStream::start(login, container).map_err(failed)?;
    let mut said = Vec::new();
    loop {
        let mut chunk = [0; 1];
        match stream.read(&mut chunk) {
            Ok(0) => return Err(TransportError::Ssh { peer }),
            Ok(_) => said.push(chunk[0]),
            Err(error) if error.kind() == ErrorKind::Interrupted => patience.check()?,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if patience.is_over() {
                    return Err(TransportError::Late { peer });
                }
                patience.poll(&mut vec![PollFd::new(stream.fd(), PollFlags::POLLIN)])?;
            }
            Err(error) => return Err(failed(error)),
        }
        if let Some(left) = greeting(&said) {
            return Ok((stream, left));
        }
        if said.len() > MAX_NOISE_BYTES {
            return Err(TransportError::Ssh { peer });
        }
    }
}

/// Returns the contents of the receiver's file once the greeting is complete.
fn greeting(said: &[u8]) -> Option<ReceiverFile> {
    // It is parsed at the end of a line only. The greeting has three lines.
    if said.last() != Some(&b'\n') {
        return None;
    }
    let said = String::from_utf8_lossy(said);
    let (_, left) = said.rsplit_once(GREETING)?;
    ReceiverFile::decode(left)
}

impl SshStream {
    fn start(login: &Login, container: &str) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let program = env::var("RCM_SSH").unwrap_or_else(|_| "ssh".into());
        let mut words = program.split_whitespace();
        let mut command = Command::new(words.next().unwrap_or("ssh"));
        command.args(words).args(OPTIONS);
        if let Some(port) = login.port {
            command.arg("-p").arg(port.to_string());
        }
        if let Some(user) = login.user {
            command.arg("-l").arg(user);
        }
        let remote = env::var("RCM_REMOTE").unwrap_or_else(|_| "rcm".into());
        // The other end's shell parses the command. An id has no character that is special to a
        // shell.
        let remote = format!("{remote} live-migrate {container} --relay");
        command.arg("--").arg(login.host).arg(remote);
        let child = command
            .stdin(Stdio::from(OwnedFd::from(theirs.try_clone()?)))
            .stdout(Stdio::from(OwnedFd::from(theirs)))
            // Ctrl-C must reach rcm alone, which has to tell the other end about it.
            .process_group(0)
            .spawn()?;
        Ok(Self {
            socket: ours,
            child,
        })
    }
}

impl Read for SshStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.read(buffer)
    }
}

impl Write for SshStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for SshStream {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for SshStream {
    /// ssh ends when its input ends, after it has sent the bytes that it still holds.
    fn drop(&mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
        let has_ended = i32::try_from(self.child.id())
            .ok()
            .and_then(|pid| process::pidfd_open(Pid::from_raw(pid)).ok())
            .is_some_and(|pidfd| {
                let waited = Patience::within(SSH_END_LIMIT_DUR).readable(pidfd);
                waited.unwrap_or(false)
            });
        if !has_ended {
            // This has no effect on a process that has ended meanwhile.
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greeting_is_found_after_the_output_of_a_login_script() {
        let left = format!("{}\n{}\n", "ab".repeat(32), "cd".repeat(32));
        for noise in ["", "Welcome!\n", "rcm-relay 1\nno\n", "\u{fffd}\0x"] {
            let said = format!("{noise}{GREETING}{left}");
            assert!(greeting(said.as_bytes()).is_some(), "{noise:?}");
            for end in 0..said.len() {
                assert!(
                    greeting(&said.as_bytes()[..end]).is_none(),
                    "{noise:?} {end}"
                );
            }
        }
    }
}
