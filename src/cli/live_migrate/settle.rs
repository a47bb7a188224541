//! `--status`, `--resolve` and `--cancel`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{anyhow, bail};
use chrono::{DateTime, Utc};
use serde::Serialize;

use super::Args;
use super::show::lines;
use crate::cli::{Globals, absolute};
use crate::migrate::ops::answer;
use crate::migrate::ops::cancel::{self, Ended};
use crate::migrate::ops::resolve::{Means, Resolution, resolve};
use crate::migrate::record::journal::{self, JournalRecord};
use crate::migrate::record::lock::Lock;
use crate::migrate::wire::id::{MigrationId, Side};
use crate::migrate::wire::protocol::ANY;
use crate::migrate::wire::state::Phase;
use crate::runtime::{Container, Status};
use crate::sys::interrupt::Interrupt;
use crate::sys::process::become_subreaper;

/// How long `--resolve` at a destination waits for the source to ask.
const TELL_DUR: Duration = Duration::from_secs(60);

/// What `--status --json` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Known<'a> {
    container: &'a str,
    side: Side,
    migration: MigrationId,
    peer: &'a str,
    phase: Phase,
    started: &'a DateTime<Utc>,
    updated: &'a DateTime<Utc>,
    /// Whether an rcm is at it.
    in_progress: bool,
    /// Whether nothing is left to do.
    settled: bool,
    reason: Option<&'a str>,
    /// What the container is on this host, if it is known here.
    status: Option<Status>,
}

pub fn status(globals: &Globals, id: &str, json: bool) -> anyhow::Result<i32> {
    let Some(record) = journal::read(&globals.root, id)? else {
        bail!("no migration of container {id:?} is known on this host");
    };
    let container = Container::load(&globals.root, id);
    let status = container.ok().map(|container| container.status());
    if json {
        lines::print(&Known {
            container: &record.container,
            side: record.side,
            migration: record.migration,
            peer: &record.peer,
            phase: record.phase,
            started: &record.started,
            updated: &record.updated,
            in_progress: record.is_driven(),
            settled: record.phase.is_final(),
            reason: record.reason.as_deref(),
            status,
        });
        return Ok(0);
    }
    println!("{}", describe(&record));
    if let Some(status) = status {
        println!("container {id} is {status} here");
    }
    Ok(0)
}

fn describe(record: &JournalRecord) -> String {
    let JournalRecord {
        container,
        peer,
        updated,
        migration,
        ..
    } = record;
    let at = updated.format("%Y-%m-%dT%H:%M:%SZ");
    let how = match (record.side, record.phase) {
        (Side::Source, Phase::Done) => format!("moved to {peer} at {at}"),
        (Side::Destination, Phase::Done) => format!("came from {peer} at {at}"),
        (Side::Source, Phase::RolledBack) => {
            format!("was not moved to {peer} and stayed here at {at}")
        }
        (Side::Destination, Phase::RolledBack) => format!("did not come from {peer} at {at}"),
        (_, phase) if record.is_driven() => {
            format!("is being migrated ({peer}): {phase} since {at}")
        }
        (Side::Source, phase) if phase.may_roll_back() => {
            format!(
                "was left in the middle of a migration to {peer} ({phase} since {at}); --resolve rolls it back"
            )
        }
        (_, phase) => format!("is not settled ({peer}, {phase} since {at}); --resolve settles it"),
    };
    let reason = record
        .reason
        .as_ref()
        .map(|reason| format!(": {reason}"))
        .unwrap_or_default();
    format!("container {container} {how}{reason} (migration {migration})")
}

/// Returns when the migration has ended and nothing is left of it.
pub fn cancel(globals: &Globals, id: &str) -> anyhow::Result<i32> {
    match cancel::cancel(&globals.root, id)? {
        Ended::Migration(Side::Source) => println!("cancelled: container {id} runs on here"),
        Ended::Migration(Side::Destination) => {
            println!("cancelled: container {id} runs on at its source");
        }
        Ended::Receiver if id == ANY => println!("ended: nobody waits for containers any more"),
        Ended::Receiver => println!("ended: nobody waits for container {id} any more"),
    }
    Ok(0)
}

/// As for a migration: 0 moved, 1 the container is the source's, 3 still open.
///
/// A container that is restored gets its terminal to the console socket, if it is not to be the receiver's.
pub fn settle(globals: &Globals, args: &Args) -> anyhow::Result<i32> {
    let id = args.id.as_str();
    let path = |path: &Option<PathBuf>| path.clone().map(absolute);
    if let Err(errno) = become_subreaper() {
        tracing::warn!("cannot become a subreaper: {errno}");
    }
    let means = Means {
        criu: globals.criu.clone(),
        console_socket: path(&args.receiver.console_socket),
        store: path(&args.image_path),
        peer_is_lost: args.peer_lost,
    };
    let lock = Lock::take(&globals.root, id)?;
    let (text, status) = match resolve(&globals.root, id, &means, &lock)? {
        Resolution::Moved { peer } => (format!("container {id} runs at {peer}"), 0),
        Resolution::Arrived { peer } => (
            format!("container {id} came from {peer} and is this host's"),
            0,
        ),
        Resolution::Restored { peer } => (
            format!("container {id} came from {peer}, was restored from its images and runs here"),
            0,
        ),
        Resolution::RolledBack { side: Side::Source } => {
            (format!("container {id} was not moved and runs on here"), 1)
        }
        Resolution::RolledBack {
            side: Side::Destination,
        } => (
            format!("container {id} did not come here; it is the source's"),
            1,
        ),
    };
    println!("{text}");
    tell_source(globals, id);
    Ok(status)
}

/// Where the ends share no store, the source cannot know how it ended unless it is told.
fn tell_source(globals: &Globals, id: &str) {
    let record = match journal::read_side(&globals.root, id, Side::Destination) {
        Ok(Some(record)) if record.unanswered.is_some() => record,
        _ => return,
    };
    eprintln!(
        "the source may not know yet: `rcm live-migrate {id} --resolve` there finds out, within the next {} s",
        TELL_DUR.as_secs()
    );
    let interrupt = Interrupt::install().ok();
    let told = answer::answer(&globals.root, &record, TELL_DUR, interrupt.as_ref());
    let noted = match told {
        Ok(Some(true)) => journal::forget_receiver(&globals.root, record.migration, id)
            .map_err(anyhow::Error::from),
        Ok(_) => Err(anyhow!("it has not asked")),
        Err(error) => Err(error.into()),
    };
    if let Err(error) = noted {
        tracing::warn!(
            "the source of container {id} was not told: {error:#}; --resolve here again waits once more"
        );
    }
}
