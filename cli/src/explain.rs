//! `explain`: the reasons for a deployment's state. Shows the operator's last report about it and its decision
//! records, as the planner renders them.
//!
//! Where the operator cannot be asked, the object's status is shown instead, and a note names the cause.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use stowage_crds::{InferenceDeployment, names};
use stowage_planner::render;
use stowage_planner::report::{DecisionRecord, DecisionReport, DeploymentReport, TenantReport};

use crate::Answer;
use crate::cluster::{Cluster, ClusterError};
use crate::out::{self, Format, Paint, Tone};
use crate::remedy::{Advice, Remedy, remedy};

/// The operator's last plan, of which only the report matters here.
const PATH_LAST_PLAN: &str = "/stowage/v1/plan/last";
/// Why a namespace user gets less.
const NO_RIGHT: &str = "this account may not ask the operator (get on pods/proxy or services/proxy in stowage-system)";
/// Decisions shown; `-o json` has all.
const HISTORY: usize = 12;

#[derive(Deserialize)]
struct LastPlan {
    #[serde(default)]
    frozen: Option<String>,
    report: Option<DecisionReport>,
}

#[derive(Deserialize)]
struct Decisions {
    decisions: Vec<DecisionRecord>,
}

/// What `-o json` prints.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Explanation {
    deployment: String,
    decided: Option<u64>,
    report: Option<DeploymentReport>,
    tenant: Option<TenantReport>,
    decisions: Vec<DecisionRecord>,
    /// What it takes to make the changes that would help.
    advice: Vec<Advice>,
    /// Why there is no report.
    note: Option<String>,
}

pub(crate) async fn run(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    since_ms: u64,
    format: Option<Format>,
    paint: Paint,
) -> Result<Answer, ClusterError> {
    let kind = format!("InferenceDeployment {namespace}");
    let object: InferenceDeployment = cluster.get(cluster.within(namespace), &kind, name).await?;
    let now = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0);
    let since = now.saturating_sub(since_ms);
    let query = format!("{}?since={since}&object={namespace}/{name}", names::PATH_DECISIONS);
    let decisions = cluster.operator::<Decisions>(&query).await.map(|d| d.decisions);
    let last = cluster.operator::<LastPlan>(PATH_LAST_PLAN).await;
    let mut explanation = explanation(namespace, name, last, decisions);
    for remedy in remedies(&explanation) {
        let own = cluster.may(&remedy.needs).await;
        explanation.advice.push(remedy.advice(own));
    }
    let yes = explanation.report.as_ref().is_none_or(answered);
    let text = match out::machine(format, &explanation) {
        Some(text) => text,
        None => render(&explanation, &object, paint),
    };
    Ok(Answer { text, yes })
}

fn explanation(
    namespace: &str,
    name: &str,
    last: Result<LastPlan, ClusterError>,
    decisions: Result<Vec<DecisionRecord>, ClusterError>,
) -> Explanation {
    let deployment = format!("{namespace}/{name}");
    let (plan, mut note) = match last {
        Ok(plan) => (Some(plan), None),
        Err(e) if e.forbidden() => (None, Some(NO_RIGHT.to_owned())),
        Err(e) => (None, Some(e.to_string())),
    };
    let frozen = plan.as_ref().and_then(|p| p.frozen.as_ref());
    if let Some(frozen) = frozen {
        note = Some(format!("planning is paused: {frozen}"));
    }
    let report = plan.and_then(|p| p.report);
    let decided = report.as_ref().map(|r| r.at);
    let own =
        report.as_ref().and_then(|r| r.deployments.iter().find(|d| d.deployment.to_string() == deployment).cloned());
    let tenant = own
        .as_ref()
        .zip(report.as_ref())
        .and_then(|(own, r)| r.tenants.iter().find(|t| Some(&t.tenant) == own.tenant.as_ref()).cloned());
    if own.is_none() && note.is_none() {
        note = Some("the operator's last plan does not mention it: see condition Accepted".to_owned());
    }
    let (decisions, advice) = (decisions.unwrap_or_default(), Vec::new());
    Explanation { deployment, decided, report: own, tenant, decisions, advice, note }
}

/// In the order of the counterfactuals.
fn remedies(explanation: &Explanation) -> Vec<Remedy> {
    let reports = explanation.report.iter();
    let changes = reports.flat_map(|r| r.counterfactuals.iter().map(|c| remedy(&c.change, &r.deployment)));
    changes.flatten().collect()
}

/// Whether nothing prevents what is wanted.
fn answered(r: &DeploymentReport) -> bool {
    r.outcome.well()
}

fn render(explanation: &Explanation, object: &InferenceDeployment, paint: Paint) -> String {
    let newest: Vec<DecisionRecord> = explanation.decisions.iter().rev().take(HISTORY).cloned().collect();
    let mut out = match (&explanation.report, explanation.decided) {
        (Some(report), Some(decided)) => render::explain(report, explanation.tenant.as_ref(), decided, &newest),
        _ => from_status(&explanation.deployment, object),
    };
    if explanation.report.is_none() && !newest.is_empty() {
        for r in &newest {
            let _ = writeln!(out, "{:<10} {}  {}", "history", render::clock(r.time), r.message);
        }
    }
    for advice in &explanation.advice {
        let line = match advice.own {
            true => format!("{:<10} {}", "next step", advice.step),
            false => format!("{:<10} the platform team: {}", "ask", advice.step),
        };
        let _ = writeln!(out, "{line}");
    }
    if let Some(note) = &explanation.note {
        let first = note.lines().next().unwrap_or_default();
        let note = format!("note       from the object's status alone: {first}");
        let _ = writeln!(out, "{}", paint.paint(Tone::Faint, &note));
    }
    out
}

/// What the operator wrote into the status: less than its report, and perhaps older.
fn from_status(deployment: &str, object: &InferenceDeployment) -> String {
    let Some(status) = &object.status else {
        return format!("{deployment}: the operator has written no status yet.\n");
    };
    let mut out = format!(
        "{deployment} wants {} replicas and has {}, {} Ready.\n",
        status.desired_replicas, status.replicas, status.ready_replicas
    );
    for c in &status.conditions {
        let head = format!("{}={} ({})", c.type_, c.status, c.reason);
        let _ = writeln!(out, "{:<10} {head}: {}", "condition", c.message);
    }
    if let Some(d) = &status.decision {
        let at = d.time.0.strftime("%H:%M:%SZ");
        let _ = writeln!(out, "{:<10} {at}  {} ({}): {}", "last", d.action, d.reason, d.message);
        if let Some(c) = &d.counterfactual {
            let _ = writeln!(out, "{:<10} {c}", "would fit");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{golden, yaml};
    use stowage_planner::snapshot::{Policy, Snapshot};

    const OBJECT: &str = "
apiVersion: stowage.dev/v1alpha1
kind: InferenceDeployment
metadata: {name: chat, namespace: team-a}
spec:
  model: {source: {image: {reference: 'models/smollm2:q4', path: /model.gguf}}}
  variants: [{name: small, class: h100-80g, memory: 2Gi, compute: 10}]
status:
  replicas: 1
  readyReplicas: 1
  desiredReplicas: 2
  conditions:
  - {type: Placed, status: 'False', reason: WaitingForGPU, message: No node fits., lastTransitionTime: 2026-03-01T11:48:00Z}
  decision: {id: 1-0, time: 2026-03-01T11:59:30Z, action: Wait, reason: WaitingForGPU, message: No node fits., counterfactual: if node1 is uncordoned}
";

    /// One cordoned node with a single GPU, one deployment that wants it.
    const SNAPSHOT: &str = "
sequence: 7
nodes:
- name: node1
  ready: true
  cordoned: true
  allocatable: {cpuMilli: 8000, memoryBytes: 34359738368, pods: 110}
  freshness: {state: fresh, ageMs: 800}
  gpus:
  - {uuid: GPU-3f2a1b2c-0000-0000-0000-000000000001, index: 0, product: NVIDIA H100 80GB HBM3, class: h100-80g, memoryBytes: 85899345920, memoryStepBytes: 268435456, smPercent: 100, health: {state: healthy}}
tenants:
- {id: team-a, namespaces: [team-a], quotas: [{class: h100-80g, nominalMilli: 4000}]}
classes: [{name: h100-80g}]
deployments:
- id: {namespace: team-a, name: chat}
  uid: u
  generation: 1
  tenant: team-a
  createdMs: 1
  wanted: 1
  variants: [{name: small, accelerator: {kind: gpu, class: h100-80g, count: 1, memoryBytes: 2147483648, smPercent: 10}}]
  needs: {cpuMilli: 500, memoryBytes: 1073741824}
  specHash: v1
  drainTimeoutMs: 60000
";

    fn plan() -> (LastPlan, Vec<DecisionRecord>) {
        let snapshot: Snapshot = yaml(SNAPSHOT);
        let (plan, report) = stowage_planner::plan(&snapshot, &Policy::default(), 1_772_366_400_000);
        // Over the wire and back, as the operator serves it.
        let wire = serde_json::json!({"leading": true, "frozen": null, "plan": plan, "report": report});
        let records = report.records.clone();
        (serde_json::from_value(wire).unwrap(), records)
    }

    #[test]
    fn pending_deployment_is_explained_with_its_counterfactual() {
        let (last, records) = plan();
        let explanation = explanation("team-a", "chat", Ok(last), Ok(records));
        assert!(!explanation.report.as_ref().is_none_or(answered));
        golden("explain.txt", &render(&explanation, &yaml(OBJECT), Paint::OFF));
    }

    #[test]
    fn step_is_ones_own_only_where_the_account_may_take_it() {
        let lines = |own: bool| {
            let (last, records) = plan();
            let mut explanation = explanation("team-a", "chat", Ok(last), Ok(records));
            explanation.advice = remedies(&explanation).into_iter().map(|remedy| remedy.advice(own)).collect();
            let text = render(&explanation, &yaml(OBJECT), Paint::OFF);
            text.lines().filter(|line| line.contains("kubectl uncordon")).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(lines(true), ["next step  kubectl uncordon node1"]);
        assert_eq!(lines(false), ["ask        the platform team: kubectl uncordon node1"]);
    }

    #[test]
    fn account_that_may_not_ask_the_operator_reads_the_status_and_which_right_it_lacks() {
        let forbidden = || {
            let status = kube::core::Status::failure("pods \"stowage-operator-x\" is forbidden", "Forbidden");
            let error = kube::Error::Api(Box::new(status.with_code(403)));
            ClusterError::new("asking the operator (pods/stowage-operator-x:8081)", error)
        };
        let explanation = explanation("team-a", "chat", Err(forbidden()), Err(forbidden()));
        assert_eq!(explanation.note.as_deref(), Some(NO_RIGHT));
        let text = render(&explanation, &yaml(OBJECT), Paint::OFF);
        assert!(text.contains("condition  Placed=False (WaitingForGPU): No node fits."), "{text}");
        assert!(text.contains("get on pods/proxy or services/proxy") && !text.contains("is forbidden"), "{text}");
    }

    #[test]
    fn status_is_shown_with_the_cause_when_the_operator_does_not_answer() {
        let explanation = Explanation {
            deployment: "team-a/chat".into(),
            decided: None,
            report: None,
            tenant: None,
            decisions: Vec::new(),
            advice: Vec::new(),
            note: Some("asking the operator: service unavailable".into()),
        };
        golden("explain_from_status.txt", &render(&explanation, &yaml(OBJECT), Paint::OFF));
    }
}
