//! The source.

use std::path::Path;

use anyhow::{Context, bail};

use super::{Args, SETTLE_LIMIT_DUR, look_around, refuse_if_open};
use crate::cli::Globals;
use crate::error::chain;
use crate::migrate::agreement::lacking;
use crate::migrate::container::engine_bundle::Luggage;
use crate::migrate::container::outgoing::{RunningContainer, preamble};
use crate::migrate::link::address::Destination;
use crate::migrate::ops::local_test;
use crate::migrate::ops::resolve::tidy_up;
use crate::migrate::preflight::{self, offer, survey};
use crate::migrate::progress::Progress;
use crate::migrate::progress::report::Outcome;
use crate::migrate::record::boot_stamp;
use crate::migrate::record::journal;
use crate::migrate::record::lock::Lock;
use crate::migrate::source::{self, Plan};
use crate::migrate::transfer::rootfs::remove_nonce;
use crate::migrate::trust::rendezvous::random;
use crate::migrate::wire::finding::{Finding, Severity};
use crate::migrate::wire::id::{MigrationId, Side};
use crate::migrate::wire::preamble::Preamble;
use crate::runtime::container::{Container, Status};
use crate::sys::interrupt::Interrupt;

pub fn send(
    globals: &Globals,
    args: &Args,
    destination: Destination,
    image_path: &Path,
) -> anyhow::Result<i32> {
    let mut progress = args.output.begin(&args.id, Side::Source);
    let sent = try_send(globals, args, destination, image_path, &mut progress);
    let succeeded = match args.mode.dry_run || args.mode.rehearse {
        true => Outcome::WouldMove,
        false => Outcome::Moved,
    };
    args.output.end(progress, succeeded, sent.as_ref().copied());
    sent
}

fn try_send(
    globals: &Globals,
    args: &Args,
    destination: Destination,
    image_path: &Path,
    progress: &mut Progress,
) -> anyhow::Result<i32> {
    args.output.check()?;
    let (container, _lock) = claim(globals, &args.id)?;
    if let Some(last) = journal::read_side(&globals.root, &args.id, Side::Source)? {
        remove_nonce(container.rootfs(), last.migration);
    }
    let (criu, facts) = look_around(globals)?;
    let choices = args.criu.choices();
    let spec = container.spec()?;
    let mut survey = survey(&container, &spec, &choices);
    let (mut pre_copy, mut why_not, mut processor) = (None, None, Vec::new());
    match &criu {
        Ok(criu) => {
            (pre_copy, why_not) = args.mode.choose(criu, &facts)?;
            // Only the destination can say whether it matters that CRIU does not know this processor.
            processor = criu.processor(&globals.root).unwrap_or_default();
        }
        Err(error) => {
            survey
                .findings
                .push(Finding::error(Side::Source, chain(error), "then try again"))
        }
    }
    let migration = MigrationId::new(random()?);
    let luggage = Luggage::of(&container, &spec);
    let mut preamble = Preamble {
        rehearses: args.mode.rehearse,
        processor,
        rootfs_offer: offer(args.streaming.rootfs(), container.rootfs()),
        ..preamble(
            &container,
            migration,
            facts,
            image_path,
            &choices,
            &spec,
            survey.observed,
        )
    };
    if let Some(luggage) = &luggage {
        luggage.declare(&mut preamble);
        survey.findings.extend_from_slice(&luggage.findings);
    }
    let plan = Plan {
        root: globals.root.clone(),
        destination,
        trust: args.trust.trust()?,
        image_path: image_path.to_path_buf(),
        preamble,
        rootfs: container.rootfs().to_path_buf(),
        config: luggage.as_ref().map(Luggage::config),
        findings: survey.findings,
        pre_copy,
        streams: args.streaming.streams(),
        sending: args.streaming.settings(),
        freeze_limit_dur: args.timeout,
        settle_limit_dur: SETTLE_LIMIT_DUR,
    };
    let interrupt = Interrupt::install().context("cannot catch signals")?;
    if args.mode.dry_run {
        return dry_run(&plan, progress, args.output.json(), &interrupt);
    }
    let Ok(criu) = criu else {
        return Err(source::refusal(&plan, progress, Some(&interrupt)).into());
    };
    if let Some(why_not) = why_not {
        progress.say(why_not);
    }
    let workload = RunningContainer {
        criu,
        container,
        choices,
        work_path: args.criu.work_path(globals, &args.id)?,
        auto_dedup: args.mode.auto_dedup,
        answer_limit_dur: Some(args.timeout),
        ghost_limit_bytes: survey.ghost_limit_bytes,
    };
    match args.mode.rehearse {
        true => source::rehearse(&plan, workload, progress, Some(&interrupt))?,
        false => source::migrate(&plan, workload, progress, Some(&interrupt))?,
    }
    Ok(0)
}

/// The running container, and the right to migrate it.
fn claim(globals: &Globals, id: &str) -> anyhow::Result<(Container, Lock)> {
    let container = globals.load(id)?;
    let lock = Lock::take(&globals.root, id)?;
    refuse_if_open(globals, id)?;
    tidy_up(&globals.root, id, &lock)?;
    boot_stamp::keep(&globals.root, id)?;
    match container.status() {
        Status::Running => Ok((container, lock)),
        Status::Paused => bail!("container {id:?} is paused: `rcm resume {id}` first"),
        status => bail!("container {id:?} is {status}, and only a running one moves"),
    }
}

/// Dumps the container and restores a copy on this host, which does not get to run.
pub fn test_locally(globals: &Globals, args: &Args, image_path: &Path) -> anyhow::Result<i32> {
    let mut progress = args.output.begin(&args.id, Side::Source);
    let tested = try_locally(globals, args, image_path, &mut progress).map(|()| 0);
    args.output
        .end(progress, Outcome::WouldMove, tested.as_ref().copied());
    tested
}

fn try_locally(
    globals: &Globals,
    args: &Args,
    image_path: &Path,
    progress: &mut Progress,
) -> anyhow::Result<()> {
    args.output.check()?;
    let (container, _lock) = claim(globals, &args.id)?;
    let (criu, facts) = look_around(globals)?;
    let criu = criu?;
    let report = progress.report_mut();
    report.versions.note(Side::Source, &facts);
    let choices = args.criu.choices();
    let spec = container.spec()?;
    let mut survey = survey(&container, &spec, &choices);
    let (observed, room) = (&survey.observed, preflight::room(image_path));
    let lacking = lacking(Side::Source, observed, true, room, image_path);
    survey.findings.extend(lacking);
    let plan = local_test::Plan {
        root: globals.root.clone(),
        image_path: image_path.to_path_buf(),
        migration: MigrationId::new(random()?),
        findings: survey.findings,
    };
    let subject = RunningContainer {
        criu,
        container,
        choices,
        work_path: args.criu.work_path(globals, &args.id)?,
        auto_dedup: false,
        answer_limit_dur: Some(args.timeout),
        ghost_limit_bytes: survey.ghost_limit_bytes,
    };
    // It takes moments and is never committed: a signal only must not end it in the middle.
    let _interrupt = Interrupt::install().context("cannot catch signals")?;
    Ok(local_test::test(&plan, subject, &spec, progress)?)
}

/// Says what speaks against the migration, each finding on a line of stdout: 0 where it would begin, 1 where not. With `quiet` the report says it.
fn dry_run(
    plan: &Plan,
    progress: &mut Progress,
    quiet: bool,
    interrupt: &Interrupt,
) -> anyhow::Result<i32> {
    let asked = source::preflight(plan, progress, Some(interrupt));
    // A destination that cannot be asked is no reason to keep back what this end knows.
    let findings = asked.as_ref().unwrap_or(&plan.findings);
    progress.report_mut().findings.clone_from(findings);
    let say = |line: String| {
        if !quiet {
            println!("{line}");
        }
    };
    let mut errors = 0;
    for finding in findings {
        let weight = match finding.severity {
            Severity::Error => {
                errors += 1;
                "error"
            }
            Severity::Warning => "warning",
        };
        say(format!("{weight}: {finding}"));
    }
    asked?;
    let (container, destination) = (&plan.preamble.container, &plan.destination);
    match errors {
        0 => say(format!(
            "container {container} can be moved to {destination}"
        )),
        _ => say(format!(
            "container {container} cannot be moved to {destination}: {errors} errors"
        )),
    }
    Ok(i32::from(errors > 0))
}
