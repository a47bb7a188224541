//! A test on one host: can this container be dumped, and restored from its images?
//!
//! CRIU holds the container at `post-dump` while it holds the copy at `post-restore`. The copy
//! never executes an instruction. It is destroyed before the container is resumed. If this process
//! dies, CRIU gets no answer any more, which has the same effect.
//!
//! The copy may take the names of the container's sockets, which are put back
//! ([`crate::migrate::unix_sockets`]). It must not take anything else from the container. So some
//! containers cannot be tested on one host ([`in_the_way`]), but can rehearse with a destination.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::CriuSettings;
use super::subject::{SubjectError, ThisHost, claim};
use crate::criu;
use crate::criu::CriuChoices;
use crate::error::{Cause, chain};
use crate::image;
use crate::migrate::agreement::lacking;
use crate::migrate::container::outgoing::{RunningContainer, flags};
use crate::migrate::fate::{Fate, Fated};
use crate::migrate::preflight::{self, survey};
use crate::migrate::progress::Progress;
use crate::migrate::record::error::JournalError;
use crate::migrate::record::journal::{Journal, Start};
use crate::migrate::source::{FrozenContainer, Target, Workload};
use crate::migrate::trust::rendezvous::{RendezvousError, random};
use crate::migrate::unix_sockets::{SocketNames, Unkept};
use crate::migrate::wire::finding::{Finding, Severity};
use crate::migrate::wire::id::{MigrationId, Side};
use crate::migrate::wire::state::Phase;
use crate::runtime::spec::namespaces::Namespaces;
use crate::runtime::verbs::checkpoint::HeldCheckpoint;
use crate::runtime::verbs::restore::{self, RestoreRequest};
use crate::text::milliseconds;

/// The container was not tested, or the test has failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalTestError {
    /// Something speaks against moving it, or against a copy here.
    #[error("container \"{container}\" cannot be tested here: {}", list(findings))]
    Refused {
        /// Id of the container.
        container: String,
        /// Findings with the severity of an error.
        findings: Vec<Finding>,
    },
    /// The journal cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The image store cannot be used.
    #[error("cannot create the image directory {path}")]
    Images {
        /// The directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The dump failed; the container runs on.
    #[error("container \"{container}\" cannot be dumped; it runs on")]
    Dump {
        /// Id of the container.
        container: String,
        /// The cause.
        #[source]
        source: Cause,
    },
    /// The restore failed; the container runs on.
    #[error("container \"{container}\" was dumped, and cannot be restored here; it runs on")]
    Restore {
        /// Id of the container.
        container: String,
        /// The cause.
        #[source]
        source: Cause,
    },
    /// A name that the copy takes away could not be put back; the container runs on.
    #[error("container \"{container}\" was not tested, because a copy would take the name of its Unix socket {} away: {}", unkept.path.display(), unkept.why)]
    Name {
        /// Id of the container.
        container: String,
        /// Path of the socket.
        unkept: Unkept,
    },
    /// The container should run on, but resuming it failed.
    #[error(
        "container \"{container}\" was tested, and letting it run on failed; `rcm resume {container}` lets it"
    )]
    Stands {
        /// Id of the container.
        container: String,
        /// The cause.
        #[source]
        source: Cause,
    },
}

impl Fated for LocalTestError {
    fn fate(&self) -> Fate {
        match self {
            Self::Stands { .. } => Fate::Stands,
            _ => Fate::RunsHere,
        }
    }
}

fn list(findings: &[Finding]) -> String {
    let texts: Vec<String> = findings.iter().map(Finding::to_string).collect();
    texts.join("; ")
}

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

/// Dumps the container and restores a copy of it on this host. The copy never runs.
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
    let (observed, space) = (&survey.observed, preflight::free_space(image_path));
    let lacking = lacking(Side::Source, observed, true, space, image_path);
    survey.findings.extend(lacking);
    let plan = TestPlan {
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
    Ok(test(&plan, workload, &spec, progress)?)
}

/// Subject of the test.
#[derive(Debug)]
struct TestPlan {
    root: PathBuf,
    image_path: PathBuf,
    /// Names the images.
    migration: MigrationId,
    /// Findings that speak against moving the container.
    findings: Vec<Finding>,
}

/// Dumps the container, restores a copy of it, destroys the copy and resumes the container.
///
/// # Errors
/// [`LocalTestError`]. The container runs on, except after [`LocalTestError::Stands`].
fn test(
    plan: &TestPlan,
    subject: RunningContainer,
    spec: &Spec,
    progress: &mut Progress,
) -> Result<(), LocalTestError> {
    let container = subject.container.id().to_owned();
    let mut findings = plan.findings.clone();
    findings.extend(in_the_way(spec, &subject.choices));
    let (errors, warnings): (Vec<Finding>, Vec<Finding>) = findings
        .into_iter()
        .partition(|finding| finding.severity == Severity::Error);
    warnings.iter().for_each(|finding| progress.warn(finding));
    if !errors.is_empty() {
        progress.report_mut().findings.extend_from_slice(&errors);
        return Err(LocalTestError::Refused {
            container,
            findings: errors,
        });
    }
    let dir = plan.image_path.join(plan.migration.to_string());
    progress.report_mut().migration = Some(plan.migration);
    // After a crash, `--resolve` or the next attempt empties the directory, which also holds the
    // copy's state.
    let mut journal = Journal::begin(
        &plan.root,
        Start {
            receiver: None,
            tls: None,
            migration: plan.migration,
            container: container.clone(),
            side: Side::Source,
            peer: "this host".into(),
            images: dir.clone(),
            owns_images: true,
            acquaintance: None,
            restore_spec: None,
        },
    )?;
    let tested = make_dir(&dir)
        .and_then(|()| Ok(journal.enter(Phase::Frozen)?))
        .and_then(|()| copy(&dir, subject, spec, &mut journal, progress));
    if let Err(error) = image::remove_dir(&dir) {
        tracing::warn!("cannot remove the images in {}: {error}", dir.display());
    }
    let reason = match &tested {
        Ok(()) => "it was a test".to_owned(),
        Err(error) => chain(error),
    };
    if let Err(error) = journal.roll_back(&reason) {
        tracing::warn!("{}", chain(&error));
    }
    tested
}

fn make_dir(path: &Path) -> Result<(), LocalTestError> {
    DirBuilder::new()
        .mode(0o700)
        .create(path)
        .map_err(|source| LocalTestError::Images {
            path: path.to_path_buf(),
            source,
        })
}

fn copy(
    dir: &Path,
    subject: RunningContainer,
    spec: &Spec,
    journal: &mut Journal,
    progress: &mut Progress,
) -> Result<(), LocalTestError> {
    let container = subject.container.id().to_owned();
    let images = dir.join("0");
    make_dir(&images)?;
    let linux = spec.linux().as_ref();
    let cgroup = linux.and_then(|linux| linux.cgroups_path().as_ref());
    let request = RestoreRequest {
        // A separate state directory and name, so that no command takes the copy for a container.
        root: dir.join("copy"),
        id: format!("{container}.test"),
        bundle: subject.container.bundle().to_path_buf(),
        cgroup_parent: cgroup.and_then(|path| path.parent()).map(Path::to_path_buf),
        flags: flags(&subject.choices, &images, &subject.work_path),
        ..RestoreRequest::default()
    };
    let criu = subject.criu.clone();

    let began = Instant::now();
    progress.begin("dump").watch(&images);
    let target = Target {
        images: &images,
        parent: None,
        pages: None,
    };
    let held = match subject.dump(target) {
        Ok(held) => held,
        Err(source) => return Err(LocalTestError::Dump { container, source }),
    };
    progress.lap("dump", began);
    let stopped_at = held.stopped_at();
    let freeze = &mut progress.report_mut().freeze;
    freeze.freeze_dur = Some(held.frozen_at().saturating_duration_since(stopped_at));
    freeze.dump_dur = Some(held.frozen_at().elapsed());

    let began = Instant::now();
    progress.begin("restore");
    let mut names = SocketNames::default();
    let restored = keep(&held, &container, journal, &mut names).and_then(|()| {
        let copy = restore::begin(&criu, &request).map_err(|source| LocalTestError::Restore {
            container: container.clone(),
            source: source.into(),
        })?;
        progress.lap("restore", began);
        let would_run_dur = stopped_at.elapsed();
        // The copy is gone when this returns.
        copy.refuse();
        Ok(would_run_dur)
    });
    names.put_back();
    let released = held.release();
    let stood_still_dur = stopped_at.elapsed();
    names.settle(Duration::ZERO);
    progress.report_mut().downtime_dur = Some(stood_still_dur);
    released.map_err(|source| LocalTestError::Stands {
        container: container.clone(),
        source,
    })?;
    let would_run_dur = restored?;
    progress.report_mut().predicted_dur = Some(would_run_dur);
    say(progress, would_run_dur, stood_still_dur);
    Ok(())
}

/// Keeps all names of the container's sockets in `names`.
fn keep(
    held: &HeldCheckpoint,
    container: &str,
    journal: &mut Journal,
    names: &mut SocketNames,
) -> Result<(), LocalTestError> {
    let (found, mut unkept) = held.names(journal.record().migration);
    journal.note_names(found.list())?;
    *names = found;
    unkept.extend(names.keep());
    match unkept.pop() {
        None => Ok(()),
        Some(unkept) => Err(LocalTestError::Name {
            container: container.to_owned(),
            unkept,
        }),
    }
}

fn say(progress: &mut Progress, would_run_dur: Duration, stood_still_dur: Duration) {
    progress.say(&format!(
        "can be dumped and restored here: a copy could have run after {}; it was frozen for {} and runs on",
        milliseconds(would_run_dur),
        milliseconds(stood_still_dur)
    ));
}

/// Returns the obstacles to a copy beside the container: resources that exist once on a host, and
/// that the copy would need or take away.
#[must_use]
pub fn in_the_way(spec: &Spec, choices: &CriuChoices) -> Vec<Finding> {
    let namespaces = Namespaces::of(spec);
    let own = |kind| namespaces.makes(kind);
    let hooks = spec.hooks().as_ref();
    let has_hooks = hooks.is_some_and(|hooks| {
        #[allow(deprecated, reason = "containers still have them")]
        let prestart = hooks.prestart();
        [prestart, hooks.create_runtime()]
            .into_iter()
            .any(|hooks| hooks.as_ref().is_some_and(|hooks| !hooks.is_empty()))
    });
    let mut reasons = Vec::new();
    if !own(LinuxNamespaceType::Pid) {
        reasons.push("it shares its PID namespace, and a copy would need its process ids".into());
    }
    if !own(LinuxNamespaceType::Network) {
        reasons.push("it shares its network namespace, and a copy would need its ports".into());
    }
    if choices.file_locks {
        reasons.push("a copy would need its file locks".into());
    }
    if has_hooks {
        reasons.push("it has prestart or createRuntime hooks, which would run for a copy".into());
    }
    reasons
        .into_iter()
        .map(|what: String| {
            let remedy = "use --rehearse with a destination";
            Finding::error(Side::Source, what, remedy)
        })
        .collect()
}
