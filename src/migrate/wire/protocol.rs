//! Messages of the two ends, and the phases in which they are valid.
//!
//! No input or output here: [`super::codec`] turns messages into bytes,
//! [`crate::migrate::link::channel`] moves the bytes. A message is accepted only in a phase that
//! expects it, and with the size that its [`Kind`] allows. Everything else ends the connection
//! before its payload is read.

use super::payload::{
    Abort, Answer, Challenge, Commit, Findings, Inquiry, Join, Proof, Ready, Round, RoundVerified,
    Running, Settled, Shipped, Synced, Welcome,
};
use super::preamble::Preamble;

/// Protocol versions that this program speaks, newest first.
pub const VERSIONS: &[u16] = &[1];

/// TCP port of a receiver unless `--listen` or `--destination` sets another.
pub const DEFAULT_PORT: u16 = 7260;

/// Name of a receiver that takes any container, in place of a container's name.
pub const ANY: &str = "-";

/// Kind of a frame, with its number on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum Kind {
    /// [`Challenge`]
    Challenge = 1,
    /// [`Proof`]
    Proof = 2,
    /// [`Welcome`]
    Welcome = 3,
    /// [`Preamble`]
    Preamble = 4,
    /// [`Findings`]
    Findings = 5,
    /// [`Shipped`]
    Shipped = 6,
    /// [`Ready`]
    Ready = 7,
    /// [`Commit`]
    Commit = 8,
    /// [`Running`]
    Running = 9,
    /// [`Settled`]
    Settled = 10,
    /// [`Abort`]
    Abort = 11,
    /// [`Inquiry`]
    Inquiry = 12,
    /// [`Answer`]
    Answer = 13,
    /// [`Round`]
    Round = 14,
    /// [`RoundVerified`]
    RoundVerified = 15,
    /// [`Join`]
    Join = 16,
    /// [`Synced`]
    Synced = 17,
}

impl Kind {
    /// All kinds of this version.
    pub const ALL: [Self; 17] = [
        Self::Challenge,
        Self::Proof,
        Self::Welcome,
        Self::Preamble,
        Self::Findings,
        Self::Shipped,
        Self::Ready,
        Self::Commit,
        Self::Running,
        Self::Settled,
        Self::Abort,
        Self::Inquiry,
        Self::Answer,
        Self::Round,
        Self::RoundVerified,
        Self::Join,
        Self::Synced,
    ];

    /// Returns the kind with this number.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }

    /// Returns the number on the wire.
    #[must_use]
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// Returns the greatest allowed payload in bytes. The messages that a peer may send before its
    /// proof fit into one packet.
    #[must_use]
    pub const fn cap_bytes(self) -> u32 {
        match self {
            Self::Challenge | Self::Proof | Self::Welcome => 1 << 10,
            Self::Settled | Self::Inquiry | Self::Answer | Self::Commit | Self::Join => 1 << 10,
            Self::Ready | Self::Running | Self::RoundVerified | Self::Synced => 16 << 10,
            Self::Abort => 64 << 10,
            Self::Findings => 1 << 20,
            // An OCI spec with a long seccomp profile has some 100 KiB; a manifest 150 bytes for
            // each file.
            Self::Preamble | Self::Round | Self::Shipped => 4 << 20,
        }
    }
}

/// A message after the opening.
#[derive(Debug, Clone, PartialEq)]
#[allow(
    missing_docs,
    reason = "each variant is its payload's type, documented there"
)]
pub enum Message {
    Challenge(Challenge),
    Proof(Proof),
    Welcome(Welcome),
    Preamble(Box<Preamble>),
    Findings(Findings),
    Shipped(Shipped),
    Ready(Ready),
    Commit(Commit),
    Running(Running),
    Settled(Settled),
    Abort(Abort),
    Inquiry(Inquiry),
    Answer(Answer),
    Round(Round),
    RoundVerified(RoundVerified),
    Join(Join),
    Synced(Synced),
}

impl Message {
    /// Returns the kind of the message.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Challenge(_) => Kind::Challenge,
            Self::Proof(_) => Kind::Proof,
            Self::Welcome(_) => Kind::Welcome,
            Self::Preamble(_) => Kind::Preamble,
            Self::Findings(_) => Kind::Findings,
            Self::Shipped(_) => Kind::Shipped,
            Self::Ready(_) => Kind::Ready,
            Self::Commit(_) => Kind::Commit,
            Self::Running(_) => Kind::Running,
            Self::Settled(_) => Kind::Settled,
            Self::Abort(_) => Kind::Abort,
            Self::Inquiry(_) => Kind::Inquiry,
            Self::Answer(_) => Kind::Answer,
            Self::Round(_) => Kind::Round,
            Self::RoundVerified(_) => Kind::RoundVerified,
            Self::Join(_) => Kind::Join,
            Self::Synced(_) => Kind::Synced,
        }
    }
}

/// Payload of the frames of one kind.
pub trait Payload: TryFrom<Message, Error = Message> {
    /// Kind of the frames.
    const KIND: Kind;
}

macro_rules! payloads {
    ($($name:ident),*) => {$(
        impl Payload for $name {
            const KIND: Kind = Kind::$name;
        }

        impl TryFrom<Message> for $name {
            type Error = Message;

            fn try_from(message: Message) -> Result<Self, Message> {
                match message {
                    Message::$name(payload) => Ok(payload),
                    other => Err(other),
                }
            }
        }
    )*};
}

payloads!(
    Challenge,
    Proof,
    Welcome,
    Findings,
    Shipped,
    Ready,
    Commit,
    Running,
    Settled,
    Abort,
    Inquiry,
    Answer,
    Round,
    RoundVerified,
    Join,
    Synced
);

#[cfg(test)]
mod tests;
