//! Log records in runc's format.
//!
//! Engines read the last error record of the log file that they passed (`--log`, usually with
//! `--log-format json`) and show its message to the user. So a failed command writes exactly one
//! error record, and its JSON has exactly `level`, `msg` and `time`.

use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use chrono::{SecondsFormat, Utc};
use serde::Serialize;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};

use crate::sys::error_capture;

/// Format of the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// `time="..." level=... msg="..."`.
    #[default]
    Text,
    /// `{"level":"...","msg":"...","time":"..."}`.
    Json,
}

/// Destination of the records.
#[derive(Debug)]
enum Sink {
    Stderr,
    File(File),
}

#[derive(Debug)]
struct RuncLayer {
    sink: Sink,
    format: LogFormat,
    debug: bool,
}

/// Sends log records to `path`, appending, or to stderr. `debug` also shows the details of rcm and
/// libcontainer.
///
/// # Errors
/// If the file cannot be opened.
pub fn init(path: Option<&Path>, format: LogFormat, debug: bool) -> io::Result<()> {
    let sink = match path {
        None => Sink::Stderr,
        Some(path) => Sink::File(
            OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o644)
                .custom_flags(libc::O_CLOEXEC)
                .open(path)?,
        ),
    };
    let layer = RuncLayer {
        sink,
        format,
        debug,
    };
    // A second initialization can only come from a test in the same process.
    let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer));
    Ok(())
}

/// Whether an event comes from libcontainer. Its error events are causes of a failure that rcm
/// reports itself, with its own record.
fn is_engines(target: &str) -> bool {
    target.starts_with("libcontainer") || target.starts_with("libcgroups")
}

impl<S: Subscriber> Layer<S> for RuncLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let engines = is_engines(metadata.target());
        let level = *metadata.level();
        if !engines && !metadata.target().starts_with("rcm") && !self.debug {
            return;
        }
        if engines && level != Level::ERROR && !self.debug {
            return;
        }
        let mut message = Message::default();
        event.record(&mut message);
        let text = message.finish();
        if engines && level == Level::ERROR {
            error_capture::record(&text);
            if !self.debug {
                return;
            }
        }
        self.write(if engines { Level::DEBUG } else { level }, &text);
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(if self.debug {
            LevelFilter::DEBUG
        } else {
            LevelFilter::INFO
        })
    }
}

impl RuncLayer {
    fn write(&self, level: Level, message: &str) {
        let record = render(self.format, level, message);
        // One write per record, because several processes append to the same file. A log that
        // cannot be written must not stop a container.
        let _ = match &self.sink {
            Sink::Stderr => io::stderr().write_all(record.as_bytes()),
            Sink::File(file) => (&*file).write_all(record.as_bytes()),
        };
    }
}

/// Returns logrus's name of a level.
fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

fn render(format: LogFormat, level: Level, message: &str) -> String {
    #[derive(Serialize)]
    struct Record<'a> {
        level: &'a str,
        msg: &'a str,
        time: &'a str,
    }
    let time = Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true);
    let level = level_name(level);
    match format {
        LogFormat::Text => format!("time={time:?} level={level} msg={}\n", quote(message)),
        LogFormat::Json => {
            let record = Record {
                level,
                msg: message,
                time: &time,
            };
            // Strings always have a JSON form.
            let mut line = serde_json::to_string(&record).unwrap_or_default();
            line.push('\n');
            line
        }
    }
}

/// Quotes a message as logrus does: if it has other than harmless characters.
fn quote(message: &str) -> String {
    let plain = !message.is_empty()
        && message
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._/@^+".contains(&byte));
    if plain {
        message.to_owned()
    } else {
        format!("{message:?}")
    }
}

/// An event's message, then its fields as `name: value`.
#[derive(Debug, Default)]
struct Message {
    message: String,
    fields: String,
}

impl Message {
    fn finish(self) -> String {
        match (self.message.is_empty(), self.fields.is_empty()) {
            (_, true) => self.message,
            (true, false) => self.fields,
            (false, false) => format!("{}: {}", self.message, self.fields),
        }
    }
}

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        if field.name() == "message" {
            let _ = write!(self.message, "{value:?}");
        } else {
            if !self.fields.is_empty() {
                self.fields.push_str(", ");
            }
            let _ = write!(self.fields, "{} {value:?}", field.name());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_exactly_three_members() {
        let line = render(LogFormat::Json, Level::ERROR, "a \"quoted\"\nmessage");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        let members: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
        assert_eq!(members, ["level", "msg", "time"]);
        assert_eq!(value["level"], "error");
        assert_eq!(value["msg"], "a \"quoted\"\nmessage");
        let time = value["time"].as_str().unwrap();
        assert!(chrono::DateTime::parse_from_rfc3339(time).is_ok(), "{time}");
        assert_eq!(line.matches('\n').count(), 1);
    }

    #[test]
    fn text_is_one_line_with_quotes_where_needed() {
        let line = render(LogFormat::Text, Level::WARN, "two words\nand a line");
        assert!(
            line.contains(r#" level=warning msg="two words\nand a line""#),
            "{line}"
        );
        assert!(render(LogFormat::Text, Level::INFO, "word").ends_with(" level=info msg=word\n"));
    }
}
