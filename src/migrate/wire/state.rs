//! State of a migration at one end, and its outcome.

use std::fmt;

use serde::{Deserialize, Serialize};

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
    /// Source: the destination has answered that the container runs there. Destination: it owns the
    /// container, and CRIU has no yes yet: nothing has executed.
    Committed,
    /// Destination: CRIU is about to get its yes, or has it. The container may have run, even if nothing of
    /// it is there any more: rcm never restores it again by itself.
    Resuming,
    /// Done: the container runs at the destination, the source has forgotten it.
    Done,
    /// Ended before the commit: the container runs at the source, never at the destination.
    RolledBack,
}

impl Phase {
    /// Whether the source may still let the container run on by itself.
    #[must_use]
    pub const fn may_roll_back(self) -> bool {
        !matches!(
            self,
            Self::Committing | Self::Committed | Self::Resuming | Self::Done
        )
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
            Self::Resuming => "resuming",
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
    /// It owns the container but could not let it run yet, or cannot tell whether it has run (phase
    /// `resuming`). Its images are kept. The source keeps its frozen copy and never lets it run.
    Committed,
    /// It ended the migration without a commit and will never accept one: the source may let the container run.
    RolledBack,
    /// It knows nothing of this migration. No permission to run: the journal of the right receiver may say otherwise.
    Unknown,
}
