//! Where a receiver keeps those who have not proved yet who they are.
//!
//! Anybody can connect to the port. Until the proof of [`crate::migrate::trust::rendezvous`] a guest gets nothing: no process, no thread, no memory beyond what
//! a TLS handshake takes, [`GUEST_LIMIT_BYTES`] to say what it has to say, [`HANDSHAKE_LIMIT_DUR`] of time, and no place that another one needs: when
//! all [`MAX_GUESTS`] places are taken, the guest who has waited longest goes. One thread polls them all, so a silent guest delays nobody.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};

use super::channel::{Channel, Patience, Stream, TransportError, prepare};
use super::tls::TlsStream;
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

/// How long a guest may take to prove itself.
pub const HANDSHAKE_LIMIT_DUR: Duration = Duration::from_secs(10);
/// How many guests there are at a time.
pub const MAX_GUESTS: usize = 64;
/// What a guest may send, handshake and certificates included.
pub const GUEST_LIMIT_BYTES: usize = 64 << 10;
/// The pause after a connection that could not be accepted.
const ACCEPT_PAUSE_DUR: Duration = Duration::from_millis(10);

/// A receiver's port.
#[derive(Debug)]
pub struct Lobby {
    listener: TcpListener,
    acquaintance: Acquaintance,
    /// For a source that does not know the secret of the store, where the flags make trust without it.
    without_store: Option<Acquaintance>,
    trust: Trust,
    /// For those who come through ssh.
    doorbell: Option<Doorbell>,
    guests: VecDeque<Guest>,
}

/// Why a guest was shown the door; only for the debug log, because strangers must not fill a log either.
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

impl Lobby {
    /// At an open port, of [`listen`].
    #[must_use]
    pub fn new(listener: TcpListener, acquaintance: Acquaintance, trust: Trust) -> Self {
        let key = trust.key_without_store();
        let mut lobby = Self {
            listener,
            without_store: None,
            acquaintance,
            trust,
            doorbell: None,
            guests: VecDeque::new(),
        };
        lobby.admit_without_store(key);
        lobby
    }

    /// Also takes sources that know this key, and not the secret of the receiver's file.
    pub fn admit_without_store(&mut self, key: Option<Bytes32>) {
        self.without_store = key.map(|secret| Acquaintance {
            secret,
            knows_secret: false,
            ..self.acquaintance
        });
    }

    /// What another process needs to be this receiver once more.
    #[must_use]
    pub fn stored(&self, store: &Path) -> Option<StoredReceiver> {
        Some(StoredReceiver {
            listen: self.address().ok()?,
            identity: self.trust.identity().cloned(),
            key_without_store: self.trust.key_without_store(),
            store: store.to_path_buf(),
        })
    }

    /// The files of mutual TLS, where it is asked for.
    #[must_use]
    pub fn tls_files(&self) -> Option<&TlsFiles> {
        self.trust.files()
    }

    /// The address that is listened on, with the port that the kernel chose for port 0.
    ///
    /// # Errors
    /// As getsockname(2).
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Tells relays on this host where it is, as long as it is there.
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
        let doorbell = Doorbell::hang(root, container, address, rendezvous, keeper)?;
        self.doorbell = Some(doorbell);
        Ok(())
    }

    /// Waits for the next peer that proves itself.
    ///
    /// # Errors
    /// [`TransportError::Late`] at the deadline, [`TransportError::Interrupted`]. No guest can cause an error.
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
        let mut fds = vec![PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.guests.iter().map(|guest| {
            let mut events = PollFlags::POLLIN;
            events.set(PollFlags::POLLOUT, guest.stream.wants_write());
            PollFd::new(guest.stream.fd(), events)
        }));
        // The oldest guest is in front: its time ends first.
        let patience = match self.guests.front() {
            Some(oldest) => {
                patience.at_most(oldest.until.saturating_duration_since(Instant::now()))
            }
            None => patience,
        };
        patience.poll(&mut fds)
    }

    /// Does what can be done without waiting. Returns the first guest that has proved itself.
    fn attend(&mut self) -> Option<Channel> {
        self.accept();
        let mut place = 0;
        while place < self.guests.len() {
            match self.guests[place].advance(&self.acquaintance, self.without_store.as_ref()) {
                Ok(false) if Instant::now() < self.guests[place].until => place += 1,
                Ok(true) => {
                    let mut guest = self.guests.remove(place)?;
                    guest.stream.limit(None);
                    return Some(Channel::new(Box::new(guest.stream), guest.peer));
                }
                refused => {
                    let reason = refused.err().unwrap_or(Refusal::Late);
                    if let Some(guest) = self.guests.remove(place) {
                        tracing::debug!("{} is no source: {}", guest.peer, describe(&reason));
                    }
                }
            }
        }
        None
    }

    fn accept(&mut self) {
        // Bounded, so that a flood of connections cannot keep the guests from being heard.
        for _ in 0..MAX_GUESTS {
            match self.listener.accept() {
                Ok((stream, peer)) => {
                    let Ok(guest) = Guest::new(stream, peer.to_string(), &self.trust) else {
                        continue;
                    };
                    if self.guests.len() == MAX_GUESTS {
                        self.guests.pop_front();
                    }
                    self.guests.push_back(guest);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // ECONNABORTED and the like concern one connection. Out of descriptors (EMFILE), the connection stays in the queue:
                // without a pause the next poll would come back at once, again and again.
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

/// One connection before its proof.
#[derive(Debug)]
struct Guest {
    stream: TlsStream,
    peer: String,
    until: Instant,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// The TLS handshake is incomplete.
    Handshake,
    /// Its opening is incomplete.
    Opening(Vec<u8>),
    /// It was challenged.
    Challenged(Decoder),
}

impl Guest {
    fn new(stream: TcpStream, peer: String, trust: &Trust) -> std::io::Result<Self> {
        prepare(&stream)?;
        let mut stream = TlsStream::server(Box::new(stream), trust)?;
        stream.limit(Some(GUEST_LIMIT_BYTES));
        Ok(Self {
            stream,
            peer,
            until: Instant::now() + HANDSHAKE_LIMIT_DUR,
            stage: Stage::Handshake,
        })
    }

    /// Reads what is there. Returns whether the guest has proved itself.
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
                        // Ours goes out before the versions are compared, so that the other end can say what does not fit.
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
                    let acquaintance = match proof.knows_secret {
                        true => acquaintance,
                        false => without_store.ok_or(RendezvousError::WrongProof)?,
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

/// Reads one byte; `false` where none is there yet.
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

/// Sends what always fits into an empty socket buffer; a guest whose buffer is full does not read.
fn write(stream: &mut dyn Stream, bytes: &[u8]) -> Result<(), Refusal> {
    stream.write_all(bytes)?;
    Ok(stream.flush()?)
}

#[cfg(test)]
mod tests;
