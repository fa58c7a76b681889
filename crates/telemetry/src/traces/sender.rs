//! From ended spans to the collector: a bounded queue, and one task that sends what is in it.
//!
//! The SDK has a processor of its own, which does not tell how many spans it lost; here each span is counted as sent,
//! dropped (the queue was full) or failed (the collector did not take it); not those that wait when the process ends.

use std::sync::Mutex;
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter as _, SpanProcessor};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::collector::{Collector, Said};
use crate::catalog::Metric;
use crate::metrics::Registry;

/// Spans that wait to be sent; some 1 KiB each. More are dropped.
const QUEUE: usize = 2048;
/// Spans of one request to the collector.
const BATCH: usize = 512;
/// How long a span waits for others that are sent with it.
const DELAY: Duration = Duration::from_secs(1);
/// A collector that does not answer is reported again after this time.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// What became of spans.
#[derive(Debug, Clone, Default)]
pub struct SpanCounts {
    pub sent: Counter,
    pub dropped: Counter,
    pub failed: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    outcome: &'static str,
}

impl SpanCounts {
    pub fn register(metric: &Metric, registry: &mut Registry) -> Self {
        let family: Family<Labels, Counter> = Family::default();
        metric.register(registry, family.clone());
        let counter = |outcome| family.get_or_create(&Labels { outcome }).clone();
        Self { sent: counter("sent"), dropped: counter("dropped"), failed: counter("failed") }
    }
}

/// Where spans go when they end.
#[derive(Debug)]
pub(super) struct Queue {
    spans: mpsc::Sender<SpanData>,
    counts: SpanCounts,
}

/// The task's handle.
#[derive(Debug)]
pub(super) struct Sender {
    stop: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Queue {
    /// Starts the task; must run inside tokio.
    pub(super) fn start(
        mut exporter: SpanExporter,
        collector: Collector,
        resource: &Resource,
        counts: SpanCounts,
    ) -> (Self, Sender) {
        exporter.set_resource(resource);
        let (spans, ended) = mpsc::channel(QUEUE);
        let stop = CancellationToken::new();
        let task = Task { exporter, collector, ended, stop: stop.clone(), counts: counts.clone(), complained: None };
        let task = Mutex::new(Some(tokio::spawn(task.run())));
        (Self { spans, counts }, Sender { stop, task })
    }
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    /// Never waits: this is called on the way of a request.
    fn on_end(&self, span: SpanData) {
        if self.spans.try_send(span).is_err() {
            self.counts.dropped.inc();
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

impl Sender {
    /// Sends what is in the queue, for so long at most.
    pub(super) async fn finish(&self, patience: Duration) {
        self.stop.cancel();
        let task = self.task.lock().ok().and_then(|mut task| task.take());
        if let Some(mut task) = task
            && tokio::time::timeout(patience, &mut task).await.is_err()
        {
            task.abort();
        }
    }
}

struct Task {
    exporter: SpanExporter,
    collector: Collector,
    ended: mpsc::Receiver<SpanData>,
    stop: CancellationToken,
    counts: SpanCounts,
    complained: Option<Instant>,
}

impl Task {
    async fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH);
        while self.fill(&mut batch).await {
            let count = batch.len() as u64;
            let result = self.exporter.export(std::mem::replace(&mut batch, Vec::with_capacity(BATCH))).await;
            let Said { rejected, why } = self.collector.said();
            let failed = if result.is_ok() { rejected.min(count) } else { count };
            self.counts.sent.inc_by(count - failed);
            self.counts.failed.inc_by(failed);
            let why = why.or_else(|| Some(result.err()?.to_string()));
            if let Some(why) = why.filter(|_| failed > 0) {
                self.complain(&why);
            }
        }
    }

    /// Collects until the batch is full or its first span is old enough. False: all is sent and no more will come.
    async fn fill(&mut self, batch: &mut Vec<SpanData>) -> bool {
        let mut until = None;
        while batch.len() < BATCH {
            let due = async {
                match until {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                received = self.ended.recv_many(batch, BATCH - batch.len()) => match received {
                    0 => break,
                    _ => _ = until.get_or_insert_with(|| Instant::now() + DELAY),
                },
                () = self.stop.cancelled(), if !self.ended.is_closed() => self.ended.close(),
                () = due => break,
            }
        }
        !batch.is_empty()
    }

    fn complain(&mut self, why: &str) {
        if self.complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
            self.complained = Some(Instant::now());
            tracing::warn!(why, "the trace collector did not take spans; they are lost");
        }
    }
}
