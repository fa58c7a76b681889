//! The account of one request: opened when it is let in, settled exactly once.
//!
//! Settling counts the outcome, gives the tenant back what it reserved and did not use, teaches the
//! pool how long answers are, and records times. A request that is dropped anywhere (for example its client went
//! away while it waited) settles by itself.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::metrics::{Series, Tokens};
use crate::outcome::Outcome;
use crate::queue::limits::Wanted;
use crate::queue::pool::Pool;
use crate::queue::tenants::TenantHandle;
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

/// The entry.
#[derive(Debug)]
pub struct Account {
    request_id: String,
    series: Arc<Series>,
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
        series: Arc<Series>,
        pool: Arc<Pool>,
        tenant: TenantHandle,
        arrived: Instant,
        charge: Charge,
    ) -> Self {
        pool.arrived(charge.prompt_estimate);
        series.arrivals.fetch_add(1, Ordering::Relaxed);
        series.arrived_tokens.fetch_add(charge.prompt_estimate, Ordering::Relaxed);
        Self {
            request_id,
            series,
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
        &self.series.model
    }

    pub fn estimated_prompt(&self) -> u64 {
        self.charge.prompt_estimate
    }

    /// It has a place; only the first one counts.
    pub fn on_placed(&mut self) {
        if std::mem::replace(&mut self.placed, true) {
            return;
        }
        self.series.queue_wait.observe(self.arrived.elapsed().as_secs_f64());
    }

    /// The first byte for the client is in hand.
    pub fn on_first_byte(&mut self) {
        let now = Instant::now();
        self.first_byte = Some(now);
        self.series.first_token.observe(now.duration_since(self.arrived).as_secs_f64());
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
        self.series.count(outcome);
        self.series.duration.observe(self.arrived.elapsed().as_secs_f64());
        if let (Some(first), 2..) = (self.first_byte, self.events) {
            self.series.inter_token.observe(first.elapsed().as_secs_f64() / (self.events - 1) as f64);
        }
        let believed = tokens.filter(|tokens| self.charge.bounds.allow(*tokens));
        if believed.is_none() && tokens.is_some() {
            self.series.implausible_usage.inc();
        }
        let used = match believed {
            Some(tokens) => {
                self.series.count_tokens(tokens);
                if outcome == Outcome::Ok {
                    let Charge { prompt_estimate, reserved, .. } = self.charge;
                    self.pool.answered(prompt_estimate, tokens, reserved.sequences);
                }
                (tokens.prompt + tokens.output) as f64
            }
            None if outcome == Outcome::Ok => self.charge.reserved.tokens,
            None => 0.0,
        };
        self.tenant.settle(self.charge.reserved, used);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.finish(Outcome::ClientGone, None);
    }
}
