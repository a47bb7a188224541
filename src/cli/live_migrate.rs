use std::path::PathBuf;

use anyhow::anyhow;

use super::{FAILED, Globals};
use crate::migrate::fate::{Fate, Fated};
use crate::migrate::link::ssh_helper;
use crate::migrate::ops;
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
mod time;

pub use args::Args;

use receive::receive;
use send::{send, test_locally};
use serve::serve;
use settle::{cancel, settle, status};

/// The name of the command.
pub const VERB: &str = "live-migrate";
/// Exit status if it is unknown where the container runs. The message names the command that
/// settles it.
const NOT_SETTLED: u8 = 3;
/// Exit status of wrong usage, whether the parser finds it or a later check.
pub const USAGE: u8 = 2;

/// A command that has failed.
#[derive(Debug)]
pub struct Failed {
    /// Exit status.
    status: u8,
    error: anyhow::Error,
}

impl Failed {
    /// Makes a failure of `error`. The migration counts as settled if the container is unchanged,
    /// or at the place in `rests`.
    fn of(error: impl Fated + Send + Sync + 'static, rests: Fate) -> Self {
        let fate = error.fate();
        let is_settled = fate == Fate::AsBefore || fate == rests;
        Self {
            status: if is_settled { FAILED } else { NOT_SETTLED },
            error: error.into(),
        }
    }

    /// A failure at the source, where the container should run on.
    fn at_source(error: impl Fated + Send + Sync + 'static) -> Self {
        Self::of(error, Fate::RunsHere)
    }

    /// A failure at the destination; the container should run on at the source.
    fn at_destination(error: impl Fated + Send + Sync + 'static) -> Self {
        Self::of(error, Fate::RunsThere)
    }
}

impl From<anyhow::Error> for Failed {
    fn from(error: anyhow::Error) -> Self {
        Self {
            status: FAILED,
            error,
        }
    }
}

type Result<T, E = Failed> = std::result::Result<T, E>;

pub fn run(globals: &Globals, args: Args) -> anyhow::Result<i32> {
    match dispatch(globals, args) {
        Ok(status) => Ok(status),
        Err(Failed { status, error }) => {
            super::report_failure(globals, &error);
            Ok(i32::from(status))
        }
    }
}

fn dispatch(globals: &Globals, mut args: Args) -> Result<i32> {
    validate_id(&args.id).map_err(anyhow::Error::from)?;
    let engines = engine_of(globals, &args)?;
    let globals = engines.as_ref().map_or(globals, |(found, id)| {
        args.id.clone_from(id);
        found
    });
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
        ssh_helper::run(&globals.root, &args.id).map_err(anyhow::Error::from)?;
        return Ok(0);
    }
    let image_path = image_path(&args)?;
    if args.local_test {
        return test_locally(globals, &args, &image_path);
    }
    match &args.destination {
        Some(destination) => send(globals, &args, destination.clone(), &image_path),
        None if args.id == ANY => serve(globals, &args, &image_path),
        None => receive(globals, &args, &image_path),
    }
}

fn image_path(args: &Args) -> anyhow::Result<PathBuf> {
    let Some(image_path) = &args.image_path else {
        return Err(anyhow!("--image-path is missing"));
    };
    let image_path = super::absolute(image_path.clone());
    match image_path.is_dir() {
        true => Ok(image_path),
        false => Err(anyhow!(
            "{} is not a directory: --image-path needs an existing directory, preferably one that both hosts share",
            image_path.display()
        )),
    }
}

/// Returns the state directory and the full id of a container that is known by this name only to an
/// engine on this host. Containers that have left this host count, too. With `--root` no engine is
/// asked.
fn engine_of(globals: &Globals, args: &Args) -> anyhow::Result<Option<(Globals, String)>> {
    let settles = args.status || args.resolve || args.cancel;
    let receives = args.destination.is_none() && !(args.local_test || settles);
    if receives || globals.root_given {
        return Ok(None);
    }
    let migrated = !(args.destination.is_some() || args.local_test);
    let found = ops::locate(&globals.root, &args.id, migrated)?;
    Ok(found.map(|found| {
        let globals = Globals {
            root: found.root,
            ..globals.clone()
        };
        (globals, found.id)
    }))
}
