//! A tenant's limits: tokens per minute, and sequences in flight. A request is as many sequences as its engine
//! generates for it: one for each prompt and choice.
//!
//! The bucket holds plain tokens, input plus output. A request reserves its estimate on arrival and
//! settles on what it really used; so the balance may go below zero, and the next request waits for
//! it. A request larger than the whole bucket passes when the bucket is full, otherwise it could
//! never run. Pure: the clock is an argument.
//!
//! Each gateway counts by itself and takes its share of the rate (`1/gateways`).

use std::time::{Duration, Instant};

use crate::world::facts::TokenLimits;

/// Time's worth of the rate that may be used at once, where the quota sets no burst.
const DEFAULT_BURST: Duration = Duration::from_secs(10);

/// Why a tenant's request is not taken now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limited {
    /// The bucket is empty until then.
    Tokens { retry_after: Duration },
    /// As many sequences in flight as allowed.
    Concurrent { limit: u32 },
    /// The request alone has more sequences than may be in flight.
    TooManySequences { limit: u32 },
}

/// What a request takes from its tenant's limits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wanted {
    /// Estimated, input plus output.
    pub tokens: f64,
    /// Prompts times choices.
    pub sequences: u32,
}

/// What one tenant uses through this gateway.
#[derive(Debug, Clone)]
pub struct TenantUse {
    /// Tokens left; negative after requests that used more than they reserved.
    balance: f64,
    updated: Instant,
    /// Sequences.
    in_flight: u32,
    /// Requests refused so far.
    pub throttled: u64,
}

impl TenantUse {
    /// Nothing used yet: the bucket is full.
    pub fn new(now: Instant) -> Self {
        Self { balance: f64::INFINITY, updated: now, in_flight: 0, throttled: 0 }
    }

    /// Takes a request, or reports when to come back. `gateways` share the rate.
    pub fn admit(&mut self, limits: &TokenLimits, wanted: Wanted, gateways: u32, now: Instant) -> Result<(), Limited> {
        let result = self.check(limits, wanted, gateways.max(1), now);
        match result {
            Ok(()) => self.in_flight += wanted.sequences,
            Err(_) => self.throttled += 1,
        }
        result
    }

    fn check(&mut self, limits: &TokenLimits, wanted: Wanted, gateways: u32, now: Instant) -> Result<(), Limited> {
        let Wanted { tokens, sequences } = wanted;
        if let Some(limit) = limits.max_concurrent {
            // Rounded up: every gateway may always serve one.
            let share = limit.div_ceil(gateways);
            if sequences > share {
                return Err(Limited::TooManySequences { limit: share });
            }
            if self.in_flight + sequences > share {
                return Err(Limited::Concurrent { limit });
            }
        }
        let Some(per_minute) = limits.per_minute else {
            self.balance = f64::INFINITY;
            return Ok(());
        };
        let rate = per_minute as f64 / 60.0 / f64::from(gateways);
        let capacity = rate * limits.burst.unwrap_or(DEFAULT_BURST).as_secs_f64();
        let elapsed = now.saturating_duration_since(self.updated).as_secs_f64();
        self.balance = (self.balance + rate * elapsed).min(capacity);
        self.updated = now;
        let needed = tokens.min(capacity);
        // A rounding error must not cost a second.
        if self.balance + 1e-6 < needed {
            let seconds = (needed - self.balance) / rate;
            return Err(Limited::Tokens { retry_after: Duration::from_secs_f64(seconds.min(86_400.0)) });
        }
        self.balance -= tokens;
        Ok(())
    }

    /// The request ended: its tokens were taken, `used` were used.
    pub fn settle(&mut self, reserved: Wanted, used: f64) {
        self.balance += reserved.tokens - used;
        self.in_flight = self.in_flight.saturating_sub(reserved.sequences);
    }

    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 10 tokens a second, 100 at once.
    fn limits() -> TokenLimits {
        TokenLimits { per_minute: Some(600), ..TokenLimits::default() }
    }

    fn tokens(tokens: f64) -> Wanted {
        Wanted { tokens, sequences: 1 }
    }

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    fn wait(result: Result<(), Limited>) -> Option<u64> {
        match result {
            Ok(()) => None,
            Err(Limited::Tokens { retry_after }) => Some(retry_after.as_secs_f64().round() as u64),
            Err(other) => panic!("not about tokens: {other:?}"),
        }
    }

    #[test]
    fn the_burst_passes_and_then_the_rate_holds() {
        let t = Instant::now();
        let mut tenant = TenantUse::new(t);
        assert_eq!(wait(tenant.admit(&limits(), tokens(60.0), 1, t)), None);
        assert_eq!(wait(tenant.admit(&limits(), tokens(60.0), 1, t)), Some(2));
        assert_eq!(wait(tenant.admit(&limits(), tokens(60.0), 1, at(t, 2))), None);
        assert_eq!(tenant.throttled, 1);
    }

    #[test]
    fn unused_tokens_are_returned_and_overuse_is_subtracted() {
        let t = Instant::now();
        let mut tenant = TenantUse::new(t);
        assert_eq!(wait(tenant.admit(&limits(), tokens(100.0), 1, t)), None);
        tenant.settle(tokens(100.0), 10.0);
        assert_eq!(wait(tenant.admit(&limits(), tokens(90.0), 1, t)), None);
        tenant.settle(tokens(90.0), 290.0);
        assert_eq!(wait(tenant.admit(&limits(), tokens(10.0), 1, t)), Some(21));
    }

    #[test]
    fn a_request_larger_than_the_bucket_runs_when_the_bucket_is_full() {
        let t = Instant::now();
        let mut tenant = TenantUse::new(t);
        assert_eq!(wait(tenant.admit(&limits(), tokens(500.0), 1, t)), None);
        assert_eq!(wait(tenant.admit(&limits(), tokens(500.0), 1, at(t, 10))), Some(40));
        assert_eq!(wait(tenant.admit(&limits(), tokens(500.0), 1, at(t, 50))), None);
    }

    #[test]
    fn gateways_share_the_rate() {
        let t = Instant::now();
        let mut tenant = TenantUse::new(t);
        assert_eq!(wait(tenant.admit(&limits(), tokens(50.0), 2, t)), None);
        assert_eq!(wait(tenant.admit(&limits(), tokens(10.0), 2, t)), Some(2));
    }

    #[test]
    fn concurrency_is_freed_by_settling() {
        let t = Instant::now();
        let limits = TokenLimits { max_concurrent: Some(1), ..TokenLimits::default() };
        let mut tenant = TenantUse::new(t);
        assert_eq!(tenant.admit(&limits, tokens(1e9), 1, t), Ok(()));
        assert_eq!(tenant.admit(&limits, tokens(1.0), 1, t), Err(Limited::Concurrent { limit: 1 }));
        tenant.settle(tokens(1e9), 5.0);
        assert_eq!(tenant.admit(&limits, tokens(1.0), 1, t), Ok(()));
    }

    #[test]
    fn a_limit_that_is_lifted_and_set_again_starts_full() {
        let t = Instant::now();
        let mut tenant = TenantUse::new(t);
        assert_eq!(tenant.admit(&TokenLimits::default(), tokens(1e12), 1, t), Ok(()));
        tenant.settle(tokens(1e12), 1e12);
        assert_eq!(wait(tenant.admit(&limits(), tokens(100.0), 1, t)), None);
    }

    #[test]
    fn sequences_count_and_not_requests() {
        let t = Instant::now();
        let limits = TokenLimits { max_concurrent: Some(8), ..TokenLimits::default() };
        let wanted = |sequences| Wanted { tokens: 1.0, sequences };
        let mut tenant = TenantUse::new(t);
        assert_eq!(tenant.admit(&limits, wanted(9), 1, t), Err(Limited::TooManySequences { limit: 8 }));
        assert_eq!(tenant.admit(&limits, wanted(5), 2, t), Err(Limited::TooManySequences { limit: 4 }));
        assert_eq!(tenant.admit(&limits, wanted(6), 1, t), Ok(()));
        assert_eq!(tenant.admit(&limits, wanted(3), 1, t), Err(Limited::Concurrent { limit: 8 }));
        assert_eq!(tenant.admit(&limits, wanted(2), 1, t), Ok(()));
        tenant.settle(wanted(6), 1.0);
        assert_eq!(tenant.in_flight(), 2);
    }
}
