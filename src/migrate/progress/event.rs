//! What there is to see of a migration.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::Meter;
use crate::migrate::method::precopy::{Forecast, Limits, Reason};
use crate::text::{bytes, milliseconds};

/// Something that has happened. As JSON it is an object with `event` and the fields of the variant; durations are milliseconds.
#[derive(Debug, Clone, Serialize)]
#[serde(
    tag = "event",
    rename_all = "kebab-case",
    rename_all_fields = "camelCase"
)]
pub enum Event {
    /// A receiver waits for a source.
    Listening {
        /// Where.
        address: SocketAddr,
    },
    /// A phase begins.
    Began {
        /// Its name.
        phase: &'static str,
        /// Its bytes. Phases that move none leave it at 0.
        #[serde(skip)]
        meter: Meter,
    },
    /// A phase has ended.
    Ended(Lap),
    /// A round of pre-copy has ended.
    Round(Round),
    /// A pass over the root file system has ended, where it is copied.
    Tree(TreePass),
    /// No more rounds: the container is frozen next.
    Freezing {
        /// How many rounds there were.
        rounds: u32,
        /// The expected downtime.
        #[serde(rename = "predictedMs", serialize_with = "optional_ms")]
        predicted_dur: Option<Duration>,
        /// `--downtime-limit`.
        #[serde(rename = "limitMs", serialize_with = "ms")]
        limit_dur: Duration,
        /// Why not another round.
        reason: &'static str,
    },
    /// Nothing is wrong yet, but somebody should know.
    Warning {
        /// One line.
        text: String,
    },
    /// Anything else.
    Message {
        /// One line.
        text: String,
    },
}

/// A phase that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Lap {
    /// Its name.
    #[serde(rename = "phase")]
    pub name: &'static str,
    /// How long it took.
    #[serde(rename = "tookMs", serialize_with = "ms")]
    pub took_dur: Duration,
    /// How many bytes it moved, if that is what it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// A round of pre-copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Round {
    /// From 0.
    pub number: u32,
    /// Until the destination had verified it.
    #[serde(rename = "tookMs", serialize_with = "ms")]
    pub took_dur: Duration,
    /// How long the container stood still in it.
    #[serde(rename = "stoppedMs", serialize_with = "ms")]
    pub stopped_dur: Duration,
    /// The memory that was copied, in pages of 4 KiB.
    pub pages: u64,
    /// The same in bytes.
    pub written_bytes: u64,
    /// The memory that had not changed since the round before.
    pub unchanged_bytes: u64,
    /// The size of its images.
    pub images_bytes: u64,
    /// What has changed since, as far as that can be told.
    pub remaining_bytes: Option<u64>,
    /// The downtime of a freeze right after it.
    #[serde(rename = "predictedMs", serialize_with = "optional_ms")]
    pub predicted_dur: Option<Duration>,
}

/// A pass over the root file system: everything at first, then what has changed since the pass before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TreePass {
    /// Until the destination had it on its disk; of the last pass, until it was sent.
    #[serde(rename = "tookMs", serialize_with = "ms")]
    pub took_dur: Duration,
    /// The container stood still: the last one.
    pub frozen: bool,
    /// Files and directories that were sent, also those of which only the attributes changed.
    pub entries: u64,
    /// Those that were removed, each with everything inside it.
    pub deletions: u64,
    /// What of their contents was sent.
    pub content_bytes: u64,
    /// What went over the network.
    pub sent_bytes: u64,
}

impl Event {
    /// Why the rounds end.
    #[must_use]
    pub fn freezing(
        rounds: u32,
        forecast: Option<Forecast>,
        limits: &Limits,
        reason: Reason,
    ) -> Self {
        Self::Freezing {
            rounds,
            predicted_dur: forecast.map(|forecast| forecast.downtime_dur()),
            limit_dur: limits.downtime_limit_dur,
            reason: match reason {
                Reason::LimitMet => "that is within the limit",
                Reason::NotShrinking => "the rounds no longer shrink",
                Reason::FixedCosts => "more rounds would not shorten it",
                Reason::MaxRounds => "no more rounds are allowed",
            },
        }
    }

    /// As a line for people; `None` where the end of a phase says it too.
    #[must_use]
    pub fn line(&self) -> Option<String> {
        Some(match self {
            Self::Listening { address } => format!("waiting on {address}"),
            Self::Began { .. } => return None,
            Self::Ended(lap) => {
                let took = milliseconds(lap.took_dur);
                let moved = lap.bytes.map_or(String::new(), |count| {
                    format!("  {}{}", bytes(count), rate(count, lap.took_dur))
                });
                format!("{:<10} {took:>12}{moved}", lap.name)
            }
            Self::Round(round) => round.line(),
            Self::Tree(pass) => pass.line(),
            Self::Freezing {
                rounds,
                predicted_dur,
                limit_dur,
                reason,
            } => {
                let predicted = predicted_dur.map_or_else(|| "unknown".into(), milliseconds);
                format!(
                    "freezing after {rounds} rounds: predicted downtime {predicted}, limit {}; {reason}",
                    milliseconds(*limit_dur)
                )
            }
            Self::Warning { text } => format!("warning: {text}"),
            Self::Message { text } => text.clone(),
        })
    }
}

impl Round {
    fn line(&self) -> String {
        let predicted = self.predicted_dur.zip(self.remaining_bytes).map_or(
            String::new(),
            |(predicted_dur, remaining_bytes)| {
                format!(
                    "; {} left, a freeze now would take {}",
                    bytes(remaining_bytes),
                    milliseconds(predicted_dur)
                )
            },
        );
        format!(
            "{:<10} {:>12}  {} copied, {} unchanged, stopped for {}{predicted}",
            format!("round {}", self.number),
            milliseconds(self.took_dur),
            bytes(self.written_bytes),
            bytes(self.unchanged_bytes),
            milliseconds(self.stopped_dur),
        )
    }
}

impl TreePass {
    fn line(&self) -> String {
        let deleted = match self.deletions {
            0 => String::new(),
            count => format!(", {count} removed"),
        };
        format!(
            "{:<10} {:>12}  {} in {} files{deleted}, {} sent",
            "tree",
            milliseconds(self.took_dur),
            bytes(self.content_bytes),
            self.entries,
            bytes(self.sent_bytes),
        )
    }
}

/// ", 1.2 MiB/s", where it says something.
fn rate(count: u64, took_dur: Duration) -> String {
    match bytes_per_second(count, took_dur) {
        Some(rate) if count >= 1 << 20 => format!(", {}/s", bytes(rate)),
        _ => String::new(),
    }
}

/// `None` for no time at all.
#[must_use]
pub fn bytes_per_second(count: u64, took_dur: Duration) -> Option<u64> {
    let seconds = took_dur.as_secs_f64();
    (seconds > 0.0).then(|| (count as f64 / seconds) as u64)
}

/// Milliseconds with three decimals, for `serde`.
pub(in crate::migrate) fn ms<S: Serializer>(
    dur: &Duration,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(dur.as_micros() as f64 / 1e3)
}

/// The same, or null.
pub(in crate::migrate) fn optional_ms<S: Serializer>(
    dur: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match dur {
        Some(dur) => ms(dur, serializer),
        None => serializer.serialize_none(),
    }
}
