//! State of a migration at one end, and its outcome.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Phase of a migration at one end, as the journal stores it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Source: both ends have agreed. Destination: it waits for a source. The container runs.
    Negotiated,
    /// The container runs at the source while rounds of its memory are copied.
    PreCopying,
    /// The container is frozen at the source. Its images are being written or sent.
    Frozen,
    /// The images are complete in the store and the destination knows their digests.
    Shipped,
    /// The destination holds the restored container, stopped.
    PeerReady,
    /// The source's freezer holds the container, even if rcm and CRIU die.
    Fenced,
    /// The source has given the container away and waits for the destination's answer. It never
    /// runs here by itself again.
    Committing,
    /// Source: the destination has answered that the container runs there. Destination: it owns the
    /// container, and CRIU has no yes yet: nothing has executed.
    Committed,
    /// Destination: CRIU is about to get its yes, or has it. The container may have run, even if
    /// nothing of it is there any more: rcm never restores it again by itself.
    Resuming,
    /// The container runs at the destination, and the source has removed it.
    Done,
    /// The migration ended before the commit. The container runs at the source, never at the
    /// destination.
    RolledBack,
}

impl Phase {
    /// Whether the source may still resume the container by itself.
    #[must_use]
    pub const fn may_roll_back(self) -> bool {
        !matches!(
            self,
            Self::Committing | Self::Committed | Self::Resuming | Self::Done
        )
    }

    /// Whether the migration has ended and nothing is left to do.
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
            Self::Resuming => "resuming",
            Self::Done => "done",
            Self::RolledBack => "rolled-back",
        })
    }
}

/// Answer of the destination about the result of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The destination owns the container and lets it run, or the container has ended there since.
    Running,
    /// The destination owns the container but could not let it run yet, or cannot tell whether it
    /// has run (phase `resuming`). Its images are kept. The source keeps its frozen copy and never
    /// resumes it.
    Committed,
    /// The destination ended the migration without a commit and will never accept one. The source
    /// may resume the container.
    RolledBack,
    /// The destination does not know this migration. This is no permission to run: the journal of
    /// the right receiver may say otherwise.
    Unknown,
}
