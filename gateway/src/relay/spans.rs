//! The spans of one request, as the gateway measures them:
//!
//! ```text
//! chat <model>            from the head to the last byte; all that is known of the request
//! ├ queue                 until the pool looked for a replica and found one
//! ├ route                 the choice, until the request has its place
//! └ attempt               at one replica; one more with each retry
//!   ├ prefill             until the first event of a stream
//!   └ decode              until its last
//! ```
//!
//! Engines may send nothing out of the cluster's namespaces, so their part is measured from here: `prefill` holds the
//! engine's own queue too, and an answer that is not a stream has neither, since nothing shows its first token. An
//! engine outside a cluster sends its own spans, which are children of `attempt`.
//!
//! Attributes are names of objects, numbers and words from closed sets. Nothing that the client wrote is among them.

use std::time::Instant;

use http::HeaderValue;
use http::request::Parts;
use stowage_telemetry::traces::traceparent::TraceParent;
use stowage_telemetry::traces::{Span, SpanKind, Tracer, Value, names};

use crate::listen::paths::Inference;
use crate::metrics::{Retry, Tokens};
use crate::outcome::{Outcome, Refused};
use crate::queue::pool::Lease;
use crate::world::snapshot::Deployment;

/// The spans of one request. Those that are open end when it is dropped.
#[derive(Debug, Default)]
pub struct RequestSpans {
    server: Span,
    attempt: Span,
    /// Attempts before this one.
    resent: i64,
    sent: Option<Instant>,
    first_event: Option<Instant>,
    arrived: Option<Instant>,
    operation: &'static str,
    /// 0: not answered yet.
    status: u16,
    /// What the client named as parent. While tracing is off, engines get it as it is.
    caller: Option<TraceParent>,
}

impl RequestSpans {
    /// Begun when the tenant is known: who has no key causes no spans.
    pub fn begin(tracer: &Tracer, head: &Parts, arrived: Instant, route: Inference, tenant: &str, id: &str) -> Self {
        let caller = TraceParent::of(&head.headers);
        let operation = match route {
            Inference::ChatCompletions => "chat",
            Inference::Completions => "text_completion",
        };
        let mut server = tracer.server(operation, caller, arrived);
        if server.is_recording() {
            server.set(names::OPERATION, operation);
            server.set(names::PROVIDER, names::STOWAGE);
            server.set(names::METHOD, "POST");
            server.set(names::ROUTE, route.path());
            server.set(names::TENANT, tenant.to_owned());
            server.set(names::REQUEST_ID, id.to_owned());
        }
        Self { server, operation, caller, arrived: Some(arrived), ..Self::default() }
    }

    /// Which model it is for, by the owner's name of it: what the client called it is the client's text.
    pub fn model(&mut self, deployment: &Deployment) {
        if self.server.is_recording() {
            self.server.name(|| format!("{} {}", self.operation, deployment.model));
            self.server.set(names::REQUEST_MODEL, deployment.model.to_string());
            self.server.set(names::NAMESPACE, deployment.key.namespace.clone());
            self.server.set(names::DEPLOYMENT, deployment.key.name.clone());
        }
    }

    /// Refused before it had an account.
    pub fn refused(&mut self, refused: &Refused) {
        self.answered(refused.error.status);
        self.finish(refused.outcome, None);
    }

    /// It waited since then and has a place.
    pub fn placed(&mut self, since: Instant, lease: &Lease) {
        if self.server.is_recording() {
            self.server.child("queue", SpanKind::Internal, since).end(lease.chosen);
            let mut route = self.server.child("route", SpanKind::Internal, lease.chosen);
            route.set(names::POD, lease.replica.pod.clone());
            route.end(Instant::now());
        }
    }

    /// It waited since then and got no place.
    pub fn unplaced(&mut self, since: Instant) {
        self.server.child("queue", SpanKind::Internal, since).fail("unplaced");
    }

    /// It is sent to the lease's replica. What comes back is the header for it.
    pub fn sent(&mut self, lease: &Lease) -> Option<HeaderValue> {
        let now = Instant::now();
        let mut attempt = self.server.child("attempt", SpanKind::Client, now);
        if attempt.is_recording() {
            attempt.set(names::POD, lease.replica.pod.clone());
            if self.resent > 0 {
                attempt.set(names::RESEND, self.resent);
            }
        }
        self.resent += 1;
        self.sent = Some(now);
        let parent = attempt.traceparent().or(self.caller);
        self.attempt = attempt;
        parent?.header()
    }

    /// The attempt failed, and another one follows.
    pub fn sent_again(&mut self, reason: Retry) {
        let mut attempt = std::mem::take(&mut self.attempt);
        attempt.fail(reason.label());
    }

    /// The first event of a stream is here.
    pub fn first_event(&mut self, at: Instant) {
        if let Some(sent) = self.sent.filter(|_| self.attempt.is_recording()) {
            self.attempt.child("prefill", SpanKind::Internal, sent).end(at);
            self.first_event = Some(at);
        }
    }

    pub fn answered(&mut self, status: u16) {
        self.status = status;
        self.server.set(names::STATUS, i64::from(status));
    }

    /// Ends what is open. `tokens`: what was charged.
    pub fn finish(&mut self, outcome: Outcome, tokens: Option<Tokens>) {
        let (mut server, mut attempt) = (std::mem::take(&mut self.server), std::mem::take(&mut self.attempt));
        if !server.is_recording() {
            return;
        }
        let now = Instant::now();
        server.set(names::OUTCOME, outcome.label());
        if let (Some(first), Some(arrived)) = (self.first_event, self.arrived) {
            server.set(names::TIME_TO_FIRST_CHUNK, first.duration_since(arrived).as_secs_f64());
            let mut decode = attempt.child("decode", SpanKind::Internal, first);
            set_tokens(&mut decode, names::OUTPUT_TOKENS, tokens.map(|tokens| tokens.output));
            decode.end(now);
        }
        if let Some(tokens) = tokens {
            set_tokens(&mut server, names::INPUT_TOKENS, Some(tokens.prompt));
            set_tokens(&mut server, names::CACHED_TOKENS, Some(tokens.cached));
            set_tokens(&mut server, names::OUTPUT_TOKENS, Some(tokens.output));
        }
        if !matches!(outcome, Outcome::Ok | Outcome::ClientGone) {
            attempt.fail(outcome.label());
        }
        if self.status >= 500 || outcome == Outcome::StreamBroken {
            server.fail(outcome.label());
        }
        attempt.end(now);
        server.end(now);
    }
}

fn set_tokens(span: &mut Span, name: &'static str, tokens: Option<u64>) {
    if let Some(tokens) = tokens {
        span.set(name, Value::I64(i64::try_from(tokens).unwrap_or(i64::MAX)));
    }
}
