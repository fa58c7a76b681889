//! Puts the parts together and takes them apart again in good order.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use kube::Client;
use stowage_planner::Prepared;
use stowage_planner::snapshot::Policy;
use stowage_telemetry::health::Readiness;
use stowage_telemetry::shutdown_signal;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::cache_key;
use crate::config::Config;
use crate::control::Control;
use crate::execute::desk::Desk;
use crate::execute::write::Writer;
use crate::lead::{Elector, Fence};
use crate::observe::Sources;
use crate::observe::agents::Agents;
use crate::observe::causes::Causes;
use crate::serve::admin;
use crate::serve::decisions::DecisionLog;
use crate::serve::metrics::Metrics;
use crate::serve::published::Published;
use crate::translate::memory::Memory;

/// Runs until SIGTERM or SIGINT. In this order at the end: no new plans, running writes finish, the
/// lease is released, so that the next leader starts at once and finds nothing half-written.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let shutdown = shutdown_signal();
    let clients = Clients::connect().await?;
    let stop = CancellationToken::new();
    let parts = Parts::start(&config, clients, &stop).await?;
    tokio::select! {
        _ = shutdown => {}
        _ = parts.watches_ended() => tracing::error!("a watch ended by itself; stopping"),
    }
    parts.stop().await;
    Ok(())
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
            read: Client::try_from(config).context("cannot make a client")?,
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
    watches: tokio::sync::Mutex<tokio::task::JoinSet<()>>,
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
        let router = admin::router(&readiness, registry, log.clone(), published.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let writer = Writer::new(clients.write, fence.clone());
        watches.spawn(cache_key::keep(writer.clone(), config.namespace.clone(), leading.clone(), stop.clone()));
        let control = Control {
            sources,
            causes,
            journals: Arc::default(),
            agents: Arc::new(Agents::default()),
            gateways: Arc::default(),
            http: http_client()?,
            log,
            metrics,
            readiness,
            writer,
            fence,
            leading,
            changed,
            published: publish,
            print_decisions: !config.quiet_decisions,
            period: config.period(),
            policy: Policy::default(),
            prepared: Prepared::default(),
            memory: Memory::default(),
            desk: Desk::default(),
            sequence: 0,
            taken_over: None,
        };
        let stop_electing = CancellationToken::new();
        Ok(Self {
            control: tokio::spawn(control.run(stop.clone())),
            elector: tokio::spawn(elector.run(stop_electing.clone())),
            watches: tokio::sync::Mutex::new(watches),
            stop: stop.clone(),
            stop_electing,
            published,
        })
    }

    /// Resolves only if a watch task ended, which none does by design.
    pub async fn watches_ended(&self) {
        self.watches.lock().await.join_next().await;
    }

    pub async fn stop(self) {
        self.stop.cancel();
        let _ = self.control.await;
        self.stop_electing.cancel();
        let _ = self.elector.await;
    }

    /// Ends like a killed process: nothing is finished, nothing released. For tests.
    pub fn kill(self) {
        self.control.abort();
        self.elector.abort();
    }
}

fn http_client() -> anyhow::Result<reqwest::Client> {
    reqwest::Client::builder()
        .connect_timeout(Duration::from_secs(3))
        .no_proxy()
        .build()
        .context("cannot make an HTTP client")
}

/// A restarted process is another candidate: it cannot know what its former life still has in flight.
fn identity(name: &str) -> String {
    let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    format!("{name}_{}-{:x}", std::process::id(), started & 0xffff_ffff)
}
