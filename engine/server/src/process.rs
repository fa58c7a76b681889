//! From the command line to a serving process, and back to its end.
//!
//! Order of the start: arguments, budget, usage lock, model, engine thread, socket. Everything that
//! can be wrong is wrong before the socket opens, so a pod never becomes ready and then fails.
//! Order of the end: not ready, no new requests, running ones finish, connections close, exit 0.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use stowage_contracts::names::{ENV_GPU_MEMORY_BYTES, ENV_GPU_REPORT_DIR, ENV_GPU_SM_PERCENT};
use stowage_engine_core::engine::EngineConfig;
use stowage_engine_core::executor::{Executor, ModelInfo};
use stowage_engine_core::sim::{CostModel, SimConfig, SimExecutor};
use stowage_engine_models::chain;
use stowage_engine_models::{LoadOptions, ModelMeta};
use stowage_telemetry::traces::{Sampling, Tracer};
use stowage_telemetry::{health, metrics as telemetry_metrics, shutdown_signal};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::api::{self, App, Setup};
use crate::args::Serve;
use crate::budget::{self, Budget};
use crate::engine_thread::EngineHandle;
use crate::http;
use crate::load::Identity;
use crate::metrics::Metrics;
use crate::report::Reporter;
use crate::startup::StartError;
use crate::text::{self, ParseSpecial, TextModel};

/// How long responses may take to be read after the last request has finished.
const LINGER: Duration = Duration::from_secs(5);

/// For sending the last spans.
const LAST_SPANS: Duration = Duration::from_secs(3);

/// Runs the server until SIGTERM or SIGINT and all requests have finished.
pub fn serve(args: Serve) -> Result<(), StartError> {
    let started = std::time::Instant::now();
    let reporter = open_reporter()?;
    let model = load_model(&args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|err| {
        StartError::unavailable("cannot start the async runtime", err.to_string(), "Check the pod's limits on threads")
    })?;
    runtime.block_on(async {
        let address = SocketAddr::new(args.host, args.port);
        let server = Server::start(&args, model, address).await?;
        tracing::info!(address = %server.address, model = args.name, seconds = started.elapsed().as_secs_f64(), "ready");
        if let Some(reporter) = reporter {
            tokio::spawn(reporter.run(server.app.engine.clone()));
        }
        let stop = shutdown_signal();
        let engine = server.app.engine.clone();
        tokio::select! {
            _ = stop => {}
            () = ended(&engine) => return Err(StartError::software("the engine thread ended", "it panicked; the log has the place")),
        }
        server.drain(Duration::from_secs(args.drain_timeout)).await;
        Ok(())
    })
}

async fn ended(engine: &EngineHandle) {
    while !engine.has_ended() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A model ready to be served.
pub struct Model {
    pub executor: Box<dyn Executor>,
    pub text: TextModel,
}

/// A server that listens.
pub struct Server {
    pub address: SocketAddr,
    pub app: App,
    readiness: health::Readiness,
    stop: watch::Sender<bool>,
    serving: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Starts the engine thread and listens; port 0 takes any. Must run inside tokio.
    pub async fn start(args: &Serve, model: Model, address: SocketAddr) -> Result<Self, StartError> {
        let mut registry = telemetry_metrics::registry();
        let metrics = Metrics::new(&mut registry);
        let config = EngineConfig {
            max_step_tokens: args.max_step_tokens as usize,
            max_running: args.max_running as usize,
            // What the API lets in always finds a place here: it counts the sequences of a request at once.
            max_waiting: args.max_sequences(),
        };
        let identity = Identity { model: args.name.clone(), incarnation: format!("{:016x}", api::random()) };
        let engine = EngineHandle::spawn(model.executor, config, identity, metrics.clone()).map_err(|err| {
            StartError::unavailable(
                "cannot start the engine thread",
                err.to_string(),
                "Check the pod's limits on threads",
            )
        })?;
        // Gateways have decided already what is recorded, and without one there is a single user.
        let tracer = Tracer::start(&args.traces, "stowage-engine", Sampling::Caller, metrics.trace_spans.clone())
            .map_err(|err| {
                StartError::config(
                    "cannot send traces",
                    format!("{err:#}"),
                    "Change the setting, or leave out the endpoint",
                )
            })?;
        let listener = TcpListener::bind(address).await.map_err(|err| {
            StartError::unavailable(format!("cannot listen on {address}"), err.to_string(), "Choose another --port")
        })?;
        let address = listener.local_addr().unwrap_or(address);
        let app = App::new(Setup {
            engine: engine.clone(),
            text: model.text,
            parse_special: if args.parse_special { ParseSpecial::Yes } else { ParseSpecial::No },
            model: args.name.clone(),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            max_body: args.max_body_bytes,
            body_timeout: Duration::from_secs(args.body_timeout),
            max_sequences: args.max_sequences(),
            metrics: metrics.clone(),
            tracer,
        });
        let readiness = health::Readiness::starting("starting");
        readiness.set_ready();
        let router = all_routes(app.clone(), &readiness, Duration::from_secs(args.stuck_after), registry);
        let (stop, stopped) = watch::channel(false);
        let limits =
            http::Limits { connections: args.max_connections as usize, head: Duration::from_secs(args.header_timeout) };
        let serving = tokio::spawn(http::serve(listener, router, limits, metrics.connections.clone(), stopped, LINGER));
        Ok(Self { address, app, readiness, stop, serving })
    }

    /// Takes no more work, lets what runs finish for `patience` at most, and stops.
    pub async fn drain(self, patience: Duration) {
        self.readiness.set_not_ready("draining");
        self.app.engine.set_draining();
        tracing::info!(in_flight = self.app.in_flight(), "draining");
        if tokio::time::timeout(patience, self.app.idle()).await.is_err() {
            tracing::warn!(in_flight = self.app.in_flight(), "ending requests that did not finish in time");
        }
        self.stop.send_replace(true);
        let _ = self.serving.await;
        self.app.tracer.shutdown(LAST_SPANS).await;
        tracing::info!("stopped");
    }
}

fn all_routes(
    app: App,
    readiness: &health::Readiness,
    stuck_after: Duration,
    registry: telemetry_metrics::Registry,
) -> Router {
    let engine = app.engine.clone();
    let healthz: health::Check = std::sync::Arc::new(move || engine.health(stuck_after));
    let router = api::router(app.clone())
        .merge(health::router(healthz, readiness.check()))
        .merge(telemetry_metrics::router(registry));
    api::with_load_header(router, app)
}

/// Loads what `--model` names, within the byte budget.
pub fn load_model(args: &Serve) -> Result<Model, StartError> {
    if args.is_simulated() {
        return simulated(args);
    }
    let budget = read_budget(args.memory_bytes)?;
    let what = || "cannot load the model".to_owned();
    let options = LoadOptions {
        max_memory_bytes: budget.map(|budget| budget.bytes),
        kv_type: args.kv_type,
        threads: args.threads,
        max_model_len: args.max_model_len,
        isa: None,
        max_step_tokens: args.max_step_tokens as usize,
    };
    let (executor, meta) = stowage_engine_models::load(&args.model, &options).map_err(|err| {
        let limit = budget.map_or_else(String::new, |b| format!(" ({} bytes, from {})", b.bytes, b.source));
        let next = format!("Check the model file, or give the deployment another model or more memory{limit}");
        StartError::config(what(), chain(&err), next)
    })?;
    let text = TextModel::new(&meta)
        .map_err(|err| StartError::config(what(), chain(&err), "Use a model whose tokenizer is supported"))?;
    announce(&meta, executor.info(), budget);
    Ok(Model { executor, text })
}

fn announce(meta: &ModelMeta, info: &ModelInfo, budget: Option<Budget>) {
    tracing::info!(
        architecture = meta.architecture,
        parameters = meta.parameters,
        kernels = info.isa,
        kv_type = info.kv_type,
        weight_bytes = info.weight_bytes,
        kv_blocks = info.num_blocks,
        kv_bytes = info.num_blocks * info.block_bytes,
        context = info.context_len,
        budget_bytes = budget.map(|budget| budget.bytes),
        budget_from = budget.map(|budget| budget.source.to_string()),
        "model loaded"
    );
}

/// Deterministic text without meaning, for tests of gateways and routers.
fn simulated(args: &Serve) -> Result<Model, StartError> {
    let context_len = args.max_model_len.unwrap_or(8192);
    tracing::warn!("serving a simulated model: its text has no meaning");
    let executor = SimExecutor::new(SimConfig {
        vocab: text::SIMULATED_VOCAB,
        context_len,
        num_blocks: context_len,
        max_step_tokens: args.max_step_tokens as usize,
        alphabet: u32::from(b'a')..u32::from(b'z') + 1,
        stop_token: text::SIMULATED_END,
        stop_every: 0,
        cost: CostModel { a: 1.0, d: 0.05, k: 0.01, p: 1.0 },
    });
    let text = TextModel::new(&text::simulated_meta(context_len))
        .map_err(|err| StartError::software("cannot build the simulated tokenizer", chain(&err)))?;
    Ok(Model { executor: Box::new(Paced(executor)), text })
}

/// Takes the time that the cost model charges.
struct Paced(SimExecutor);

impl Executor for Paced {
    fn info(&self) -> &ModelInfo {
        self.0.info()
    }

    fn step(
        &mut self,
        batch: &stowage_engine_core::executor::StepBatch<'_>,
        logits: &mut Vec<f32>,
    ) -> Result<(), stowage_engine_core::executor::ExecError> {
        let before = self.0.elapsed_ms();
        let result = self.0.step(batch, logits);
        std::thread::sleep(Duration::from_secs_f64((self.0.elapsed_ms() - before) / 1e3));
        result
    }
}

fn read_budget(flag: Option<u64>) -> Result<Option<Budget>, StartError> {
    let slice = std::env::var(ENV_GPU_MEMORY_BYTES).ok();
    let slice = budget::parse_bytes(ENV_GPU_MEMORY_BYTES, slice.as_deref()).map_err(|why| {
        StartError::config(
            "cannot read the GPU slice",
            why,
            "The node agent sets it through CDI; check the claim's devices",
        )
    })?;
    let container = budget::container_limit(Path::new("/sys/fs/cgroup"));
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| budget::machine_memory(&text));
    Ok(budget::budget(flag, slice, container, machine))
}

/// The usage report is asked for by the environment. A directory that cannot be used is an error:
/// unreported memory would be attributed to no claim.
fn open_reporter() -> Result<Option<Reporter>, StartError> {
    let Some(dir) = std::env::var_os(ENV_GPU_REPORT_DIR).filter(|dir| !dir.is_empty()) else { return Ok(None) };
    let granted = std::env::var(ENV_GPU_SM_PERCENT).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(100);
    let reporter = Reporter::open(Path::new(&dir), granted).map_err(|err| {
        let what = format!("cannot write the usage report in {}", Path::new(&dir).display());
        StartError::unavailable(
            what,
            err.to_string(),
            "The node agent makes the directory, writable by uid 65532; check its log",
        )
    })?;
    Ok(Some(reporter))
}
