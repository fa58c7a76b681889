//! Prepares and unprepares claims: checkpoint, CDI file, on simulated nodes the claim's file for the
//! simulated GPUs.
//!
//! One at a time on this node, also across two agents in a rolling update: each operation holds a
//! file lock and starts from the checkpoint on disk. The order makes every crash harmless:
//! `PrepareStarted` on disk → claim file and CDI file → `Completed` on disk; unprepare goes the other
//! way and forgets last. Both can be repeated. Whether to grant is decided in [`crate::dra::grant`] and
//! [`Checkpoint::admit`]. What could not be prepared is kept with its reason ([`Unprepared`]), so that
//! the operator can take the replica elsewhere.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use stowage_contracts::usage::ClaimFile;
use tokio::sync::{Mutex, watch};

use crate::device::inventory;
use crate::device::model::GpuFacts;
use crate::device::process::Processes;
use crate::dra::cdi::{self, CdiContext};
use crate::dra::checkpoint::{Checkpoint, CheckpointStore, Entry, OverCommit, SaveError, Stage};
use crate::dra::claims::{ClaimSource, LookupError};
use crate::dra::files::write_atomically;
use crate::dra::grant::{self, ClaimRef, Refusal};
use crate::dra::model_dirs::ClaimDirectories;
use crate::dra::remove::Remover;

/// Where this node's files are.
#[derive(Debug, Clone)]
pub struct Paths {
    pub cdi: PathBuf,
    /// `checkpoint.json`, `lock`, `models/`, on simulated nodes `reports/`. No pod has any of it mounted, except that an
    /// engine reads its own directory of `models/claims/`.
    pub state: PathBuf,
}

impl Paths {
    pub fn checkpoint(&self) -> PathBuf {
        self.state.join("checkpoint.json")
    }

    pub fn reports(&self) -> PathBuf {
        self.state.join("reports")
    }

    /// The cache of models; pods have directories of it mounted, to read.
    pub fn models(&self) -> PathBuf {
        self.state.join("models")
    }

    /// Earlier versions let the claim's pod write here.
    fn report_dir(&self, uid: &str) -> PathBuf {
        self.reports().join(uid)
    }

    fn removed(&self) -> PathBuf {
        self.state.join("removed")
    }
}

/// A claim is not prepared, or not unprepared. The kubelet shows the text in the pod's events and
/// asks again.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    OverCommit(#[from] OverCommit),
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error("{err}: {why}", why = std::error::Error::source(.err).map(ToString::to_string).unwrap_or_default())]
    Save { err: SaveError },
    #[error("cannot use {what}: {source}; free space on the node's disk or repair it")]
    File { what: String, source: std::io::Error },
    #[error("another agent on this node holds {0} for too long; if it hangs, delete its pod")]
    Busy(String),
}

impl From<SaveError> for PrepareError {
    fn from(err: SaveError) -> Self {
        Self::Save { err }
    }
}

/// One device of a prepared claim, for the kubelet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    pub request: String,
    pub pool: String,
    pub device: String,
    pub cdi_ids: Vec<String>,
    pub share_id: Option<String>,
}

/// A claim that the kubelet asked for and did not get, the last time it asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unprepared {
    pub namespace: String,
    pub name: String,
    /// Of the first refusal in a row, and of the last.
    pub since: Timestamp,
    pub asked: Timestamp,
    pub message: String,
}

/// In the claim's directory below [`Paths::reports`].
const CLAIM_FILE: &str = "claim.json";

/// How long a claim waits for the first reading of the GPUs; it is refused after that.
const FIRST_READING: Duration = Duration::from_secs(10);

/// By claim uid.
pub type Refusals = BTreeMap<String, Unprepared>;

/// Prepares claims on one node.
pub struct Preparer {
    pub node: String,
    pub simulated: bool,
    pub paths: Paths,
    /// Where processes of pods are looked up.
    pub processes: Processes,
    claims: Arc<dyn ClaimSource>,
    gpus: watch::Receiver<Arc<Vec<GpuFacts>>>,
    remover: Remover,
    models: ClaimDirectories,
    /// The checkpoint as last seen; also what serialises this process.
    current: Mutex<watch::Sender<Arc<Checkpoint>>>,
    refusals: watch::Sender<Refusals>,
}

impl Preparer {
    /// Opens the checkpoint. The text, if any: it had to be rebuilt.
    pub fn open(
        node: &str,
        simulated: bool,
        paths: Paths,
        claims: Arc<dyn ClaimSource>,
        gpus: watch::Receiver<Arc<Vec<GpuFacts>>>,
    ) -> std::io::Result<(Self, watch::Receiver<Arc<Checkpoint>>, Option<String>)> {
        let private = std::fs::Permissions::from_mode(0o700);
        std::fs::create_dir_all(paths.reports())?;
        std::fs::set_permissions(paths.reports(), private)?;
        let remover = Remover::new(paths.removed());
        remover.start();
        let (store, problem) = CheckpointStore::open(&paths.checkpoint(), || cdi::rescue(&paths.cdi))?;
        let (sender, receiver) = watch::channel(Arc::new(store.state().clone()));
        let models = ClaimDirectories::new(&paths.models());
        let preparer = Self {
            models,
            node: node.to_owned(),
            simulated,
            paths,
            processes: Processes::default(),
            claims,
            gpus,
            remover,
            current: Mutex::new(sender),
            refusals: watch::Sender::default(),
        };
        Ok((preparer, receiver, problem))
    }

    /// Claims that the kubelet wants prepared and that are refused.
    pub fn refusals(&self) -> watch::Receiver<Refusals> {
        self.refusals.subscribe()
    }

    /// Prepares the claim, or finds it prepared.
    pub async fn prepare(&self, asked: &ClaimRef) -> Result<Vec<Prepared>, PrepareError> {
        asked.check()?;
        let result = self.try_prepare(asked).await;
        self.keep_refusal(asked, result.as_ref().err(), Timestamp::now());
        result
    }

    fn keep_refusal(&self, asked: &ClaimRef, refused: Option<&PrepareError>, now: Timestamp) {
        self.refusals.send_if_modified(|refusals| {
            let known = refusals.remove(&asked.uid);
            let Some(error) = refused else { return known.is_some() };
            let kept = Unprepared {
                namespace: asked.namespace.clone(),
                name: asked.name.clone(),
                since: known.map_or(now, |known| known.since),
                asked: now,
                message: error.to_string(),
            };
            refusals.insert(asked.uid.clone(), kept);
            true
        });
    }

    async fn try_prepare(&self, asked: &ClaimRef) -> Result<Vec<Prepared>, PrepareError> {
        // At the agent's start the kubelet may ask before the GPUs have been read.
        let mut gpus = self.gpus.clone();
        tokio::time::timeout(FIRST_READING, gpus.wait_for(|gpus| !gpus.is_empty())).await.ok();
        let mut session = self.session().await?;
        let known = session.store.state().claims.get(&asked.uid).cloned();
        if let Some(entry) =
            known.filter(|entry| entry.stage == Stage::Completed && cdi::exists(&self.paths.cdi, &asked.uid))
        {
            return Ok(prepared(&asked.uid, &entry));
        }
        let entry = self.granted(asked).await?;
        self.admit(&mut session, &asked.uid, &entry).await?;
        session.put(&asked.uid, entry.clone(), Stage::PrepareStarted)?;
        if self.simulated {
            self.write_claim_file(&asked.uid, &entry)?;
        }
        if entry.model.is_some() {
            self.models
                .make(&asked.uid)
                .map_err(|source| PrepareError::File { what: "the directory of models".to_owned(), source })?;
        }
        self.write_cdi(&asked.uid, &entry)?;
        session.put(&asked.uid, entry.clone(), Stage::Completed)?;
        tracing::info!(claim = %format!("{}/{}", asked.namespace, asked.name), uid = asked.uid, pod = entry.pod, "claim prepared");
        Ok(prepared(&asked.uid, &entry))
    }

    /// Takes back what was prepared. A claim that is not known has nothing to take back.
    pub async fn unprepare(&self, asked: &ClaimRef) -> Result<(), PrepareError> {
        asked.check()?;
        self.keep_refusal(asked, None, Timestamp::now());
        let mut session = self.session().await?;
        let file = |what: &str, source| PrepareError::File { what: what.to_owned(), source };
        cdi::remove(&self.paths.cdi, &asked.uid).map_err(|err| file("the CDI directory", err))?;
        self.remove_report_dir(&asked.uid).map_err(|err| file("the report directory", err))?;
        self.models.remove(&asked.uid).map_err(|err| file("the directory of models", err))?;
        session.store.change(|state| drop(state.claims.remove(&asked.uid)))?;
        tracing::info!(claim = %format!("{}/{}", asked.namespace, asked.name), uid = asked.uid, "claim unprepared");
        Ok(())
    }

    /// Forgets preparations that a crash cut short and whose claims are gone since: the kubelet will
    /// not unprepare them. Returns how many.
    pub async fn forget_abandoned(&self) -> Result<usize, PrepareError> {
        let mut session = self.session().await?;
        let started = session.store.state().claims.iter().filter(|(_, entry)| entry.stage == Stage::PrepareStarted);
        let uids: Vec<String> = started.map(|(uid, _)| uid.clone()).collect();
        self.forget_gone(&mut session, &uids).await
    }

    async fn granted(&self, asked: &ClaimRef) -> Result<Entry, PrepareError> {
        let claim = self.claims.claim(&asked.namespace, &asked.name).await?;
        let claim = claim.ok_or_else(|| Refusal::NoClaim(asked.name.clone()))?;
        let (pod, pod_uid) = grant::reserved_pod(&claim, asked)?;
        let found = self.claims.pod(&asked.namespace, &pod).await?;
        grant::check_pod(found.as_ref(), &pod_uid, &claim, &self.node)?;
        let gpus = inventory::promisable(&self.gpus.borrow());
        Ok(grant::grant(&claim, asked, (&pod, &pod_uid), &self.node, &gpus)?)
    }

    /// Refuses over-commit. What stands in the way of a claim and exists no more, in the API server
    /// and as a process, is forgotten first: the kubelet may have lost its memory of it.
    async fn admit(&self, session: &mut Session<'_>, uid: &str, entry: &Entry) -> Result<(), PrepareError> {
        let gpus = inventory::promisable(&self.gpus.borrow());
        let Err(refused) = session.store.state().admit(uid, &entry.devices, &gpus) else { return Ok(()) };
        if self.forget_gone(session, &refused.in_the_way).await? == 0 {
            tracing::warn!(claim = %format!("{}/{}", entry.namespace, entry.name), holders = refused.holders, %refused, "claim would over-commit a GPU");
            return Err(refused.into());
        }
        Ok(session.store.state().admit(uid, &entry.devices, &gpus)?)
    }

    async fn forget_gone(&self, session: &mut Session<'_>, uids: &[String]) -> Result<usize, PrepareError> {
        let mut gone = 0;
        for uid in uids {
            let Some(entry) = session.store.state().claims.get(uid).cloned() else { continue };
            let claim = self.claims.claim(&entry.namespace, &entry.name).await?;
            let exists = claim.is_some_and(|claim| claim.metadata.uid.as_deref() == Some(uid));
            let runs = self.processes.any_of_pod(&entry.pod_uid);
            if exists || runs {
                continue;
            }
            tracing::warn!(uid, claim = entry.name, "claim is gone and was never unprepared, forgetting it");
            let _ = cdi::remove(&self.paths.cdi, uid);
            let _ = self.remove_report_dir(uid);
            let _ = self.models.remove(uid);
            session.store.change(|state| drop(state.claims.remove(uid)))?;
            gone += 1;
        }
        Ok(gone)
    }

    /// What the simulated GPUs need to know of the claim.
    fn write_claim_file(&self, uid: &str, entry: &Entry) -> Result<(), PrepareError> {
        let dir = self.paths.report_dir(uid);
        let claim = ClaimFile {
            uuids: entry.devices.iter().map(|device| device.uuid.clone()).collect(),
            namespace: entry.namespace.clone(),
            name: entry.name.clone(),
            pod: entry.pod.clone(),
            pod_uid: entry.pod_uid.clone(),
        };
        let text = serde_json::to_vec(&claim).unwrap_or_default();
        let made = std::fs::create_dir_all(&dir).and_then(|()| write_atomically(&dir.join(CLAIM_FILE), &text));
        made.map_err(|source| PrepareError::File { what: dir.display().to_string(), source })
    }

    /// Takes one rename, whatever a pod of an earlier version put there.
    fn remove_report_dir(&self, uid: &str) -> std::io::Result<()> {
        let dir = self.paths.report_dir(uid);
        let _ = std::fs::remove_file(dir.join(CLAIM_FILE));
        self.remover.remove(&dir)
    }

    fn write_cdi(&self, uid: &str, entry: &Entry) -> Result<(), PrepareError> {
        let minors: BTreeMap<String, u32> =
            self.gpus.borrow().iter().filter_map(|gpu| Some((gpu.uuid.clone(), gpu.minor?))).collect();
        let model = entry.model.as_ref().map(|_| self.models.of(uid));
        let context = CdiContext { simulated: self.simulated, minors, model };
        cdi::write(&self.paths.cdi, uid, &cdi::spec(uid, entry, &context))
            .map_err(|source| PrepareError::File { what: format!("the CDI file of claim {uid}"), source })
    }

    /// The right to change the checkpoint, with what is on disk now.
    async fn session(&self) -> Result<Session<'_>, PrepareError> {
        let publish = self.current.lock().await;
        let lock = FileLock::take(&self.paths.state.join("lock")).await?;
        let opened = CheckpointStore::open(&self.paths.checkpoint(), || cdi::rescue(&self.paths.cdi));
        let (store, problem) = opened
            .map_err(|source| PrepareError::File { what: self.paths.checkpoint().display().to_string(), source })?;
        if let Some(problem) = problem {
            tracing::error!("{problem}");
        }
        Ok(Session { store, publish, _lock: lock })
    }
}

struct Session<'a> {
    store: CheckpointStore,
    publish: tokio::sync::MutexGuard<'a, watch::Sender<Arc<Checkpoint>>>,
    _lock: FileLock,
}

impl Session<'_> {
    fn put(&mut self, uid: &str, entry: Entry, stage: Stage) -> Result<(), SaveError> {
        self.store.change(|state| drop(state.claims.insert(uid.to_owned(), Entry { stage, ..entry })))
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.publish.send_replace(Arc::new(self.store.state().clone()));
    }
}

fn prepared(uid: &str, entry: &Entry) -> Vec<Prepared> {
    let ids = cdi::device_ids(uid, entry);
    entry
        .devices
        .iter()
        .zip(ids)
        .map(|(device, cdi_ids)| Prepared {
            request: device.request.clone(),
            pool: device.pool.clone(),
            device: device.device.clone(),
            cdi_ids,
            share_id: device.share_id.clone(),
        })
        .collect()
}

/// An exclusive `flock`, given back when dropped or when the process ends.
struct FileLock(#[allow(dead_code, reason = "held, not used")] File);

impl FileLock {
    /// Waits without blocking the runtime's thread. The other holder's operations take milliseconds.
    async fn take(path: &Path) -> Result<Self, PrepareError> {
        let open = File::options().create(true).truncate(false).write(true).open(path);
        let file = open.map_err(|source| PrepareError::File { what: path.display().to_string(), source })?;
        for _ in 0..1500 {
            // SAFETY: the descriptor is open.
            if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
                return Ok(Self(file));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(PrepareError::Busy(path.display().to_string()))
    }
}
