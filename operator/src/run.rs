//! Puts the parts together and takes them apart again in good order.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use kube::Client;
use stowage_planner::Prepared;
use stowage_planner::snapshot::Snapshot;
use stowage_telemetry::health::{Heartbeat, Readiness};
use stowage_telemetry::shutdown_signal;
use tokio::sync::{Notify, watch};
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;

use crate::cache_key;
use crate::config::Config;
use crate::control::Control;
use crate::execute::capacity::Capacity;
use crate::execute::desk::Desk;
use crate::execute::write::Writer;
use crate::lead::{Elector, Fence};
use crate::observe::Sources;
use crate::observe::agents::Agents;
use crate::observe::agents::preloads::PreloadSender;
use crate::observe::causes::Causes;
use crate::observe::clock::ClockWatch;
use crate::observe::fresh;
use crate::observe::history::Histories;
use crate::serve::admin;
use crate::serve::decisions::DecisionLog;
use crate::serve::metrics::Metrics;
use crate::serve::metrics::startup::Startups;
use crate::serve::published::Published;
use crate::translate::memory::Memory;

/// Runs until SIGTERM or SIGINT. In this order at the end: no new plans, running writes finish, the
/// lease is released, so that the next leader starts at once and finds nothing half-written.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let shutdown = shutdown_signal();
    let clients = Clients::connect().await?;
    let stop = CancellationToken::new();
    let parts = Parts::start(&config, clients, &stop).await?;
    until(parts, shutdown).await
}

/// Serves until `shutdown`. An error: a part ended by itself, so that the process must be started again.
async fn until(mut parts: Parts, shutdown: impl Future) -> anyhow::Result<()> {
    let result = tokio::select! {
        _ = shutdown => Ok(()),
        failed = parts.failed() => Err(failed),
    };
    parts.stop().await;
    result
}

/// Two connections, because reads may be retried behind our back and writes may not: each attempt of
/// a write asks the fence.
pub struct Clients {
    pub read: Client,
    pub write: Client,
}

impl Clients {
    pub async fn connect() -> anyhow::Result<Self> {
        let config =
            kube::Config::infer().await.context("cannot find a cluster: neither a kubeconfig nor a service account")?;
        let mut fenced = config.clone();
        fenced.default_retry = false;
        Ok(Self {
            read: fresh::client(config).context("cannot make a client")?,
            write: Client::try_from(fenced).context("cannot make a client")?,
        })
    }
}

/// The running operator.
pub struct Parts {
    stop: CancellationToken,
    stop_electing: CancellationToken,
    control: tokio::task::JoinHandle<()>,
    elector: tokio::task::JoinHandle<()>,
    watches: tokio::task::JoinSet<()>,
    /// The last plan, for tests and the administrative port.
    pub published: watch::Receiver<Arc<Published>>,
}

impl Parts {
    pub async fn start(config: &Config, clients: Clients, stop: &CancellationToken) -> anyhow::Result<Self> {
        let (metrics, registry) = Metrics::new();
        let (fence, changed) = (Arc::new(Fence::default()), Arc::new(Notify::new()));
        let sources = Arc::new(Sources::default());
        let causes = Arc::new(Causes::default());
        let mut watches = sources.start(&clients.read, &changed);
        causes.start(&clients.read, &changed, &mut watches);
        let (elector, leading) = Elector::new(
            clients.write.clone(),
            &config.namespace,
            &config.lease,
            identity(&config.identity),
            config.timing(),
            fence.clone(),
        );
        let (publish, published) = watch::channel(Arc::new(Published::default()));
        let (readiness, log) =
            (Readiness::starting("waiting for the first complete lists"), Arc::new(DecisionLog::default()));
        let listener = tokio::net::TcpListener::bind(&config.admin_address)
            .await
            .with_context(|| format!("cannot listen on {} (--admin-address)", config.admin_address))?;
        let heartbeat = Heartbeat::default();
        let scraped = stowage_telemetry::metrics::router_of(registry, metrics.together());
        stowage_telemetry::metrics::serve(&config.metrics_listen, scraped.clone()).await?;
        let router = admin::router(&readiness, &heartbeat, scraped, log.clone(), published.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let writer = Writer::new(clients.write, fence.clone());
        let salt_key_missing = Arc::new(Notify::new());
        watches.spawn(cache_key::keep(
            writer.clone(),
            config.namespace.clone(),
            leading.clone(),
            salt_key_missing.clone(),
            stop.clone(),
        ));
        let histories = Arc::new(Histories::default());
        if let Some(prometheus) = config.prometheus()? {
            watches.spawn(histories.clone().follow(prometheus));
        }
        let control = Control {
            sources,
            causes,
            journals: Arc::default(),
            agents: Arc::new(Agents::default()),
            estimates: Arc::default(),
            preloads: PreloadSender::default(),
            preloading: None,
            gateways: Arc::default(),
            clock: ClockWatch::default(),
            salt_key_missing,
            http: http_client()?,
            log,
            metrics,
            readiness,
            heartbeat,
            writer,
            fence,
            leading,
            changed,
            published: publish,
            print_decisions: !config.quiet_decisions,
            period: config.period(),
            policy: config.policy(),
            prepared: Prepared::default(),
            memory: Memory::default(),
            desk: Desk::default(),
            histories,
            scrapers: Arc::new(config.scrapers()?),
            capacity: Capacity::default(),
            capacity_image: config.capacity_image.clone(),
            startups: Startups::default(),
            sequence: 0,
            before: Snapshot::default(),
            taken_over: None,
        };
        let stop_electing = CancellationToken::new();
        Ok(Self {
            control: tokio::spawn(control.run(stop.clone())),
            elector: tokio::spawn(elector.run(stop_electing.clone())),
            watches,
            stop: stop.clone(),
            stop_electing,
            published,
        })
    }

    /// Resolves only if a task ended that goes on for ever: it panicked. Without it the others would go on renewing
    /// the lease and answering probes, and nothing would be planned.
    pub async fn failed(&mut self) -> anyhow::Error {
        let (part, ended) = tokio::select! {
            ended = &mut self.control => ("planning", ended),
            ended = &mut self.elector => ("the election", ended),
            Some(ended) = self.watches.join_next() => ("a watch", ended),
        };
        let why = ended.map_or_else(|err: JoinError| err.to_string(), |()| "it returned".to_owned());
        anyhow::anyhow!("{part} ended by itself: {why}; the process ends to be started again")
    }

    pub async fn stop(self) {
        self.stop.cancel();
        finish(self.control).await;
        self.stop_electing.cancel();
        finish(self.elector).await;
    }

    /// Ends like a killed process: nothing is finished, nothing released. For tests.
    pub fn kill(self) {
        self.control.abort();
        self.elector.abort();
    }
}

/// Waits for its end; one that has been seen already must not be awaited again.
async fn finish(task: tokio::task::JoinHandle<()>) {
    if !task.is_finished() {
        let _ = task.await;
    }
}

fn http_client() -> anyhow::Result<reqwest::Client> {
    reqwest::Client::builder()
        .connect_timeout(Duration::from_secs(3))
        .no_proxy()
        // Gateways and agents redirect nobody.
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .context("cannot make an HTTP client")
}

/// A restarted process is another candidate: it cannot know what its former life still has in flight.
fn identity(name: &str) -> String {
    let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    format!("{name}_{}-{:x}", std::process::id(), started & 0xffff_ffff)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    /// Parts that go on until they are stopped, all but the named one.
    fn parts(panics: &'static str) -> Parts {
        let (stop, stop_electing) = (CancellationToken::new(), CancellationToken::new());
        let part = |name: &'static str, stop: &CancellationToken| {
            let stop = stop.clone();
            async move {
                assert_ne!(name, panics, "a sum was too large");
                stop.cancelled().await;
            }
        };
        Parts {
            control: tokio::spawn(part("planning", &stop)),
            elector: tokio::spawn(part("the election", &stop_electing)),
            watches: tokio::task::JoinSet::from_iter([part("a watch", &stop)]),
            stop,
            stop_electing,
            published: watch::channel(Arc::default()).1,
        }
    }

    #[tokio::test]
    async fn process_ends_with_an_error_when_a_part_panics() {
        for part in ["planning", "the election", "a watch"] {
            let why = until(parts(part), pending::<()>()).await.unwrap_err().to_string();
            assert!(why.starts_with(part) && why.contains("a sum was too large"), "{why}");
        }
        until(parts("none"), ready(())).await.unwrap();
    }
}
