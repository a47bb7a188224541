//! A test on one host: dumping the container and restoring a copy that does not get to run.

use std::path::PathBuf;
use std::time::Duration;

use super::CriuSettings;
use super::subject::{SubjectError, ThisHost, claim};
use crate::criu;
use crate::migrate::fate::{Fate, Fated};
use crate::migrate::journal::JournalError;
use crate::migrate::local::{self, LocalTestError};
use crate::migrate::preamble::lacking;
use crate::migrate::preflight::{self, survey};
use crate::migrate::progress::Progress;
use crate::migrate::protocol::{MigrationId, Side};
use crate::migrate::rendezvous::{RendezvousError, random};
use crate::migrate::workload::RunningContainer;

/// A container to be tested.
#[derive(Debug, Clone)]
pub struct TestRequest {
    /// State directory of rcm.
    pub root: PathBuf,
    /// Id of the container.
    pub container: String,
    /// Image store: an existing directory.
    pub image_path: PathBuf,
    /// CRIU and its options.
    pub criu: CriuSettings,
    /// The longest time that CRIU may take for one stage of the dump.
    pub freeze_limit_dur: Duration,
}

/// The container was not tested, or the test has failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TestError {
    /// The container cannot be migrated as it is.
    #[error(transparent)]
    Subject(#[from] SubjectError),
    /// The journal or the work directory cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// CRIU cannot be used.
    #[error(transparent)]
    Criu(#[from] criu::Error),
    /// The kernel gives no random bytes.
    #[error(transparent)]
    Random(#[from] RendezvousError),
    /// The test has failed.
    #[error(transparent)]
    Failed(#[from] LocalTestError),
}

impl Fated for TestError {
    fn fate(&self) -> Fate {
        match self {
            Self::Subject(error) => error.fate(),
            Self::Failed(error) => error.fate(),
            _ => Fate::AsBefore,
        }
    }
}

/// Dumps the container and restores a copy on this host, which does not get to run.
///
/// The test takes moments and is never committed, so nothing interrupts it.
///
/// # Errors
/// [`TestError`].
pub fn local_test(request: &TestRequest, progress: &mut Progress) -> Result<(), TestError> {
    let (root, image_path) = (&request.root, &request.image_path);
    // Held until the end of the test.
    let subject = claim(root, &request.container)?;
    let container = subject.container.clone();
    let host = ThisHost::look(request.criu.program.as_deref()).map_err(SubjectError::from)?;
    let criu = host.criu?;
    let report = progress.report_mut();
    report.versions.note(Side::Source, &host.facts);
    let choices = &request.criu.choices;
    let spec = container.spec().map_err(SubjectError::from)?;
    let mut survey = survey(&container, &spec, choices);
    let (observed, room) = (&survey.observed, preflight::room(image_path));
    let lacking = lacking(Side::Source, observed, true, room, image_path);
    survey.findings.extend(lacking);
    let plan = local::Plan {
        root: root.clone(),
        image_path: image_path.clone(),
        migration: MigrationId::new(random()?),
        findings: survey.findings,
    };
    let workload = RunningContainer {
        criu,
        container,
        choices: choices.clone(),
        work_path: request.criu.work_path(root, &request.container)?,
        auto_dedup: false,
        answer_limit_dur: Some(request.freeze_limit_dur),
        ghost_limit_bytes: survey.ghost_limit_bytes,
    };
    Ok(local::test(&plan, workload, &spec, progress)?)
}
