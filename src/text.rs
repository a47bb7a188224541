//! Quantities as a person reads them.

use std::time::Duration;

/// Returns a duration as text: "12.3 ms".
#[must_use]
pub fn milliseconds(dur: impl std::borrow::Borrow<Duration>) -> String {
    format!("{:.1} ms", dur.borrow().as_secs_f64() * 1e3)
}

/// Returns a count of bytes as text: "1.4 GiB", "318 KiB".
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
    fn sizes() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(318 << 10), "318 KiB");
        assert_eq!(bytes(1 << 40), "1.0 TiB");
        assert_eq!(bytes(u64::MAX), "16777216 TiB");
    }
}
