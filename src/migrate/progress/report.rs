//! Result of a migration for programs: the document of `--json` and `--report`. `docs/reference.md`
//! describes it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{Lap, RoundLap, TreePass, ms, optional_ms};
use crate::migrate::agreement::criu_version;
use crate::migrate::wire::facts::Facts;
use crate::migrate::wire::finding::Finding;
use crate::migrate::wire::id::{MigrationId, Side};
use crate::migrate::wire::rootfs::RootfsPlan;
use crate::sys::file::write_atomic;
use crate::text::{bytes, milliseconds};

/// Result for the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The container runs at the destination.
    Moved,
    /// The container still runs at the source.
    NotMoved,
    /// It is not known where the container runs; `error` names the command that settles it.
    NotSettled,
    /// The container still runs at the source, as it should: the check or the rehearsal has
    /// succeeded.
    WouldMove,
}

/// Versions of the software on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Software {
    /// Version of rcm.
    pub rcm: String,
    /// Version of CRIU.
    pub criu: String,
    /// Release of the kernel.
    pub kernel: String,
}

impl From<&Facts> for Software {
    fn from(facts: &Facts) -> Self {
        Self {
            rcm: facts.rcm_version.clone(),
            criu: criu_version(facts.criu_version),
            kernel: facts.kernel_release.clone(),
        }
    }
}

/// Versions on both hosts, as far as this one knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Versions {
    /// Versions on the source.
    pub source: Option<Software>,
    /// Versions on the destination.
    pub destination: Option<Software>,
}

impl Versions {
    /// Records the versions on the host `side`.
    pub fn note(&mut self, side: Side, facts: &Facts) {
        match side {
            Side::Source => self.source = Some(facts.into()),
            Side::Destination => self.destination = Some(facts.into()),
        }
    }
}

/// Parts of the time for which the container was frozen. A part that was not reached, or that this
/// end does not see, is null.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Freeze {
    /// Time to stop all processes.
    #[serde(rename = "freezeMs", serialize_with = "optional_ms")]
    pub freeze_dur: Option<Duration>,
    /// Time from then until CRIU had written the images.
    #[serde(rename = "dumpMs", serialize_with = "optional_ms")]
    pub dump_dur: Option<Duration>,
    /// Time until the destination had been told the digests of the images.
    #[serde(rename = "shipMs", serialize_with = "optional_ms")]
    pub ship_dur: Option<Duration>,
    /// Time in which the destination verified the images.
    #[serde(rename = "verifyMs", serialize_with = "optional_ms")]
    pub verify_dur: Option<Duration>,
    /// Time of the restore at the destination.
    #[serde(rename = "restoreMs", serialize_with = "optional_ms")]
    pub restore_dur: Option<Duration>,
    /// Time to fence the container at the source.
    #[serde(rename = "fenceMs", serialize_with = "optional_ms")]
    pub fence_dur: Option<Duration>,
    /// Time from the commit to the answer that the container runs, `resume_dur` included.
    #[serde(rename = "commitMs", serialize_with = "optional_ms")]
    pub commit_dur: Option<Duration>,
    /// Part of that at the destination.
    #[serde(rename = "resumeMs", serialize_with = "optional_ms")]
    pub resume_dur: Option<Duration>,
}

/// Result of a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Name of the container.
    pub container: String,
    /// The end that writes the report.
    pub side: Side,
    /// Result for the container.
    pub outcome: Outcome,
    /// Exit status of rcm, unless it is 128 and the number of a signal.
    pub exit_status: u8,
    /// Reason why the container was not moved, one line.
    pub error: Option<String>,
    /// Id of the migration; `None` if none has begun.
    pub migration: Option<MigrationId>,
    /// Address of the other end.
    pub peer: Option<String>,
    /// Time at which rcm began.
    pub started: DateTime<Utc>,
    /// Time since then.
    #[serde(rename = "totalMs", serialize_with = "ms")]
    pub total_dur: Duration,
    /// Time from the container's last instruction at the source to the arrival of the destination's
    /// answer that it runs there. For a rehearsal, the time for which the container was frozen.
    #[serde(rename = "downtimeMs", serialize_with = "optional_ms")]
    pub downtime_dur: Option<Duration>,
    /// Downtime that pre-copy predicted just before the freeze. For a rehearsal, the downtime
    /// predicted from it.
    #[serde(rename = "predictedMs", serialize_with = "optional_ms")]
    pub predicted_dur: Option<Duration>,
    /// Phases that have ended, in order.
    pub phases: Vec<Lap>,
    /// Rounds of pre-copy.
    pub rounds: Vec<RoundLap>,
    /// Plan for the root file system, with its reason; `None` before the decision.
    pub rootfs: Option<RootfsPlan>,
    /// Passes over the root file system, if it is copied.
    pub rootfs_passes: Vec<TreePass>,
    /// Size of the images that were written after the freeze.
    pub images_bytes: Option<u64>,
    /// Bytes of images that went over the network, after compression; 0 through a shared store.
    pub sent_bytes: u64,
    /// Parts of the downtime.
    pub freeze: Freeze,
    /// Findings against the migration. With an error among them it was refused.
    pub findings: Vec<Finding>,
    /// Versions of the software on the hosts.
    pub versions: Versions,
}

impl Report {
    /// Report before the first event of container `container`.
    #[must_use]
    pub fn of(container: &str) -> Self {
        Self {
            container: container.to_owned(),
            side: Side::Source,
            outcome: Outcome::NotMoved,
            exit_status: 1,
            error: None,
            migration: None,
            peer: None,
            started: Utc::now(),
            total_dur: Duration::ZERO,
            downtime_dur: None,
            predicted_dur: None,
            phases: Vec::new(),
            rounds: Vec::new(),
            rootfs: None,
            rootfs_passes: Vec::new(),
            images_bytes: None,
            sent_bytes: 0,
            freeze: Freeze::default(),
            findings: Vec::new(),
            versions: Versions::default(),
        }
    }

    /// Completes the report.
    pub fn close(&mut self, outcome: Outcome, exit_status: u8, total_dur: Duration) {
        self.outcome = outcome;
        self.exit_status = exit_status;
        self.total_dur = total_dur;
        let lap = |name| {
            let lap = self.phases.iter().find(|lap| lap.name == name);
            lap.map(|lap| lap.took_dur)
        };
        let freeze = &self.freeze;
        self.freeze = Freeze {
            ship_dur: lap("ship"),
            verify_dur: lap("verify"),
            restore_dur: lap("restore"),
            fence_dur: lap("fence"),
            commit_dur: lap("commit"),
            resume_dur: freeze.resume_dur.or_else(|| lap("resume")),
            ..freeze.clone()
        };
    }

    /// Writes the report, replacing the file `path`.
    ///
    /// # Errors
    /// [`ReportError`].
    pub fn write(&self, path: &Path) -> Result<(), ReportError> {
        serde_json::to_vec_pretty(self)
            .map_err(io::Error::from)
            .and_then(|mut text| {
                text.push(b'\n');
                write_atomic(path, &text, 0o644)
            })
            .map_err(|source| ReportError {
                path: path.to_path_buf(),
                source,
            })
    }

    /// Returns the sentence at the end of a migration that succeeded.
    pub(crate) fn summary(&self, total_dur: Duration) -> String {
        let predicted = self.predicted_dur.map_or(String::new(), |predicted_dur| {
            format!(" (predicted {})", milliseconds(predicted_dur))
        });
        let before = match self.rounds.as_slice() {
            [] => String::new(),
            rounds => format!(
                " after {} in {} rounds while it ran",
                bytes(rounds.iter().map(|round| round.images_bytes).sum()),
                rounds.len()
            ),
        };
        format!(
            "moved to {}: downtime {}{predicted}, total {}, images {}{before}",
            self.peer.as_deref().unwrap_or("the destination"),
            milliseconds(self.downtime_dur.unwrap_or_default()),
            milliseconds(total_dur),
            bytes(self.images_bytes.unwrap_or_default())
        )
    }
}

/// The report cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the report to {path} (--report)")]
#[non_exhaustive]
pub struct ReportError {
    /// Path of the report.
    pub path: PathBuf,
    /// Cause.
    #[source]
    pub source: io::Error,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_freeze_is_broken_down_by_phases() {
        let mut report = Report::of("web");
        let lap = |name, millis| Lap {
            name,
            took_dur: Duration::from_millis(millis),
            bytes: None,
        };
        report.phases = vec![lap("negotiate", 9), lap("ship", 2), lap("commit", 5)];
        report.freeze.dump_dur = Some(Duration::from_millis(20));
        report.freeze.resume_dur = Some(Duration::from_millis(3));
        report.close(Outcome::Moved, 0, Duration::from_millis(40));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["outcome"], "moved");
        assert_eq!(json["totalMs"], 40.0);
        assert_eq!(json["freeze"]["dumpMs"], 20.0);
        assert_eq!(json["freeze"]["shipMs"], 2.0);
        assert_eq!(json["freeze"]["commitMs"], 5.0);
        assert_eq!(json["freeze"]["resumeMs"], 3.0);
        assert!(json["freeze"]["verifyMs"].is_null());
    }

    #[test]
    fn a_report_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        Report::of("web").write(&path).unwrap();
        let mut report = Report::of("web");
        report.error = Some("no room".into());
        report.write(&path).unwrap();
        let json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(json["error"], "no room");
        assert!(report.write(&dir.path().join("no/report.json")).is_err());
    }
}
