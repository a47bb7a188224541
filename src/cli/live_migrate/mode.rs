//! How the memory comes to the destination.

use std::time::Duration;

use clap::ValueEnum;

use super::time::parse_time;
use crate::migrate::method::precopy::Limits;
use crate::migrate::ops::{Aim, Method};

/// The modes of `--mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Pre-copy where the kernel tracks changed memory, else stop-and-copy
    Auto,
    /// Copy all memory while the container stands still
    StopAndCopy,
    /// Copy memory while the container runs, and only the rest while it stands still
    PreCopy,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Source")]
#[group(id = "source-flags", multiple = true, requires = "destination")]
pub struct ModeArgs {
    /// How memory is copied
    #[arg(long, value_name = "MODE", value_enum, default_value = "auto")]
    mode: Mode,
    /// Pre-copy freezes the container when the predicted downtime is below this
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = parse_time)]
    downtime_limit: Duration,
    /// Pre-copy freezes the container after so many rounds in any case
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u32).range(1..))]
    max_rounds: u32,
    /// Drop superseded pages from the images of earlier rounds
    ///
    /// Saves space in the image store. On NFS it costs downtime: the destination has to fetch again
    /// what has changed on the server.
    #[arg(long)]
    pub auto_dedup: bool,
    /// Only find out what speaks against the migration, at both ends; the receiver goes on waiting
    ///
    /// Each finding is a line on stdout, with what to do. Exit status: 0 the migration would begin,
    /// 1 it would not.
    #[arg(long)]
    dry_run: bool,
    /// Do everything up to the commit, then let the container run on here; the receiver goes on
    /// waiting
    ///
    /// The container stands still for as long as in a migration, and the last line predicts its
    /// downtime.
    #[arg(long, conflicts_with = "dry_run")]
    rehearse: bool,
}

impl ModeArgs {
    pub fn aim(&self) -> Aim {
        match (self.dry_run, self.rehearse) {
            (true, _) => Aim::Ask,
            (_, true) => Aim::Rehearse,
            _ => Aim::Move,
        }
    }

    pub fn method(&self) -> Method {
        let limits = Limits {
            downtime_limit_dur: self.downtime_limit,
            max_rounds: self.max_rounds,
        };
        match self.mode {
            Mode::Auto => Method::Auto(limits),
            Mode::StopAndCopy => Method::StopAndCopy,
            Mode::PreCopy => Method::PreCopy(limits),
        }
    }
}
