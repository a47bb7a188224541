//! From the command to the agreement of both ends; nothing is stopped yet.

use std::io::Write;
use std::time::Instant;

use super::copying::PreCopied;
use super::session::{Images, Session, images_path};
use super::{ANSWER_LIMIT_DUR, Negotiated, Plan, SourceError, Workload};
use crate::migrate::handshake::connect;
use crate::migrate::journal::{Journal, Start};
use crate::migrate::preamble::{Finding, Preamble, Severity};
use crate::migrate::progress::Progress;
use crate::migrate::protocol::{Findings, Message, Side};
use crate::migrate::rendezvous::Acquaintance;
use crate::migrate::transport::{Channel, Patience};
use crate::migrate::{chain, preflight, rendezvous};
use crate::sys::interrupt::Interrupt;

/// Everything that speaks against the migration, of both ends; nothing is begun.
///
/// # Errors
/// Where the destination cannot be asked.
pub fn preflight(plan: &Plan, interrupt: Option<&Interrupt>) -> Result<Vec<Finding>, SourceError> {
    let patience = Patience::default().or_interrupt(interrupt);
    // Its name is how the destination finds out whether the store is the same.
    let images = Images::create(&plan.image_path, plan.preamble.migration)?;
    let (mut channel, _) = meet(plan, &images, patience)?;
    ask_findings(plan, &mut channel, true, patience)
}

fn meet(
    plan: &Plan,
    images: &Images,
    patience: Patience,
) -> Result<(Channel, Acquaintance), SourceError> {
    Ok(connect(
        &plan.destination,
        &plan.trust,
        |receiver| {
            rendezvous::find(
                &plan.image_path,
                &plan.preamble.container,
                receiver,
                images.owner,
            )
            .map(|left| left.acquaintance(*receiver, &plan.trust))
        },
        patience.at_most(ANSWER_LIMIT_DUR),
    )?)
}

/// This end's findings, then the destination's.
fn ask_findings(
    plan: &Plan,
    channel: &mut Channel,
    asks_only: bool,
    patience: Patience,
) -> Result<Vec<Finding>, SourceError> {
    let patience = patience.at_most(ANSWER_LIMIT_DUR);
    let preamble = Preamble {
        clock_ms: Some(preflight::clock_ms()),
        asks_only,
        ..plan.preamble.clone()
    };
    channel.send(&Message::Preamble(Box::new(preamble)), patience)?;
    let answer: Findings = channel.expect(patience)?;
    let own = plan.findings.iter().cloned();
    Ok(own.chain(answer.findings).collect())
}

fn speaks_against(finding: &Finding) -> bool {
    finding.severity == Severity::Error
}

impl<'a, W: Workload, O: Write> Negotiated<'a, W, O> {
    pub(super) fn negotiate(
        plan: &'a Plan,
        workload: W,
        progress: &'a mut Progress<O>,
        interrupt: Option<&'a Interrupt>,
    ) -> Result<Self, SourceError> {
        let patience = Patience {
            deadline: None,
            interrupt,
        };
        let began = Instant::now();
        let preamble = &plan.preamble;
        // Before anything is made in the store: who is killed now leaves a record of it.
        let mut journal = Journal::begin(
            &plan.root,
            Start {
                migration: preamble.migration,
                container: preamble.container.clone(),
                side: Side::Source,
                peer: plan.destination.to_string(),
                images: images_path(&plan.image_path, preamble.migration),
                acquaintance: None,
            },
        )?;
        let met = Self::meet(plan, progress, patience).and_then(|met| {
            journal.acquaint(met.2, plan.trust.files())?;
            Ok(met)
        });
        match met {
            Ok((images, channel, acquaintance)) => {
                progress.lap("negotiate", began);
                Ok(Self {
                    session: Session {
                        plan,
                        channel,
                        acquaintance,
                        journal,
                        images,
                        progress,
                        patience,
                        pre_copied: PreCopied::default(),
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
        progress: &mut Progress<O>,
        patience: Patience,
    ) -> Result<(Images, Channel, Acquaintance), SourceError> {
        let images = Images::create(&plan.image_path, plan.preamble.migration)?;
        let (mut channel, acquaintance) = meet(plan, &images, patience)?;
        Self::agree(plan, &mut channel, progress, patience)
            .inspect_err(|error| channel.abort(&chain(error)))?;
        Ok((images, channel, acquaintance))
    }

    fn agree(
        plan: &Plan,
        channel: &mut Channel,
        progress: &mut Progress<O>,
        patience: Patience,
    ) -> Result<(), SourceError> {
        // With an error of this end the destination is only asked for its own, so that all are known, and goes on waiting.
        let asks_only = plan.findings.iter().any(speaks_against);
        let findings = ask_findings(plan, channel, asks_only, patience)?;
        let (errors, warnings): (Vec<Finding>, Vec<Finding>) =
            findings.into_iter().partition(speaks_against);
        for finding in &warnings {
            progress.say(&format!("warning: {finding}"));
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(SourceError::Refused { findings: errors })
        }
    }
}
