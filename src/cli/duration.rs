//! Durations as Go writes them: `5s`, `100ms`, `1h30m`, `1.5s`.

use std::time::Duration;

/// The units of Go's `time.ParseDuration`, in nanoseconds.
const UNITS: [(&str, f64); 8] = [
    ("ns", 1.0),
    ("us", 1e3),
    // U+00B5 and U+03BC.
    ("µs", 1e3),
    ("μs", 1e3),
    ("ms", 1e6),
    ("s", 1e9),
    ("m", 60e9),
    ("h", 3600e9),
];

/// Reads a duration. A negative one is invalid.
///
/// # Errors
/// A sentence for the user.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let invalid = || format!("invalid duration {text:?}: expected one like 5s, 100ms or 1h30m");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut nanoseconds = 0.0;
    while !rest.is_empty() {
        let unit_at = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(invalid)?;
        let (number, after) = rest.split_at(unit_at);
        let unit_end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let factor = UNITS
            .iter()
            .find_map(|(name, factor)| (*name == unit).then_some(factor))
            .ok_or_else(invalid)?;
        let number: f64 = number.parse().map_err(|_| invalid())?;
        nanoseconds += number * factor;
        rest = after;
    }
    Duration::try_from_secs_f64(nanoseconds / 1e9).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_go() {
        for (text, millis) in [
            ("5s", 5_000),
            ("100ms", 100),
            ("1h30m", 5_400_000),
            ("1.5s", 1_500),
            (".5s", 500),
            ("+2s", 2_000),
            ("2000us", 2),
            ("2000µs", 2),
            ("1m1s1ms", 61_001),
            ("0", 0),
            ("0s", 0),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "5", "s", "5x", "-5s", "5 s", ".s", "1e9999s", "1s2"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
