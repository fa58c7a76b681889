//! The replicas of one deployment and the requests that wait for them.
//!
//! A request asks for a [`Lease`]: the right to be in flight on one replica. It gets one at once when
//! nobody waits and routing finds a replica; otherwise it queues, first come first served, within
//! bounds. Whatever could let somebody through — a lease returned, a load report, a replica that
//! appears or recovers — runs [`Pool::pump`].
//!
//! Two waits look alike and are bounded apart: *queued* requests wait for room on replicas that are
//! there, *held* requests wait for a replica to exist. A request that comes back from a lost replica
//! goes to the front with its original arrival time.
//!
//! Left out: what is sent and how (the proxy), who may ask (auth), fairness between tenants.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use stowage_planner::route::{Choice, Coefficients, Refusal, RequestView, choose};
use tokio::sync::oneshot;
use tokio::time::timeout_at;

use crate::queue::load::Load;
use crate::queue::replica::{Gate, Replica, Slot};
use crate::world::snapshot::{Deployment, DeploymentKey};

/// Expected answer length until a pool has seen some, in tokens.
const FIRST_MEAN_OUTPUT: f64 = 128.0;
/// Weight of the newest answer in the mean.
const MEAN_WEIGHT: f64 = 0.05;

/// Bounds of a pool that no object sets.
#[derive(Debug, Clone, Copy)]
pub struct PoolSettings {
    pub gate: Gate,
    /// Most requests that wait for room, per model.
    pub max_queued: usize,
    /// Longest wait for room.
    pub queue_timeout: Duration,
}

/// What a request asks a pool for.
#[derive(Debug, Clone)]
pub struct Ask {
    pub tenant: Arc<str>,
    pub request: RequestView,
    /// When the request arrived at the gateway; all waiting counts from here.
    pub arrived: Instant,
    /// Most requests of this tenant that may wait here.
    pub max_queued: Option<u32>,
}

/// Why a request got no lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unplaced {
    /// Nobody will start a replica.
    SwitchedOff,
    /// As many wait for room as may.
    QueueFull { limit: usize },
    /// As many of this tenant wait as may.
    TenantQueueFull { limit: u32 },
    /// As many wait for a first replica as may.
    HoldFull { limit: usize },
    /// No room within the queue's time.
    QueueTimeout { waited: Duration },
    /// No replica within the hold; `starting` when there is none at all, rather than broken ones.
    NoReplica { waited: Duration, starting: bool },
    /// The deployment was deleted meanwhile.
    Deleted,
}

/// The pool.
#[derive(Debug)]
pub struct Pool {
    pub key: DeploymentKey,
    settings: PoolSettings,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    deployment: Arc<Deployment>,
    slots: Vec<Slot>,
    waiting: VecDeque<Waiter>,
    mean_output: f64,
    /// Seeds the draw between equals.
    draws: u64,
}

#[derive(Debug)]
struct Waiter {
    ask: Ask,
    tried: Vec<u64>,
    deliver: oneshot::Sender<Lease>,
}

/// The right to be in flight on one replica; returned when dropped.
#[derive(Debug)]
#[must_use]
pub struct Lease {
    pool: Arc<Pool>,
    pub replica: Arc<Replica>,
}

/// What a request finds when it arrives.
enum Door {
    Open(Lease),
    Queue(oneshot::Receiver<Lease>),
}

/// A pool at one moment, for signals and metrics.
#[derive(Debug, Clone)]
pub struct PoolStatus {
    pub deployment: Arc<Deployment>,
    /// Waiting for room, or for a replica.
    pub waiting: usize,
    /// Whether those wait for a replica to exist.
    pub held: bool,
    pub waiting_tokens: f64,
    pub mean_output: f64,
    pub replicas: Vec<ReplicaStatus>,
}

/// A replica at one moment.
#[derive(Debug, Clone)]
pub struct ReplicaStatus {
    pub pod: String,
    pub in_flight: u32,
    /// `None`: it takes requests.
    pub refused: Option<Refusal>,
    pub backlog_tokens: f64,
}

// === impl Pool ===

impl Pool {
    pub fn new(deployment: Arc<Deployment>, settings: PoolSettings) -> Arc<Self> {
        Arc::new(Self {
            key: deployment.key.clone(),
            settings,
            state: Mutex::new(State {
                deployment,
                slots: Vec::new(),
                waiting: VecDeque::new(),
                mean_output: FIRST_MEAN_OUTPUT,
                draws: 0,
            }),
        })
    }

    /// Takes over what the cluster says now. Returns the replicas that are new, to be watched.
    pub fn update(self: &Arc<Self>, deployment: Arc<Deployment>) -> Vec<Arc<Replica>> {
        let mut new = Vec::new();
        {
            let mut state = self.lock();
            for slot in &mut state.slots {
                slot.gone = true;
            }
            for fact in &deployment.replicas {
                match state.slots.iter_mut().find(|slot| slot.replica.is(fact)) {
                    Some(slot) => (slot.gone, slot.refused) = (false, fact.refused),
                    None => {
                        let replica = Replica::new(fact);
                        new.push(replica.clone());
                        state.slots.push(Slot::new(replica, fact.refused));
                    }
                }
            }
            state.slots.retain(|slot| !slot.gone || slot.in_flight > 0);
            state.deployment = deployment;
        }
        self.pump();
        // Whoever could not be served by now never will be.
        let mut state = self.lock();
        if state.deployment.deleting && !state.usable(Instant::now()) {
            state.waiting.clear();
        }
        new
    }

    /// The deployment is gone: whoever waits is told.
    pub fn close(&self) {
        self.lock().waiting.clear();
    }

    /// A place for one request. `tried` are replicas it came back from: they are used again only
    /// when no other is left.
    pub async fn acquire(self: &Arc<Self>, ask: Ask, tried: Vec<u64>) -> Result<Lease, Unplaced> {
        let arrived = ask.arrived;
        let mut receive = match self.place_or_queue(ask, tried)? {
            Door::Open(lease) => return Ok(lease),
            Door::Queue(receive) => receive,
        };
        loop {
            let (deadline, refusal) = self.patience(arrived);
            match timeout_at(deadline.into(), &mut receive).await {
                Ok(Ok(lease)) => return Ok(lease),
                Ok(Err(_)) => return Err(Unplaced::Deleted),
                // The deadline may have moved while we waited, from hold to queue or back.
                Err(_) if self.patience(arrived).0 > Instant::now() => {}
                Err(_) => {
                    receive.close();
                    return receive.try_recv().map_err(|_| refusal);
                }
            }
        }
    }

    /// The replica lives; `load` is what it does, where it has a load stream.
    pub fn on_report(self: &Arc<Self>, replica: &Replica, load: Option<Load>) {
        self.change(replica, |slot| {
            slot.breaker.on_heartbeat();
            match load {
                Some(load) => slot.set_load(load),
                None => slot.says_draining = false,
            }
        });
        replica.set_lost(false);
        self.pump();
    }

    /// The replica does not answer. Returns whether that is news.
    pub fn on_lost(self: &Arc<Self>, replica: &Replica) -> bool {
        replica.set_lost(true);
        self.change(replica, |slot| slot.breaker.on_heartbeat_lost()).unwrap_or(false)
    }

    /// Whether a request on `replica` could go somewhere else now.
    pub fn has_alternative(&self, replica: &Replica) -> bool {
        let now = Instant::now();
        self.lock().slots.iter().any(|slot| slot.replica.id != replica.id && slot.unusable(now).is_none())
    }

    /// Whether the replica said that it drains.
    pub fn is_draining(&self, replica: &Replica) -> bool {
        self.change(replica, |slot| slot.says_draining).unwrap_or(true)
    }

    /// Expected answer length, in tokens, where the request does not bound it.
    pub fn mean_output(&self) -> f64 {
        self.lock().mean_output
    }

    /// An answer of so many tokens ended.
    pub fn learn_output(&self, tokens: f64) {
        let mut state = self.lock();
        state.mean_output += MEAN_WEIGHT * (tokens - state.mean_output);
    }

    pub fn status(&self) -> PoolStatus {
        let now = Instant::now();
        let mut state = self.lock();
        state.forget_departed();
        PoolStatus {
            deployment: state.deployment.clone(),
            waiting: state.waiting.len(),
            held: !state.usable(now),
            // Not `sum`: of nothing that is -0.
            waiting_tokens: state.waiting.iter().fold(0.0, |sum, w| sum + w.ask.request.prompt_tokens),
            mean_output: state.mean_output,
            replicas: state.slots.iter().map(|slot| slot_status(slot, now)).collect(),
        }
    }

    /// Lets through whoever can be let through, in order.
    pub fn pump(self: &Arc<Self>) {
        let mut ready = Vec::new();
        {
            let now = Instant::now();
            let mut state = self.lock();
            state.forget_departed();
            while let Some(waiter) = state.waiting.pop_front() {
                match self.place(&mut state, &waiter.ask, &waiter.tried, now) {
                    Some(lease) => ready.push((waiter.deliver, lease)),
                    None => {
                        state.waiting.push_front(waiter);
                        break;
                    }
                }
            }
        }
        // Outside the lock: a lease that nobody takes is dropped here and returns itself.
        for (deliver, lease) in ready {
            drop(deliver.send(lease));
        }
    }

    fn place_or_queue(self: &Arc<Self>, ask: Ask, tried: Vec<u64>) -> Result<Door, Unplaced> {
        let now = Instant::now();
        let mut state = self.lock();
        state.forget_departed();
        let again = !tried.is_empty();
        if (state.waiting.is_empty() || again)
            && let Some(lease) = self.place(&mut state, &ask, &tried, now)
        {
            return Ok(Door::Open(lease));
        }
        // Who was in already is not turned away at the door.
        if !again {
            state.check_bounds(&ask, self.settings.max_queued, now)?;
        }
        let (deliver, receive) = oneshot::channel();
        let waiter = Waiter { ask, tried, deliver };
        if again {
            state.waiting.push_front(waiter);
        } else {
            state.waiting.push_back(waiter);
        }
        Ok(Door::Queue(receive))
    }

    fn place(self: &Arc<Self>, state: &mut State, ask: &Ask, tried: &[u64], now: Instant) -> Option<Lease> {
        let index = state.choose(self.settings.gate, ask, tried, now).winner.or_else(|| {
            (!tried.is_empty()).then(|| state.choose(self.settings.gate, ask, &[], now).winner).flatten()
        })?;
        let slot = &mut state.slots[index];
        slot.in_flight += 1;
        slot.sent += 1;
        slot.sent_tokens += ask.request.prompt_tokens;
        slot.breaker.on_chosen();
        Some(Lease { pool: self.clone(), replica: slot.replica.clone() })
    }

    /// Until when somebody who arrived then waits, and what is said when it is over.
    fn patience(&self, arrived: Instant) -> (Instant, Unplaced) {
        let now = Instant::now();
        let state = self.lock();
        let waited = now.saturating_duration_since(arrived);
        if state.usable(now) {
            (
                arrived + self.settings.queue_timeout,
                Unplaced::QueueTimeout { waited: waited.max(self.settings.queue_timeout) },
            )
        } else if state.deployment.deleting {
            (now, Unplaced::Deleted)
        } else if state.deployment.switched_off && state.slots.is_empty() {
            (now, Unplaced::SwitchedOff)
        } else {
            let hold = state.deployment.hold;
            let starting = state.slots.is_empty();
            (arrived + hold, Unplaced::NoReplica { waited: waited.max(hold), starting })
        }
    }

    fn change<T>(&self, replica: &Replica, change: impl FnOnce(&mut Slot) -> T) -> Option<T> {
        self.lock().slots.iter_mut().find(|slot| slot.replica.id == replica.id).map(change)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code under this lock panics half way through a change; if it did, the counts are
        // still better than none.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn slot_status(slot: &Slot, now: Instant) -> ReplicaStatus {
    ReplicaStatus {
        pod: slot.replica.pod.clone(),
        in_flight: slot.in_flight,
        refused: slot.unusable(now),
        backlog_tokens: slot.load.map_or(0.0, |load| load.backlog_tokens + slot.sent_tokens),
    }
}

// === impl State ===

impl State {
    fn usable(&self, now: Instant) -> bool {
        self.slots.iter().any(|slot| slot.unusable(now).is_none())
    }

    /// Drops waiters whose client went away.
    fn forget_departed(&mut self) {
        self.waiting.retain(|waiter| !waiter.deliver.is_closed());
    }

    fn choose(&mut self, gate: Gate, ask: &Ask, tried: &[u64], now: Instant) -> Choice {
        let tokens = ask.request.prompt_tokens;
        let views: Vec<_> = self.slots.iter().map(|slot| slot.view(gate, tokens, tried, now)).collect();
        self.draws = self.draws.wrapping_add(1);
        choose(&views, &ask.request, &Coefficients::REFERENCE, self.draws)
    }

    fn check_bounds(&self, ask: &Ask, max_queued: usize, now: Instant) -> Result<(), Unplaced> {
        if let Some(limit) = ask.max_queued {
            let mine = self.waiting.iter().filter(|w| w.ask.tenant == ask.tenant).count();
            if mine >= limit as usize {
                return Err(Unplaced::TenantQueueFull { limit });
            }
        }
        if self.usable(now) {
            return if self.waiting.len() < max_queued {
                Ok(())
            } else {
                Err(Unplaced::QueueFull { limit: max_queued })
            };
        }
        if self.deployment.deleting {
            return Err(Unplaced::Deleted);
        }
        if self.deployment.switched_off && self.slots.is_empty() {
            return Err(Unplaced::SwitchedOff);
        }
        let limit = self.deployment.max_held;
        if self.waiting.len() < limit { Ok(()) } else { Err(Unplaced::HoldFull { limit }) }
    }
}

// === impl Lease ===

impl Lease {
    /// The replica answered sensibly; `load` is the header that came along.
    pub fn answered(&self, load: Option<&str>) {
        self.pool.change(&self.replica, |slot| {
            slot.breaker.on_answer();
            if let (Some(header), Some(known)) = (load, slot.load) {
                slot.set_load(known.updated_by_header(header));
            }
        });
    }

    /// The replica answered with a server error of its own.
    pub fn errored(&self) {
        self.pool.change(&self.replica, |slot| slot.breaker.on_error(Instant::now()));
    }

    /// The replica answered what no engine answers.
    pub fn garbled(&self) {
        self.pool.change(&self.replica, |slot| slot.breaker.on_garbage(Instant::now()));
    }

    /// The replica says that it drains.
    pub fn refused_draining(&self) {
        self.pool.change(&self.replica, |slot| slot.says_draining = true);
    }

    /// No connection to the replica: out, until its monitor hears from it.
    pub fn unreachable(&self) {
        self.pool.on_lost(&self.replica);
        self.replica.poke.notify_one();
    }

    /// The connection broke while the request ran. Whether the replica is gone, the monitor finds out.
    pub fn broken(&self) {
        self.errored();
        self.replica.poke.notify_one();
    }

    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        {
            let mut state = self.pool.lock();
            if let Some(slot) = state.slots.iter_mut().find(|slot| slot.replica.id == self.replica.id) {
                slot.in_flight = slot.in_flight.saturating_sub(1);
                slot.breaker.on_released();
            }
            state.slots.retain(|slot| !slot.gone || slot.in_flight > 0);
        }
        self.pool.pump();
    }
}
