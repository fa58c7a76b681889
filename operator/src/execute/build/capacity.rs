//! A capacity pod: what a replica asks for, for any node that is not here yet.
//!
//! A node autoscaler looks at pods that the scheduler finds no node for, and adds one on which they would fit. This pod
//! has the node selector, the tolerations and the requests of the replica, and a claim for any GPU of the class. It may
//! not go to the nodes that have such GPUs now: the planner has refused those, for reasons of which the scheduler knows
//! nothing. Its container waits and does nothing; the pod ends as soon as the replica can be placed.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    Affinity, Container, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec,
};
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::json;
use stowage_crds::names::{LABEL_CAPACITY, LABEL_HOSTNAME, LABEL_MANAGED_BY, LABEL_TENANT, MANAGED_BY};
use stowage_planner::report::CapacityAsk;
use stowage_planner::snapshot::ReplicaId;

use super::{Owner, Replica, claim, pod};
use crate::observe::identity::{ReplicaNames, capacity_names};
use crate::translate::validate::Wanted;

/// A pod and its claim, which the pod owns once it exists.
#[derive(Debug, Clone, PartialEq)]
pub struct CapacityPod {
    pub pod: Pod,
    pub claim: Option<ResourceClaim>,
}

/// What a capacity pod is built from.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    pub owner: Owner<'a>,
    pub wanted: &'a Wanted,
    pub ask: &'a CapacityAsk,
    /// Of the GPUs that would do.
    pub products: &'a BTreeSet<&'a str>,
    /// Hostnames of the nodes that have such GPUs now; for a replica without GPUs, of all.
    pub here: &'a BTreeSet<&'a str>,
    /// Of the container that waits.
    pub image: &'a str,
}

impl Inputs<'_> {
    /// They follow from what is asked for, and not from the nodes that are here.
    pub fn names(&self) -> ReplicaNames {
        let promises: Vec<_> = self.ask.like.gpus.iter().map(|gpu| &gpu.promise).collect();
        let ask = json!([self.ask.index, self.wanted.spec_hash, self.ask.like.variant, promises]);
        capacity_names(self.owner.uid, self.owner.name, &ask.to_string())
    }

    pub fn build(&self) -> CapacityPod {
        let names = self.names();
        let Inputs { owner, wanted, ask, .. } = *self;
        let claim = claim::unpinned(self.meta(&names.claim), &ask.like.gpus, self.products, wanted.sharing());
        let metadata = ObjectMeta { owner_references: Some(vec![owner.reference()]), ..self.meta(&names.pod) };
        CapacityPod { pod: Pod { metadata, spec: Some(self.spec(names)), status: None }, claim }
    }

    /// The replica's, as far as it decides where the pod fits.
    fn spec(&self, names: ReplicaNames) -> PodSpec {
        let Inputs { owner, wanted, ask, .. } = *self;
        let (namespace, name) = (owner.namespace.to_owned(), owner.name.to_owned());
        let id = ReplicaId {
            deployment: stowage_planner::snapshot::DeploymentId { namespace, name },
            index: ask.index,
            incarnation: 0,
        };
        let (placement, sharing) = (&ask.like, wanted.sharing());
        let replica = Replica { owner, id: &id, names, placement, spec_hash: "", takes_over: false, sharing };
        let spec = pod::pod(&replica, wanted).spec.unwrap_or_default();
        let wait = |engine: Container| Container {
            name: "wait".into(),
            image: Some(self.image.to_owned()),
            resources: engine.resources,
            security_context: engine.security_context,
            ..Container::default()
        };
        PodSpec {
            affinity: Some(elsewhere(self.here)),
            containers: spec.containers.into_iter().map(wait).collect(),
            init_containers: None,
            volumes: None,
            image_pull_secrets: None,
            // One of a high priority would end others to get a place.
            priority_class_name: None,
            service_account_name: None,
            termination_grace_period_seconds: Some(0),
            ..spec
        }
    }

    fn meta(&self, name: &str) -> ObjectMeta {
        let tenant = self.owner.tenant.map(|tenant| (LABEL_TENANT, tenant));
        let labels = [(LABEL_MANAGED_BY, MANAGED_BY), (LABEL_CAPACITY, self.owner.name)].into_iter().chain(tenant);
        let labels: BTreeMap<String, String> = labels.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(self.owner.namespace.to_owned()),
            labels: Some(labels),
            ..ObjectMeta::default()
        }
    }
}

/// The claim goes with the pod.
pub fn owned_by(pod: &Pod, mut claim: ResourceClaim) -> ResourceClaim {
    claim.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".into(),
        kind: "Pod".into(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: None,
    }]);
    claim
}

fn elsewhere(here: &BTreeSet<&str>) -> Affinity {
    let other = NodeSelectorRequirement {
        key: LABEL_HOSTNAME.into(),
        operator: "NotIn".into(),
        values: pod::non_empty(here.iter().map(|name| (*name).to_owned()).collect()),
    };
    let term = NodeSelectorTerm { match_fields: None, match_expressions: Some(vec![other]) };
    Affinity {
        node_affinity: Some(NodeAffinity {
            required_during_scheduling_ignored_during_execution: Some(NodeSelector { node_selector_terms: vec![term] }),
            ..NodeAffinity::default()
        }),
        ..Affinity::default()
    }
}
