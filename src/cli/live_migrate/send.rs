//! The source.

use std::io::stderr;
use std::path::Path;

use anyhow::{Context, bail};

use super::{Args, SETTLE_LIMIT_DUR, look_around, refuse_if_open};
use crate::cli::Globals;
use crate::migrate::address::Destination;
use crate::migrate::journal::Lock;
use crate::migrate::preamble::Severity;
use crate::migrate::preflight::survey;
use crate::migrate::progress::Progress;
use crate::migrate::protocol::MigrationId;
use crate::migrate::rendezvous::random;
use crate::migrate::source::{self, Plan};
use crate::migrate::workload::{RunningContainer, preamble};
use crate::runtime::container::Status;
use crate::sys::interrupt::Interrupt;

pub fn send(
    globals: &Globals,
    args: &Args,
    destination: Destination,
    image_path: &Path,
) -> anyhow::Result<i32> {
    let container = globals.load(&args.id)?;
    let _lock = Lock::take(&globals.root, &args.id)?;
    refuse_if_open(globals, &args.id)?;
    match container.status() {
        Status::Running => {}
        Status::Paused => bail!(
            "container {:?} is paused: `rcm resume {}` first",
            args.id,
            args.id
        ),
        status => bail!(
            "container {:?} is {status}, and only a running one moves",
            args.id
        ),
    }
    let (criu, facts) = look_around(globals)?;
    let (pre_copy, why_not) = args.mode.choose(&criu, &facts)?;
    let choices = args.criu.choices();
    let spec = container.spec()?;
    let survey = survey(&container, &spec, &choices, image_path);
    let migration = MigrationId::new(random()?);
    let plan = Plan {
        root: globals.root.clone(),
        destination,
        trust: args.trust.trust()?,
        image_path: image_path.to_path_buf(),
        preamble: preamble(
            &container,
            migration,
            facts,
            image_path,
            &choices,
            &spec,
            survey.observed,
        ),
        findings: survey.findings,
        pre_copy,
        streams: args.streaming.streams(),
        sending: args.streaming.settings(),
        freeze_limit_dur: args.timeout,
        settle_limit_dur: SETTLE_LIMIT_DUR,
    };
    let interrupt = Interrupt::install().context("cannot catch signals")?;
    if args.mode.dry_run {
        return dry_run(&plan, &interrupt);
    }
    let mut progress = Progress::new(stderr(), &args.id);
    if let Some(why_not) = why_not {
        progress.say(why_not);
    }
    let workload = RunningContainer {
        criu,
        container,
        choices,
        work_path: args.criu.work_path(globals, &args.id)?,
        auto_dedup: args.mode.auto_dedup,
        ghost_limit_bytes: survey.ghost_limit_bytes,
    };
    source::migrate(&plan, workload, &mut progress, Some(&interrupt))?;
    Ok(0)
}

/// Says what speaks against the migration, each finding on a line of stdout: 0 where it would begin, 1 where not.
fn dry_run(plan: &Plan, interrupt: &Interrupt) -> anyhow::Result<i32> {
    let asked = source::preflight(plan, Some(interrupt));
    // A destination that cannot be asked is no reason to keep back what this end knows.
    let findings = asked.as_ref().unwrap_or(&plan.findings);
    let mut errors = 0;
    for finding in findings {
        let weight = match finding.severity {
            Severity::Error => {
                errors += 1;
                "error"
            }
            Severity::Warning => "warning",
        };
        println!("{weight}: {finding}");
    }
    asked?;
    let (container, destination) = (&plan.preamble.container, &plan.destination);
    match errors {
        0 => println!("container {container} can be moved to {destination}"),
        _ => println!("container {container} cannot be moved to {destination}: {errors} errors"),
    }
    Ok(i32::from(errors > 0))
}
