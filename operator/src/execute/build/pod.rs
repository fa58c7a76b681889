//! A replica's pod: pinned to its node, restricted, with the claim, the model and the engine.
//!
//! What the engine itself needs (image, arguments, probes, environment) comes from the runtime's
//! adapter; what keeps it where the plan put it, and away from everything else, is decided here.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, Container, LocalObjectReference, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm,
    Pod, PodResourceClaim, PodSecurityContext, PodSpec, ResourceClaim as ContainerClaim, SeccompProfile, Toleration,
};
use stowage_crds::inference_deployment::{TaintEffect, Toleration as WideToleration, TolerationOperator};
use stowage_crds::names::{ANNOTATION_MODEL, CLAIM_REQUEST, ENGINE_UID};
use stowage_crds::validate::AcceptedPod;

use super::Replica;
use super::engine::{engine, waiting};
use crate::translate::validate::Wanted;

pub fn pod(replica: &Replica<'_>, wanted: &Wanted) -> Pod {
    let template = wanted.deployment.pod.clone();
    let mut metadata = replica.meta(&replica.names.pod);
    merge(metadata.labels.get_or_insert_default(), &template.labels);
    let annotations = metadata.annotations.get_or_insert_default();
    merge(annotations, &template.annotations);
    annotations.insert(ANNOTATION_MODEL.to_owned(), wanted.deployment.model_name.clone());
    Pod { metadata, spec: Some(spec(replica, wanted, template)), status: None }
}

fn spec(replica: &Replica<'_>, wanted: &Wanted, template: AcceptedPod) -> PodSpec {
    let (mut container, volumes) = engine(replica, wanted);
    let mut waits = wanted.fetched.as_ref().and_then(|_| waiting(wanted, &container));
    let claimed = !replica.placement.gpus.is_empty();
    if claimed {
        use_claim(&mut container);
        waits.iter_mut().for_each(use_claim);
    }
    PodSpec {
        affinity: Some(pinned_to(&replica.placement.node)),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        service_account_name: template.service_account_name,
        image_pull_secrets: non_empty(
            template.image_pull_secrets.into_iter().map(|name| LocalObjectReference { name }).collect(),
        ),
        priority_class_name: template.priority_class_name,
        node_selector: Some(template.node_selector).filter(|selector| !selector.is_empty()),
        tolerations: non_empty(template.tolerations.iter().map(toleration).collect()),
        // The kubelet starts an engine that ended again in its place, with its own growing pauses:
        // that works without us, keeps the slice, and is no hot loop.
        restart_policy: Some("Always".into()),
        // `kubectl drain` and `kubectl delete pod` end it by this; validation bounds it.
        termination_grace_period_seconds: i64::try_from(wanted.deployment.drain_timeout.as_secs().max(1)).ok(),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(ENGINE_UID),
            run_as_group: Some(ENGINE_UID),
            fs_group: Some(ENGINE_UID),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), ..SeccompProfile::default() }),
            ..PodSecurityContext::default()
        }),
        resource_claims: claimed.then(|| {
            vec![PodResourceClaim {
                name: CLAIM_REQUEST.into(),
                resource_claim_name: Some(replica.names.claim.clone()),
                ..PodResourceClaim::default()
            }]
        }),
        init_containers: waits.map(|container| vec![container]),
        containers: vec![container],
        volumes: non_empty(volumes),
        ..PodSpec::default()
    }
}

fn use_claim(container: &mut Container) {
    let resources = container.resources.get_or_insert_default();
    resources.claims = Some(vec![ContainerClaim { name: CLAIM_REQUEST.into(), request: None }]);
}

/// By the node's name as a field: the scheduler looks at one node instead of evaluating the claim's
/// selector on all of them.
fn pinned_to(node: &str) -> Affinity {
    let name = NodeSelectorRequirement {
        key: "metadata.name".into(),
        operator: "In".into(),
        values: Some(vec![node.to_owned()]),
    };
    let term = NodeSelectorTerm { match_fields: Some(vec![name]), match_expressions: None };
    Affinity {
        node_affinity: Some(NodeAffinity {
            required_during_scheduling_ignored_during_execution: Some(NodeSelector { node_selector_terms: vec![term] }),
            ..NodeAffinity::default()
        }),
        ..Affinity::default()
    }
}

fn toleration(wide: &WideToleration) -> Toleration {
    let operator = wide.operator.map(|operator| match operator {
        TolerationOperator::Equal => "Equal",
        TolerationOperator::Exists => "Exists",
    });
    let effect = wide.effect.map(|effect| match effect {
        TaintEffect::NoSchedule => "NoSchedule",
        TaintEffect::PreferNoSchedule => "PreferNoSchedule",
        TaintEffect::NoExecute => "NoExecute",
    });
    Toleration {
        key: wide.key.clone(),
        operator: operator.map(str::to_owned),
        value: wide.value.clone(),
        effect: effect.map(str::to_owned),
        toleration_seconds: None,
    }
}

/// Ours win: what a template says under a key of ours was refused already.
fn merge(ours: &mut BTreeMap<String, String>, theirs: &BTreeMap<String, String>) {
    for (key, value) in theirs {
        ours.entry(key.clone()).or_insert_with(|| value.clone());
    }
}

pub(super) fn non_empty<T>(list: Vec<T>) -> Option<Vec<T>> {
    Some(list).filter(|list| !list.is_empty())
}
