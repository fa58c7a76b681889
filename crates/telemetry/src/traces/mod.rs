//! Spans of requests, sent to a collector as OTLP over HTTP. Off unless an endpoint is given.
//!
//! A process starts one [`Tracer`]; each request begins with [`Tracer::server`], and its parts are children of that
//! span. A span ends when it is ended or dropped, and goes into a bounded queue that a task of its own sends from
//! ([`sender`]): a collector that is slow or gone costs spans and never a request. Whether a trace is recorded is
//! drawn here ([`sampler`]) and is not for the caller to ask for. While tracing is off, spans hold nothing and all
//! calls return at once.
//!
//! Left out: anything that a client wrote. Attributes are names from objects of the API, numbers and words from
//! closed sets.

mod collector;
pub mod names;
mod sampler;
mod sender;
pub mod traceparent;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail};
use opentelemetry::trace::{Span as _, SpanBuilder, SpanContext, Status, TraceContextExt as _, Tracer as _};
use opentelemetry::trace::{TraceFlags, TraceState, TracerProvider as _};
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_otlp::{Protocol, RetryPolicy, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

use collector::Collector;
pub use opentelemetry::Value;
pub use opentelemetry::trace::SpanKind;
pub use sampler::Sampling;
pub use sender::SpanCounts;
use sender::{Queue, Sender};
use traceparent::TraceParent;

/// What a request to the collector may take.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// The protocol that is spoken, as `OTEL_EXPORTER_OTLP_PROTOCOL` names it.
const PROTOCOL: &str = "http/protobuf";

/// Flags of every program that has spans. The environment has OpenTelemetry's own names.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TraceArgs {
    /// Collector that gets spans (OTLP over HTTP), for example http://otel-collector.monitoring:4318. Empty: no tracing.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", default_value = "")]
    pub otlp_endpoint: String,
    /// Protocol of the collector; only `http/protobuf` is spoken.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_PROTOCOL", default_value = PROTOCOL)]
    pub otlp_protocol: String,
    /// Share of traces that are recorded, from 0 to 1. Not looked at without tracing: others set it for samplers of theirs.
    #[arg(long, env = "OTEL_TRACES_SAMPLER_ARG", default_value = "1")]
    pub trace_ratio: String,
}

/// Makes the spans of a process. Cheap to clone; the default is off.
#[derive(Debug, Clone, Default)]
pub struct Tracer(Option<Arc<Running>>);

#[derive(Debug)]
struct Running {
    tracer: SdkTracer,
    provider: SdkTracerProvider,
    sender: Sender,
}

impl Tracer {
    /// Starts the task that sends. Must run inside tokio. `service` names the program.
    pub fn start(
        args: &TraceArgs,
        service: &'static str,
        sampling: Sampling,
        counts: SpanCounts,
    ) -> anyhow::Result<Self> {
        if args.otlp_endpoint.is_empty() {
            return Ok(Self::default());
        }
        let (ratio, endpoint) = (args.checked_ratio()?, args.checked_endpoint()?);
        let resource = resource(service);
        let (exporter, collector) = exporter(&endpoint)?;
        let (queue, sender) = Queue::start(exporter, collector, &resource, counts);
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_sampler(sampler::Sampler::new(ratio, sampling))
            .with_span_processor(queue)
            .build();
        let scope = InstrumentationScope::builder("stowage")
            .with_version(env!("CARGO_PKG_VERSION"))
            .with_schema_url(names::SCHEMA_URL)
            .build();
        let tracer = provider.tracer_with_scope(scope);
        tracing::info!(%endpoint, ratio, "sending traces");
        Ok(Self(Some(Arc::new(Running { tracer, provider, sender }))))
    }

    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// The span of a request that was received at `start`. `caller` is what its sender named as parent.
    pub fn server(&self, name: impl Into<Cow<'static, str>>, caller: Option<TraceParent>, start: Instant) -> Span {
        let Some(running) = &self.0 else { return Span::default() };
        let parent = caller.map(|caller| remote(&caller)).unwrap_or_default();
        Span::begin(&running.tracer, name.into(), SpanKind::Server, &parent, start)
    }

    /// Sends what has ended, for so long at most. Spans that end later are lost.
    pub async fn shutdown(&self, patience: Duration) {
        let Some(running) = &self.0 else { return };
        running.sender.finish(patience).await;
        // Nothing is left in it; spans of requests that still run cost nothing from here on.
        drop(running.provider.shutdown());
    }
}

impl TraceArgs {
    fn checked_ratio(&self) -> anyhow::Result<f64> {
        if self.otlp_protocol != PROTOCOL {
            bail!(
                "OTEL_EXPORTER_OTLP_PROTOCOL is {}; only {PROTOCOL} is spoken, usually on port 4318",
                self.otlp_protocol
            );
        }
        let ratio = self.trace_ratio.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
        ratio.with_context(|| format!("OTEL_TRACES_SAMPLER_ARG is {:?}; it must be from 0 to 1", self.trace_ratio))
    }

    /// Without a slash at its end. It stands in logs, so it may hold no secret, and none is shown here.
    fn checked_endpoint(&self) -> anyhow::Result<String> {
        let wrong = |why: &str| anyhow::anyhow!("OTEL_EXPORTER_OTLP_ENDPOINT {why}");
        let url =
            reqwest::Url::parse(&self.otlp_endpoint).map_err(|_| wrong("is no address; write http://host:4318"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong("must begin with http:// or https://"));
        }
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            return Err(wrong("holds a login or a query; write secrets into OTEL_EXPORTER_OTLP_HEADERS"));
        }
        Ok(url.as_str().trim_end_matches('/').to_owned())
    }
}

/// `OTEL_EXPORTER_OTLP_HEADERS` is read by the library.
fn exporter(endpoint: &str) -> anyhow::Result<(opentelemetry_otlp::SpanExporter, Collector)> {
    crate::install_crypto();
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(EXPORT_TIMEOUT)
        .build()
        .context("cannot make the client for the trace collector")?;
    let collector = Collector::new(client);
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(collector.clone())
        .with_protocol(Protocol::HttpBinary)
        // Newer spans wait meanwhile, and the queue is bounded: a second attempt would cost more than it saves.
        .with_retry_policy(RetryPolicy::disabled())
        .with_endpoint(format!("{endpoint}/v1/traces"))
        .build()
        .context("OTEL_EXPORTER_OTLP_ENDPOINT")?;
    Ok((exporter, collector))
}

/// `OTEL_RESOURCE_ATTRIBUTES` adds to it. In a pod, HOSTNAME is the pod's name.
fn resource(service: &'static str) -> Resource {
    let instance = std::env::var("HOSTNAME").ok().map(|host| KeyValue::new("service.instance.id", host));
    Resource::builder()
        .with_service_name(service)
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attributes(instance)
        .build()
}

fn remote(caller: &TraceParent) -> Context {
    let flags = if caller.sampled() { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
    let context = SpanContext::new(caller.trace_id, caller.span_id, flags, true, TraceState::NONE);
    Context::new().with_remote_span_context(context)
}

/// A span that ends when it is dropped. The default is none at all: tracing is off.
#[derive(Debug, Default)]
#[must_use]
pub struct Span(Option<Box<Live>>);

#[derive(Debug)]
struct Live {
    span: opentelemetry_sdk::trace::Span,
    tracer: SdkTracer,
}

impl Span {
    fn begin(tracer: &SdkTracer, name: Cow<'static, str>, kind: SpanKind, parent: &Context, start: Instant) -> Self {
        let builder = SpanBuilder::from_name(name).with_kind(kind).with_start_time(wall(start));
        let span = tracer.build_with_context(builder, parent);
        Self(Some(Box::new(Live { span, tracer: tracer.clone() })))
    }

    /// A part of this one.
    pub fn child(&self, name: &'static str, kind: SpanKind, start: Instant) -> Self {
        let Some(live) = &self.0 else { return Self::default() };
        let parent = Context::new().with_remote_span_context(live.span.span_context().clone());
        Self::begin(&live.tracer, name.into(), kind, &parent, start)
    }

    /// Whether attributes go anywhere.
    pub fn is_recording(&self) -> bool {
        self.0.as_ref().is_some_and(|live| live.span.is_recording())
    }

    pub fn name(&mut self, name: impl FnOnce() -> String) {
        if let Some(live) = self.recording() {
            live.span.update_name(name());
        }
    }

    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(live) = self.recording() {
            live.span.set_attribute(KeyValue::new(key, value));
        }
    }

    /// It failed; `why` is a word from a closed set.
    pub fn fail(&mut self, why: &'static str) {
        if let Some(live) = self.recording() {
            live.span.set_attribute(KeyValue::new(names::ERROR_TYPE, why));
            live.span.set_status(Status::error(""));
        }
    }

    pub fn end(self, at: Instant) {
        if let Some(mut live) = self.0.filter(|live| live.span.is_recording()) {
            live.span.end_with_timestamp(wall(at));
        }
    }

    /// What the next process gets, so that its spans are children of this one; `None`: tracing is off.
    pub fn traceparent(&self) -> Option<TraceParent> {
        let context = self.0.as_ref()?.span.span_context();
        TraceParent::new(context.trace_id(), context.span_id(), context.is_sampled())
    }

    fn recording(&mut self) -> Option<&mut Live> {
        self.0.as_deref_mut().filter(|live| live.span.is_recording())
    }
}

/// The time of day at an instant of the past.
fn wall(at: Instant) -> SystemTime {
    SystemTime::now().checked_sub(at.elapsed()).unwrap_or_else(SystemTime::now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(endpoint: &str, protocol: &str, ratio: &str) -> TraceArgs {
        TraceArgs { otlp_endpoint: endpoint.into(), otlp_protocol: protocol.into(), trace_ratio: ratio.into() }
    }

    fn start(args: &TraceArgs) -> anyhow::Result<Tracer> {
        Tracer::start(args, "test", Sampling::Own, SpanCounts::default())
    }

    #[test]
    fn settings_that_cannot_work_are_refused_at_the_start() {
        let check = |endpoint, protocol, ratio, part: &str| {
            let error = start(&args(endpoint, protocol, ratio)).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        check("http://c:4317", "grpc", "1", "OTEL_EXPORTER_OTLP_PROTOCOL is grpc");
        for ratio in ["1.5", "NaN", "", "http://sampler:5778"] {
            check("http://c:4318", PROTOCOL, ratio, "from 0 to 1");
        }
        check("c:4318", PROTOCOL, "1", "must begin with http://");
        check("collector", PROTOCOL, "1", "is no address");
        for secret in ["https://user:hunter7@c:4318", "https://hunter7@c", "https://c/?key=hunter7"] {
            check(secret, PROTOCOL, "1", "OTEL_EXPORTER_OTLP_HEADERS");
            let error = start(&args(secret, PROTOCOL, "1")).unwrap_err();
            assert!(!format!("{error:?}").contains("hunter7"), "{error:?}");
        }
    }

    #[test]
    fn without_an_endpoint_there_are_no_spans() {
        // Not even inside tokio, and whatever else is set.
        let tracer = start(&args("", "grpc", "seven")).unwrap();
        let span = tracer.server("chat", None, Instant::now());
        assert!(!tracer.is_on() && !span.is_recording() && span.traceparent().is_none());
        assert!(span.child("queue", SpanKind::Internal, Instant::now()).0.is_none());
    }
}
