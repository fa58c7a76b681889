//! What is done for one model at a time: its file, directory or repository is fetched, a revision is resolved, or its source
//! is asked whether a token or keys may read what is cached.

use std::path::PathBuf;

use stowage_contracts::hub::HubModel;
use stowage_contracts::summary::{FetchPhase, ModelFetch};
use stowage_fetch::{FetchError, Fetcher, Files, Login, Phase, Progress, Request, Url};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Duration, Instant};

use crate::models::store::Reader;

/// What is shown of a fetch changes when it has come so many per cent further, or after so long.
const SHOWN_PERCENT: u64 = 5;
const SHOWN_AFTER: Duration = Duration::from_secs(10);

/// To be done for one model.
pub enum Job {
    /// Fetch the file behind a URL.
    File(Request),
    /// Fetch the files that a directory's list with this digest has into a folder.
    Directory { url: Url, digest: [u8; 32], folder: PathBuf, login: Option<Login> },
    /// Ask whether the file may be read.
    Ask { url: Url, login: Login },
    /// Something with a repository.
    Repository { endpoint: Url, model: HubModel, login: Option<Login>, todo: Todo },
}

/// What is done with a repository.
pub enum Todo {
    /// Find the commit of its revision.
    Resolve,
    /// Ask whether it may be read.
    Ask,
    /// Fetch its files into a folder.
    Fetch(PathBuf),
}

/// What was done.
#[derive(Debug, PartialEq, Eq)]
pub enum Done {
    /// Everything lies where it was put together.
    Fetched(Option<Reader>),
    /// The commit of a revision.
    Commit(String),
    /// The source lets this reader have it.
    MayRead(Option<Reader>),
}

impl Job {
    pub async fn run(self, fetcher: &Fetcher, progress: &watch::Sender<Progress>) -> Result<Done, FetchError> {
        match self {
            Self::File(request) => {
                fetcher.fetch(&request, progress).await?;
                Ok(Done::Fetched(request.login.as_ref().map(Login::digest)))
            }
            Self::Directory { url, digest, folder, login } => {
                let files = fetcher.directory(&url, Some(digest), login.as_ref()).await?.files;
                fetched(fetcher, Files { files, folder, login }, progress).await
            }
            Self::Ask { url, login } => {
                fetcher.beginning(&url, 1, Some(&login)).await?;
                Ok(Done::MayRead(Some(login.digest())))
            }
            Self::Repository { endpoint, model, login, todo } => {
                let repository = fetcher.repository(&endpoint, &model.repo, &model.revision, login.as_ref()).await?;
                match todo {
                    Todo::Resolve => Ok(Done::Commit(repository.commit)),
                    Todo::Ask => Ok(Done::MayRead(login.as_ref().map(Login::digest))),
                    Todo::Fetch(folder) => {
                        let files = repository.chosen(&endpoint, model.path.as_deref())?;
                        fetched(fetcher, Files { files, folder, login }, progress).await
                    }
                }
            }
        }
    }
}

async fn fetched(fetcher: &Fetcher, all: Files, progress: &watch::Sender<Progress>) -> Result<Done, FetchError> {
    fetcher.fetch_files(&all, progress).await?;
    Ok(Done::Fetched(all.login.as_ref().map(Login::digest)))
}

/// A job that runs.
pub struct Active {
    pub progress: watch::Receiver<Progress>,
    pub began: Instant,
    /// Bytes that were there when it began: they are no measure of its rate.
    began_at: Option<u64>,
    /// When the digest began to be computed, as far as it was looked at.
    verifies: Option<Instant>,
    shown: Progress,
    shown_at: Instant,
    pub tenant: String,
    /// Of the job: a message of an earlier one for the same model is not about this.
    pub number: u64,
    pub task: AbortHandle,
}

impl Active {
    pub fn new(progress: watch::Receiver<Progress>, tenant: &str, number: u64, task: AbortHandle) -> Self {
        let now = Instant::now();
        let shown = Progress::default();
        let tenant = tenant.to_owned();
        Self { progress, began: now, began_at: None, verifies: None, shown, shown_at: now, tenant, number, task }
    }

    /// Bytes of the model, and how long fetching and verifying took.
    pub fn took(&self) -> (u64, Duration, Duration) {
        let (bytes, now) = (self.progress.borrow().total, Instant::now());
        let verify = self.verifies.map_or(Duration::ZERO, |since| now.duration_since(since));
        (bytes, now.duration_since(self.began).saturating_sub(verify), verify)
    }

    /// Takes in how far it is.
    pub fn look(&mut self) {
        let now = *self.progress.borrow();
        if now.total > 0 {
            self.began_at.get_or_insert(now.bytes);
        }
        if now.phase == Phase::Verify {
            self.verifies.get_or_insert_with(Instant::now);
        }
    }

    /// What is reported moves in steps: each report is a write to the API server.
    pub fn shown(&mut self, base: ModelFetch) -> ModelFetch {
        self.look();
        let now = *self.progress.borrow();
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
