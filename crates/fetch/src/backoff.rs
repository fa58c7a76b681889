//! When to try again.

use std::time::Duration;

/// Failures in a row after which a fetch is given up.
pub const ATTEMPTS: u32 = 8;
/// Bytes between two failures that make the second one a first one again. A source that sends less and ends the connection
/// would be asked for a day.
pub const PROGRESS: u64 = 256 << 10;
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(60);

/// Failures in a row, and the bytes that came since the first of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    count: u32,
    bytes: u64,
}

impl Failures {
    /// Bytes came.
    pub fn received(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes >= PROGRESS {
            *self = Self::default();
        }
    }

    /// Another failure; how many in a row.
    pub fn failed(&mut self) -> u32 {
        self.count += 1;
        self.count
    }
}

/// The pause after this many failures in a row (1 is the first), or `None` to give up. `asked`: what the server asks
/// for. `spread` in 0..1 keeps many nodes from asking at the same moment.
pub fn pause(base: Duration, failures: u32, asked: Option<Duration>, spread: f64) -> Option<Duration> {
    if failures >= ATTEMPTS {
        return None;
    }
    let doubled = base.saturating_mul(1 << failures.saturating_sub(1).min(16));
    let spread = doubled.mul_f64(0.75 + 0.5 * spread.clamp(0.0, 1.0));
    Some(spread.max(asked.unwrap_or_default()).min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute_and_end() {
        let base = Duration::from_millis(500);
        let pauses: Vec<_> = (1..=ATTEMPTS).map(|n| pause(base, n, None, 0.5).map(|p| p.as_millis())).collect();
        let expect = [500, 1000, 2000, 4000, 8000, 16_000, 32_000].map(Some);
        assert_eq!(pauses[..7], expect);
        assert_eq!(pauses[7], None);
    }

    #[test]
    fn failures_are_forgotten_after_progress_and_not_after_a_byte() {
        for (received, expect) in [(0, 3), (1, 3), (PROGRESS / 2 - 1, 3), (PROGRESS / 2, 1), (PROGRESS, 1)] {
            let mut failures = Failures::default();
            failures.failed();
            failures.received(received);
            failures.failed();
            failures.received(received);
            assert_eq!(failures.failed(), expect, "{received} bytes between failures");
        }
    }

    #[test]
    fn server_may_ask_for_a_longer_pause_within_limits() {
        let base = Duration::from_millis(500);
        let asked = |seconds| pause(base, 1, Some(Duration::from_secs(seconds)), 0.5);
        assert_eq!(asked(7), Some(Duration::from_secs(7)));
        assert_eq!(asked(9999), Some(LONGEST));
        assert_eq!(asked(0), Some(base));
    }
}
