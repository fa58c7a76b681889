//! When a model without a replica is expected to have one: its start began with the first request that found none, and
//! takes as long as its last starts did.

use std::time::{Duration, Instant};

/// Of one pool.
#[derive(Debug, Default)]
pub struct Waking {
    /// `None`: there is a replica, or nobody has asked for one.
    since: Option<Instant>,
}

impl Waking {
    /// A request asks. `wanting`: no replica takes it, and one may be started.
    pub fn asked(&mut self, wanting: bool, now: Instant) {
        self.since = wanting.then(|| self.since.unwrap_or(now));
    }

    /// A replica takes requests.
    pub fn over(&mut self) {
        self.since = None;
    }

    /// Until a replica is expected; `None`: nothing is expected, or it is overdue. `start`: what starts take, where it
    /// was measured.
    pub fn left(&self, start: Option<Duration>, now: Instant) -> Option<Duration> {
        let waited = now.saturating_duration_since(self.since?);
        start?.checked_sub(waited).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_is_expected_from_the_first_request_that_found_no_replica() {
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let start = Some(Duration::from_secs(40));
        let left = |waking: &Waking, seconds| waking.left(start, after(seconds)).map(|left| left.as_secs());
        let mut waking = Waking::default();
        assert_eq!(left(&waking, 0), None, "nobody asked");
        waking.asked(true, began);
        waking.asked(true, after(15));
        assert_eq!((left(&waking, 0), left(&waking, 15), left(&waking, 39)), (Some(40), Some(25), Some(1)));
        assert_eq!((left(&waking, 40), left(&waking, 90)), (None, None), "overdue");
        assert_eq!(waking.left(None, after(15)), None, "not measured");
        waking.over();
        assert_eq!(left(&waking, 15), None, "there is a replica");
        waking.asked(true, after(100));
        assert_eq!(left(&waking, 110), Some(30), "the next start begins with the next request");
        waking.asked(false, after(111));
        assert_eq!(left(&waking, 111), None, "none is started, or there is one");
    }
}
