//! How a migration went.

use std::time::Duration;

use super::Plan;
use crate::migrate::progress::{bytes, milliseconds};

/// How a migration went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// From the container's last instruction here to the arrival of the destination's word that it runs there.
    pub downtime_dur: Duration,
    /// From the command to the end.
    pub total_dur: Duration,
    /// The downtime that was predicted just before the freeze, by pre-copy.
    pub predicted_dur: Option<Duration>,
    /// How many rounds of memory were copied before the freeze.
    pub rounds: u32,
    /// The size of their images.
    pub rounds_bytes: u64,
    /// The size of the images that were written after the freeze.
    pub images_bytes: u64,
}

impl Report {
    pub(super) fn summary(&self, plan: &Plan) -> String {
        let predicted = self.predicted_dur.map_or(String::new(), |predicted_dur| {
            format!(" (predicted {})", milliseconds(predicted_dur))
        });
        let before = match self.rounds {
            0 => String::new(),
            rounds => format!(
                " after {} in {rounds} rounds while it ran",
                bytes(self.rounds_bytes)
            ),
        };
        format!(
            "moved to {}: downtime {}{predicted}, total {}, images {}{before}",
            plan.destination,
            milliseconds(self.downtime_dur),
            milliseconds(self.total_dur),
            bytes(self.images_bytes)
        )
    }
}
