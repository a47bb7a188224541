use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;

use crate::error::chain;
use crate::runtime::Status;
use crate::runtime::linux::stats::{Reader, Stats};
use crate::runtime::verbs::events::{Occurrence, Watch};

use super::Globals;

/// Display container events such as OOM notifications, cpu, memory, and IO usage statistics
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The name of the container
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
    /// Set the stats collection interval, such as 100ms
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = super::duration::parse)]
    interval: Duration,
    /// Display the container's stats then exit
    #[arg(long)]
    stats: bool,
}

/// One line of output.
#[derive(Debug, Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Stats>,
}

impl<'a> Event<'a> {
    fn stats(id: &'a str, stats: Stats) -> Self {
        Self {
            kind: "stats",
            id,
            data: Some(stats),
        }
    }

    fn oom(id: &'a str) -> Self {
        Self {
            kind: "oom",
            id,
            data: None,
        }
    }

    /// Prints the event at once: readers wait for it.
    fn print(&self) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        let mut output = io::stdout().lock();
        output
            .write_all(&line)
            .and_then(|()| output.flush())
            .context("cannot write to the standard output")
    }
}

pub fn run(globals: &Globals, args: Args) -> anyhow::Result<i32> {
    let container = globals.load(&args.id)?;
    if args.interval.is_zero() {
        bail!("duration interval must be greater than 0");
    }
    let id = container.id();
    if container.status() == Status::Stopped {
        bail!("container with id {id} is not running");
    }
    let reader = Reader::new(&container)?;
    if args.stats {
        Event::stats(id, reader.read()?).print()?;
        return Ok(0);
    }
    let mut watch = Watch::start(&container)?;
    let mut deadline = Instant::now() + args.interval;
    loop {
        match watch.next(deadline)? {
            Occurrence::OutOfMemory => Event::oom(id).print()?,
            Occurrence::Ended => return Ok(0),
            Occurrence::Deadline => {
                deadline = Instant::now() + args.interval;
                match reader.read() {
                    Ok(stats) => Event::stats(id, stats).print()?,
                    // Reading may succeed at the next interval.
                    Err(error) => tracing::warn!("{}", chain(&error)),
                }
            }
        }
    }
}
