//! The root file system in the negotiation: the source's wish and the destination's plan.

use serde::{Deserialize, Serialize};

/// Values of `--rootfs`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootfsWish {
    /// The first of shared, diff and full that is possible.
    Auto,
    /// Both ends share the tree.
    Shared,
    /// The whole tree is copied.
    Full,
    /// Only the differences to the destination's tree are copied.
    Diff,
    /// The operator has copied it, or shares it otherwise.
    #[default]
    None,
}

/// Description of the source's tree.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RootfsOffer {
    /// Wish of the source.
    pub wish: RootfsWish,
    /// Name of a file in the tree's top directory, which exists until the destination has answered.
    /// `None` if it cannot be made.
    pub nonce: Option<String>,
    /// Size of the tree, if that is quickly known.
    pub size_bytes: Option<u64>,
}

/// Way of the tree to the destination.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootfsWay {
    /// Both ends share the tree.
    Shared,
    /// The whole tree is sent, with the bundle's `config.json`.
    Full,
    /// The differences are sent, and `config.json` if the destination has none.
    Diff,
    /// rcm does not provide it.
    #[default]
    None,
}

impl RootfsWay {
    /// Whether the tree crosses the network.
    #[must_use]
    pub const fn copies(self) -> bool {
        matches!(self, Self::Full | Self::Diff)
    }

    /// Returns the name as a value of `--rootfs`.
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

/// Decision of the destination.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RootfsPlan {
    /// Way of the tree to the destination.
    pub way: RootfsWay,
    /// Reason for that, for the operator.
    pub why: String,
}
