//! Port of a receiver, and the connections that have not proved yet who they are.
//!
//! Anybody can connect to the port. Until the proof of [`crate::migrate::trust::rendezvous`] a
//! connection is pending. It gets no process, no thread, and no memory beyond that of a TLS
//! handshake. It may send [`PENDING_LIMIT_BYTES`], within [`HANDSHAKE_LIMIT_DUR`]. It takes no
//! place from others: when all [`MAX_PENDING`] places are taken, the connection that has waited
//! longest is closed. One thread polls them all, so a silent peer delays nobody.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags};

use super::channel::{Channel, Patience, Stream, TransportError, prepare};
use super::tls::TlsStream;
use crate::migrate::limits::{
    ACCEPT_PAUSE_DUR, HANDSHAKE_LIMIT_DUR, MAX_PENDING, PENDING_LIMIT_BYTES,
};
use crate::migrate::record::doorbell::Doorbell;
use crate::migrate::record::error::JournalError;
use crate::migrate::record::receiver::StoredReceiver;
use crate::migrate::trust::rendezvous::{Acquaintance, RendezvousError};
use crate::migrate::trust::{TlsFiles, Trust};
use crate::migrate::wire::codec::{self, CodecError, Decoder};
use crate::migrate::wire::id::{Bytes32, Side};
use crate::migrate::wire::payload::{Challenge, Welcome};
use crate::migrate::wire::protocol::{DEFAULT_PORT, Kind, Message, VERSIONS};
use crate::sys::process::ProcessId;

/// Port of a receiver.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    acquaintance: Acquaintance,
    /// Data to recognize a source that does not know the secret of the store, if the flags allow
    /// that.
    without_store: Option<Acquaintance>,
    trust: Trust,
    /// File with the address, for ssh helpers.
    doorbell: Option<Doorbell>,
    pending: VecDeque<Pending>,
}

/// Reason why a pending connection was closed. It goes to the debug log only, because strangers
/// must not fill a log either.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("closed the connection")]
    Closed,
    #[error("took too long")]
    Late,
    #[error("connection failed")]
    Io(#[from] std::io::Error),
    #[error("invalid message")]
    Codec(#[from] CodecError),
    #[error("not recognized")]
    Rendezvous(#[from] RendezvousError),
}

/// Listens on `address`, or on the default port of all addresses.
///
/// # Errors
/// [`TransportError::Listen`].
pub fn listen(address: Option<SocketAddr>) -> Result<TcpListener, TransportError> {
    let bind = |address: SocketAddr| {
        TcpListener::bind(address)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|source| TransportError::Listen { address, source })
    };
    match address {
        Some(address) => bind(address),
        // `[::]` takes IPv4 too, unless the host has no IPv6 at all.
        None => bind((Ipv6Addr::UNSPECIFIED, DEFAULT_PORT).into()).or_else(|error| match error {
            TransportError::Listen { source, .. }
                if source.raw_os_error() == Some(libc::EAFNOSUPPORT)
                    || source.kind() == ErrorKind::AddrNotAvailable =>
            {
                bind((Ipv4Addr::UNSPECIFIED, DEFAULT_PORT).into())
            }
            error => Err(error),
        }),
    }
}

impl Listener {
    /// Makes a listener at an open port of [`listen`].
    #[must_use]
    pub fn new(socket: TcpListener, acquaintance: Acquaintance, trust: Trust) -> Self {
        let key = trust.key_without_store();
        let mut listener = Self {
            socket,
            without_store: None,
            acquaintance,
            trust,
            doorbell: None,
            pending: VecDeque::new(),
        };
        listener.admit_without_store(key);
        listener
    }

    /// Also accepts sources that know this key but not the secret of the receiver's file.
    pub fn admit_without_store(&mut self, key: Option<Bytes32>) {
        self.without_store = key.map(|secret| Acquaintance {
            secret,
            knows_secret: false,
            ..self.acquaintance
        });
    }

    /// Returns the parameters with which another process can take the receiver's place.
    #[must_use]
    pub fn stored(&self, store: &Path) -> Option<StoredReceiver> {
        Some(StoredReceiver {
            listen: self.address().ok()?,
            identity: self.trust.identity().cloned(),
            key_without_store: self.trust.key_without_store(),
            store: store.to_path_buf(),
        })
    }

    /// Returns the files of mutual TLS if it is used.
    #[must_use]
    pub fn tls_files(&self) -> Option<&TlsFiles> {
        self.trust.files()
    }

    /// Returns the address on which it listens, with the port that the kernel chose for port 0.
    ///
    /// # Errors
    /// As getsockname(2).
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Tells ssh helpers on this host the address, as long as the listener exists.
    ///
    /// # Errors
    /// [`JournalError::File`].
    pub fn announce(
        &mut self,
        root: &Path,
        container: &str,
        address: SocketAddr,
        rendezvous: &Path,
        keeper: Option<ProcessId>,
    ) -> Result<(), JournalError> {
        let doorbell = Doorbell::create(root, container, address, rendezvous, keeper)?;
        self.doorbell = Some(doorbell);
        Ok(())
    }

    /// Waits for the next peer that proves itself.
    ///
    /// # Errors
    /// [`TransportError::Late`] at the deadline, [`TransportError::Interrupted`]. No pending
    /// connection can cause an error.
    pub fn admit(&mut self, patience: Patience) -> Result<Channel, TransportError> {
        loop {
            if let Some(channel) = self.attend() {
                return Ok(channel);
            }
            if patience.is_over() {
                return Err(TransportError::Late {
                    peer: "any source".into(),
                });
            }
            self.wait(patience)?;
        }
    }

    fn wait(&self, patience: Patience) -> Result<(), TransportError> {
        let mut fds = vec![PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.pending.iter().map(|pending| {
            let mut events = PollFlags::POLLIN;
            events.set(PollFlags::POLLOUT, pending.stream.wants_write());
            PollFd::new(pending.stream.fd(), events)
        }));
        // The oldest connection is in front, and its time ends first.
        let patience = match self.pending.front() {
            Some(oldest) => {
                patience.at_most(oldest.until.saturating_duration_since(Instant::now()))
            }
            None => patience,
        };
        patience.poll(&mut fds)
    }

    /// Handles everything that is ready, without waiting. Returns the first connection that has
    /// proved itself.
    fn attend(&mut self) -> Option<Channel> {
        self.accept();
        let mut place = 0;
        while place < self.pending.len() {
            match self.pending[place].advance(&self.acquaintance, self.without_store.as_ref()) {
                Ok(false) if Instant::now() < self.pending[place].until => place += 1,
                Ok(true) => {
                    let mut pending = self.pending.remove(place)?;
                    pending.stream.limit(None);
                    return Some(Channel::new(Box::new(pending.stream), pending.peer));
                }
                refused => {
                    let reason = refused.err().unwrap_or(Refusal::Late);
                    if let Some(pending) = self.pending.remove(place) {
                        tracing::debug!("{} is not a source: {}", pending.peer, describe(&reason));
                    }
                }
            }
        }
        None
    }

    fn accept(&mut self) {
        // The number is bounded, so that a flood of new connections cannot starve the pending ones.
        for _ in 0..MAX_PENDING {
            match self.socket.accept() {
                Ok((stream, peer)) => {
                    let Ok(pending) = Pending::new(stream, peer.to_string(), &self.trust) else {
                        continue;
                    };
                    if self.pending.len() == MAX_PENDING {
                        self.pending.pop_front();
                    }
                    self.pending.push_back(pending);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // ECONNABORTED and the like concern one connection. Without free descriptors
                // (EMFILE) the connection stays in the queue. Without a pause the next poll would
                // then return at once, again and again.
                Err(_) => {
                    std::thread::sleep(ACCEPT_PAUSE_DUR);
                    return;
                }
            }
        }
    }
}

fn describe(refusal: &Refusal) -> String {
    match std::error::Error::source(refusal) {
        Some(source) => format!("{refusal}: {source}"),
        None => refusal.to_string(),
    }
}

/// A connection before its proof.
#[derive(Debug)]
struct Pending {
    stream: TlsStream,
    peer: String,
    until: Instant,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// The TLS handshake is incomplete.
    Handshake,
    /// The peer's opening is incomplete.
    Opening(Vec<u8>),
    /// The peer was challenged.
    Challenged(Decoder),
}

impl Pending {
    fn new(stream: TcpStream, peer: String, trust: &Trust) -> std::io::Result<Self> {
        prepare(&stream)?;
        let mut stream = TlsStream::server(Box::new(stream), trust)?;
        stream.limit(Some(PENDING_LIMIT_BYTES));
        Ok(Self {
            stream,
            peer,
            until: Instant::now() + HANDSHAKE_LIMIT_DUR,
            stage: Stage::Handshake,
        })
    }

    /// Reads the available bytes. Returns whether the peer has proved itself.
    fn advance(
        &mut self,
        acquaintance: &Acquaintance,
        without_store: Option<&Acquaintance>,
    ) -> Result<bool, Refusal> {
        loop {
            match &mut self.stage {
                Stage::Handshake => match self.stream.handshake() {
                    Ok(()) => self.stage = Stage::Opening(Vec::new()),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error.into()),
                },
                Stage::Opening(opening) => {
                    let mut byte = [0];
                    if !read(&mut self.stream, &mut byte)? {
                        return Ok(false);
                    }
                    opening.push(byte[0]);
                    if let Some((versions, _)) = codec::decode_opening(opening)? {
                        // The own opening is sent before the versions are compared, so that the
                        // other end can report the mismatch.
                        let mut answer = codec::encode_opening(VERSIONS);
                        answer.extend(codec::encode(&Message::Challenge(Challenge {
                            receiver: acquaintance.receiver,
                        }))?);
                        write(&mut self.stream, &answer)?;
                        codec::choose_version(VERSIONS, &versions)?;
                        self.stage = Stage::Challenged(Decoder::default());
                    }
                }
                Stage::Challenged(decoder) => {
                    let mut chunk = [0; 256];
                    let wanted_bytes = decoder.wanted_bytes(&[Kind::Proof])?.min(chunk.len());
                    let read_bytes = match self.stream.read(&mut chunk[..wanted_bytes]) {
                        Ok(0) => return Err(Refusal::Closed),
                        Ok(read_bytes) => read_bytes,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                        Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                        Err(error) => return Err(error.into()),
                    };
                    decoder.push(&chunk[..read_bytes]);
                    let Some(Message::Proof(proof)) = decoder.take(&[Kind::Proof])? else {
                        continue;
                    };
                    let binding = self.stream.binding()?;
                    let acquaintance = if proof.knows_secret {
                        acquaintance
                    } else {
                        without_store.ok_or(RendezvousError::WrongProof)?
                    };
                    acquaintance.check(Side::Source, &binding, &proof.mac)?;
                    let welcome = Message::Welcome(Welcome {
                        mac: acquaintance.proof(Side::Destination, &binding),
                    });
                    write(&mut self.stream, &codec::encode(&welcome)?)?;
                    return Ok(true);
                }
            }
        }
    }
}

/// Reads one byte. Returns `false` if none is available yet.
fn read(stream: &mut dyn Stream, byte: &mut [u8; 1]) -> Result<bool, Refusal> {
    loop {
        match stream.read(byte) {
            Ok(0) => return Err(Refusal::Closed),
            Ok(_) => return Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sends a message that always fits into an empty socket buffer. A peer whose buffer is full does
/// not read.
fn write(stream: &mut dyn Stream, bytes: &[u8]) -> Result<(), Refusal> {
    stream.write_all(bytes)?;
    Ok(stream.flush()?)
}

#[cfg(test)]
mod tests;
