//! The task that makes the cache agree with the claims. Beside the driver, never inside `prepare`, which holds the node.
//!
//! One agent of the node at a time: in a rolling update the new one waits for the old one's lock.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use stowage_contracts::model::{ClaimModel, ModelKey};
use stowage_contracts::summary::{FetchPhase, ModelFetch};
use stowage_fetch::address::Addresses;
use stowage_fetch::{FetchError, Fetcher, Kind, Limits, Phase, Progress, Request, parse_url};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::dra::checkpoint::Checkpoint;
use crate::dra::model_dirs::ClaimDirectories;
use crate::models::ModelsState;
use crate::models::evict::{Cached, evict};
use crate::models::store::Store;

/// Models that are fetched at the same time; the others wait.
const AT_ONCE: usize = 2;
/// How often a fetch is looked at.
const TICK: Duration = Duration::from_millis(250);
/// What is shown of a fetch changes when it has come so many per cent further, or after so long.
const SHOWN_PERCENT: u64 = 5;
const SHOWN_AFTER: Duration = Duration::from_secs(10);
/// A failed fetch is tried again after this time; one that needs a change elsewhere, after the longer one.
const RETRY: Duration = Duration::from_secs(60);
const RETRY_LATER: Duration = Duration::from_secs(300);
/// The directory of a claim that is unknown for so long was left by a crash.
const ABANDONED: Duration = Duration::from_secs(600);

/// How models are fetched and kept.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub addresses: Addresses,
    pub limits: Limits,
    /// 0: four fifths of the disk.
    pub cache_bytes: u64,
}

/// Starts the task; what it does is seen in the state.
pub fn start(
    settings: Settings,
    models: PathBuf,
    checkpoint: watch::Receiver<Arc<Checkpoint>>,
) -> watch::Receiver<ModelsState> {
    let (state, seen) = watch::channel(ModelsState::default());
    tokio::spawn(async move {
        let _lock = lock(&models).await;
        match Store::open(&models) {
            Ok(store) => Task::new(settings, &models, store, checkpoint, state).run().await,
            Err(err) => {
                tracing::error!(%err, models = %models.display(), "models cannot be fetched: the cache cannot be used")
            }
        }
    });
    seen
}

/// Held as long as the process lives.
async fn lock(models: &Path) -> Option<std::fs::File> {
    loop {
        let opened = std::fs::create_dir_all(models).and_then(|()| std::fs::File::create(models.join("lock")));
        match opened {
            Ok(file) if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok() => {
                return Some(file);
            }
            Ok(_) => tokio::time::sleep(Duration::from_millis(500)).await,
            Err(err) => {
                tracing::error!(%err, models = %models.display(), "cannot lock the cache of models");
                return None;
            }
        }
    }
}

struct Task {
    store: Store,
    claims: ClaimDirectories,
    fetcher: Fetcher,
    limit: u64,
    checkpoint: watch::Receiver<Arc<Checkpoint>>,
    state: watch::Sender<ModelsState>,
    active: BTreeMap<ModelKey, Active>,
    failed: BTreeMap<ModelKey, Failed>,
    /// Claims that were in the checkpoint when this task last looked.
    known: BTreeSet<String>,
    finished: (mpsc::Sender<Finished>, mpsc::Receiver<Finished>),
}

/// A fetch that ended.
type Finished = (ModelKey, Result<(), FetchError>);

/// A fetch that runs.
struct Active {
    progress: watch::Receiver<Progress>,
    began: Instant,
    /// Bytes that were there when it began: they are no measure of its rate.
    began_at: Option<u64>,
    shown: Progress,
    shown_at: Instant,
    task: AbortHandle,
}

struct Failed {
    error: String,
    again: Instant,
}

/// A model and the claims that read it.
struct Wanted {
    model: ClaimModel,
    claims: Vec<String>,
}

impl Task {
    fn new(
        settings: Settings,
        models: &Path,
        store: Store,
        checkpoint: watch::Receiver<Arc<Checkpoint>>,
        state: watch::Sender<ModelsState>,
    ) -> Self {
        let limit = match settings.cache_bytes {
            0 => store.default_limit().unwrap_or(u64::MAX),
            bytes => bytes,
        };
        Self {
            claims: ClaimDirectories::new(models),
            fetcher: Fetcher::new(settings.addresses, settings.limits),
            store,
            limit,
            checkpoint,
            state,
            active: BTreeMap::new(),
            failed: BTreeMap::new(),
            known: BTreeSet::new(),
            finished: mpsc::channel(AT_ONCE),
        }
    }

    async fn run(mut self) {
        self.remove_abandoned();
        loop {
            let wanted = wanted(&self.checkpoint.borrow_and_update());
            if let Err(err) = self.step(&wanted) {
                tracing::error!(%err, "the cache of models cannot be read or written");
            }
            let waits = !self.active.is_empty() || wanted.keys().any(|key| !self.is_there(key));
            let tick = async { if waits { tokio::time::sleep(TICK).await } else { std::future::pending().await } };
            tokio::select! {
                changed = self.checkpoint.changed() => if changed.is_err() { return },
                Some((key, result)) = self.finished.1.recv() => self.finish(&key, result),
                () = tick => {}
            }
        }
    }

    fn is_there(&self, key: &ModelKey) -> bool {
        self.store.file(key).is_some()
    }

    fn step(&mut self, wanted: &BTreeMap<ModelKey, Wanted>) -> std::io::Result<()> {
        self.stop_unwanted(wanted)?;
        self.remove_directories(wanted)?;
        for (key, Wanted { model, claims }) in wanted {
            match self.store.file(key) {
                Some(file) => self.hand_out(key, &file, claims)?,
                None => self.start_fetch(key, model),
            }
        }
        let cached = self.make_room(wanted)?;
        let fetches =
            wanted.iter().filter(|(key, _)| !cached.contains_key(key)).map(|(key, w)| self.shown(key, w)).collect();
        let state =
            ModelsState { cached: cached.into_iter().map(|(key, model)| (key, model.bytes)).collect(), fetches };
        self.state.send_if_modified(|old| {
            let changed = *old != state;
            *old = state;
            changed
        });
        Ok(())
    }

    fn stop_unwanted(&mut self, wanted: &BTreeMap<ModelKey, Wanted>) -> std::io::Result<()> {
        self.failed.retain(|key, _| wanted.contains_key(key));
        self.active.retain(|key, active| {
            let keep = wanted.contains_key(key);
            if !keep {
                active.task.abort();
            }
            keep
        });
        let active = &self.active;
        self.store.forget_partials(|key| wanted.contains_key(key) || active.contains_key(key))
    }

    /// The driver removes a claim's directory; this task may have made it anew before it saw that the claim is gone.
    fn remove_directories(&mut self, wanted: &BTreeMap<ModelKey, Wanted>) -> std::io::Result<()> {
        let now: BTreeSet<String> = wanted.values().flat_map(|wanted| wanted.claims.iter().cloned()).collect();
        for uid in self.known.difference(&now) {
            self.claims.remove(uid)?;
        }
        self.known = now;
        Ok(())
    }

    fn hand_out(&self, key: &ModelKey, file: &Path, claims: &[String]) -> std::io::Result<()> {
        for uid in claims.iter().filter(|uid| !self.claims.is_complete(uid)) {
            self.claims.make(uid)?;
            self.claims.complete(uid, file)?;
            self.store.touch(key);
            tracing::info!(model = %key, claim = uid, "the model is handed to the claim");
        }
        Ok(())
    }

    fn start_fetch(&mut self, key: &ModelKey, model: &ClaimModel) {
        let waits = self.failed.get(key).is_some_and(|failed| Instant::now() < failed.again);
        if waits || self.active.contains_key(key) || self.active.len() >= AT_ONCE {
            return;
        }
        let request = match self.request(key, model) {
            Ok(request) => request,
            Err(err) => return self.fail(key, &err),
        };
        tracing::info!(model = %key, "fetching a model");
        let (sender, progress) = watch::channel(Progress::default());
        let (fetcher, finished, name) = (self.fetcher.clone(), self.finished.0.clone(), key.clone());
        let task = tokio::spawn(async move {
            let result = fetcher.fetch(&request, &sender).await;
            // The receiver lives as long as the agent.
            let _ = finished.send((name, result)).await;
        });
        let now = Instant::now();
        let active = Active {
            progress,
            began: now,
            began_at: None,
            shown: Progress::default(),
            shown_at: now,
            task: task.abort_handle(),
        };
        self.active.insert(key.clone(), active);
    }

    fn request(&self, key: &ModelKey, model: &ClaimModel) -> Result<Request, FetchError> {
        let bad = |why: &str| FetchError::Url { why: why.to_owned() };
        Ok(Request {
            url: parse_url(&model.url)?,
            sha256: model.digest().ok_or_else(|| bad("its digest is no SHA-256"))?,
            partial: self.store.partial(key).ok_or_else(|| bad("its digest is no SHA-256"))?,
        })
    }

    fn finish(&mut self, key: &ModelKey, result: Result<(), FetchError>) {
        // One that was stopped may have finished all the same; its file is removed with the other partial ones.
        let Some(active) = self.active.remove(key) else { return };
        let seconds = active.began.elapsed().as_secs_f64();
        match result.and_then(|()| Ok(self.store.publish(key)?)) {
            Ok(()) => {
                self.failed.remove(key);
                tracing::info!(model = %key, bytes = active.progress.borrow().total, seconds, "a model is complete");
            }
            Err(err) => {
                if let FetchError::DiskFull { needed, free } = err {
                    self.free(needed.saturating_sub(free));
                }
                self.fail(key, &err);
            }
        }
    }

    fn fail(&mut self, key: &ModelKey, err: &FetchError) {
        tracing::warn!(model = %key, %err, "a model cannot be fetched");
        let pause = if err.kind() == Kind::Permanent && !matches!(err, FetchError::DiskFull { .. }) {
            RETRY_LATER
        } else {
            RETRY
        };
        self.failed.insert(key.clone(), Failed { error: err.to_string(), again: Instant::now() + pause });
    }

    /// Keeps the cache within its limit; what is left.
    fn make_room(&self, wanted: &BTreeMap<ModelKey, Wanted>) -> std::io::Result<BTreeMap<ModelKey, Cached>> {
        let mut cached = self.store.list()?;
        for (key, model) in &mut cached {
            model.in_use |= wanted.contains_key(key);
        }
        let models: Vec<Cached> = cached.values().cloned().collect();
        for key in evict(&models, self.limit, 0) {
            self.store.remove(&key)?;
            cached.remove(&key);
            tracing::info!(model = %key, "removed an unused model, the cache is full");
        }
        Ok(cached)
    }

    /// Removes unused models for a file that does not fit on the disk.
    fn free(&self, bytes: u64) {
        let wanted = wanted(&self.checkpoint.borrow());
        let Ok(cached) = self.store.list() else { return };
        let models: Vec<Cached> = cached
            .into_values()
            .map(|model| Cached { in_use: model.in_use || wanted.contains_key(&model.key), ..model })
            .collect();
        let held = models.iter().map(|model| model.bytes).sum();
        for key in evict(&models, held, bytes) {
            tracing::info!(model = %key, "removing an unused model, the disk is full");
            if let Err(err) = self.store.remove(&key) {
                tracing::error!(model = %key, %err, "cannot remove a model");
            }
        }
    }

    fn shown(&mut self, key: &ModelKey, wanted: &Wanted) -> ModelFetch {
        let base = ModelFetch {
            model: key.clone(),
            claims: wanted.claims.clone(),
            phase: FetchPhase::Queued,
            bytes: 0,
            total_bytes: 0,
            bytes_per_second: 0,
            error: None,
        };
        if let Some(active) = self.active.get_mut(key) {
            return active.shown(base);
        }
        match self.failed.get(key) {
            Some(failed) => ModelFetch { phase: FetchPhase::Failed, error: Some(failed.error.clone()), ..base },
            None => base,
        }
    }

    fn remove_abandoned(&self) {
        let known = Arc::clone(&self.checkpoint.borrow());
        for uid in self.claims.all().unwrap_or_default().iter().filter(|uid| !known.claims.contains_key(*uid)) {
            let changed = std::fs::metadata(self.claims.of(uid)).and_then(|found| found.modified());
            let age = changed.ok().and_then(|at| SystemTime::now().duration_since(at).ok());
            if age.is_some_and(|age| age > ABANDONED)
                && let Err(err) = self.claims.remove(uid)
            {
                tracing::warn!(%err, claim = uid, "cannot remove the directory of a claim that is gone");
            }
        }
    }
}

impl Active {
    /// What is reported moves in steps: each report is a write to the API server.
    fn shown(&mut self, base: ModelFetch) -> ModelFetch {
        let now = *self.progress.borrow();
        if now.total > 0 {
            self.began_at.get_or_insert(now.bytes);
        }
        let percent = |progress: Progress| progress.bytes.saturating_mul(100).checked_div(progress.total).unwrap_or(0);
        let moved = now.phase != self.shown.phase
            || now.total != self.shown.total
            || percent(now) >= percent(self.shown) + SHOWN_PERCENT
            || self.shown_at.elapsed() >= SHOWN_AFTER;
        if moved {
            (self.shown, self.shown_at) = (now, Instant::now());
        }
        let seconds = self.shown_at.duration_since(self.began).as_secs_f64();
        let fetched = self.shown.bytes.saturating_sub(self.began_at.unwrap_or(0));
        let rate = if seconds > 0.5 { fetched as f64 / seconds } else { 0.0 };
        let phase = if self.shown.phase == Phase::Verify { FetchPhase::Verifying } else { FetchPhase::Fetching };
        ModelFetch {
            phase,
            bytes: self.shown.bytes,
            total_bytes: self.shown.total,
            bytes_per_second: rate as u64,
            ..base
        }
    }
}

fn wanted(checkpoint: &Checkpoint) -> BTreeMap<ModelKey, Wanted> {
    let mut wanted: BTreeMap<ModelKey, Wanted> = BTreeMap::new();
    for (uid, entry) in &checkpoint.claims {
        let Some(model) = &entry.model else { continue };
        let claims = &mut wanted
            .entry(model.key())
            .or_insert_with(|| Wanted { model: model.clone(), claims: Vec::new() })
            .claims;
        claims.push(uid.clone());
    }
    wanted
}
