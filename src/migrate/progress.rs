//! What an operator sees of a migration: its phases with their durations, one line each.

use std::io::Write;
use std::time::{Duration, Instant};

/// A phase that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lap {
    /// Its name.
    pub name: &'static str,
    /// How long it took.
    pub took_dur: Duration,
}

/// Prints lines and remembers durations.
#[derive(Debug)]
pub struct Progress<W> {
    out: W,
    prefix: String,
    began: Instant,
    laps: Vec<Lap>,
}

impl<W: Write> Progress<W> {
    /// Lines go to `out` with the container's id in front.
    pub fn new(out: W, container: &str) -> Self {
        Self {
            out,
            prefix: format!("{container}: "),
            began: Instant::now(),
            laps: Vec::new(),
        }
    }

    /// A line.
    pub fn say(&mut self, text: &str) {
        // A closed stderr is no reason to stop a migration.
        let _ = writeln!(self.out, "{}{text}", self.prefix);
    }

    /// A phase has ended that began at `since`.
    pub fn lap(&mut self, name: &'static str, since: Instant) {
        self.lap_of(name, since.elapsed());
    }

    /// A phase has ended that the other end has measured.
    pub fn lap_of(&mut self, name: &'static str, took_dur: Duration) {
        self.say(&format!("{name:<10} {:>12}", milliseconds(took_dur)));
        self.laps.push(Lap { name, took_dur });
    }

    /// All phases so far.
    #[must_use]
    pub fn laps(&self) -> &[Lap] {
        &self.laps
    }

    /// Since the beginning.
    #[must_use]
    pub fn total_dur(&self) -> Duration {
        self.began.elapsed()
    }
}

/// "12.3 ms".
#[must_use]
pub fn milliseconds(dur: Duration) -> String {
    format!("{:.1} ms", dur.as_secs_f64() * 1e3)
}

/// "1.4 GiB", "318 KiB".
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 10.0 {
        format!("{value:.1} {}", UNITS[unit])
    } else {
        format!("{value:.0} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_plain_and_aligned() {
        let mut out = Vec::new();
        let mut progress = Progress::new(&mut out, "web");
        progress.lap_of("dump", Duration::from_micros(12_345));
        progress.lap_of("restore", Duration::from_millis(1234));
        assert_eq!(progress.laps().len(), 2);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "web: dump            12.3 ms\nweb: restore       1234.0 ms\n"
        );
    }

    #[test]
    fn sizes() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(318 << 10), "318 KiB");
        assert_eq!(bytes(1 << 40), "1.0 TiB");
        assert_eq!(bytes(u64::MAX), "16777216 TiB");
    }
}
