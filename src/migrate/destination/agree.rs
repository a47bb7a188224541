//! From the first connection to the agreement of both ends. Nothing is stopped yet.

use super::session::{DestinationImages, DestinationSession};
use super::settlement::answer;
use super::{Host, Prepared, Receiving, Result, Setup};
use crate::error::chain;
use crate::image::manifest::Manifest;
use crate::migrate::agreement::{Local, judge};
use crate::migrate::limits::ANSWER_LIMIT_DUR;
use crate::migrate::link::channel::{Channel, Patience, TransportError};
use crate::migrate::link::listener::Listener;
use crate::migrate::progress::Progress;
use crate::migrate::record::journal::{Journal, Start};
use crate::migrate::trust::rendezvous::Rendezvous;
use crate::migrate::wire::finding::{Finding, Severity};
use crate::migrate::wire::id::Side;
use crate::migrate::wire::payload::Findings;
use crate::migrate::wire::preamble::Preamble;
use crate::migrate::wire::protocol::{Kind, Message};
use crate::migrate::wire::state::Verdict;
use crate::sys::interrupt::Interrupt;

impl<H: Host> Prepared<H> {
    /// Returns a receiver whose secret is in the store and whose port is open.
    #[must_use]
    pub fn new(setup: Setup, host: H, rendezvous: Rendezvous, listener: Listener) -> Self {
        Self {
            setup,
            host,
            listener,
            rendezvous,
        }
    }

    /// Waits for a source without a finding that forbids the migration. A refused source may try
    /// again.
    ///
    /// # Errors
    /// [`TransportError::Interrupted`], errors of the journal.
    pub fn agree(
        mut self,
        progress: &mut Progress,
        interrupt: Option<&Interrupt>,
    ) -> Result<Receiving<H>> {
        let patience = Patience::default().or_interrupt(interrupt);
        loop {
            let mut channel = self.listener.admit(patience)?;
            let asked = channel.receive(
                &[Kind::Preamble, Kind::Inquiry],
                patience.at_most(ANSWER_LIMIT_DUR),
            );
            let preamble = match asked {
                Ok(Message::Preamble(preamble)) => *preamble,
                Ok(Message::Inquiry(inquiry)) => {
                    // A source that has this receiver's secret asks about a migration that this
                    // receiver does not know.
                    answer(&mut channel, inquiry.migration, Verdict::Unknown);
                    continue;
                }
                Err(error @ TransportError::Interrupted { .. }) => return Err(error.into()),
                Ok(_) => continue,
                Err(error) => {
                    progress.say(&chain(&error));
                    continue;
                }
            };
            // Findings of a refused attempt or of a rehearsal do not belong into the report of the
            // next one.
            progress.forget();
            match self.answer_preamble(&mut channel, &preamble, progress, patience) {
                Ok(Some(local)) => return self.begin(channel, preamble, local, progress),
                Ok(None) => {}
                Err(error @ TransportError::Interrupted { .. }) => return Err(error.into()),
                Err(error) => progress.say(&chain(&error)),
            }
        }
    }

    /// Sends the findings. Returns the observations about this host if the migration may begin.
    fn answer_preamble(
        &mut self,
        channel: &mut Channel,
        preamble: &Preamble,
        progress: &mut Progress,
        patience: Patience,
    ) -> Result<Option<Local>, TransportError> {
        self.host.expect(preamble);
        let local = self.host.inspect(preamble);
        let mut findings = judge(preamble, &self.host.facts(), &local);
        if !preamble.asks_only
            && !findings.iter().any(speaks_against)
            && let Err(cause) = self.host.claim()
        {
            findings.push(Finding::error(
                Side::Destination,
                chain(&*cause),
                "correct this and try again",
            ));
        }
        for finding in &findings {
            match finding.severity {
                Severity::Warning => progress.warn(finding),
                Severity::Error => progress.say(&format!("error: {finding}")),
            }
        }
        let refused = findings.iter().any(speaks_against);
        channel.send(
            &Message::Findings(Findings {
                findings,
                facts: Some(self.host.facts()),
                rootfs: local.rootfs_plan.clone(),
            }),
            patience.at_most(ANSWER_LIMIT_DUR),
        )?;
        if preamble.asks_only {
            progress.say(&format!(
                "{} only asked; waiting for the container",
                channel.peer()
            ));
        } else if refused {
            progress.say(&format!(
                "refused {}; waiting for the next attempt",
                channel.peer()
            ));
        }
        Ok((!refused && !preamble.asks_only).then_some(local))
    }

    fn begin(
        self,
        channel: Channel,
        preamble: Preamble,
        local: Local,
        progress: &mut Progress,
    ) -> Result<Receiving<H>> {
        let report = progress.report_mut();
        report.container.clone_from(&preamble.container);
        report.rootfs = Some(local.rootfs_plan.clone());
        report.migration = Some(preamble.migration);
        report.peer = Some(channel.peer().to_owned());
        report.versions.note(Side::Source, &preamble.facts);
        report.versions.note(Side::Destination, &self.host.facts());
        progress.say(&if preamble.rehearses {
            format!("{} rehearses", channel.peer())
        } else {
            format!("coming from {}", channel.peer())
        });
        let images = self.setup.image_path.join(preamble.migration.to_string());
        let journal = Journal::begin(
            &self.setup.root,
            Start {
                migration: preamble.migration,
                container: preamble.container.clone(),
                side: Side::Destination,
                peer: channel.peer().to_owned(),
                images: images.clone(),
                owns_images: preamble.streams > 0,
                receiver: match preamble.streams {
                    0 => None,
                    _ => self.listener.stored(&self.setup.image_path),
                },
                tls: self.listener.tls_files().cloned(),
                acquaintance: Some(self.rendezvous.acquaintance()),
                restore_spec: Some(self.host.restore_spec(&preamble)),
            },
        );
        let (journal, channel) = match journal {
            Ok(journal) => (journal, channel),
            Err(error) => {
                let mut channel = channel;
                channel.abort(&chain(&error));
                return Err(error.into());
            }
        };
        progress.begin("receive");
        Ok(Receiving {
            session: DestinationSession {
                setup: self.setup,
                host: self.host,
                listener: self.listener,
                channel,
                journal,
                images: DestinationImages {
                    path: images,
                    owned: preamble.streams > 0,
                    keep: false,
                },
                preamble,
                local,
                tree: None,
                bulk: None,
                rounds: 0,
                last: Manifest::default(),
                rendezvous: self.rendezvous,
            },
        })
    }
}

fn speaks_against(finding: &Finding) -> bool {
    finding.severity == Severity::Error
}
