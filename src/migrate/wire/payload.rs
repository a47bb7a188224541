//! What is in the messages.

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
    /// Which receiver this is: the name of its rendezvous file has it.
    pub receiver: MigrationId,
}

/// Source to destination: the answer to a [`Challenge`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Proof {
    /// HMAC-SHA256 over what identifies the TLS session, see [`crate::migrate::trust::rendezvous`].
    pub mac: Bytes32,
    /// Whether the source knows the secret in the receiver's file: it has found the file in its own store, or was told over ssh.
    pub knows_secret: bool,
}

/// Destination to source: the destination's own proof.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Welcome {
    /// HMAC-SHA256 over what identifies the TLS session, see [`crate::migrate::trust::rendezvous`].
    pub mac: Bytes32,
}

/// Destination to source: everything that speaks against the migration, at once. Without an error it begins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Findings {
    /// Errors and warnings.
    pub findings: Vec<Finding>,
    /// What the destination is.
    #[serde(default)]
    pub facts: Option<Facts>,
    /// How the root file system gets there.
    #[serde(default)]
    pub rootfs: RootfsPlan,
}

/// Source to destination: a round of the memory is complete in the store; the container runs on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Round {
    /// Its number, from 0: the name of its directory. Each round but the first builds on the one before it.
    pub number: u32,
    /// What lies in its directory, with digests.
    pub manifest: Manifest,
}

/// Destination to source: the round's images are what the source wrote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RoundVerified {
    /// How long the digests took, in microseconds.
    pub verify_us: u64,
}

/// Source to destination: the images are complete.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shipped {
    /// The number of the last directory of the chain, after those of the rounds.
    pub number: u32,
    /// What lies in it, with digests.
    pub manifest: Manifest,
}

/// Destination to source: the container is restored here and held; it has not executed an instruction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ready {
    /// How long the digests took, in microseconds.
    pub verify_us: u64,
    /// How long the restore took, in microseconds.
    pub restore_us: u64,
}

/// Source to destination: the container is yours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Commit {
    /// Which migration: a commit for another one is a protocol error.
    pub migration: MigrationId,
}

/// Destination to source: the container runs here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Running {
    /// From the arrival of the commit to the container's first instruction, in microseconds.
    pub resume_us: u64,
}

/// Source to destination: the container is gone here; nobody will ask again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settled {
    /// Which migration.
    pub migration: MigrationId,
}

/// Either side, before the commit: this migration ends here and the container goes on at the source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Abort {
    /// One line for the operator at the other end.
    pub reason: String,
}

/// Source to destination, on a new connection: what became of this migration?
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inquiry {
    /// Which migration.
    pub migration: MigrationId,
}

/// Source to destination, on a new connection: it carries something of a migration that is under way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Join {
    /// Which migration.
    pub migration: MigrationId,
    /// What it carries.
    #[serde(default)]
    pub purpose: Purpose,
}

/// What a connection beside the first one carries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// A part of the images; see [`crate::migrate::transfer::images`].
    #[default]
    Images,
    /// The bundle and the root file system; see [`crate::migrate::transfer::rootfs`].
    Tree,
}

/// Destination to source, on the connection of the tree: the last stream of changes is applied and on the disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Synced {
    /// How long it took from the first byte on, in microseconds.
    pub took_us: u64,
}

/// Destination to source: the answer to an [`Inquiry`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// Which migration.
    pub migration: MigrationId,
    /// What became of it.
    pub verdict: Verdict,
}
