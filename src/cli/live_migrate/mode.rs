//! Flags for the method by which the memory is copied to the destination.

use std::time::Duration;

use clap::ValueEnum;

use super::time::parse_time;
use crate::migrate::method::precopy::Limits;
use crate::migrate::ops::{Aim, Method};

/// Values of `--mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Pre-copy if the kernel tracks changed memory, else stop-and-copy
    Auto,
    /// Copy all memory while the container is frozen
    StopAndCopy,
    /// Copy memory while the container runs, and only the rest while it is frozen
    PreCopy,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Source")]
#[group(id = "source-flags", multiple = true, requires = "destination")]
pub struct ModeArgs {
    /// Method of copying memory
    #[arg(long, value_name = "MODE", value_enum, default_value = "auto")]
    mode: Mode,
    /// Predicted downtime below which pre-copy freezes the container
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = parse_time)]
    downtime_limit: Duration,
    /// Number of rounds after which pre-copy freezes the container in any case
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u32).range(1..))]
    max_rounds: u32,
    /// Drop superseded pages from the images of earlier rounds
    ///
    /// Saves space in the image store. On NFS it increases the downtime: the destination must fetch
    /// changed files from the server again.
    #[arg(long)]
    pub auto_dedup: bool,
    /// Only check at both ends whether the migration is possible; the receiver keeps waiting
    ///
    /// Prints each finding with its remedy as a line on stdout. Exit status: 0 the migration would
    /// begin, 1 it would not.
    #[arg(long)]
    dry_run: bool,
    /// Do everything up to the commit, then resume the container here; the receiver keeps waiting
    ///
    /// The container is frozen for as long as in a migration. The last line predicts its downtime.
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
