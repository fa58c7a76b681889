//! The status of an InferenceDeployment, rendered from the case, the report, and what was applied. Pure.
//!
//! Status is a conversation: conditions say what is, why, and what to do. It is written when it says
//! something new; times and other things that change by themselves are carried over from what is
//! stored as long as what they stand beside is the same.

mod conditions;
mod limits;

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::Value;
use stowage_contracts::model::ClaimModel;
use stowage_crds::deployment_status::{
    Cost, Decision, Effective, InferenceDeploymentStatus, MeasuredStart, PlacedGpu, Placement, PreloadedNodes,
    ResolvedModel, Summary,
};
use stowage_crds::inference_deployment::Tier;
use stowage_crds::names::{GATEWAY_SERVICE, SYSTEM_NAMESPACE};
use stowage_crds::quantity::bytes_quantity;
use stowage_crds::validate::AcceptedSource;
use stowage_planner::report::{DecisionRecord, DeploymentReport};

use super::build::engine::args;
use super::case::Case;
use super::refusal::Obstacle;
use crate::observe::source;
use crate::observe::view::StoredDeployment;
use crate::serve::metrics::trigger;
use crate::translate::snapshot::replicas::condition as pod_condition;
use crate::translate::validate::Wanted;

pub use conditions::condition;

/// Placements shown in the status; the rest through the CLI.
const MAX_PLACEMENTS: usize = 64;

/// The whole status, as JSON. `obstacles`: writes that are not carried out at present. `last`: the last
/// new decision.
pub fn render(
    case: &Case,
    report: Option<&DeploymentReport>,
    obstacles: &[Obstacle],
    last: Option<&DecisionRecord>,
    now: Timestamp,
) -> Value {
    let stored = case.stored.status.as_ref();
    let live = Live::of(case);
    let previous = stored.map(|status| status.conditions.as_slice()).unwrap_or_default();
    let wanted = case.wanted();
    // Of a refused deployment the report knows what becomes of its replicas, and nothing that it asks for.
    let asked = report.filter(|_| wanted.is_some() || case.stored.deleting());
    let troubles = report.map(|report| report.troubles.as_slice()).unwrap_or_default();
    let (load, bottleneck) = limits::limits(&case.bottleneck, stored);
    let facts = conditions::Facts { case, report: asked, troubles, live: &live, obstacles, previous, now };
    let status = InferenceDeploymentStatus {
        observed_generation: case.stored.meta.generation,
        replicas: live.current,
        ready_replicas: live.ready,
        desired_replicas: report
            .map_or_else(|| wanted.map_or(0, |wanted| wanted.deployment.replicas), |report| report.counts.wanted),
        selector: Some(selector(case)),
        conditions: conditions::all(&facts),
        summary: Some(summary(case, wanted, &live)),
        placements: live.placements.iter().take(MAX_PLACEMENTS).cloned().collect(),
        model: wanted.and_then(|wanted| resolved(case, wanted)),
        memory_estimate: wanted.map_or_else(
            || stored.and_then(|status| status.memory_estimate.clone()),
            |wanted| wanted.memory_estimate.clone(),
        ),
        cold_start: case.cold_start.map(measured_start),
        preload: case.preloaded.map(|held| PreloadedNodes { nodes: held.nodes, cached: held.cached }),
        effective: wanted.map(|wanted| effective(wanted, &live)),
        decision: last.map(decision).or_else(|| stored.and_then(|status| status.decision.clone())),
        load,
        bottleneck,
        cost: cost(case),
        url: Some(format!("http://{GATEWAY_SERVICE}.{SYSTEM_NAMESPACE}.svc/v1")),
    };
    serde_json::to_value(status).unwrap_or_default()
}

/// In two digits, rounded up: an idle system writes nothing because a start took a second longer.
fn measured_start(expected: Duration) -> MeasuredStart {
    let seconds = expected.as_millis().div_ceil(1000).max(1);
    let step = 10u128.pow(seconds.ilog10().saturating_sub(1));
    MeasuredStart { expected: format!("{}s", seconds.div_ceil(step) * step) }
}

/// The commit of a model from a hub, once it is known.
fn resolved(case: &Case, wanted: &Wanted) -> Option<ResolvedModel> {
    let (AcceptedSource::Hub(hub), Some(ClaimModel::Hub(fetched))) = (&wanted.deployment.source, &wanted.fetched)
    else {
        return None;
    };
    let commit = fetched.commit().map(str::to_owned).or_else(|| case.commit.clone())?;
    Some(ResolvedModel { repo: hub.repo.clone(), revision: hub.revision.clone(), commit })
}

/// A status that was written is not written again while the watch has yet to show it.
const ECHO: Duration = Duration::from_secs(5);
/// Load, bottleneck, and sentences in which only numbers moved, are written anew at most this often.
const REFRESH: Duration = Duration::from_secs(30);
/// What starts took, at most this often by itself: each start of one deployment moves it for all of its kind.
const REFRESH_STARTS: Duration = Duration::from_secs(300);

/// When a status is worth a write.
#[derive(Debug, Clone, Default)]
pub struct Gate {
    /// When a status was written last.
    at: Option<Instant>,
    /// That status, until the watch shows it.
    last: Option<Value>,
    /// The object's version after it.
    version: Option<u64>,
}

impl Gate {
    /// The status, if it says something that the stored one does not and it is time to write it.
    pub fn due(&self, stored: &Value, status: Value, now: Instant) -> Option<Value> {
        if !differs(stored, &status) || self.wrote_lately(&status, now) {
            return None;
        }
        let age = self.at.map(|at| now.saturating_duration_since(at));
        let is_due = differs_materially(stored, &status)
            || age.is_none_or(|age| age > REFRESH_STARTS)
            || age.is_some_and(|age| age > REFRESH) && without(stored, "coldStart") != without(&status, "coldStart");
        is_due.then_some(status)
    }

    /// Whether this very status was written a moment ago.
    pub fn wrote_lately(&self, status: &Value, now: Instant) -> bool {
        self.last.as_ref() == Some(status) && self.echoes(now)
    }

    /// `version`: the object's after it, where that matters.
    pub fn wrote(&mut self, status: Value, version: Option<u64>, now: Instant) {
        (self.at, self.last, self.version) = (Some(now), Some(status), version);
    }

    fn echoes(&self, now: Instant) -> bool {
        self.at.is_some_and(|at| now.saturating_duration_since(at) <= ECHO)
    }

    /// The object with the status that was written last, while the watch shows an older one: what the next status goes
    /// on from (its last decision, the times of its conditions) is not lost.
    pub fn with_last(&mut self, stored: &Arc<StoredDeployment>, now: Instant) -> Arc<StoredDeployment> {
        let (Some(written), Some(version)) = (&self.last, self.version) else { return stored.clone() };
        if source::version(&stored.meta).is_some_and(|shown| shown < version) {
            return Arc::new(StoredDeployment::clone(stored).with_status(written.clone()));
        }
        if !self.echoes(now) {
            self.last = None;
        }
        stored.clone()
    }
}

/// Whether the rendered status says anything that the stored one does not, or no longer says something.
pub fn differs(stored: &Value, rendered: &Value) -> bool {
    stored != rendered
}

/// Whether the difference is more than load, bottleneck, what starts took, and numbers inside sentences or of the last
/// decision and the cost: such move all the time, and an idle system must write nothing.
pub fn differs_materially(stored: &Value, rendered: &Value) -> bool {
    without_figures(stored.clone()) != without_figures(rendered.clone())
}

fn without(status: &Value, field: &str) -> Value {
    let mut status = status.clone();
    status.as_object_mut().map(|all| all.remove(field));
    status
}

fn without_figures(mut status: Value) -> Value {
    let conditions = status.get_mut("conditions").and_then(Value::as_array_mut);
    conditions.into_iter().flatten().filter_map(|condition| condition.get_mut("message")).for_each(blank_numbers);
    for moving in ["load", "bottleneck", "coldStart"] {
        status.as_object_mut().map(|all| all.remove(moving));
    }
    // Another decision of the same kind differs in its identifier, its time and its numbers.
    status.pointer_mut("/decision/id").map(Value::take);
    for counted in ["decision", "cost"] {
        status.get_mut(counted).into_iter().for_each(blank_numbers);
    }
    status
}

fn blank_numbers(value: &mut Value) {
    match value {
        Value::String(text) => text.retain(|c| !c.is_ascii_digit()),
        Value::Number(_) => *value = Value::Null,
        Value::Array(all) => all.iter_mut().for_each(blank_numbers),
        Value::Object(all) => all.values_mut().for_each(blank_numbers),
        Value::Null | Value::Bool(_) => {}
    }
}

/// What the pods show.
#[derive(Debug, Default)]
pub struct Live {
    /// Pods that neither drain nor end.
    pub current: u32,
    pub ready: u32,
    pub draining: u32,
    pub placements: Vec<Placement>,
}

impl Live {
    fn of(case: &Case) -> Self {
        let mut live = Self::default();
        for pod in &case.pods {
            let ending = pod.metadata.deletion_timestamp.is_some();
            let draining = pod
                .metadata
                .annotations
                .as_ref()
                .is_some_and(|all| all.contains_key(stowage_crds::names::ANNOTATION_DRAINING));
            let failed = pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Failed");
            let ready = !ending && !draining && pod_condition(pod, "Ready").is_some_and(|ready| ready.status == "True");
            live.ready += u32::from(ready);
            live.draining += u32::from(draining || ending);
            live.current += u32::from(!ending && !draining && !failed);
            let Some(placement) = pod.placement() else { continue };
            live.placements.push(Placement {
                name: pod.metadata.name.clone().unwrap_or_default(),
                node: placement.node.clone(),
                gpus: placement
                    .gpus
                    .iter()
                    .map(|gpu| PlacedGpu {
                        uuid: gpu.uuid.clone(),
                        memory: bytes_quantity(gpu.promise.memory_bytes),
                        compute: gpu.promise.sm_percent,
                    })
                    .collect(),
                variant: placement.variant.clone(),
                tier: Tier::Running,
                ready,
            });
        }
        live.placements.sort_by(|a, b| a.name.cmp(&b.name));
        live
    }
}

fn selector(case: &Case) -> String {
    case.owner().selector().iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

fn summary(case: &Case, wanted: Option<&Wanted>, live: &Live) -> Summary {
    let classes: std::collections::BTreeSet<&str> = wanted.iter().flat_map(|wanted| wanted.classes()).collect();
    let tenths = case.charge.gpu_milli.div_ceil(100);
    Summary {
        model: wanted.map_or_else(|| case.id.name.clone(), |wanted| wanted.deployment.model_name.clone()),
        ready: format!("{}/{}", live.ready, live.current),
        gpus: format!("{}.{}", tenths / 10, tenths % 10),
        class: classes.into_iter().collect::<Vec<_>>().join(","),
    }
}

fn effective(wanted: &Wanted, live: &Live) -> Effective {
    Effective {
        runtime: Some(format!("{} {}", wanted.deployment.runtime, wanted.runtime.version)),
        image: Some(wanted.runtime.image.clone()),
        args: effective_args(wanted, live),
        gpu_memory: live.placements.first().and_then(|placement| placement.gpus.first()).map(|gpu| gpu.memory.clone()),
        kv_blocks: None,
        quantization: None,
        sharing: Some(wanted.sharing().to_owned()),
    }
}

/// Of the variant that runs, or of the one that would be tried first.
fn effective_args(wanted: &Wanted, live: &Live) -> Vec<String> {
    let running = live.placements.first().map(|placement| placement.variant.as_str());
    let variant = running.or_else(|| wanted.variants.first().map(|variant| variant.name.as_str()));
    variant.map(|variant| args(wanted, variant)).unwrap_or_default()
}

fn cost(case: &Case) -> Option<Cost> {
    let (micros, currency) = case.charge.per_hour.clone()?;
    let cents = micros.div_ceil(10_000);
    Some(Cost { per_hour: format!("{}.{:02}", cents / 100, cents % 100), currency, ..Cost::default() })
}

fn decision(record: &DecisionRecord) -> Decision {
    let time = i64::try_from(record.time).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or_default();
    Decision {
        id: record.id.clone(),
        time: Time(time),
        action: format!("{:?}", record.action),
        reason: trigger(record),
        message: record.message.clone(),
        counterfactual: record.counterfactual.as_ref().map(stowage_planner::render::would_fit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What the watch shows: the object's version and its last decision.
    fn shown(version: &str, decision: &str) -> Arc<StoredDeployment> {
        let object = json!({"apiVersion": "stowage.dev/v1alpha1", "kind": "InferenceDeployment",
            "metadata": {"name": "chat", "namespace": "a", "resourceVersion": version}, "status": status(decision)});
        Arc::new(StoredDeployment::read(serde_json::from_value(object).unwrap()))
    }

    fn status(decision: &str) -> Value {
        let decision =
            json!({"id": "1", "time": "2026-01-01T12:00:00Z", "action": decision, "reason": "r", "message": "m"});
        json!({"replicas": 0, "readyReplicas": 0, "desiredReplicas": 0, "selector": "", "decision": decision})
    }

    #[test]
    fn figures_are_written_at_most_every_thirty_seconds_and_what_starts_took_every_five_minutes() {
        let now = Instant::now();
        let status = |ready: u32, sentence: &str, requests: u32, start: &str| {
            json!({"readyReplicas": ready, "conditions": [{"type": "Ready", "message": sentence}],
                "load": {"requests": requests}, "coldStart": {"expected": start}})
        };
        let stored = status(1, "2 start", 5, "10s");
        for (what, status, first_due) in [
            ("the same", status(1, "2 start", 5, "10s"), None),
            ("another count", status(2, "2 start", 5, "10s"), Some(0)),
            ("another sentence", status(1, "2 wait", 5, "10s"), Some(0)),
            ("another number in it", status(1, "3 start", 5, "10s"), Some(31)),
            ("another load", status(1, "2 start", 6, "10s"), Some(31)),
            ("longer starts", status(1, "2 start", 5, "90s"), Some(301)),
            ("longer starts and another load", status(1, "2 start", 6, "90s"), Some(31)),
        ] {
            let mut gate = Gate::default();
            gate.wrote(stored.clone(), None, now);
            let due = |seconds| gate.due(&stored, status.clone(), now + Duration::from_secs(seconds)).is_some();
            assert_eq!([0, 30, 31, 300, 301].into_iter().find(|seconds| due(*seconds)), first_due, "{what}");
        }
        let mut gate = Gate::default();
        assert!(gate.due(&stored, status(1, "2 start", 5, "90s"), now).is_some(), "nothing was written by this leader");
        gate.wrote(status(1, "2 start", 5, "90s"), None, now);
        assert!(gate.due(&stored, status(1, "2 start", 5, "90s"), now).is_none(), "the watch has yet to show it");
    }

    #[test]
    fn status_goes_on_from_the_one_that_was_written_while_the_watch_shows_an_older_one() {
        let mut gate = Gate::default();
        let start = Instant::now();
        let decision = |gate: &mut Gate, version: &str| {
            let found = gate.with_last(&shown(version, "Wait"), start);
            let typed = found.status.as_ref().unwrap().decision.as_ref().unwrap().action.clone();
            assert_eq!(found.raw_status()["decision"]["action"], typed.as_str());
            assert_eq!(found.unlike, None, "what we write is read as it is");
            typed
        };
        assert_eq!(decision(&mut gate, "7"), "Wait");
        gate.wrote(status("Create"), Some(9), Instant::now());
        for (version, expect) in [("8", "Create"), ("9", "Wait"), ("10", "Wait"), ("opaque", "Wait")] {
            assert_eq!(decision(&mut gate, version), expect, "{version}");
        }
        gate.wrote(status("Create"), None, Instant::now());
        assert_eq!(decision(&mut gate, "8"), "Wait", "nothing is known of what was written");
    }
}
