//! The files of a repository or directory: each fetched and verified like a single one, together in one folder.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use reqwest::Url;
use tokio::sync::watch;

use crate::backoff::Failures;
use crate::error::FetchError;
use crate::fetch::{Fetcher, Meter, One, Part};
use crate::hub::{self, LISTING_BYTES, Repository};
use crate::login::Login;
use crate::{FileDigest, Progress, Request};

/// A file of a repository or directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Where it is.
    pub url: Url,
    /// A plain name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// What it must hash to.
    pub digest: FileDigest,
}

/// Files that belong together.
#[derive(Clone, Debug)]
pub struct Files {
    /// Names differ.
    pub files: Vec<RemoteFile>,
    /// Where they are put together. A file that has its own name in it is complete and verified.
    pub folder: PathBuf,
    /// Who may read them; `None`: everybody.
    pub login: Option<Login>,
}

impl Fetcher {
    /// What a hub says of a repository at a branch, tag or commit. `commit`: what it must be of, where that is known.
    pub async fn repository(
        &self,
        endpoint: &Url,
        name: &str,
        revision: &str,
        login: Option<&Login>,
    ) -> Result<Repository, FetchError> {
        let (client, mut failures) = (self.client(login.cloned())?, Failures::default());
        let url = hub::description_url(endpoint, name, revision)?;
        let commit = Some(revision).filter(|revision| stowage_contracts::hub::is_commit(revision));
        loop {
            match client.document(&url, LISTING_BYTES).await {
                Ok(answer) => return hub::parse(name, commit, &answer),
                Err(FetchError::Refused { host, status }) => {
                    return Err(refused(name, revision, &host, status, login.is_some()));
                }
                Err(e) => self.wait_after(e, &mut failures, name.len() as u8).await?,
            }
        }
    }

    /// Fetches what is missing of the files. They lie in the folder under their names then, synchronised.
    pub async fn fetch_files(&self, all: &Files, progress: &watch::Sender<Progress>) -> Result<(), FetchError> {
        let meter = Meter::new(progress);
        self.bounded(&meter, self.each(all, &meter)).await
    }

    async fn each(&self, all: &Files, meter: &Meter<'_>) -> Result<(), FetchError> {
        let total = all.files.iter().fold(0u64, |sum, file| sum.saturating_add(file.bytes));
        if total > self.limits.file_bytes {
            return Err(FetchError::TooLarge { bytes: total, limit: self.limits.file_bytes });
        }
        std::fs::create_dir_all(&all.folder)?;
        // The cache must know the size before room is reserved and others' models are removed for it.
        meter.show(Progress { phase: crate::Phase::Fetch, bytes: total.saturating_sub(missing(all)), total });
        let reserved = self.room.reserve(&all.folder, self.limits.disk_reserve_bytes, missing(all))?;
        let (client, mut before) = (self.client(all.login.clone())?, 0);
        for file in &all.files {
            let partial = partial_of(&all.folder, &file.name);
            if !is_there(&all.folder, file) {
                // The client has the login.
                let (url, digest) = (file.url.clone(), file.digest);
                let request = Request { url, digest, partial: partial.clone(), login: None };
                let part = Part { before, of: Some(total), bytes: Some(file.bytes) };
                let one =
                    One { fetcher: self, client: &client, request: &request, meter, part, reserved: Some(&reserved) };
                let fetched = if file.bytes == 0 { one.empty().await } else { one.run_or_discard().await };
                fetched.map_err(|e| e.of_file(&file.name))?;
                std::fs::rename(&partial, all.folder.join(&file.name))?;
                crate::discard(&partial)?;
            }
            before += file.bytes;
            meter.show(Progress { phase: crate::Phase::Fetch, bytes: before, total });
        }
        Ok(File::open(&all.folder)?.sync_all()?)
    }
}

/// Bytes that are not on disk yet.
fn missing(all: &Files) -> u64 {
    let of_file = |file: &RemoteFile| {
        let begun = partial_of(&all.folder, &file.name).metadata().map_or(0, |found| found.blocks() * 512);
        if is_there(&all.folder, file) { 0 } else { file.bytes.saturating_sub(begun) }
    };
    all.files.iter().map(of_file).fold(0, u64::saturating_add)
}

fn is_there(folder: &Path, file: &RemoteFile) -> bool {
    let found = folder.join(&file.name).symlink_metadata();
    found.is_ok_and(|found| found.is_file() && found.len() == file.bytes)
}

fn partial_of(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.partial"))
}

fn refused(name: &str, revision: &str, host: &str, status: u16, with_token: bool) -> FetchError {
    let why = match (status, with_token) {
        (401 | 403, true) => {
            format!("{host} answers {status} to the token; check that it is valid and may read the repository")
        }
        (401 | 403, false) => format!(
            "{host} answers {status}: it does not exist, or is private; check the name, or write huggingFace.tokenSecretRef"
        ),
        (404, _) => format!("{host} has no such repository or no revision {revision:?}; check both"),
        _ => format!("{host} answers {status}; check name and revision"),
    };
    FetchError::Repository { name: name.to_owned(), why }
}
