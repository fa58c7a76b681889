//! One request's entry in the books: opened when it is let in, settled exactly once.
//!
//! Settling counts the outcome, gives the tenant back what it reserved and did not use, teaches the
//! pool how long answers are, and records times. A request that is dropped anywhere (its client went
//! away while it waited, say) settles by itself.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::metrics::{Series, Tokens};
use crate::outcome::Outcome;
use crate::queue::pool::Pool;
use crate::queue::tenants::TenantHandle;

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
    /// Estimated from the body's size.
    prompt_estimate: u64,
    /// What the tenant's bucket was charged.
    reserved: f64,
    settled: bool,
}

impl Account {
    pub fn open(
        request_id: String,
        series: Arc<Series>,
        pool: Arc<Pool>,
        tenant: TenantHandle,
        arrived: Instant,
        prompt_estimate: u64,
        reserved: f64,
    ) -> Self {
        series.arrivals.fetch_add(1, Ordering::Relaxed);
        series.arrived_tokens.fetch_add(prompt_estimate, Ordering::Relaxed);
        Self {
            request_id,
            series,
            pool,
            tenant,
            arrived,
            first_byte: None,
            events: 0,
            prompt_estimate,
            reserved,
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
        self.prompt_estimate
    }

    /// It has a place.
    pub fn on_placed(&self) {
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

    /// Closes the entry. `tokens` are what was used, as far as known: an answer that does not say is
    /// charged as it was reserved. Later calls change nothing.
    pub fn finish(&mut self, outcome: Outcome, tokens: Option<Tokens>) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        self.series.count(outcome);
        self.series.duration.observe(self.arrived.elapsed().as_secs_f64());
        if let (Some(first), 2..) = (self.first_byte, self.events) {
            self.series.inter_token.observe(first.elapsed().as_secs_f64() / (self.events - 1) as f64);
        }
        let used = match tokens {
            Some(tokens) => {
                self.series.count_tokens(tokens);
                if outcome == Outcome::Ok {
                    self.pool.learn_output(tokens.output as f64);
                }
                (tokens.prompt + tokens.output) as f64
            }
            None if outcome == Outcome::Ok => self.reserved,
            None => 0.0,
        };
        self.tenant.settle(self.reserved, used);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.finish(Outcome::ClientGone, None);
    }
}
