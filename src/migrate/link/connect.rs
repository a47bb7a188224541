//! Source's half of the introduction: it connects and proves itself. The destination's half is in
//! [`super::listener`].

use std::io::{self, ErrorKind};
use std::net::{TcpStream, ToSocketAddrs};

use nix::poll::{PollFd, PollFlags};

use super::address::{Destination, Way};
use super::channel::{Channel, Patience, Stream, TransportError, prepare};
use super::ssh;
use super::tls::TlsStream;
use crate::migrate::limits::CONNECT_LIMIT_DUR;
use crate::migrate::trust::Trust;
use crate::migrate::trust::rendezvous::{Acquaintance, Binding, ReceiverFile, RendezvousError};
use crate::migrate::wire::codec;
use crate::migrate::wire::id::{MigrationId, Side};
use crate::migrate::wire::payload::{Challenge, Proof, Welcome};
use crate::migrate::wire::protocol::{Message, VERSIONS};

type Result<T, E = TransportError> = std::result::Result<T, E>;

/// Claims of a receiver, before anything is proved.
#[derive(Debug)]
pub struct Met {
    /// Claimed id of the receiver.
    pub receiver: MigrationId,
    /// Identity of the session with it.
    pub binding: Binding,
    /// Contents of the receiver's file, if ssh vouches for them.
    pub told: Option<ReceiverFile>,
}

/// Connects to the receiver for `container`, and proves itself with the data that `find` returns
/// for that receiver.
///
/// # Errors
/// All of [`TransportError`].
pub fn connect(
    destination: &Destination,
    container: &str,
    trust: &Trust,
    find: impl FnOnce(&Met) -> std::result::Result<Acquaintance, RendezvousError>,
    patience: Patience,
) -> Result<(Channel, Acquaintance)> {
    let peer = destination.to_string();
    let (stream, told): (Box<dyn Stream>, _) = match &destination.way {
        Way::Tcp { port } => (Box::new(dial(&destination.host, *port, patience)?), None),
        Way::Ssh { user, port } => {
            let login = ssh::Login {
                user: user.as_deref(),
                host: &destination.host,
                port: *port,
            };
            let (stream, told) = ssh::dial(&login, container, patience)?;
            (Box::new(stream), Some(told))
        }
    };
    let stream = TlsStream::client(stream, trust, &destination.host).map_err(|source| {
        TransportError::Broken {
            peer: peer.clone(),
            source,
        }
    })?;
    introduce(stream, peer, told, find, patience)
}

/// Connects again to a receiver that is known.
///
/// # Errors
/// All of [`TransportError`].
pub fn reconnect(
    destination: &Destination,
    container: &str,
    trust: &Trust,
    acquaintance: Acquaintance,
    patience: Patience,
) -> Result<Channel> {
    let known = |met: &Met| {
        if met.receiver == acquaintance.receiver {
            Ok(acquaintance)
        } else {
            Err(RendezvousError::WrongProof)
        }
    };
    connect(destination, container, trust, known, patience).map(|(channel, _)| channel)
}

/// Waits for the destination's part of the TLS handshake.
fn agree(stream: &mut TlsStream, peer: &str, patience: Patience) -> Result<()> {
    loop {
        match stream.handshake() {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => patience.check()?,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if patience.is_over() {
                    return Err(TransportError::Late { peer: peer.into() });
                }
                let mut events = PollFlags::POLLIN;
                events.set(PollFlags::POLLOUT, stream.wants_write());
                patience.poll(&mut vec![PollFd::new(stream.fd(), events)])?;
            }
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
                ) =>
            {
                return Err(TransportError::Closed { peer: peer.into() });
            }
            Err(source) => {
                return Err(TransportError::Tls {
                    peer: peer.into(),
                    source,
                });
            }
        }
    }
}

fn dial(host: &str, port: u16, patience: Patience) -> Result<TcpStream> {
    let addresses = (host, port)
        .to_socket_addrs()
        .map_err(|source| TransportError::Resolve {
            host: host.to_owned(),
            source,
        })?;
    let mut last_error = io::Error::from(ErrorKind::AddrNotAvailable);
    for address in addresses {
        patience.check()?;
        let dialled = TcpStream::connect_timeout(&address, CONNECT_LIMIT_DUR)
            .and_then(|stream| prepare(&stream).map(|()| stream));
        match dialled {
            Ok(stream) => return Ok(stream),
            Err(error) => last_error = error,
        }
    }
    let way = Way::Tcp { port };
    let peer = Destination {
        host: host.to_owned(),
        way,
    };
    Err(TransportError::Connect {
        peer: peer.to_string(),
        source: last_error,
    })
}

/// Source's half of the introduction; the destination's half is in [`super::listener`].
fn introduce(
    mut stream: TlsStream,
    peer: String,
    told: Option<ReceiverFile>,
    find: impl FnOnce(&Met) -> std::result::Result<Acquaintance, RendezvousError>,
    patience: Patience,
) -> Result<(Channel, Acquaintance)> {
    agree(&mut stream, &peer, patience)?;
    let binding = stream.binding().map_err(|source| TransportError::Tls {
        peer: peer.clone(),
        source,
    })?;
    let mut channel = Channel::new(Box::new(stream), peer);
    let stranger = |channel: &Channel, source| TransportError::Stranger {
        peer: channel.peer().to_owned(),
        source,
    };
    channel.write_all(&codec::encode_opening(VERSIONS), patience)?;
    channel.read_opening(patience)?;
    let challenge: Challenge = channel.expect_strictly(patience)?;
    let met = Met {
        receiver: challenge.receiver,
        binding,
        told,
    };
    let acquaintance = find(&met).map_err(|source| stranger(&channel, source))?;
    // This comes before the proof: a proof is sent to the receiver alone.
    acquaintance
        .recognize(&binding)
        .map_err(|source| stranger(&channel, source))?;
    let proof = Message::Proof(Proof {
        mac: acquaintance.proof(Side::Source, &binding),
        knows_secret: acquaintance.knows_secret,
    });
    channel.send(&proof, patience)?;
    let welcome: Welcome = channel.expect_strictly(patience)?;
    acquaintance
        .check(Side::Destination, &binding, &welcome.mac)
        .map_err(|source| stranger(&channel, source))?;
    Ok((channel, acquaintance))
}

impl Channel {
    /// Reads the peer's opening byte by byte, so that nothing after it is read, and chooses a
    /// version.
    fn read_opening(&mut self, patience: Patience) -> Result<()> {
        let mut opening = Vec::new();
        loop {
            let mut byte = [0];
            self.read(&mut byte, patience)?;
            opening.push(byte[0]);
            let decoded = codec::decode_opening(&opening).map_err(|source| self.invalid(source))?;
            if let Some((versions, _)) = decoded {
                codec::choose_version(VERSIONS, &versions)
                    .map_err(|source| self.invalid(source))?;
                return Ok(());
            }
        }
    }
}
