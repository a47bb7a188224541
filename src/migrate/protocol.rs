//! What the two ends say to each other, and when.
//!
//! No input or output here: [`super::codec`] turns messages into bytes, [`super::transport`] moves the bytes. A message is
//! only ever accepted in the phase that names it, with the size that its [`Kind`] allows; everything else ends the
//! connection before its payload is read.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::preamble::Preamble;

mod id;
mod payload;

pub use id::{Bytes32, InvalidHex, MigrationId, hex, unhex, unhex_all};
pub use payload::{
    Abort, Answer, Challenge, Commit, Findings, Inquiry, Join, Proof, Purpose, Ready, Round,
    RoundVerified, Running, Settled, Shipped, Synced, Welcome,
};

/// The protocol versions that this program speaks, newest first.
pub const VERSIONS: &[u16] = &[1];

/// The TCP port of a receiver unless `--listen` or `--destination` says otherwise.
pub const DEFAULT_PORT: u16 = 7260;

/// The name of a receiver that takes any container, in the place of a container's.
pub const ANY: &str = "-";

/// One of the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// Where the container runs when the migration begins.
    Source,
    /// Where it runs when the migration has succeeded.
    Destination,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}

/// How far a migration is at one end; what a journal holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Source: both ends agreed; destination: it waits for a source. Nothing is stopped.
    Negotiated,
    /// The container runs at the source while rounds of its memory are copied.
    PreCopying,
    /// The container stands still at the source, its images are written or on their way.
    Frozen,
    /// The images are complete in the store and the destination knows their digests.
    Shipped,
    /// The destination holds the restored container, stopped.
    PeerReady,
    /// The source's freezer holds the container whatever happens to rcm and CRIU.
    Fenced,
    /// The source gave the container away and waits for the destination's word. It never runs here by itself again.
    Committing,
    /// The destination owns the container and lets it run.
    Committed,
    /// Done: the container runs at the destination, the source has forgotten it.
    Done,
    /// Ended before the commit: the container runs at the source, never at the destination.
    RolledBack,
}

impl Phase {
    /// Whether the source may still let the container run on by itself.
    #[must_use]
    pub const fn may_roll_back(self) -> bool {
        !matches!(self, Self::Committing | Self::Committed | Self::Done)
    }

    /// Whether nothing is left to do.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::RolledBack)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Negotiated => "negotiated",
            Self::PreCopying => "pre-copying",
            Self::Frozen => "frozen",
            Self::Shipped => "shipped",
            Self::PeerReady => "peer-ready",
            Self::Fenced => "fenced",
            Self::Committing => "committing",
            Self::Committed => "committed",
            Self::Done => "done",
            Self::RolledBack => "rolled-back",
        })
    }
}

/// What the destination answers to "what became of this migration".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It owns the container and lets it run, or let it run and it has ended since.
    Running,
    /// It owns the container but could not let it run yet; its images are kept.
    Committed,
    /// It ended the migration without a commit and will never accept one: the source may let the container run.
    RolledBack,
    /// It knows nothing of this migration. No permission to run: the journal of the right receiver may say otherwise.
    Unknown,
}

/// The number of a kind of frame on the wire.
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

    /// The kind with this number.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }

    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// The greatest payload in bytes. What a stranger may send before it has proved anything fits into one packet.
    #[must_use]
    pub const fn cap_bytes(self) -> u32 {
        match self {
            Self::Challenge | Self::Proof | Self::Welcome => 1 << 10,
            Self::Settled | Self::Inquiry | Self::Answer | Self::Commit | Self::Join => 1 << 10,
            Self::Ready | Self::Running | Self::RoundVerified | Self::Synced => 16 << 10,
            Self::Abort => 64 << 10,
            Self::Findings => 1 << 20,
            // An OCI spec with a long seccomp profile has some 100 KiB; a manifest 150 bytes for each file.
            Self::Preamble | Self::Round | Self::Shipped => 4 << 20,
        }
    }
}

/// Anything that crosses the wire after the opening.
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
    /// Its kind.
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

/// What is in frames of one kind.
pub trait Payload: TryFrom<Message, Error = Message> {
    /// The kind.
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
