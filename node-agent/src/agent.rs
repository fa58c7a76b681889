//! Starts the parts and connects them: threads that read GPUs, the state of the node, and who reads it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use stowage_telemetry::{health, metrics as telemetry_metrics};
use tokio::sync::{mpsc, watch};

use crate::args::Args;
use crate::device::model::GpuFacts;
use crate::device::sampler::{self, SamplerMessage};
use crate::dra::claims::KubeClaims;
use crate::dra::plugin::{self, DeviceVerdicts, Sockets};
use crate::dra::prepare::{Paths, Preparer, Refusals};
use crate::dra::slices::{Publisher, by_device_name};
use crate::models::{self, ModelsState};
use crate::serve::metrics::Metrics;
use crate::serve::{estimates, http, preloads};
use crate::usage::attribution::KernelAttribution;
use crate::usage::view::{NodeState, NodeView, Trouble};

/// The kubelet drops a device's health after 30 s without an update.
const HEALTH_HEARTBEAT: Duration = Duration::from_secs(10);
/// Without a message from the sampler for so long, the agent is restarted.
const STUCK_AFTER: Duration = Duration::from_secs(60);
/// How often unfinished preparations are checked, until the API server has answered once.
const ABANDONED_RETRY: Duration = Duration::from_secs(10);

/// Runs until a signal comes. Everything that was prepared stays prepared.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let stop = watch::Sender::new(false);
    let signal = stowage_telemetry::shutdown_signal();
    let client = kube::Client::try_default().await?;
    let (gpus, gpus_seen) = watch::channel(Arc::new(Vec::<GpuFacts>::new()));
    let paths = Paths { cdi: args.cdi_dir.clone(), state: args.state_dir.clone() };
    let claims = Arc::new(KubeClaims(client.clone()));
    let simulated = args.profile().is_some();
    let (preparer, checkpoint, rebuilt) =
        Preparer::open(&args.node_name, simulated, paths.clone(), claims, gpus_seen.clone())
            .map_err(|err| anyhow::anyhow!("cannot use {}: {err}", args.state_dir.display()))?;
    let preparer = Arc::new(preparer);

    let mut registry = telemetry_metrics::registry();
    let metrics = Metrics::register(&mut registry, &args.node_name);
    let together = metrics.together();
    let figures = models::figures::Figures::register(&mut registry);
    let (views, views_seen) = watch::channel(Arc::new(NodeView::empty(simulated, Timestamp::now())));
    let (verdicts, verdicts_seen) = watch::channel(DeviceVerdicts::default());
    let registered = watch::Sender::new(Err("the kubelet has not registered the driver yet".to_owned()));
    let (elsewhere, api_trouble) = (watch::Sender::new(None), watch::Sender::new(None));
    let alive = watch::Sender::new(Instant::now());

    let sockets = Sockets::new(&args.plugins_dir, &args.registry_dir, &args.pod_uid);
    let plugin = tokio::spawn({
        let (sockets, preparer, registered, stopped) =
            (sockets.clone(), Arc::clone(&preparer), registered.clone(), stop.subscribe());
        async move { plugin::serve(&sockets, preparer, verdicts_seen, registered, stopped).await }
    });
    let refusals = preparer.refusals();
    tokio::spawn(forget_abandoned(preparer));
    tokio::spawn(crate::serve::gpunode::run(client.clone(), args.node_name.clone(), views_seen.clone()));
    let publisher = Publisher {
        client,
        node: args.node_name.clone(),
        simulated,
        gpus: gpus_seen,
        elsewhere: elsewhere.clone(),
        api_trouble: api_trouble.clone(),
    };
    tokio::spawn(publisher.run());

    let (messages, received) = mpsc::channel(64);
    let threads_stop = Arc::new(AtomicBool::new(false));
    sampler::start(args.library(), messages, Arc::clone(&threads_stop))?;
    let settings = models::task::Settings { figures, ..args.models()? };
    let estimator = Arc::new(settings.estimator(&paths.models()));
    let (ahead, asked) = watch::channel(models::preloads::Asked::default());
    let models = models::task::start(settings, paths.models(), checkpoint.clone(), asked);
    let updater = Updater {
        models,
        simulated,
        scenario: simulated.then(|| stowage_gpu_scenario::Store::new(args.scenario())),
        checkpoint,
        refusals,
        gpus,
        views,
        verdicts,
        elsewhere: elsewhere.subscribe(),
        api_trouble: api_trouble.subscribe(),
        metrics,
        alive: alive.clone(),
        rebuilt,
    };
    tokio::spawn(updater.run(received));

    let api = http::Api { node: args.node_name.clone(), views: views_seen.clone() };
    let scraped = stowage_telemetry::metrics::router_of(registry, together);
    stowage_telemetry::metrics::serve(&args.metrics_listen, scraped.clone()).await?;
    let router = http::router(api, scraped, healthz(alive), readyz(registered, views_seen));
    let router = router.merge(estimates::router(estimator)).merge(preloads::router(ahead));
    let listener = tokio::net::TcpListener::bind(&args.listen).await;
    let listener = listener.map_err(|err| anyhow::anyhow!("cannot listen on {}: {err}", args.listen))?;
    let serve = axum::serve(listener, router);

    let result = tokio::select! {
        _ = signal => Ok(()),
        served = serve => served.map_err(|err| anyhow::anyhow!("the HTTP server ended: {err}")),
        ended = plugin => match ended {
            Ok(Ok(())) => Err(anyhow::anyhow!("the plugin's server ended")),
            Ok(Err(err)) => Err(err),
            Err(err) => Err(err.into()),
        },
    };
    stop.send_replace(true);
    threads_stop.store(true, Ordering::Relaxed);
    sockets.remove();
    result
}

fn healthz(alive: watch::Sender<Instant>) -> health::Check {
    Arc::new(move || {
        let silent = alive.borrow().elapsed();
        if silent < STUCK_AFTER { Ok(()) } else { Err(format!("no reading of the GPUs for {} s", silent.as_secs())) }
    })
}

fn readyz(registered: watch::Sender<Result<(), String>>, views: watch::Receiver<Arc<NodeView>>) -> health::Check {
    Arc::new(move || {
        if let Some((_, message)) = views.borrow().troubles.get(&Trouble::NvmlUnavailable) {
            return Err(message.clone());
        }
        if views.borrow().facts.is_empty() {
            return Err("no GPU has been read yet".to_owned());
        }
        registered.borrow().clone()
    })
}

async fn forget_abandoned(preparer: Arc<Preparer>) {
    loop {
        match preparer.forget_abandoned().await {
            Ok(0) => return,
            Ok(count) => return tracing::info!(count, "forgot preparations that a crash cut short"),
            Err(err) => tracing::debug!(%err, "cannot look at unfinished preparations yet"),
        }
        tokio::time::sleep(ABANDONED_RETRY).await;
    }
}

/// Takes the sampler's messages, keeps the state of the node, and publishes it.
struct Updater {
    models: watch::Receiver<ModelsState>,
    simulated: bool,
    scenario: Option<stowage_gpu_scenario::Store>,
    checkpoint: watch::Receiver<Arc<crate::dra::checkpoint::Checkpoint>>,
    refusals: watch::Receiver<Refusals>,
    gpus: watch::Sender<Arc<Vec<GpuFacts>>>,
    views: watch::Sender<Arc<NodeView>>,
    verdicts: watch::Sender<DeviceVerdicts>,
    elsewhere: watch::Receiver<Option<String>>,
    api_trouble: watch::Receiver<Option<String>>,
    metrics: Metrics,
    alive: watch::Sender<Instant>,
    rebuilt: Option<String>,
}

impl Updater {
    async fn run(mut self, mut messages: mpsc::Receiver<SamplerMessage>) {
        let mut state = NodeState::new(self.simulated, Timestamp::now());
        let attribution = KernelAttribution::default();
        if let Some(message) = self.rebuilt.take() {
            tracing::error!("{message}");
            state.trouble(Trouble::CheckpointRebuilt, Some(message), Timestamp::now());
        }
        let mut reported_to_kubelet = Instant::now();
        while let Some(message) = messages.recv().await {
            let now = Timestamp::now();
            self.alive.send_replace(Instant::now());
            match message {
                SamplerMessage::Facts { facts, driver_version } => {
                    self.gpus.send_if_modified(|known| {
                        let changed = **known != facts;
                        if changed {
                            *known = Arc::new(facts.clone());
                        }
                        changed
                    });
                    state.facts(facts, driver_version);
                    state.trouble(Trouble::NvmlUnavailable, None, now);
                }
                SamplerMessage::Readings(readings) => {
                    let checkpoint = Arc::clone(&self.checkpoint.borrow());
                    state.readings(readings, checkpoint, &attribution, now);
                    state.refusals(&self.refusals.borrow(), now);
                    self.troubles(&mut state, now);
                }
                SamplerMessage::Event(event) => {
                    tracing::warn!(?event, "the driver reports an error");
                    state.event(&event, now);
                }
                SamplerMessage::Unavailable(why) => {
                    tracing::error!(why, "NVML cannot be used");
                    state.trouble(Trouble::NvmlUnavailable, Some(why), now);
                    // On a simulated node the reason is most likely the scenario.
                    self.troubles(&mut state, now);
                }
            }
            let heartbeat = reported_to_kubelet.elapsed() >= HEALTH_HEARTBEAT;
            if heartbeat {
                reported_to_kubelet = Instant::now();
            }
            self.show(&state.view, heartbeat, now);
        }
    }

    fn troubles(&mut self, state: &mut NodeState, now: Timestamp) {
        let scenario = self.scenario.as_mut().and_then(|store| store.last_error().map(str::to_owned));
        state.trouble(Trouble::ScenarioInvalid, scenario, now);
        state.trouble(Trouble::ManagedElsewhere, self.elsewhere.borrow().clone(), now);
        state.trouble(Trouble::ApiServer, self.api_trouble.borrow().clone(), now);
    }

    fn show(&self, view: &NodeView, heartbeat: bool, now: Timestamp) {
        let view = &NodeView { models: self.models.borrow().clone(), ..view.clone() };
        self.metrics.set(view, now);
        let by_name: DeviceVerdicts = Arc::new(by_device_name(&view.facts, &view.verdicts));
        self.verdicts.send_if_modified(|shown| {
            let changed = heartbeat || *shown != by_name;
            *shown = by_name;
            changed
        });
        self.log_changes(view);
        self.views.send_replace(Arc::new(view.clone()));
    }

    fn log_changes(&self, view: &NodeView) {
        let before = self.views.borrow();
        for (uuid, verdict) in &view.verdicts {
            let old = before.verdicts.get(uuid);
            if old.is_some_and(|old| old.health != verdict.health || old.reason != verdict.reason) {
                tracing::warn!(gpu = uuid, health = ?verdict.health, reason = verdict.reason, message = verdict.message, "verdict changed");
            }
        }
        for overshoot in &view.overshoots {
            if !before.overshoots.iter().any(|old| old.claim_uid == overshoot.claim_uid && old.gpu == overshoot.gpu) {
                tracing::warn!(
                    claim = overshoot.claim_uid,
                    gpu = overshoot.gpu,
                    promised = overshoot.promised_bytes,
                    used = overshoot.samples.last().map(|(_, bytes)| *bytes),
                    "claim uses more than promised"
                );
            }
        }
    }
}
