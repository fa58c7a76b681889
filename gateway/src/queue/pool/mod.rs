//! The replicas of one deployment and the requests that wait for them.
//!
//! A request asks for a [`Lease`]: the right to be in flight on one replica. It gets one at once when
//! no other request waits and routing finds a replica; otherwise it waits, within bounds. Next is the first
//! request of the tenant with the fewest sequences in flight. Every event after which a request could get a
//! lease (a lease returned, a load report, a replica that appears or recovers) runs [`Pool::pump`].
//!
//! Two waits look alike and are bounded apart: *queued* requests wait for room on replicas that are
//! there, *held* requests wait for a replica to exist. A request that comes back from a lost replica
//! goes to the front of its tenant's.
//!
//! Left out: what is sent and how (`relay`), which caller has access (`listen`).

mod waking;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use stowage_contracts::load::LoadReport;
use stowage_planner::route::{Choice, Coefficients, Refusal, choose};
use tokio::sync::oneshot;
use tokio::time::timeout_at;

use crate::metrics::Tokens;
use crate::queue::arrivals::Arrivals;
use crate::queue::ask::Ask;
use crate::queue::replica::{Gate, Replica, Slot};
use crate::world::snapshot::{Deployment, DeploymentKey};
use waking::Waking;

/// Bounds of a pool that no object sets.
#[derive(Debug, Clone, Copy)]
pub struct PoolSettings {
    pub gate: Gate,
    /// Most requests that wait for room, per model.
    pub max_queued: usize,
    /// Longest wait for room.
    pub queue_timeout: Duration,
}

/// Why a request got no lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unplaced {
    /// No replica will be started.
    SwitchedOff,
    /// As many wait for room as may.
    QueueFull { limit: usize },
    /// As many of this tenant wait as may.
    TenantQueueFull { limit: u32 },
    /// So many of this tenant wait that the rest is kept for others.
    TenantPart,
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
    /// Sequences in flight by tenant; tenants without any are not in it.
    in_flight: HashMap<Arc<str>, u32>,
    arrivals: Arrivals,
    waking: Waking,
    /// Seeds the draw between equals.
    draws: u64,
    /// The deployment is gone: nothing new begins.
    closed: bool,
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
    /// The incarnation of the replica's process that has the request.
    pub incarnation: u64,
    /// When the pool looked for a replica and found this one.
    pub chosen: Instant,
    tenant: Arc<str>,
    sequences: u32,
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
    /// Requests let in since the start, their sequences, and how many requests got a place.
    pub arrivals: u64,
    pub sequences: u64,
    pub placed: u64,
    /// Prompt tokens of those let in, and the part that caches hold.
    pub input_tokens: f64,
    pub cached_tokens: f64,
    /// 0: no answer has ended.
    pub mean_output: f64,
    pub replicas: Vec<ReplicaStatus>,
}

/// A replica at one moment.
#[derive(Debug, Clone)]
pub struct ReplicaStatus {
    pub pod: String,
    pub uid: String,
    pub in_flight: u32,
    /// `None`: it takes requests.
    pub refused: Option<Refusal>,
    pub backlog_tokens: f64,
    /// The last load report, and its age.
    pub report: Option<(LoadReport, Duration)>,
}

// === impl Pool ===

impl PoolStatus {
    /// Whether the operator could not know it by itself.
    pub fn has_something_to_report(&self) -> bool {
        self.arrivals > 0 || self.waiting > 0 || !self.replicas.is_empty()
    }
}

impl Pool {
    pub fn new(deployment: Arc<Deployment>, settings: PoolSettings) -> Arc<Self> {
        Arc::new(Self {
            key: deployment.key.clone(),
            settings,
            state: Mutex::new(State {
                deployment,
                slots: Vec::new(),
                waiting: VecDeque::new(),
                in_flight: HashMap::new(),
                arrivals: Arrivals::default(),
                waking: Waking::default(),
                draws: 0,
                closed: false,
            }),
        })
    }

    /// Takes over the current state of the cluster. Returns the replicas that are new, to be watched.
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
        // What could not be served by now never will be.
        let mut state = self.lock();
        if state.deployment.deleting && !state.usable(Instant::now()) {
            state.waiting.clear();
        }
        new
    }

    /// The deployment is gone: every waiting request is refused, and so is one that looked it up before.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.waiting.clear();
    }

    /// Adds what is in flight here to the counts of those pods that have one, by UID.
    pub fn count_in_flight(&self, counts: &mut BTreeMap<String, u32>) {
        for slot in &self.lock().slots {
            if let Some(count) = counts.get_mut(slot.replica.uid()) {
                *count = count.saturating_add(slot.in_flight);
            }
        }
    }

    /// A place for one request. `tried` are incarnations it came back from: they are used again only
    /// when no other is left.
    pub async fn acquire(self: &Arc<Self>, ask: Ask, tried: Vec<u64>) -> Result<Lease, Unplaced> {
        let since = ask.since;
        let mut receive = match self.place_or_queue(ask, tried)? {
            Door::Open(lease) => return Ok(lease),
            Door::Queue(receive) => receive,
        };
        // Those who wait already may be of a tenant that has its part.
        self.pump();
        loop {
            let (deadline, refusal) = self.patience(since);
            match timeout_at(deadline.into(), &mut receive).await {
                Ok(Ok(lease)) => return Ok(lease),
                Ok(Err(_)) => return Err(Unplaced::Deleted),
                // The deadline may have moved while we waited, from hold to queue or back.
                Err(_) if self.patience(since).0 > Instant::now() => {}
                Err(_) => {
                    receive.close();
                    return receive.try_recv().map_err(|_| refusal);
                }
            }
        }
    }

    /// A heartbeat of the replica, with what it reports where it has a load stream.
    pub fn on_report(self: &Arc<Self>, replica: &Replica, report: Option<LoadReport>) {
        let now = Instant::now();
        self.change(replica, |slot| slot.on_report(report, now));
        self.pump();
    }

    /// The replica does not answer; `dead` when its process is gone. Returns whether it was thought to be well.
    pub fn on_lost(&self, replica: &Replica, dead: bool) -> bool {
        self.change(replica, |slot| slot.on_lost(dead)).unwrap_or(false)
    }

    /// Whether that incarnation is known to have ended: another process took its place, it is not listed any more,
    /// or it has no heartbeat.
    pub fn has_ended(&self, incarnation: u64) -> bool {
        self.lock().slots.iter().find(|slot| slot.incarnation == incarnation).is_none_or(Slot::has_ended)
    }

    /// Whether a request on `replica` could go somewhere else now.
    pub fn has_alternative(&self, replica: &Replica) -> bool {
        let now = Instant::now();
        self.lock().slots.iter().any(|slot| slot.replica.id != replica.id && slot.unusable(now).is_none())
    }

    /// Expected length of an answer to this tenant, in tokens, where the request does not bound it.
    pub fn expected_output(&self, tenant: &Arc<str>) -> f64 {
        self.lock().arrivals.expected_output(tenant)
    }

    /// The objectives of a request with so many prompt tokens. Its time to first token may be twice what an idle
    /// replica takes, so that a long prompt is not hopeless; that is not known while no engine reports its costs.
    pub fn promised(&self, objectives: (Duration, Duration), prompt_tokens: f64) -> (Duration, Duration) {
        let (ttft, itl) = objectives;
        let alone = self.lock().slots.iter().filter_map(|slot| slot.alone(prompt_tokens)).max();
        (alone.map_or(ttft, |alone| ttft.max(alone * 2)), itl)
    }

    /// A request of this tenant was let in. `estimate`: its prompt tokens.
    pub fn arrived(&self, tenant: &Arc<str>, estimate: u64, sequences: u32) {
        self.lock().arrivals.arrived(tenant, estimate, sequences);
    }

    /// A request got its first place.
    pub fn placed(&self) {
        self.lock().arrivals.placed += 1;
    }

    /// An answer to this tenant ended well.
    pub fn answered(&self, tenant: &Arc<str>, estimate: u64, tokens: Tokens, sequences: u32) {
        self.lock().arrivals.answered(tenant, estimate, tokens, sequences);
    }

    /// When a first replica is expected; `None`: there is one, no start was measured, or this one is overdue.
    pub fn ready_in(&self) -> Option<Duration> {
        let now = Instant::now();
        let state = self.lock();
        state.waking.left(state.deployment.cold_start, now)
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
            arrivals: state.arrivals.requests,
            sequences: state.arrivals.sequences,
            placed: state.arrivals.placed,
            input_tokens: state.arrivals.input_tokens,
            cached_tokens: state.arrivals.cached_tokens,
            mean_output: state.arrivals.mean_output(),
            replicas: state.slots.iter().map(|slot| slot_status(slot, now)).collect(),
        }
    }

    /// Gives leases to waiting requests, in order, until the next one finds no replica.
    pub fn pump(self: &Arc<Self>) {
        let mut ready = Vec::new();
        {
            let now = Instant::now();
            let mut state = self.lock();
            state.forget_departed();
            if state.usable(now) {
                state.waking.over();
            }
            while let Some(index) = state.next() {
                let Some(waiter) = state.waiting.remove(index) else { break };
                match self.place(&mut state, &waiter.ask, &waiter.tried, now) {
                    Some(lease) => ready.push((waiter.deliver, lease)),
                    None => {
                        state.waiting.insert(index, waiter);
                        break;
                    }
                }
            }
        }
        // Outside the lock: a lease whose request has ended is dropped here and returns itself.
        for (deliver, lease) in ready {
            drop(deliver.send(lease));
        }
    }

    fn place_or_queue(self: &Arc<Self>, ask: Ask, tried: Vec<u64>) -> Result<Door, Unplaced> {
        let now = Instant::now();
        let mut state = self.lock();
        if state.closed {
            return Err(Unplaced::Deleted);
        }
        state.forget_departed();
        let wanting = !state.deployment.switched_off && !state.usable(now);
        state.waking.asked(wanting, now);
        let again = !tried.is_empty();
        if (state.waiting.is_empty() || again)
            && let Some(lease) = self.place(&mut state, &ask, &tried, now)
        {
            return Ok(Door::Open(lease));
        }
        // A request that had a place already is not refused for want of room in the queue.
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
        if !state.leaves_room(ask, self.settings.gate, now) {
            return None;
        }
        let index = state.choose(self.settings.gate, ask, tried, now).winner.or_else(|| {
            (!tried.is_empty()).then(|| state.choose(self.settings.gate, ask, &[], now).winner).flatten()
        })?;
        *state.in_flight.entry(ask.tenant.clone()).or_default() += ask.sequences;
        let slot = &mut state.slots[index];
        slot.in_flight += ask.sequences;
        slot.sent += ask.sequences;
        slot.sent_tokens += ask.request.prompt_tokens;
        slot.breaker.on_chosen();
        Some(Lease {
            pool: self.clone(),
            replica: slot.replica.clone(),
            incarnation: slot.incarnation,
            chosen: now,
            tenant: ask.tenant.clone(),
            sequences: ask.sequences,
        })
    }

    /// Until when a request that waits since then may wait, and the refusal after that.
    fn patience(&self, since: Instant) -> (Instant, Unplaced) {
        let now = Instant::now();
        let state = self.lock();
        let waited = now.saturating_duration_since(since);
        if state.usable(now) {
            (
                since + self.settings.queue_timeout,
                Unplaced::QueueTimeout { waited: waited.max(self.settings.queue_timeout) },
            )
        } else if state.deployment.deleting {
            (now, Unplaced::Deleted)
        } else if state.deployment.switched_off && state.slots.is_empty() {
            (now, Unplaced::SwitchedOff)
        } else {
            let hold = state.deployment.hold;
            let starting = state.slots.is_empty();
            (since + hold, Unplaced::NoReplica { waited: waited.max(hold), starting })
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
        uid: slot.replica.uid().to_owned(),
        in_flight: slot.in_flight,
        refused: slot.unusable(now),
        report: slot.load.clone().map(|report| (report, now.saturating_duration_since(slot.reported_at))),
        backlog_tokens: slot.backlog_tokens(),
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

    /// Where the waiter stands that is next: of the tenant with the fewest sequences in flight, the first. So a
    /// tenant with many requests gets what others leave, and all of it while no other waits.
    fn next(&self) -> Option<usize> {
        let mut seen = HashSet::new();
        let firsts = self.waiting.iter().enumerate().filter(|(_, waiter)| seen.insert(&waiter.ask.tenant));
        let served = |tenant: &Arc<str>| self.in_flight.get(tenant).copied().unwrap_or(0);
        firsts.min_by_key(|(index, waiter)| (served(&waiter.ask.tenant), *index)).map(|(index, _)| index)
    }

    /// Whether others still find a place at once when the request has its own. A model that others may use is not
    /// filled by one tenant: it has three times what it leaves free, as of other shared budgets.
    fn leaves_room(&self, ask: &Ask, gate: Gate, now: Instant) -> bool {
        let own = self.in_flight.get(&ask.tenant).copied().unwrap_or(0);
        if own == 0 || self.deployment.access.is_empty() {
            return true;
        }
        let usable = self.slots.iter().filter(|slot| slot.unusable(now).is_none());
        let (places, taken) =
            usable.fold((0, 0), |(places, taken), slot| (places + gate.max_in_flight, taken + slot.in_flight));
        own + ask.sequences <= 3 * (places.saturating_sub(taken + ask.sequences) + 1)
    }

    fn on_returned(&mut self, tenant: &Arc<str>, sequences: u32) {
        if let Some(in_flight) = self.in_flight.get_mut(tenant) {
            *in_flight = in_flight.saturating_sub(sequences);
            if *in_flight == 0 {
                self.in_flight.remove(tenant);
            }
        }
    }

    fn choose(&mut self, gate: Gate, ask: &Ask, tried: &[u64], now: Instant) -> Choice {
        let views: Vec<_> = self.slots.iter().map(|slot| slot.view(gate, ask, tried, now)).collect();
        self.draws = self.draws.wrapping_add(1);
        choose(&views, &ask.request, &Coefficients::REFERENCE, self.draws)
    }

    fn check_bounds(&self, ask: &Ask, max_queued: usize, now: Instant) -> Result<(), Unplaced> {
        let mine = self.waiting.iter().filter(|w| w.ask.tenant == ask.tenant).count();
        if let Some(limit) = ask.max_queued
            && mine >= limit as usize
        {
            return Err(Unplaced::TenantQueueFull { limit });
        }
        let (limit, full) = if self.usable(now) {
            (max_queued, Unplaced::QueueFull { limit: max_queued })
        } else if self.deployment.deleting {
            return Err(Unplaced::Deleted);
        } else if self.deployment.switched_off && self.slots.is_empty() {
            return Err(Unplaced::SwitchedOff);
        } else {
            let limit = self.deployment.max_held;
            (limit, Unplaced::HoldFull { limit })
        };
        let left = limit.checked_sub(self.waiting.len() + 1).ok_or(full)?;
        // No tenant fills the queue: it may have three times what it leaves free, as of other shared budgets.
        if mine + 1 > 3 * (left + 1) { Err(Unplaced::TenantPart) } else { Ok(()) }
    }
}

// === impl Lease ===

impl Lease {
    /// The replica answered sensibly; `load` is the header that came along.
    pub fn answered(&self, load: Option<&str>) {
        self.pool.change(&self.replica, |slot| {
            slot.breaker.on_answer();
            if let Some(header) = load {
                slot.on_load_header(header);
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

    /// The replica reports that it drains.
    pub fn refused_draining(&self) {
        self.pool.change(&self.replica, |slot| slot.reports_draining = true);
    }

    /// No connection to the replica: out, until its next report.
    pub fn unreachable(&self) {
        self.suspect(|slot| _ = slot.on_lost(true));
    }

    /// The connection broke while the request ran: out, until a report shows whether the process lives.
    pub fn broken(&self) {
        self.suspect(Slot::on_broken);
    }

    /// Takes the replica out and has it checked, unless another process is there already.
    fn suspect(&self, take_out: impl FnOnce(&mut Slot)) {
        self.pool.change(&self.replica, |slot| {
            if slot.incarnation == self.incarnation {
                take_out(slot);
            }
        });
        self.replica.check_now.notify_one();
    }

    /// Whether the process that had the request was replaced by another one.
    pub fn renewed(&self) -> bool {
        self.replica.state().incarnation != self.incarnation
    }

    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        {
            let mut state = self.pool.lock();
            state.on_returned(&self.tenant, self.sequences);
            if let Some(slot) = state.slots.iter_mut().find(|slot| slot.replica.id == self.replica.id) {
                slot.in_flight = slot.in_flight.saturating_sub(self.sequences);
                slot.breaker.on_released();
            }
            state.slots.retain(|slot| !slot.gone || slot.in_flight > 0);
        }
        self.pool.pump();
    }
}
