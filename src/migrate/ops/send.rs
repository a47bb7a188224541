//! Sending a container to another host.

use std::path::PathBuf;
use std::time::Duration;

use super::CriuSettings;
use super::subject::{SubjectError, ThisHost, claim};
use crate::criu::{self, Criu};
use crate::error::chain;
use crate::migrate::container::engine_bundle::EngineBundle;
use crate::migrate::container::outgoing::RunningContainer;
use crate::migrate::container::outgoing::bundle;
use crate::migrate::fate::{Fate, Fated};
use crate::migrate::limits;
use crate::migrate::link::address::Destination;
use crate::migrate::method::precopy::Limits;
use crate::migrate::preflight::{offer, survey};
use crate::migrate::progress::Progress;
use crate::migrate::record::error::JournalError;
use crate::migrate::source::offer::Offer;
use crate::migrate::source::{self, Failure, Plan, SourceError};
use crate::migrate::transfer::images;
use crate::migrate::transfer::rootfs::remove_probe;
use crate::migrate::trust::rendezvous::RendezvousError;
use crate::migrate::trust::rendezvous::random;
use crate::migrate::trust::{Trust, TrustError, TrustSettings};
use crate::migrate::wire::facts::Facts;
use crate::migrate::wire::finding::Finding;
use crate::migrate::wire::id::MigrationId;
use crate::migrate::wire::id::Side;
use crate::migrate::wire::rootfs::RootfsWish;
use crate::runtime::Container;
use crate::sys::interrupt::Interrupt;

/// How far a migration goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aim {
    /// The container moves.
    Move,
    /// Everything happens but the commit; the container runs on here and the receiver waits on.
    Rehearse,
    /// Both ends only report their findings.
    Ask,
}

/// When memory is copied.
#[derive(Debug, Clone, Copy)]
pub enum Method {
    /// Pre-copy if the kernel tracks changed memory, else stop-and-copy.
    Auto(Limits),
    /// All memory is copied while the container is frozen.
    StopAndCopy,
    /// Memory is copied while the container runs; the freeze copies only the rest.
    PreCopy(Limits),
}

impl Method {
    /// Returns the limits of pre-copy, or `None` for stop-and-copy, with the reason if the operator
    /// should know it.
    fn choose(
        self,
        criu: &Criu,
        facts: &Facts,
    ) -> Result<(Option<Limits>, Option<&'static str>), criu::Error> {
        Ok(match self {
            Self::StopAndCopy => (None, None),
            Self::PreCopy(limits) => {
                criu.require_memory_tracking()?;
                (Some(limits), None)
            }
            Self::Auto(limits) if facts.criu_features.contains("mem_track") => (Some(limits), None),
            Self::Auto(_) => (
                None,
                Some(
                    "stop-and-copy, because this kernel does not track changed memory (CONFIG_MEM_SOFT_DIRTY), which pre-copy needs",
                ),
            ),
        })
    }
}

/// A container to be sent.
#[derive(Debug, Clone)]
pub struct SendRequest {
    /// State directory of rcm.
    pub root: PathBuf,
    /// Id of the container.
    pub container: String,
    /// Address of the receiver.
    pub destination: Destination,
    /// Image store: an existing directory.
    pub image_path: PathBuf,
    /// Secrets and certificates.
    pub trust: TrustSettings,
    /// CRIU and its options.
    pub criu: CriuSettings,
    /// How far the migration goes.
    pub aim: Aim,
    /// When memory is copied.
    pub method: Method,
    /// Whether each round of pre-copy drops the pages that it supersedes in earlier rounds.
    pub auto_dedup: bool,
    /// How the destination gets the root file system.
    pub rootfs: RootfsWish,
    /// Number of connections for the images if the ends share no store.
    pub streams: u32,
    /// Compression and bandwidth of these connections.
    pub sending: images::ImageSettings,
    /// The longest freeze; after it the migration is rolled back.
    pub freeze_limit_dur: Duration,
    /// How long an unanswered commit is asked about.
    pub settle_limit_dur: Duration,
}

/// Outcome of a request to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sent {
    /// The container runs at the destination.
    Moved,
    /// The rehearsal succeeded; the container runs on here.
    Rehearsed,
    /// Everything that speaks against the migration, of both ends. Without an error among the
    /// findings it would begin.
    Asked(Vec<Finding>),
}

/// The container was not sent, or not completely.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The container cannot be migrated as it is.
    #[error(transparent)]
    Subject(#[from] SubjectError),
    /// The journal or the work directory cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// CRIU lacks something that was asked for.
    #[error(transparent)]
    Criu(#[from] criu::Error),
    /// The kernel gives no random bytes.
    #[error(transparent)]
    Random(#[from] RendezvousError),
    /// The secrets or certificates cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The spec cannot be sent, because it has a path that is not UTF-8.
    #[error("cannot write the spec of container \"{container}\" as JSON for the destination")]
    Spec {
        /// Id of the container.
        container: String,
        /// The failure of the serializer.
        #[source]
        source: serde_json::Error,
    },
    /// The destination cannot be asked. This end's findings are in the report.
    #[error(transparent)]
    Unasked(SourceError),
    /// The migration has failed.
    #[error(transparent)]
    Failed(#[from] Failure),
}

impl From<crate::runtime::Error> for SendError {
    fn from(error: crate::runtime::Error) -> Self {
        Self::Subject(error.into())
    }
}

fn spec_error(container: &Container) -> impl FnOnce(serde_json::Error) -> SendError + use<> {
    let container = container.id().to_owned();
    move |source| SendError::Spec { container, source }
}

impl Fated for SendError {
    fn fate(&self) -> Fate {
        match self {
            Self::Subject(error) => error.fate(),
            Self::Failed(failure) => failure.fate(),
            _ => Fate::AsBefore,
        }
    }
}

/// Sends the container, rehearses that, or asks whether it could be sent.
///
/// `interrupt` ends it until the commit.
///
/// # Errors
/// [`SendError`].
pub fn send(
    request: &SendRequest,
    progress: &mut Progress,
    interrupt: Option<&Interrupt>,
) -> Result<Sent, SendError> {
    let root = &request.root;
    limits::log(Side::Source, request.freeze_limit_dur);
    // Held until the end of the migration.
    let subject = claim(root, &request.container)?;
    let container = subject.container.clone();
    if let Some(last) = subject.last {
        remove_probe(container.rootfs(), last);
    }
    let Preparation {
        plan,
        criu,
        why_not,
        ghost_limit_bytes,
    } = prepare(request, &container)?;
    if request.aim == Aim::Ask {
        return ask(&plan, progress, interrupt);
    }
    let Some(criu) = criu else {
        return Err(source::refusal(&plan, progress, interrupt).into());
    };
    if let Some(why_not) = why_not {
        progress.say(why_not);
    }
    let workload = RunningContainer {
        criu,
        container,
        choices: request.criu.choices.clone(),
        work_path: request.criu.work_path(root, &request.container)?,
        auto_dedup: request.auto_dedup,
        answer_limit_dur: Some(request.freeze_limit_dur),
        ghost_limit_bytes,
    };
    if request.aim == Aim::Rehearse {
        source::rehearse(&plan, workload, progress, interrupt)?;
        return Ok(Sent::Rehearsed);
    }
    source::migrate(&plan, workload, progress, interrupt)?;
    Ok(Sent::Moved)
}

/// A migration that this end is ready for, except for the findings in the plan.
struct Preparation {
    plan: Plan,
    /// `None` if CRIU cannot be used; a finding says why.
    criu: Option<Criu>,
    /// The reason for stop-and-copy, if the operator should know it.
    why_not: Option<&'static str>,
    ghost_limit_bytes: Option<u32>,
}

/// Looks at this host and the container.
fn prepare(request: &SendRequest, container: &Container) -> Result<Preparation, SendError> {
    let host = ThisHost::look(request.criu.program.as_deref()).map_err(SubjectError::from)?;
    let choices = &request.criu.choices;
    let spec = container.spec()?;
    let mut survey = survey(container, &spec, choices);
    let (mut pre_copy, mut why_not, mut processor) = (None, None, Vec::new());
    match &host.criu {
        Ok(criu) => {
            (pre_copy, why_not) = request.method.choose(criu, &host.facts)?;
            // Only the destination can say whether it matters that CRIU does not know this
            // processor.
            processor = criu.processor(&request.root).unwrap_or_default();
        }
        Err(error) => {
            let what = chain(error);
            let finding = Finding::error(Side::Source, what, "correct this and try again");
            survey.findings.push(finding);
        }
    }
    let engine_bundle = EngineBundle::of(container, &spec);
    if let Some(engine_bundle) = &engine_bundle {
        survey.findings.extend_from_slice(&engine_bundle.findings);
    }
    let bundle = match &engine_bundle {
        Some(engine_bundle) => engine_bundle.bundle(),
        None => bundle(container, &spec),
    };
    let config = engine_bundle.as_ref().map(EngineBundle::config).transpose();
    let offer = Offer {
        migration: MigrationId::new(random()?),
        container: container.id().to_owned(),
        facts: host.facts,
        bundle: bundle.map_err(spec_error(container))?,
        image_path: request.image_path.clone(),
        criu: choices.clone(),
        observed: survey.observed,
        processor,
        rootfs: offer(request.rootfs, container.rootfs()),
        rehearses: request.aim == Aim::Rehearse,
    };
    Ok(Preparation {
        plan: Plan {
            root: request.root.clone(),
            destination: request.destination.clone(),
            trust: Trust::of(&request.trust)?,
            offer,
            rootfs: container.rootfs().to_path_buf(),
            config: config.map_err(spec_error(container))?,
            findings: survey.findings,
            pre_copy,
            streams: request.streams,
            sending: request.sending.clone(),
            freeze_limit_dur: request.freeze_limit_dur,
            settle_limit_dur: request.settle_limit_dur,
        },
        criu: host.criu.ok(),
        why_not,
        ghost_limit_bytes: survey.ghost_limit_bytes,
    })
}

/// Collects the findings of both ends. If the destination cannot be asked, the report has this
/// end's findings.
fn ask(
    plan: &Plan,
    progress: &mut Progress,
    interrupt: Option<&Interrupt>,
) -> Result<Sent, SendError> {
    let asked = source::preflight(plan, progress, interrupt);
    let findings = asked.as_ref().unwrap_or(&plan.findings);
    progress.report_mut().findings.clone_from(findings);
    asked.map(Sent::Asked).map_err(SendError::Unasked)
}
