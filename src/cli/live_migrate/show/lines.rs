//! Progress as lines of plain text or JSON.

use std::io::Write;
use std::time::Duration;

use chrono::{SecondsFormat, Utc};
use serde::Serialize;

use super::ticker::{Ticker, Underway};
use crate::migrate::progress::{Event, Observer};

/// Interval between two reports of bytes.
const INTERVAL_DUR: Duration = Duration::from_secs(1);

/// Prints a line for each event that has one, with the container in front.
#[derive(Debug)]
pub struct Plain;

impl Observer for Plain {
    fn on(&mut self, container: &str, event: &Event) {
        if let Some(line) = event.line() {
            write(&format!("{container}: {line}\n"));
        }
    }
}

/// Prints an object for each event, and one every second with the bytes of the current phase.
#[derive(Debug)]
pub struct Json {
    ticker: Ticker,
}

#[derive(Serialize)]
struct Line<'a, E> {
    time: String,
    container: &'a str,
    #[serde(flatten)]
    event: E,
}

/// Event that the ticker creates.
#[derive(Serialize)]
#[serde(
    tag = "event",
    rename_all = "kebab-case",
    rename_all_fields = "camelCase"
)]
enum Ticked {
    Bytes {
        phase: &'static str,
        done_bytes: u64,
        total_bytes: Option<u64>,
        bytes_per_second: Option<u64>,
    },
}

impl Json {
    pub fn new() -> Self {
        Self {
            ticker: Ticker::start(INTERVAL_DUR, |underway: &Underway| {
                let done_bytes = underway.meter.done_bytes();
                let bytes = Ticked::Bytes {
                    phase: underway.phase,
                    done_bytes,
                    total_bytes: underway.meter.total_bytes(),
                    bytes_per_second: underway.bytes_per_second(done_bytes),
                };
                write_json(&underway.container, bytes);
            }),
        }
    }
}

impl Observer for Json {
    fn on(&mut self, container: &str, event: &Event) {
        self.ticker.note(container, event);
        write_json(container, event);
    }
}

fn write_json(container: &str, event: impl Serialize) {
    let line = Line {
        time: Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true),
        container,
        event,
    };
    if let Ok(mut text) = serde_json::to_string(&line) {
        text.push('\n');
        write(&text);
    }
}

/// Writes a line in one call, so that lines of two threads do not mix. A closed stderr must not
/// stop a migration.
pub fn write(line: &str) {
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Prints a document as one line on stdout.
pub fn print(document: &impl Serialize) {
    if let Ok(text) = serde_json::to_string(document) {
        // A closed stdout changes nothing.
        let _ = writeln!(std::io::stdout(), "{text}");
    }
}
