//! Negotiation: from the command to the agreement of both ends. Nothing is stopped yet.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use super::offer::Meeting;
use super::session::{SourceImages, SourceSession, images_path};
use super::{Failure, Negotiated, Plan, SourceError, Workload};
use crate::error::chain;
use crate::migrate::agreement::lacking;
use crate::migrate::limits::ANSWER_LIMIT_DUR;
use crate::migrate::link::channel::{Channel, Patience, TransportError};
use crate::migrate::link::connect::{connect, reconnect};
use crate::migrate::preflight;
use crate::migrate::progress::Progress;
use crate::migrate::record::journal::{Journal, Start};
use crate::migrate::transfer::images;
use crate::migrate::transfer::rootfs::{self, SharedProbe};
use crate::migrate::trust::rendezvous;
use crate::migrate::trust::rendezvous::{Acquaintance, RendezvousError};
use crate::migrate::unix_sockets::SocketNames;
use crate::migrate::wire::finding::{Finding, Severity};
use crate::migrate::wire::id::Side;
use crate::migrate::wire::payload::{Findings, Join, Purpose};
use crate::migrate::wire::protocol::Message;
use crate::migrate::wire::rootfs::{RootfsPlan, RootfsWay, RootfsWish};
use crate::sys::interrupt::Interrupt;
use crate::text::bytes;

/// Returns the findings of both ends without beginning the migration.
///
/// # Errors
/// If the destination cannot be asked.
pub fn preflight(
    plan: &Plan,
    progress: &mut Progress,
    interrupt: Option<&Interrupt>,
) -> Result<Vec<Finding>, SourceError> {
    introduce(plan, progress);
    let patience = Patience::default().or_interrupt(interrupt);
    // The destination looks for this directory to find out whether the store is the same.
    let images = SourceImages::create(&plan.offer.image_path, plan.offer.migration)?;
    let mut contact = meet(plan, &images, patience)?;
    let answer = ask_findings(plan, &mut contact, true, patience)?;
    note_destination(progress, &answer);
    Ok(answer.findings)
}

/// Returns the failure of a plan that findings of this end forbid, with the destination's findings
/// if it can be asked.
pub fn refusal(plan: &Plan, progress: &mut Progress, interrupt: Option<&Interrupt>) -> Failure {
    let mut findings = preflight(plan, progress, interrupt).unwrap_or_else(|error| {
        progress.say(&chain(&error));
        plan.findings.clone()
    });
    findings.retain(speaks_against);
    progress.report_mut().findings.extend_from_slice(&findings);
    Failure::RunsOn {
        container: plan.offer.container.clone(),
        source: Box::new(SourceError::Refused { findings }),
    }
}

/// Fills in the parts of the report that are known before the destination is asked.
fn introduce(plan: &Plan, progress: &mut Progress) {
    let report = progress.report_mut();
    report.migration = Some(plan.offer.migration);
    report.peer = Some(plan.destination.to_string());
    report.versions.note(Side::Source, &plan.offer.facts);
}

fn note_destination(progress: &mut Progress, answer: &Findings) {
    let report = progress.report_mut();
    if let Some(facts) = &answer.facts {
        report.versions.note(Side::Destination, facts);
    }
    report.rootfs = Some(answer.rootfs.clone());
}

/// Connection to a destination that has proved its identity.
struct Contact {
    channel: Channel,
    acquaintance: Acquaintance,
    /// Whether the receiver's file is in this end's store. Then the images need not be sent.
    shares_store: bool,
}

/// Connects to the destination. A receiver for any container that has just accepted another source
/// closes its connections; the next attempt then waits for its turn, so one retry is enough.
fn meet(plan: &Plan, images: &SourceImages, patience: Patience) -> Result<Contact, SourceError> {
    let is_closed = |error: &TransportError| match error {
        TransportError::Closed { .. } => true,
        // If this end had sent data before, the close arrives as a reset.
        TransportError::Broken { source, .. } => matches!(
            source.kind(),
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
        ),
        _ => false,
    };
    match try_to_meet(plan, images, patience) {
        Err(SourceError::Transport(error)) if is_closed(&error) => {
            try_to_meet(plan, images, patience)
        }
        met => met,
    }
}

fn try_to_meet(
    plan: &Plan,
    images: &SourceImages,
    patience: Patience,
) -> Result<Contact, SourceError> {
    let container = &plan.offer.container;
    let mut shares_store = false;
    let (channel, acquaintance) = connect(
        &plan.destination,
        container,
        &plan.trust,
        |met| {
            let found = rendezvous::read(
                &plan.offer.image_path,
                container,
                &met.receiver,
                images.owner,
            );
            shares_store = found.is_ok();
            match (found, met.told, plan.trust.key_without_store()) {
                (Ok(left), ..) | (Err(RendezvousError::NotShared { .. }), Some(left), _) => {
                    Ok(left.acquaintance(met.receiver, &plan.trust))
                }
                (Err(RendezvousError::NotShared { .. }), None, Some(secret)) => Ok(Acquaintance {
                    receiver: met.receiver,
                    secret,
                    fingerprint: met.binding.destination,
                    knows_secret: false,
                }),
                (Err(error), ..) => Err(error),
            }
        },
        patience.at_most(ANSWER_LIMIT_DUR),
    )?;
    Ok(Contact {
        channel,
        acquaintance,
        shares_store,
    })
}

/// Returns the findings of this end, then those of the destination.
fn ask_findings(
    plan: &Plan,
    contact: &mut Contact,
    asks_only: bool,
    patience: Patience,
) -> Result<Findings, SourceError> {
    let patience = patience.at_most(ANSWER_LIMIT_DUR);
    let own = own_findings(plan, contact.shares_store);
    let probe = match plan.offer.rootfs.wish {
        RootfsWish::None => None,
        _ => SharedProbe::leave(&plan.rootfs, plan.offer.migration),
    };
    let preamble = plan.offer.preamble(Meeting {
        streams: if contact.shares_store {
            0
        } else {
            plan.streams
        },
        probe: probe.as_ref().map(|probe| probe.name().to_owned()),
        clock_ms: preflight::clock_ms(),
        // If this end has an error, the destination is only asked for its findings, so that the
        // operator sees all of them. It keeps waiting.
        asks_only: asks_only || own.iter().any(speaks_against),
    });
    let channel = &mut contact.channel;
    channel.send(&Message::Preamble(Box::new(preamble)), patience)?;
    let answer: Findings = channel.expect(patience)?;
    Ok(Findings {
        findings: own.into_iter().chain(answer.findings).collect(),
        ..answer
    })
}

/// Returns the findings of this end, including the free space of its store: the space that is
/// needed is known only now.
fn own_findings(plan: &Plan, shares_store: bool) -> Vec<Finding> {
    let (observed, path) = (&plan.offer.observed, &plan.offer.image_path);
    let space = preflight::free_space(path);
    let mut findings = plan.findings.clone();
    findings.extend(lacking(Side::Source, observed, shares_store, space, path));
    let rounds_bytes = observed.memory_bytes.saturating_mul(2);
    if let (true, Some(limits), Some(free_bytes)) = (shares_store, plan.pre_copy, space.free_bytes)
        && (observed.memory_bytes..rounds_bytes).contains(&free_bytes)
    {
        findings.push(Finding::warning(
            Side::Source,
            format!(
                "the images need about {} for the memory, and as much again for each of up to {} rounds in which all of it changes; {} has {} left",
                bytes(observed.memory_bytes),
                limits.max_rounds,
                path.display(),
                bytes(free_bytes)
            ),
            "free space there, or use --auto-dedup, --max-rounds or --mode=stop-and-copy",
        ));
    }
    findings
}

/// Opens another connection beside the first one.
fn join(
    plan: &Plan,
    contact: &Contact,
    purpose: Purpose,
    patience: Patience,
) -> Result<Channel, TransportError> {
    let patience = patience.at_most(ANSWER_LIMIT_DUR);
    let container = &plan.offer.container;
    let known = contact.acquaintance;
    let mut channel = reconnect(&plan.destination, container, &plan.trust, known, patience)?;
    let migration = plan.offer.migration;
    channel.send(&Message::Join(Join { migration, purpose }), patience)?;
    Ok(channel)
}

/// Opens the connections that carry the images to a destination with its own store.
fn open_streams(
    plan: &Plan,
    contact: &Contact,
    sent: &Arc<AtomicU64>,
    patience: Patience,
) -> Result<Option<images::ImageSender>, SourceError> {
    if contact.shares_store {
        return Ok(None);
    }
    let channels = (0..plan.streams)
        .map(|_| join(plan, contact, Purpose::Images, patience))
        .collect::<Result<_, _>>()?;
    images::ImageSender::start(channels, plan.sending.clone(), Arc::clone(sent))
        .map(Some)
        .map_err(|source| SourceError::Bulk { source })
}

/// Opens the connection that carries the root file system, if it is copied.
fn open_tree(
    plan: &Plan,
    contact: &Contact,
    way: RootfsWay,
    images: &SourceImages,
    patience: Patience,
) -> Result<Option<rootfs::TreeSender>, SourceError> {
    if !way.copies() {
        return Ok(None);
    }
    let config = match &plan.config {
        Some(text) => text.clone(),
        None => rootfs::read_config(&plan.offer.bundle.path)?,
    };
    let channel = join(plan, contact, Purpose::Tree, patience)?;
    let settings = rootfs::TreeSettings {
        root: plan.rootfs.clone(),
        config,
        way,
        spool: images.path.clone(),
        sending: plan.sending.clone(),
    };
    Ok(Some(rootfs::TreeSender::start(channel, settings)?))
}

fn speaks_against(finding: &Finding) -> bool {
    finding.severity == Severity::Error
}

impl<'a, W: Workload> Negotiated<'a, W> {
    pub(super) fn negotiate(
        plan: &'a Plan,
        workload: W,
        progress: &'a mut Progress,
        interrupt: Option<&'a Interrupt>,
    ) -> Result<Self, SourceError> {
        let patience = Patience::default().or_interrupt(interrupt);
        let began = Instant::now();
        let offer = &plan.offer;
        introduce(plan, progress);
        progress.begin("negotiate");
        // The record comes before anything is created in the store: if rcm is killed, `--resolve`
        // knows from it that there is something to remove.
        let mut journal = Journal::begin(
            &plan.root,
            Start {
                migration: offer.migration,
                container: offer.container.clone(),
                side: Side::Source,
                peer: plan.destination.to_string(),
                images: images_path(&plan.offer.image_path, offer.migration),
                owns_images: true,
                receiver: None,
                tls: None,
                acquaintance: None,
                restore_spec: None,
            },
        )?;
        let met = Self::meet(plan, progress, patience).and_then(|met| {
            let (images, mut contact, way) = met;
            journal.acquaint(contact.acquaintance, plan.trust.files())?;
            let opened = open_streams(plan, &contact, progress.sent(), patience)
                .and_then(|bulk| Ok((bulk, open_tree(plan, &contact, way, &images, patience)?)));
            let (bulk, tree) = opened.inspect_err(|error| contact.channel.abort(&chain(error)))?;
            Ok((images, contact, bulk, tree))
        });
        match met {
            Ok((images, contact, bulk, tree)) => {
                progress.lap("negotiate", began);
                Ok(Self {
                    session: SourceSession {
                        plan,
                        channel: contact.channel,
                        acquaintance: contact.acquaintance,
                        journal,
                        tree,
                        images,
                        progress,
                        patience,
                        rounds: 0,
                        round_trip_dur: Duration::ZERO,
                        bulk,
                        names: SocketNames::default(),
                    },
                    workload,
                })
            }
            Err(error) => {
                if let Err(error) = journal.roll_back(&chain(&error)) {
                    tracing::warn!("{}", chain(&error));
                }
                Err(error)
            }
        }
    }

    fn meet(
        plan: &Plan,
        progress: &mut Progress,
        patience: Patience,
    ) -> Result<(SourceImages, Contact, RootfsWay), SourceError> {
        let images = SourceImages::create(&plan.offer.image_path, plan.offer.migration)?;
        let mut contact = meet(plan, &images, patience)?;
        let way = Self::agree(plan, &mut contact, progress, patience)
            .inspect_err(|error| contact.channel.abort(&chain(error)))?;
        Ok((images, contact, way))
    }

    fn agree(
        plan: &Plan,
        contact: &mut Contact,
        progress: &mut Progress,
        patience: Patience,
    ) -> Result<RootfsWay, SourceError> {
        let answer = ask_findings(plan, contact, false, patience)?;
        note_destination(progress, &answer);
        let (errors, warnings): (Vec<Finding>, Vec<Finding>) =
            answer.findings.into_iter().partition(speaks_against);
        for finding in &warnings {
            progress.warn(finding);
        }
        if errors.is_empty() {
            let RootfsPlan { way, why } = answer.rootfs;
            progress.say(&format!("root file system: {}, {why}", way.name()));
            Ok(way)
        } else {
            progress.report_mut().findings.extend_from_slice(&errors);
            Err(SourceError::Refused { findings: errors })
        }
    }
}
