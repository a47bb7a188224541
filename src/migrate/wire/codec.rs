//! Messages as bytes. No input or output here.
//!
//! ```text
//! opening   "rcm-mig\n"  count:u8  version:u16 * count          once, by each side
//! frame     kind:u16  flags:u16  length:u32  payload            any number
//! ```
//!
//! Numbers are big-endian. Both sides send their opening at once and use the newest version that
//! both offer. Nobody in between can make them choose an older one: the openings cross in the TLS
//! session whose two ends prove themselves in [`crate::migrate::trust::rendezvous`].
//!
//! The header is checked before a byte of payload is buffered. The kind must be known *and*
//! expected in this phase, and the length must be within the kind's cap. So a decoder never holds
//! more than [`HEADER_BYTES`] and the greatest cap of the expected kinds.
//!
//! The payload of every kind so far is JSON. A kind for bulk data can read its payload as it
//! arrives: [`Header::decode`] alone, then the stream.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::protocol::{Kind, Message};

/// First bytes that each side sends.
pub const MAGIC: [u8; 8] = *b"rcm-mig\n";
/// Length of a frame's header.
pub const HEADER_BYTES: usize = 8;
/// Greatest number of versions in an opening.
pub const MAX_VERSIONS: usize = 16;
/// Flags that a receiver must know. It may ignore unknown flags of the upper half.
const CRITICAL_FLAGS: u16 = 0x00ff;

/// Error for bytes that are no valid message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The peer speaks another protocol.
    #[error("the peer does not speak the migration protocol of rcm")]
    BadMagic,
    /// An opening without versions, or with too many.
    #[error("the peer offers {count} protocol versions; 1 to {MAX_VERSIONS} are valid")]
    VersionCount {
        /// Number of versions that the peer announced.
        count: u8,
    },
    /// No version in common.
    #[error(
        "no common protocol version: this side speaks {ours:?}, the peer {theirs:?}; use the same release of rcm on both hosts"
    )]
    NoCommonVersion {
        /// Versions of this side.
        ours: Vec<u16>,
        /// Versions of the peer.
        theirs: Vec<u16>,
    },
    /// A kind that this version does not have.
    #[error("frame of unknown kind {number}")]
    UnknownKind {
        /// Number of the kind.
        number: u16,
    },
    /// A kind that has no place in this phase.
    #[error("frame of kind {kind:?} where {expected:?} is expected")]
    UnexpectedKind {
        /// Kind of the frame.
        kind: Kind,
        /// Kinds that this phase allows.
        expected: Vec<Kind>,
    },
    /// A critical flag that this version does not know.
    #[error("frame of kind {kind:?} has unknown critical flags {flags:#06x}")]
    UnknownFlags {
        /// Kind of the frame.
        kind: Kind,
        /// Flags of the frame.
        flags: u16,
    },
    /// The frame is longer than its kind allows.
    #[error("frame of kind {kind:?} announces {length_bytes} bytes; {cap_bytes} are allowed")]
    OverCap {
        /// Kind of the frame.
        kind: Kind,
        /// Announced length.
        length_bytes: u32,
        /// Greatest allowed length.
        cap_bytes: u32,
    },
    /// The connection ended inside an opening or a frame.
    #[error("the connection ended inside a message")]
    Truncated,
    /// The payload does not fit its kind.
    #[error("frame of kind {kind:?} has an invalid payload")]
    Payload {
        /// Kind of the frame.
        kind: Kind,
        /// Error of the parser.
        #[source]
        source: serde_json::Error,
    },
    /// A message of this side is too long to send.
    #[error("a message of kind {kind:?} would have {length_bytes} bytes; {cap_bytes} are allowed")]
    TooLong {
        /// Kind of the message.
        kind: Kind,
        /// Length of the message.
        length_bytes: usize,
        /// Greatest allowed length.
        cap_bytes: u32,
    },
}

type Result<T, E = CodecError> = std::result::Result<T, E>;

/// Returns the opening that offers `versions`.
///
/// # Panics
/// With more than [`MAX_VERSIONS`] versions.
#[must_use]
pub fn encode_opening(versions: &[u16]) -> Vec<u8> {
    assert!((1..=MAX_VERSIONS).contains(&versions.len()));
    let mut bytes = MAGIC.to_vec();
    bytes.push(versions.len() as u8);
    bytes.extend(versions.iter().flat_map(|version| version.to_be_bytes()));
    bytes
}

/// Reads an opening from the start of `bytes`. Returns the versions and the length of the opening,
/// or `None` while it is incomplete.
///
/// # Errors
/// [`CodecError::BadMagic`] with the first byte that differs, [`CodecError::VersionCount`].
pub fn decode_opening(bytes: &[u8]) -> Result<Option<(Vec<u16>, usize)>> {
    let magic_bytes = bytes.len().min(MAGIC.len());
    if bytes[..magic_bytes] != MAGIC[..magic_bytes] {
        return Err(CodecError::BadMagic);
    }
    let Some(&count) = bytes.get(MAGIC.len()) else {
        return Ok(None);
    };
    if !(1..=MAX_VERSIONS).contains(&usize::from(count)) {
        return Err(CodecError::VersionCount { count });
    }
    let start = MAGIC.len() + 1;
    let end = start + 2 * usize::from(count);
    Ok(bytes.get(start..end).map(|versions| {
        let versions = versions
            .chunks_exact(2)
            .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
            .collect();
        (versions, end)
    }))
}

/// Returns the newest version that both offers have, in any order.
///
/// # Errors
/// [`CodecError::NoCommonVersion`].
pub fn choose_version(ours: &[u16], theirs: &[u16]) -> Result<u16> {
    ours.iter()
        .filter(|version| theirs.contains(version))
        .max()
        .copied()
        .ok_or_else(|| CodecError::NoCommonVersion {
            ours: ours.to_vec(),
            theirs: theirs.to_vec(),
        })
}

/// A frame's header that has passed the checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Kind of the payload.
    pub kind: Kind,
    /// Flags of the frame.
    pub flags: u16,
    /// Length of the payload.
    pub length_bytes: u32,
}

impl Header {
    /// Returns the header's bytes.
    #[must_use]
    pub fn encode(self) -> [u8; HEADER_BYTES] {
        let kind = self.kind.number().to_be_bytes();
        let flags = self.flags.to_be_bytes();
        let length = self.length_bytes.to_be_bytes();
        [
            kind[0], kind[1], flags[0], flags[1], length[0], length[1], length[2], length[3],
        ]
    }

    /// Checks a header: it must be of a kind in `expected`, within its cap.
    ///
    /// # Errors
    /// All but [`CodecError::Payload`] that concern frames.
    pub fn decode(bytes: &[u8; HEADER_BYTES], expected: &[Kind]) -> Result<Self> {
        let number = u16::from_be_bytes([bytes[0], bytes[1]]);
        let flags = u16::from_be_bytes([bytes[2], bytes[3]]);
        let length_bytes = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let kind = Kind::from_number(number).ok_or(CodecError::UnknownKind { number })?;
        if !expected.contains(&kind) {
            return Err(CodecError::UnexpectedKind {
                kind,
                expected: expected.to_vec(),
            });
        }
        if flags & CRITICAL_FLAGS != 0 {
            return Err(CodecError::UnknownFlags { kind, flags });
        }
        let cap_bytes = kind.cap_bytes();
        if length_bytes > cap_bytes {
            return Err(CodecError::OverCap {
                kind,
                length_bytes,
                cap_bytes,
            });
        }
        Ok(Self {
            kind,
            flags,
            length_bytes,
        })
    }
}

/// Encodes a message as a frame.
///
/// # Errors
/// [`CodecError::TooLong`] if the message is longer than its kind allows, [`CodecError::Payload`].
pub fn encode(message: &Message) -> Result<Vec<u8>> {
    match message {
        Message::Challenge(payload) => frame(Kind::Challenge, payload),
        Message::Proof(payload) => frame(Kind::Proof, payload),
        Message::Welcome(payload) => frame(Kind::Welcome, payload),
        Message::Preamble(payload) => frame(Kind::Preamble, payload),
        Message::Findings(payload) => frame(Kind::Findings, payload),
        Message::Shipped(payload) => frame(Kind::Shipped, payload),
        Message::Ready(payload) => frame(Kind::Ready, payload),
        Message::Commit(payload) => frame(Kind::Commit, payload),
        Message::Running(payload) => frame(Kind::Running, payload),
        Message::Settled(payload) => frame(Kind::Settled, payload),
        Message::Abort(payload) => frame(Kind::Abort, payload),
        Message::Inquiry(payload) => frame(Kind::Inquiry, payload),
        Message::Answer(payload) => frame(Kind::Answer, payload),
        Message::Round(payload) => frame(Kind::Round, payload),
        Message::RoundVerified(payload) => frame(Kind::RoundVerified, payload),
        Message::Join(payload) => frame(Kind::Join, payload),
        Message::Synced(payload) => frame(Kind::Synced, payload),
    }
}

fn frame(kind: Kind, payload: &impl Serialize) -> Result<Vec<u8>> {
    let payload =
        serde_json::to_vec(payload).map_err(|source| CodecError::Payload { kind, source })?;
    let cap_bytes = kind.cap_bytes();
    let length_bytes = u32::try_from(payload.len())
        .ok()
        .filter(|&length_bytes| length_bytes <= cap_bytes)
        .ok_or(CodecError::TooLong {
            kind,
            length_bytes: payload.len(),
            cap_bytes,
        })?;
    let header = Header {
        kind,
        flags: 0,
        length_bytes,
    };
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.extend(header.encode());
    bytes.extend(payload);
    Ok(bytes)
}

/// Decodes the message in a frame's payload, which must contain nothing else.
///
/// # Errors
/// [`CodecError::Payload`].
pub fn decode_payload(kind: Kind, payload: &[u8]) -> Result<Message> {
    fn parse<T: DeserializeOwned>(kind: Kind, payload: &[u8]) -> Result<T> {
        serde_json::from_slice(payload).map_err(|source| CodecError::Payload { kind, source })
    }
    Ok(match kind {
        Kind::Challenge => Message::Challenge(parse(kind, payload)?),
        Kind::Proof => Message::Proof(parse(kind, payload)?),
        Kind::Welcome => Message::Welcome(parse(kind, payload)?),
        Kind::Preamble => Message::Preamble(parse(kind, payload)?),
        Kind::Findings => Message::Findings(parse(kind, payload)?),
        Kind::Shipped => Message::Shipped(parse(kind, payload)?),
        Kind::Ready => Message::Ready(parse(kind, payload)?),
        Kind::Commit => Message::Commit(parse(kind, payload)?),
        Kind::Running => Message::Running(parse(kind, payload)?),
        Kind::Settled => Message::Settled(parse(kind, payload)?),
        Kind::Abort => Message::Abort(parse(kind, payload)?),
        Kind::Inquiry => Message::Inquiry(parse(kind, payload)?),
        Kind::Answer => Message::Answer(parse(kind, payload)?),
        Kind::Round => Message::Round(parse(kind, payload)?),
        Kind::RoundVerified => Message::RoundVerified(parse(kind, payload)?),
        Kind::Join => Message::Join(parse(kind, payload)?),
        Kind::Synced => Message::Synced(parse(kind, payload)?),
    })
}

/// Decoder that takes bytes as they arrive and returns messages. The expected kinds bound the size
/// of its buffer.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Returns how many more bytes to read from the peer: the rest of the header, then the rest of
    /// the payload that the header announced. Reading more would take bytes of the next phase.
    ///
    /// # Errors
    /// As [`Header::decode`].
    pub fn wanted_bytes(&self, expected: &[Kind]) -> Result<usize> {
        Ok(match self.header(expected)? {
            None => HEADER_BYTES - self.buffer.len(),
            Some(header) => HEADER_BYTES + header.length_bytes as usize - self.buffer.len(),
        })
    }

    /// Adds bytes, at most [`Self::wanted_bytes`] of them.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns the message if it is complete.
    ///
    /// # Errors
    /// Every error of a frame.
    pub fn take(&mut self, expected: &[Kind]) -> Result<Option<Message>> {
        match self.header(expected)? {
            Some(header) if self.buffer.len() == HEADER_BYTES + header.length_bytes as usize => {
                let message = decode_payload(header.kind, &self.buffer[HEADER_BYTES..])?;
                self.buffer = Vec::new();
                Ok(Some(message))
            }
            _ => Ok(None),
        }
    }

    /// Whether the peer may close the connection now, because no frame is incomplete.
    #[must_use]
    pub fn is_between_frames(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Number of bytes in memory.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.buffer.len()
    }

    fn header(&self, expected: &[Kind]) -> Result<Option<Header>> {
        self.buffer
            .first_chunk::<HEADER_BYTES>()
            .map(|bytes| Header::decode(bytes, expected))
            .transpose()
    }
}

#[cfg(test)]
mod tests;
