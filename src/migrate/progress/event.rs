//! Events of a migration.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::Meter;
use crate::migrate::method::precopy::{Forecast, Limits, Reason};
use crate::text::{bytes, milliseconds};

/// An event. As JSON it is an object with `event` and the fields of the variant; durations are
/// milliseconds.
#[derive(Debug, Clone, Serialize)]
#[serde(
    tag = "event",
    rename_all = "kebab-case",
    rename_all_fields = "camelCase"
)]
pub enum Event {
    /// A receiver waits for a source.
    Listening {
        /// Address on which it listens.
        address: SocketAddr,
    },
    /// A phase begins.
    Began {
        /// Name of the phase.
        phase: &'static str,
        /// Counter of its bytes. Phases that move none leave it at 0.
        #[serde(skip)]
        meter: Meter,
    },
    /// A phase has ended.
    Ended(Lap),
    /// A round of pre-copy has ended.
    Round(RoundLap),
    /// A pass over the root file system has ended, if that is copied.
    Tree(TreePass),
    /// The rounds end: the container is frozen next.
    Freezing {
        /// Number of rounds.
        rounds: u32,
        /// Predicted downtime.
        #[serde(rename = "predictedMs", serialize_with = "optional_ms")]
        predicted_dur: Option<Duration>,
        /// Value of `--downtime-limit`.
        #[serde(rename = "limitMs", serialize_with = "ms")]
        limit_dur: Duration,
        /// Reason against another round.
        reason: &'static str,
    },
    /// A warning for the operator.
    Warning {
        /// One line of text.
        text: String,
    },
    /// Any other message.
    Message {
        /// One line of text.
        text: String,
    },
}

/// A phase that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Lap {
    /// Name of the phase.
    #[serde(rename = "phase")]
    pub name: &'static str,
    /// Duration of the phase.
    #[serde(rename = "tookMs", serialize_with = "ms")]
    pub took_dur: Duration,
    /// Number of bytes that it moved, if it moves any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// A round of pre-copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RoundLap {
    /// Number of the round, from 0.
    pub number: u32,
    /// Duration until the destination had verified it.
    #[serde(rename = "tookMs", serialize_with = "ms")]
    pub took_dur: Duration,
    /// Time for which the container was stopped in it.
    #[serde(rename = "stoppedMs", serialize_with = "ms")]
    pub stopped_dur: Duration,
    /// Memory that was copied, in pages of 4 KiB.
    pub pages: u64,
    /// Memory that was copied, in bytes.
    pub written_bytes: u64,
    /// Memory that had not changed since the round before.
    pub unchanged_bytes: u64,
    /// Size of its images.
    pub images_bytes: u64,
    /// Memory that has changed since, as far as that can be predicted.
    pub remaining_bytes: Option<u64>,
    /// Predicted downtime of a freeze right after it.
    #[serde(rename = "predictedMs", serialize_with = "optional_ms")]
    pub predicted_dur: Option<Duration>,
}

/// A pass over the root file system: the first sends everything, each later one the changes since
/// the pass before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TreePass {
    /// Duration until the destination had it on its disk; of the last pass, until it was sent.
    #[serde(rename = "tookMs", serialize_with = "ms")]
    pub took_dur: Duration,
    /// Whether the container was frozen, which it is in the last pass.
    pub frozen: bool,
    /// Number of files and directories that were sent, including those of which only attributes
    /// changed.
    pub entries: u64,
    /// Number of files and directories that were removed, each with everything inside it.
    pub deletions: u64,
    /// Bytes of contents that were sent.
    pub content_bytes: u64,
    /// Bytes that went over the network.
    pub sent_bytes: u64,
}

impl Event {
    /// Returns the event that the rounds end, with the reason.
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

    /// Returns the event as a line for people. `None` if the end of a phase gives the same
    /// information.
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

impl RoundLap {
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

/// Returns ", 1.2 MiB/s", or nothing if too few bytes were moved for a rate.
fn rate(count: u64, took_dur: Duration) -> String {
    match bytes_per_second(count, took_dur) {
        Some(rate) if count >= 1 << 20 => format!(", {}/s", bytes(rate)),
        _ => String::new(),
    }
}

/// Returns the rate; `None` if no time has passed.
#[must_use]
pub fn bytes_per_second(count: u64, took_dur: Duration) -> Option<u64> {
    let seconds = took_dur.as_secs_f64();
    (seconds > 0.0).then(|| (count as f64 / seconds) as u64)
}

/// Serializes milliseconds with three decimals.
pub(in crate::migrate) fn ms<S: Serializer>(
    dur: &Duration,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(dur.as_micros() as f64 / 1e3)
}

/// Serializes milliseconds, or null.
pub(in crate::migrate) fn optional_ms<S: Serializer>(
    dur: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match dur {
        Some(dur) => ms(dur, serializer),
        None => serializer.serialize_none(),
    }
}
