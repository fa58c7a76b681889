//! How long replicas took from their creation until they were Ready, stage by stage, and what was predicted.
//!
//! The times are those of the pods' conditions, which the API server keeps in whole seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use stowage_planner::plan::Action;
use stowage_planner::snapshot::{ReplicaId, StartStages, TimeMs};
use stowage_planner::{DecisionReport, Plan};

use crate::observe::view::{KnownPod, Objects};
use crate::translate::snapshot::replicas::condition;
use crate::translate::starts::Start;

/// A replica that became Ready for the first time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    pub replica: ReplicaId,
    pub ready_ms: TimeMs,
    /// From its creation.
    pub took: Duration,
    /// `schedule`: until it was bound to its node; `pull`: until its container ran, which includes the claim, the
    /// image and the model's volume; `load`: until it was Ready.
    pub stages: Vec<(&'static str, Duration)>,
    /// By the plan that created it.
    pub predicted: Option<Duration>,
}

impl Started {
    /// The difference between prediction and fact, as a share of the fact.
    pub fn prediction_error(&self) -> Option<f64> {
        let (predicted, took) = (self.predicted?.as_secs_f64(), self.took.as_secs_f64().max(1.0));
        Some((predicted - took).abs() / took)
    }
}

/// What is remembered between plans.
#[derive(Debug, Default)]
pub struct Startups {
    /// UIDs of the pods that were Ready once and still exist; `None`: none was looked at yet.
    ready: Option<BTreeSet<String>>,
    predicted: BTreeMap<ReplicaId, Duration>,
}

impl Startups {
    /// Takes in the pods as they are now; answers those that became Ready since the last call.
    pub fn observe(&mut self, pods: &Objects<KnownPod>) -> Vec<Started> {
        let ready = pods.values().filter(|pod| condition(pod, "Ready").is_some_and(|ready| ready.status == "True"));
        let ready: BTreeMap<&str, &KnownPod> =
            ready.filter_map(|pod| Some((pod.metadata.uid.as_deref()?, pod.as_ref()))).collect();
        let first = self.ready.is_none();
        let known = self.ready.get_or_insert_default();
        let exist: BTreeSet<&str> = pods.values().filter_map(|pod| pod.metadata.uid.as_deref()).collect();
        known.retain(|uid| exist.contains(uid.as_str()));
        let fresh = ready.iter().filter(|(uid, _)| known.insert((**uid).to_owned()) && !first);
        let mut started: Vec<Started> = fresh.filter_map(|(_, pod)| started(pod)).collect();
        if first {
            return Vec::new();
        }
        for one in &mut started {
            one.predicted = self.predicted.remove(&one.replica);
        }
        if !self.predicted.is_empty() {
            let live: BTreeSet<&ReplicaId> = pods.values().filter_map(|pod| Some(&pod.identity()?.replica)).collect();
            self.predicted.retain(|replica, _| live.contains(replica));
        }
        started
    }

    /// Keeps what a plan that is carried out predicts of the replicas that it creates.
    pub fn predict(&mut self, plan: &Plan, report: &DecisionReport) {
        let reports = report.by_deployment();
        for action in &plan.actions {
            let Action::Create { replica, .. } = action else { continue };
            let predicted = reports.get(&replica.deployment).and_then(|report| report.prediction.ready_in_ms);
            if let Some(ms) = predicted {
                self.predicted.entry(replica.clone()).or_insert(Duration::from_millis(ms));
            }
        }
    }
}

fn started(pod: &KnownPod) -> Option<Started> {
    let start = Start::of(pod)?;
    let named = |stages: StartStages| {
        let StartStages { schedule_ms, pull_ms, load_ms } = stages;
        [("schedule", schedule_ms), ("pull", pull_ms), ("load", load_ms)]
    };
    let stages = start.stages.into_iter().flat_map(named).map(|(stage, ms)| (stage, Duration::from_millis(ms)));
    Some(Started {
        replica: pod.identity()?.replica.clone(),
        ready_ms: start.ready_ms,
        took: Duration::from_millis(start.took_ms),
        stages: stages.collect(),
        predicted: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use std::sync::Arc;

    /// A pod of the slot, created at 12:00:00, bound a second later, running at :05, and Ready at `ready`.
    fn pod(uid: &str, index: u32, ready: Option<&str>) -> Pod {
        let ready = ready.map_or(String::new(), |at| {
            format!(", {{type: Ready, status: 'True', lastTransitionTime: '2026-01-01T{at}Z'}}")
        });
        let annotations: BTreeMap<String, String> = crate::observe::identity::annotations(
            &replica(index),
            "hash",
            &serde_yaml::from_str("{node: n, variant: v, gpus: []}").unwrap(),
        );
        let mut pod: Pod = serde_yaml::from_str(&format!(
            "{{metadata: {{name: chat-{uid}, namespace: a, uid: {uid}, creationTimestamp: '2026-01-01T12:00:00Z', \
               labels: {{stowage.dev/deployment: chat, app.kubernetes.io/managed-by: stowage}}}}, \
             status: {{conditions: [{{type: PodScheduled, status: 'True', lastTransitionTime: '2026-01-01T12:00:01Z'}}{ready}], \
               containerStatuses: [{{name: engine, image: i, imageID: '', ready: true, restartCount: 0, \
                 state: {{running: {{startedAt: '2026-01-01T12:00:05Z'}}}}}}]}}}}"
        ))
        .unwrap();
        pod.metadata.annotations = Some(annotations);
        pod
    }

    fn replica(index: u32) -> ReplicaId {
        let deployment = stowage_planner::snapshot::DeploymentId::new("a", "chat");
        ReplicaId { deployment, index, incarnation: 1 }
    }

    fn pods(all: &[Pod]) -> Objects<KnownPod> {
        let named = |pod: &Pod| (("a".into(), pod.metadata.name.clone().unwrap()), Arc::new(pod.clone().into()));
        all.iter().map(named).collect::<BTreeMap<_, _>>().into()
    }

    #[test]
    fn replica_that_becomes_ready_is_reported_once_with_its_stages_and_prediction() {
        let mut startups = Startups::default();
        assert_eq!(startups.observe(&pods(&[pod("old", 0, Some("12:00:09"))])), [], "it was Ready before");
        startups.predicted.insert(replica(1), Duration::from_secs(15));
        let starting = [pod("old", 0, Some("12:00:09")), pod("new", 1, None)];
        assert_eq!(startups.observe(&pods(&starting)), []);
        let there = [pod("old", 0, Some("12:00:09")), pod("new", 1, Some("12:00:12"))];
        let found = startups.observe(&pods(&there));
        let seconds = |list: &[(&'static str, Duration)]| -> Vec<_> {
            list.iter().map(|(stage, took)| (*stage, took.as_secs())).collect()
        };
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].replica.index, found[0].took.as_secs()), (1, 12));
        assert_eq!(seconds(&found[0].stages), [("schedule", 1), ("pull", 4), ("load", 7)]);
        assert_eq!(found[0].prediction_error(), Some(0.25));
        assert_eq!(startups.observe(&pods(&there)), []);
        assert_eq!(startups.observe(&pods(&starting)), [], "it is not Ready for a moment");
        assert_eq!(startups.observe(&pods(&there)), [], "it was Ready before");
    }

    #[test]
    fn pod_that_took_hours_was_ready_before() {
        let mut startups = Startups::default();
        startups.observe(&pods(&[]));
        assert_eq!(startups.observe(&pods(&[pod("late", 0, Some("18:00:00"))])), []);
    }
}
