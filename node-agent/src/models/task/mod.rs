//! The task that makes the cache agree with the claims. Beside the driver, never inside `prepare`, which holds the node.
//!
//! What is removed for what, and what a fetch may take, is in `room`. One agent of the node at a time: in a rolling update the new one waits for the old one's lock.

mod retry;
mod room;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use stowage_contracts::hub::HubModel;
use stowage_contracts::model::{ClaimModel, FileModel, ModelKey};
use stowage_contracts::summary::{FetchPhase, ModelFetch};
use stowage_fetch::address::Addresses;
use stowage_fetch::{FetchError, Fetcher, FileDigest, Limits, Login, Progress, Request, Url, directory, parse_url};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::device::process::Processes;
use crate::dra::checkpoint::Checkpoint;
use crate::dra::model_dirs::ClaimDirectories;
use crate::models::estimate::Estimator;
use crate::models::figures::{Figures, Outcome};
use crate::models::job::{Active, Done, Job, Todo};
use crate::models::preloads::Asked;
use crate::models::store::Store;
use crate::models::turns::{AT_ONCE, Turns, Waiting};
use crate::models::wanted::{Commits, Wanted, is_ahead, wanted};
use crate::models::{ModelsState, login};
use retry::{RETRY, RETRY_SOON, is_full, retry_after};

/// Models that are reported: as many as the status of a GpuNode may hold.
pub const MAX_CACHED: usize = 256;
/// How often a fetch is looked at.
const TICK: Duration = Duration::from_millis(250);
/// How often it is looked whether what is wanted ahead of need can be fetched now.
const AHEAD_TICK: Duration = Duration::from_secs(5);
/// Longest error that is shown, in characters.
const MAX_ERROR: usize = 400;
/// Threads that fetch and write: none of those that answer the kubelet.
const THREADS: usize = 2;
const DISK_THREADS: usize = 8;
/// The directory of a claim that is unknown for so long was left by a crash.
const ABANDONED: Duration = Duration::from_secs(600);

/// How models are fetched and kept.
#[derive(Debug, Clone)]
pub struct Settings {
    pub addresses: Addresses,
    pub limits: Limits,
    /// Address of the hub whose repositories deployments name.
    pub hub: Url,
    /// Where tokens and keys are read.
    pub processes: Processes,
    /// 0: four fifths of the disk.
    pub cache_bytes: u64,
    /// Per cent of the disk that stay free: the kubelet ends pods when too little is.
    pub disk_reserve_percent: u8,
    /// Where it is counted what came of it.
    pub figures: Figures,
}

impl Settings {
    /// Estimates models of the same sources within the same limits.
    pub fn estimator(&self, models: &Path) -> Estimator {
        let fetcher = Fetcher::new(self.addresses.clone(), self.limits.clone());
        // The file that runs now, also where it was replaced.
        Estimator::new(fetcher, self.hub.clone(), models, PathBuf::from("/proc/self/exe"))
    }
}

/// Starts the task; what it does is seen in the state.
pub fn start(
    settings: Settings,
    models: PathBuf,
    checkpoint: watch::Receiver<Arc<Checkpoint>>,
    ahead: watch::Receiver<Asked>,
) -> watch::Receiver<ModelsState> {
    let (state, seen) = watch::channel(ModelsState::default());
    let work = async move {
        let _held = lock(&models).await;
        match Store::open(&models) {
            Ok(store) => Task::new(settings, &models, store, checkpoint, ahead, state).run().await,
            Err(err) => {
                tracing::error!(%err, models = %models.display(), "models cannot be fetched: the cache cannot be used")
            }
        }
    };
    // Its own threads: a disk that is slow to write, or a name server that is slow to answer, holds no claim.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .max_blocking_threads(DISK_THREADS)
            .thread_name("models")
            .enable_all()
            .build();
        match runtime {
            Ok(runtime) => runtime.block_on(work),
            Err(err) => tracing::error!(%err, "models cannot be fetched: no threads"),
        }
    });
    seen
}

/// Held as long as the process lives.
async fn lock(models: &Path) -> std::fs::File {
    loop {
        let opened = std::fs::create_dir_all(models).and_then(|()| std::fs::File::create(models.join("lock")));
        match opened {
            Ok(file) if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok() => {
                return file;
            }
            Ok(_) => tokio::time::sleep(Duration::from_millis(500)).await,
            Err(err) => {
                tracing::error!(%err, models = %models.display(), "cannot lock the cache of models");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

struct Task {
    store: Store,
    claims: ClaimDirectories,
    fetcher: Fetcher,
    hub: Url,
    processes: Processes,
    commits: Commits,
    limit: u64,
    checkpoint: watch::Receiver<Arc<Checkpoint>>,
    ahead: watch::Receiver<Asked>,
    state: watch::Sender<ModelsState>,
    active: BTreeMap<ModelKey, Active>,
    turns: Turns,
    /// Of what is fetched ahead of need.
    turns_ahead: Turns,
    began: Instant,
    /// When room was made last for a claim; that of a fetch that was ended is free a moment later.
    made_room: Option<Instant>,
    /// Jobs so far.
    jobs: u64,
    failed: BTreeMap<ModelKey, Failed>,
    /// Since when claims wait for a model whose fetch has not begun.
    waits: BTreeMap<ModelKey, Instant>,
    figures: Figures,
    /// Claims that were in the checkpoint when this task last looked.
    known: BTreeSet<String>,
    finished: (mpsc::Sender<Finished>, mpsc::Receiver<Finished>),
}

/// A job that ended: its model, its number, what came of it.
type Finished = (ModelKey, u64, Result<Done, FetchError>);

struct Failed {
    error: String,
    /// When nothing but the operator's list wanted the model: that keeps no claim waiting.
    ahead: bool,
    /// For want of room.
    full: bool,
    in_a_row: u32,
    again: Instant,
}

impl Task {
    fn new(
        settings: Settings,
        models: &Path,
        store: Store,
        checkpoint: watch::Receiver<Arc<Checkpoint>>,
        ahead: watch::Receiver<Asked>,
        state: watch::Sender<ModelsState>,
    ) -> Self {
        let mut limits = settings.limits;
        let reserve = store.share_of_disk(settings.disk_reserve_percent).unwrap_or(0);
        limits.disk_reserve_bytes = limits.disk_reserve_bytes.max(reserve);
        let limit = match settings.cache_bytes {
            0 => store.default_limit().unwrap_or(u64::MAX),
            bytes => bytes,
        };
        Self {
            claims: ClaimDirectories::new(models),
            fetcher: Fetcher::new(settings.addresses, limits),
            hub: settings.hub,
            processes: settings.processes,
            commits: Commits::new(),
            store,
            limit,
            checkpoint,
            ahead,
            state,
            active: BTreeMap::new(),
            turns: Turns::default(),
            turns_ahead: Turns::default(),
            began: Instant::now(),
            made_room: None,
            jobs: 0,
            failed: BTreeMap::new(),
            waits: BTreeMap::new(),
            figures: settings.figures,
            known: BTreeSet::new(),
            finished: mpsc::channel(AT_ONCE),
        }
    }

    async fn run(mut self) {
        self.remove_abandoned();
        let resolved = |uid: String| Some((self.claims.commit(&uid)?, uid)).map(|(commit, uid)| (uid, commit));
        self.commits = self.claims.all().unwrap_or_default().into_iter().filter_map(resolved).collect();
        loop {
            self.checkpoint.mark_unchanged();
            self.ahead.mark_unchanged();
            let wanted = self.wanted();
            if let Err(err) = self.step(&wanted) {
                tracing::error!(%err, "the cache of models cannot be read or written");
            }
            let tick = self.tick(&wanted);
            let tick = async {
                match tick {
                    Some(after) => tokio::time::sleep(after).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.checkpoint.changed() => if changed.is_err() { return },
                // Without a sender nothing is wanted ahead any more.
                Ok(()) = self.ahead.changed() => {}
                Some((key, number, result)) = self.finished.1.recv() => self.finish(&key, number, result),
                () = tick => {}
            }
        }
    }

    /// After which time there is something to look at; `None`: when something changes.
    fn tick(&self, wanted: &BTreeMap<ModelKey, Wanted>) -> Option<Duration> {
        let waiting = wanted.iter().filter(|(key, wanted)| !self.is_done(key, wanted));
        let ticks = waiting.map(|(_, wanted)| if wanted.is_ahead() { AHEAD_TICK } else { TICK });
        if self.active.is_empty() { ticks.min() } else { Some(TICK) }
    }

    /// What the checkpoint and the list of the operator ask for now.
    fn wanted(&mut self) -> BTreeMap<ModelKey, Wanted> {
        let checkpoint = Arc::clone(&self.checkpoint.borrow());
        self.commits.retain(|uid, _| checkpoint.claims.contains_key(uid));
        wanted(&checkpoint, &self.commits, self.ahead.borrow().at(Instant::now()))
    }

    /// Whether all claims have it; without claims, whether it is here.
    fn is_done(&self, key: &ModelKey, wanted: &Wanted) -> bool {
        match wanted.is_ahead() {
            true => self.store.model(key).is_some(),
            false => wanted.claims.iter().all(|uid| self.claims.is_complete(uid)),
        }
    }

    fn step(&mut self, wanted: &BTreeMap<ModelKey, Wanted>) -> std::io::Result<()> {
        self.stop_unwanted(wanted)?;
        self.remove_directories(wanted)?;
        for (key, wanted) in wanted.iter().filter(|(key, wanted)| !self.is_done(key, wanted)) {
            let handed = self.cached(key, wanted).map_or(Ok(()), |cached| self.hand_out(key, &cached, &wanted.claims));
            if let Err(err) = handed {
                tracing::error!(model = %key, %err, "cannot hand out a model");
            }
        }
        self.start_jobs(wanted);
        self.stop_for_claims(wanted);
        self.start_ahead(wanted);
        self.active.values_mut().for_each(Active::look);
        let reserved = self.reserved(wanted)?;
        let cached = self.make_room(wanted, reserved)?;
        self.figures.cached(cached.len(), cached.values().map(|model| model.bytes).sum());
        let waiting: Vec<_> = wanted.iter().filter(|(key, w)| !w.is_ahead() && !self.is_done(key, w)).collect();
        let fetches = waiting.into_iter().map(|(key, wanted)| self.shown(key, wanted)).collect();
        let cached = room::most_recent(cached);
        let state = ModelsState { cached, fetches, commits: self.commits.clone() };
        self.state.send_if_modified(|old| {
            let changed = *old != state;
            *old = state;
            changed
        });
        Ok(())
    }

    fn stop_unwanted(&mut self, wanted: &BTreeMap<ModelKey, Wanted>) -> std::io::Result<()> {
        self.failed.retain(|key, failed| wanted.get(key).is_some_and(|wanted| !failed.ahead || wanted.is_ahead()));
        self.active.retain(|key, active| {
            let keep = wanted.contains_key(key);
            if !keep {
                active.task.abort();
            }
            keep
        });
        let (active, ahead, now) = (&self.active, self.ahead.borrow(), Instant::now());
        let keeps =
            |key: &ModelKey| wanted.contains_key(key) || active.contains_key(key) || ahead.keeps(key, now, self.began);
        self.store.forget_partials(keeps).map(drop)
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

    /// The directory of a complete model, if these claims may have it: what one login could read, another may not.
    fn cached(&self, key: &ModelKey, wanted: &Wanted) -> Option<PathBuf> {
        let cached = self.store.model(key)?;
        let may = match self.login(wanted) {
            Ok(Some(None)) => true,
            Ok(Some(Some(login))) => self.store.reader(key) == Some(login.digest()),
            Ok(None) | Err(_) => false,
        };
        may.then_some(cached)
    }

    /// Starts what is to be done for models that claims wait for, as far as there are places.
    fn start_jobs(&mut self, wanted: &BTreeMap<ModelKey, Wanted>) {
        let mut waiting: Vec<Waiting> = wanted
            .iter()
            .filter(|(key, wanted)| {
                !wanted.is_ahead() && !self.is_done(key, wanted) && self.cached(key, wanted).is_none()
            })
            .filter(|(key, _)| !self.active.contains_key(key) && !self.pauses(key))
            .map(|(key, wanted)| Waiting { key: key.clone(), tenants: wanted.tenants.clone() })
            .collect();
        self.turns.waits(&waiting);
        self.waits.retain(|key, _| wanted.get(key).is_some_and(|wanted| !wanted.is_ahead()));
        for model in &waiting {
            self.waits.entry(model.key.clone()).or_insert_with(Instant::now);
        }
        while let Some((key, tenant)) = self.turns.next(&waiting, &self.running()) {
            waiting.retain(|model| model.key != key);
            let Some(wanted) = wanted.get(&key) else { continue };
            match self.job(&key, wanted) {
                Ok(Some(job)) => self.start(&key, &tenant, job),
                // It keeps its turn.
                Ok(None) => {}
                Err(err) => self.fail(&key, &err),
            }
        }
    }

    /// A fetch ahead of need ends when one for a claim runs; it goes on later where it was.
    fn stop_for_claims(&mut self, wanted: &BTreeMap<ModelKey, Wanted>) {
        let ahead = |key: &ModelKey| is_ahead(wanted, key);
        if self.active.keys().all(ahead) || !self.active.keys().any(ahead) {
            return;
        }
        self.made_room = Some(Instant::now());
        self.active.retain(|key, active| {
            if ahead(key) {
                active.task.abort();
            }
            !ahead(key)
        });
    }

    /// Starts one fetch ahead of need while none runs. Tenants take turns.
    fn start_ahead(&mut self, wanted: &BTreeMap<ModelKey, Wanted>) {
        let due =
            |(key, wanted): &(&ModelKey, &Wanted)| wanted.is_ahead() && !self.is_done(key, wanted) && !self.pauses(key);
        let waiting: Vec<Waiting> = wanted
            .iter()
            .filter(due)
            .map(|(key, wanted)| Waiting { key: key.clone(), tenants: wanted.tenants.clone() })
            .collect();
        self.turns_ahead.waits(&waiting);
        if !self.active.is_empty() || self.room_is_taken() {
            return;
        }
        let Some((key, tenant)) = self.turns_ahead.next(&waiting, &BTreeMap::new()) else { return };
        let Some(wanted) = wanted.get(&key) else { return };
        self.turns_ahead.started(&key, &tenant);
        match self.job(&key, wanted) {
            Ok(Some(job)) => self.start(&key, &tenant, job),
            Ok(None) => {}
            Err(err) => self.fail(&key, &err),
        }
    }

    /// Whether room was made for a claim, which is about to be tried again. One that could have been tried and was not waits
    /// for something else.
    fn room_is_taken(&self) -> bool {
        let now = Instant::now();
        let about_now = |again: Instant| again <= now + RETRY_SOON && now <= again + RETRY_SOON;
        self.failed.values().any(|failed| !failed.ahead && failed.full && about_now(failed.again))
    }

    /// Whether it failed a short time ago.
    fn pauses(&self, key: &ModelKey) -> bool {
        self.failed.get(key).is_some_and(|failed| Instant::now() < failed.again)
    }

    /// Running jobs of each tenant.
    fn running(&self) -> BTreeMap<String, usize> {
        let mut running = BTreeMap::new();
        self.active.values().for_each(|active| *running.entry(active.tenant.clone()).or_default() += 1);
        running
    }

    /// The next step towards a model that claims wait for; `None`: the pod that has its login is not there yet.
    fn job(&self, key: &ModelKey, wanted: &Wanted) -> Result<Option<Job>, FetchError> {
        let Some(login) = self.login(wanted)? else { return Ok(None) };
        match &wanted.model {
            ClaimModel::File(model) => self.file(key, model, login).map(Some),
            ClaimModel::Hub(hub) => {
                let todo = match self.store.folder(key) {
                    _ if self.store.model(key).is_some() => Todo::Ask,
                    Some(folder) if hub.commit().is_some() => Todo::Fetch(folder),
                    _ => Todo::Resolve,
                };
                Ok(Some(Job::Repository { endpoint: self.hub.clone(), model: hub.clone(), login, todo }))
            }
        }
    }

    /// Who may read the source, `Some(None)` where everybody may; `None`: the pod that has it is not there yet.
    fn login(&self, wanted: &Wanted) -> Result<Option<Option<Login>>, FetchError> {
        let found = match &wanted.model {
            ClaimModel::Hub(HubModel { token: Some(named), .. }) => {
                let token = login::token(&self.processes, &wanted.pods, named)?;
                token.map(|token| Login::token(token, &self.hub))
            }
            ClaimModel::File(FileModel { s3: Some(named), url, .. }) => {
                let (keys, to) = (login::keys(&self.processes, &wanted.pods, named)?, parse_url(url)?);
                keys.map(|keys| Login::keys(keys, &named.region, &to))
            }
            ClaimModel::Hub(_) | ClaimModel::File(_) => return Ok(Some(None)),
        };
        Ok(found.map(Some))
    }

    fn file(&self, key: &ModelKey, model: &FileModel, login: Option<Login>) -> Result<Job, FetchError> {
        let bad = || FetchError::Url { why: "its digest is no SHA-256".into() };
        let (url, digest) = (parse_url(&model.url)?, model.digest().ok_or_else(bad)?);
        let first = if model.is_directory() { directory::manifest_url(&url)? } else { url.clone() };
        match login {
            Some(login) if self.store.model(key).is_some() => Ok(Job::Ask { url: first, login }),
            login if model.is_directory() => {
                Ok(Job::Directory { url, digest, folder: self.store.folder(key).ok_or_else(bad)?, login })
            }
            login => {
                let (digest, partial) = (FileDigest::Sha256(digest), self.store.partial(key).ok_or_else(bad)?);
                Ok(Job::File(Request { url, digest, partial, login }))
            }
        }
    }

    fn hand_out(&self, key: &ModelKey, cached: &Path, claims: &[String]) -> std::io::Result<()> {
        for uid in claims.iter().filter(|uid| !self.claims.is_complete(uid)) {
            self.claims.make(uid)?;
            self.claims.complete(uid, cached)?;
            self.store.touch(key);
            tracing::info!(model = %key, claim = uid, "the model is handed to the claim");
        }
        Ok(())
    }

    fn start(&mut self, key: &ModelKey, tenant: &str, job: Job) {
        tracing::info!(model = %key, "fetching a model");
        if let Some(since) = self.waits.remove(key) {
            self.figures.queued(since.elapsed());
        }
        let (sender, progress) = watch::channel(Progress::default());
        let (fetcher, finished, name) = (self.fetcher.clone(), self.finished.0.clone(), key.clone());
        self.jobs += 1;
        let number = self.jobs;
        let task = tokio::spawn(async move {
            let result = job.run(&fetcher, &sender).await;
            // The receiver lives as long as the agent.
            let _ = finished.send((name, number, result)).await;
        });
        self.active.insert(key.clone(), Active::new(progress, tenant, number, task.abort_handle()));
        self.turns.started(key, tenant);
    }

    fn finish(&mut self, key: &ModelKey, number: u64, result: Result<Done, FetchError>) {
        // One that was stopped may have finished all the same; its file is removed with the other partial ones.
        if self.active.get(key).is_none_or(|active| active.number != number) {
            return;
        }
        let Some(active) = self.active.remove(key) else { return };
        let seconds = active.began.elapsed().as_secs_f64();
        let fetched = matches!(result, Ok(Done::Fetched(_)));
        match result.and_then(|done| Ok(self.take(key, done)?)) {
            Ok(what) => {
                if fetched {
                    let (bytes, fetch, verify) = active.took();
                    self.figures.complete(bytes, fetch, verify);
                }
                self.failed.remove(key);
                tracing::info!(model = %key, bytes = active.progress.borrow().total, seconds, "{what}");
            }
            Err(err) => {
                // Within the cache's limit, what is fetched ahead of need in part does not count.
                if let FetchError::DiskFull { needed, free } = err.root()
                    && !is_ahead(&self.wanted(), key)
                {
                    let freed = self.forget_ahead();
                    let lacks = needed.saturating_sub(*free).saturating_sub(freed);
                    let removed = lacks > 0 && self.free(lacks);
                    if freed > 0 || removed {
                        // What it failed at before is no measure of an attempt with this room.
                        self.failed.remove(key);
                        self.made_room = Some(Instant::now());
                    }
                }
                self.fail(key, &err);
            }
        }
    }

    /// Keeps what was done; what that is.
    fn take(&mut self, key: &ModelKey, done: Done) -> std::io::Result<&'static str> {
        match done {
            Done::Fetched(reader) => self.store.publish(key, reader.as_ref()).map(|()| "a model is complete"),
            Done::MayRead(reader) => {
                reader.map_or(Ok(()), |reader| self.store.set_reader(key, &reader)).map(|()| "a login may read a model")
            }
            Done::Commit(commit) => {
                let claims = self.wanted().remove(key).map(|wanted| wanted.claims).unwrap_or_default();
                for uid in claims {
                    self.claims.set_commit(&uid, &commit)?;
                    self.commits.insert(uid, commit.clone());
                }
                Ok("a revision is resolved")
            }
        }
    }

    fn fail(&mut self, key: &ModelKey, err: &FetchError) {
        tracing::warn!(model = %key, %err, "a model cannot be fetched");
        self.figures.ended(Outcome::Failed);
        let in_a_row = self.failed.get(key).map_or(1, |failed| failed.in_a_row.saturating_add(1));
        let error = err.to_string().chars().take(MAX_ERROR).collect();
        let ahead = is_ahead(&self.wanted(), key);
        let full = is_full(err);
        let again = Instant::now() + retry_after(err, in_a_row, self.made_room.map(|at| at.elapsed()));
        self.failed.insert(key.clone(), Failed { error, ahead, full, in_a_row, again });
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
