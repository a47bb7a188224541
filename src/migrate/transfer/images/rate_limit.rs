//! Limit for the bandwidth of a migration.

use crate::migrate::limits::BURST_DUR;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A limit that all connections share. Each waits until its bytes fit in.
#[derive(Debug)]
pub struct RateLimit {
    bytes_per_s: u64,
    /// Time at which all bytes that were let through are paid for.
    paid_until: Mutex<Option<Instant>>,
}

impl RateLimit {
    /// Returns a limit of this many bytes per second.
    #[must_use]
    pub fn new(bytes_per_s: u64) -> Self {
        Self {
            bytes_per_s: bytes_per_s.max(1),
            paid_until: Mutex::new(None),
        }
    }

    /// Returns the time to wait before `count_bytes` are sent.
    pub fn wait_for(&self, count_bytes: usize, now: Instant) -> Duration {
        let cost_dur = Duration::from_secs_f64(count_bytes as f64 / self.bytes_per_s as f64);
        let mut paid_until = self
            .paid_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let credit = now.checked_sub(BURST_DUR).unwrap_or(now);
        let begins = paid_until.map_or(credit, |paid_until| paid_until.max(credit));
        *paid_until = Some(begins + cost_dur);
        (begins + cost_dur).saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_holds_whoever_sends_and_a_pause_is_no_credit() {
        let rate_limit = RateLimit::new(1_000_000);
        let start = Instant::now();
        let mut now = start;
        for _ in 0..100 {
            now += rate_limit.wait_for(100_000, now);
        }
        let took_dur = now - start + BURST_DUR;
        assert_eq!(took_dur.as_secs(), 10);
        let later = now + Duration::from_secs(60);
        assert_eq!(
            rate_limit.wait_for(1_000_000, later),
            Duration::from_secs(1) - BURST_DUR
        );
    }
}
