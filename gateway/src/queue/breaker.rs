//! Whether one replica may be given a request, judged from what it did lately.
//!
//! Two signals. The *heartbeat* is the load stream, a line at least every second: it is lost when the
//! connection breaks or a line is overdue, and back with the next line; it shows that the process
//! runs. *Strikes* are answers that were wrong: garbage, or server errors in a row; they open the
//! breaker for a while, and afterwards one request tries. Either keeps the replica out; a
//! heartbeat does not outweigh wrong answers, because a broken engine can still count its requests.
//!
//! A replica without a heartbeat yet (just started) or at all (another engine) is trusted: the
//! kubelet found it ready. Time is an argument.

use std::time::{Duration, Instant};

/// Server errors in a row that open the breaker; one garbled answer is enough.
const ERRORS_TO_OPEN: u32 = 3;
const FIRST_OPEN: Duration = Duration::from_secs(2);
const LONGEST_OPEN: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Heartbeat {
    /// Nothing received yet, or the engine has no load stream.
    #[default]
    Unknown,
    Beating,
    Lost,
}

/// The state of one replica.
#[derive(Debug, Clone, Default)]
pub struct Breaker {
    heartbeat: Heartbeat,
    /// Server errors since the last good answer.
    errors: u32,
    /// How often it opened since the last good answer.
    opened: u32,
    open_until: Option<Instant>,
    /// The one request that tries out a breaker whose time is over.
    trying: bool,
}

impl Breaker {
    /// Whether a request may go there now.
    pub fn allows(&self, now: Instant) -> bool {
        self.beats() && self.open_until.is_none_or(|until| now >= until && !self.trying)
    }

    /// Whether the last that was received of it is a sign of life, or nothing was received yet.
    pub fn beats(&self) -> bool {
        self.heartbeat != Heartbeat::Lost
    }

    /// A request goes there. Must be followed by one of the `on_…` of answers, or by [`Self::on_released`].
    pub fn on_chosen(&mut self) {
        self.trying = self.open_until.is_some();
    }

    /// A line of the load stream, or a probe that succeeded.
    pub fn on_heartbeat(&mut self) {
        self.heartbeat = Heartbeat::Beating;
    }

    /// The load stream broke, is overdue or is garbled. Returns whether that is new.
    pub fn on_heartbeat_lost(&mut self) -> bool {
        std::mem::replace(&mut self.heartbeat, Heartbeat::Lost) != Heartbeat::Lost
    }

    /// A sensible answer: all strikes are cleared.
    pub fn on_answer(&mut self) {
        (self.errors, self.opened, self.open_until, self.trying) = (0, 0, None, false);
    }

    /// An answer of status 500 or above, in OpenAI's form.
    pub fn on_error(&mut self, now: Instant) {
        self.errors += 1;
        if self.errors >= ERRORS_TO_OPEN || self.open_until.is_some() {
            self.open(now);
        }
    }

    /// An answer that no working engine gives.
    pub fn on_garbage(&mut self, now: Instant) {
        self.open(now);
    }

    /// A request ended without a result (its client went away).
    pub fn on_released(&mut self) {
        self.trying = false;
    }

    fn open(&mut self, now: Instant) {
        let wait = FIRST_OPEN.saturating_mul(1 << self.opened.min(8)).min(LONGEST_OPEN);
        self.opened += 1;
        self.trying = false;
        self.open_until = Some(now + wait);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, seconds: f64) -> Instant {
        start + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn new_replica_is_used_and_one_without_heartbeat_is_not() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        assert!(breaker.allows(now));
        assert!(breaker.on_heartbeat_lost());
        assert!(!breaker.on_heartbeat_lost(), "not new the second time");
        assert!(!breaker.allows(after(now, 3600.0)), "time alone does not bring it back");
        breaker.on_heartbeat();
        assert!(breaker.allows(now));
    }

    #[test]
    fn one_garbled_answer_opens_and_a_heartbeat_does_not_close() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        breaker.on_garbage(now);
        breaker.on_heartbeat();
        assert!(!breaker.allows(after(now, 1.9)));
        assert!(breaker.allows(after(now, 2.0)));
    }

    #[test]
    fn after_its_time_one_request_tries_and_its_answer_decides() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        breaker.on_garbage(now);
        let later = after(now, 2.0);
        breaker.on_chosen();
        assert!(!breaker.allows(later), "one at a time");
        breaker.on_released();
        assert!(breaker.allows(later), "it went away without an answer");
        breaker.on_chosen();
        breaker.on_garbage(later);
        assert!(!breaker.allows(after(later, 3.9)), "twice as long");
        assert!(breaker.allows(after(later, 4.0)));
        breaker.on_answer();
        assert!(breaker.allows(now));
    }

    #[test]
    fn errors_open_only_in_a_row() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        breaker.on_error(now);
        breaker.on_error(now);
        breaker.on_answer();
        breaker.on_error(now);
        breaker.on_error(now);
        assert!(breaker.allows(now));
        breaker.on_error(now);
        assert!(!breaker.allows(now));
    }

    #[test]
    fn it_never_stays_open_longer_than_half_a_minute() {
        let mut now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..40 {
            breaker.on_garbage(now);
            now += LONGEST_OPEN;
            assert!(breaker.allows(now));
        }
    }
}
