//! How long a gateway holds a request for a model without a replica where the deployment's `coldStart.hold` is absent.
//! Gateways wait by it, and the operator scales to zero only where a request may wait for a start.

use std::time::Duration;

/// Not shorter where starts are quick: the replica may have to wait for a GPU.
const LEAST: Duration = Duration::from_secs(120);
const MOST: Duration = Duration::from_secs(600);

/// Long enough for the starts that were measured. `expected`: what one takes, once enough were measured.
pub fn default_hold(expected: Option<Duration>) -> Duration {
    expected.map_or(LEAST, |took| (took.min(MOST) * 3 / 2).clamp(LEAST, MOST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hold_is_long_enough_for_the_starts_that_were_measured() {
        let seconds = Duration::from_secs;
        for (measured, expect) in [(None, 120), (Some(8), 120), (Some(80), 120), (Some(200), 300), (Some(3000), 600)] {
            assert_eq!(default_hold(measured.map(seconds)), seconds(expect), "{measured:?}");
        }
        assert_eq!(default_hold(Some(Duration::MAX)), MOST);
    }
}
