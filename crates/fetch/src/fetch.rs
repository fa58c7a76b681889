//! One file from beginning to end.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use crate::address::Addresses;
use crate::backoff::{self, Failures};
use crate::client::{ASKED, Answer, Client, cause};
use crate::error::{FetchError, Kind};
use crate::login::Login;
use crate::partial::{Partial, discard};
use crate::room::{Reserved, Room};
use crate::{FileDigest, Limits, Phase, Progress, Request};

/// Times that a file is fetched from the start because what was fetched contradicts itself.
const RESTARTS: u32 = 3;

/// Fetches files, all within the same limits.
#[derive(Clone)]
pub struct Fetcher {
    addresses: Arc<Addresses>,
    pub(crate) limits: Limits,
    bandwidth: Arc<Bandwidth>,
    /// What all fetches together may still write.
    pub room: Room,
}

impl Fetcher {
    /// The bandwidth limit holds for all fetches of this value and its clones together.
    pub fn new(addresses: Addresses, limits: Limits) -> Self {
        let bandwidth =
            Arc::new(Bandwidth { per_second: limits.bytes_per_second, free_at: Mutex::new(Instant::now()) });
        Self { addresses: Arc::new(addresses), limits, bandwidth, room: Room::default() }
    }

    /// Fetches and verifies the file; it lies at `request.partial` then, synchronised, and its caller renames it. After an error
    /// that another attempt can repair, what was fetched stays for that attempt; after all others it is removed.
    pub async fn fetch(&self, request: &Request, progress: &watch::Sender<Progress>) -> Result<(), FetchError> {
        let (client, meter) = (self.client(request.login.clone())?, Meter::new(progress));
        let one = One { fetcher: self, client: &client, request, meter: &meter, part: Part::default(), reserved: None };
        self.bounded(&meter, one.run_or_discard()).await
    }

    pub(crate) fn client(&self, login: Option<Login>) -> Result<Client, FetchError> {
        Client::new(Arc::clone(&self.addresses), &self.limits, login)
    }

    /// Ends what takes too long in all, or gets hardly anything.
    pub(crate) async fn bounded<T>(
        &self,
        meter: &Meter<'_>,
        work: impl Future<Output = Result<T, FetchError>>,
    ) -> Result<T, FetchError> {
        tokio::select! {
            done = work => done,
            slow = meter.too_slow(&self.limits) => Err(slow),
            () = tokio::time::sleep(self.limits.total) => Err(FetchError::TooSlow(self.limits.total)),
        }
    }

    /// Waits before another attempt; an error that does not pass, or one too many, comes back. `seed` spreads the
    /// attempts of many nodes.
    pub(crate) async fn wait_after(&self, e: FetchError, failures: &mut Failures, seed: u8) -> Result<(), FetchError> {
        if e.kind() != Kind::Transient {
            return Err(e);
        }
        let asked = match &e {
            FetchError::Unavailable { after, .. } => *after,
            _ => None,
        };
        let attempts = failures.failed();
        let waited = self.pause(attempts, asked, seed).await;
        if waited { Ok(()) } else { Err(FetchError::GivenUp { attempts, last: Box::new(e) }) }
    }

    async fn pause(&self, failures: u32, asked: Option<Duration>, seed: u8) -> bool {
        let spread = f64::from(seed) / 255.0;
        let Some(pause) = backoff::pause(self.limits.pause, failures, asked, spread) else { return false };
        tokio::time::sleep(pause).await;
        true
    }
}

/// What comes, and what of it is shown.
pub(crate) struct Meter<'a> {
    progress: &'a watch::Sender<Progress>,
    /// Bytes that came, those that were thrown away again included.
    came: AtomicU64,
    verifies: AtomicBool,
}

impl<'a> Meter<'a> {
    pub(crate) fn new(progress: &'a watch::Sender<Progress>) -> Self {
        Self { progress, came: AtomicU64::new(0), verifies: AtomicBool::new(false) }
    }

    pub(crate) fn show(&self, progress: Progress) {
        self.progress.send_replace(progress);
    }

    /// Ends when hardly anything comes: a source that sends a byte now and then would hold a place for a day.
    async fn too_slow(&self, limits: &Limits) -> FetchError {
        let (least, within) = limits.slowest;
        // Many fetches share the bandwidth.
        let least = match limits.bytes_per_second {
            0 => least,
            limit => least.min((limit as f64 * within.as_secs_f64() / 64.0) as u64),
        };
        let mut before = 0;
        loop {
            tokio::time::sleep(within).await;
            let came = self.came.load(Ordering::Relaxed);
            if came - before < least && !self.verifies.load(Ordering::Relaxed) {
                return FetchError::Trickle { bytes: came - before, within };
            }
            before = came;
        }
    }
}

/// What a file is of a directory.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Part {
    /// Bytes of the files before it.
    pub before: u64,
    /// Bytes of all files; `None`: it is the only one.
    pub of: Option<u64>,
    /// Its own bytes, where they are known.
    pub bytes: Option<u64>,
}

/// Whether what was fetched is of use for another attempt.
fn keeps_partial(e: &FetchError) -> bool {
    let helps = match e {
        // Others need the room.
        FetchError::File(e) => e.kind() != std::io::ErrorKind::StorageFull,
        FetchError::DiskFull { .. } | FetchError::CacheFull { .. } => true,
        FetchError::TooSlow(_) | FetchError::Trickle { .. } => true,
        // A login that has expired: another one goes on where this one ended.
        FetchError::Denied { .. } | FetchError::Refused { .. } | FetchError::Login { .. } => true,
        _ => false,
    };
    helps || e.kind() == Kind::Transient
}

/// One fetch of one file.
pub(crate) struct One<'a> {
    pub fetcher: &'a Fetcher,
    pub client: &'a Client,
    pub request: &'a Request,
    pub meter: &'a Meter<'a>,
    pub part: Part,
    /// Room for all files of which this is one.
    pub reserved: Option<&'a Reserved>,
}

/// Pieces that no worker has taken yet.
type Missing = std::sync::Mutex<VecDeque<(u64, u64, u64)>>;

/// How the source gives the file.
struct Source {
    host: String,
    total: u64,
    etag: Option<String>,
    ranges: bool,
}

impl One<'_> {
    pub async fn run_or_discard(&self) -> Result<(), FetchError> {
        let result = self.run().await;
        if let Err(e) = &result
            && !keeps_partial(e)
        {
            discard(&self.request.partial)?;
        }
        result
    }

    /// A file without bytes: there is nothing to ask for.
    pub async fn empty(&self) -> Result<(), FetchError> {
        Partial::open(&self.request.partial, 0, None)?.verify(self.request.digest)
    }

    async fn run(&self) -> Result<(), FetchError> {
        let mut restarts = 0;
        loop {
            match self.attempt().await {
                Err(e) if e.kind() == Kind::Restart && restarts < RESTARTS => {
                    restarts += 1;
                    discard(&self.request.partial)?;
                    self.fetcher.pause(restarts, None, self.seed()).await;
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
        if let Some(bytes) = self.part.bytes.filter(|bytes| *bytes != source.total) {
            let what = format!("says that a file has {} bytes, and before that it had {bytes}", source.total);
            return Err(FetchError::Broken { host: source.host, what });
        }
        let etag = source.etag.as_deref().filter(|_| source.ranges);
        let partial = Partial::open(&self.request.partial, source.total, etag)?;
        let (bytes, folder) = (partial.journal.bytes(), self.request.partial.parent());
        // The cache must know the size before room is reserved and others' models are removed for it.
        self.report(Phase::Fetch, bytes, source.total);
        let (folder, keep) = (folder.unwrap_or(&self.request.partial), self.fetcher.limits.disk_reserve_bytes);
        let reserved = match self.part.of {
            None => Some(self.fetcher.room.reserve(folder, keep, source.total - bytes)?),
            // Reserved for the whole.
            Some(_) => None,
        };
        let on_disk = OnDisk {
            bytes: AtomicU64::new(bytes),
            again: AtomicU64::new(0),
            reserved: reserved.as_ref().or(self.reserved),
        };
        let partial = Arc::new(Mutex::new(partial));
        let written = match source.ranges {
            true => self.pieces(&source, &partial, &on_disk).await,
            false => self.whole(&source, &partial, &on_disk).await,
        };
        written.inspect_err(|e| on_disk.gives_back(e))?;
        self.report(Phase::Verify, source.total, source.total);
        let wanted = self.request.digest;
        self.meter.verifies.store(true, Ordering::Relaxed);
        let verified = tokio::task::spawn_blocking(move || partial.blocking_lock().verify(wanted)).await;
        self.meter.verifies.store(false, Ordering::Relaxed);
        let verified = verified.map_err(|e| FetchError::File(std::io::Error::other(e)))?;
        verified.inspect_err(|e| on_disk.gives_back(e))
    }

    async fn source(&self) -> Result<Source, FetchError> {
        let mut failures = Failures::default();
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
        let Some(total) = total else {
            return Err(FetchError::Broken { host, what: "does not say how long the file is".into() });
        };
        Ok(Source { host, total, etag, ranges: ranged })
    }

    async fn pieces(
        &self,
        source: &Source,
        partial: &Arc<Mutex<Partial>>,
        on_disk: &OnDisk<'_>,
    ) -> Result<(), FetchError> {
        let missing = std::sync::Mutex::new(VecDeque::from(partial.lock().await.journal.missing()));
        let workers = (0..self.fetcher.limits.parallel.max(1)).map(|_| self.worker(source, partial, &missing, on_disk));
        futures::future::try_join_all(workers).await.map(drop)
    }

    /// Fetches pieces until none is missing.
    async fn worker(
        &self,
        source: &Source,
        partial: &Arc<Mutex<Partial>>,
        missing: &Missing,
        on_disk: &OnDisk<'_>,
    ) -> Result<(), FetchError> {
        loop {
            let next = missing.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some((piece, from, to)) = next else { return Ok(()) };
            self.stretch(source, partial, (from, to), on_disk).await?;
            let partial = Arc::clone(partial);
            // The disk may take its time, and others wait for this thread.
            let completed = tokio::task::spawn_blocking(move || partial.blocking_lock().complete(piece)).await;
            completed.map_err(std::io::Error::other)??;
        }
    }

    /// `from..to`, from where it got to after each failure.
    async fn stretch(
        &self,
        source: &Source,
        partial: &Mutex<Partial>,
        (from, to): (u64, u64),
        on_disk: &OnDisk<'_>,
    ) -> Result<(), FetchError> {
        let (mut at, mut failures) = (from, Failures::default());
        while at < to {
            let before = at;
            let result = self.read(source, partial, &mut at, to, on_disk).await;
            failures.received(at - before);
            if let Err(e) = result {
                self.wait_after(e, &mut failures).await?;
            }
        }
        Ok(())
    }

    /// One answer, as far as it goes.
    async fn read(
        &self,
        source: &Source,
        partial: &Mutex<Partial>,
        at: &mut u64,
        to: u64,
        on_disk: &OnDisk<'_>,
    ) -> Result<(), FetchError> {
        let answer = self.client.range(&self.request.url, *at, to, source.etag.as_deref()).await?;
        let same = answer.ranged
            && answer.total == Some(source.total)
            && (source.etag.is_none() || answer.etag == source.etag);
        if !same {
            return Err(FetchError::Changed { host: answer.host });
        }
        self.copy(answer, partial, at, to, Shown { on_disk, total: source.total }).await
    }

    /// The whole file in one answer, from the start after each failure.
    async fn whole(&self, source: &Source, partial: &Mutex<Partial>, on_disk: &OnDisk<'_>) -> Result<(), FetchError> {
        let mut failures = Failures::default();
        loop {
            match self.read_whole(source, partial, on_disk).await {
                Ok(()) => return Ok(()),
                Err(e) => self.wait_after(e, &mut failures).await?,
            }
        }
    }

    async fn read_whole(
        &self,
        source: &Source,
        partial: &Mutex<Partial>,
        on_disk: &OnDisk<'_>,
    ) -> Result<(), FetchError> {
        // What is there is written over.
        on_disk.again.fetch_max(on_disk.bytes.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        let answer = self.client.range(&self.request.url, 0, source.total, None).await?;
        if answer.total != Some(source.total) {
            return Err(FetchError::Changed { host: answer.host });
        }
        self.copy(answer, partial, &mut 0, source.total, Shown { on_disk, total: source.total }).await
    }

    /// Writes what comes to `*at`, and no byte beyond `to`.
    async fn copy(
        &self,
        mut answer: Answer,
        partial: &Mutex<Partial>,
        at: &mut u64,
        to: u64,
        shown: Shown<'_>,
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
            let len = chunk.len() as u64;
            let on_disk = shown.on_disk.wrote(*at, len);
            *at += len;
            self.meter.came.fetch_add(len, Ordering::Relaxed);
            self.report(Phase::Fetch, on_disk, shown.total);
            self.fetcher.bandwidth.spend(len).await;
        }
        if *at < to { Err(ended(&answer.host, *at, to)) } else { Ok(()) }
    }

    async fn wait_after(&self, e: FetchError, failures: &mut Failures) -> Result<(), FetchError> {
        self.fetcher.wait_after(e, failures, self.seed()).await
    }

    /// The digest differs from file to file, so nodes that fetch several do not ask in step.
    fn seed(&self) -> u8 {
        match self.request.digest {
            FileDigest::Sha256([first, ..]) | FileDigest::GitBlob([first, ..]) => first,
        }
    }

    /// Of a directory, only how far the whole has come.
    fn report(&self, phase: Phase, bytes: u64, total: u64) {
        let phase = if self.part.of.is_some() { Phase::Fetch } else { phase };
        let (bytes, total) = (self.part.before + bytes, self.part.of.unwrap_or(total));
        self.meter.show(Progress { phase, bytes, total });
    }
}

/// What is there of a file.
struct OnDisk<'a> {
    bytes: AtomicU64,
    /// Bytes at the beginning of the file that were there before it was read from the start again.
    again: AtomicU64,
    /// For what is not.
    reserved: Option<&'a Reserved>,
}

impl OnDisk<'_> {
    /// `len` bytes were written at `at`; how many are there now.
    fn wrote(&self, at: u64, len: u64) -> u64 {
        let new = (at + len).saturating_sub(at.max(self.again.load(Ordering::Relaxed)));
        self.reserved.inspect(|reserved| reserved.wrote(new));
        self.bytes.fetch_add(len, Ordering::Relaxed) + len
    }

    /// Where all of it will be thrown away, it has to be written once more.
    fn gives_back(&self, e: &FetchError) {
        if e.kind() == Kind::Restart {
            let there = self.bytes.load(Ordering::Relaxed).max(self.again.load(Ordering::Relaxed));
            self.reserved.inspect(|reserved| reserved.lost(there));
        }
    }
}

/// What is shown of a file.
#[derive(Clone, Copy)]
struct Shown<'a> {
    on_disk: &'a OnDisk<'a>,
    total: u64,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn on_disk(reserved: &Reserved) -> OnDisk<'_> {
        OnDisk { bytes: AtomicU64::new(0), again: AtomicU64::new(0), reserved: Some(reserved) }
    }

    #[test]
    fn what_is_written_over_and_what_is_thrown_away_stays_reserved() {
        let room = Room::default();
        let reserved = room.reserve(&std::env::temp_dir(), 0, 100).unwrap();
        let file = on_disk(&reserved);
        file.wrote(0, 60);
        assert_eq!(room.reserved(), 40);
        // The answer ended, and there are no ranges.
        file.again.fetch_max(file.bytes.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        file.wrote(0, 50);
        assert_eq!(room.reserved(), 40);
        file.wrote(50, 30);
        assert_eq!(room.reserved(), 20);
        file.gives_back(&FetchError::Changed { host: String::new() });
        assert_eq!(room.reserved(), 100);
    }

    #[test]
    fn failures_that_leave_what_was_fetched_give_nothing_back() {
        let room = Room::default();
        let reserved = room.reserve(&std::env::temp_dir(), 0, 100).unwrap();
        let file = on_disk(&reserved);
        file.wrote(0, 60);
        file.gives_back(&FetchError::Connection { host: String::new(), why: String::new() });
        assert_eq!(room.reserved(), 40);
    }

    #[test]
    fn login_that_expired_loses_nothing_of_what_was_fetched() {
        let host = String::new;
        for (e, kept) in [
            (FetchError::Denied { host: host(), status: 403 }, true),
            (FetchError::Refused { host: host(), status: 404 }, true),
            (FetchError::Login { why: String::new() }, true),
            (FetchError::Unavailable { host: host(), status: 503, after: None }, true),
            (FetchError::Changed { host: host() }, false),
            (FetchError::Digest { found: String::new(), wanted: String::new() }, false),
            (FetchError::TooLarge { bytes: 2, limit: 1 }, false),
        ] {
            assert_eq!(keeps_partial(&e), kept, "{e}");
        }
    }
}
