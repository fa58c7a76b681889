//! Which traces are recorded.
//!
//! A `traceparent` carries a flag by which its sender asks for recording. A gateway's clients are tenants, so there the
//! flag is ignored and so is the trace id: both are the client's to choose, and a client that could choose would fill
//! the queue that all tenants share. The draw is made once per request, and all its spans follow it.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use opentelemetry::trace::{Link, SpanKind, TraceContextExt as _, TraceId, TraceState};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SamplingDecision, SamplingResult, ShouldSample};

/// Whose decision it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampling {
    /// Ours, whatever callers ask for.
    Own,
    /// The caller's where it names a trace: it is a gateway, or the only user.
    Caller,
}

/// Draws for each request by a count behind a keyed hash, which nobody outside can foresee.
#[derive(Debug, Clone)]
pub struct Sampler {
    ratio: f64,
    sampling: Sampling,
    key: RandomState,
    drawn: Arc<AtomicU64>,
}

impl Sampler {
    /// `ratio`: from 0 to 1.
    pub fn new(ratio: f64, sampling: Sampling) -> Self {
        Self { ratio, sampling, key: RandomState::new(), drawn: Arc::default() }
    }

    fn draw(&self) -> bool {
        let hash = self.key.hash_one(self.drawn.fetch_add(1, Ordering::Relaxed));
        // 53 bits are what a float holds exactly: the result is at least 0 and below 1.
        ((hash >> 11) as f64) / ((1_u64 << 53) as f64) < self.ratio
    }
}

impl ShouldSample for Sampler {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        _: TraceId,
        _: &str,
        _: &SpanKind,
        _: &[KeyValue],
        _: &[Link],
    ) -> SamplingResult {
        let parent = parent.map(|context| context.span().span_context().clone()).filter(|parent| parent.is_valid());
        let sampled = match parent {
            Some(parent) if !parent.is_remote() || self.sampling == Sampling::Caller => parent.is_sampled(),
            _ => self.draw(),
        };
        let decision = if sampled { SamplingDecision::RecordAndSample } else { SamplingDecision::Drop };
        SamplingResult { decision, attributes: Vec::new(), trace_state: TraceState::NONE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::trace::{SpanContext, SpanId, TraceFlags};

    fn share(ratio: f64, sampling: Sampling, flags: TraceFlags, remote: bool) -> f64 {
        let sampler = Sampler::new(ratio, sampling);
        // The smallest id there is: samplers that look at ids take it always.
        let parent = SpanContext::new(TraceId::from(1_u128), SpanId::from(1_u64), flags, remote, TraceState::NONE);
        let context = Context::new().with_remote_span_context(parent);
        let ask = || sampler.should_sample(Some(&context), TraceId::from(1_u128), "x", &SpanKind::Server, &[], &[]);
        let taken = (0..10_000).filter(|_| ask().decision == SamplingDecision::RecordAndSample).count();
        taken as f64 / 10_000.0
    }

    #[test]
    fn flag_and_id_of_a_client_do_not_change_what_is_recorded() {
        for flags in [TraceFlags::SAMPLED, TraceFlags::NOT_SAMPLED] {
            let found = share(0.2, Sampling::Own, flags, true);
            assert!((0.17..0.23).contains(&found), "{found}");
            assert_eq!(share(0.0, Sampling::Own, flags, true), 0.0);
            assert_eq!(share(1.0, Sampling::Own, flags, true), 1.0);
        }
    }

    #[test]
    fn parts_of_a_request_and_callers_that_are_trusted_are_followed() {
        for (flags, want) in [(TraceFlags::SAMPLED, 1.0), (TraceFlags::NOT_SAMPLED, 0.0)] {
            assert_eq!(share(0.5, Sampling::Own, flags, false), want);
            assert_eq!(share(0.5, Sampling::Caller, flags, true), want);
        }
    }
}
