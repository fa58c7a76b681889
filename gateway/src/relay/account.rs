//! The account of one request: opened when it is let in, settled exactly once.
//!
//! Settling counts the outcome, gives the tenant back what it reserved and did not use, teaches the
//! pool how long answers are, and records times. A request that is dropped anywhere (for example its client went
//! away while it waited) settles by itself.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::metrics::{Objective, Series, Served, Tokens};
use crate::outcome::Outcome;
use crate::queue::limits::Wanted;
use crate::queue::pool::Pool;
use crate::queue::tenants::TenantHandle;
use crate::relay::spans::RequestSpans;
use crate::relay::usage::Bounds;

/// What a request is charged, before it is known what it uses.
#[derive(Debug, Clone, Copy)]
pub struct Charge {
    /// What the tenant's limits were charged.
    pub reserved: Wanted,
    /// Prompt tokens, estimated from the body's size.
    pub prompt_estimate: u64,
    pub bounds: Bounds,
}

/// Where a request is counted, and what was promised of it.
#[derive(Debug)]
pub struct Meters {
    pub series: Arc<Series>,
    pub served: Arc<Served>,
    /// The answer comes in parts: only then has it a first token, and times between tokens.
    pub streamed: bool,
    /// Time to first token and mean time between tokens; `None`: nothing is promised.
    pub objectives: Option<(Duration, Duration)>,
}

/// The entry.
#[derive(Debug)]
pub struct Account {
    request_id: String,
    pub spans: RequestSpans,
    meters: Meters,
    pool: Arc<Pool>,
    tenant: TenantHandle,
    arrived: Instant,
    first_byte: Option<Instant>,
    events: u64,
    charge: Charge,
    placed: bool,
    settled: bool,
}

impl Account {
    pub fn open(
        request_id: String,
        spans: RequestSpans,
        meters: Meters,
        pool: Arc<Pool>,
        tenant: TenantHandle,
        arrived: Instant,
        charge: Charge,
    ) -> Self {
        pool.arrived(&meters.series.tenant, charge.prompt_estimate, charge.reserved.sequences);
        meters.series.arrivals.fetch_add(1, Ordering::Relaxed);
        meters.series.arrived_tokens.fetch_add(charge.prompt_estimate, Ordering::Relaxed);
        Self {
            request_id,
            spans,
            meters,
            pool,
            tenant,
            arrived,
            first_byte: None,
            events: 0,
            charge,
            placed: false,
            settled: false,
        }
    }

    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    pub fn model(&self) -> &str {
        &self.meters.series.model
    }

    pub fn estimated_prompt(&self) -> u64 {
        self.charge.prompt_estimate
    }

    /// It has a place; only the first one counts.
    pub fn on_placed(&mut self) {
        if std::mem::replace(&mut self.placed, true) {
            return;
        }
        self.pool.placed();
        self.meters.served.queue_wait.observe(self.arrived.elapsed().as_secs_f64());
    }

    /// The client gets this status.
    pub fn answered(&mut self, status: u16) {
        self.spans.answered(status);
    }

    /// The first byte for the client is in hand.
    pub fn on_first_byte(&mut self) {
        let now = Instant::now();
        self.first_byte = Some(now);
        self.answered(200);
        if self.meters.streamed {
            self.spans.first_event(now);
            self.meters.served.first_token.observe(now.duration_since(self.arrived).as_secs_f64());
        }
    }

    /// So many events have passed.
    pub fn on_events(&mut self, events: u64) {
        self.events = events;
    }

    /// Closes the entry. `tokens` are what was used, as far as known: an answer that reports nothing, or what
    /// the request cannot have used, is charged as it was reserved. Later calls change nothing.
    pub fn finish(&mut self, outcome: Outcome, tokens: Option<Tokens>) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        self.meters.series.count(outcome);
        self.meters.served.duration.observe(self.arrived.elapsed().as_secs_f64());
        self.measure(outcome);
        let believed = tokens.filter(|tokens| self.charge.bounds.allow(*tokens));
        if believed.is_none() && tokens.is_some() {
            self.meters.series.implausible_usage.inc();
        }
        let used = match believed {
            Some(tokens) => {
                self.meters.series.count_tokens(tokens);
                if outcome == Outcome::Ok {
                    let Charge { prompt_estimate, reserved, .. } = self.charge;
                    let tenant = &self.meters.series.tenant;
                    self.pool.answered(tenant, prompt_estimate, tokens, reserved.sequences);
                }
                (tokens.prompt + tokens.output) as f64
            }
            None if outcome == Outcome::Ok => self.charge.reserved.tokens,
            None => 0.0,
        };
        self.tenant.settle(self.charge.reserved, used);
        self.spans.finish(outcome, believed);
    }

    /// The times of a stream, and whether they are within the objectives.
    fn measure(&self, outcome: Outcome) {
        let Meters { served, streamed, objectives, .. } = &self.meters;
        if !streamed {
            return;
        }
        let between = match (self.first_byte, self.events) {
            (Some(first), 2..) => Some(first.elapsed().div_f64((self.events - 1) as f64)),
            _ => None,
        };
        if let Some(between) = between {
            served.inter_token.observe(between.as_secs_f64());
        }
        let Some((ttft, itl)) = *objectives else { return };
        let first = self.first_byte.map(|at| at.duration_since(self.arrived));
        if let Some(attained) = first_token_attained(first, self.arrived.elapsed(), ttft, outcome) {
            served.judged(Objective::FirstToken, attained);
        }
        if let Some(between) = between {
            served.judged(Objective::InterToken, between <= itl);
        }
    }
}

/// Whether the first token of a stream came in time; `None`: that cannot be said of it. A request that was lost or
/// found no room has missed the objective, and so has one whose client gave up later than that; a refusal for the
/// request's own or its tenant's sake counts for nothing.
fn first_token_attained(
    first: Option<Duration>,
    ended: Duration,
    objective: Duration,
    outcome: Outcome,
) -> Option<bool> {
    match (first, outcome) {
        (Some(first), _) => Some(first <= objective),
        (None, Outcome::QueueFull | Outcome::NoReplica | Outcome::EngineFailed | Outcome::StreamBroken) => Some(false),
        (None, Outcome::ClientGone) => (ended > objective).then_some(false),
        (None, _) => None,
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.finish(Outcome::ClientGone, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_token_counts_by_its_time_and_without_one_by_why_there_is_none() {
        let check = |first: Option<u64>, ended: u64, outcome, want| {
            let millis = Duration::from_millis;
            let found = first_token_attained(first.map(millis), millis(ended), millis(800), outcome);
            assert_eq!(found, want, "{first:?} {ended} {outcome:?}");
        };
        check(Some(800), 5000, Outcome::Ok, Some(true));
        check(Some(801), 5000, Outcome::Ok, Some(false));
        check(Some(10), 20, Outcome::StreamBroken, Some(true));
        check(None, 20, Outcome::QueueFull, Some(false));
        check(None, 20, Outcome::NoReplica, Some(false));
        check(None, 20, Outcome::EngineFailed, Some(false));
        check(None, 900, Outcome::ClientGone, Some(false));
        check(None, 700, Outcome::ClientGone, None);
        check(None, 900, Outcome::TenantLimited, None);
        check(None, 900, Outcome::EngineRefused, None);
    }
}
