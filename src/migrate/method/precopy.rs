//! When to stop copying the memory of a running container and to freeze it.
//!
//! Each round copies the memory that has changed since the round before. Rounds become shorter as
//! long as the container changes its memory more slowly than rcm copies it. The memory that the
//! container changes during one round remains for the next. Copying that remainder is the part of
//! the downtime that another round may shorten.
//!
//! No input or output here: [`decide`] is a function of measurements.
//!
//! # The forecast
//!
//! * *Bandwidth* and the *fixed costs* of a dump are a straight line through two measured rounds,
//!   the first, which is the largest, and the last: time = fixed + bytes / bandwidth. The time of a
//!   round is from the start of CRIU to the destination's answer that the images are intact there.
//! * *Remaining bytes*: the memory that the last round found changed. It is scaled from the time in
//!   which that memory had changed to the time that the last round took. It is not scaled if rounds
//!   no longer shrink with the time between them (a container that writes the same pages over and
//!   over).
//! * A restore cannot be measured beforehand. Its fixed costs are assumed to be three times those
//!   of a round. It also copies *all* memory out of the page cache, which is assumed to cost as
//!   much as copying it into the page cache did in the first round.

use std::time::Duration;

/// Fixed costs of a restore, as a multiple of those of a round. A restore makes the processes,
/// namespaces and mounts that a round only looks at: in the lab (docs/lab.md) 2.9 s against 0.6 to
/// 1.0 s.
const RESTORE_RATIO: f64 = 3.0;

/// Least number of bytes that says something about the bandwidth. Starting CRIU takes longer than
/// copying less than this.
const MIN_SAMPLE_BYTES: f64 = (1 << 20) as f64;

/// Limits of pre-copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Acceptable downtime: the container is frozen when the forecast is below it.
    pub downtime_limit_dur: Duration,
    /// Greatest number of rounds, the first one included; at least one.
    pub max_rounds: u32,
}

/// Measurements of one round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RoundCost {
    /// Time from the beginning of the round before it; zero for the first.
    pub since_previous_dur: Duration,
    /// Time from its beginning until the destination had verified it.
    pub took_dur: Duration,
    /// Part of that which CRIU spent on memory, without its waits for the connections that carry
    /// it.
    pub memory_dur: Duration,
    /// Memory that was copied.
    pub written_bytes: u64,
    /// Memory that had not changed since the round before.
    pub unchanged_bytes: u64,
}

/// Predicted cost of a freeze now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forecast {
    /// Memory that has changed since it was last copied.
    pub remaining_bytes: u64,
    /// Time to copy that memory.
    pub copy_dur: Duration,
    /// Time for everything else: dump, restore, messages.
    pub fixed_dur: Duration,
}

impl Forecast {
    /// Returns the predicted downtime.
    #[must_use]
    pub fn downtime_dur(&self) -> Duration {
        self.copy_dur.saturating_add(self.fixed_dur)
    }
}

/// Reason why the rounds end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The forecast is below the limit.
    LimitMet,
    /// Another round would leave as much as the last one.
    NotShrinking,
    /// Copying the remainder takes little time in comparison with the fixed costs.
    FixedCosts,
    /// The number of rounds has reached its limit.
    MaxRounds,
}

/// Next step after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Another round.
    Again,
    /// The final dump.
    Freeze(Reason),
}

/// Whether the last round is about as large as the one before it.
fn no_longer_shrinks(rounds: &[RoundCost]) -> bool {
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

/// Predicts the cost of a freeze after these rounds. `None` after one round: nothing tells yet how
/// fast the memory changes.
#[must_use]
pub fn forecast(rounds: &[RoundCost]) -> Option<Forecast> {
    let [first, .., last] = rounds else {
        return None;
    };
    let memory_bytes = first.written_bytes as f64;
    let seconds = |dur: Duration| dur.as_secs_f64();
    let last_bytes = last.written_bytes as f64;

    let more_bytes = memory_bytes - last_bytes;
    let longer = seconds(first.took_dur) - seconds(last.took_dur);
    let per_byte = if more_bytes >= MIN_SAMPLE_BYTES && longer > 0.0 {
        longer / more_bytes
    } else if last_bytes >= MIN_SAMPLE_BYTES {
        // Two rounds of the same size draw no line: all of their time counts as copying.
        seconds(last.took_dur) / last_bytes
    } else {
        0.0
    };
    let fixed = (seconds(last.took_dur) - per_byte * last_bytes).max(0.0);
    let restored = seconds(first.memory_dur);

    let since = seconds(last.since_previous_dur);
    let scale = if no_longer_shrinks(rounds) || since == 0.0 {
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

/// Decides on the next step after these rounds, of which there is at least one.
#[must_use]
pub fn decide(rounds: &[RoundCost], limits: &Limits) -> Decision {
    let forecast = forecast(rounds);
    if forecast.is_some_and(|forecast| forecast.downtime_dur() <= limits.downtime_limit_dur) {
        Decision::Freeze(Reason::LimitMet)
    } else if rounds.len() >= limits.max_rounds as usize {
        Decision::Freeze(Reason::MaxRounds)
    } else if no_longer_shrinks(rounds) {
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

    /// Plays the rounds of a container with `memory` MiB that changes `rate` MiB a second, at most
    /// `hot` of them, over a store that takes `bandwidth` MiB a second, with `fixed_ms` for each
    /// round; as many rounds as [`decide`] asks for.
    fn play(
        memory: f64,
        rate: f64,
        hot: f64,
        bandwidth: f64,
        fixed_ms: u64,
    ) -> (Vec<RoundCost>, Reason) {
        let mut rounds: Vec<RoundCost> = Vec::new();
        loop {
            let since = rounds.last().map_or(Duration::ZERO, |last| last.took_dur);
            let written = if rounds.is_empty() {
                memory
            } else {
                (rate * since.as_secs_f64()).min(hot).min(memory)
            };
            let copy = Duration::from_secs_f64(written / bandwidth);
            rounds.push(RoundCost {
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
            // An idle container: nothing is left after the first round, but only the second one
            // shows that.
            ((64.0, 0.0, all, 1000.0, 20), 2, Reason::LimitMet),
            // A container without much memory, also if everything is slow.
            ((0.2, 9.0, 0.1, 1000.0, 20), 2, Reason::LimitMet),
            ((0.2, 9.0, 0.1, 1000.0, 400), 2, Reason::FixedCosts),
            // A tenth of the bandwidth, and half of it.
            ((512.0, 10.0, all, 100.0, 20), 2, Reason::LimitMet),
            ((512.0, 50.0, all, 100.0, 20), 6, Reason::LimitMet),
            // The container changes memory as fast as it is copied, and faster.
            ((512.0, 100.0, all, 100.0, 20), 2, Reason::NotShrinking),
            ((512.0, 900.0, all, 100.0, 20), 2, Reason::NotShrinking),
            // The same pages over and over: after the second round there is no less of them.
            ((512.0, 900.0, 100.0, 100.0, 20), 3, Reason::NotShrinking),
            // Almost as fast: it shrinks, but slowly.
            ((4096.0, 85.0, all, 100.0, 20), 8, Reason::MaxRounds),
            // The limit cannot be met by copying: no eight rounds in vain.
            ((512.0, 5.0, all, 100.0, 900), 2, Reason::FixedCosts),
        ];
        for (played, count, reason) in table {
            let (memory, rate, hot, bandwidth, fixed_ms) = played;
            let (rounds, found) = play(memory, rate, hot, bandwidth, fixed_ms);
            assert_eq!((rounds.len(), found), (count, reason), "{played:?}");
        }
    }

    #[test]
    fn the_forecast_equals_the_measurement() {
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
    fn one_round_says_nothing_and_is_enough_only_if_no_more_are_allowed() {
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

    /// Measurements may be zero, or odd. None of them may panic, as a negative duration would.
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
                    kinds.push(RoundCost {
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
