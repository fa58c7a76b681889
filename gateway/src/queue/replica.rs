//! One replica as this gateway sees it: its identity and its known state.
//!
//! [`Replica`] is the identity that requests hold while they run there; [`Slot`] is the changing part,
//! owned by the pool and touched under its lock only.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use stowage_contracts::load::LoadReport;
use stowage_planner::route::{Refusal, ReplicaView};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use crate::queue::ask::Ask;
use crate::queue::breaker::Breaker;
use crate::queue::load;
use crate::world::snapshot::ReplicaFact;

/// Identity of a replica, and how requests that wait for its answer learn that it is gone.
#[derive(Debug)]
pub struct Replica {
    /// Stable for a pod's life; the same on every gateway.
    pub id: u64,
    pub pod: String,
    uid: String,
    pub address: SocketAddr,
    state: watch::Sender<ReplicaState>,
    /// Asks the monitor for a report over a new connection, now.
    pub check_now: Arc<Notify>,
    monitor: OnceLock<AbortHandle>,
}

/// What requests that run on a replica need to know while they wait for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaState {
    /// No heartbeat.
    pub lost: bool,
    /// As [`Slot::incarnation`].
    pub incarnation: u64,
}

/// What the pool keeps per replica.
#[derive(Debug)]
pub struct Slot {
    pub replica: Arc<Replica>,
    /// The start of the engine's process, as a number that no other start has on this gateway. A process
    /// that is started again in the same pod is another incarnation, which knows of no earlier request.
    pub incarnation: u64,
    /// The engine's own name for its incarnation, from its last report; empty: it reports none.
    reported: String,
    /// The process was found to be gone: no connection, or the load stream broke.
    found_dead: bool,
    /// A request's connection broke, and no report has come since.
    suspected: bool,
    /// The cluster's reason to keep it out.
    pub refused: Option<Refusal>,
    /// Not listed by the cluster any more; kept until what runs there has ended.
    pub gone: bool,
    /// It reported itself that it drains.
    pub reports_draining: bool,
    pub breaker: Breaker,
    pub load: Option<LoadReport>,
    /// When the load stream last brought [`Self::load`].
    pub reported_at: Instant,
    /// Sent since the last report: sequences and their prompt tokens.
    pub sent: u32,
    pub sent_tokens: f64,
    /// Sequences.
    pub in_flight: u32,
}

/// How much one replica may be given by one gateway.
#[derive(Debug, Clone, Copy)]
pub struct Gate {
    /// Sequences in flight.
    pub max_in_flight: u32,
    /// Un-prefilled tokens; an empty replica always takes one request.
    pub backlog_tokens: f64,
}

fn next_incarnation() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
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
            state: watch::Sender::new(ReplicaState { lost: false, incarnation: next_incarnation() }),
            check_now: Arc::new(Notify::new()),
            monitor: OnceLock::new(),
        })
    }

    pub fn is(&self, fact: &ReplicaFact) -> bool {
        self.address == fact.address && self.uid == fact.uid
    }

    /// Of the pod.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    pub fn state(&self) -> ReplicaState {
        *self.state.borrow()
    }

    pub fn set_state(&self, state: ReplicaState) {
        self.state.send_if_modified(|now| std::mem::replace(now, state) != state);
    }

    /// Follows the state.
    pub fn watch_state(&self) -> watch::Receiver<ReplicaState> {
        self.state.subscribe()
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
            incarnation: replica.state().incarnation,
            replica,
            reported: String::new(),
            found_dead: false,
            suspected: false,
            refused,
            gone: false,
            reports_draining: false,
            breaker: Breaker::default(),
            load: None,
            reported_at: Instant::now(),
            sent: 0,
            sent_tokens: 0.0,
            in_flight: 0,
        }
    }

    /// Why nothing new may go there, its load left aside.
    pub fn unusable(&self, now: Instant) -> Option<Refusal> {
        if self.gone || self.reports_draining {
            return Some(Refusal::Draining);
        }
        self.refused.or_else(|| (!self.breaker.allows(now)).then_some(Refusal::BreakerOpen))
    }

    /// A heartbeat: a line of the load stream, or a probe that succeeded (`None`).
    pub fn on_report(&mut self, report: Option<LoadReport>, now: Instant) {
        let name = report.as_ref().map(|report| report.incarnation.as_str()).unwrap_or_default();
        let renamed = !name.is_empty() && !self.reported.is_empty() && name != self.reported;
        // Without both names, a process that was found to be gone must be another one.
        let unnamed = name.is_empty() || self.reported.is_empty();
        if renamed || (unnamed && self.found_dead) {
            self.incarnation = next_incarnation();
            self.breaker = Breaker::default();
            self.load = None;
        } else if self.suspected {
            // The process lives and breaks connections.
            self.breaker.on_error(now);
        }
        (self.found_dead, self.suspected) = (false, false);
        self.breaker.on_heartbeat();
        match report {
            Some(report) => {
                self.reported.clone_from(&report.incarnation);
                self.reports_draining = report.draining;
                (self.load, self.reported_at) = (Some(report), now);
                (self.sent, self.sent_tokens) = (0, 0.0);
            }
            None => self.reports_draining = false,
        }
        self.replica.set_state(ReplicaState { lost: false, incarnation: self.incarnation });
    }

    /// No heartbeat; `dead` when the process is gone and does not only hang. Returns whether that is new.
    pub fn on_lost(&mut self, dead: bool) -> bool {
        self.suspected = false;
        self.found_dead |= dead;
        self.take_out()
    }

    /// The connection of a request broke: nothing new goes there until a report shows whether the process lives.
    pub fn on_broken(&mut self) {
        self.suspected = true;
        self.take_out();
    }

    /// Whether its process is known to be gone, or to hang.
    pub fn has_ended(&self) -> bool {
        self.gone || (!self.breaker.beats() && !self.suspected)
    }

    fn take_out(&mut self) -> bool {
        self.replica.set_state(ReplicaState { lost: true, incarnation: self.incarnation });
        self.breaker.on_heartbeat_lost()
    }

    /// An answer brought this header.
    pub fn on_load_header(&mut self, header: &str) {
        if let Some(report) = &mut self.load {
            load::update(report, header);
            (self.sent, self.sent_tokens) = (0, 0.0);
        }
    }

    /// Time to first token of a prompt while nothing else runs; `None`: the engine has learned no costs.
    pub fn alone(&self, prompt_tokens: f64) -> Option<Duration> {
        let known = self.load.as_ref().and_then(load::coefficients).filter(|known| known.a > 0.0 && known.p > 0.0)?;
        Duration::try_from_secs_f64((known.a + known.p * prompt_tokens / 1000.0) / 1000.0).ok()
    }

    /// Un-prefilled tokens: those reported, and those sent since then.
    pub fn backlog_tokens(&self) -> f64 {
        self.load.as_ref().map_or(0.0, |report| report.prefill_backlog_tokens as f64 + self.sent_tokens)
    }

    /// What routing knows of it, for this request.
    pub fn view(&self, gate: Gate, ask: &Ask, tried: &[u64], now: Instant) -> ReplicaView {
        let backlog_tokens = self.backlog_tokens();
        let refused = self.unusable(now).or_else(|| {
            let full = self.in_flight + ask.sequences > gate.max_in_flight
                || (backlog_tokens > 0.0 && backlog_tokens + ask.request.prompt_tokens > gate.backlog_tokens);
            if tried.contains(&self.incarnation) {
                Some(Refusal::TriedBefore)
            } else {
                full.then_some(Refusal::AtLimit)
            }
        });
        let report = self.load.as_ref();
        ReplicaView {
            id: self.replica.id,
            coefficients: report.and_then(load::coefficients),
            // Other gateways' requests show in the report, ours since then only here.
            running: report
                .map_or(0, |report| report.running.saturating_add(report.waiting))
                .saturating_add(self.sent)
                .max(self.in_flight),
            kv_tokens: report.map_or(0.0, load::kv_tokens) + self.sent_tokens,
            kv_capacity: report.map_or(0.0, load::kv_capacity),
            backlog_tokens,
            // No gateway knows what prefix caches hold yet.
            cached_tokens: 0.0,
            refused,
        }
    }
}
