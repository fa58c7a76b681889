//! How long a client may leave what it was sent unread.
//!
//! A client earns time by reading and uses it up while it keeps us waiting, so one that reads slowly is served
//! and one that reads a byte now and then is not. Time is an argument.

use std::time::{Duration, Instant};

/// Reading this many bytes earns a second.
const BYTES_PER_SECOND: u64 = 1024;

/// One client's, or one stream's.
#[derive(Debug)]
pub struct Patience {
    longest: Duration,
    left: Duration,
    /// Since when the client keeps us waiting; counted up to here.
    blocked: Option<Instant>,
}

impl Patience {
    /// `longest` is also the most that can be saved up.
    pub fn new(longest: Duration) -> Self {
        Self { longest, left: longest, blocked: None }
    }

    /// The client does not take what is there.
    pub fn on_blocked(&mut self, now: Instant) {
        self.blocked.get_or_insert(now);
    }

    /// The client took so many bytes; there may be more.
    pub fn on_progress(&mut self, bytes: usize, now: Instant) {
        if self.blocked.is_some() {
            self.left = self.left(now);
            self.blocked = Some(now);
        }
        let earned = Duration::from_micros(bytes as u64 * 1_000_000 / BYTES_PER_SECOND);
        self.left = (self.left + earned).min(self.longest);
    }

    /// The client took everything, or nothing is there to be taken.
    pub fn on_free(&mut self, now: Instant) {
        self.left = self.left(now);
        self.blocked = None;
    }

    /// How much longer the client may keep us waiting; zero when it is over.
    pub fn left(&self, now: Instant) -> Duration {
        let waited = self.blocked.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.left.saturating_sub(waited)
    }

    pub fn is_blocked(&self) -> bool {
        self.blocked.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEN: Duration = Duration::from_secs(10);

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn client_that_reads_nothing_uses_its_time_up() {
        let t = Instant::now();
        let mut patience = Patience::new(TEN);
        patience.on_blocked(t);
        assert_eq!(patience.left(at(t, 9)), Duration::from_secs(1));
        patience.on_blocked(at(t, 9));
        assert_eq!(patience.left(at(t, 10)), Duration::ZERO);
    }

    #[test]
    fn slow_client_is_served_and_trickling_one_is_not() {
        let t = Instant::now();
        let (mut slow, mut trickle) = (Patience::new(TEN), Patience::new(TEN));
        for second in 0..100 {
            slow.on_blocked(at(t, second));
            slow.on_progress(2048, at(t, second));
            trickle.on_blocked(at(t, second));
            trickle.on_progress(1, at(t, second));
        }
        assert!(slow.left(at(t, 100)) > Duration::from_secs(8));
        assert_eq!(trickle.left(at(t, 100)), Duration::ZERO);
    }

    #[test]
    fn time_in_which_nothing_is_to_be_read_does_not_count() {
        let t = Instant::now();
        let mut patience = Patience::new(TEN);
        patience.on_blocked(t);
        patience.on_free(at(t, 4));
        assert_eq!(patience.left(at(t, 1000)), Duration::from_secs(6));
        patience.on_progress(1 << 30, at(t, 1000));
        assert_eq!(patience.left(at(t, 1000)), TEN, "no more can be saved up");
    }
}
