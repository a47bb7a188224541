//! Sends a container.

use std::path::Path;

use anyhow::Context;

use super::{Args, Failed, Result};
use crate::cli::Globals;
use crate::migrate::limits::SETTLE_LIMIT_DUR;
use crate::migrate::link::address::Destination;
use crate::migrate::ops::{self, Aim, SendRequest, Sent, TestRequest};
use crate::migrate::progress::Progress;
use crate::migrate::progress::report::Outcome;
use crate::migrate::wire::finding::Finding;
use crate::migrate::wire::finding::Severity;
use crate::migrate::wire::id::Side;
use crate::sys::interrupt::Interrupt;

pub fn send(
    globals: &Globals,
    args: &Args,
    destination: Destination,
    image_path: &Path,
) -> Result<i32> {
    let request = SendRequest {
        root: globals.root.clone(),
        container: args.id.clone(),
        destination,
        image_path: image_path.to_path_buf(),
        trust: args.trust.settings(),
        criu: args.criu.settings(globals),
        aim: args.mode.aim(),
        method: args.mode.method(),
        auto_dedup: args.mode.auto_dedup,
        rootfs: args.streaming.rootfs(),
        streams: args.streaming.streams(),
        sending: args.streaming.settings(),
        freeze_limit_dur: args.timeout,
        settle_limit_dur: SETTLE_LIMIT_DUR,
    };
    let mut progress = args.output.begin(&args.id, Side::Source);
    let sent = try_send(&request, args, &mut progress);
    let succeeded = match request.aim {
        Aim::Move => Outcome::Moved,
        Aim::Rehearse | Aim::Ask => Outcome::WouldMove,
    };
    args.output.end(progress, succeeded, sent.as_ref().copied());
    sent
}

fn try_send(request: &SendRequest, args: &Args, progress: &mut Progress) -> Result<i32> {
    args.output.check()?;
    let interrupt = Interrupt::install().context("cannot catch signals")?;
    let sent = ops::send(request, progress, Some(&interrupt));
    let errors = match request.aim {
        Aim::Ask => print_and_count(&progress.report().findings, args.output.json()),
        _ => 0,
    };
    if let Sent::Asked(_) = sent.map_err(Failed::at_source)? {
        let (container, destination) = (&request.container, &request.destination);
        let verdict = match errors {
            0 => format!("container {container} can be moved to {destination}"),
            _ => format!("container {container} cannot be moved to {destination}: {errors} errors"),
        };
        if !args.output.json() {
            println!("{verdict}");
        }
    }
    Ok(i32::from(errors > 0))
}

/// Prints each finding as a line on stdout, unless `quiet`: then the report has them. Returns the
/// number of errors.
fn print_and_count(findings: &[Finding], quiet: bool) -> usize {
    let mut errors = 0;
    for finding in findings {
        let weight = match finding.severity {
            Severity::Error => {
                errors += 1;
                "error"
            }
            Severity::Warning => "warning",
        };
        if !quiet {
            println!("{weight}: {finding}");
        }
    }
    errors
}

/// Dumps the container and restores a copy that never runs, on this host.
pub fn test_locally(globals: &Globals, args: &Args, image_path: &Path) -> Result<i32> {
    let request = TestRequest {
        root: globals.root.clone(),
        container: args.id.clone(),
        image_path: image_path.to_path_buf(),
        criu: args.criu.settings(globals),
        freeze_limit_dur: args.timeout,
    };
    let mut progress = args.output.begin(&args.id, Side::Source);
    let tested = try_locally(&request, args, &mut progress).map(|()| 0);
    args.output
        .end(progress, Outcome::WouldMove, tested.as_ref().copied());
    tested
}

fn try_locally(request: &TestRequest, args: &Args, progress: &mut Progress) -> Result<()> {
    args.output.check()?;
    // The test is short and has no commit: signals are only deferred, so that they cannot end it in
    // the middle.
    let _interrupt = Interrupt::install().context("cannot catch signals")?;
    ops::local_test(request, progress).map_err(Failed::at_source)
}
