//! Watches one replica: its load stream is its heartbeat.
//!
//! The engine sends a line at least every second, so a line that is overdue by half means a hung
//! process, and a broken connection a dead one; both take the replica out of routing at once, the
//! next line brings it back. A stream that falls silent is kept for a while, since a process that was
//! only stopped continues it. Engines without a load stream are probed by `/readyz` instead.
//!
//! Each gateway watches each replica: one small request per replica and gateway, no coordination.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming};
use stowage_contracts::load::LoadReport;
use stowage_contracts::names::{PATH_LOAD, PATH_READYZ};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::queue::client::EngineClient;
use crate::queue::load;
use crate::queue::pool::Pool;
use crate::queue::replica::Replica;

/// A line is due every second.
const OVERDUE: Duration = Duration::from_millis(1500);
/// How long a silent stream is kept before it is made anew.
const KEEP_SILENT: Duration = Duration::from_secs(10);
/// Between attempts to reach a replica that does not answer.
const RECONNECT: Duration = Duration::from_millis(250);
/// Between probes of engines without a load stream.
const PROBE: Duration = Duration::from_secs(1);
/// A line longer than this is no report.
const MAX_LINE: usize = 64 << 10;

/// Why a load stream ended.
enum Ended {
    /// No such route: another kind of engine.
    Unsupported,
    /// The process is gone: no connection, or the stream broke.
    Dead(&'static str),
    /// Refused, silent for long, or garbled.
    Lost(&'static str),
    /// A request's connection broke, so that only a new connection shows whether the process lives.
    CheckNow,
    /// The replica is not needed any more.
    Done,
}

/// What a load stream brought.
enum Next {
    Frame(Option<Result<Frame<Bytes>, hyper::Error>>),
    CheckNow,
    Silence,
}

/// Starts watching. The task ends with the replica.
pub fn start(pool: &Arc<Pool>, replica: &Arc<Replica>, client: EngineClient) {
    let watcher = Watcher {
        pool: Arc::downgrade(pool),
        replica: Arc::downgrade(replica),
        client,
        base: format!("http://{}", replica.address),
        check_now: replica.check_now.clone(),
    };
    let task = tokio::spawn(watcher.run());
    replica.watched_by(task.abort_handle());
}

struct Watcher {
    /// Weak, because the pool owns the replica and the replica this task.
    pool: Weak<Pool>,
    replica: Weak<Replica>,
    client: EngineClient,
    base: String,
    check_now: Arc<Notify>,
}

impl Watcher {
    async fn run(self) {
        loop {
            let ended = self.follow().await;
            match ended {
                Ended::Done => return,
                Ended::Unsupported => {
                    if !self.probe().await {
                        return;
                    }
                }
                Ended::CheckNow => {}
                Ended::Dead(why) | Ended::Lost(why) => {
                    if !self.lost(why, matches!(ended, Ended::Dead(_))) {
                        return;
                    }
                    tokio::time::sleep(RECONNECT).await;
                }
            }
        }
    }

    /// Follows the load stream until it ends.
    async fn follow(&self) -> Ended {
        let response = match timeout(OVERDUE, self.get(&format!("{PATH_LOAD}?watch=1"))).await {
            Ok(Some(response)) => response,
            Ok(None) => return Ended::Dead("no connection"),
            Err(_) => return Ended::Lost("no answer"),
        };
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => return Ended::Unsupported,
            _ => return Ended::Lost("refuses the load stream"),
        }
        let mut body = response.into_body();
        let mut line = BytesMut::new();
        loop {
            let frame = match self.next(&mut body, OVERDUE).await {
                Next::Frame(frame) => frame,
                Next::CheckNow => return Ended::CheckNow,
                Next::Silence => {
                    if !self.lost("heartbeat overdue", false) {
                        return Ended::Done;
                    }
                    match self.next(&mut body, KEEP_SILENT).await {
                        Next::Frame(frame) => frame,
                        Next::CheckNow => return Ended::CheckNow,
                        Next::Silence => return Ended::Lost("silent"),
                    }
                }
            };
            let Some(Ok(frame)) = frame else { return Ended::Dead("load stream broke") };
            let Ok(data) = frame.into_data() else { continue };
            line.extend_from_slice(&data);
            while let Some(end) = memchr::memchr(b'\n', &line) {
                let report = line.split_to(end + 1);
                let Some(report) = load::parse(&report) else { return Ended::Lost("garbled load report") };
                if !self.alive(Some(report)) {
                    return Ended::Done;
                }
            }
            if line.len() > MAX_LINE {
                return Ended::Lost("garbled load report");
            }
        }
    }

    /// The next piece of the stream, unless a check is asked for or nothing comes for so long.
    async fn next(&self, body: &mut Incoming, patience: Duration) -> Next {
        tokio::select! {
            biased;
            () = self.check_now.notified() => Next::CheckNow,
            frame = timeout(patience, body.frame()) => frame.map_or(Next::Silence, Next::Frame),
        }
    }

    /// One round of an engine without a load stream. False when the replica is not needed any more.
    async fn probe(&self) -> bool {
        let ready = timeout(OVERDUE, self.get(PATH_READYZ)).await;
        let known = match ready {
            Err(_) => self.lost("no answer", false),
            Ok(None) => self.lost("no connection", true),
            Ok(Some(response)) if response.status() != StatusCode::SERVICE_UNAVAILABLE => self.alive(None),
            Ok(Some(_)) => self.lost("not ready", false),
        };
        // Sooner when a request failed there.
        let _ = timeout(PROBE, self.check_now.notified()).await;
        known
    }

    async fn get(&self, path: &str) -> Option<Response<Incoming>> {
        let request = Request::get(format!("{}{path}", self.base)).body(Full::<Bytes>::default()).ok()?;
        self.client.request(request).await.ok()
    }

    fn alive(&self, report: Option<LoadReport>) -> bool {
        let (Some(pool), Some(replica)) = (self.pool.upgrade(), self.replica.upgrade()) else { return false };
        if replica.state().lost {
            tracing::info!(deployment = %pool.key, pod = replica.pod, "replica is back");
        }
        pool.on_report(&replica, report);
        true
    }

    fn lost(&self, why: &'static str, dead: bool) -> bool {
        let (Some(pool), Some(replica)) = (self.pool.upgrade(), self.replica.upgrade()) else { return false };
        if pool.on_lost(&replica, dead) {
            tracing::warn!(deployment = %pool.key, pod = replica.pod, why, "replica is out of routing");
        }
        true
    }
}
