//! The gateways' reports as one: what arrived at each deployment over consecutive intervals, what waits now, and what
//! engines reported. Pure; `gateways` does the reading.
//!
//! A figure counts only while every gateway that serves clients reports. One that is silent, restarted into another
//! version or reports nonsense stops the clock of the intervals: the planner then sees signals that grow old, and
//! freezes. They are never taken for zero, and what the other gateways counted meanwhile is in the next interval.

use std::collections::{BTreeMap, BTreeSet};

use stowage_contracts::load::Coefficients;
use stowage_contracts::signals::{DeploymentSignals, EngineReport, KeyFault, Signals, VERSION};
use stowage_planner::snapshot::{DeploymentId, TimeMs};

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
    /// What is wrong with a gateway's reports, by the gateway's pod.
    pub problems: BTreeMap<String, Problem>,
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
    since_ms: TimeMs,
    last: Option<(TimeMs, Signals)>,
    /// Of the last attempt.
    problem: Option<Problem>,
    why: String,
}

impl SignalBook {
    /// Exactly these gateways serve clients.
    pub fn expect(&mut self, pods: &BTreeSet<String>, now: TimeMs) {
        self.gateways.retain(|pod, _| pods.contains(pod));
        for pod in pods {
            self.gateways.entry(pod.clone()).or_insert(Gateway {
                since_ms: now,
                last: None,
                problem: None,
                why: String::new(),
            });
        }
    }

    /// Requests for these deployments are worth a plan at once: a rule decides their count.
    pub fn watch(&mut self, deployments: BTreeSet<DeploymentId>) {
        self.watched = deployments;
    }

    /// A gateway's answer. Returns whether anything arrived or waits for a deployment that is watched.
    pub fn receive(&mut self, pod: &str, message: Signals, now: TimeMs) -> bool {
        let Some(gateway) = self.gateways.get_mut(pod) else { return false };
        let before = gateway.last.as_ref().map(|(_, last)| last);
        if let Err(problem) = sound(&message, before) {
            gateway.problem = Some(problem);
            return false;
        }
        gateway.problem = None;
        // A gateway that started within the open interval has counted within it.
        let began = now.saturating_sub(message.uptime_ms);
        let within = self.from_ms.is_some_and(|from| began >= from);
        let base = before.filter(|last| last.epoch == message.epoch);
        let mut busy = false;
        for deployment in &message.deployments {
            let (id, uid) = subject(deployment);
            let watched = self.watched.contains(&id);
            busy |= watched && deployment.queued + deployment.held > 0;
            // Counts that go back: the gateway forgot the deployment and met it again since its last report.
            let continues =
                |e: &&DeploymentSignals| e.arrivals <= deployment.arrivals && e.input_tokens <= deployment.input_tokens;
            let earlier = base.and_then(|last| find(last, deployment)).filter(continues);
            if earlier.is_none() && base.is_none() && !within {
                continue;
            }
            let added = difference(deployment, earlier);
            busy |= watched && added.arrivals > 0;
            let sum = self.open.entry((id, uid)).or_default();
            sum.arrivals += added.arrivals;
            sum.input_tokens += added.input_tokens;
            sum.cached_tokens += added.cached_tokens;
        }
        gateway.last = Some((now, message));
        busy
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
        let judged = self.gateways.values().filter(|g| !waits(g));
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
        GatewayReport { deployments: self.loads(), keys: self.keys(now), problems: self.problems(now) }
    }

    fn loads(&self) -> BTreeMap<DeploymentId, Load> {
        let mut loads: BTreeMap<DeploymentId, Load> = BTreeMap::new();
        let mut weights: BTreeMap<DeploymentId, f64> = BTreeMap::new();
        for (at, signals) in self.gateways.values().filter_map(|g| g.last.as_ref()) {
            for deployment in &signals.deployments {
                let (id, uid) = subject(deployment);
                let load = loads.entry(id.clone()).or_default();
                if load.uid != uid && !load.uid.is_empty() {
                    // Of two deployments of one name the gateways know different ones for a moment.
                    continue;
                }
                load.uid = uid;
                load.queued += deployment.queued;
                load.held += deployment.held;
                load.waiting_tokens += deployment.waiting_tokens;
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
        loads
    }

    fn keys(&self, now: TimeMs) -> Option<Vec<KeyFault>> {
        let fresh = |(at, _): &&(TimeMs, Signals)| now.saturating_sub(*at) <= EVIDENCE_MS;
        let mut reports = self.gateways.values().filter_map(|g| g.last.as_ref()).filter(fresh);
        let mut faults = reports.next()?.1.keys.clone();
        // A gateway may not have seen yet what another one has.
        reports.for_each(|(_, other)| faults.retain(|fault| other.keys.contains(fault)));
        Some(faults)
    }

    fn problems(&self, now: TimeMs) -> BTreeMap<String, Problem> {
        let of = |g: &Gateway| match (&g.problem, &g.last) {
            (Some(problem), _) => Some(problem.clone()),
            (None, None) if now.saturating_sub(g.since_ms) > GRACE_MS => Some(Problem::Missing),
            (None, Some((at, _))) if now.saturating_sub(*at) > GRACE_MS => {
                Some(Problem::Stale { age_ms: now.saturating_sub(*at), why: g.why.clone() })
            }
            _ => None,
        };
        self.gateways.iter().filter_map(|(pod, gateway)| Some((pod.clone(), of(gateway)?))).collect()
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

fn find<'a>(signals: &'a Signals, wanted: &DeploymentSignals) -> Option<&'a DeploymentSignals> {
    signals
        .deployments
        .iter()
        .find(|d| (&d.namespace, &d.name, &d.uid) == (&wanted.namespace, &wanted.name, &wanted.uid))
}

fn difference(now: &DeploymentSignals, before: Option<&DeploymentSignals>) -> Counted {
    let minus = |of: fn(&DeploymentSignals) -> u64| of(now) - before.map_or(0, of).min(of(now));
    let input_tokens = minus(|d| d.input_tokens);
    Counted {
        arrivals: minus(|d| d.arrivals),
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
    for deployment in &message.deployments {
        let mean = deployment.mean_output_tokens;
        if !mean.is_finite() || mean < 0.0 {
            return Err(Problem::Absurd("a mean that is no number"));
        }
        let counts = [
            deployment.arrivals,
            deployment.input_tokens,
            deployment.queued,
            deployment.held,
            deployment.waiting_tokens,
        ];
        if counts.iter().any(|count| *count > ABSURD) || deployment.cached_tokens > deployment.input_tokens {
            return Err(Problem::Absurd("a count beyond anything a gateway can count"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A message of epoch `e`, up for so long, about the deployment a/chat.
    fn message(epoch: &str, uptime_ms: u64, arrivals: u64, more: serde_json::Value) -> Signals {
        let mut chat = json!({"namespace": "a", "name": "chat", "uid": "u", "model": "m", "arrivals": arrivals,
            "inputTokens": arrivals * 10, "cachedTokens": 0, "meanOutputTokens": 5.0, "queued": 0, "held": 0,
            "waitingTokens": 0, "replicas": []});
        more.as_object().into_iter().flatten().for_each(|(key, value)| chat[key] = value.clone());
        let all = json!({"version": VERSION, "epoch": epoch, "uptimeMs": uptime_ms, "deployments": [chat]});
        serde_json::from_value(all).unwrap()
    }

    fn book(pods: &[&str]) -> SignalBook {
        let mut book = SignalBook::default();
        expect(&mut book, pods, 0);
        book
    }

    fn expect(book: &mut SignalBook, pods: &[&str], now: TimeMs) {
        book.expect(&pods.iter().map(|pod| (*pod).to_owned()).collect(), now);
    }

    /// (from, to, arrivals) of a/chat.
    fn taken(book: &mut SignalBook, now: TimeMs) -> Option<(TimeMs, TimeMs, u64)> {
        let report = book.take(now);
        let counted = report.deployments.get(&DeploymentId::new("a", "chat"))?.counted?;
        Some((counted.from_ms, counted.to_ms, counted.arrivals))
    }

    #[test]
    fn intervals_follow_each_other_and_are_counted_once() {
        let mut book = book(&["g"]);
        let mut at = |now: TimeMs, arrivals| {
            book.receive("g", message("e", 100_000 + now, arrivals, json!({})), now);
            taken(&mut book, now + 10)
        };
        assert_eq!(at(1_000, 70), None, "what was counted before is of no known interval");
        assert_eq!(at(2_000, 75), Some((1_000, 2_000, 5)));
        assert_eq!(at(3_000, 75), Some((2_000, 3_000, 0)));
        assert_eq!(taken(&mut book, 3_500), Some((2_000, 3_000, 0)), "no new report: the same interval");
        for (now, arrivals) in [(4_000, 80), (5_000, 90)] {
            book.receive("g", message("e", 100_000 + now, arrivals, json!({})), now);
        }
        assert_eq!(taken(&mut book, 5_100), Some((3_000, 5_000, 15)), "two reports between two plans");
    }

    #[test]
    fn silent_gateway_stops_the_interval_and_loses_nothing() {
        let mut book = book(&["g", "h"]);
        for pod in ["g", "h"] {
            book.receive(pod, message("e", 90_000, 0, json!({})), 1_000);
        }
        assert_eq!(taken(&mut book, 1_000), None);
        book.receive("g", message("e", 99_000, 4, json!({})), 9_000);
        book.failed("h", "connection refused".into());
        let report = book.take(9_000);
        assert_eq!(report.deployments[&DeploymentId::new("a", "chat")].counted, None);
        assert_eq!(report.problems["h"].to_string(), "its last report is 8 s old: connection refused");
        book.receive("h", message("e", 100_000, 3, json!({})), 10_000);
        assert_eq!(taken(&mut book, 10_000), Some((1_000, 9_000, 7)));
        // It is gone for good: the other one alone is enough.
        expect(&mut book, &["g"], 20_000);
        book.receive("g", message("e", 110_000, 5, json!({})), 20_000);
        assert_eq!(taken(&mut book, 20_000), Some((9_000, 20_000, 1)));
    }

    #[test]
    fn restarted_gateway_counts_from_zero_and_nothing_is_negative() {
        let mut book = book(&["g"]);
        book.receive("g", message("e1", 90_000, 500, json!({})), 1_000);
        taken(&mut book, 1_000);
        book.receive("g", message("e2", 700, 3, json!({})), 2_000);
        assert_eq!(taken(&mut book, 2_000), Some((1_000, 2_000, 3)));
        // A new gateway that has been up since before the interval brings counts of no known time.
        expect(&mut book, &["g", "h"], 2_500);
        book.receive("h", message("x", 900_000, 400, json!({})), 3_000);
        book.receive("g", message("e2", 1_700, 4, json!({})), 3_000);
        assert_eq!(taken(&mut book, 3_000), Some((2_000, 3_000, 1)));
    }

    #[test]
    fn no_gateway_is_no_signal_and_a_new_one_has_some_seconds() {
        let mut book = book(&[]);
        assert_eq!(book.take(1_000), GatewayReport::default());
        expect(&mut book, &["g"], 1_000);
        assert!(book.take(6_000).problems.is_empty());
        assert_eq!(book.take(6_001).problems["g"], Problem::Missing);
    }

    #[test]
    fn message_that_cannot_be_believed_is_named_and_leaves_the_last_one() {
        let bad = |change: &dyn Fn(&mut Signals)| {
            let mut book = book(&["g"]);
            book.receive("g", message("e", 1_000, 10, json!({})), 1_000);
            book.take(1_000);
            let mut next = message("e", 2_000, 11, json!({}));
            change(&mut next);
            book.receive("g", next, 2_000);
            let report = book.take(2_000);
            assert_eq!(report.deployments[&DeploymentId::new("a", "chat")].counted, None);
            report.problems["g"].to_string()
        };
        assert!(bad(&|s| s.version = 2).contains("version 2"));
        assert!(bad(&|s| s.epoch.clear()).contains("epoch"));
        assert!(bad(&|s| s.uptime_ms = 1).contains("clock went back"));
        assert!(bad(&|s| s.deployments[0].mean_output_tokens = f64::NAN).contains("no number"));
        assert!(bad(&|s| s.deployments[0].queued = u64::MAX).contains("beyond"));
        assert!(bad(&|s| s.deployments[0].cached_tokens = u64::MAX).contains("beyond"));
    }

    #[test]
    fn deployment_that_a_gateway_met_again_is_counted_from_zero_and_stops_no_other() {
        let mut book = book(&["g"]);
        for (now, arrivals, want) in
            [(1_000, 70, None), (2_000, 9, Some((1_000, 2_000, 9))), (3_000, 11, Some((2_000, 3_000, 2)))]
        {
            book.receive("g", message("e", now, arrivals, json!({})), now);
            assert_eq!(taken(&mut book, now), want);
            assert!(book.take(now).problems.is_empty());
        }
    }

    #[test]
    fn gateways_are_summed_and_the_freshest_engine_report_counts() {
        let replica = |in_flight: u32, age: u64, waiting: u64| {
            json!({"queued": 1, "held": 2, "waitingTokens": 30, "meanOutputTokens": waiting, "replicas": [{"pod": "p", "uid": "pu",
                "inFlight": in_flight, "backlogTokens": 0, "engine": {"ageMs": age, "unprefilledTokens": waiting, "kvBlocksUsed": 1, "kvBlocksTotal": 9}}]})
        };
        let mut book = book(&["g", "h"]);
        assert!(!book.receive("g", message("e", 900, 3, replica(4, 500, 100)), 900), "nobody decides by it");
        book.watch([DeploymentId::new("a", "chat")].into());
        assert!(book.receive("g", message("e", 1_000, 3, replica(4, 500, 100)), 1_000), "requests wait");
        book.receive("h", message("f", 1_000, 1, replica(5, 20, 200)), 1_000);
        let report = book.take(1_000);
        let load = &report.deployments[&DeploymentId::new("a", "chat")];
        assert_eq!((load.queued, load.held, load.waiting_tokens, load.mean_output_tokens), (2, 4, 60, 125.0));
        let replica = &load.replicas["pu"];
        let (at, engine) = replica.engine.as_ref().unwrap();
        assert_eq!((replica.in_flight, *at, engine.unprefilled_tokens), (9, 980, 200));
    }

    #[test]
    fn key_fault_counts_when_every_gateway_reports_it() {
        let fault = |key: &str| json!({"tenant": "a", "secret": "s", "fault": {"kind": "notAHash", "key": key}});
        let with = |keys: serde_json::Value| {
            let mut signals = message("e", 1_000, 0, json!({}));
            signals.keys = serde_json::from_value(keys).unwrap();
            signals
        };
        let mut book = book(&["g", "h"]);
        assert_eq!(book.take(500).keys, None, "no gateway has reported");
        book.receive("g", with(json!([fault("x"), fault("y")])), 1_000);
        book.receive("h", with(json!([fault("y")])), 1_000);
        let keys = book.take(1_000).keys.unwrap();
        assert_eq!(
            keys.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["Secret s: the value of y is no lower-case hexadecimal SHA-256"]
        );
        assert_eq!(book.take(17_000).keys, None, "old reports are no evidence");
    }
}
