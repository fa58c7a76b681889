//! The memory of a model that is not here yet, from the headers of its files.
//!
//! The headers are put into files of the real length that are empty otherwise and take no room, and the engine's own reader
//! looks at those, in a process of its own (`headers`): so what is estimated is what the engine will find. A few at a time, of each tenant one: a source that is
//! slow delays its own tenant.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use stowage_contracts::estimate::{Estimate, EstimateRequest};
use stowage_contracts::hub::HubModel;
use stowage_contracts::model::{ClaimModel, FETCHED_FILE, FileModel};
use stowage_fetch::headers::{HeaderLimits, HeaderReader, Headers, TooLong};
use stowage_fetch::{FetchError, Fetcher, Url, parse_url};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use super::headers::{Answer, Question, ReadError, ask};

/// Estimates at the same time; each may hold a header in memory.
const AT_ONCE: usize = 2;
const LIMITS: HeaderLimits = HeaderLimits { longest: 16 << 20, all: 32 << 20 };

/// Why there is no estimate. One line with what to do.
#[derive(Debug, thiserror::Error)]
pub enum EstimateError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("the bundled engine does not serve it: {0}")]
    Refused(String),
    #[error("{0}")]
    Asked(String),
    #[error("{0}; write a size")]
    TooLong(#[from] TooLong),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("cannot keep its headers for a moment: {0}")]
    File(#[from] std::io::Error),
}

/// Estimates a few models at a time.
pub struct Estimator {
    fetcher: Fetcher,
    hub: Url,
    /// Holds a folder for each running estimate.
    folder: PathBuf,
    estimates: AtomicU64,
    places: Arc<Semaphore>,
    /// The one place of each tenant that has or waits for one.
    of_tenants: std::sync::Mutex<BTreeMap<String, Arc<Semaphore>>>,
    /// Reads headers when it is asked as `headers` does.
    program: PathBuf,
    /// One reads at a time: headers are large once they are parsed.
    reading: Mutex<()>,
}

impl Estimator {
    /// `program`: of the agent.
    pub fn new(fetcher: Fetcher, hub: Url, models: &Path, program: PathBuf) -> Self {
        let all = models.join("headers");
        if let Err(err) = remove_of_ended(&all) {
            tracing::warn!(%err, "cannot remove headers that an earlier agent left");
        }
        let folder = all.join(std::process::id().to_string());
        let (estimates, places) = (AtomicU64::new(0), Arc::new(Semaphore::new(AT_ONCE)));
        Self {
            fetcher,
            hub,
            folder,
            estimates,
            places,
            of_tenants: Default::default(),
            program,
            reading: Mutex::default(),
        }
    }

    /// Waits for a place of its tenant first.
    pub async fn estimate(&self, request: &EstimateRequest) -> Result<Estimate, EstimateError> {
        let place = self.place(&request.tenant).await;
        self.estimate_in(place, request).await
    }

    pub async fn estimate_in(&self, _place: Place, request: &EstimateRequest) -> Result<Estimate, EstimateError> {
        let number = self.estimates.fetch_add(1, Ordering::Relaxed);
        let folder = Folder::new(self.folder.join(number.to_string()))?;
        let path = self.headers(&folder.0, &request.model).await?;
        let answer = self.read(&Question::Estimate { path, request: request.clone() }).await?;
        // Where they lay for a moment helps nobody.
        let own = format!("{}/", folder.0.display());
        match answer {
            Answer::Estimate(estimate) => Ok(estimate),
            Answer::Refused(why) => Err(EstimateError::Refused(why.replace(&own, ""))),
            Answer::Asked(why) => Err(EstimateError::Asked(why)),
            Answer::IsWhole(_) => Err(EstimateError::Refused("its headers cannot be read".into())),
        }
    }

    async fn read(&self, question: &Question) -> Result<Answer, ReadError> {
        let _one = self.reading.lock().await;
        ask(&self.program, question).await
    }

    /// Waits for the tenant's place first, so that of each tenant one waits for those of all.
    pub async fn place(&self, tenant: &str) -> Place {
        let own = {
            let mut of_tenants = self.of_tenants.lock().unwrap_or_else(PoisonError::into_inner);
            // An estimate that has a place, or waits for one, holds a reference.
            of_tenants.retain(|_, place| Arc::strong_count(place) > 1);
            Arc::clone(of_tenants.entry(tenant.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(1))))
        };
        // Neither is ever closed.
        let own = own.acquire_owned().await.ok();
        Place { _own: own, _of_all: Arc::clone(&self.places).acquire_owned().await.ok() }
    }

    /// Puts the headers into the folder; what the engine would be given.
    async fn headers(&self, folder: &Path, model: &ClaimModel) -> Result<PathBuf, EstimateError> {
        let mut headers = Headers::new(&self.fetcher, None, LIMITS, self);
        let (files, file) = match model {
            ClaimModel::File(FileModel { s3: Some(_), .. }) | ClaimModel::Hub(HubModel { token: Some(_), .. }) => {
                return Err(EstimateError::Asked("not a source that everybody may read".into()));
            }
            ClaimModel::File(file) if !file.is_directory() => {
                let path = folder.join(FETCHED_FILE);
                headers.of(&parse_url(&file.url)?, &path).await?;
                return Ok(path);
            }
            ClaimModel::File(file) => {
                let bad = || EstimateError::Asked("its digest is no SHA-256".into());
                let digest = file.digest().ok_or_else(bad)?;
                (self.fetcher.directory(&parse_url(&file.url)?, Some(digest), None).await?.files, None)
            }
            ClaimModel::Hub(hub) if !hub.is_sound() => {
                return Err(EstimateError::Asked("not a repository's name, revision and path".into()));
            }
            ClaimModel::Hub(hub) => {
                let repository = self.fetcher.repository(&self.hub, &hub.repo, &hub.revision, None).await?;
                let files = repository.chosen(&self.hub, hub.path.as_deref())?;
                (files, hub.path.as_deref().and_then(|path| path.rsplit('/').next()))
            }
        };
        headers.of_all(&files, folder).await?;
        Ok(file.map_or_else(|| folder.to_owned(), |name| folder.join(name)))
    }
}

impl HeaderReader for Estimator {
    type Error = EstimateError;

    async fn is_whole(&self, path: &Path, have: u64) -> Result<bool, EstimateError> {
        let answer = self.read(&Question::IsWhole { path: path.to_owned(), have }).await?;
        Ok(answer != Answer::IsWhole(false))
    }
}

/// Held during an estimate.
pub struct Place {
    _own: Option<OwnedSemaphorePermit>,
    _of_all: Option<OwnedSemaphorePermit>,
}

/// Removed with all that is in it when the estimate ends, also where its time is over.
struct Folder(PathBuf);

impl Folder {
    fn new(path: PathBuf) -> std::io::Result<Self> {
        removed(&path)?;
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(err) = removed(&self.0) {
            tracing::warn!(%err, "cannot remove the headers of an estimate");
        }
    }
}

/// Folders of processes that do not run any more: in an update, the agent before this one still does. Both see the
/// host's processes.
fn remove_of_ended(all: &Path) -> std::io::Result<()> {
    let Ok(folders) = std::fs::read_dir(all) else { return Ok(()) };
    let own = std::process::id().to_string();
    for folder in folders {
        let folder = folder?;
        let process = Path::new("/proc").join(folder.file_name());
        if folder.file_name() == own.as_str() || !process.exists() {
            removed(&folder.path())?;
        }
    }
    Ok(())
}

fn removed(folder: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
