//! Notices when this machine's clock is set. Pure.
//!
//! Plans compare times of the API server with ours, so a clock that is corrected is followed at once. What was timed
//! by our own clock before (intervals of signals, ends of drains and back-offs) is moved by as much: neither an hour
//! without requests nor the end of a drain follows from a correction.

use std::time::{Duration, Instant};

use stowage_planner::snapshot::TimeMs;

/// A smaller step is a correction of the moment, which every rule tolerates.
const LEAST_STEP: Duration = Duration::from_secs(5);

/// Compares the wall clock with one that only counts.
#[derive(Debug, Default)]
pub struct ClockWatch {
    last: Option<(TimeMs, Instant)>,
}

impl ClockWatch {
    /// By how many milliseconds the clock was set since the last call.
    pub fn step(&mut self, wall: TimeMs, counted: Instant) -> Option<i64> {
        let (before, at) = self.last.replace((wall, counted))?;
        let passed = i64::try_from(counted.saturating_duration_since(at).as_millis()).unwrap_or(i64::MAX);
        let step = (wall as i64).saturating_sub(before as i64).saturating_sub(passed);
        (step.unsigned_abs() >= LEAST_STEP.as_millis() as u64).then_some(step)
    }
}

/// The time moved by so many milliseconds.
pub fn moved(at: TimeMs, by_ms: i64) -> TimeMs {
    at.saturating_add_signed(by_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_is_what_the_wall_clock_moved_beyond_the_time_that_passed() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut clock = ClockWatch::default();
        for (wall, seconds, want) in [
            (1_000_000, 0, None),
            (1_060_000, 60, None),
            (1_062_000, 61, None),
            (4_663_000, 62, Some(3_600_000)),
            (4_664_000, 63, None),
            (1_065_000, 64, Some(-3_600_000)),
        ] {
            assert_eq!(clock.step(wall, after(seconds)), want, "at {seconds}");
        }
        assert_eq!((moved(5_000, -10_000), moved(5_000, 10)), (0, 5_010));
    }
}
