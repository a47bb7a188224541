use anyhow::anyhow;

use crate::runtime::Error;
use crate::runtime::verbs::kill;

use super::Globals;

/// Send the specified signal (default: SIGTERM) to the container's init process
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The name of the container
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
    /// A signal by name, with or without SIG, or by number
    #[arg(default_value = "SIGTERM")]
    signal: String,
    /// Ignore the error if the container has stopped
    #[arg(long, short, hide = true)]
    all: bool,
}

pub fn run(globals: &Globals, args: Args) -> anyhow::Result<i32> {
    let container = globals.load(&args.id)?;
    let signal = kill::parse_signal(&args.signal)
        .ok_or_else(|| anyhow!("unknown signal {:?}", args.signal))?;
    match kill::kill(&container, signal) {
        Err(Error::NotRunning) if args.all => Ok(0),
        sent => sent.map(|()| 0).map_err(Into::into),
    }
}
