//! Messages on a connection between the two ends, with a deadline on every operation.
//!
//! A [`Channel`] carries messages over any [`Stream`], which is a nonblocking byte stream with a
//! descriptor to poll: a TLS session on a TCP socket ([`super::tls`]). [`super::listener`] handles
//! a peer before it has proved itself.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};

use crate::migrate::limits::{ABORT_LIMIT_DUR, DEAD_PEER_LIMIT_DUR};
use crate::migrate::trust::rendezvous::RendezvousError;
use crate::migrate::wire::codec::{self, CodecError, Decoder};
use crate::migrate::wire::payload::Abort;
use crate::migrate::wire::protocol::{Kind, Message, Payload};
use crate::sys::bell::Bell;
use crate::sys::interrupt::Interrupt;

/// Communication with the other end failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// A name has no address.
    #[error("cannot find the address of {host}")]
    Resolve {
        /// Name of the host.
        host: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// No address of the peer answers.
    #[error(
        "cannot connect to {peer}: is a receiver (`rcm live-migrate ID --image-path=DIR`) waiting there?"
    )]
    Connect {
        /// Address of the peer.
        peer: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// ssh ended, or the program at the other end does not answer as rcm does.
    #[error(
        "cannot reach a receiver at {peer}: check that ssh logs in there without a question and that rcm is on the PATH there (or set RCM_REMOTE)"
    )]
    Ssh {
        /// Name of the host.
        peer: String,
    },
    /// The listening address cannot be used.
    #[error("cannot listen on {address}: choose another one with --listen")]
    Listen {
        /// Address to listen on.
        address: SocketAddr,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Sending or receiving failed.
    #[error("the connection to {peer} failed")]
    Broken {
        /// Address of the peer.
        peer: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The peer has closed the connection.
    #[error("{peer} closed the connection")]
    Closed {
        /// Address of the peer.
        peer: String,
    },
    /// The deadline has passed.
    #[error("{peer} did not answer in time")]
    Late {
        /// Address of the peer.
        peer: String,
    },
    /// A signal asks this process to stop.
    #[error("stopped by {signal}")]
    Interrupted {
        /// Received signal.
        signal: Signal,
    },
    /// The peer ended the migration.
    #[error("{peer} ended the migration: {reason}")]
    Aborted {
        /// Address of the peer.
        peer: String,
        /// Reason of the peer.
        reason: String,
    },
    /// The peer sent an invalid message.
    #[error("{peer} sent an invalid message")]
    Invalid {
        /// Address of the peer.
        peer: String,
        /// Error of the decoder.
        #[source]
        source: CodecError,
    },
    /// The TLS handshake failed.
    #[error(
        "cannot agree on a TLS session with {peer}: do both ends run the same release of rcm with the same --tls flags?"
    )]
    Tls {
        /// Address of the peer.
        peer: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The ends do not recognize each other.
    #[error("{peer} and this host do not recognize each other")]
    Stranger {
        /// Address of the peer.
        peer: String,
        /// Cause.
        #[source]
        source: RendezvousError,
    },
    /// Waiting itself failed.
    #[error("cannot wait for the network")]
    Poll {
        /// Cause.
        #[source]
        source: Errno,
    },
}

type Result<T, E = TransportError> = std::result::Result<T, E>;

/// Limits of a wait.
#[derive(Debug, Clone, Copy, Default)]
pub struct Patience<'a> {
    /// End of the wait; `None` waits for ever.
    pub deadline: Option<Instant>,
    /// Signal that ends the wait, if any.
    pub interrupt: Option<&'a Interrupt>,
    /// Bell of another thread that ends the wait like the deadline, if any.
    pub bell: Option<&'a Bell>,
}

impl<'a> Patience<'a> {
    /// Waits for at most `limit_dur`.
    #[must_use]
    pub fn within(limit_dur: Duration) -> Self {
        Self {
            deadline: Some(Instant::now() + limit_dur),
            ..Self::default()
        }
    }

    /// Returns the same limits, but also ended by a signal.
    #[must_use]
    pub fn or_interrupt(self, interrupt: Option<&'a Interrupt>) -> Self {
        Self { interrupt, ..self }
    }

    /// Returns the same limits, but also ended by a bell.
    #[must_use]
    pub fn or_bell(self, bell: Option<&'a Bell>) -> Self {
        Self { bell, ..self }
    }

    /// Returns the same limits, but for at most `limit_dur` from now.
    #[must_use]
    pub fn at_most(self, limit_dur: Duration) -> Self {
        let limit = Instant::now() + limit_dur;
        Self {
            deadline: Some(self.deadline.map_or(limit, |deadline| deadline.min(limit))),
            ..self
        }
    }

    /// Whether the deadline has passed or the bell has rung.
    #[must_use]
    pub fn is_over(self) -> bool {
        self.deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
            || self.bell.is_some_and(Bell::is_rung)
    }

    /// Checks whether a signal has ended the wait.
    ///
    /// # Errors
    /// [`TransportError::Interrupted`].
    pub fn check(self) -> Result<()> {
        match self.interrupt.and_then(Interrupt::received) {
            Some(signal) => Err(TransportError::Interrupted { signal }),
            None => Ok(()),
        }
    }

    /// Waits until `fd` is readable, which a pidfd is when its process has ended. Returns `false`
    /// if the limits end the wait first.
    ///
    /// # Errors
    /// As [`Self::poll`].
    pub fn readable(self, fd: impl AsFd) -> Result<bool> {
        loop {
            let mut fds = vec![PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
            self.poll(&mut fds)?;
            if fds[0].any() == Some(true) {
                return Ok(true);
            }
            if self.is_over() {
                return Ok(false);
            }
        }
    }

    /// Waits until one of `fds` is ready, the deadline passes, the bell rings or a signal arrives.
    /// The readiness is in `fds`.
    ///
    /// # Errors
    /// [`TransportError::Interrupted`], [`TransportError::Poll`].
    pub fn poll<'fd>(self, fds: &mut Vec<PollFd<'fd>>) -> Result<()>
    where
        'a: 'fd,
    {
        self.check()?;
        let own = fds.len();
        let enders = [self.interrupt.map(AsFd::as_fd), self.bell.map(AsFd::as_fd)];
        fds.extend(
            enders
                .into_iter()
                .flatten()
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN)),
        );
        // Rounded up: a wait of 0 ms just before the deadline would spin.
        let timeout = self.deadline.map_or(PollTimeout::NONE, |deadline| {
            let left_dur = deadline.saturating_duration_since(Instant::now());
            PollTimeout::try_from(left_dur.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
        });
        let polled = poll(fds, timeout);
        fds.truncate(own);
        match polled {
            Ok(_) | Err(Errno::EINTR) => self.check(),
            Err(source) => Err(TransportError::Poll { source }),
        }
    }
}

/// A nonblocking stream of bytes.
pub trait Stream: Read + Write + Send + std::fmt::Debug {
    /// Descriptor to poll when an operation would block.
    fn fd(&self) -> BorrowedFd<'_>;
}

impl Stream for TcpStream {
    fn fd(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }
}

impl Stream for std::os::unix::net::UnixStream {
    fn fd(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }
}

/// Channel for messages to a peer that is known.
#[derive(Debug)]
pub struct Channel {
    stream: Box<dyn Stream>,
    peer: String,
    decoder: Decoder,
}

impl Channel {
    /// Makes a channel over `stream`, which must be nonblocking and past its openings.
    #[must_use]
    pub fn new(stream: Box<dyn Stream>, peer: String) -> Self {
        Self {
            stream,
            peer,
            decoder: Decoder::default(),
        }
    }

    /// Returns the other end's address, for messages.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Returns a copy of the socket. Shutting it down ends every wait on this channel, in any
    /// thread.
    ///
    /// # Errors
    /// [`TransportError::Broken`].
    pub(crate) fn handle(&self) -> Result<OwnedFd> {
        let copied = self.stream.fd().try_clone_to_owned();
        copied.map_err(|source| TransportError::Broken {
            peer: self.peer.clone(),
            source,
        })
    }

    /// Sends a complete message.
    ///
    /// # Errors
    /// Errors of the connection, and [`TransportError::Invalid`] if the message is too long. A part
    /// may have been sent.
    pub fn send(&mut self, message: &Message, patience: Patience) -> Result<()> {
        let bytes = codec::encode(message).map_err(|source| self.invalid(source))?;
        self.write_all(&bytes, patience)
    }

    /// Receives the next message, which must be of a kind in `expected` or an [`Abort`].
    ///
    /// # Errors
    /// [`TransportError::Aborted`] for an abort; all others.
    pub fn receive(&mut self, expected: &[Kind], patience: Patience) -> Result<Message> {
        let mut allowed = expected.to_vec();
        allowed.push(Kind::Abort);
        match self.receive_strictly(&allowed, patience)? {
            Message::Abort(Abort { reason }) if !expected.contains(&Kind::Abort) => {
                Err(TransportError::Aborted {
                    peer: self.peer.clone(),
                    // The reason is printed on a terminal, so it must be one line without control
                    // characters.
                    reason: reason
                        .chars()
                        .map(|c| if c.is_control() { ' ' } else { c })
                        .collect(),
                })
            }
            message => Ok(message),
        }
    }

    /// Receives the next message, which must be a `P` or an [`Abort`].
    ///
    /// # Errors
    /// As [`Self::receive`].
    pub fn expect<P: Payload>(&mut self, patience: Patience) -> Result<P> {
        let message = self.receive(&[P::KIND], patience)?;
        self.only(message)
    }

    /// Receives the next message, which must be a `P`. An abort is an error here, because the peer
    /// has not proved who it is.
    pub(crate) fn expect_strictly<P: Payload>(&mut self, patience: Patience) -> Result<P> {
        let message = self.receive_strictly(&[P::KIND], patience)?;
        self.only(message)
    }

    fn only<P: Payload>(&self, message: Message) -> Result<P> {
        P::try_from(message).map_err(|message| {
            self.invalid(CodecError::UnexpectedKind {
                kind: message.kind(),
                expected: vec![P::KIND],
            })
        })
    }

    fn receive_strictly(&mut self, expected: &[Kind], patience: Patience) -> Result<Message> {
        let mut chunk = [0; 16 << 10];
        loop {
            let wanted_bytes = self
                .decoder
                .wanted_bytes(expected)
                .map_err(|source| self.invalid(source))?
                .min(chunk.len());
            let read_bytes = self.read(&mut chunk[..wanted_bytes], patience)?;
            self.decoder.push(&chunk[..read_bytes]);
            let taken = self.decoder.take(expected);
            if let Some(message) = taken.map_err(|source| self.invalid(source))? {
                return Ok(message);
            }
        }
    }

    pub(crate) fn read(&mut self, buffer: &mut [u8], patience: Patience) -> Result<usize> {
        loop {
            match self.stream.read(buffer) {
                Ok(0) if self.decoder.is_between_frames() => {
                    return Err(TransportError::Closed {
                        peer: self.peer.clone(),
                    });
                }
                Ok(0) => return Err(self.invalid(CodecError::Truncated)),
                Ok(read_bytes) => return Ok(read_bytes),
                Err(error) => self.wait_after(error, PollFlags::POLLIN, patience)?,
            }
        }
    }

    pub(crate) fn write_all(&mut self, bytes: &[u8], patience: Patience) -> Result<()> {
        self.write_all_vectored(&mut [IoSlice::new(bytes)], patience)
    }

    /// Writes all of `parts`, one after the other.
    pub(crate) fn write_all_vectored(
        &mut self,
        mut parts: &mut [IoSlice<'_>],
        patience: Patience,
    ) -> Result<()> {
        // Skips empty parts first: a write of no bytes would look like a write that failed.
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            match self.stream.write_vectored(parts) {
                Ok(written_bytes) => IoSlice::advance_slices(&mut parts, written_bytes),
                Err(error) => self.wait_after(error, PollFlags::POLLOUT, patience)?,
            }
        }
        loop {
            match self.stream.flush() {
                Ok(()) => return Ok(()),
                Err(error) => self.wait_after(error, PollFlags::POLLOUT, patience)?,
            }
        }
    }

    /// Waits if an operation would block. Any other error ends the connection.
    fn wait_after(&self, error: io::Error, events: PollFlags, patience: Patience) -> Result<()> {
        match error.kind() {
            ErrorKind::Interrupted => patience.check(),
            ErrorKind::WouldBlock => {
                if patience.is_over() {
                    return Err(TransportError::Late {
                        peer: self.peer.clone(),
                    });
                }
                patience.poll(&mut vec![PollFd::new(self.stream.fd(), events)])
            }
            _ => Err(TransportError::Broken {
                peer: self.peer.clone(),
                source: error,
            }),
        }
    }

    pub(crate) fn invalid(&self, source: CodecError) -> TransportError {
        TransportError::Invalid {
            peer: self.peer.clone(),
            source,
        }
    }

    /// Tells the peer that the migration ends, if it still listens.
    pub fn abort(&mut self, reason: &str) {
        let message = Message::Abort(Abort {
            reason: reason.to_owned(),
        });
        // The broken connection may be the reason, so an error here is ignored.
        let _ = self.send(&message, Patience::within(ABORT_LIMIT_DUR));
    }
}

/// Sets the options of every connection: no delay for small frames, and a dead peer is noticed
/// while nothing is sent (tcp(7)).
pub(crate) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &2)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &1)?;
    setsockopt(stream, sockopt::TcpKeepCount, &4)?;
    setsockopt(
        stream,
        sockopt::TcpUserTimeout,
        &(DEAD_PEER_LIMIT_DUR.as_millis() as u32),
    )?;
    Ok(())
}

#[cfg(test)]
mod tests;
