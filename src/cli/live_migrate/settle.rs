//! `--status`, `--resolve` and `--cancel`.

use std::path::{Path, PathBuf};

use super::show::lines;
use super::{Args, Failed, NOT_SETTLED, Result};
use crate::cli::{Globals, absolute};
use crate::error::chain;
use crate::migrate::fate::Fate;
use crate::migrate::limits::TELL_LIMIT_DUR;
use crate::migrate::ops::{self, Ended, Means, MigrationStatus, Resolution, ResolveRequest};
use crate::migrate::wire::id::Side;
use crate::migrate::wire::protocol::ANY;
use crate::migrate::wire::state::Phase;
use crate::sys::interrupt::Interrupt;

pub fn status(globals: &Globals, id: &str, json: bool) -> Result<i32> {
    let known = ops::status(&globals.root, id).map_err(Failed::at_source)?;
    if json {
        lines::print(&known);
        return Ok(0);
    }
    println!("{}", describe(&known));
    if let Some(status) = known.status {
        println!("container {id} is {status} here");
    }
    Ok(0)
}

fn describe(known: &MigrationStatus) -> String {
    let MigrationStatus {
        container,
        peer,
        updated,
        migration,
        ..
    } = known;
    let at = updated.format("%Y-%m-%dT%H:%M:%SZ");
    let how = match (known.side, known.phase) {
        (Side::Source, Phase::Done) => format!("moved to {peer} at {at}"),
        (Side::Destination, Phase::Done) => format!("came from {peer} at {at}"),
        (Side::Source, Phase::RolledBack) => {
            format!("was not moved to {peer} and stayed here at {at}")
        }
        (Side::Destination, Phase::RolledBack) => format!("did not come from {peer} at {at}"),
        (_, phase) if known.in_progress => {
            format!("is being migrated ({peer}): {phase} since {at}")
        }
        (Side::Source, phase) if phase.may_roll_back() => {
            format!(
                "was left in an unfinished migration to {peer} ({phase} since {at}); --resolve rolls it back"
            )
        }
        (_, Phase::Resuming) => format!(
            "came from {peer} and may have run here (resuming since {at}); --resolve tells whether it runs, and never starts it again"
        ),
        (_, phase) => format!("is not settled ({peer}, {phase} since {at}); --resolve settles it"),
    };
    let reason = known
        .reason
        .as_ref()
        .map(|reason| format!(": {reason}"))
        .unwrap_or_default();
    format!("container {container} {how}{reason} (migration {migration})")
}

/// Cancels the migration. Returns after its end, when nothing of it is left.
pub fn cancel(globals: &Globals, id: &str) -> Result<i32> {
    // If the container runs at either end, it is too late to cancel: only "as before" counts as
    // settled.
    let ended =
        ops::cancel(&globals.root, id).map_err(|error| Failed::of(error, Fate::AsBefore))?;
    match ended {
        Ended::Migration(Side::Source) => println!("cancelled: container {id} runs on here"),
        Ended::Migration(Side::Destination) => {
            println!("cancelled: container {id} runs on at its source");
        }
        Ended::Receiver if id == ANY => {
            println!("cancelled: no receiver waits for containers any more")
        }
        Ended::Receiver => println!("cancelled: no receiver waits for container {id} any more"),
    }
    Ok(0)
}

/// What the operator has to decide, and how.
fn may_have_run(id: &str, peer: &str, images: &Path, command: &str) -> String {
    let images = images.display();
    format!(
        "container {id} came from {peer} and may have run here, but does not run now. rcm does not start it again: it could do the same work twice. Its images are kept.
to run it from its images: rcm delete --force {id}; {command}
to accept that it has ended: rm -r {images}/[0-9]*
afterwards: rcm live-migrate {id} --resolve"
    )
}

/// The sentence for the operator, and the exit status.
fn outcome(id: &str, resolution: &Resolution) -> (String, i32) {
    match resolution {
        Resolution::Moved { peer } => (format!("container {id} runs at {peer}"), 0),
        Resolution::Arrived { peer } => (
            format!("container {id} came from {peer} and belongs to this host"),
            0,
        ),
        Resolution::Restored { peer } => (
            format!("container {id} came from {peer}, was restored from its images and runs here"),
            0,
        ),
        Resolution::MayHaveRun {
            peer,
            images,
            command,
        } => (
            may_have_run(id, peer, images, command),
            i32::from(NOT_SETTLED),
        ),
        Resolution::RolledBack { side: Side::Source } => {
            (format!("container {id} was not moved and runs on here"), 1)
        }
        Resolution::RolledBack {
            side: Side::Destination,
        } => (
            format!("container {id} did not come here; it belongs to the source"),
            1,
        ),
    }
}

/// Finishes a migration or rolls it back. The exit statuses are those of a migration: 0 moved, 1
/// the container belongs to the source, 3 still open.
///
/// If the container is restored, its terminal goes to `--console-socket`, else to the one of the
/// receiver.
pub fn settle(globals: &Globals, args: &Args) -> Result<i32> {
    let id = args.id.as_str();
    let path = |path: &Option<PathBuf>| path.clone().map(absolute);
    let request = ResolveRequest {
        root: globals.root.clone(),
        container: id.to_owned(),
        means: Means {
            criu: globals.criu.clone(),
            console_socket: path(&args.receiver.console_socket),
            store: path(&args.image_path),
            peer_is_lost: args.peer_lost,
        },
    };
    let resolved = ops::resolve(&request).map_err(|error| Failed::of(error, Fate::AsBefore))?;
    let (text, status) = outcome(id, &resolved.resolution);
    println!("{text}");
    if resolved.is_unanswered() {
        let is_settled = !matches!(resolved.resolution, Resolution::MayHaveRun { .. });
        let limit_s = TELL_LIMIT_DUR.as_secs();
        if is_settled {
            eprintln!(
                "the source may not know yet: run `rcm live-migrate {id} --resolve` there within {limit_s} s"
            );
        } else {
            eprintln!(
                "a source that asks within the next {limit_s} s hears that this host has the container"
            );
        }
        let interrupt = Interrupt::install().ok();
        if let Err(error) = resolved.answer_source(TELL_LIMIT_DUR, interrupt.as_ref())
            && is_settled
        {
            tracing::warn!(
                "the source of container {id} was not told: {}; run --resolve here again to wait once more",
                chain(&error)
            );
        }
    }
    Ok(status)
}
