//! One file from beginning to end.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use crate::address::Addresses;
use crate::backoff;
use crate::client::{Answer, Client, cause};
use crate::error::{FetchError, Kind};
use crate::partial::{Partial, discard};
use crate::{Limits, Phase, Progress, Request};

/// Times that a file is fetched from the start because what was fetched contradicts itself.
const RESTARTS: u32 = 3;

/// Fetches files, all within the same limits.
#[derive(Clone)]
pub struct Fetcher {
    addresses: Arc<Addresses>,
    limits: Limits,
    bandwidth: Arc<Bandwidth>,
}

impl Fetcher {
    /// The bandwidth limit holds for all fetches of this value and its clones together.
    pub fn new(addresses: Addresses, limits: Limits) -> Self {
        let bandwidth =
            Arc::new(Bandwidth { per_second: limits.bytes_per_second, free_at: Mutex::new(Instant::now()) });
        Self { addresses: Arc::new(addresses), limits, bandwidth }
    }

    /// Fetches and verifies the file; it lies at `request.partial` then, synchronised, and its caller renames it. After an error
    /// that another attempt can repair, what was fetched stays for that attempt; after all others it is removed.
    pub async fn fetch(&self, request: &Request, progress: &watch::Sender<Progress>) -> Result<(), FetchError> {
        let client = Client::new(Arc::clone(&self.addresses), &self.limits)?;
        let one = One { fetcher: self, client, request, progress, received: AtomicU64::new(0) };
        let fetched = tokio::time::timeout(self.limits.total, one.run()).await;
        let result = fetched.unwrap_or(Err(FetchError::TooSlow(self.limits.total)));
        if let Err(e) = &result
            && !matches!(e.kind(), Kind::Transient)
            && !matches!(e, FetchError::File(_) | FetchError::DiskFull { .. })
        {
            discard(&request.partial)?;
        }
        result
    }
}

/// One fetch.
struct One<'a> {
    fetcher: &'a Fetcher,
    client: Client,
    request: &'a Request,
    progress: &'a watch::Sender<Progress>,
    received: AtomicU64,
}

/// Bytes by which the length is asked for: some servers read `bytes=0-0` as a range without an end.
const ASKED: u64 = 2;

/// Pieces that no worker has taken yet.
type Missing = std::sync::Mutex<VecDeque<(u64, u64, u64)>>;

/// How the source gives the file.
struct Source {
    total: u64,
    etag: Option<String>,
    ranges: bool,
}

impl One<'_> {
    async fn run(&self) -> Result<(), FetchError> {
        let mut restarts = 0;
        loop {
            match self.attempt().await {
                Err(e) if e.kind() == Kind::Restart && restarts < RESTARTS => {
                    restarts += 1;
                    discard(&self.request.partial)?;
                    self.pause(restarts, None).await;
                }
                done => return done,
            }
        }
    }

    async fn attempt(&self) -> Result<(), FetchError> {
        let source = self.source().await?;
        let limit = self.fetcher.limits.file_bytes;
        if source.total > limit {
            return Err(FetchError::TooLarge { bytes: source.total, limit });
        }
        let etag = source.etag.as_deref().filter(|_| source.ranges);
        let partial = Partial::open(&self.request.partial, source.total, etag)?;
        self.check_disk(&partial)?;
        self.received.store(partial.journal.bytes(), Ordering::Relaxed);
        self.report(Phase::Fetch, source.total);
        let partial = Arc::new(Mutex::new(partial));
        if source.ranges {
            self.pieces(&source, &partial).await?;
        } else {
            self.whole(&source, &partial).await?;
        }
        self.report(Phase::Verify, source.total);
        let wanted = self.request.sha256;
        let verified = tokio::task::spawn_blocking(move || partial.blocking_lock().verify(wanted)).await;
        verified.map_err(|e| FetchError::File(std::io::Error::other(e)))?
    }

    async fn source(&self) -> Result<Source, FetchError> {
        let mut failures = 0;
        loop {
            match self.ask().await {
                Ok(source) => return Ok(source),
                Err(e) => self.wait_after(e, &mut failures).await?,
            }
        }
    }

    /// Length, validator, and whether the source gives ranges.
    async fn ask(&self) -> Result<Source, FetchError> {
        let Answer { body: _, host, ranged, end: _, total, etag } =
            self.client.range(&self.request.url, 0, ASKED, None).await?;
        let unsaid = || FetchError::Broken { host, what: "does not say how long the file is".into() };
        Ok(Source { total: total.ok_or_else(unsaid)?, etag, ranges: ranged })
    }

    fn check_disk(&self, partial: &Partial) -> Result<(), FetchError> {
        let needed = partial.journal.total - partial.journal.bytes();
        let folder = self.request.partial.parent().unwrap_or(&self.request.partial);
        let disk = rustix::fs::statvfs(folder).map_err(std::io::Error::from)?;
        let free = (disk.f_bavail.saturating_mul(disk.f_frsize)).saturating_sub(self.fetcher.limits.disk_reserve_bytes);
        if needed > free { Err(FetchError::DiskFull { needed, free }) } else { Ok(()) }
    }

    async fn pieces(&self, source: &Source, partial: &Arc<Mutex<Partial>>) -> Result<(), FetchError> {
        let missing = std::sync::Mutex::new(VecDeque::from(partial.lock().await.journal.missing()));
        let workers = (0..self.fetcher.limits.parallel.max(1)).map(|_| self.worker(source, partial, &missing));
        futures::future::try_join_all(workers).await.map(drop)
    }

    /// Fetches pieces until none is missing.
    async fn worker(
        &self,
        source: &Source,
        partial: &Arc<Mutex<Partial>>,
        missing: &Missing,
    ) -> Result<(), FetchError> {
        loop {
            let next = missing.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some((piece, from, to)) = next else { return Ok(()) };
            self.stretch(source, partial, from, to).await?;
            let partial = Arc::clone(partial);
            // The disk may take its time, and others wait for this thread.
            let completed = tokio::task::spawn_blocking(move || partial.blocking_lock().complete(piece)).await;
            completed.map_err(std::io::Error::other)??;
        }
    }

    /// `from..to`, from where it got to after each failure.
    async fn stretch(&self, source: &Source, partial: &Mutex<Partial>, from: u64, to: u64) -> Result<(), FetchError> {
        let (mut at, mut failures) = (from, 0);
        while at < to {
            let before = at;
            let result = self.read(source, partial, &mut at, to).await;
            if at > before {
                failures = 0;
            }
            if let Err(e) = result {
                self.wait_after(e, &mut failures).await?;
            }
        }
        Ok(())
    }

    /// One answer, as far as it goes.
    async fn read(&self, source: &Source, partial: &Mutex<Partial>, at: &mut u64, to: u64) -> Result<(), FetchError> {
        let answer = self.client.range(&self.request.url, *at, to, source.etag.as_deref()).await?;
        let same = answer.ranged
            && answer.total == Some(source.total)
            && (source.etag.is_none() || answer.etag == source.etag);
        if !same {
            return Err(FetchError::Changed { host: answer.host });
        }
        self.copy(answer, partial, at, to, source.total).await
    }

    /// The whole file in one answer, from the start after each failure.
    async fn whole(&self, source: &Source, partial: &Mutex<Partial>) -> Result<(), FetchError> {
        let mut failures = 0;
        loop {
            match self.read_whole(source, partial).await {
                Ok(()) => return Ok(()),
                Err(e) => self.wait_after(e, &mut failures).await?,
            }
        }
    }

    async fn read_whole(&self, source: &Source, partial: &Mutex<Partial>) -> Result<(), FetchError> {
        self.received.store(0, Ordering::Relaxed);
        let answer = self.client.range(&self.request.url, 0, source.total, None).await?;
        if answer.total != Some(source.total) {
            return Err(FetchError::Changed { host: answer.host });
        }
        self.copy(answer, partial, &mut 0, source.total, source.total).await
    }

    /// Writes what comes to `*at`, and no byte beyond `to`.
    async fn copy(
        &self,
        mut answer: Answer,
        partial: &Mutex<Partial>,
        at: &mut u64,
        to: u64,
        total: u64,
    ) -> Result<(), FetchError> {
        let end = to.min(answer.end);
        loop {
            let chunk = answer.body.chunk().await;
            let chunk = chunk.map_err(|e| FetchError::Connection { host: answer.host.clone(), why: cause(&e) })?;
            let Some(chunk) = chunk else { break };
            if chunk.len() as u64 > end - *at {
                let what = format!("sends more bytes than the {} that it announced", end - *at);
                return Err(FetchError::Broken { host: answer.host, what });
            }
            partial.lock().await.write_at(&chunk, *at)?;
            *at += chunk.len() as u64;
            self.received.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            self.report(Phase::Fetch, total);
            self.fetcher.bandwidth.spend(chunk.len() as u64).await;
        }
        if *at < to { Err(ended(&answer.host, *at, to)) } else { Ok(()) }
    }

    /// Waits before another attempt; an error that does not pass, or one too many, comes back.
    async fn wait_after(&self, e: FetchError, failures: &mut u32) -> Result<(), FetchError> {
        *failures += 1;
        let asked = match &e {
            FetchError::Unavailable { after, .. } => *after,
            _ => None,
        };
        if e.kind() == Kind::Transient && self.pause(*failures, asked).await { Ok(()) } else { Err(e) }
    }

    async fn pause(&self, failures: u32, asked: Option<Duration>) -> bool {
        // The digest differs from file to file, so nodes that fetch several do not ask in step.
        let spread = f64::from(self.request.sha256[failures as usize % 32]) / 255.0;
        let Some(pause) = backoff::pause(self.fetcher.limits.pause, failures, asked, spread) else { return false };
        tokio::time::sleep(pause).await;
        true
    }

    fn report(&self, phase: Phase, total: u64) {
        let bytes = self.received.load(Ordering::Relaxed);
        self.progress.send_replace(Progress { phase, bytes, total });
    }
}

fn ended(host: &str, at: u64, to: u64) -> FetchError {
    FetchError::Connection { host: host.to_owned(), why: format!("it ended at byte {at} of {to}") }
}

/// Spreads bytes over time.
struct Bandwidth {
    /// 0: no limit.
    per_second: u64,
    free_at: Mutex<Instant>,
}

impl Bandwidth {
    async fn spend(&self, bytes: u64) {
        if self.per_second == 0 {
            return;
        }
        let cost = Duration::from_secs_f64(bytes as f64 / self.per_second as f64);
        let until = {
            let mut free_at = self.free_at.lock().await;
            *free_at = (*free_at).max(Instant::now()) + cost;
            *free_at
        };
        tokio::time::sleep_until(until).await;
    }
}
