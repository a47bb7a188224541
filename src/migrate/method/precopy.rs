//! When to stop copying the memory of a running container, and to freeze it.
//!
//! Each round copies what has changed since the one before it, so rounds become shorter as long as the container changes its memory more slowly
//! than it can be copied. What is left after a round is what the container has changed while that round was under way, and
//! copying it is the part of the downtime that another round may shorten.
//!
//! No input or output here: [`decide`] is a function of what was measured.
//!
//! # The forecast
//!
//! * *Bandwidth* and the *fixed costs* of a dump are a straight line through two measured rounds, the first, which is the largest, and the last:
//!   time = fixed + bytes / bandwidth, from the start of CRIU to the word of the destination that the images are intact there.
//! * *Remaining bytes*: what the last round found changed, scaled from the time in which that had changed to the time that the last round
//!   took. Where rounds no longer shrink with the time between them (a container that writes the same pages over and over), unscaled.
//! * A restore cannot be measured beforehand. Its fixed costs are taken to be three times those of a round; it also copies *all* memory out of
//!   the page cache, which is taken to cost what copying it into the page cache did in the first round.

use std::time::Duration;

/// The fixed costs of a restore in those of a round. A restore makes the processes, namespaces and mounts that a round only looks at: in
/// the lab (docs/lab.md) 2.9 s against 0.6 to 1.0 s.
const RESTORE_RATIO: f64 = 3.0;

/// Less than this says nothing about the bandwidth: starting CRIU takes longer than copying it.
const TELLING_BYTES: f64 = (1 << 20) as f64;

/// How long copying may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// With a forecast below this the container is frozen.
    pub downtime_limit_dur: Duration,
    /// Rounds, the first one included; at least one.
    pub max_rounds: u32,
}

/// What a round has cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Round {
    /// From the beginning of the round before it; zero for the first.
    pub since_previous_dur: Duration,
    /// From its beginning until the destination had verified it.
    pub took_dur: Duration,
    /// How much of that CRIU spent on memory, without what it waited for connections that take it.
    pub memory_dur: Duration,
    /// The memory that was copied.
    pub written_bytes: u64,
    /// The memory that had not changed since the round before.
    pub unchanged_bytes: u64,
}

/// What a freeze now would cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forecast {
    /// The memory that has changed since it was last copied.
    pub remaining_bytes: u64,
    /// Copying that.
    pub copy_dur: Duration,
    /// Everything else: dump, restore, messages.
    pub fixed_dur: Duration,
}

impl Forecast {
    /// The downtime.
    #[must_use]
    pub fn downtime_dur(&self) -> Duration {
        self.copy_dur.saturating_add(self.fixed_dur)
    }
}

/// Why the rounds end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The forecast is below the limit.
    LimitMet,
    /// Another round would leave as much as the last one.
    NotShrinking,
    /// What is left to copy does not count beside what no round can shorten.
    FixedCosts,
    /// As many rounds as allowed.
    MaxRounds,
}

/// What comes after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Another round.
    Again,
    /// The final dump.
    Freeze(Reason),
}

/// Whether one round is, for this purpose, as large as the one before it.
fn shrinks_no_more(rounds: &[Round]) -> bool {
    match rounds {
        [.., previous, last] => {
            u128::from(last.written_bytes) * 10 > u128::from(previous.written_bytes) * 9
        }
        _ => false,
    }
}

fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

/// What a freeze after these rounds would cost. After one round nobody knows how fast the memory changes.
#[must_use]
pub fn forecast(rounds: &[Round]) -> Option<Forecast> {
    let [first, .., last] = rounds else {
        return None;
    };
    let memory_bytes = first.written_bytes as f64;
    let seconds = |dur: Duration| dur.as_secs_f64();
    let last_bytes = last.written_bytes as f64;

    let more_bytes = memory_bytes - last_bytes;
    let longer = seconds(first.took_dur) - seconds(last.took_dur);
    let per_byte = if more_bytes >= TELLING_BYTES && longer > 0.0 {
        longer / more_bytes
    } else if last_bytes >= TELLING_BYTES {
        // Two rounds alike draw no line: all of their time counts as copying.
        seconds(last.took_dur) / last_bytes
    } else {
        0.0
    };
    let fixed = (seconds(last.took_dur) - per_byte * last_bytes).max(0.0);
    let restored = seconds(first.memory_dur);

    let since = seconds(last.since_previous_dur);
    let scale = if shrinks_no_more(rounds) || since == 0.0 {
        1.0
    } else {
        seconds(last.took_dur) / since
    };
    let remaining = (last_bytes * scale).min(memory_bytes);
    Some(Forecast {
        remaining_bytes: remaining as u64,
        copy_dur: duration(remaining * per_byte),
        fixed_dur: duration((1.0 + RESTORE_RATIO) * fixed + restored),
    })
}

/// What comes after these rounds, of which there is at least one.
#[must_use]
pub fn decide(rounds: &[Round], limits: &Limits) -> Decision {
    let forecast = forecast(rounds);
    if forecast.is_some_and(|forecast| forecast.downtime_dur() <= limits.downtime_limit_dur) {
        Decision::Freeze(Reason::LimitMet)
    } else if rounds.len() >= limits.max_rounds as usize {
        Decision::Freeze(Reason::MaxRounds)
    } else if shrinks_no_more(rounds) {
        Decision::Freeze(Reason::NotShrinking)
    } else if forecast
        .is_some_and(|forecast| forecast.copy_dur.saturating_mul(10) <= forecast.fixed_dur)
    {
        Decision::Freeze(Reason::FixedCosts)
    } else {
        Decision::Again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const LIMITS: Limits = Limits {
        downtime_limit_dur: Duration::from_millis(300),
        max_rounds: 8,
    };

    /// Rounds of a container with `memory` MiB that changes `rate` MiB a second, at most `hot` of them, over a store that takes `bandwidth` MiB a second,
    /// with `fixed_ms` for each round; as many as [`decide`] asks for.
    fn play(
        memory: f64,
        rate: f64,
        hot: f64,
        bandwidth: f64,
        fixed_ms: u64,
    ) -> (Vec<Round>, Reason) {
        let mut rounds: Vec<Round> = Vec::new();
        loop {
            let since = rounds.last().map_or(Duration::ZERO, |last| last.took_dur);
            let written = match rounds.is_empty() {
                true => memory,
                false => (rate * since.as_secs_f64()).min(hot).min(memory),
            };
            let copy = Duration::from_secs_f64(written / bandwidth);
            rounds.push(Round {
                since_previous_dur: since,
                took_dur: copy + Duration::from_millis(fixed_ms),
                memory_dur: copy / 50,
                written_bytes: (written * MIB as f64) as u64,
                unchanged_bytes: ((memory - written) * MIB as f64) as u64,
            });
            if let Decision::Freeze(reason) = decide(&rounds, &LIMITS) {
                return (rounds, reason);
            }
            assert!(rounds.len() < 20, "it never ends");
        }
    }

    #[test]
    fn rounds_end_for_the_right_reason() {
        let all = f64::INFINITY;
        // memory, rate, hot, bandwidth, fixed: rounds, reason
        let table = [
            // An idle container: nothing is left after the first round, which only the second one shows.
            ((64.0, 0.0, all, 1000.0, 20), 2, Reason::LimitMet),
            // A container without much memory, also where everything is slow.
            ((0.2, 9.0, 0.1, 1000.0, 20), 2, Reason::LimitMet),
            ((0.2, 9.0, 0.1, 1000.0, 400), 2, Reason::FixedCosts),
            // A tenth of the bandwidth, and half of it.
            ((512.0, 10.0, all, 100.0, 20), 2, Reason::LimitMet),
            ((512.0, 50.0, all, 100.0, 20), 6, Reason::LimitMet),
            // As fast as it is copied, and faster.
            ((512.0, 100.0, all, 100.0, 20), 2, Reason::NotShrinking),
            ((512.0, 900.0, all, 100.0, 20), 2, Reason::NotShrinking),
            // The same pages over and over: after the second round there is no less of them.
            ((512.0, 900.0, 100.0, 100.0, 20), 3, Reason::NotShrinking),
            // Almost as fast: it shrinks, but slowly.
            ((4096.0, 85.0, all, 100.0, 20), 8, Reason::MaxRounds),
            // The limit cannot be met whatever is copied: not eight times to no avail.
            ((512.0, 5.0, all, 100.0, 900), 2, Reason::FixedCosts),
        ];
        for (played, count, reason) in table {
            let (memory, rate, hot, bandwidth, fixed_ms) = played;
            let (rounds, found) = play(memory, rate, hot, bandwidth, fixed_ms);
            assert_eq!((rounds.len(), found), (count, reason), "{played:?}");
        }
    }

    #[test]
    fn the_forecast_is_what_would_have_been_measured() {
        let (rounds, _) = play(512.0, 10.0, f64::INFINITY, 100.0, 40);
        let forecast = forecast(&rounds).unwrap();
        let last = rounds.last().unwrap();
        let changed = 10.0 * last.took_dur.as_secs_f64();
        let near = |found: f64, wanted: f64| (found - wanted).abs() < wanted * 0.01;
        assert!(
            near(forecast.remaining_bytes as f64, changed * MIB as f64),
            "{forecast:?}"
        );
        assert!(
            near(forecast.copy_dur.as_secs_f64(), changed / 100.0),
            "{forecast:?}"
        );
        assert!(
            near(forecast.fixed_dur.as_secs_f64(), 4.0 * 0.040 + 5.12 / 50.0),
            "{forecast:?}"
        );
    }

    #[test]
    fn one_round_says_nothing_and_is_enough_only_where_no_more_are_allowed() {
        let (rounds, _) = play(64.0, 0.0, 0.0, 1000.0, 20);
        assert_eq!(forecast(&rounds[..1]), None);
        assert_eq!(decide(&rounds[..1], &LIMITS), Decision::Again);
        let one = Limits {
            max_rounds: 1,
            ..LIMITS
        };
        assert_eq!(
            decide(&rounds[..1], &one),
            Decision::Freeze(Reason::MaxRounds)
        );
    }

    /// Measurements may be zero, or odd; nothing of that may panic, as a negative duration would.
    #[test]
    fn odd_measurements_do_no_harm() {
        let odd = [0, 1, MIB, u64::MAX];
        let durs = [
            Duration::ZERO,
            Duration::from_nanos(1),
            Duration::from_secs(9),
        ];
        let mut kinds = Vec::new();
        for written_bytes in odd {
            for took_dur in durs {
                for since_previous_dur in durs {
                    kinds.push(Round {
                        since_previous_dur,
                        took_dur,
                        memory_dur: took_dur,
                        written_bytes,
                        unchanged_bytes: 0,
                    });
                }
            }
        }
        for first in &kinds {
            for second in &kinds {
                for rounds in [&[*first, *second][..], &[*first, *second, *first]] {
                    let left_bytes = forecast(rounds).unwrap().remaining_bytes;
                    assert!(left_bytes <= first.written_bytes, "{rounds:?}");
                    let _: Decision = decide(rounds, &LIMITS);
                }
            }
        }
    }
}
