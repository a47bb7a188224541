//! The source's half of the introduction: connecting, and proving itself. The destination's is in [`super::lobby`].

use std::io::{self, ErrorKind};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use super::address::Destination;
use super::codec;
use super::protocol::{Bytes32, Challenge, Message, MigrationId, Proof, Side, VERSIONS, Welcome};
use super::rendezvous::{Acquaintance, RendezvousError, Transcript, random};
use super::transport::{Channel, Patience, Stream, TransportError, prepare};

/// How long a connection attempt to one address may take.
const CONNECT_LIMIT_DUR: Duration = Duration::from_secs(5);

type Result<T, E = TransportError> = std::result::Result<T, E>;

/// Connects to a receiver and proves itself with the secret that `find` gives for it.
///
/// # Errors
/// All of [`TransportError`].
pub fn connect(
    destination: &Destination,
    find: impl FnOnce(&MigrationId) -> std::result::Result<Bytes32, RendezvousError>,
    patience: Patience,
) -> Result<(Channel, Acquaintance)> {
    let stream = dial(destination, patience)?;
    prepare(&stream).map_err(|source| TransportError::Broken {
        peer: destination.to_string(),
        source,
    })?;
    introduce(Box::new(stream), destination.to_string(), find, patience)
}

fn dial(destination: &Destination, patience: Patience) -> Result<TcpStream> {
    let addresses = (destination.host.as_str(), destination.port)
        .to_socket_addrs()
        .map_err(|source| TransportError::Resolve {
            host: destination.host.clone(),
            source,
        })?;
    let mut last_error = io::Error::from(ErrorKind::AddrNotAvailable);
    for address in addresses {
        patience.check()?;
        match TcpStream::connect_timeout(&address, CONNECT_LIMIT_DUR) {
            Ok(stream) => return Ok(stream),
            Err(error) => last_error = error,
        }
    }
    Err(TransportError::Connect {
        peer: destination.to_string(),
        source: last_error,
    })
}

/// The source's half of the handshake; the destination's is in [`super::lobby`].
fn introduce(
    stream: Box<dyn Stream>,
    peer: String,
    find: impl FnOnce(&MigrationId) -> std::result::Result<Bytes32, RendezvousError>,
    patience: Patience,
) -> Result<(Channel, Acquaintance)> {
    let mut channel = Channel::new(stream, peer);
    let stranger = |channel: &Channel, source| TransportError::Stranger {
        peer: channel.peer().to_owned(),
        source,
    };
    let source_opening = codec::encode_opening(VERSIONS);
    channel.write_all(&source_opening, patience)?;
    let destination_opening = channel.read_opening(patience)?;
    let challenge: Challenge = channel.expect_strictly(patience)?;
    let secret = find(&challenge.receiver).map_err(|source| stranger(&channel, source))?;
    let transcript = Transcript {
        source_opening,
        destination_opening,
        receiver: challenge.receiver,
        destination_nonce: challenge.nonce,
        source_nonce: Bytes32(random().map_err(|source| stranger(&channel, source))?),
    };
    let proof = Message::Proof(Proof {
        nonce: transcript.source_nonce,
        mac: transcript.proof(&secret, Side::Source),
    });
    channel.send(&proof, patience)?;
    let welcome: Welcome = channel.expect_strictly(patience)?;
    transcript
        .check(&secret, Side::Destination, &welcome.mac)
        .map_err(|source| stranger(&channel, source))?;
    let acquaintance = Acquaintance {
        receiver: challenge.receiver,
        secret,
    };
    Ok((channel, acquaintance))
}

impl Channel {
    /// Reads the peer's opening byte by byte, so that nothing of what follows is taken, and settles on a version.
    fn read_opening(&mut self, patience: Patience) -> Result<Vec<u8>> {
        let mut opening = Vec::new();
        loop {
            let mut byte = [0];
            self.read(&mut byte, patience)?;
            opening.push(byte[0]);
            let decoded = codec::decode_opening(&opening).map_err(|source| self.invalid(source))?;
            if let Some((versions, _)) = decoded {
                codec::choose_version(VERSIONS, &versions)
                    .map_err(|source| self.invalid(source))?;
                return Ok(opening);
            }
        }
    }
}
