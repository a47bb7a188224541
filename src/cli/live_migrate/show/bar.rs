//! A progress bar for the current phase, below the lines of the finished phases.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::lines::write;
use super::ticker::{Ticker, Underway};
use crate::migrate::progress::{Event, Observer};
use crate::text::{bytes, milliseconds};

/// Interval between two drawings of the bar.
const INTERVAL_DUR: Duration = Duration::from_millis(100);

/// The same lines as [`super::lines::Plain`], and a bar.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    ticker: Ticker,
    /// Last downtime that pre-copy has predicted.
    predicted_dur: Arc<Mutex<Option<Duration>>>,
}

impl Bar {
    pub fn new() -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        let predicted_dur: Arc<Mutex<Option<Duration>>> = Arc::default();
        let (drawn, predicted) = (bar.clone(), Arc::clone(&predicted_dur));
        let ticker = Ticker::start(INTERVAL_DUR, move |underway| {
            let predicted_dur = *predicted.lock().unwrap_or_else(PoisonError::into_inner);
            draw(&drawn, underway, predicted_dur);
        });
        Self {
            bar,
            ticker,
            predicted_dur,
        }
    }
}

fn draw(bar: &ProgressBar, underway: &Underway, predicted_dur: Option<Duration>) {
    let done_bytes = underway.meter.done_bytes();
    let total_bytes = underway.meter.total_bytes();
    bar.set_style(style(total_bytes.is_some()));
    if let Some(total_bytes) = total_bytes {
        // The total may be an estimate that was too low.
        bar.set_length(total_bytes.max(done_bytes));
        bar.set_position(done_bytes);
    }
    bar.set_prefix(format!("{}: {}", underway.container, underway.phase));
    bar.set_message(details(
        done_bytes,
        total_bytes,
        underway.bytes_per_second(done_bytes),
        predicted_dur,
    ));
    bar.tick();
}

fn style(has_total: bool) -> ProgressStyle {
    let template = match has_total {
        true => "{prefix:<20} [{bar:24}] {elapsed:>4} {msg}",
        false => "{prefix:<20} {spinner} {elapsed:>4} {msg}",
    };
    // The fallback is never used as long as the two templates above parse.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

/// Returns a text such as "12 MiB of 128 MiB, 10 MiB/s, 116 MiB left, predicted downtime 300.0 ms".
fn details(
    done_bytes: u64,
    total_bytes: Option<u64>,
    bytes_per_second: Option<u64>,
    predicted_dur: Option<Duration>,
) -> String {
    let mut parts = Vec::new();
    match total_bytes {
        Some(total_bytes) => parts.push(format!("{} of {}", bytes(done_bytes), bytes(total_bytes))),
        None if done_bytes > 0 => parts.push(bytes(done_bytes)),
        None => {}
    }
    parts.extend(bytes_per_second.map(|rate| format!("{}/s", bytes(rate))));
    parts.extend(
        total_bytes
            .and_then(|total_bytes| total_bytes.checked_sub(done_bytes))
            .map(|left_bytes| format!("{} left", bytes(left_bytes))),
    );
    parts.extend(predicted_dur.map(|dur| format!("predicted downtime {}", milliseconds(dur))));
    parts.join(", ")
}

impl Observer for Bar {
    fn on(&mut self, container: &str, event: &Event) {
        self.ticker.note(container, event);
        match event {
            Event::Began { .. } => self.bar.reset(),
            Event::Ended(_) => self.bar.finish_and_clear(),
            Event::Round(round) => {
                self.bar.finish_and_clear();
                *self
                    .predicted_dur
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner) = round.predicted_dur;
            }
            _ => {}
        }
        if let Some(line) = event.line() {
            let line = format!("{container}: {line}\n");
            self.bar.suspend(|| write(&line));
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_beside_the_bar() {
        let text = details(
            12 << 20,
            Some(128 << 20),
            Some(10 << 20),
            Some(Duration::from_millis(300)),
        );
        assert_eq!(
            text,
            "12 MiB of 128 MiB, 10 MiB/s, 116 MiB left, predicted downtime 300.0 ms"
        );
        assert_eq!(details(0, None, None, None), "");
        assert_eq!(details(9, Some(4), None, None), "9 B of 4 B");
    }

    #[test]
    fn both_templates_parse() {
        for has_total in [true, false] {
            style(has_total);
        }
        assert!(ProgressStyle::with_template("{prefix:<20} [{bar:24}] {elapsed:>4} {msg}").is_ok());
    }
}
