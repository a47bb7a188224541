//! Journal: the record of a migration that survives a crash of rcm.
//!
//! Each end has one record for each container. It is replaced atomically and synced before the step
//! that it announces. Above all, "committing" is on the disk before the first byte of the commit is
//! sent, so a later reader knows that the container may run elsewhere.
//!
//! The source's record lies beside the container's state, `ROOT/ID/migration.json`, and is removed
//! with the container. Just before that the source moves it to `ROOT/@migrations/ID.json`. The
//! destination's record lies there from the beginning, because the container does not exist there
//! at first. A final phase is entered when nothing is left to do. A process that is killed before
//! leaves a record with which [`resolve`](mod@crate::migrate::ops::resolve) does the rest.
//!
//! A record also names the process that writes it, so that a reader can tell whether that is still
//! alive. The `flock` on `ROOT/@migrations/ID.lock` keeps two migrations of one container apart.

use std::fs::{self};
use std::io;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::error::{JournalError, Result, file};
use super::paths::{kept_path, make_dir, source_path};
use super::receiver::StoredReceiver;
use super::restore_spec::RestoreSpec;
use super::socket_name::SocketName;
use crate::migrate::trust::TlsFiles;
use crate::migrate::trust::rendezvous::Acquaintance;
use crate::migrate::wire::id::{MigrationId, Side};
use crate::migrate::wire::state::Phase;
use crate::sys::file::write_atomic;
use crate::sys::process::{Liveness, ProcessId};

/// Version of the format that this release writes. A release refuses records of newer versions,
/// because it would lose the fields that it does not know.
const VERSION: u32 = 1;

/// Contents of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JournalRecord {
    /// Version of the format; 0 before the format had versions.
    #[serde(default)]
    pub version: u32,
    /// Id of the migration.
    pub migration: MigrationId,
    /// Name of the container.
    pub container: String,
    /// End that this host is.
    pub side: Side,
    /// Phase that the migration has reached.
    pub phase: Phase,
    /// Address of the other end, `ADDRESS:PORT`.
    pub peer: String,
    /// Directory of this migration in the image store.
    pub images: PathBuf,
    /// Data by which the ends recognize each other when the source asks again; `None` before they
    /// have met. Only root can read the record.
    #[serde(flatten)]
    pub acquaintance: Option<Acquaintance>,
    /// Whether the images belong to this end, which then removes them.
    #[serde(default)]
    pub owns_images: bool,
    /// The receiver, as long as its source may ask and only this host can answer, because the ends
    /// share no store.
    #[serde(default)]
    pub unanswered: Option<StoredReceiver>,
    /// At the destination: whether the source has confirmed that it knows the result.
    #[serde(default)]
    pub confirmed: bool,
    /// Files of mutual TLS, to ask again.
    pub tls: Option<TlsFiles>,
    /// Process that writes this record.
    pub writer: ProcessId,
    /// Time at which the migration began.
    pub started: DateTime<Utc>,
    /// Time at which the phase was reached.
    pub updated: DateTime<Utc>,
    /// Reason for the rollback, one line.
    pub reason: Option<String>,
    /// At the destination: parameters of the restore.
    #[serde(rename = "recipe")]
    pub restore_spec: Option<RestoreSpec>,
    /// At the source: names of the container's sockets that it may have to put back.
    #[serde(default)]
    pub names: Vec<SocketName>,
}

/// The record of a migration that this process drives.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    record: JournalRecord,
}

/// Contents of a new record.
#[derive(Debug, Clone)]
pub struct Start {
    /// Id of the migration.
    pub migration: MigrationId,
    /// Name of the container.
    pub container: String,
    /// End that this host is.
    pub side: Side,
    /// Address of the other end, `ADDRESS:PORT`.
    pub peer: String,
    /// Directory of this migration in the image store.
    pub images: PathBuf,
    /// Whether this end removes that directory.
    pub owns_images: bool,
    /// Data for another process that answers in this receiver's place.
    pub receiver: Option<StoredReceiver>,
    /// Files of mutual TLS of a receiver.
    pub tls: Option<TlsFiles>,
    /// Data by which the ends recognize each other, if they have met.
    pub acquaintance: Option<Acquaintance>,
    /// At the destination: parameters of the restore.
    pub restore_spec: Option<RestoreSpec>,
}

impl Journal {
    /// Begins a record in the phase [`Phase::Negotiated`] and stores it.
    ///
    /// # Errors
    /// [`JournalError::File`], [`JournalError::Myself`].
    pub fn begin(root: &Path, start: Start) -> Result<Self> {
        let writer =
            ProcessId::of(Pid::this()).map_err(|source| JournalError::Myself { source })?;
        let now = Utc::now();
        let path = match start.side {
            Side::Source => source_path(root, &start.container),
            Side::Destination => kept_path(root, &start.container),
        };
        let journal = Self {
            path,
            record: JournalRecord {
                version: VERSION,
                migration: start.migration,
                container: start.container,
                side: start.side,
                phase: Phase::Negotiated,
                peer: start.peer,
                images: start.images,
                acquaintance: start.acquaintance,
                owns_images: start.owns_images,
                unanswered: start.receiver,
                confirmed: false,
                tls: start.tls,
                writer,
                started: now,
                updated: now,
                reason: None,
                restore_spec: start.restore_spec,
                names: Vec::new(),
            },
        };
        make_dir(root)?;
        // Written and synced before the caller takes the first step.
        journal.store()?;
        Ok(journal)
    }

    /// Takes over the record of a process that has died.
    ///
    /// # Errors
    /// [`JournalError::File`], [`JournalError::Myself`].
    pub fn adopt(root: &Path, mut record: JournalRecord) -> Result<Self> {
        make_dir(root)?;
        record.version = VERSION;
        record.writer =
            ProcessId::of(Pid::this()).map_err(|source| JournalError::Myself { source })?;
        let path = match record.side {
            Side::Source => source_path(root, &record.container),
            Side::Destination => kept_path(root, &record.container),
        };
        Ok(Self { path, record })
    }

    /// Stores that `phase` is reached. Call this before the step that the phase announces.
    ///
    /// # Errors
    /// [`JournalError::File`]: then the step must not be taken.
    pub fn enter(&mut self, phase: Phase) -> Result<()> {
        let former = (self.record.phase, self.record.updated);
        self.record.phase = phase;
        self.record.updated = Utc::now();
        self.store().inspect_err(|_| {
            (self.record.phase, self.record.updated) = former;
        })
    }

    /// Stores the data by which the ends recognize each other, and the files of mutual TLS if it is
    /// used.
    ///
    /// # Errors
    /// [`JournalError::File`].
    pub fn acquaint(&mut self, acquaintance: Acquaintance, tls: Option<&TlsFiles>) -> Result<()> {
        self.record.acquaintance = Some(acquaintance);
        self.record.tls = tls.cloned();
        self.store()
    }

    /// Stores the names of the sockets that are about to be put aside.
    ///
    /// # Errors
    /// [`JournalError::File`]: then they must not be put aside.
    pub fn note_names(&mut self, names: &[SocketName]) -> Result<()> {
        self.record.names = names.to_vec();
        self.store()
    }

    /// Stores that the migration ended without a commit.
    ///
    /// # Errors
    /// [`JournalError::File`].
    pub fn roll_back(&mut self, reason: &str) -> Result<()> {
        self.record.reason = Some(reason.to_owned());
        // A source to which this end has not sent "ready" has not given the container away, and
        // will not ask.
        if self.record.phase < Phase::PeerReady {
            self.record.unanswered = None;
        }
        self.enter(Phase::RolledBack)
    }

    /// Returns the record as it is stored.
    #[must_use]
    pub fn record(&self) -> &JournalRecord {
        &self.record
    }

    /// Moves the record of a source to the directory where it survives the container, in the phase
    /// [`Phase::Committed`]. The one beside the container is removed with the container.
    ///
    /// # Errors
    /// [`JournalError::File`]: then the container must stay.
    pub fn move_to_kept(&mut self, root: &Path) -> Result<()> {
        // The container and its directory may go only after this is on the disk: without a record
        // nothing could remove the images.
        self.record.acquaintance = None;
        self.path = kept_path(root, &self.record.container);
        self.enter(Phase::Committed)
    }

    fn store(&self) -> Result<()> {
        let text =
            serde_json::to_vec_pretty(&self.record).map_err(|source| JournalError::Damaged {
                path: self.path.clone(),
                source,
            })?;
        write_atomic(&self.path, &text, 0o600).map_err(file("write", &self.path))
    }
}

/// Records that the source knows the result of this migration to this host, and will not ask again.
///
/// # Errors
/// [`JournalError::File`], [`JournalError::Damaged`].
pub fn forget_receiver(root: &Path, migration: MigrationId, container: &str) -> Result<()> {
    let path = kept_path(root, container);
    match read_file(&path)? {
        Some(mut record) if record.migration == migration && !record.confirmed => {
            record.unanswered = None;
            record.confirmed = true;
            Journal { path, record }.store()
        }
        _ => Ok(()),
    }
}

pub(super) fn read_file(path: &Path) -> Result<Option<JournalRecord>> {
    match fs::read(path) {
        Ok(text) => parse(path, &text).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file("read", path)(error)),
    }
}

fn parse(path: &Path, text: &[u8]) -> Result<JournalRecord> {
    #[derive(Deserialize)]
    struct Versioned {
        #[serde(default)]
        version: u32,
    }
    let damaged = |source| JournalError::Damaged {
        path: path.to_path_buf(),
        source,
    };
    // The version is read first, because the rest of a newer record may have another shape.
    let Versioned { version } = serde_json::from_slice(text).map_err(damaged)?;
    if version > VERSION {
        return Err(JournalError::Newer {
            path: path.to_path_buf(),
            version,
            known: VERSION,
        });
    }
    serde_json::from_slice(text).map_err(damaged)
}

impl JournalRecord {
    /// Whether this release knows the record's format.
    #[must_use]
    pub const fn is_known(&self) -> bool {
        self.version <= VERSION
    }

    /// Whether the migration is committed or in doubt: the container may run at the other end.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.phase.is_final() && !self.phase.may_roll_back()
    }

    /// Whether the rcm that wrote the record is still at work.
    #[must_use]
    pub fn is_driven(&self) -> bool {
        !self.phase.is_final() && self.writer.liveness() == Liveness::Alive
    }
}

#[cfg(test)]
mod tests;
