//! The gateways' reports as one: what arrived at each deployment over consecutive intervals, what waits now, and what
//! engines reported. Pure; `gateways` does the reading.
//!
//! A figure counts only while every gateway that serves clients reports. One that is silent, restarted into another
//! version or reports nonsense stops the clock of the intervals: the planner then sees signals that grow old, and
//! freezes. They are never taken for zero, and what the other gateways counted meanwhile is in the next interval.
//! Nonsense about one deployment is left out for that deployment alone. A gateway that runs and does not serve (it
//! starts, or it ends) counts for drains only.

use std::collections::{BTreeMap, BTreeSet};

use stowage_contracts::load::Coefficients;
use stowage_contracts::signals::{DeploymentSignals, EngineReport, KeyFault, Signals, VERSION};
use stowage_planner::snapshot::{DeploymentId, TimeMs};

use super::clock::moved;
use super::drains::{Answer, Drains};

/// A gateway that has just become Ready may not have answered yet.
const GRACE_MS: TimeMs = 5_000;
/// A gateway's last report is no evidence after this.
const EVIDENCE_MS: TimeMs = 15_000;
/// Beyond this a count is taken for a broken one.
const ABSURD: u64 = 1 << 50;

/// What all gateways together report.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GatewayReport {
    /// By deployment; one that no gateway names is not there.
    pub deployments: BTreeMap<DeploymentId, Load>,
    /// API keys that give no access, as every gateway says. `None`: no gateway reports.
    pub keys: Option<Vec<KeyFault>>,
    /// The last complete interval.
    pub interval: Option<(TimeMs, TimeMs)>,
    /// What is wrong with a gateway's reports, by the gateway's pod.
    pub problems: BTreeMap<String, Problem>,
    /// Of replicas that drain.
    pub drains: Drains,
    /// A gateway lacks the key of the salts.
    pub salt_key_missing: bool,
}

/// One deployment's load. Counts are of the interval `from_ms..to_ms`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Load {
    pub uid: String,
    /// `None`: no interval is complete yet.
    pub counted: Option<Counted>,
    /// Waiting now, for room or for a replica.
    pub queued: u64,
    pub held: u64,
    pub waiting_tokens: u64,
    /// Mean tokens of recent answers; 0: none is known.
    pub mean_output_tokens: f64,
    /// By the UID of the pod.
    pub replicas: BTreeMap<String, ReplicaLoad>,
}

/// What arrived in an interval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    pub from_ms: TimeMs,
    pub to_ms: TimeMs,
    pub arrivals: u64,
    /// Sequences of those that arrived, and requests that got a place; `None`: a gateway does not report them.
    pub sequences: Option<u64>,
    pub placed: Option<u64>,
    pub input_tokens: u64,
    pub cached_tokens: u64,
}

/// One replica, as all gateways see it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ReplicaLoad {
    /// Sequences that gateways have in flight there.
    pub in_flight: u32,
    /// The freshest report of its engine, and when it was made.
    pub engine: Option<(TimeMs, EngineReport)>,
}

/// Why a gateway's reports cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("it has not reported since it became Ready")]
    Missing,
    #[error("its last report is {} s old: {why}", age_ms / 1000)]
    Stale { age_ms: u64, why: String },
    #[error("it reports in version {0}, and version {VERSION} is read: upgrade both to the same release")]
    OtherVersion(u32),
    #[error("its counts are nonsense: {0}")]
    Absurd(&'static str),
}

/// All gateways and the interval that is open.
#[derive(Debug, Default)]
pub struct SignalBook {
    gateways: BTreeMap<String, Gateway>,
    /// The end of the last interval that was taken.
    from_ms: Option<TimeMs>,
    /// Counted since then.
    open: BTreeMap<Subject, Counted>,
    /// The last interval.
    taken: BTreeMap<Subject, Counted>,
    taken_at: Option<(TimeMs, TimeMs)>,
    /// Deployments of which a request is worth a plan.
    watched: BTreeSet<DeploymentId>,
}

/// A deployment and its UID.
type Subject = (DeploymentId, String);

#[derive(Debug)]
struct Gateway {
    /// It serves clients.
    serves: bool,
    /// Since when it does, or is known.
    since_ms: TimeMs,
    last: Option<(TimeMs, Signals)>,
    /// Deployments of which the last message says what no gateway can count. What it said before is kept in their
    /// place, for the difference to a later message.
    absurd: BTreeSet<DeploymentId>,
    /// Of the last attempt.
    problem: Option<Problem>,
    why: String,
}

impl SignalBook {
    /// Exactly these gateways run, and those with `true` serve clients.
    pub fn expect(&mut self, pods: &BTreeMap<String, bool>, now: TimeMs) {
        self.gateways.retain(|pod, _| pods.contains_key(pod));
        for (pod, serves) in pods {
            let gateway = self.gateways.entry(pod.clone()).or_insert(Gateway {
                serves: *serves,
                since_ms: now,
                last: None,
                absurd: BTreeSet::new(),
                problem: None,
                why: "not asked yet".into(),
            });
            if *serves && !gateway.serves {
                gateway.since_ms = now;
            }
            gateway.serves = *serves;
        }
    }

    /// Requests for these deployments are worth a plan at once: a rule decides their count.
    pub fn watch(&mut self, deployments: BTreeSet<DeploymentId>) {
        self.watched = deployments;
    }

    /// A gateway's answer. Returns whether it is worth a plan at once: anything arrived or waits for a deployment
    /// that is watched, or a draining replica's count changed.
    pub fn receive(&mut self, pod: &str, mut message: Signals, now: TimeMs) -> bool {
        let Some(gateway) = self.gateways.get_mut(pod) else { return false };
        let before = gateway.last.as_ref().map(|(_, last)| last);
        if let Err(problem) = sound(&message, before) {
            gateway.problem = Some(problem);
            return false;
        }
        gateway.problem = None;
        let drained = message.draining.is_some() && before.is_none_or(|last| last.draining != message.draining);
        if !gateway.serves {
            message.deployments.retain(credible);
            gateway.last = Some((now, message));
            return drained;
        }
        // A gateway that started within the open interval has counted within it.
        let began = now.saturating_sub(message.uptime_ms);
        let within = self.from_ms.is_some_and(|from| began >= from);
        let base = before.filter(|last| last.epoch == message.epoch);
        // Sorted as sent, so that this moves nothing; the walk beside the last message needs it.
        message.deployments.sort_by(|a, b| key(a).cmp(&key(b)));
        let mut walk = Walk(base.map_or(&[], |last| last.deployments.as_slice()));
        let (mut busy, mut absurd) = (drained, BTreeSet::new());
        let mut kept = Vec::with_capacity(message.deployments.len());
        for mut deployment in message.deployments {
            let (id, uid) = subject(&deployment);
            let known = walk.to(&deployment);
            if !credible(&deployment) {
                if !gateway.absurd.contains(&id) {
                    tracing::warn!(pod, deployment = %id, "the gateway's counts of it are nonsense and are not used");
                }
                absurd.insert(id);
                kept.extend(known.cloned());
                continue;
            }
            for replica in &mut deployment.replicas {
                replica.engine = replica.engine.take().filter(EngineReport::plausible);
            }
            let watched = self.watched.contains(&id);
            busy |= watched && deployment.queued + deployment.held > 0;
            // Counts that go back: the gateway forgot the deployment and met it again since its last report.
            let continues =
                |e: &&DeploymentSignals| e.arrivals <= deployment.arrivals && e.input_tokens <= deployment.input_tokens;
            let earlier = known.filter(continues);
            // Not named before is nothing counted before, unless what was said of it could not be used.
            let unknown = known.is_none() && ((base.is_none() && !within) || gateway.absurd.contains(&id));
            if !unknown {
                let added = difference(&deployment, earlier);
                busy |= watched && added.arrivals > 0;
                self.open.entry((id, uid)).and_modify(|counted| counted.add(added)).or_insert(added);
            }
            kept.push(deployment);
        }
        message.deployments = kept;
        gateway.absurd = absurd;
        gateway.last = Some((now, message));
        busy
    }

    /// The clock was set by so many milliseconds: what was counted is of no known interval.
    pub fn clock_set(&mut self, by_ms: i64, now: TimeMs) {
        // A report may have come since.
        let before = |at: TimeMs| if by_ms > 0 { moved(at, by_ms) <= now } else { at > now };
        let moved = |at: TimeMs| if before(at) { moved(at, by_ms) } else { at };
        (self.from_ms, self.taken_at) = (None, None);
        self.open.clear();
        self.taken.clear();
        for gateway in self.gateways.values_mut() {
            gateway.since_ms = moved(gateway.since_ms);
            if let Some((at, _)) = &mut gateway.last {
                *at = moved(*at);
            }
        }
    }

    /// A gateway did not answer.
    pub fn failed(&mut self, pod: &str, why: String) {
        if let Some(gateway) = self.gateways.get_mut(pod) {
            gateway.why = why;
        }
    }

    /// What is known now. An interval that is complete is closed: the next one starts where it ends.
    pub fn take(&mut self, now: TimeMs) -> GatewayReport {
        let waits = |g: &Gateway| g.last.is_none() && now.saturating_sub(g.since_ms) <= GRACE_MS;
        let judged = self.serving().map(|(_, g)| g).filter(|g| !waits(g));
        let ends: Option<Vec<TimeMs>> = judged.map(|g| g.last.as_ref().map(|(at, _)| *at)).collect();
        let end = ends.and_then(|ends| ends.into_iter().min());
        match (self.from_ms, end) {
            (None, Some(end)) => {
                self.from_ms = Some(end);
                self.open.clear();
            }
            (Some(from), Some(end)) if end > from => {
                self.taken = std::mem::take(&mut self.open);
                self.taken_at = Some((from, end));
                self.from_ms = Some(end);
            }
            _ => {}
        }
        GatewayReport {
            deployments: self.loads(),
            keys: self.keys(now),
            interval: self.taken_at,
            problems: self.problems(now),
            drains: self.drains(now),
            salt_key_missing: self
                .serving()
                .any(|(_, g)| g.last.as_ref().is_some_and(|(_, s)| s.salt_key == Some(false))),
        }
    }

    fn serving(&self) -> impl Iterator<Item = (&String, &Gateway)> {
        self.gateways.iter().filter(|(_, g)| g.serves)
    }

    /// Of all gateways that run.
    fn drains(&self, now: TimeMs) -> Drains {
        let mut drains = Drains::default();
        for (pod, gateway) in &self.gateways {
            let last = gateway.last.as_ref();
            let draining = last.and_then(|(_, signals)| signals.draining.as_ref());
            let in_flight = draining.into_iter().flatten().map(|drain| (drain.uid.clone(), drain.in_flight)).collect();
            let unread = match (gateway.problem(now), last) {
                (Some(problem), _) => Some(problem.to_string()),
                (None, None) => Some(gateway.why.clone()),
                (None, Some(_)) => draining.is_none().then(|| {
                    "it is of a release that does not report requests in flight on draining replicas".to_owned()
                }),
            };
            let at = last.map_or(0, |(at, _)| *at);
            drains.gateways.insert(pod.clone(), Answer { in_flight, at, unread });
            if let Some((at, signals)) = last {
                let replicas = signals.deployments.iter().flat_map(|deployment| &deployment.replicas);
                for replica in replicas {
                    let Some(engine) = replica.engine.as_ref().filter(|engine| engine.sequences == Some(0)) else {
                        continue;
                    };
                    let made = drains.idle.entry(replica.uid.clone()).or_default();
                    *made = at.saturating_sub(engine.age_ms).max(*made);
                }
            }
        }
        drains
    }

    fn loads(&self) -> BTreeMap<DeploymentId, Load> {
        let mut loads: BTreeMap<DeploymentId, Load> = BTreeMap::new();
        let mut weights: BTreeMap<DeploymentId, f64> = BTreeMap::new();
        let absurd: BTreeSet<&DeploymentId> = self.serving().flat_map(|(_, g)| &g.absurd).collect();
        for (at, signals) in self.serving().filter_map(|(_, g)| g.last.as_ref()) {
            for deployment in &signals.deployments {
                let (id, uid) = subject(deployment);
                if absurd.contains(&id) {
                    continue;
                }
                let load = loads.entry(id.clone()).or_default();
                if load.uid != uid && !load.uid.is_empty() {
                    // Of two deployments of one name the gateways know different ones for a moment.
                    continue;
                }
                load.uid = uid;
                load.queued = load.queued.saturating_add(deployment.queued);
                load.held = load.held.saturating_add(deployment.held);
                load.waiting_tokens = load.waiting_tokens.saturating_add(deployment.waiting_tokens);
                if deployment.mean_output_tokens > 0.0 {
                    let (weight, more) = (weights.entry(id).or_default(), deployment.arrivals.max(1) as f64);
                    *weight += more;
                    load.mean_output_tokens +=
                        (deployment.mean_output_tokens - load.mean_output_tokens) * more / *weight;
                }
                for replica in &deployment.replicas {
                    let known = load.replicas.entry(replica.uid.clone()).or_default();
                    known.in_flight = known.in_flight.saturating_add(replica.in_flight);
                    if let Some(engine) = &replica.engine {
                        let made = at.saturating_sub(engine.age_ms);
                        if known.engine.as_ref().is_none_or(|(newest, _)| *newest < made) {
                            known.engine = Some((made, engine.clone()));
                        }
                    }
                }
            }
        }
        if let Some((from_ms, to_ms)) = self.taken_at {
            for (id, load) in &mut loads {
                let counted = self.taken.get(&(id.clone(), load.uid.clone())).copied().unwrap_or_default();
                load.counted = Some(Counted { from_ms, to_ms, ..counted });
            }
        }
        // Named, and nothing is known of it: its count stays as it is.
        loads.extend(absurd.into_iter().map(|id| (id.clone(), Load::default())));
        loads
    }

    fn keys(&self, now: TimeMs) -> Option<Vec<KeyFault>> {
        let fresh = |(at, _): &&(TimeMs, Signals)| now.saturating_sub(*at) <= EVIDENCE_MS;
        let mut reports = self.serving().filter_map(|(_, g)| g.last.as_ref()).filter(fresh);
        let mut faults = reports.next()?.1.keys.clone();
        // A gateway may not have seen yet what another one has.
        reports.for_each(|(_, other)| faults.retain(|fault| other.keys.contains(fault)));
        Some(faults)
    }

    fn problems(&self, now: TimeMs) -> BTreeMap<String, Problem> {
        self.serving().filter_map(|(pod, gateway)| Some((pod.clone(), gateway.problem(now)?))).collect()
    }
}

impl Gateway {
    /// What is wrong with its reports.
    fn problem(&self, now: TimeMs) -> Option<Problem> {
        match (&self.problem, &self.last) {
            (Some(problem), _) => Some(problem.clone()),
            (None, None) if now.saturating_sub(self.since_ms) > GRACE_MS => Some(Problem::Missing),
            (None, Some((at, _))) if now.saturating_sub(*at) > GRACE_MS => {
                Some(Problem::Stale { age_ms: now.saturating_sub(*at), why: self.why.clone() })
            }
            _ => None,
        }
    }
}

impl Load {
    /// Coefficients that engines learned, by the pod's UID.
    pub fn coefficients(&self) -> impl Iterator<Item = (&str, TimeMs, Coefficients)> {
        self.replicas.iter().filter_map(|(uid, replica)| {
            let (at, engine) = replica.engine.as_ref()?;
            Some((uid.as_str(), *at, engine.coefficients?))
        })
    }
}

fn subject(deployment: &DeploymentSignals) -> Subject {
    (DeploymentId::new(&deployment.namespace, &deployment.name), deployment.uid.clone())
}

/// In the order of messages.
fn key(deployment: &DeploymentSignals) -> (&str, &str, &str) {
    (&deployment.namespace, &deployment.name, &deployment.uid)
}

/// The rest of an earlier message, walked beside a later one: both are sorted, so that all look-ups together take one
/// pass, however many deployments a tenant makes.
struct Walk<'a>(&'a [DeploymentSignals]);

impl<'a> Walk<'a> {
    /// The same deployment, which comes after those that were asked for before.
    fn to(&mut self, wanted: &DeploymentSignals) -> Option<&'a DeploymentSignals> {
        let earlier = self.0.iter().take_while(|d| key(d) < key(wanted)).count();
        self.0 = &self.0[earlier..];
        self.0.first().filter(|d| key(d) == key(wanted))
    }
}

impl Counted {
    fn add(&mut self, more: Self) {
        let both = |known: Option<u64>, more: Option<u64>| Some(known?.saturating_add(more?));
        self.arrivals = self.arrivals.saturating_add(more.arrivals);
        self.sequences = both(self.sequences, more.sequences);
        self.placed = both(self.placed, more.placed);
        self.input_tokens = self.input_tokens.saturating_add(more.input_tokens);
        self.cached_tokens = self.cached_tokens.saturating_add(more.cached_tokens);
    }
}

impl GatewayReport {
    /// The load of this deployment, not of one that had its name before.
    pub fn load(&self, id: &DeploymentId, uid: &str) -> Option<&Load> {
        self.deployments.get(id).filter(|load| load.uid == uid)
    }

    /// The load of a deployment that no gateway names: they list only those with a replica, a waiting request or counts.
    pub fn quiet(&self, id: &DeploymentId, uid: &str) -> Option<Load> {
        let (from_ms, to_ms) = self.interval.filter(|_| !self.deployments.contains_key(id))?;
        let counted = Some(Counted { from_ms, to_ms, ..Counted::default() });
        Some(Load { uid: uid.to_owned(), counted, ..Load::default() })
    }
}

fn difference(now: &DeploymentSignals, before: Option<&DeploymentSignals>) -> Counted {
    let minus = |of: fn(&DeploymentSignals) -> u64| of(now) - before.map_or(0, of).min(of(now));
    let reported =
        |of: fn(&DeploymentSignals) -> Option<u64>| Some(of(now)?.saturating_sub(before.map_or(Some(0), of)?));
    let input_tokens = minus(|d| d.input_tokens);
    Counted {
        arrivals: minus(|d| d.arrivals),
        sequences: reported(|d| d.sequences),
        placed: reported(|d| d.placed),
        input_tokens,
        // Each is rounded by itself.
        cached_tokens: minus(|d| d.cached_tokens).min(input_tokens),
        ..Counted::default()
    }
}

/// Whether the message can be believed, beside the one before it.
fn sound(message: &Signals, before: Option<&Signals>) -> Result<(), Problem> {
    if message.version != VERSION {
        return Err(Problem::OtherVersion(message.version));
    }
    if message.epoch.is_empty() {
        return Err(Problem::Absurd("no epoch"));
    }
    let base = before.filter(|last| last.epoch == message.epoch);
    if base.is_some_and(|last| last.uptime_ms > message.uptime_ms) {
        return Err(Problem::Absurd("its clock went back"));
    }
    Ok(())
}

/// Whether a gateway can have counted this of a deployment.
fn credible(deployment: &DeploymentSignals) -> bool {
    let mean = deployment.mean_output_tokens;
    let counts = [
        deployment.arrivals,
        deployment.sequences.unwrap_or(0),
        deployment.placed.unwrap_or(0),
        deployment.input_tokens,
        deployment.queued,
        deployment.held,
        deployment.waiting_tokens,
    ];
    mean.is_finite()
        && mean >= 0.0
        && counts.iter().all(|count| *count <= ABSURD)
        && deployment.cached_tokens <= deployment.input_tokens
}

#[cfg(test)]
mod tests;
