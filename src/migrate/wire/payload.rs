//! Contents of the messages.

use serde::{Deserialize, Serialize};

use super::facts::Facts;
use super::finding::Finding;
use super::id::{Bytes32, MigrationId};
use super::rootfs::RootfsPlan;
use super::state::Verdict;
use crate::image::manifest::Manifest;

/// Destination to source: prove that you can read my rendezvous file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Challenge {
    /// Id of this receiver; the name of its rendezvous file contains it.
    pub receiver: MigrationId,
}

/// Source to destination: the answer to a [`Challenge`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Proof {
    /// HMAC-SHA256 over the identity of the TLS session, see [`crate::migrate::trust::rendezvous`].
    pub mac: Bytes32,
    /// Whether the source knows the secret in the receiver's file: it has found the file in its own
    /// store, or was told the secret over ssh.
    pub knows_secret: bool,
}

/// Destination to source: the destination's own proof.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Welcome {
    /// HMAC-SHA256 over the identity of the TLS session, see [`crate::migrate::trust::rendezvous`].
    pub mac: Bytes32,
}

/// Destination to source: all findings against the migration, at once. Without an error among them
/// it begins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Findings {
    /// Errors and warnings.
    pub findings: Vec<Finding>,
    /// Capabilities of the destination.
    #[serde(default)]
    pub facts: Option<Facts>,
    /// Plan for the root file system.
    #[serde(default)]
    pub rootfs: RootfsPlan,
}

/// Source to destination: a round of the memory is complete in the store. The container still runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Round {
    /// Number of the round, from 0; the name of its directory. Each round but the first builds on
    /// the one before it.
    pub number: u32,
    /// Files in its directory, with digests.
    pub manifest: Manifest,
}

/// Destination to source: the digests of the round's images match.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RoundVerified {
    /// Duration of the digests, in microseconds.
    pub verify_us: u64,
}

/// Source to destination: the images are complete.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shipped {
    /// Number of the last directory of the chain, after those of the rounds.
    pub number: u32,
    /// Files in that directory, with digests.
    pub manifest: Manifest,
}

/// Destination to source: the container is restored here and held; it has not executed an
/// instruction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ready {
    /// Duration of the digests, in microseconds.
    pub verify_us: u64,
    /// Duration of the restore, in microseconds.
    pub restore_us: u64,
}

/// Source to destination: the container belongs to the destination now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Commit {
    /// Id of the migration. A commit for another one is a protocol error.
    pub migration: MigrationId,
}

/// Destination to source: the container runs here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Running {
    /// Time from the arrival of the commit to the container's first instruction, in microseconds.
    pub resume_us: u64,
}

/// Source to destination: the source has removed the container and will not ask again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settled {
    /// Id of the migration.
    pub migration: MigrationId,
}

/// Either side, before the commit: this migration ends here and the container resumes at the
/// source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Abort {
    /// One line for the operator at the other end.
    pub reason: String,
}

/// Source to destination, on a new connection: asks for the result of this migration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inquiry {
    /// Id of the migration.
    pub migration: MigrationId,
}

/// Source to destination, on a new connection: the connection belongs to a migration that is under
/// way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Join {
    /// Id of the migration.
    pub migration: MigrationId,
    /// Content of the connection.
    #[serde(default)]
    pub purpose: Purpose,
}

/// Content of a connection beside the first one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// A part of the images; see [`crate::migrate::transfer::images`].
    #[default]
    Images,
    /// The bundle and the root file system; see [`crate::migrate::transfer::rootfs`].
    Tree,
}

/// Destination to source, on the connection of the tree: the last stream of changes is applied and
/// synced to the disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Synced {
    /// Time since the first byte, in microseconds.
    pub took_us: u64,
}

/// Destination to source: the answer to an [`Inquiry`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// Id of the migration.
    pub migration: MigrationId,
    /// Result of the migration.
    pub verdict: Verdict,
}
