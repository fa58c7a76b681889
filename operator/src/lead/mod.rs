//! Leader election over a Lease: one operator writes, all of them observe.
//!
//! kube has no elector. [`machine`] decides, [`fence`] guards each write, and this loop reads and
//! replaces the Lease. Losing the lease does not end the process: it goes on observing, so that it
//! can take over again without a warm-up.

pub mod fence;
pub mod machine;

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use fence::{Fence, NotLeader, Term};
pub use machine::Timing;
use machine::{Machine, Record, Step, jittered};

/// One process's part in the election.
pub struct Elector {
    api: Api<Lease>,
    name: String,
    timing: Timing,
    machine: Machine,
    fence: Arc<Fence>,
    leading: watch::Sender<Option<Term>>,
    salt: u64,
}

impl Elector {
    /// `leading` holds the term while this process leads and `None` otherwise; the fence guards writes.
    pub fn new(
        client: Client,
        namespace: &str,
        name: &str,
        me: String,
        timing: Timing,
        fence: Arc<Fence>,
    ) -> (Self, watch::Receiver<Option<Term>>) {
        let (leading, follow) = watch::channel(None);
        let salt = me.bytes().fold(7u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let machine = Machine::new(me, timing);
        (
            Self { api: Api::namespaced(client, namespace), name: name.into(), timing, machine, fence, leading, salt },
            follow,
        )
    }

    /// Runs until cancelled; then releases the lease, so that the next one need not wait.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let pause = self.turn().await;
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.release().await;
    }

    /// One read or write of the Lease; answers how long to wait for the next.
    async fn turn(&mut self) -> Duration {
        self.salt = self.salt.wrapping_add(1);
        let now = Instant::now();
        if self.leading.borrow().is_some() && self.fence.check(now).is_err() {
            tracing::warn!("the lease ran out before it could be renewed; observing only");
            self.lost();
        }
        match self.step(now).await {
            Ok(pause) => pause,
            Err(err) => {
                tracing::warn!(%err, lease = self.name, "cannot read or write the lease");
                jittered(self.timing.poll, self.salt)
            }
        }
    }

    async fn step(&mut self, sent: Instant) -> Result<Duration, ElectionError> {
        // A leader knows its record from its last write and renews without reading.
        if self.leading.borrow().is_none() {
            let lease = self.bounded(self.api.get_opt(&self.name)).await?;
            self.machine.observe(lease.as_ref().map(record), Instant::now());
        }
        let sent = sent.max(Instant::now());
        let written = match self.machine.next(sent) {
            Step::Wait(pause) => return Ok(jittered(pause, self.salt).max(Duration::from_millis(50))),
            Step::Create => self.bounded(self.api.create(&PostParams::default(), &self.lease(None, 0))).await,
            Step::Write { resource_version, transitions } => {
                let lease = self.lease(Some(resource_version), transitions);
                self.bounded(self.api.replace(&self.name, &PostParams::default(), &lease)).await
            }
        };
        match written {
            Ok(lease) => self.won(record(&lease), sent),
            Err(ElectionError::Api(kube::Error::Api(status))) if status.code == 409 || status.code == 404 => {
                self.reread().await?;
                return Ok(Duration::from_millis(50));
            }
            Err(err) => return Err(err),
        }
        Ok(jittered(self.timing.renew, self.salt))
    }

    /// After a conflict: a renewal of ours whose answer got lost looks the same as another process's
    /// write, so only a foreign holder ends our term.
    async fn reread(&mut self) -> Result<(), ElectionError> {
        let lease = self.bounded(self.api.get_opt(&self.name)).await?;
        let seen = lease.as_ref().map(record);
        if seen.as_ref().is_none_or(|record| record.holder != self.machine.me()) {
            tracing::info!(lease = self.name, "another process wrote the lease first");
            self.lost();
        }
        self.machine.observe(seen, Instant::now());
        Ok(())
    }

    fn won(&mut self, record: Record, sent: Instant) {
        let term = record.transitions;
        self.fence.renewed(term, sent, self.timing.lease);
        self.machine.observe(Some(record), Instant::now());
        if self.leading.send_if_modified(|now| now.replace(term) != Some(term)) {
            tracing::info!(term, identity = self.machine.me(), "leading");
        }
    }

    fn lost(&self) {
        self.fence.close();
        self.leading.send_if_modified(|now| now.take().is_some());
    }

    async fn release(&mut self) {
        if self.leading.borrow().is_none() {
            return;
        }
        let Step::Write { resource_version, transitions } = self.machine.next(Instant::now()) else { return };
        self.lost();
        let mut lease = self.lease(Some(resource_version), transitions);
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
        }
        match self.bounded(self.api.replace(&self.name, &PostParams::default(), &lease)).await {
            Ok(_) => tracing::info!("lease released"),
            Err(err) => tracing::warn!(%err, "cannot release the lease; the next leader waits until it runs out"),
        }
    }

    fn lease(&self, resource_version: Option<String>, transitions: i32) -> Lease {
        let now = MicroTime(Timestamp::now());
        Lease {
            metadata: ObjectMeta { name: Some(self.name.clone()), resource_version, ..ObjectMeta::default() },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.machine.me().to_owned()),
                lease_duration_seconds: i32::try_from(self.timing.lease.as_secs()).ok(),
                lease_transitions: Some(transitions),
                renew_time: Some(now),
                ..LeaseSpec::default()
            }),
        }
    }

    /// No request of the elector may outlive its use: an answer that comes later than this is worth nothing.
    async fn bounded<T>(&self, request: impl Future<Output = kube::Result<T>>) -> Result<T, ElectionError> {
        match timeout(self.timing.lease / 2, request).await {
            Ok(result) => result.map_err(ElectionError::Api),
            Err(_) => Err(ElectionError::Slow(self.timing.lease / 2)),
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum ElectionError {
    #[error("request failed: {0}")]
    Api(#[source] kube::Error),
    #[error("no answer from the API server within {0:?}")]
    Slow(Duration),
}

fn record(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    Record {
        holder: spec.holder_identity.unwrap_or_default(),
        resource_version: lease.metadata.resource_version.clone().unwrap_or_default(),
        transitions: spec.lease_transitions.unwrap_or(0),
        duration: Duration::from_secs(spec.lease_duration_seconds.unwrap_or(0).max(0).unsigned_abs().into()),
    }
}
