//! The container that leaves or is tested, and this host as the source of a migration.

use std::path::Path;

use crate::criu::{self, Criu, Features, Version};
use crate::migrate::fate::{Fate, Fated};
use crate::migrate::ops::resolve::ResolveError;
use crate::migrate::ops::resolve::tidy_up;
use crate::migrate::preflight::facts;
use crate::migrate::preflight::facts::FactsError;
use crate::migrate::record::boot_stamp;
use crate::migrate::record::boot_stamp::BootStampError;
use crate::migrate::record::error::JournalError;
use crate::migrate::record::journal::JournalRecord;
use crate::migrate::record::ledger::Known;
use crate::migrate::record::lock::Lock;
use crate::migrate::wire::facts::Facts;
use crate::migrate::wire::id::MigrationId;
use crate::runtime::container::{Container, Status};

/// The last migration of a container is open: it may run at the destination.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenMigration {
    /// The migration is not settled.
    #[error(
        "the last migration of container \"{container}\" is not settled: `rcm live-migrate {container} --resolve` settles it"
    )]
    NotSettled {
        /// Id of the container.
        container: String,
    },
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// The container cannot be migrated or tested as it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubjectError {
    /// The container cannot be loaded.
    #[error(transparent)]
    Runtime(#[from] crate::runtime::Error),
    /// Another rcm migrates the container, or the journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The last migration is open.
    #[error(transparent)]
    Open(#[from] OpenMigration),
    /// Remains of the last migration cannot be removed.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The source of the last migration cannot be told that the container runs here.
    #[error(transparent)]
    BootStamp(#[from] BootStampError),
    /// The container is paused.
    #[error("container \"{container}\" is paused: `rcm resume {container}` first")]
    Paused {
        /// Id of the container.
        container: String,
    },
    /// The container does not run.
    #[error("container \"{container}\" is {status}, and only a running one moves")]
    NotRunning {
        /// Id of the container.
        container: String,
        /// Its status.
        status: Status,
    },
    /// This host cannot be described.
    #[error(transparent)]
    Facts(#[from] FactsError),
}

impl Fated for SubjectError {
    fn fate(&self) -> Fate {
        match self {
            Self::Resolve(error) => error.fate(),
            _ => Fate::AsBefore,
        }
    }
}

/// Refuses a container whose last migration is open. It may run at the destination, so this host
/// may neither move nor resume it.
///
/// # Errors
/// [`OpenMigration`].
pub fn refuse_if_open(root: &Path, container: &str) -> Result<(), OpenMigration> {
    refuse_known(container, &Known::read(root, container)?)
}

fn refuse_known(container: &str, known: &Known) -> Result<(), OpenMigration> {
    match known.source().is_some_and(JournalRecord::is_open) {
        false => Ok(()),
        true => Err(OpenMigration::NotSettled {
            container: container.to_owned(),
        }),
    }
}

/// A running container that this process may migrate.
pub(super) struct Subject {
    /// The container.
    pub container: Container,
    /// Its last migration from here.
    pub last: Option<MigrationId>,
    _lock: Lock,
}

/// Loads the running container and takes the right to migrate it.
pub(super) fn claim(root: &Path, id: &str) -> Result<Subject, SubjectError> {
    let container = Container::load(root, id)?;
    let lock = Lock::take(root, id)?;
    let known = Known::open(root, id, &lock)?;
    refuse_known(id, &known)?;
    let last = known.source().map(|record| record.migration);
    let destination = known.destination().cloned();
    tidy_up(root, id, known, &lock)?;
    boot_stamp::confirm_running(destination.as_ref())?;
    let id = || id.to_owned();
    match container.status() {
        Status::Running => Ok(Subject {
            container,
            last,
            _lock: lock,
        }),
        Status::Paused => Err(SubjectError::Paused { container: id() }),
        status => Err(SubjectError::NotRunning {
            container: id(),
            status,
        }),
    }
}

/// This host, as it concerns a migration.
pub(super) struct ThisHost {
    /// CRIU, or the reason why it cannot be used.
    pub criu: Result<Criu, criu::Error>,
    /// Description of the host for the other end.
    pub facts: Facts,
}

impl ThisHost {
    /// Looks for CRIU, at `program` or as [`Criu::find`] does, and describes the host.
    pub fn look(program: Option<&Path>) -> Result<Self, FactsError> {
        let found = Criu::find(program).and_then(|criu| {
            let features = criu.features()?;
            Ok((criu, features))
        });
        let (criu, features) = match found {
            Ok((criu, features)) => (Ok(criu), features),
            Err(error) => (Err(error), Features::default()),
        };
        let names = [
            ("mem_track", features.memory_tracking),
            ("lazy_pages", features.lazy_pages),
        ];
        let features = names
            .into_iter()
            .filter(|(_, has)| *has)
            .map(|(name, _)| name.to_owned())
            .collect();
        let version = criu.as_ref().map_or(0, |criu| number(criu.version()));
        let facts = facts::gather(version, features)?;
        Ok(Self { criu, facts })
    }
}

/// CRIU's version as a preamble has it.
const fn number(version: Version) -> u32 {
    version.major * 10_000 + version.minor * 100 + version.sublevel
}
