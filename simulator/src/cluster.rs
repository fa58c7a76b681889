//! The replicas of one deployment and the gateway's queue before them.
//!
//! The gateway binds late: a request waits in arrival order until a ready replica has room, and goes
//! to the one with the least un-prefilled tokens plus 20 per running sequence. With the gate, a
//! request that has waited half of its TTFT objective is served after all that are still in time, and
//! a replica takes no more sequences than its ITL objective allows.

use crate::engine::{Batch, MAX_SEQUENCES, PREFILL_CHUNK, Request};
use std::collections::VecDeque;
use stowage_contracts::load::Coefficients;

/// What does not change during a run. Times are milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Of every replica.
    pub cost: Coefficients,
    /// Tokens that a replica's KV cache holds.
    pub kv_capacity: u64,
    /// From the decision to the first request that can be served.
    pub cold_start: f64,
    /// Replicas that there can be.
    pub max_replicas: usize,
    /// `None`: no gate.
    pub gate: Option<Gate>,
}

/// The admission rule of the gateway.
#[derive(Debug, Clone, Copy)]
pub struct Gate {
    /// Milliseconds in the queue after which a request counts as late.
    pub patience: f64,
    /// Sequences that a replica runs at most.
    pub max_sequences: usize,
}

/// What a replica does.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    Off,
    Starting { ready_at: f64 },
    Ready,
    Draining,
}

#[derive(Debug, Clone)]
struct Replica {
    phase: Phase,
    batch: Batch,
    /// When the running iteration ends; absent: idle.
    iteration_end: Option<f64>,
    /// Its iterations take so many times as long as they should.
    slowdown: f64,
    /// Sum of all iterations so far.
    busy: f64,
    since: f64,
    /// Time in any phase but off, up to `since`.
    on: f64,
}

/// The whole system at one moment.
#[derive(Debug, Clone)]
pub struct Cluster {
    setting: Setting,
    now: f64,
    requests: Vec<Request>,
    arrived: usize,
    /// In arrival order from here on; what has waited too long moves to `late`.
    head: usize,
    late: VecDeque<usize>,
    /// Prompt tokens of what waits.
    queued_tokens: u64,
    /// Requests that arrived while no replica served.
    held: usize,
    replicas: Vec<Replica>,
    finished: usize,
    finished_output: u64,
    changes: usize,
}

/// What a policy decides.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Everything stays as it is.
    Keep,
    /// So many replicas that serve or start.
    Count(usize),
    /// What becomes of which replica.
    Changes(Vec<Change>),
}

/// What becomes of one replica, by its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It starts.
    Start(usize),
    /// It is off as soon as its requests are done.
    End(usize),
    /// It takes requests again, if it was not off yet.
    Resume(usize),
}

/// What a replica does, for policies that look at each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub enum State {
    Off,
    Starting,
    Ready,
    Draining,
}

/// One replica, as a policy may see it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seen {
    /// What it does.
    pub state: State,
    /// Its sequences.
    pub running: usize,
    /// Milliseconds at which it was started.
    pub since: f64,
}

/// What a policy may see.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observation {
    /// Milliseconds since the start.
    pub now: f64,
    /// Requests that arrived so far.
    pub arrived: usize,
    /// Requests in the gateway's queue.
    pub queued: usize,
    /// Their prompt tokens.
    pub queued_tokens: u64,
    /// Sequences on all replicas.
    pub running: usize,
    /// Prompt tokens on ready replicas that are not computed yet.
    pub unprefilled: u64,
    /// Replicas that serve.
    pub ready: usize,
    /// Replicas that serve or start.
    pub count: usize,
    /// Milliseconds of iterations of all replicas so far.
    pub busy: f64,
    /// Requests that were answered so far, and the tokens of the answers.
    pub finished: usize,
    /// As above.
    pub finished_output: u64,
    /// KV cache in use on ready replicas, in caches of one replica.
    pub kv_used: f64,
    /// Ready replicas whose KV cache is more than nine tenths reserved.
    pub kv_bound: usize,
    /// Each replica that there can be, by position.
    pub replicas: Vec<Seen>,
}

// === impl Cluster ===

impl Cluster {
    /// `ready` replicas serve from the start.
    pub fn new(setting: Setting, requests: Vec<Request>, ready: usize) -> Self {
        let off = Replica {
            phase: Phase::Off,
            batch: Batch::default(),
            iteration_end: None,
            slowdown: 1.0,
            busy: 0.0,
            since: 0.0,
            on: 0.0,
        };
        let mut replicas = vec![off; setting.max_replicas];
        replicas.iter_mut().take(ready).for_each(|replica| replica.phase = Phase::Ready);
        Self {
            setting,
            now: 0.0,
            requests,
            arrived: 0,
            head: 0,
            late: VecDeque::new(),
            queued_tokens: 0,
            held: 0,
            replicas,
            finished: 0,
            finished_output: 0,
            changes: 0,
        }
    }

    /// All requests, with what became of them.
    pub fn requests(&self) -> &[Request] {
        &self.requests
    }

    /// Whether all requests have been answered.
    pub fn done(&self) -> bool {
        self.finished == self.requests.len()
    }

    /// How often the count was changed.
    pub fn changes(&self) -> usize {
        self.changes
    }

    /// Requests that arrived while no replica served.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Replicas that serve or start.
    pub fn count(&self) -> usize {
        self.replicas.iter().filter(|r| matches!(r.phase, Phase::Starting { .. } | Phase::Ready)).count()
    }

    /// Milliseconds that all replicas together were on, cold starts included.
    pub fn replica_time(&self) -> f64 {
        let on = |r: &Replica| r.on + if r.phase == Phase::Off { 0.0 } else { self.now - r.since };
        self.replicas.iter().map(on).sum()
    }

    /// What a policy may see.
    pub fn observe(&self) -> Observation {
        let ready = || self.replicas.iter().filter(|r| r.phase == Phase::Ready);
        Observation {
            now: self.now,
            arrived: self.arrived,
            queued: self.arrived - self.head + self.late.len(),
            queued_tokens: self.queued_tokens,
            running: self.replicas.iter().map(|r| r.batch.running()).sum(),
            unprefilled: ready().map(|r| r.batch.unprefilled()).sum(),
            ready: ready().count(),
            count: self.count(),
            busy: self.replicas.iter().map(|r| r.busy).sum(),
            finished: self.finished,
            finished_output: self.finished_output,
            kv_used: ready().map(|r| r.batch.resident() as f64 / self.setting.kv_capacity as f64).sum(),
            kv_bound: ready().filter(|r| r.batch.reserved() * 10 > self.setting.kv_capacity * 9).count(),
            replicas: self.replicas.iter().map(Replica::seen).collect(),
        }
    }

    /// Lets time pass until `until`.
    pub fn advance(&mut self, until: f64) {
        loop {
            let event = self.next_event();
            let arrival = self.requests.get(self.arrived).map_or(f64::INFINITY, |r| r.arrived);
            let at = event.map_or(arrival, |(at, _)| at.min(arrival));
            if at > until {
                break;
            }
            self.now = at;
            match event {
                Some((ends, replica)) if ends < arrival => self.on_event(replica),
                _ => self.arrive(),
            }
            self.dispatch();
            self.start_iterations();
        }
        self.now = until;
    }

    fn arrive(&mut self) {
        self.queued_tokens += u64::from(self.requests[self.arrived].input);
        self.held += usize::from(!self.replicas.iter().any(|r| r.phase == Phase::Ready));
        self.arrived += 1;
    }

    fn next_event(&self) -> Option<(f64, usize)> {
        let mut next = None;
        for (index, replica) in self.replicas.iter().enumerate() {
            let at = match replica.phase {
                Phase::Starting { ready_at } => ready_at,
                Phase::Off => continue,
                Phase::Ready | Phase::Draining => match replica.iteration_end {
                    Some(end) => end,
                    None => continue,
                },
            };
            if next.is_none_or(|(earliest, _)| at < earliest) {
                next = Some((at, index));
            }
        }
        next
    }

    fn on_event(&mut self, index: usize) {
        let replica = &mut self.replicas[index];
        if matches!(replica.phase, Phase::Starting { .. }) {
            replica.phase = Phase::Ready;
            return;
        }
        let (finished, output) = replica.batch.end_iteration(&mut self.requests, self.now);
        self.finished += finished;
        self.finished_output += output;
        replica.iteration_end = None;
        if replica.phase == Phase::Draining && replica.batch.running() == 0 {
            replica.turn_off(self.now);
        }
    }

    fn dispatch(&mut self) {
        while let Some((index, is_late)) = self.next_request() {
            let Some(replica) = self.choose(index) else { break };
            if is_late {
                self.late.pop_front();
            } else {
                self.head += 1;
            }
            self.queued_tokens -= u64::from(self.requests[index].input);
            self.replicas[replica].batch.admit(index, &mut self.requests[index]);
        }
    }

    /// The next request in the queue, after those that have waited too long moved to its end.
    fn next_request(&mut self) -> Option<(usize, bool)> {
        while self.head < self.arrived {
            let too_late = |gate: Gate| self.now - self.requests[self.head].arrived > gate.patience;
            if !self.setting.gate.is_some_and(too_late) {
                return Some((self.head, false));
            }
            self.late.push_back(self.head);
            self.head += 1;
        }
        self.late.front().map(|index| (*index, true))
    }

    fn choose(&self, request: usize) -> Option<usize> {
        let need = u64::from(self.requests[request].input) + u64::from(self.requests[request].output);
        let (chunks, sequences) = self.setting.gate.map_or((2, MAX_SEQUENCES), |gate| (1, gate.max_sequences));
        let has_room = |replica: &Replica| {
            replica.phase == Phase::Ready
                && replica.batch.unprefilled() < chunks * u64::from(PREFILL_CHUNK)
                && replica.batch.running() < sequences
                && (replica.batch.reserved() + need <= self.setting.kv_capacity || replica.batch.running() == 0)
        };
        let load = |replica: &Replica| replica.batch.unprefilled() + 20 * replica.batch.running() as u64;
        let candidates = self.replicas.iter().enumerate().filter(|(_, replica)| has_room(replica));
        candidates.min_by_key(|(index, replica)| (load(replica), *index)).map(|(index, _)| index)
    }

    fn start_iterations(&mut self) {
        for replica in &mut self.replicas {
            let serves = matches!(replica.phase, Phase::Ready | Phase::Draining);
            if serves && replica.iteration_end.is_none() && replica.batch.running() > 0 {
                let length = replica.batch.start_iteration(&self.requests, &self.setting.cost) * replica.slowdown;
                replica.iteration_end = Some(self.now + length);
                replica.busy += length;
            }
        }
    }

    /// Carries a decision out.
    pub fn apply(&mut self, decision: &Decision) {
        match decision {
            Decision::Keep => {}
            Decision::Count(wanted) => self.scale_to(*wanted),
            Decision::Changes(changes) => {
                self.changes += usize::from(!changes.is_empty());
                changes.iter().for_each(|change| self.change(*change));
            }
        }
    }

    fn change(&mut self, change: Change) {
        let (Change::Start(position) | Change::End(position) | Change::Resume(position)) = change;
        let Some(replica) = self.replicas.get_mut(position) else { return };
        match (change, replica.phase) {
            (Change::Start(_), Phase::Off) => replica.start(self.now, self.setting.cold_start),
            (Change::End(_), Phase::Starting { .. } | Phase::Ready) => replica.end(self.now),
            (Change::Resume(_), Phase::Draining) => replica.phase = Phase::Ready,
            (Change::Start(_) | Change::End(_) | Change::Resume(_), _) => {}
        }
    }

    /// Makes the count of starting and ready replicas `wanted`: drains are cancelled before replicas
    /// start; starting replicas are cancelled, latest first, before the least loaded drains.
    pub fn scale_to(&mut self, wanted: usize) {
        let wanted = wanted.min(self.replicas.len());
        let mut count = self.count();
        self.changes += usize::from(wanted != count);
        while count < wanted && self.add_one() {
            count += 1;
        }
        while count > wanted {
            self.remove_one();
            count -= 1;
        }
    }

    fn add_one(&mut self) -> bool {
        if let Some(draining) = self.replicas.iter_mut().find(|r| r.phase == Phase::Draining) {
            draining.phase = Phase::Ready;
            return true;
        }
        let Some(off) = self.replicas.iter_mut().find(|r| r.phase == Phase::Off) else { return false };
        off.start(self.now, self.setting.cold_start);
        true
    }

    fn remove_one(&mut self) {
        let started = |r: &Replica| if let Phase::Starting { ready_at } = r.phase { Some(ready_at) } else { None };
        let mut latest: Option<(f64, usize)> = None;
        for (index, replica) in self.replicas.iter().enumerate() {
            if let Some(ready_at) = started(replica)
                && latest.is_none_or(|(at, _)| ready_at > at)
            {
                latest = Some((ready_at, index));
            }
        }
        if let Some((_, index)) = latest {
            self.replicas[index].end(self.now);
            return;
        }
        let ready = self.replicas.iter_mut().filter(|r| r.phase == Phase::Ready);
        if let Some(least) = ready.min_by_key(|r| r.batch.running()) {
            least.end(self.now);
        }
    }

    /// From its next iteration on the replica takes so many times as long as its cost says.
    pub fn slow_down(&mut self, replica: usize, times: f64) {
        self.replicas[replica].slowdown = times;
    }

    /// Breaks the replica: it is off at once, and its requests go back to the head of the queue.
    /// Returns how many these were; zero for one that is not on.
    pub fn fail(&mut self, replica: usize) -> usize {
        let Some(replica) = self.replicas.get_mut(replica).filter(|r| r.phase != Phase::Off) else { return 0 };
        let lost = replica.batch.take_all();
        replica.iteration_end = None;
        replica.turn_off(self.now);
        for index in lost.iter().rev() {
            self.requests[*index].restart();
            self.queued_tokens += u64::from(self.requests[*index].input);
            self.late.push_front(*index);
        }
        lost.len()
    }
}

// === impl Replica ===

impl Replica {
    fn seen(&self) -> Seen {
        let state = match self.phase {
            Phase::Off => State::Off,
            Phase::Starting { .. } => State::Starting,
            Phase::Ready => State::Ready,
            Phase::Draining => State::Draining,
        };
        Seen { state, running: self.batch.running(), since: self.since }
    }

    fn start(&mut self, now: f64, cold_start: f64) {
        self.phase = Phase::Starting { ready_at: now + cold_start };
        self.since = now;
    }

    /// Off at once, or as soon as its requests are done.
    fn end(&mut self, now: f64) {
        if self.batch.running() == 0 {
            self.turn_off(now);
        } else {
            self.phase = Phase::Draining;
        }
    }

    fn turn_off(&mut self, now: f64) {
        self.phase = Phase::Off;
        self.on += now - self.since;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting() -> Setting {
        let cost = Coefficients { a: 10.0, d: 0.0, k: 0.0, p: 1.0 };
        Setting { cost, kv_capacity: 100_000, cold_start: 1000.0, max_replicas: 3, gate: None }
    }

    fn arriving(times: &[f64]) -> Vec<Request> {
        let request = |at: &f64| Request {
            arrived: *at,
            input: 100,
            output: 10,
            left: 0,
            generated: 0,
            ttft: None,
            finished: None,
        };
        times.iter().map(request).collect()
    }

    #[test]
    fn request_waits_for_the_cold_start_and_replica_time_includes_it() {
        let mut cluster = Cluster::new(setting(), arriving(&[0.0]), 0);
        cluster.scale_to(1);
        cluster.advance(5000.0);
        assert!(cluster.done());
        assert_eq!(cluster.requests()[0].ttft, Some(1010.1));
        assert_eq!(cluster.replica_time(), 5000.0);
    }

    #[test]
    fn draining_replica_finishes_its_work_and_its_drain_can_be_cancelled() {
        let mut cluster = Cluster::new(setting(), arriving(&[0.0, 0.0]), 2);
        cluster.advance(50.0);
        cluster.scale_to(0);
        assert_eq!(cluster.count(), 0);
        cluster.scale_to(1);
        assert_eq!(cluster.observe().ready, 1);
        cluster.advance(5000.0);
        assert!(cluster.done());
        assert!(cluster.replica_time() < 10_000.0);
    }

    #[test]
    fn failed_replica_returns_its_requests_to_the_queue() {
        let mut cluster = Cluster::new(setting(), arriving(&[0.0, 1.0]), 1);
        cluster.advance(30.0);
        assert_eq!(cluster.fail(0), 2);
        assert_eq!((cluster.fail(0), cluster.observe().queued), (0, 2));
        cluster.scale_to(1);
        cluster.advance(10_000.0);
        assert!(cluster.done());
    }

    #[test]
    fn late_request_is_served_after_those_in_time() {
        let gate = Some(Gate { patience: 500.0, max_sequences: 1 });
        let mut cluster = Cluster::new(Setting { gate, ..setting() }, arriving(&[0.0, 900.0]), 0);
        cluster.scale_to(1);
        cluster.advance(5000.0);
        let finished: Vec<_> = cluster.requests().iter().map(|r| r.finished.unwrap()).collect();
        assert!(finished[1] < finished[0], "{finished:?}");
    }
}
