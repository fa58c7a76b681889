//! Capacity pods: for replicas for which the plan asks for another node.
//!
//! Level-based: the plan says for which replicas, the view shows which pods there are, and [`Capacity::steps`] what is
//! missing or left over. A pod ends when its replica is not asked for any more, and when it got a node whose agent has
//! reported: from then on the planner places the replica there itself. What it holds until it is gone is counted as any
//! claim's, so it is gone before the replica is placed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::{Api, ResourceExt};
use stowage_crds::names::{CLAIM_PREFIX, LABEL_CAPACITY, LABEL_HOSTNAME};
use stowage_planner::DecisionReport;
use stowage_planner::report::CapacityAsk;
use stowage_planner::snapshot::{DeploymentId, Freshness, Node, TimeMs};

use super::build::capacity::{CapacityPod, Inputs, owned_by};
use super::build::{Owner, Target};
use super::write::{WriteError, Writer};
use crate::observe::identity::controller;
use crate::observe::journal::Journals;
use crate::observe::parsed::trim::ours;
use crate::observe::source::Key;
use crate::observe::view::{KnownPod, View};
use crate::translate::Built;
use crate::translate::snapshot::replicas::millis;

/// A pod that could not be made is tried again after this long.
const RETRY_MS: TimeMs = 30_000;
/// Since a pod had a node: its replica asks for no other one before, whether or not it got that one.
const SATISFIED_MS: TimeMs = 600_000;

/// What is remembered of capacity pods between plans.
#[derive(Debug, Default)]
pub struct Capacity {
    /// Not again before.
    pauses: BTreeMap<Key, TimeMs>,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    Make(Box<CapacityPod>),
    Remove { namespace: String, target: Target },
}

impl Capacity {
    /// `image`: of the container that waits.
    pub fn steps(&mut self, view: &View, built: &Built, report: &DecisionReport, image: &str) -> Vec<Step> {
        let now = millis(view.now);
        self.pauses.retain(|_, until| *until > now);
        let pods: Vec<_> = view.pods.iter().filter_map(|(key, pod)| Some((key, pod, capacity_of(pod)?))).collect();
        if pods.is_empty() && report.deployments.iter().all(|d| d.capacity.is_empty()) {
            return Vec::new();
        }
        let nodes: BTreeMap<&str, &Node> = built.snapshot.nodes.iter().map(|n| (n.name.as_str(), &**n)).collect();
        let asked = asked(view, built, report, &nodes, image);
        let mut steps = Vec::new();
        // Deployments of which a pod has its node or is on its way out: the next plan shows what is left to ask for.
        let mut settling = BTreeSet::new();
        for (key, pod, deployment) in pods {
            let ends = pod.metadata.deletion_timestamp.is_some();
            let on = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
            if ends || on.is_some() {
                settling.insert((key.0.clone(), deployment));
            }
            if on.is_some() {
                self.pauses.insert(key.clone(), now.saturating_add(SATISFIED_MS));
            }
            let waits = on.is_none_or(|node| nodes.get(node).is_some_and(|n| !reports(n, has_claim(view, key))));
            let needed = waits && asked.contains_key(key) && controller(&pod.metadata).is_some();
            if !ends
                && !needed
                && let Some(target) = Target::of(&pod.metadata)
            {
                steps.push(Step::Remove { namespace: key.0.clone(), target });
            }
        }
        for (key, (deployment, made)) in asked {
            let exists = view.pods.contains_key(&key) && (made.claim.is_none() || has_claim(view, &key));
            let settles = settling.contains(&(key.0.clone(), deployment.name.as_str()));
            if !exists && !settles && !self.pauses.contains_key(&key) {
                self.pauses.insert(key, now.saturating_add(RETRY_MS));
                steps.push(Step::Make(Box::new(made)));
            }
        }
        steps
    }
}

/// The deployment that a capacity pod of ours is for, one that `kubectl delete --cascade=orphan` left included.
fn capacity_of(pod: &KnownPod) -> Option<&str> {
    let name = pod.metadata.labels.as_ref()?.get(LABEL_CAPACITY).filter(|_| ours(&pod.metadata))?;
    let owner = controller(&pod.metadata);
    owner.is_none_or(|owner| owner.kind == "InferenceDeployment" && owner.name == *name).then_some(name)
}

/// Whether the planner knows what it needs to place a replica there, or to refuse to.
fn reports(node: &Node, gpus: bool) -> bool {
    node.ready && (!gpus || matches!(node.freshness, Freshness::Fresh { .. }))
}

fn has_claim(view: &View, pod: &Key) -> bool {
    view.claims.contains_key(&(pod.0.clone(), format!("{CLAIM_PREFIX}{}", pod.1)))
}

/// The capacity pods that are to exist.
fn asked<'a>(
    view: &View,
    built: &Built,
    report: &'a DecisionReport,
    nodes: &BTreeMap<&str, &Node>,
    image: &str,
) -> BTreeMap<Key, (&'a DeploymentId, CapacityPod)> {
    let mut all = BTreeMap::new();
    for d in report.deployments.iter().filter(|d| !d.capacity.is_empty()) {
        let id = &d.deployment;
        let stored = view.deployments.get(&(id.namespace.clone(), id.name.clone()));
        let wanted = built.judged.get(id).and_then(|judged| judged.wanted());
        let (Some(stored), Some(wanted)) = (stored, wanted) else { continue };
        let tenant = built.tenants.of(&id.namespace);
        let owner = Owner { namespace: &id.namespace, name: &id.name, uid: stored.uid(), tenant };
        for ask in &d.capacity {
            let Some((products, here)) = would_do(ask, nodes, view) else { continue };
            let made = Inputs { owner, wanted, ask, products: &products, here: &here, image }.build();
            all.insert((id.namespace.clone(), made.pod.name_any()), (id, made));
        }
    }
    all
}

/// Products of the GPUs that would do, and the hostnames of the nodes that have such; without GPUs, of all nodes.
fn would_do<'a>(
    ask: &CapacityAsk,
    nodes: &BTreeMap<&'a str, &'a Node>,
    view: &'a View,
) -> Option<(BTreeSet<&'a str>, BTreeSet<&'a str>)> {
    let like = nodes.get(ask.like.node.as_str())?;
    let class = match ask.like.gpus.first() {
        Some(first) => Some(like.gpus.iter().find(|gpu| gpu.uuid == first.uuid)?.class.as_ref()?),
        None => None,
    };
    let (mut products, mut here) = (BTreeSet::new(), BTreeSet::new());
    for (name, node) in nodes {
        let of_class = node.gpus.iter().filter(|gpu| class.is_some() && gpu.class.as_ref() == class);
        let mut of_class = of_class.map(|gpu| gpu.product.as_str()).peekable();
        if class.is_none() || of_class.peek().is_some() {
            here.insert(hostname(view, name));
        }
        products.extend(of_class);
    }
    Some((products, here))
}

fn hostname<'a>(view: &'a View, node: &'a str) -> &'a str {
    let labels = view.nodes.get(&(String::new(), node.to_owned())).and_then(|node| node.metadata.labels.as_ref());
    labels.and_then(|labels| labels.get(LABEL_HOSTNAME)).map_or(node, String::as_str)
}

/// Carries the steps out; whether all pods that were to end do. One that could not be made is paused already.
pub async fn carry_out(steps: Vec<Step>, writer: &Writer, journals: &Arc<Journals>) -> bool {
    let mut all_end = true;
    for step in steps {
        let (what, done) = match step {
            Step::Make(made) => {
                (format!("make capacity pod {}", made.pod.name_any()), make(*made, writer, journals).await)
            }
            Step::Remove { namespace, target } => {
                let done = remove(&namespace, &target, writer, journals).await;
                all_end &= done.is_ok();
                (format!("end capacity pod {}", target.name), done)
            }
        };
        match done {
            Ok(()) => tracing::info!("{what}"),
            Err(err) => tracing::warn!(%err, "cannot {what}"),
        }
    }
    all_end
}

/// The claim second, since the pod owns it: until then the scheduler waits for it.
async fn make(made: CapacityPod, writer: &Writer, journals: &Journals) -> Result<(), WriteError> {
    let CapacityPod { pod, claim } = made;
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let pods: Api<Pod> = Api::namespaced(writer.client(), &namespace);
    let pod = match writer.create(&pods, &pod).await {
        Err(WriteError::AlreadyExists) => {
            let found = writer.find(&pods, &name).await?;
            let same = controller(&found.metadata).map(|owner| &owner.uid)
                == controller(&pod.metadata).map(|owner| &owner.uid);
            if !same || found.metadata.deletion_timestamp.is_some() {
                return Err(WriteError::Foreign(format!("Pod {name}")));
            }
            found
        }
        other => other?,
    };
    if let Some(claim) = claim {
        let claims: Api<ResourceClaim> = Api::namespaced(writer.client(), &namespace);
        match writer.create(&claims, &owned_by(&pod, claim)).await {
            Ok(claim) => journals.claims().written(claim, Instant::now()),
            Err(WriteError::AlreadyExists) => {}
            Err(err) => return Err(err),
        }
    }
    journals.pods().written(pod, Instant::now());
    Ok(())
}

async fn remove(namespace: &str, target: &Target, writer: &Writer, journals: &Journals) -> Result<(), WriteError> {
    let pods: Api<Pod> = Api::namespaced(writer.client(), namespace);
    match writer.delete(&pods, &target.name, &target.uid, Some(1)).await? {
        Some(pod) => journals.pods().written(pod, Instant::now()),
        None => journals.pods().gone((namespace.to_owned(), target.name.clone()), target.uid.clone(), Instant::now()),
    }
    Ok(())
}
