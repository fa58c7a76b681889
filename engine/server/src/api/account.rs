//! What one request costs, and how it ended: kept while it runs, counted once at its end.

use std::time::Instant;

use stowage_openai_api::{ApiError, Share, Usage};

use super::{App, InFlight, outcome};
use crate::metrics::Outcome;

/// Counts while choices run, and reports when the response has ended, however it ended.
pub(super) struct Account {
    app: App,
    _in_flight: InFlight,
    /// Parts of what tenants share, given back with the account.
    shares: Vec<Share>,
    started: Instant,
    last_token: Option<Instant>,
    pub(super) prompt: usize,
    cached: usize,
    pub(super) completion: usize,
    outcome: Outcome,
}

impl Account {
    pub(super) fn new(app: &App) -> Self {
        Self {
            app: app.clone(),
            _in_flight: app.enter(),
            shares: Vec::new(),
            started: Instant::now(),
            last_token: None,
            prompt: 0,
            cached: 0,
            completion: 0,
            // Until the end is reached: if it never is, the client has left.
            outcome: Outcome::Cancelled,
        }
    }

    pub(super) fn usage(&self) -> Usage {
        let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Usage::new(narrow(self.prompt), narrow(self.completion), narrow(self.cached))
    }

    pub(super) fn refused(&mut self, err: &ApiError) {
        self.outcome = outcome(err);
    }

    pub(super) fn completed(&mut self) {
        self.outcome = Outcome::Ok;
    }

    /// Keeps the share until the response has ended.
    pub(super) fn hold(&mut self, share: Share) {
        self.shares.push(share);
    }

    pub(super) fn admitted(&mut self, cached: usize) {
        self.cached += cached;
        self.app.metrics.queue_wait.observe(self.started.elapsed().as_secs_f64());
    }

    pub(super) fn token(&mut self) {
        let now = Instant::now();
        match self.last_token.replace(now) {
            None => self.app.metrics.first_token.observe((now - self.started).as_secs_f64()),
            Some(last) => self.app.metrics.inter_token.observe((now - last).as_secs_f64()),
        }
        self.completion += 1;
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let metrics = &self.app.metrics;
        metrics.finished(self.outcome);
        let usage = self.usage();
        metrics.counted(usage.prompt_tokens, usage.cached_tokens(), usage.completion_tokens);
        if self.outcome == Outcome::Ok {
            metrics.duration.observe(self.started.elapsed().as_secs_f64());
        }
    }
}
