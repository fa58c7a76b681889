//! What a change of the objects would change in the plan: two decisions on one state, without and with the
//! change, compared. Decides nothing.
//!
//! Deployments that were asked about are shown in full. Of all others only the effect is reported, not
//! where: the answer may be read by a caller without rights in their namespaces.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::explain::report::{ClassUsage, ClusterReport, Counts, DecisionReport, DeploymentReport, Outcome, Wait};
use crate::plan::{Action, CreateReason, EndReason, Plan};
use crate::snapshot::index::charge;
use crate::snapshot::{DeploymentId, Placement, Snapshot, TenantId, TimeMs};

/// What a dry run is asked: manifests as they would be applied or deleted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DryRunRequest<M> {
    /// Each with a name, and a namespace where its kind has one.
    pub manifests: Vec<M>,
    /// They are deleted, not applied.
    #[serde(default)]
    pub delete: bool,
}

/// What a dry run answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DryRun {
    /// Whether the operator that answers leads. Another one does not know of back-offs, and less of the load.
    pub leading: bool,
    /// One per manifest, in their order.
    pub documents: Vec<Document>,
    /// What becomes of the plan.
    pub difference: Difference,
}

/// What applying one manifest does to its object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Document {
    /// From 1.
    pub number: u32,
    /// The manifest's kind.
    pub kind: String,
    /// Empty for kinds without namespaces.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// The object's name.
    pub name: String,
    /// What is done.
    pub proposal: Proposal,
    /// Why it would not be accepted; nothing is planned for it then.
    pub refusal: Option<Refused>,
}

/// What is done to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Proposal {
    /// There is none of this name.
    Create,
    /// Its spec becomes another one.
    Change,
    /// It goes.
    Delete,
    /// It is as the manifest says.
    Unchanged,
}

/// Why an object would not be accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refused {
    /// The condition's reason.
    pub reason: String,
    /// What is wrong and what to write instead.
    pub message: String,
}

/// One decision, for comparison.
#[derive(Clone, Copy)]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Decision<'a> {
    pub snapshot: &'a Snapshot,
    pub plan: &'a Plan,
    pub report: &'a DecisionReport,
}

/// What is different in the second of two decisions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// When the state was looked at that both decide on.
    pub at: TimeMs,
    /// Those that were asked about, sorted.
    pub deployments: Vec<DeploymentDifference>,
    /// Others of which something becomes different, sorted.
    pub others: Vec<OtherDifference>,
    /// Tenants of the deployments that were asked about, sorted.
    pub tenants: Vec<TenantDifference>,
    /// The cluster after the plan without the change.
    pub cluster_before: ClusterReport,
    /// The cluster after the plan with the change.
    pub cluster_after: ClusterReport,
}

/// What becomes of a deployment that was asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeploymentDifference {
    /// Which one.
    pub deployment: DeploymentId,
    /// Without the change; `None`: it does not exist, or is not planned for.
    pub before: Option<State>,
    /// With the change; `None`: it is not planned for.
    pub after: Option<DeploymentReport>,
    /// Replicas that only the second plan creates, by slot.
    pub created: Vec<Created>,
    /// Pods that only the second plan ends.
    pub ended: Vec<Ended>,
    /// What the created ones are charged.
    pub takes: Vec<ClassMilli>,
    /// What the ended ones give back once they are gone.
    pub frees: Vec<ClassMilli>,
    /// Of the prices in `before` and `after`; empty: no price is known.
    pub currency: String,
}

/// A deployment's state in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct State {
    pub outcome: Outcome,
    pub counts: Counts,
    /// Of all planned replicas, in millionths of the currency.
    pub price_per_hour_micros: Option<u64>,
}

/// A replica that is created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct Created {
    pub index: u32,
    pub reason: CreateReason,
    pub placement: Placement,
}

/// A pod that ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    /// Its name.
    pub pod: String,
    /// Why.
    pub reason: EndReason,
    /// Until then it may finish its requests; `None`: it is removed at once.
    pub drain_until_ms: Option<TimeMs>,
}

/// An amount of one GPU class, in thousandths of a GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct ClassMilli {
    pub class: String,
    pub milli: u64,
}

/// What becomes of a deployment that was not asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OtherDifference {
    /// Which one.
    pub deployment: DeploymentId,
    /// What happens to it.
    pub effect: Effect,
    /// To so many replicas.
    pub replicas: u32,
}

/// What a change does to another deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Effect {
    /// Replicas that serve now end.
    Drained,
    /// Replicas that would be placed wait instead.
    Blocked,
    /// Replicas that wait are placed, perhaps once pods have ended.
    Unblocked,
    /// Replicas are created elsewhere.
    Moved,
}

/// What a tenant holds, without and with the change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names explain themselves")]
pub struct TenantDifference {
    pub tenant: TenantId,
    pub before: Vec<ClassUsage>,
    pub after: Vec<ClassUsage>,
}

/// Compares two decisions. `asked`: the deployments of the manifests; `tenants`: TenantQuotas among them.
pub fn difference(
    asked: &BTreeSet<DeploymentId>,
    tenants: &BTreeSet<TenantId>,
    before: Decision<'_>,
    after: Decision<'_>,
) -> Difference {
    let (acts_before, acts_after) = (by_deployment(before.plan), by_deployment(after.plan));
    let none = Vec::new();
    let acts = |id: &DeploymentId| Acts {
        before: acts_before.get(id).unwrap_or(&none),
        after: acts_after.get(id).unwrap_or(&none),
    };
    let reports = |decision: Decision<'_>| -> BTreeMap<DeploymentId, DeploymentReport> {
        decision.report.deployments.iter().map(|r| (r.deployment.clone(), r.clone())).collect()
    };
    let (old, new) = (reports(before), reports(after));
    let deployments = asked.iter().map(|id| one(id, old.get(id), new.get(id), &acts(id), before, after)).collect();
    let others = old.iter().filter(|(id, _)| !asked.contains(*id)).filter_map(|(id, old)| {
        let (effect, replicas) = effect(old, new.get(id)?, &acts(id))?;
        Some(OtherDifference { deployment: id.clone(), effect, replicas })
    });
    let of_asked = asked.iter().filter_map(|id| new.get(id).or(old.get(id))?.tenant.clone());
    let tenants: BTreeSet<TenantId> = of_asked.chain(tenants.iter().cloned()).collect();
    let usage = |decision: Decision<'_>, tenant: &TenantId| {
        let found = decision.report.tenants.iter().find(|t| &t.tenant == tenant);
        found.map(|t| t.usage.clone()).unwrap_or_default()
    };
    Difference {
        at: after.report.at,
        deployments,
        others: others.collect(),
        tenants: tenants
            .into_iter()
            .map(|tenant| TenantDifference { before: usage(before, &tenant), after: usage(after, &tenant), tenant })
            .collect(),
        cluster_before: before.report.cluster.clone(),
        cluster_after: after.report.cluster.clone(),
    }
}

/// The actions on one deployment in both plans.
struct Acts<'a> {
    before: &'a [&'a Action],
    after: &'a [&'a Action],
}

fn by_deployment(plan: &Plan) -> BTreeMap<&DeploymentId, Vec<&Action>> {
    let mut found: BTreeMap<&DeploymentId, Vec<&Action>> = BTreeMap::new();
    for action in &plan.actions {
        found.entry(&action.replica().deployment).or_default().push(action);
    }
    found
}

fn one(
    id: &DeploymentId,
    old: Option<&DeploymentReport>,
    new: Option<&DeploymentReport>,
    acts: &Acts<'_>,
    before: Decision<'_>,
    after: Decision<'_>,
) -> DeploymentDifference {
    let created = created(acts.after, acts.before);
    let ended = ended(acts.after, acts.before);
    let gone = before.snapshot.deployments.iter().find(|d| &d.id == id);
    let gone = gone.into_iter().flat_map(|d| &d.replicas).filter(|r| ended.iter().any(|e| e.pod == r.name));
    DeploymentDifference {
        deployment: id.clone(),
        before: old.map(|r| State {
            outcome: r.outcome,
            counts: r.counts,
            price_per_hour_micros: r.prediction.price_per_hour_micros,
        }),
        after: new.cloned(),
        takes: charges(after.snapshot, created.iter().map(|c| &c.placement)),
        frees: charges(before.snapshot, gone.filter_map(|r| r.placement.as_ref())),
        currency: currency(id, after.snapshot).or_else(|| currency(id, before.snapshot)).unwrap_or_default(),
        created,
        ended,
    }
}

/// What is created in the first list and not, at the same place, in the second.
fn created(list: &[&Action], known: &[&Action]) -> Vec<Created> {
    let new = list.iter().filter_map(|action| match action {
        Action::Create { replica, placement, reason, .. } => {
            let same = known.iter().any(|k| match k {
                Action::Create { replica: other, placement: place, .. } => other == replica && place == placement,
                Action::Resume { .. } | Action::Drain { .. } | Action::Remove { .. } => false,
            });
            (!same).then(|| Created { index: replica.index, reason: *reason, placement: placement.clone() })
        }
        Action::Resume { .. } | Action::Drain { .. } | Action::Remove { .. } => None,
    });
    let mut new: Vec<Created> = new.collect();
    new.sort_by_key(|c| c.index);
    new
}

/// Pods that end in the first list and not in the second.
fn ended(list: &[&Action], known: &[&Action]) -> Vec<Ended> {
    let ends = |list: &[&Action]| -> BTreeSet<Ended> {
        let end = |action: &&Action| match action {
            Action::Create { .. } | Action::Resume { .. } => None,
            Action::Drain { pod, deadline_ms, reason, .. } => {
                Some(Ended { pod: pod.clone(), reason: *reason, drain_until_ms: Some(*deadline_ms) })
            }
            Action::Remove { pod, reason, .. } => {
                Some(Ended { pod: pod.clone(), reason: *reason, drain_until_ms: None })
            }
        };
        list.iter().filter_map(end).collect()
    };
    let known: BTreeSet<String> = ends(known).into_iter().map(|e| e.pod).collect();
    ends(list).into_iter().filter(|e| !known.contains(&e.pod)).collect()
}

fn effect(old: &DeploymentReport, new: &DeploymentReport, acts: &Acts<'_>) -> Option<(Effect, u32)> {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let ended = ended(acts.after, acts.before);
    if !ended.is_empty() {
        return Some((Effect::Drained, count(ended.len())));
    }
    let (was, is) = (served(old), served(new));
    if is != was {
        let effect = if is < was { Effect::Blocked } else { Effect::Unblocked };
        return Some((effect, is.abs_diff(was)));
    }
    let moved = created(acts.after, acts.before);
    (!moved.is_empty()).then(|| (Effect::Moved, count(moved.len())))
}

/// Replicas after the plan, with those that need nothing but pods to end.
fn served(r: &DeploymentReport) -> u32 {
    let soon = r.waits.iter().filter(|w| matches!(w, Wait::Ending { .. } | Wait::Reclaiming { .. })).count();
    r.counts.desired + u32::try_from(soon).unwrap_or(u32::MAX)
}

fn charges<'a>(snapshot: &Snapshot, placements: impl Iterator<Item = &'a Placement>) -> Vec<ClassMilli> {
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for placement in placements {
        let Some(node) = snapshot.nodes.iter().find(|n| n.name == placement.node) else { continue };
        for share in &placement.gpus {
            let Some(gpu) = node.gpus.iter().find(|g| g.uuid == share.uuid) else { continue };
            let sum = sums.entry(gpu.class.clone().unwrap_or_default()).or_default();
            *sum = sum.saturating_add(charge(gpu, &share.promise));
        }
    }
    sums.into_iter().map(|(class, milli)| ClassMilli { class, milli }).collect()
}

fn currency(id: &DeploymentId, snapshot: &Snapshot) -> Option<String> {
    let deployment = snapshot.deployments.iter().find(|d| &d.id == id)?;
    let mut classes = deployment.variants.iter().filter_map(|v| v.accelerator.class());
    classes.find_map(|class| {
        let priced = snapshot.classes.iter().find(|c| &c.name == class && c.price_per_hour_micros.is_some())?;
        Some(priced.currency.clone())
    })
}

// === impl DeploymentDifference, DryRun ===

impl DeploymentDifference {
    /// Whether all replicas that are wanted exist after the plan, or need nothing but time.
    pub fn fits(&self) -> bool {
        self.after.as_ref().is_none_or(|r| r.outcome.well())
    }
}

impl DryRun {
    /// Whether everything that was asked for is accepted and gets what it wants.
    pub fn fits(&self) -> bool {
        self.documents.iter().all(|d| d.refusal.is_none())
            && self.difference.deployments.iter().all(DeploymentDifference::fits)
    }
}
