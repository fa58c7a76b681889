//! What one request costs, and how it ended: kept while it runs, counted once at its end.

use std::time::Instant;

use stowage_openai_api::{ApiError, Share, Usage};
use stowage_telemetry::traces::traceparent::TraceParent;
use stowage_telemetry::traces::{Span, SpanKind, names};

use super::{App, InFlight, outcome};
use crate::metrics::Outcome;

/// Counts while choices run, and reports when the response has ended, however it ended.
pub(super) struct Account {
    app: App,
    _in_flight: InFlight,
    /// Parts of what tenants share, given back with the account.
    shares: Vec<Share>,
    started: Instant,
    admitted: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    span: Span,
    pub(super) prompt: usize,
    cached: usize,
    pub(super) completion: usize,
    outcome: Outcome,
}

impl Account {
    /// `caller`: the span that the request is part of.
    pub(super) fn new(app: &App, operation: &'static str, caller: Option<TraceParent>) -> Self {
        let started = Instant::now();
        Self {
            app: app.clone(),
            _in_flight: app.enter(),
            shares: Vec::new(),
            started,
            admitted: None,
            first_token: None,
            last_token: None,
            span: begin(app, operation, caller, started),
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

    pub(super) fn admitted(&mut self, cached: usize, at: Instant) {
        self.cached += cached;
        self.admitted.get_or_insert(at);
        self.app.metrics.queue_wait.observe(self.started.elapsed().as_secs_f64());
    }

    pub(super) fn token(&mut self) {
        let now = Instant::now();
        self.first_token.get_or_insert(now);
        match self.last_token.replace(now) {
            None => self.app.metrics.first_token.observe((now - self.started).as_secs_f64()),
            Some(last) => self.app.metrics.inter_token.observe((now - last).as_secs_f64()),
        }
        self.completion += 1;
    }
}

impl Account {
    /// Queue until the step that admitted the first sequence, prefill until the first token, decode until the end.
    fn end_spans(&mut self, usage: Usage) {
        let mut span = std::mem::take(&mut self.span);
        if !span.is_recording() {
            return;
        }
        let now = Instant::now();
        let phases = [
            ("queue", Some(self.started), self.admitted),
            ("prefill", self.admitted, self.first_token),
            ("decode", self.first_token, None),
        ];
        for (name, start, end) in phases {
            if let Some(start) = start {
                span.child(name, SpanKind::Internal, start).end(end.unwrap_or(now));
            }
        }
        span.set(names::INPUT_TOKENS, i64::from(usage.prompt_tokens));
        span.set(names::CACHED_TOKENS, i64::from(usage.cached_tokens()));
        span.set(names::OUTPUT_TOKENS, i64::from(usage.completion_tokens));
        span.set(names::OUTCOME, self.outcome.label());
        if self.outcome == Outcome::Failed {
            span.fail(self.outcome.label());
        }
        span.end(now);
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
        self.end_spans(usage);
    }
}

/// The server span. Nothing of the request's text goes into it.
fn begin(app: &App, operation: &'static str, caller: Option<TraceParent>, started: Instant) -> Span {
    let mut span = app.tracer.server(operation, caller, started);
    if span.is_recording() {
        span.name(|| format!("{operation} {}", app.model));
        span.set(names::OPERATION, operation);
        span.set(names::PROVIDER, names::STOWAGE);
        span.set(names::REQUEST_MODEL, app.model.clone());
    }
    span
}
