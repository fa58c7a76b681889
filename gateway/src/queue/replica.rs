//! One replica as this gateway sees it: who it is, and what it is known to be doing.
//!
//! [`Replica`] is the identity that requests hold while they run there; [`Slot`] is the changing part,
//! owned by the pool and touched under its lock only.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use stowage_planner::route::{Refusal, ReplicaView};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use crate::queue::breaker::Breaker;
use crate::queue::load::Load;
use crate::world::snapshot::ReplicaFact;

/// Identity of a replica, and how those who wait for its answer learn that it is gone.
#[derive(Debug)]
pub struct Replica {
    /// Stable for a pod's life; the same on every gateway.
    pub id: u64,
    pub pod: String,
    uid: String,
    pub address: SocketAddr,
    /// True while it neither answers nor beats.
    lost: watch::Sender<bool>,
    /// Asks the monitor to look now.
    pub poke: Notify,
    monitor: OnceLock<AbortHandle>,
}

/// What the pool keeps per replica.
#[derive(Debug)]
pub struct Slot {
    pub replica: Arc<Replica>,
    /// The cluster's reason to keep it out.
    pub refused: Option<Refusal>,
    /// Not listed by the cluster any more; kept until what runs there has ended.
    pub gone: bool,
    /// It said itself that it drains.
    pub says_draining: bool,
    pub breaker: Breaker,
    pub load: Option<Load>,
    /// Sent since the last report: requests and their prompt tokens.
    pub sent: u32,
    pub sent_tokens: f64,
    pub in_flight: u32,
}

/// How much one replica may be given by one gateway.
#[derive(Debug, Clone, Copy)]
pub struct Gate {
    /// Requests in flight.
    pub max_in_flight: u32,
    /// Un-prefilled tokens; an empty replica always takes one request.
    pub backlog_tokens: f64,
}

// === impl Replica ===

impl Replica {
    pub fn new(fact: &ReplicaFact) -> Arc<Self> {
        let mut hasher = DefaultHasher::new();
        (&fact.uid, fact.address).hash(&mut hasher);
        Arc::new(Self {
            id: hasher.finish(),
            pod: fact.pod.clone(),
            uid: fact.uid.clone(),
            address: fact.address,
            lost: watch::Sender::new(false),
            poke: Notify::new(),
            monitor: OnceLock::new(),
        })
    }

    pub fn is(&self, fact: &ReplicaFact) -> bool {
        self.address == fact.address && self.uid == fact.uid
    }

    pub fn is_lost(&self) -> bool {
        *self.lost.borrow()
    }

    pub fn set_lost(&self, lost: bool) {
        self.lost.send_if_modified(|now| std::mem::replace(now, lost) != lost);
    }

    /// Follows whether it is lost.
    pub fn watch_lost(&self) -> watch::Receiver<bool> {
        self.lost.subscribe()
    }

    /// The task that watches this replica; it ends with the replica.
    pub fn watched_by(&self, task: AbortHandle) {
        if let Err(second) = self.monitor.set(task) {
            second.abort();
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if let Some(task) = self.monitor.get() {
            task.abort();
        }
    }
}

// === impl Slot ===

impl Slot {
    pub fn new(replica: Arc<Replica>, refused: Option<Refusal>) -> Self {
        Self {
            replica,
            refused,
            gone: false,
            says_draining: false,
            breaker: Breaker::default(),
            load: None,
            sent: 0,
            sent_tokens: 0.0,
            in_flight: 0,
        }
    }

    /// Why nothing new may go there, its load left aside.
    pub fn unusable(&self, now: Instant) -> Option<Refusal> {
        if self.gone || self.says_draining {
            return Some(Refusal::Draining);
        }
        self.refused.or_else(|| (!self.breaker.allows(now)).then_some(Refusal::BreakerOpen))
    }

    pub fn set_load(&mut self, load: Load) {
        self.says_draining = load.draining;
        self.load = Some(load);
        (self.sent, self.sent_tokens) = (0, 0.0);
    }

    /// What routing knows of it, for a request of `prompt_tokens`.
    pub fn view(&self, gate: Gate, prompt_tokens: f64, tried: &[u64], now: Instant) -> ReplicaView {
        let load = self.load.unwrap_or_default();
        let backlog_tokens = load.backlog_tokens + if self.load.is_some() { self.sent_tokens } else { 0.0 };
        let refused = self.unusable(now).or_else(|| {
            let full = self.in_flight >= gate.max_in_flight
                || (backlog_tokens > 0.0 && backlog_tokens + prompt_tokens > gate.backlog_tokens);
            if tried.contains(&self.replica.id) { Some(Refusal::TriedBefore) } else { full.then_some(Refusal::AtLimit) }
        });
        ReplicaView {
            id: self.replica.id,
            coefficients: load.coefficients,
            // Other gateways' requests show in the report, ours since then only here.
            running: (load.running + load.waiting + self.sent).max(self.in_flight),
            kv_tokens: load.kv_tokens + self.sent_tokens,
            kv_capacity: load.kv_capacity,
            backlog_tokens,
            cached_tokens: 0.0,
            refused,
        }
    }
}
