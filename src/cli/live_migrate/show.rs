//! Progress of a migration, and the report at its end.

use std::io::{IsTerminal, stderr};
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use anyhow::bail;
use clap::ValueEnum;

use super::{Failed, NOT_SETTLED};
use crate::cli::absolute;
use crate::error::chain;
use crate::migrate::progress::report::{Outcome, Report};
use crate::migrate::progress::{Observer, Progress};
use crate::migrate::wire::id::Side;

mod bar;
pub(super) mod lines;
mod ticker;

/// Values of `--progress`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Style {
    /// A bar if stderr is a terminal, else plain lines
    Auto,
    /// A line for each phase
    Plain,
    /// A JSON object for each event, one on each line
    Json,
    /// Only the warnings and errors of the log
    None,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Output")]
#[group(id = "output-flags", multiple = true, conflicts_with_all = ["resolve", "cancel"])]
pub struct OutputArgs {
    /// Format of the progress on stderr
    #[arg(
        long,
        value_name = "STYLE",
        value_enum,
        default_value = "auto",
        conflicts_with = "status"
    )]
    progress: Style,
    /// Write a JSON report to FILE, also on failure
    #[arg(long, value_name = "FILE", conflicts_with = "status")]
    report: Option<PathBuf>,
    /// Print the report (with --status, the status) as one line of JSON on stdout
    #[arg(long)]
    json: bool,
}

impl OutputArgs {
    /// Begins to show the migration of container `id` at `side`.
    pub fn begin(&self, id: &str, side: Side) -> Progress {
        let report = Report {
            side,
            ..Report::of(id)
        };
        Progress::new(self.observer(), report)
    }

    /// Checks that the report can be written, before the migration begins.
    pub fn check(&self) -> anyhow::Result<()> {
        if let Some(path) = &self.report {
            let path = absolute(path.clone());
            match path.parent() {
                Some(dir) if dir.is_dir() && !path.is_dir() => {}
                _ => bail!(
                    "{} cannot be written (--report): its directory must exist",
                    path.display()
                ),
            }
        }
        Ok(())
    }

    fn observer(&self) -> Box<dyn Observer> {
        match self.progress {
            Style::Auto if stderr().is_terminal() => Box::new(bar::Bar::new()),
            Style::Auto | Style::Plain => Box::new(lines::Plain),
            Style::Json => Box::new(lines::Json::new()),
            Style::None => Box::new(()),
        }
    }

    /// Whether stdout is only for the report.
    pub fn json(&self) -> bool {
        self.json
    }

    /// Reports the outcome. `ended` has the exit status; `succeeded` is the outcome for status 0.
    pub fn end(&self, mut progress: Progress, succeeded: Outcome, ended: Result<i32, &Failed>) {
        let total_dur = progress.total_dur();
        let sent_bytes = progress.sent().load(Ordering::Relaxed);
        let report = progress.report_mut();
        report.sent_bytes = sent_bytes;
        let status = match ended {
            Ok(status) => u8::try_from(status).unwrap_or(u8::MAX),
            Err(failed) => {
                report.error = Some(chain(failed.error.as_ref()));
                failed.status
            }
        };
        let outcome = match status {
            0 => succeeded,
            NOT_SETTLED => Outcome::NotSettled,
            _ => Outcome::NotMoved,
        };
        report.close(outcome, status, total_dur);
        let report = report.clone();
        // Remove the bar before anything else is printed.
        drop(progress);
        if self.json {
            lines::print(&report);
        }
        if let Some(path) = &self.report
            && let Err(error) = report.write(&absolute(path.clone()))
        {
            // Only logged: the migration and its exit status do not depend on the report.
            tracing::error!("{}", chain(&error));
        }
    }
}
