//! The root file system in the negotiation: the source's wish and the destination's plan.

use serde::{Deserialize, Serialize};

/// What `--rootfs` asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootfsWish {
    /// The first of shared, diff and full that is possible.
    Auto,
    /// Both ends see the same tree.
    Shared,
    /// All of it is copied.
    Full,
    /// What differs from the destination's tree is copied.
    Diff,
    /// The operator has brought it there.
    #[default]
    None,
}

/// What the source says of its tree.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RootfsOffer {
    /// What is to be done.
    pub wish: RootfsWish,
    /// The name of a file that lies in the tree's first directory as long as the destination's answer is awaited; none where it cannot be made.
    pub nonce: Option<String>,
    /// What the tree takes, where that is quickly found out.
    pub size_bytes: Option<u64>,
}

/// How the tree gets there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootfsWay {
    /// Both ends see the same one.
    Shared,
    /// All of it crosses, with the bundle's `config.json`.
    Full,
    /// What differs crosses, and `config.json` where the destination has none.
    Diff,
    /// It is there, or not, without rcm.
    #[default]
    None,
}

impl RootfsWay {
    /// Does the tree cross the network?
    #[must_use]
    pub const fn copies(self) -> bool {
        matches!(self, Self::Full | Self::Diff)
    }

    /// As `--rootfs` has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Full => "full",
            Self::Diff => "diff",
            Self::None => "none",
        }
    }
}

/// What was decided.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RootfsPlan {
    /// How.
    pub way: RootfsWay,
    /// Why so, for the operator.
    pub why: String,
}
