//! Visible progress of a migration.
//!
//! The states of both ends report events to a [`Progress`]. It adds them to a [`Report`], and
//! passes them to an [`Observer`], which shows them as lines, a bar or JSON. A [`Meter`] counts the
//! bytes of a phase. An observer reads it as often as it likes, so no observer is called for each
//! buffer.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use super::wire::finding::Finding;
use report::Report;

mod event;
mod meter;
pub mod report;

pub use event::{Event, Lap, RoundLap, TreePass, bytes_per_second};
pub use meter::Meter;

pub(super) use event::{ms, optional_ms};

/// Display of events. It must not fail: a closed terminal is no reason to stop a migration.
pub trait Observer: Debug + Send {
    /// Shows an event of `container`.
    fn on(&mut self, container: &str, event: &Event);
}

/// Observer that shows nothing.
impl Observer for () {
    fn on(&mut self, _container: &str, _event: &Event) {}
}

/// State of the progress up to now.
#[derive(Debug)]
pub struct Progress {
    observer: Box<dyn Observer>,
    began: Instant,
    /// Meter of the phase under way.
    meter: Meter,
    /// Bytes sent over the network, in all phases together.
    sent: Arc<AtomicU64>,
    report: Report,
}

impl Progress {
    /// Progress before the first event. `report` names the container.
    #[must_use]
    pub fn new(observer: Box<dyn Observer>, report: Report) -> Self {
        Self {
            observer,
            began: Instant::now(),
            meter: Meter::default(),
            sent: Arc::default(),
            report,
        }
    }

    /// Reports an event.
    pub fn tell(&mut self, event: Event) {
        self.observer.on(&self.report.container, &event);
        match event {
            Event::Ended(lap) => self.report.phases.push(lap),
            Event::Round(round) => self.report.rounds.push(round),
            Event::Tree(pass) => self.report.rootfs_passes.push(pass),
            Event::Freezing { predicted_dur, .. } => self.report.predicted_dur = predicted_dur,
            _ => {}
        }
    }

    /// Reports a line of text.
    pub fn say(&mut self, text: &str) {
        self.tell(Event::Message { text: text.into() });
    }

    /// Reports a finding that does not prevent the migration.
    pub fn warn(&mut self, finding: &Finding) {
        self.report.findings.push(finding.clone());
        self.tell(Event::Warning {
            text: finding.to_string(),
        });
    }

    /// Starts a new report, because another attempt begins.
    pub fn forget(&mut self) {
        self.report = Report {
            side: self.report.side,
            started: self.report.started,
            ..Report::of(&self.report.container)
        };
    }

    /// Reports that a phase begins. Returns the counter of its bytes.
    pub fn begin(&mut self, phase: &'static str) -> Meter {
        self.meter = Meter::default();
        let meter = self.meter.clone();
        self.tell(Event::Began {
            phase,
            meter: meter.clone(),
        });
        meter
    }

    /// Reports that a phase has ended, which began at `since`.
    pub fn lap(&mut self, name: &'static str, since: Instant) {
        let done_bytes = std::mem::take(&mut self.meter).done_bytes();
        self.tell(Event::Ended(Lap {
            name,
            took_dur: since.elapsed(),
            bytes: (done_bytes > 0).then_some(done_bytes),
        }));
    }

    /// Reports that a phase has ended, which the other end has measured.
    pub fn lap_of(&mut self, name: &'static str, took_dur: Duration) {
        self.tell(Event::Ended(Lap {
            name,
            took_dur,
            bytes: None,
        }));
    }

    /// Returns the counter of the images' bytes that go over the network.
    #[must_use]
    pub fn sent(&self) -> &Arc<AtomicU64> {
        &self.sent
    }

    /// Returns the report up to now.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Returns the report, to add facts that no event has.
    pub fn report_mut(&mut self) -> &mut Report {
        &mut self.report
    }

    /// Returns the time since the beginning.
    #[must_use]
    pub fn total_dur(&self) -> Duration {
        self.began.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Debug, Default, Clone)]
    struct Seen(Arc<Mutex<Vec<String>>>);

    impl Observer for Seen {
        fn on(&mut self, container: &str, event: &Event) {
            let json = serde_json::to_string(event).unwrap();
            let line = event.line().map(|line| format!("{container}: {line}"));
            let mut seen = self.0.lock().unwrap();
            seen.push(line.unwrap_or_default());
            seen.push(json);
        }
    }

    #[test]
    fn events_are_shown_and_kept() {
        let seen = Seen::default();
        let mut progress = Progress::new(Box::new(seen.clone()), Report::of("web"));
        let meter = progress.begin("dump");
        meter.add(300);
        progress.tell(Event::Ended(Lap {
            name: "dump",
            took_dur: Duration::from_micros(12_345),
            bytes: Some(300),
        }));
        progress.lap_of("restore", Duration::from_millis(1234));
        progress.say("done");
        assert_eq!(
            *seen.0.lock().unwrap(),
            [
                "",
                r#"{"event":"began","phase":"dump"}"#,
                "web: dump            12.3 ms  300 B",
                r#"{"event":"ended","phase":"dump","tookMs":12.345,"bytes":300}"#,
                "web: restore       1234.0 ms",
                r#"{"event":"ended","phase":"restore","tookMs":1234.0}"#,
                "web: done",
                r#"{"event":"message","text":"done"}"#,
            ]
        );
        assert_eq!(progress.report().phases.len(), 2);
    }

    #[test]
    fn a_phase_without_bytes_has_none() {
        let mut progress = Progress::new(Box::new(()), Report::of("web"));
        progress.begin("ship").add(7);
        progress.lap("ship", Instant::now());
        progress.lap("fence", Instant::now());
        let counts: Vec<_> = progress
            .report()
            .phases
            .iter()
            .map(|lap| lap.bytes)
            .collect();
        assert_eq!(counts, [Some(7), None]);
    }
}
