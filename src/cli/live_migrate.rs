use std::time::Duration;

use anyhow::bail;

use super::Globals;
use crate::criu::{self, Criu, Features, Version};
use crate::engines::detect;
use crate::migrate::destination::DestinationError;
use crate::migrate::link::ssh_helper;
use crate::migrate::ops::cancel::CancelError;
use crate::migrate::ops::local_test::LocalTestError;
use crate::migrate::ops::resolve::ResolveError;
use crate::migrate::preflight::facts;
use crate::migrate::record::journal;
use crate::migrate::record::paths;
use crate::migrate::source::Failure;
use crate::migrate::wire::facts::Facts;
use crate::migrate::wire::id::Side;
use crate::migrate::wire::protocol::ANY;
use crate::runtime::container::validate_id;

mod args;
mod mode;
mod receive;
mod send;
mod serve;
mod settle;
mod show;
mod streaming;

pub use args::Args;

use receive::receive;
use send::{send, test_locally};
use serve::serve;
use settle::{cancel, settle, status};

/// The name of the command.
pub const VERB: &str = "live-migrate";
/// The container is not known to run anywhere; the message names the command that settles it.
const NOT_SETTLED: i32 = 3;
/// Wrong usage, found by the parser or after it.
pub const USAGE: u8 = 2;
/// How long the source waits for the destination's word before it leaves the matter to `--resolve`.
const SETTLE_LIMIT_DUR: Duration = Duration::from_secs(60);
/// How long a receiver that has given up stays for a source that does not know it.
const LINGER_DUR: Duration = Duration::from_secs(20);
/// How long a receiver waits for the source to confirm before it does so beside its other work.
const PROMPT_DUR: Duration = Duration::from_secs(2);

/// The exit status of a failure, where it is not that of a container that runs on at the source.
pub fn failure_status(error: &anyhow::Error) -> Option<u8> {
    let unsettled = matches!(
        error.downcast_ref(),
        Some(
            Failure::NotSettled { .. }
                | Failure::Held { .. }
                | Failure::Stands { .. }
                | Failure::Remains { .. }
        )
    ) || matches!(
        error.downcast_ref(),
        Some(DestinationError::NotStarted { .. })
    ) || matches!(error.downcast_ref(), Some(LocalTestError::Stands { .. }))
        || matches!(
            error.downcast_ref(),
            Some(
                CancelError::Moved { .. }
                    | CancelError::Arrived { .. }
                    | CancelError::NotSettled { .. }
            )
        )
        || matches!(
            error.downcast_ref(),
            Some(
                ResolveError::NoAnswer { .. }
                    | ResolveError::Trust(_)
                    | ResolveError::NotYet { .. }
                    | ResolveError::NotRestored { .. }
                    | ResolveError::Runtime(crate::runtime::Error::CriuAtWork { .. })
            )
        );
    unsettled.then_some(NOT_SETTLED as u8)
}

pub fn run(globals: &Globals, mut args: Args) -> anyhow::Result<i32> {
    validate_id(&args.id)?;
    let engines = engine_of(globals, &args)?.map(|found| {
        args.id = found.id;
        Globals {
            root: found.root,
            ..globals.clone()
        }
    });
    let globals = engines.as_ref().unwrap_or(globals);
    if args.status {
        return status(globals, &args.id, args.output.json());
    }
    if args.resolve {
        return settle(globals, &args);
    }
    if args.cancel {
        return cancel(globals, &args.id);
    }
    if args.relay {
        ssh_helper::run(&globals.root, &args.id)?;
        return Ok(0);
    }
    let Some(image_path) = &args.image_path else {
        bail!("--image-path is missing");
    };
    let image_path = super::absolute(image_path.clone());
    if !image_path.is_dir() {
        bail!(
            "{} is not a directory: --image-path names one, best one that both hosts share",
            image_path.display()
        );
    }
    if args.local_test {
        return test_locally(globals, &args, &image_path);
    }
    match &args.destination {
        Some(destination) => send(globals, &args, destination.clone(), &image_path),
        None if args.id == ANY => serve(globals, &args, &image_path),
        None => receive(globals, &args, &image_path),
    }
}

/// Where a container that this host has, or had, is not known by this name: the engine that knows it. With `--root` nobody is asked.
fn engine_of(globals: &Globals, args: &Args) -> anyhow::Result<Option<detect::Found>> {
    let (root, id) = (&globals.root, &args.id);
    let receives = args.destination.is_none()
        && !(args.local_test || args.status || args.resolve || args.cancel);
    let is_known =
        || root.join(id).exists() || matches!(journal::read(root, id), Ok(Some(_)) | Err(_));
    if receives || globals.root_given || is_known() {
        return Ok(None);
    }
    let journals = !(args.destination.is_some() || args.local_test);
    Ok(detect::find(root, id, |root| match journals {
        true => paths::names(root),
        false => Vec::new(),
    })?)
}

/// CRIU, or why there is none that can be used, and this host as it concerns a migration.
fn look_around(globals: &Globals) -> anyhow::Result<(Result<Criu, criu::Error>, Facts)> {
    let found = Criu::find(globals.criu.as_deref()).and_then(|criu| {
        let features = criu.features()?;
        Ok((criu, features))
    });
    let (criu, features) = match found {
        Ok((criu, features)) => (Ok(criu), features),
        Err(error) => (Err(error), Features::default()),
    };
    let names = [
        ("mem_track", features.memory_tracking),
        ("lazy_pages", features.lazy_pages),
    ];
    let features = names
        .into_iter()
        .filter(|(_, has)| *has)
        .map(|(name, _)| name.to_owned())
        .collect();
    let version = criu.as_ref().map_or(0, |criu| criu_number(criu.version()));
    Ok((criu, facts::gather(version, features)?))
}

/// As a preamble has it.
const fn criu_number(version: Version) -> u32 {
    version.major * 10_000 + version.minor * 100 + version.sublevel
}

/// A container whose last migration is open is not this host's to move, nor to let run: it may run at the destination.
pub fn refuse_if_open(globals: &Globals, id: &str) -> anyhow::Result<()> {
    match journal::read_side(&globals.root, id, Side::Source)? {
        Some(record) if !record.phase.is_final() && !record.phase.may_roll_back() => bail!(
            "the last migration of container {id:?} is not settled: `rcm live-migrate {id} --resolve` settles it"
        ),
        _ => Ok(()),
    }
}
