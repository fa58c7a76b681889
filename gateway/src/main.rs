//! `stowage-gateway`: reads its settings, starts the watches and both ports, drains on SIGTERM.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use stowage_contracts::names::{DEFAULT_DRAIN_SECONDS, GATEWAY_ADMIN_PORT, GATEWAY_PORT};
use stowage_gateway::admin;
use stowage_gateway::gateway::{Gateway, Settings};
use stowage_gateway::listen::body::BodyLimits;
use stowage_gateway::listen::cors::Cors;
use stowage_gateway::listen::peers::PeerLimits;
use stowage_gateway::listen::server;
use stowage_gateway::listen::server::{Server, ServerLimits};
use stowage_gateway::metrics::Metrics;
use stowage_gateway::queue::client;
use stowage_gateway::queue::directory::Directory;
use stowage_gateway::queue::pool::PoolSettings;
use stowage_gateway::queue::replica::Gate;
use stowage_gateway::relay::stream::StreamPatience;
use stowage_gateway::world::facts::Facts;
use stowage_gateway::world::{static_file, watch};
use stowage_telemetry::health::{Check, Heartbeat, always};
use stowage_telemetry::traces::{Sampling, TraceArgs, Tracer};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// The data plane: OpenAI clients on one side, engine pods on the other.
#[derive(Debug, Parser)]
#[command(name = "stowage-gateway", version)]
struct Options {
    /// Address for clients.
    #[arg(long, env = "STOWAGE_LISTEN", default_value_t = SocketAddr::from(([0, 0, 0, 0], GATEWAY_PORT)))]
    listen: SocketAddr,
    /// Address for probes, metrics and signals.
    #[arg(long, env = "STOWAGE_ADMIN_LISTEN", default_value_t = SocketAddr::from(([0, 0, 0, 0], GATEWAY_ADMIN_PORT)))]
    admin_listen: SocketAddr,
    /// Address that serves metrics alone, for scrapers. Empty: none.
    #[arg(long, env = "STOWAGE_METRICS_LISTEN", default_value = "")]
    metrics_listen: String,
    /// Read tenants, keys, models and endpoints from this file instead of a cluster (development).
    #[arg(long, env = "STOWAGE_STATIC_WORLD")]
    static_world: Option<PathBuf>,
    /// Gateways that share each tenant's token rate and concurrency.
    #[arg(long, env = "STOWAGE_GATEWAY_REPLICAS", default_value_t = 1)]
    gateways: u32,
    /// Largest request body, in bytes.
    #[arg(long, env = "STOWAGE_MAX_BODY_BYTES", default_value_t = 8 << 20)]
    max_body_bytes: usize,
    /// Bytes of all request bodies held at a time; one tenant alone may hold three quarters of it.
    #[arg(long, env = "STOWAGE_MAX_BUFFERED_BYTES", default_value_t = 192 << 20)]
    max_buffered_bytes: usize,
    /// Seconds for a body to arrive, plus one per 64 KiB received.
    #[arg(long, env = "STOWAGE_BODY_TIMEOUT_SECONDS", default_value_t = 15)]
    body_timeout_seconds: u64,
    /// Seconds for a request's head to arrive, and for an idle connection to stay open.
    #[arg(long, env = "STOWAGE_HEADER_TIMEOUT_SECONDS", default_value_t = 30)]
    header_timeout_seconds: u64,
    /// Seconds that a client may leave an answer unread; each KiB that it reads gives one second back.
    #[arg(long, env = "STOWAGE_WRITE_TIMEOUT_SECONDS", default_value_t = 20)]
    write_timeout_seconds: u64,
    /// Client connections; more wait in the kernel's queue.
    #[arg(long, env = "STOWAGE_MAX_CONNECTIONS", default_value_t = 20_000)]
    max_connections: usize,
    /// Client connections of one address (IPv6: of one /64 network). Raise it behind a load balancer that hides the
    /// clients' addresses.
    #[arg(long, env = "STOWAGE_MAX_CONNECTIONS_PER_ADDRESS", default_value_t = 2_000)]
    max_connections_per_address: usize,
    /// Client connections that have not shown a valid key; when there are more, the oldest ends.
    #[arg(long, env = "STOWAGE_MAX_UNAUTHENTICATED_CONNECTIONS", default_value_t = 2_000)]
    max_unauthenticated_connections: usize,
    /// Origins of web pages that may read answers (CORS), separated by commas; `*` for all. Empty: none.
    #[arg(long, env = "STOWAGE_CORS_ORIGINS", value_delimiter = ',')]
    cors_origins: Vec<String>,
    /// Sequences in flight per replica from this gateway; more are queued here.
    #[arg(long, env = "STOWAGE_MAX_IN_FLIGHT_PER_REPLICA", default_value_t = 256)]
    max_in_flight_per_replica: u32,
    /// Un-prefilled tokens per replica beyond which requests are queued here.
    #[arg(long, env = "STOWAGE_MAX_BACKLOG_TOKENS", default_value_t = 8192)]
    max_backlog_tokens: u32,
    /// Requests that may wait for room, per model.
    #[arg(long, env = "STOWAGE_MAX_QUEUED", default_value_t = 1000)]
    max_queued: usize,
    /// Seconds that a request waits for room on a replica.
    #[arg(long, env = "STOWAGE_QUEUE_TIMEOUT_SECONDS", default_value_t = 300)]
    queue_timeout_seconds: u64,
    /// Seconds without a byte after which an open stream is given up.
    #[arg(long, env = "STOWAGE_STREAM_IDLE_SECONDS", default_value_t = 120)]
    stream_idle_seconds: u64,
    /// The same on a replica whose heartbeat is lost.
    #[arg(long, env = "STOWAGE_STREAM_LOST_SECONDS", default_value_t = 10)]
    stream_lost_seconds: u64,
    /// Seconds of full service after /readyz answers 503.
    #[arg(long, env = "STOWAGE_DRAIN_DELAY_SECONDS", default_value_t = 5)]
    drain_delay_seconds: u64,
    /// Seconds for open streams to end after that; the pod's grace period must cover both.
    #[arg(long, env = "STOWAGE_DRAIN_TIMEOUT_SECONDS", default_value_t = DEFAULT_DRAIN_SECONDS)]
    drain_timeout_seconds: u64,
    #[command(flatten)]
    traces: TraceArgs,
}

/// Headers of one request.
const MAX_HEADERS: usize = 64;

/// For sending the last spans. The pod's grace period has room for it.
const LAST_SPANS: Duration = Duration::from_secs(3);

/// A gateway that has not looked at what changed for this long hangs: revoked keys would stay valid.
const STUCK_AFTER: Duration = Duration::from_secs(60);

fn main() -> anyhow::Result<()> {
    stowage_telemetry::install_crypto();
    stowage_telemetry::init_tracing("gateway");
    let options = Options::parse();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(run(options))
}

async fn run(options: Options) -> anyhow::Result<()> {
    let shutdown = stowage_telemetry::shutdown_signal();
    let files = server::raise_file_limit();
    // A connection needs a descriptor here and, while it asks, one towards an engine.
    if files / 2 < options.max_connections as u64 {
        tracing::warn!(
            files,
            connections = options.max_connections,
            "fewer open files than connections need: raise the hard limit or lower STOWAGE_MAX_CONNECTIONS"
        );
    }
    let cors = Cors::new(options.cors_origins.clone()).map_err(anyhow::Error::msg).context("STOWAGE_CORS_ORIGINS")?;
    let mut registry = stowage_telemetry::metrics::registry();
    let metrics = Metrics::register(&mut registry);
    let client = client::client();
    let directory = Directory::new(options.pool(), client.clone(), metrics.clone());
    // Clients are tenants: none of them decides what is recorded.
    let tracer = Tracer::start(&options.traces, "stowage-gateway", Sampling::Own, metrics.trace_spans.clone())?;
    let gateway = Gateway::new(options.settings(), cors, directory.clone(), client, metrics.clone(), tracer.clone());

    let (mut following, healthz) = start_world(&options, &gateway, metrics).await?;
    let listener =
        server::bind(options.listen).with_context(|| format!("cannot listen for clients on {}", options.listen))?;
    let admin_listener = TcpListener::bind(options.admin_listen)
        .await
        .with_context(|| format!("cannot listen for administration on {}", options.admin_listen))?;
    let scraped = admin::metrics(&gateway, registry);
    stowage_telemetry::metrics::serve(&options.metrics_listen, scraped.clone()).await?;
    let admin = admin::router(gateway.clone(), scraped, healthz);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(admin_listener, admin).await {
            tracing::error!(%error, "the administrative port stopped");
        }
    });
    tracing::info!(listen = %options.listen, admin = %options.admin_listen, "serving");
    let server =
        Server { limits: options.server(), readiness: gateway.readiness.clone(), metrics: gateway.metrics.clone() };
    let mut lost = None;
    let stop = async {
        tokio::select! {
            _ = shutdown => {}
            ended = &mut following => lost = Some(ended),
        }
    };
    server.serve(listener, gateway, stop).await;
    tracer.shutdown(LAST_SPANS).await;
    tracing::info!("drained");
    match lost {
        None => Ok(()),
        // Without it the last known keys and replicas would be served for ever.
        Some(ended) => Err(ended.err().map_or_else(|| anyhow::anyhow!("a watch ended by itself"), Into::into))
            .context("following the cluster ended; the process ends to be started again"),
    }
}

/// Starts what fills the directory, and says how to see whether it still does. The gateway is ready when the first
/// state is complete.
async fn start_world(
    options: &Options,
    gateway: &Arc<Gateway>,
    metrics: Arc<Metrics>,
) -> anyhow::Result<(JoinHandle<()>, Check)> {
    let directory = gateway.directory.clone();
    if let Some(path) = &options.static_world {
        directory.apply(&static_file::read(path)?);
        gateway.readiness.set_ready();
        let following = tokio::spawn(static_file::follow(path.clone(), move |facts| directory.apply(facts)));
        return Ok((following, always()));
    }
    let client = kube::Client::try_default()
        .await
        .context("cannot find a cluster: run inside one, set KUBECONFIG, or use --static-world")?;
    let mut readiness = Some(gateway.readiness.clone());
    let apply = move |facts: &Facts| {
        directory.apply(facts);
        // Once only: a gateway that drains must not become ready again.
        if let Some(readiness) = readiness.take() {
            readiness.set_ready();
        }
    };
    let heartbeat = Heartbeat::default();
    let following = tokio::spawn(watch::follow(client, metrics, heartbeat.clone(), apply));
    Ok((following, heartbeat.check(STUCK_AFTER, "look at what changed in the cluster")))
}

impl Options {
    fn pool(&self) -> PoolSettings {
        PoolSettings {
            gate: Gate {
                max_in_flight: self.max_in_flight_per_replica,
                backlog_tokens: self.max_backlog_tokens.into(),
            },
            max_queued: self.max_queued,
            queue_timeout: Duration::from_secs(self.queue_timeout_seconds),
        }
    }

    fn settings(&self) -> Settings {
        Settings {
            body: BodyLimits {
                max_bytes: self.max_body_bytes,
                max_total_bytes: self.max_buffered_bytes,
                patience: Duration::from_secs(self.body_timeout_seconds),
            },
            stream: StreamPatience {
                idle: Duration::from_secs(self.stream_idle_seconds),
                lost: Duration::from_secs(self.stream_lost_seconds),
            },
            gateways: self.gateways,
            max_headers: MAX_HEADERS,
            max_sequences: self.max_in_flight_per_replica,
        }
    }

    fn server(&self) -> ServerLimits {
        ServerLimits {
            max_connections: self.max_connections,
            peers: PeerLimits {
                max_per_address: self.max_connections_per_address,
                max_guests: self.max_unauthenticated_connections,
            },
            max_partial_heads: 16 << 20,
            write_timeout: Duration::from_secs(self.write_timeout_seconds),
            header_timeout: Duration::from_secs(self.header_timeout_seconds),
            max_headers: MAX_HEADERS,
            max_head_bytes: 32 << 10,
            drain_delay: Duration::from_secs(self.drain_delay_seconds),
            drain_timeout: Duration::from_secs(self.drain_timeout_seconds),
        }
    }
}
